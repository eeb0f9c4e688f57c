"""Checks that models of an SDE can be trained, sampled and measured."""

from __future__ import annotations

import math

import torch

from .base import MOST_PRIOR_BITS, SDE

# in float64, alpha of 1e-16 sigma is what rounding leaves of cos(pi / 2)
_NO_SIGNAL = 2 * math.log(1e-12)


def check_sde(sde: SDE) -> None:
    """Refuse an SDE whose models could be trained, but not sampled or measured.

    Args:
        sde: The SDE, perhaps one of your own.

    Raises:
        ValueError: In one line, with what to set: its ``prior_std``, ``t_min`` or ``t_max``, or log-SNR does not fall.
    """
    name = type(sde).__name__
    prior_std = getattr(sde, "prior_std", None)
    if not isinstance(prior_std, (int, float)) or not 0 < prior_std < math.inf:
        raise ValueError(
            f"SDE {name} needs prior_std, the standard deviation of x_t at t_max, got {prior_std}; set it in the class"
        )
    if not 0 <= sde.t_min < sde.t_max <= 1:
        raise ValueError(f"SDE {name} needs 0 <= t_min < t_max <= 1, got {sde.t_min} and {sde.t_max}; set them")
    size = sde.table_size
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ValueError(f"SDE {name} needs table_size, its number of rows, at least 1, got {size}; None is no table")
    times = torch.linspace(sde.t_min, sde.t_max, 101, dtype=torch.float64)
    try:
        with torch.no_grad():
            log_alpha, log_sigma = sde.log_alpha(times), sde.log_sigma(times)
            log_snr = sde.log_snr(times)
    except Exception as error:
        raise ValueError(
            f"SDE {name} fails at its times, a float64 vector: {type(error).__name__}: {error}; correct log_alpha or "
            "log_sigma"
        ) from error
    if not log_alpha.shape == log_sigma.shape == log_snr.shape == times.shape:
        raise ValueError(
            f"SDE {name} must give one number a time, of times {list(times.shape)} got log_alpha "
            f"{list(log_alpha.shape)} and log_sigma {list(log_sigma.shape)}; return tensors of the shape of t"
        )
    alpha, sigma = float(log_alpha[-1].exp()), float(log_sigma[-1].exp())
    if log_snr[-1] < _NO_SIGNAL:
        raise ValueError(
            f"SDE {name} has alpha = {alpha:.2g} at its t_max = {sde.t_max:g}: sampling cannot begin without signal, "
            f"nor likelihood be measured; set t_max in the class a little lower, such as t_max = {0.999 * sde.t_max:g}"
        )
    if log_snr[0] == math.inf:
        raise ValueError(
            f"SDE {name} has sigma = 0 at its t_min = {sde.t_min:g}, where there is no noise to predict; set t_min in "
            f"the class a little higher, such as t_min = {sde.t_min + 1e-5:g}"
        )
    falls = torch.isfinite(log_snr) & torch.cat([log_snr.diff() < 0, torch.ones(1, dtype=torch.bool)])
    if not bool(falls.all()):
        raise ValueError(
            f"SDE {name} needs a log-SNR that is finite and falls from t_min to t_max, which it does not at t = "
            f"{float(times[~falls][0]):.6g}; correct log_alpha or log_sigma there"
        )
    if float(log_snr[-1].exp()) < MOST_PRIOR_BITS < sde.prior_bits_per_dim(mean_square=0.0):
        raise ValueError(
            f"SDE {name} has prior_std = {prior_std:g}, but at its t_max hardly any signal is left and sigma is "
            f"{sigma:.4g}; set prior_std in the class to that"
        )
