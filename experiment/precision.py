"""Precision and compilation of a network. Alpha, sigma, losses and optimizer stay in float32 or wider."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from models import ConsistencyModel, FirstStage, NetworkScoreModel, NoisyClassifier
from models.backbones import ConditioningEmbedding, ConditionInput, NoiseLabelEmbedding, Upsample
from runtime.compilation import CompiledCall, missing_compiler
from runtime.processes.collectives import is_sharded
from runtime.registry import choices_message

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

# Compiling takes minutes, and then saves a tenth of the time on a CPU and a half on a GPU: it pays from so many calls
# of the network on.
_MANY_CALLS = {"cpu": 100_000, "cuda": 10_000}
# Smaller networks spend their time on what bf16 does not make faster; some are slower by what converting costs.
_MANY_WEIGHTS = 5_000_000

# they compute with their weights before autocast rounds: sums of taps, and features in the type of the weights
_WIDE = (ConditionInput, ConditioningEmbedding, NoiseLabelEmbedding, Upsample)


@dataclass(frozen=True)
class NetworkMode:
    """Precision and compilation of a network.

    Attributes:
        precision: torch.float32, or torch.bfloat16: autocast over float32 weights.
        compiled: Through ``torch.compile``, which falls back by itself where it fails.
        reasons: What was picked and why, a line each.
    """

    precision: torch.dtype
    compiled: bool
    reasons: tuple[str, ...] = ()

    def recorded(self) -> dict[str, Any]:
        """The entry of a checkpoint, for JSON: ``{"precision": "bf16", "compile": true}``."""
        name = next(name for name, dtype in PRECISIONS.items() if dtype == self.precision)
        return {"precision": name, "compile": self.compiled}


def pick_mode(
    precision: str,
    compile: str,
    device: torch.device,
    *,
    backbone: nn.Module,
    num_calls: int,
    recorded: dict[str, Any] | None = None,
) -> NetworkMode:
    """Decide how a network computes, and say why.

    Args:
        precision: "fp32"; "bf16"; or "auto": bf16 where the processor multiplies it faster than float32, for networks
            of 5 million weights or more.
        compile: "on", if there is a compiler; "off"; or "auto": if there is one, for such networks in runs that call
            them 100,000 times or more, 10,000 times on a GPU.
        device: Where the network runs.
        backbone: The network.
        num_calls: Calls of the network in all the run, each with a batch.
        recorded: ``NetworkMode.recorded`` of the run's beginning, which "auto" then follows: only so does a run that
            was interrupted end in the same bits.

    Raises:
        ValueError: If a name is unknown.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(choices_message("precision", precision, ["auto", *PRECISIONS]))
    if compile not in ("auto", "on", "off"):
        raise ValueError(choices_message("compile", compile, ["auto", "off", "on"]))
    began = recorded or {}
    name, why_precision = precision, "as asked"
    if precision == "auto" and began.get("precision") in PRECISIONS:
        name, why_precision = began["precision"], "as the run began"
    elif precision == "auto":
        name, why_precision = _auto_precision(device, backbone)
    if name == "bf16" and bf16_units(device) is None:
        why_precision += f", though {_name(device)} has no bf16 units and gains nothing by it"
    compiled, why_compiled = compile == "on", "as asked"
    if compile == "auto" and isinstance(began.get("compile"), bool):
        compiled, why_compiled = began["compile"], "as the run began"
    elif compile == "auto":
        compiled, why_compiled = _auto_compile(device, backbone, num_calls)
    missing = missing_compiler(device.type) if compiled else None
    if missing is not None:
        compiled, why_compiled = False, missing
    reasons = (f"{name}: {why_precision}", f"{'compiled' if compiled else 'not compiled'}: {why_compiled}")
    return NetworkMode(PRECISIONS[name], compiled, reasons)


def _auto_precision(device: torch.device, backbone: nn.Module) -> tuple[str, str]:
    units = bf16_units(device)
    if units is None:
        return "fp32", f"{_name(device)} has no bf16 units"
    if _is_small(backbone):
        return "fp32", f"a network of less than {_MANY_WEIGHTS:,} weights gains nothing by {units} of {_name(device)}"
    return "bf16", f"{_name(device)} has {units}; weights stay in float32"


def _auto_compile(device: torch.device, backbone: nn.Module, num_calls: int) -> tuple[bool, str]:
    if _is_small(backbone):
        return False, f"a network of less than {_MANY_WEIGHTS:,} weights gains little by it"
    many, count = _MANY_CALLS.get(device.type, math.inf), f"a run of {num_calls:,} calls of the network"
    if num_calls < many:
        return False, f"{count} is over before it pays, from {many:,} on it does"
    return True, f"{count} is worth it"


def _is_small(backbone: nn.Module) -> bool:
    return sum(weights.numel() for weights in backbone.parameters()) < _MANY_WEIGHTS


def bf16_units(device: torch.device) -> str | None:
    """The units of a device that multiply bfloat16 numbers faster than float32; None if it has none."""
    if device.type == "cuda":
        return "bf16 tensor cores" if torch.cuda.get_device_capability(device) >= (8, 0) else None
    if device.type != "cpu":
        return None
    # torch 2.4 knows the first of these only, and none of the public names that came later
    for probe, units in (("_is_amx_tile_supported", "AMX"), ("_is_avx512_bf16_supported", "AVX512-BF16")):
        known = getattr(torch.cpu, probe, None)
        if known is not None and known():
            return units
    return None


def _name(device: torch.device) -> str:
    return "this CPU" if device.type == "cpu" else f"this {device.type.upper()} device"


class PrecisionBackbone(nn.Module):
    """Runs a backbone channels-last, under autocast or compiled if asked; shares its parameters.

    Args:
        backbone: The network.
        dtype: torch.float32, or torch.bfloat16 for autocast.
        compiled: Call it through ``torch.compile``.
    """

    frozen = False

    def __init__(self, backbone: nn.Module, dtype: torch.dtype, *, compiled: bool = False) -> None:
        super().__init__()
        self.inner = backbone
        # FSDP takes contiguous weights only
        if not any(is_sharded(parameter) for parameter in backbone.parameters()):
            backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.dtype, self.compiled = dtype, compiled
        self._call: CompiledCall | None = None

    def __getstate__(self) -> dict[str, Any]:
        # a copy compiles its own network: the function holds the one that it was made for
        return self.__dict__ | {"_call": None}

    @property
    def compiles(self) -> bool:
        """True while it is compiled and that has not failed."""
        return self.compiled and not (self._call is not None and self._call.failed)

    def _network(self, x: Tensor) -> nn.Module | CompiledCall:
        if not self.compiled:
            return self.inner
        if self._call is None:
            self._call = CompiledCall(self.inner, frozen=self.frozen)
        return self._call

    def forward(self, x: Tensor, c_noise: Tensor, **told: Tensor) -> Any:
        """Call the backbone; ``told`` are the fields of a condition, see ``NetworkScoreModel``.

        An autoencoder is called with its noise in place of ``c_noise``, and returns several tensors.
        """
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self._network(x)(x, c_noise, **told)


class InferenceBackbone(PrecisionBackbone):
    """A frozen copy of a backbone, for sampling and evaluation.

    In bfloat16 its convolutions and linear layers keep weights of that type, converted once and not at every call; the
    numbers are those of autocast. Gradients with respect to the input, as for the likelihood of the probability-flow
    ODE, are computed without compilation. The largest batch so far is the one that is compiled for; smaller ones, as
    the last of a set, are not worth the wait.

    Args:
        backbone: The network; it is copied.
        dtype: As for ``PrecisionBackbone``.
        compiled: As for ``PrecisionBackbone``.
    """

    frozen = True

    def __init__(self, backbone: nn.Module, dtype: torch.dtype, *, compiled: bool = False) -> None:
        super().__init__(copy.deepcopy(backbone).eval().requires_grad_(requires_grad=False), dtype, compiled=compiled)
        self._largest = 0
        if dtype == torch.bfloat16:
            keep = {
                id(part) for module in self.inner.modules() if isinstance(module, _WIDE) for part in module.modules()
            }
            for module in self.inner.modules():
                if isinstance(module, (nn.Conv2d, nn.Linear)) and id(module) not in keep:
                    module.to(torch.bfloat16)

    def train(self, mode: bool = True) -> InferenceBackbone:
        """Stays in evaluation mode."""
        return super().train(mode=False)

    def _network(self, x: Tensor) -> nn.Module | CompiledCall:
        if (torch.is_grad_enabled() and x.requires_grad) or len(x) < self._largest:
            return self.inner
        self._largest = len(x)
        return super()._network(x)


Model = TypeVar("Model", NetworkScoreModel, ConsistencyModel, NoisyClassifier, FirstStage)


def fast_inference(model: Model, mode: NetworkMode) -> Model:
    """A model for sampling and evaluation, whose network is a frozen copy; see ``InferenceBackbone``.

    Args:
        model: The model; what is learned besides the backbone is shared with it.
        mode: How the network computes.
    """
    fast = InferenceBackbone(model.backbone, mode.precision, compiled=mode.compiled)
    return model.with_backbone(fast).eval()
