"""Fourier features of a network's input, with which it sees what a convolution of the input alone cannot tell apart."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_HIGHEST = 20  # a float32 near 1 comes in steps of 2^-24, of which the period 2^(1 - n) must hold several


class InputFourierFeatures(nn.Module):
    """Appends ``sin(2^n pi x)`` and ``cos(2^n pi x)`` to the channels of ``x``, for every ``n`` of ``frequencies``.

    On data in [-1, 1] of 256 levels, ``n = 7`` has a period of two levels and ``n = 8`` of one: with both, a network
    can tell where between two levels a value lies, which is what its bits per dimension are decided by. Appended to
    the channels ``x`` are all sines and cosines of the first ``n``, then those of the next.

    They are computed in float32 or wider, under autocast too: a bfloat16 has no digits left to tell the phase by. The
    phase is reduced by whole turns before pi comes in, which is exact, so that large ``x`` loses nothing.

    Args:
        frequencies: The exponents ``n``, distinct whole numbers from 0 to 20; (7, 8) for 256 levels. Without any, the
            layer returns its input.

    Raises:
        ValueError: A frequency is no such number.

    Source: Kingma et al. 2021 (VDM), Appendix C.
    """

    def __init__(self, frequencies: Sequence[int]) -> None:
        super().__init__()
        for n in frequencies:
            whole = hasattr(n, "__index__") and not isinstance(n, bool)
            if not whole or not 0 <= n <= _HIGHEST:
                raise ValueError(f"input frequencies must be whole numbers from 0 to {_HIGHEST}, got {n!r}; try (7, 8)")
        if len(set(frequencies)) < len(frequencies):
            raise ValueError(f"input frequencies must be distinct, got {tuple(frequencies)}; drop the repeats")
        self.frequencies = tuple(frequencies)

    def out_channels(self, in_channels: int) -> int:
        """Channels of the result, for ``in_channels`` of the input."""
        return in_channels * (1 + 2 * len(self.frequencies))

    def forward(self, x: Tensor) -> Tensor:
        """Append the features.

        Args:
            x: Scaled noisy data, [B, C, ...].

        Returns:
            [B, (1 + 2 N) C, ...] for N frequencies, float32, or float64 for such ``x``; without frequencies ``x``.
        """
        if not self.frequencies:
            return x
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        channels = [x]
        for n in self.frequencies:
            turns = x * float(2 ** (n - 1)) if n else 0.5 * x
            phase = 2.0 * math.pi * (turns - turns.round())
            channels += [phase.sin(), phase.cos()]
        return torch.cat(channels, dim=1)
