"""One line for each number, with all that decides it: what to quote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .table import plus_minus

_SIGNS = {"bound": "≤", "exact": "="}


def quote(report: Mapping[str, Any], name: str) -> str:
    """The number of a likelihood and what it is of, such as

        ≤ 3.6100 ± 0.0700 bits/dim: chain of T = 1000, small variance, clipped x0, class-conditional, EMA weights,
        20 test images of folder, 256 levels

    with "≤" for a bound and "=" for an exact likelihood.

    Args:
        report: What ``eval/report.json`` says: of the data and the model, and under ``name`` of the likelihood.
        name: Name of the likelihood.
    """
    ours = report[name]
    number = plus_minus(ours["bits_per_dim"], ours["stderr"])
    parts = [*_method(name, ours), *_model_and_data(report)]
    of_vector = f" ({plus_minus(ours['nats'], ours['nats_stderr'])} nats a vector)" if "nats" in ours else ""
    return f"{_SIGNS[ours['kind']]} {number} {report['units']}{of_vector}: {', '.join(parts)}"


def quote_cascade(report: Mapping[str, Any], name: str) -> str:
    """The number of a cascade, with the share of each stage in it; how each was measured is in its own report."""
    ours = report[name]
    shares = ", ".join(f"{stage} {bits:.4f}" for stage, bits in ours["of_stages"].items())
    number = plus_minus(ours["bits_per_dim"], ours["stderr"])
    return (
        f"{_SIGNS[ours['kind']]} {number} {report['units']}: cascade of {shares}; {', '.join(_model_and_data(report))}"
    )


def _method(name: str, ours: Mapping[str, Any]) -> list[str]:
    """The likelihood and its settings, in words."""
    if "divergence" in ours:
        parts = _flow(ours)
    elif "variance" in ours:
        grid = "" if ours["grid"] == "uniform" else f" on the {ours['grid']} grid"
        parts = [f"chain of T = {ours['num_steps']}{grid}", f"{ours['variance']} variance"]
    else:
        parts = ["chain in continuous time" if name == "vlb_continuous" else name]
    draws = ours.get("steps_per_image")
    # the last of a chain's steps is L_0, which is always evaluated
    if draws and draws < ours.get("num_steps", draws + 2) - 1:
        parts.append(f"L_t from {draws} draws an image")
    if "rate" in ours:
        distortion, rate = (plus_minus(ours[part], ours[f"{part}_stderr"]) for part in ("distortion", "rate"))
        parts.append(f"latents, distortion {distortion} + rate {rate}")
    return parts + (["clipped x0"] if ours["clip_x0"] else [])


def _flow(ours: Mapping[str, Any]) -> list[str]:
    parts = ["probability flow"]
    if ours["divergence"] == "exact":
        parts.append("exact divergence")
    else:
        plural = "" if ours["num_probes"] == 1 else "s"
        parts.append(f"Hutchinson with {ours['num_probes']} {ours['divergence']} probe{plural}")
    if "rtol" in ours:
        parts.append(f"{ours['solver']} with rtol {ours['rtol']:g} and atol {ours['atol']:g}")
    else:
        parts.append(f"{ours['num_steps']} steps of {ours['solver']} on the {ours['grid']} grid")
    if ours["dequantization"] != "none":
        parts.append(f"{ours['dequantization']} dequantization")
    if ours["importance_samples"] > 1:
        parts.append(f"{ours['importance_samples']} importance samples")
    return parts


def _model_and_data(report: Mapping[str, Any]) -> list[str]:
    parts = ["class-conditional"] if report["class_conditional"] else []
    if report.get("condition"):
        parts.append(f"given {' and '.join(report['condition'])}")
    parts.append(f"{'EMA' if report['weights'] == 'ema' else report['weights']} weights")
    first = "" if report["num_images"] == report["split_size"] else f"the first {report['num_images']} of "
    plural = "" if report["split_size"] == 1 else "s"
    levels = report["num_levels"]
    what = "vector" if levels is None else "image"
    parts.append(f"{first}{report['split_size']} {report['split']} {what}{plural} of {report['dataset']}")
    return parts if levels is None else [*parts, f"{levels} levels"]
