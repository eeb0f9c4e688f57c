"""Networks through ``torch.compile``, and without it wherever that does not work."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .messages import say
from .processes.rendezvous import place


def missing_compiler(device_type: str) -> str | None:
    """The reason why networks cannot be compiled for a kind of device, or None where there is a compiler.

    Args:
        device_type: "cpu", "cuda" or another of PyTorch's.
    """
    if device_type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed; pip install triton"
    if device_type != "cpu":
        return f"there is no compiler for {device_type}"
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    return None if shutil.which(name) else f"there is no C++ compiler {name}; install one or set CXX"


def _first_line(error: BaseException) -> str:
    error = getattr(error, "inner_exception", error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


_numbers = itertools.count()


def _function_of(network: nn.Module) -> Callable[..., Tensor]:
    """The network as a function: torch.compile of the module would register its parameters a second time."""

    def call(x: Tensor, c_noise: Tensor, **told: Tensor) -> Tensor:
        return network(x, c_noise, **told)

    # what was compiled is kept with the code object, eight times at most: every network has its own
    call.__code__ = call.__code__.replace(co_name=f"network_{next(_numbers)}")
    return call


class CompiledCall:
    """Calls a network through ``torch.compile``; from the first failure on without, having said so in one line.

    A network is compiled when it first meets a shape. In training that is a call of its own, forward and backward,
    whose result is thrown away and which draws no random numbers: an error in either half shows there, before anything
    of the step is done.

    Args:
        network: The network; it stays a module of its owner, for nothing here holds parameters.
        frozen: Its weights will never change: without gradients they become constants, laid out as the processor's
            convolutions read them.
    """

    def __init__(self, network: nn.Module, *, frozen: bool = False) -> None:
        self._network, self._frozen = network, frozen
        self._compiled: Callable[..., Tensor] | None = None
        self._known: set[Any] = set()
        self.failed = self._told = False

    def __call__(self, x: Tensor, c_noise: Tensor, **told: Tensor) -> Tensor:
        """``network(x, c_noise, **told)``."""
        if self.failed:
            return self._network(x, c_noise, **told)
        gradients = (torch.is_grad_enabled(), x.requires_grad, self._network.training)
        met = (x.shape, x.dtype, x.device, tuple(told), gradients)
        if met not in self._known:
            self._try(x, c_noise, told)
            if self.failed:
                return self._network(x, c_noise, **told)
            self._known.add(met)
        return self._call(x, c_noise, told)

    def _call(self, x: Tensor, c_noise: Tensor, told: dict[str, Tensor]) -> Tensor:
        if self._compiled is None:
            self._compiled = torch.compile(_function_of(self._network), dynamic=False)
        with self._settings():
            return self._compiled(x, c_noise, **told)

    def _settings(self) -> contextlib.AbstractContextManager[Any]:
        if not self._frozen or torch.is_grad_enabled():
            return contextlib.nullcontext()
        # inductor reads this where it begins, too early for the options of torch.compile
        config: Any = importlib.import_module("torch._inductor.config")
        return config.patch(freezing=True)

    def _try(self, x: Tensor, c_noise: Tensor, told: dict[str, Tensor]) -> None:
        if not self._told and place()[0] == 0:
            say("compiling the network, which may take minutes")
        self._told = True
        devices = [x.device] if x.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            try:
                inputs = x.detach().requires_grad_(x.requires_grad)
                out = self._call(inputs, c_noise, told)
                if out.requires_grad:
                    learned = [parameter for parameter in self._network.parameters() if parameter.requires_grad]
                    wanted = [*learned, inputs] if inputs.requires_grad else learned
                    torch.autograd.grad(out.sum(), wanted, allow_unused=True)
            except torch.cuda.OutOfMemoryError:
                raise
            except Exception as error:
                # what the network itself refuses is for it to say, not the compiler's failure
                with torch.no_grad():
                    self._network(x, c_noise, **told)
                self.failed = True
                say(f"compilation failed, goes on without: {_first_line(error)}")
