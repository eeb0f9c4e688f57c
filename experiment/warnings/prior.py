"""A line on a diffusion that ends before its prior does: its samples begin without what is left of the data."""

from __future__ import annotations

from typing import Any

import torch

from runtime.messages import say
from sde_lib import MOST_PRIOR_BITS, SDE, sde_defaults

from ..config import Config

_CURES = {
    "vp": "raise sde.beta_max, 20 is usual",
    "subvp": "raise sde.beta_max, 20 is usual",
    "vp_learned": "lower sde.log_snr_min, -5 is usual",
    "ve": "raise sde.sigma_max to 10 or more",
    "ncsn": "raise sde.sigma_max to 10 or more",
    "betas": "raise the last of sde.betas",
    "improved_ddpm": "raise sde.max_beta, 0.999 is usual",
}


def say_lost_signal(config: Config, sde: SDE) -> None:
    """Say how much of the data is left at t_max, if it is above 0.01 bits/dim, and how to change that.

    It is L_T for pixels of -1 and 1, the most that data in [-1, 1] can lose.

    Args:
        config: The config, for the keys of its SDE.
        sde: The SDE, as it is sampled.
    """
    lost = sde.prior_bits_per_dim()
    if lost <= MOST_PRIOR_BITS:
        return
    end = torch.tensor([sde.t_max], dtype=torch.float64)
    (alpha,), (sigma,) = sde.alpha(end).tolist(), sde.sigma(end).tolist()
    say(
        f"the diffusion ends before its prior: at t = {sde.t_max:.6g} alpha is {alpha:.3g} and sigma {sigma:.3g}, and "
        f"samples, which begin with pure noise, lack up to {lost:.2g} bits/dim (L_T of pixels at -1 and 1); "
        + cure_of_lost_signal(config.sde.to_dict())
    )


def cure_of_no_signal(options: dict[str, Any]) -> str | None:
    """The key of an SDE that leaves no signal, in words; None where no key is known to be the cause.

    Args:
        options: ``config.sde``: the SDE's name and options.
    """
    if options["name"] != "ddpm":
        return None
    defaults = sde_defaults("ddpm")
    options = defaults | options
    num_steps, usual = options["num_steps"], defaults["num_steps"]
    if num_steps <= usual:
        return "lower sde.beta_end, 0.02 is usual for 1000 steps"
    return (
        f"sde.num_steps={num_steps} keeps the betas of {usual} steps: leave it at {usual}, or lower sde.beta_start and "
        "sde.beta_end in proportion"
    )


def cure_of_lost_signal(options: dict[str, Any]) -> str:
    """The key of an SDE to change, in words.

    Args:
        options: ``config.sde``: the SDE's name and options.
    """
    name = options["name"]
    if name != "ddpm":
        return _CURES.get(name, "let alpha / sigma of the SDE be smaller at its t_max")
    defaults = sde_defaults(name)
    options = defaults | options
    num_steps, usual = options["num_steps"], defaults["num_steps"]
    if num_steps >= usual or options["beta_end"] != defaults["beta_end"]:
        return "raise sde.beta_end, 0.02 is usual for 1000 steps"
    # the same sum of betas; the first one stays, since it decides L_0
    beta_end = (options["beta_start"] + options["beta_end"]) * usual / num_steps - options["beta_start"]
    return (
        f"sde.num_steps={num_steps} keeps the betas of {usual} steps: leave it at {usual} and lower sampling.num_steps"
        + (f", or set sde.beta_end={beta_end:.4g}" if beta_end < 1 else "")
    )
