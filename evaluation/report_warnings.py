"""Warnings about settings that make a number misleading: a line each, with the cure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from experiment.warnings.first_noise import less_first_noise, wide_beside_latents, wide_first_noise
from experiment.warnings.prior import cure_of_lost_signal
from likelihood import ContinuousBound, FlowLikelihood, LatentBound, LikelihoodEstimator, VariationalBound
from sde_lib import MOST_PRIOR_BITS, SDE, last_noisy_time

from .table import plus_minus

_FEW = 30  # images, of which a standard error is itself off by 13 %


def warnings_of(
    report: Mapping[str, Any],
    estimators: Mapping[str, LikelihoodEstimator],
    sde: SDE,
    spread: Tensor | None = None,
) -> list[str]:
    """Lines for the reader of a report whose numbers a setting decides, or chance.

    Args:
        report: What ``eval/report.json`` says of data, model and each likelihood.
        estimators: The likelihoods by name.
        sde: The model's SDE.
        spread: Of a model of latents, the standard deviations of q(z | x); see ``wide_beside_latents``.
    """
    return [
        *_few_images(report),
        *_prior_not_reached(report, list(estimators), sde),
        *_worse_than_uniform(report, list(estimators)),
        *_first_noise(report, estimators, sde, spread),
        *_fixed_variance(report, list(estimators)),
    ]


def _few_images(report: Mapping[str, Any]) -> Iterator[str]:
    count = report["num_images"]
    if count >= _FEW:
        return
    samples = "vectors" if report["num_levels"] is None else "images"
    cure = "raise eval.num_images" if count < report["split_size"] else f"hold out more {report['split']} {samples}"
    said = f"one {samples[:-1]} has no standard error"
    if count > 1:
        said = f"{count} {samples} are few: the standard error is itself off by {1 / math.sqrt(2 * count - 2):.0%}"
    yield f"{said}; {cure}"


def _worse_than_uniform(report: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    levels: int | None = report["num_levels"]
    if levels is None:
        return
    worse = []
    for name in names:
        mean, stderr = report[name]["bits_per_dim"], report[name]["stderr"]
        margin = 0.0 if math.isnan(stderr) else 2 * stderr
        if mean - margin > math.log2(levels):
            worse.append(f"{name} {plus_minus(mean, stderr)}")
    if worse:
        yield (
            f"{', '.join(worse)} bits/dim: worse than no model, for which equally likely levels take log2({levels}) = "
            f"{math.log2(levels):.4g}; train longer (training.num_steps), or see which term is large"
        )


def _prior_not_reached(report: Mapping[str, Any], names: Sequence[str], sde: SDE) -> Iterator[str]:
    cure = cure_of_lost_signal(report["sde"])
    if sde.prior_bits_per_dim() <= MOST_PRIOR_BITS:
        cure = "take a grid that goes on to t = 1 (eval.vlb_grid=uniform)"
    for name in names:
        ours = report[name]
        if "divergence" not in ours and ours["prior"] > MOST_PRIOR_BITS:
            yield f"{name}: {ours['prior']:.3g} bits/dim are L_T, since the chain ends before its prior; {cure}"


def _fixed_variance(report: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        variance = report[name].get("variance", "learned")
        if report["learned_variance"] and variance != "learned":
            yield f"{name}: the {variance} variance, but the network learned its own; set eval.vlb_variance=learned"


def _first_noise(
    report: Mapping[str, Any], estimators: Mapping[str, LikelihoodEstimator], sde: SDE, spread: Tensor | None
) -> Iterator[str]:
    """One line for all likelihoods that are decoded at the same time."""
    levels: int | None = report["num_levels"]
    priors = {name: one.prior for name, one in estimators.items() if isinstance(one, LatentBound)}
    if levels is None or (priors and spread is None):
        return

    def wide(t: float) -> str | None:
        if spread is None:
            return wide_first_noise(sde, t, levels)
        return wide_beside_latents(sde, t, spread, math.prod(report["image_shape"]))

    estimators = {**estimators, **priors}
    names: dict[float, list[str]] = {}
    for name, estimator in estimators.items():
        t = _decoded_at(estimator, sde, of_latents=spread is not None)
        if t is not None:
            names.setdefault(t, []).append(name)
    for t, of in names.items():
        said = wide(t)
        if said is None:
            continue
        cure = f"train with {less_first_noise(report['sde']['name'], of_levels=spread is None)}"
        least = last_noisy_time(sde)
        if wide(least) is None:
            kinds = {VariationalBound: "eval.vlb_num_steps=0", FlowLikelihood: "eval.ode_t_end=0"}
            keys = [key for kind, key in kinds.items() if any(isinstance(estimators[name], kind) for name in of)]
            cure = f"the SDE begins with less at t = {least:.3g}: set {', '.join(keys)}"
        yield f"{', '.join(of)}: {said}; {cure}"


def _decoded_at(estimator: LikelihoodEstimator, sde: SDE, *, of_latents: bool) -> float | None:
    """The time of the decoder, or at which the diffusion of latents ends; None where there is none."""
    if isinstance(estimator, ContinuousBound):
        return float(estimator.ends(sde)[0])
    decodes = of_latents or not isinstance(estimator, FlowLikelihood) or estimator.dequantization == "decoder"
    if isinstance(estimator, VariationalBound | FlowLikelihood) and decodes:
        return float(estimator.noisy_times(sde)[0])
    return None
