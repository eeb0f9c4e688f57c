"""The variance of the reverse chain p(x_s | x_t): a choice that samplers and the bound must make alike."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from runtime.registry import choices_message
from sde_lib import SDE, expand_like

from .prediction import Prediction

ReverseVariance = Literal["auto", "small", "large", "learned"]


def check_variance(kind: str) -> ReverseVariance:
    """Return ``kind`` if it names a reverse variance.

    Raises:
        ValueError: If it does not.
    """
    if kind in get_args(ReverseVariance):
        return cast(ReverseVariance, kind)
    raise ValueError(choices_message("variance", kind, sorted(get_args(ReverseVariance))))


def pick_variance(kind: ReverseVariance, *, learned: bool) -> ReverseVariance:
    """Turn "auto" into "learned" where the model learns its variance, else into "small"; leave another as it is.

    Args:
        kind: A reverse variance.
        learned: Whether the model learns its variance.
    """
    if kind != "auto":
        return kind
    return "learned" if learned else "small"


def interpolate_log_var(
    kind: ReverseVariance, prediction: Prediction, log_small: Tensor, log_large: Tensor
) -> Float[Tensor, "batch *_"]:
    """The logarithm of the small or the large variance, or of what the model learned between them:

        log var = fraction log large + (1 - fraction) log small      (Nichol & Dhariwal 2021, Eq. 15).

    Args:
        kind: "small", "large", "learned", or "auto": see ``pick_variance``.
        prediction: The model's answer, for its ``variance_fraction``.
        log_small: Log variance of q(x_s | x_t, x0), [B].
        log_large: Log variance of q(x_t | x_s), [B].

    Returns:
        float64, [B, 1, ...] for the fixed ones, [B, ...] for the learned one.

    Raises:
        ValueError: If "learned" is asked of a model that does not learn it.
    """
    x0 = prediction.x0.double()
    kind = pick_variance(kind, learned=prediction.variance_fraction is not None)
    if kind == "small":
        return expand_like(log_small, x0)
    if kind == "large":
        return expand_like(log_large, x0)
    if prediction.variance_fraction is None:
        raise ValueError("variance 'learned' needs a model that learns its variance; use 'small' or 'large'")
    fraction = prediction.variance_fraction.double()
    return fraction * expand_like(log_large, x0) + (1 - fraction) * expand_like(log_small, x0)


def reverse_log_var(
    kind: ReverseVariance, prediction: Prediction, sde: SDE, s: Tensor, t: Tensor
) -> Float[Tensor, "batch *_"]:
    """Log variance of p(x_s | x_t) for 0 <= s < t with noise left at s.

    Args:
        kind: "small": sigma_s^2 / sigma_t^2 sigma_{t|s}^2; "large": sigma_{t|s}^2 (both in Ho et al. 2020, Section
            3.2); "learned": between them; "auto": learned where the model has it, else small.
        prediction: The model's answer at t.
        sde: The SDE.
        s: Earlier times, [B].
        t: Later times, [B].

    Returns:
        float64, [B, 1, ...] or [B, ...].

    Raises:
        ValueError: See ``interpolate_log_var``.
    """
    log_large = sde.transition_var(s, t).log()
    log_small = torch.log(-torch.expm1(sde.log_snr(t) - sde.log_snr(s))) + 2 * sde.log_sigma(s)
    return interpolate_log_var(kind, prediction, log_small, log_large)
