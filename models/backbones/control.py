"""ControlNet: a trained copy of a network's way down, which adds what it makes of a hint to the frozen network."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .adm import ADM
from .base import Backbone
from .blocks.condition_input import absent_samples
from .blocks.initialization import initialize
from .blocks.levels import Level


class HintStem(nn.Module):
    """Convolutions with SiLU between them from a hint to features, of which only the last starts at zero.

    Were all of them zero, or were the last one alone, nothing in front of it could be learned, or seen (Zhang et al.
    2023, Section 3.2, has four layers of strides 2 for hints of eight times the resolution).

    Args:
        in_channels: Channels of the hint.
        widths: Channels after the first convolution and after each pair of convolutions that follows.
        out_channels: Channels of the result.
        downsample: Halve the resolution in each pair, for hints of ``2^(len(widths) - 1)`` times the resolution.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], out_channels: int, *, downsample: bool = False) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"hint_widths must be channels of one layer or more, got {tuple(widths)}; pass (16, 32)")
        layers = [nn.Conv2d(in_channels, widths[0], 3, padding=1)]
        for width, after in itertools.pairwise(widths):
            layers.append(nn.Conv2d(width, width, 3, padding=1))
            layers.append(nn.Conv2d(width, after, 3, padding=1, stride=2 if downsample else 1))
        self.layers = nn.ModuleList(initialize(layer) for layer in layers)
        self.out = initialize(nn.Conv2d(widths[-1], out_channels, 3, padding=1), zero=True)

    def forward(self, hint: Tensor) -> Tensor:
        """Features of a hint, [B, in_channels, H, W] to [B, out_channels, h, w]."""
        for layer in self.layers:
            hint = F.silu(layer(hint))
        return self.out(hint)


class ControlNet(nn.Module):
    """A trained copy of a network's way down, with a hint at its beginning and convolutions of 1x1 at its results.

        c = F_c(x_t + stem(h); W_c),    y = F(x; W) + Z(c),

    where the last convolution of the stem and each Z start at zero: a new one adds exactly nothing, and of its first
    gradient only that of the Z is not zero.

    Args:
        base: The network that is copied; it is left as it is.
        hint_channels: Channels of the hint.
        hint_widths: Widths of the layers in front of it; see ``HintStem``.
        hint_factor: Pixels of the hint for a pixel of x_t along a side: 1, or ``2^(len(hint_widths) - 1)``.

    Source: Zhang et al. 2023 (ControlNet), Eq. 2 and 3.
    """

    def __init__(
        self, base: ADM, *, hint_channels: int, hint_widths: Sequence[int] = (16, 32, 96), hint_factor: int = 1
    ) -> None:
        super().__init__()
        if hint_factor not in (1, 2 ** (len(hint_widths) - 1)):
            raise ValueError(
                f"hint_factor must be 1 or {2 ** (len(hint_widths) - 1)}, which {len(hint_widths)} hint_widths make, "
                f"got {hint_factor}; pass one of these"
            )
        self.hint_channels, self.hint_factor = hint_channels, hint_factor
        self.encoder = copy.deepcopy(base).requires_grad_(True).train()
        # nothing of the way up is copied
        self.encoder.up = nn.ModuleList()
        for name in ("norm_out", "conv_out"):
            setattr(self.encoder, name, nn.Identity())
        first = base.conv_in.out_channels
        self.stem = HintStem(hint_channels, hint_widths, first, downsample=hint_factor > 1)
        widths = [first]
        for level, width in zip(base.down, base.widths, strict=True):
            widths += [width] * (base.num_res_blocks + (getattr(level, "resample", None) is not None))
        self.zero = nn.ModuleList(initialize(nn.Conv2d(width, width, 1), zero=True) for width in widths)
        self.zero_middle = initialize(nn.Conv2d(base.widths[-1], base.widths[-1], 1), zero=True)
        self.to(base.conv_in.weight)

    def forward(
        self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None, *, hint: Tensor, **told: Any
    ) -> list[Tensor]:
        """The additions to each skip of the network, from that of the first convolution on, and to its middle.

        Args:
            x: Scaled noisy data, [B, C, H, W].
            c_noise: Noise labels, [B].
            cond: Class labels; see ``ADM``.
            hint: [B, hint_channels, H hint_factor, W hint_factor]; NaN throughout is none, of which nothing is added.
            **told: What else the network is told.
        """
        expected = [len(x), self.hint_channels, *(self.hint_factor * side for side in x.shape[2:])]
        if list(hint.shape) != expected:
            raise ValueError(f"the hint must have shape {expected}, got {list(hint.shape)}; give it that size")
        absent = absent_samples("hint", hint, null_condition=True)[:, None, None, None]
        seen = self.stem(torch.where(absent, 0.0, hint).to(x.dtype))
        encoded = self.encoder.encode(x, c_noise, cond, hint=seen, **told)
        made = [zero(skip) for zero, skip in zip(self.zero, encoded.skips, strict=True)]
        made.append(self.zero_middle(encoded.middle))
        return [torch.where(absent, 0.0, one) for one in made]


class ControlledBackbone(Backbone):
    """A frozen network with ControlNets, whose sum is added to its skips and its middle.

    The frozen network is no part of ``parameters()`` and ``state_dict()``, so that an optimizer, an average and a
    checkpoint hold the controls alone. It stays in evaluation mode whatever ``train`` says. Copies share it, so that
    moving or converting one of them does so for all.

    Args:
        base: The network; its weights are frozen.
        controls: ControlNets made of it. The condition's ``image`` is their hints, one after the other by channels.
        scales: What each one's addition is multiplied by; 1 for all when None, 0 is none.
        decay: Factor for each skip that lies before another: of n additions, the i-th from 0 is multiplied by
            ``decay^(n - 1 - i)``, which weakens those of high resolution. 0.825 is the guess mode of ControlNet.

    Raises:
        ValueError: If there is no control, or not one scale for each.

    Source: Zhang et al. 2023 (ControlNet).

    Example:
        >>> network = ControlledBackbone(base, [ControlNet(base, hint_channels=1)])
        >>> network(x, c_noise, image=edges)
    """

    base: ADM

    def __init__(
        self,
        base: ADM,
        controls: Sequence[ControlNet],
        *,
        scales: Sequence[float] | None = None,
        decay: float = 1.0,
    ) -> None:
        super().__init__()
        # not registered: it is no part of what is trained and saved
        vars(self)["base"] = base.requires_grad_(False).eval()
        self.controls = nn.ModuleList(controls)
        self.scales = [1.0] * len(controls) if scales is None else [float(scale) for scale in scales]
        if not controls or len(self.scales) != len(controls):
            raise ValueError(f"each control needs a scale, got {len(controls)} and {self.scales}; pass one for each")
        if not 0 < decay <= 1:
            raise ValueError(f"decay must lie in (0, 1], got {decay}; 1 is none")
        self.decay = decay
        self.num_classes, self.in_channels, self.image_size = base.num_classes, base.in_channels, base.image_size

    @property
    def networks(self) -> list[ControlNet]:
        """The ControlNets."""
        return [control for control in self.controls if isinstance(control, ControlNet)]

    @property
    def null_condition(self) -> bool:
        """True if it can answer without its condition: without a hint it is the base, which may be told nothing."""
        return self.base.null_condition or not _is_told(self.base)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        cond: Tensor | None = None,
        *,
        image: Tensor | None = None,
        image_log_snr: Tensor | None = None,
        values: Tensor | None = None,
        words: Tensor | None = None,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Tensor:
        """The base's answer, controlled.

        Args:
            x: Scaled noisy data, [B, C, H, W].
            c_noise: Noise labels, [B].
            cond: Class labels; see ``ADM``.
            image: The hints, [B, the sum of hint_channels, H, W]; NaN throughout is none.
            image_log_snr: Of no effect: hints are clean.
            values: See ``ADM``, as those that follow.
            words: Numbers of words, int64 [B, max_words].
            tokens: Embedded text, [B, L, cond_tokens].
            mask: True where a token is one, bool [B, L].
            pooled: Vector of a text or an image, [B, cond_pooled].

        Returns:
            As the base's.

        Raises:
            ValueError: A shape, dtype or label is not what the network was built for.
        """
        channels = [control.hint_channels for control in self.networks]
        if image is None or image.shape[1] != sum(channels):
            got = "none" if image is None else image.shape[1]
            raise ValueError(
                f"the condition's image must have {sum(channels)} channels, those of the hints of {len(channels)} "
                f"controls, got {got}; give each its hint"
            )
        told = {"values": values, "words": words, "tokens": tokens, "mask": mask, "pooled": pooled}
        encoded = self.base.encode(x, c_noise, cond, **told)
        results = [*encoded.skips, encoded.middle]
        for control, scale, hint in zip(self.networks, self.scales, image.split(channels, dim=1), strict=True):
            if scale == 0:
                continue
            added = control(x, c_noise, cond, hint=hint, **told)
            factors = [scale * self.decay ** (len(added) - 1 - i) for i in range(len(added))]
            results = [one + factor * more for one, factor, more in zip(results, factors, added, strict=True)]
        return self.base.decode(encoded._replace(skips=results[:-1], middle=results[-1]), x.dtype)

    @property
    def stages(self) -> list[Level]:
        """The levels of the controls in the order in which they are applied."""
        return [stage for control in self.networks for stage in control.encoder.stages]

    @property
    def gradient_checkpointing(self) -> bool:
        """True if blocks are computed anew in the backward pass instead of remembered; see ``Level``."""
        return self.base.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        for network in (self.base, *(control.encoder for control in self.networks)):
            network.gradient_checkpointing = on

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ControlledBackbone:
        self.base._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def __deepcopy__(self, memo: dict[int, Any]) -> ControlledBackbone:
        memo[id(self.base)] = self.base
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin


def _is_told(base: ADM) -> bool:
    """True if a network is told something besides x_t and the noise level."""
    told = ("num_classes", "cond_channels", "cond_values", "cond_tokens", "cond_pooled", "cond_words")
    return any(base.options[name] for name in told)
