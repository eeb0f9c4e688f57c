"""Precision and compilation of a network. Alpha, sigma, losses and optimizer stay in float32 or wider."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.flop_counter import FlopCounterMode

from models import NetworkScoreModel
from models.backbones import ConditioningEmbedding, NoiseLabelEmbedding, Upsample
from runtime.compilation import CompiledCall, missing_compiler
from runtime.registry import choices_message

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

# A graph of the CIFAR-10 U-Net takes minutes to compile, and saves a tenth (CPU) or a half (GPU) of the time after
# that: from about an hour of training on it pays.
_WORTH_COMPILING = {"cpu": 1e15, "cuda": 1e17}
# Narrower networks spend their time on what bf16 does not make faster; some are slower by what converting costs.
_WIDE_ENOUGH_FOR_BF16 = 128

# they compute with their weights before autocast rounds: sums of taps, and features in the type of the weights
_WIDE = (ConditioningEmbedding, NoiseLabelEmbedding, Upsample)


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
    backbone: nn.Module | None = None,
    work: float = 0.0,
    recorded: dict[str, Any] | None = None,
) -> NetworkMode:
    """Decide how a network computes, and say why.

    Args:
        precision: "fp32"; "bf16"; or "auto": bf16 where the processor multiplies it faster than float32, for networks
            with a layer from 128 channels to as many.
        compile: "on", if there is a compiler; "off"; or "auto": if there is one and the run is long enough to be
            worth it.
        device: Where the network runs.
        backbone: The network; None counts as a wide one.
        work: Floating-point operations of all the run, forward and backward; see ``forward_flops``.
        recorded: ``NetworkMode.recorded`` of the run's beginning, which "auto" then follows: only so does a run that
            was interrupted end in the same bits.

    Raises:
        ValueError: If a name is unknown.
    """
    if precision not in ("auto", *PRECISIONS):
        raise ValueError(choices_message("precision", precision, ["auto", *PRECISIONS]))
    if compile not in ("auto", "on", "off"):
        raise ValueError(choices_message("compile", compile, ["auto", "off", "on"]))
    before = recorded or {}
    name, why_precision = _pick_precision(precision, device, backbone, before.get("precision"))
    compiled, why_compiled = _pick_compiled(compile, device, work, before.get("compile"))
    reasons = (f"{name}: {why_precision}", f"{'compiled' if compiled else 'not compiled'}: {why_compiled}")
    return NetworkMode(PRECISIONS[name], compiled, reasons)


def _pick_precision(name: str, device: torch.device, backbone: nn.Module | None, before: Any) -> tuple[str, str]:
    units = bf16_units(device)
    if name != "auto":
        slow = "" if name == "fp32" or units else f", though {_name(device)} has no bf16 units and gains nothing by it"
        began = f"; the run began in {before}, its bits will differ" if before in PRECISIONS and before != name else ""
        return name, f"as asked{slow}{began}"
    if before in PRECISIONS:
        slow = before == "bf16" and not units
        return before, "as the run began" + (f", though {_name(device)} has no bf16 units" if slow else "")
    if units is None:
        return "fp32", f"{_name(device)} has no bf16 units"
    if backbone is not None and _width(backbone) < _WIDE_ENOUGH_FOR_BF16:
        return "fp32", f"so narrow a network gains nothing by the {units} of {_name(device)}"
    return "bf16", f"{_name(device)} has {units}; weights stay in float32"


def _pick_compiled(choice: str, device: torch.device, work: float, before: Any) -> tuple[bool, str]:
    if choice == "off":
        return False, "as asked" + ("; the run began compiled, its bits will differ" if before is True else "")
    if choice == "auto" and before is False:
        return False, "as the run began"
    worth = _WORTH_COMPILING.get(device.type, float("inf"))
    if choice == "auto" and before is None and work < worth:
        return False, f"a run of {work:.0e} operations is over before it pays, from {worth:.0e} on it does"
    missing = missing_compiler(device.type)
    if missing is not None:
        return False, missing + ("; the run began compiled, its bits will differ" if before is True else "")
    if choice == "on":
        return True, "as asked" + ("; the run began without, its bits will differ" if before is False else "")
    return True, "as the run began" if before is True else f"a run of {work:.0e} operations is worth it"


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


def _width(backbone: nn.Module) -> int:
    """Channels in and out of its widest layer; of an image's network convolutions alone count, which do the work."""
    modules = list(backbone.modules())
    layers = [m for m in modules if isinstance(m, nn.Conv2d)] or [m for m in modules if isinstance(m, nn.Linear)]
    return max((min(layer.weight.shape[:2]) for layer in layers), default=0)


def forward_flops(backbone: nn.Module, image_shape: tuple[int, ...]) -> float:
    """Floating-point operations of one forward pass of one image: two for each multiplication with a weight or score.

    They are counted on the meta device, where nothing is computed, for the network as its formulas are written.

    Args:
        backbone: The network, called as (x, c_noise, cond); it is copied.
        image_shape: Shape of one image.
    """
    ghost = copy.deepcopy(backbone).to("meta").eval()
    dtype = next(ghost.parameters()).dtype
    x = torch.empty(1, *image_shape, device="meta", dtype=dtype)
    cond = torch.zeros(1, device="meta", dtype=torch.int64) if getattr(ghost, "num_classes", None) else None
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        ghost(x, torch.empty(1, device="meta", dtype=torch.float64), cond)
    return float(counter.get_total_flops())


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
        if not any(isinstance(parameter, DTensor) for parameter in backbone.parameters()):
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

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Call the backbone."""
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            # a network of one's own that knows no classes need not take them
            return self._network(x)(x, c_noise, *(() if cond is None else (cond,)))


class InferenceBackbone(PrecisionBackbone):
    """A frozen copy of a backbone, for sampling and evaluation.

    In bfloat16 its convolutions and linear layers keep weights of that type, converted once and not at every call; the
    numbers are those of autocast. Gradients with respect to the input, which the flow's likelihood needs, are computed
    without compilation. The largest batch so far is the one that is compiled for; smaller ones, as the last of a set,
    are not worth the wait.

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


def fast_inference(model: NetworkScoreModel, mode: NetworkMode) -> NetworkScoreModel:
    """A model for sampling and evaluation, whose network is a frozen copy; see ``InferenceBackbone``.

    Args:
        model: The model; what is learned besides the backbone is shared with it.
        mode: How the network computes.
    """
    fast = InferenceBackbone(model.backbone, mode.precision, compiled=mode.compiled)
    return model.with_backbone(fast).eval()
