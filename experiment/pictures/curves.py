"""Pictures of curves and densities: the loss, L_t, a classifier's answers."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from runtime.files import write_atomically

from .grids import plot_points


def save_density(path: Path, points: np.ndarray, x: np.ndarray, y: np.ndarray, density: np.ndarray) -> None:
    """Draw points beside the density that they should have, on the same axes.

    Args:
        path: PNG to write.
        points: [N, 2].
        x: First coordinates of a grid, rising, [A].
        y: Second coordinates, rising, [B].
        density: [B, A], at least 0.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    plot_points(left, points)
    left.set(title=f"{len(points):,} samples", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    shown = right.pcolormesh(x, y, density, shading="gouraud", cmap="viridis", vmin=0)
    right.set(title="density by the probability flow")
    right.set_aspect("equal")
    figure.colorbar(shown, cax=right.inset_axes((1.02, 0, 0.03, 1)))
    save_figure(path, figure)


def save_figure(path: Path, figure: Figure) -> None:
    """Write a figure as PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    write_atomically(path, buffer.getvalue())


def save_learning_curve(path: Path, steps: Sequence[int], losses: Sequence[float]) -> None:
    """Plot the training loss over the steps, logarithmic, with a running mean.

    Args:
        path: PNG to write.
        steps: Step of each logged value.
        losses: Mean loss since the value before.
    """
    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot()
    # a line through one point is not seen
    axes.plot(steps, losses, "." if len(losses) == 1 else "-", color="tab:blue", alpha=0.35, label="loss")
    width = max(1, len(losses) // 50)
    if len(losses) >= 2 * width > 2:
        smooth = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(np.asarray(steps)[width - 1 :], smooth, color="tab:blue", label=f"mean of {width}")
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="Training loss")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(path, figure)


def save_bound_curve(
    path: Path, times: Sequence[float], bits_per_dim: Sequence[float], stderr: Sequence[float]
) -> None:
    """Plot L_t over t, with two standard errors either side.

    Args:
        path: PNG to write.
        times: Time t of each term.
        bits_per_dim: Mean of L_t in bits/dim.
        stderr: Its standard error; NaN where a term was seen once.
    """
    figure = Figure(figsize=(7, 4))
    axes = figure.add_subplot()
    mean, error = np.asarray(bits_per_dim), np.nan_to_num(np.asarray(stderr))
    axes.fill_between(times, np.maximum(mean - 2 * error, 1e-12), mean + 2 * error, alpha=0.3, lw=0)
    axes.plot(times, mean, lw=1.2)
    axes.set(xlabel="t", ylabel="L_t, bits/dim", yscale="log", title="Terms of the variational bound")
    positive = mean[mean > 0]
    if len(positive):
        axes.set_ylim(positive.min() / 2, mean.max() * 2)
    axes.grid(alpha=0.3)
    save_figure(path, figure)


def save_classifier_curve(path: Path, curve: Mapping[str, Any]) -> None:
    """Plot a classifier's cross-entropy and accuracy over t, with two standard errors either side.

    Args:
        path: PNG to write.
        curve: "t", "cross_entropy" and "accuracy" with "_stderr" of each, [T], and "class_entropy", all in nats.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("cross_entropy", "accuracy"), strict=True):
        mean, error = np.asarray(curve[name]), np.nan_to_num(np.asarray(curve[f"{name}_stderr"]))
        axes.fill_between(curve["t"], mean - 2 * error, mean + 2 * error, alpha=0.3, lw=0, label="2 standard errors")
        axes.plot(curve["t"], mean, ".-", lw=1.2, label="measured")
        axes.set(xlabel="t", ylabel=name.replace("_", "-") + (", nats" if name == "cross_entropy" else ""))
        axes.grid(alpha=0.3)
        if name == "cross_entropy":
            axes.axhline(curve["class_entropy"], color="black", ls="--", lw=1, label="entropy of the classes")
        axes.legend()
    save_figure(path, figure)


def save_progress(path: Path, figures: Mapping[str, Any]) -> None:
    """Plot what states x_t hold over t, with two standard errors either side.

    Args:
        path: PNG to write.
        figures: "times" with "rmse_to_sample", "rmse_to_image", "gaussian_rmse" and "frechet", [T]; "frechet_of",
            a word; "share_at" with "shared_variance" and "gaussian_shared_variance", [S]; and "_stderr" of what was
            measured.
    """
    panels = [("times", ("rmse_to_sample", "rmse_to_image", "gaussian_rmse"), "RMSE of the predicted x0", "linear")]
    panels += [("times", ("frechet",), f"Frechet distance of {figures['frechet_of']} to the data", "log")]
    if figures["share_at"]:
        panels += [("share_at", ("shared_variance", "gaussian_shared_variance"), "variance in common", "linear")]
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (at, names, title, scale) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name in names:
            mean, label = np.asarray(figures[name]), name.replace("_", " ")
            if f"{name}_stderr" in figures:
                error = 2 * np.nan_to_num(np.asarray(figures[f"{name}_stderr"]))
                axes.errorbar(figures[at], mean, error, fmt=".-", lw=1.2, capsize=2, label=label)
            else:
                axes.plot(figures[at], mean, "--", color="black", lw=1, label=label)
        axes.set(xlabel="t", title=title, yscale=scale)
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(path, figure)
