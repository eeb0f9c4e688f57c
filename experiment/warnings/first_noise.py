"""Noise so wide, where it begins, that it decides the bits/dim."""

from __future__ import annotations

import math

import torch

from likelihood import level_entropy
from sde_lib import SDE, last_noisy_time

# of log2(levels): Ho et al.'s table of T = 1000 has 0.30 on 256 levels
_MOST = 1 / 3
_KNOBS = {
    "ddpm": "a smaller sde.beta_start (Ho et al.: 1e-4 for 256 levels)",
    "improved_ddpm": "a smaller sde.s (Nichol & Dhariwal: 0.008 for 256 levels)",
    "ve": "a smaller sde.sigma_min (Song et al.: 0.01 for 256 levels)",
    "vp_learned": "a larger sde.log_snr_max (Kingma et al.: 13.3 for 256 levels)",
}


@torch.no_grad()
def wide_first_noise(sde: SDE, t: float, num_levels: int) -> str | None:
    """A phrase for noise at time t that is wide beside half a grey level; None if it is not.

    It is where independent pixels of equally likely levels cannot be decoded in a third of log2(num_levels) bits each.

    Args:
        sde: The SDE.
        t: The time at which L_0 is decoded.
        num_levels: Number of grey levels of the data.
    """
    time = torch.full((1,), t, dtype=torch.float64)
    ratio = float(sde.sigma(time) / sde.alpha(time))
    floor = level_entropy(ratio, num_levels)
    if floor <= _MOST * math.log2(num_levels):
        return None
    return (
        f"the first sigma is {ratio:.3g}, {ratio * (num_levels - 1):.2g} times half a grey level of {num_levels}, at "
        f"which equally likely levels take {floor:.1f} bits/dim to decode (L_0)"
    )


def less_first_noise(sde_name: str) -> str:
    """The setting that cures it, in words.

    Args:
        sde_name: As in ``config.sde.name``.
    """
    return _KNOBS.get(sde_name, "an SDE that begins with less noise")


def first_noise_warning(sde: SDE, sde_name: str, num_levels: int | None) -> str | None:
    """A line for a training whose bits/dim will be those of its first noise; None where they are not.

    Args:
        sde: The SDE.
        sde_name: As in ``config.sde.name``.
        num_levels: Number of grey levels of the data; None for data without levels.
    """
    if num_levels is None:
        return None
    said = wide_first_noise(sde, last_noisy_time(sde), num_levels)
    return said and f"warning: {said}; if bits/dim matter, train with {less_first_noise(sde_name)}"
