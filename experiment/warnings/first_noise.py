"""Noise so wide, where it begins, that it decides the bits/dim."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from data import AnyDataset, LatentDataset
from likelihood import level_entropy, nats_to_bits_per_dim
from sde_lib import MOST_PRIOR_BITS, SDE, last_noisy_time

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


def lost_to_first_noise(noise_ratio: float, spread: Tensor) -> Tensor:
    """The most that the rate of latents is raised by since their diffusion ends with noise r = sigma / alpha left.

    A bound that ends there is the cross-entropy of q(z | x) and the prior p after both have got noise of r. By that the
    entropy of q = N(mean, s^2) grows by 1/2 log(1 + r^2 / s^2) a number, and KL(q || p) falls: with the exact scores of
    any p that is the most that is lost, all of it where p is q, and little where p is wide beside r. So it is for the
    flow, whose density is that of p with the noise, in the mean over images where p is the mean of their q(z | x).

    Args:
        noise_ratio: r, in units of the latents.
        spread: s, [N, c, ...].

    Returns:
        Nats of each latent, float64 [N].
    """
    return 0.5 * (noise_ratio / spread.double()).square().log1p().flatten(1).sum(1)


@torch.no_grad()
def wide_beside_latents(sde: SDE, t: float, spread: Tensor, num_pixels: int) -> str | None:
    """A phrase for noise at time t that is wide beside q(z | x): more than 0.01 bits/dim of the rate may be its own.

    Args:
        sde: The SDE.
        t: The time at which the diffusion of latents ends.
        spread: Standard deviations of q(z | x), in units of standardized latents, [N, c, ...].
        num_pixels: Numbers of an image, by which bits/dim divide.
    """
    time = torch.full((1,), t, dtype=torch.float64)
    ratio = float(sde.sigma(time) / sde.alpha(time))
    nats = float(lost_to_first_noise(ratio, spread).mean())
    bits = float(nats_to_bits_per_dim(torch.tensor(nats), num_pixels))
    if bits <= MOST_PRIOR_BITS:
        return None
    return (
        f"the first sigma / alpha is {ratio:.3g}, not small beside q(z | x), whose standard deviation is "
        f"{float(spread.double().square().mean().sqrt()):.3g} in standardized latents: up to {bits:.2g} bits/dim of "
        f"the rate, {nats / spread[0].numel():.2g} nats a number, may be lost to it"
    )


def less_first_noise(sde_name: str, *, of_levels: bool = True) -> str:
    """The setting that cures it, in words.

    Args:
        sde_name: As in ``config.sde.name``.
        of_levels: Say what is usual for data with grey levels.
    """
    cure = _KNOBS.get(sde_name, "an SDE that begins with less noise")
    return cure if of_levels else cure.partition(" (")[0]


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


def latent_noise_warning(sde: SDE, sde_name: str, dataset: AnyDataset) -> str | None:
    """The same line for a training on latents, whose rate may be that of its first noise.

    Args:
        sde: The SDE.
        sde_name: As in ``config.sde.name``.
        dataset: The data.
    """
    if not isinstance(dataset, LatentDataset) or dataset.spread is None:
        return None
    said = wide_beside_latents(sde, last_noisy_time(sde), dataset.spread, math.prod(dataset.image_shape))
    return said and f"warning: {said}; if bits/dim matter, train with {less_first_noise(sde_name, of_levels=False)}"
