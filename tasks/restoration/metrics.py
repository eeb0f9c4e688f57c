"""Figures of samples of a posterior that is not known: by the truth, and by the measurement.

Of an exact sampler the truth and its samples are K + 1 draws from one law, p(x0 | y), and nothing tells them apart.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from likelihood import mean_and_stderr
from models import LinearOperator

Estimate = dict[str, float]
PerImage = dict[str, Float[Tensor, " images"]]


def errors_of(samples: Float[Tensor, "images k *shape"], truth: Float[Tensor, "images *shape"]) -> PerImage:
    """Mean squared errors of each image, float64 [N], over its numbers.

    Args:
        samples: K samples of each image.
        truth: The images.

    Returns:
        "sample_mse", the mean of those of its samples, and "mean_mse", that of the samples' mean.
    """
    wide, known = samples.double().flatten(2), truth.double().flatten(1)
    return {
        "sample_mse": (wide - known[:, None]).square().mean((1, 2)),
        "mean_mse": (wide.mean(1) - known).square().mean(1),
    }


def coverage_of(samples: Tensor, truth: Tensor) -> PerImage:
    """Count the numbers of each image that lie within the range of its samples, [N].

    Where the truth equals a sample, as grey levels do, its rank is taken to be any of those that it may have, alike;
    and numbers in which all agree, which say nothing, are left out. So the share that is inside is (K - 1) / (K + 1)
    on average of an exact sampler.

    Args:
        samples: K samples of each image, [N, K, ...], in the units of the data.
        truth: The images, [N, ...].

    Returns:
        "inside" and "compared", sums over the numbers, float64.
    """
    drawn, known = samples.flatten(2), truth.flatten(1)[:, None]
    count = drawn.shape[1]
    below, equal = (drawn < known).sum(1), (drawn == known).sum(1)
    # ranks below, ..., below + equal of 0 .. K; the first and the last are outside
    outside = (below == 0).double() + (below + equal == count).double()
    compared = equal < count
    inside = torch.where(compared, 1 - outside / (equal + 1), 0.0)
    return {"inside": inside.sum(1), "compared": compared.double().sum(1)}


def residuals_of(
    operator: LinearOperator, samples: Float[Tensor, "images k *shape"], y: Float[Tensor, "images *observed"]
) -> PerImage:
    """The mean of (y - A x)^2 over samples and numbers of y: "residual_ms" of each image, float64 [N]."""
    observed = torch.stack([operator.forward(one.double()) for one in samples])
    return {"residual_ms": (observed - y.double()[:, None]).square().flatten(1).mean(1)}


def restoration_figures(per_image: PerImage, *, num_samples: int, noise_std: float) -> dict[str, Estimate | None]:
    """The figures of a report, each with its standard error over images.

    - "rmse", "rmse_of_mean": root mean squared error of a sample, and of the mean of K.
    - "spread_skill": sqrt((K + 1) / K E Var_k x_k / E|mean - x|^2) (Fortin et al. 2014). Of an exact sampler the
      samples have the posterior's variance V, and their mean is V + V / K from the truth, so that it is 1; below,
      samples are too sure, above, too different. None of one sample.
    - "coverage": the share of numbers within the range of the samples; see ``coverage_of``. None of one sample.
    - "chi2": |y - A x|^2 / (M noise_std^2), which is 1 of an exact sampler. None without noise.
    - "residual": the root mean square of y - A x.

    Args:
        per_image: The values of ``residuals_of`` and, where the truth is known, of the others.
        num_samples: K.
        noise_std: Standard deviation of the noise.
    """
    residual = per_image["residual_ms"]
    found: dict[str, Estimate | None] = {
        "residual": root_of_mean(residual),
        "chi2": _mean(residual / noise_std**2) if noise_std > 0 else None,
    }
    if "sample_mse" in per_image:
        found |= ensemble_figures(per_image, num_samples=num_samples)
        found["coverage"] = ratio_of_means(per_image["inside"], per_image["compared"]) if num_samples > 1 else None
    return found


def ensemble_figures(errors: PerImage, *, num_samples: int) -> dict[str, Estimate | None]:
    """The figures of ``restoration_figures`` that compare samples with the truth number by number.

    Args:
        errors: See ``errors_of``.
        num_samples: K.

    Returns:
        "rmse", "rmse_of_mean" and "spread_skill".
    """
    sample, mean = errors["sample_mse"], errors["mean_mse"]
    # E|x_k - x|^2 less |mean - x|^2 is the variance of the samples, as K of them have it
    expected = (num_samples + 1) / max(num_samples - 1, 1) * (sample - mean)
    return {
        "rmse": root_of_mean(sample),
        "rmse_of_mean": root_of_mean(mean),
        "spread_skill": _root_of_ratio(expected, mean) if num_samples > 1 else None,
    }


def _mean(values: Tensor) -> Estimate:
    value, stderr = mean_and_stderr(values)
    return {"value": value, "stderr": stderr}


def root_of_mean(values: Tensor) -> Estimate:
    """The root of a mean over images, by d sqrt(m) = dm / (2 sqrt(m))."""
    mean, stderr = mean_and_stderr(values)
    root = math.sqrt(mean)
    return {"value": root, "stderr": stderr / (2 * root) if root > 0 else stderr}


def ratio_of_means(above: Tensor, below: Tensor) -> Estimate | None:
    """The ratio of two means over images; its error is that of the mean of a - r b, over the mean of b."""
    mean = float(below.double().mean())
    if mean == 0:
        return None
    ratio = float(above.double().mean()) / mean
    return {"value": ratio, "stderr": mean_and_stderr(above - ratio * below)[1] / mean}


def _root_of_ratio(above: Tensor, below: Tensor) -> Estimate | None:
    ratio = ratio_of_means(above, below)
    if ratio is None or ratio["value"] <= 0:
        return ratio
    root = math.sqrt(ratio["value"])
    return {"value": root, "stderr": ratio["stderr"] / (2 * root)}


_ROWS = {
    "rmse": "RMSE of a sample",
    "rmse_of_mean": "RMSE of the mean of them",
    "spread_skill": "spread / skill, exact: 1",
    "coverage": "coverage",
    "chi2": "chi2 of y - A x, exact: 1",
    "residual": "rms of y - A x",
}


def restoration_table(figures: dict[str, Estimate | None], title: str, *, num_samples: int, calls: str) -> str:
    """The figures in lines.

    Args:
        figures: See ``restoration_figures``.
        title: What was restored.
        num_samples: K.
        calls: The network calls, in words.
    """
    lines = [title]
    for key, name in _ROWS.items():
        one: Any = figures.get(key)
        if one is None or (key == "residual" and figures["chi2"] is not None):
            continue
        shown = f"{one['value']:.4f}" + ("" if math.isnan(one["stderr"]) else f" ± {one['stderr']:.4f}")
        said = f"{name}, exact: {(num_samples - 1) / (num_samples + 1):.3f}" if key == "coverage" else name
        lines.append(f"{said:34} {shown:>20}")
    return "\n".join([*lines, f"{'network calls a sample':34} {calls:>20}"])
