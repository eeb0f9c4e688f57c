"""Figures of ensembles of masks, against one annotator or several; each is a mean over images with its error.

An image has K samples, bool [N, K, H, W], and masks by A annotators, bool [N, A, H, W]: draws of p(mask | image), of
which an exact sampler's are too. What depends on an annotator is averaged over all of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from likelihood import mean_and_stderr

from ..restoration.metrics import Estimate, PerImage, ensemble_figures, errors_of

Masks = Bool[Tensor, "... height width"]
Samples = Bool[Tensor, "images k height width"]
Truth = Bool[Tensor, "images annotators height width"]


def dice(a: Masks, b: Masks) -> Float[Tensor, "..."]:
    """2 |a and b| / (|a| + |b|), float64; 1 where both are empty, and so 0 where one alone is."""
    total = a.sum((-2, -1)) + b.sum((-2, -1))
    return _share(2 * (a & b).sum((-2, -1)), total)


def iou(a: Masks, b: Masks) -> Float[Tensor, "..."]:
    """|a and b| / |a or b|, float64; 1 where both are empty, and so 0 where one alone is."""
    return _share((a & b).sum((-2, -1)), (a | b).sum((-2, -1)))


def _share(part: Tensor, whole: Tensor) -> Tensor:
    return torch.where(whole > 0, part.double() / whole.clamp(min=1), 1.0)


def overlaps_of(samples: Samples, truth: Truth) -> PerImage:
    """Overlaps of each image, float64 [N].

    Returns:
        "dice_of_mean" and "iou_of_mean", of the pixels that at least half of the samples have; "dice" and "iou", the
        means over single samples; and "present", 1 where an annotator's mask is not empty.
    """
    half = (2 * samples.sum(1) >= samples.shape[1])[:, None]
    found = {}
    for name, measure in (("dice", dice), ("iou", iou)):
        found[f"{name}_of_mean"] = measure(half, truth).mean(1)
        found[name] = torch.stack([measure(one[:, None], truth) for one in samples.unbind(1)]).mean((0, 2))
    return found | {"present": truth.flatten(1).any(1).double()}


def spread_of(samples: Samples, truth: Truth) -> PerImage:
    """The Brier score of each image, and sums that the correlation of variance and error is made of, float64 [N].

    With p the mean of the samples, y a mask and v = K / (K - 1) p (1 - p) the unbiased variance of the samples, means
    are over pixels.

    Returns:
        "sample_mse", the mean of (s - y)^2 of single samples; "mean_mse", that of (p - y)^2, the Brier score; "v", "e",
        "vv", "ee" and "ve", means of v, e = (p - y)^2 and of their products.
    """
    count = _several(samples)
    by_annotator = [errors_of(samples.double(), one.double()) for one in truth.unbind(1)]
    found = {name: torch.stack([one[name] for one in by_annotator]).mean(0) for name in by_annotator[0]}
    p = samples.double().mean(1)
    v = count / (count - 1) * p * (1 - p)
    e = (p[:, None] - truth.double()).square().mean(1)
    products = {"v": v, "e": e, "vv": v * v, "ee": e * e, "ve": v * e}
    return found | {name: one.flatten(1).mean(1) for name, one in products.items()}


def calibration_of(samples: Samples, truth: Truth) -> dict[str, Float[Tensor, "images bins"]]:
    """The share of pixels of each image that j of K samples have, and of those that the annotators have, for each j.

    Returns:
        "count" and "true", [N, K + 1], for bins j = 0 .. K; and the same of each sample in turn, taken for the truth of
        the K - 1 others, "count_of_others" and "true_of_others", [N, K].
    """
    _several(samples)
    votes = samples.sum(1)
    count, true = _votes(votes, truth.double().mean(1), samples.shape[1])
    found = {"count": count, "true": true}
    others = [_votes(votes - one.long(), one.double(), samples.shape[1] - 1) for one in samples.unbind(1)]
    for name, parts in zip(("count_of_others", "true_of_others"), zip(*others, strict=True), strict=True):
        found[name] = torch.stack(parts).mean(0)
    return found


def _votes(votes: Tensor, truth: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Shares of pixels by votes 0 .. count, and of these that are true, [N, count + 1] each."""
    chosen = torch.nn.functional.one_hot(votes.flatten(1), count + 1).double()
    return chosen.mean(1), (chosen * truth.flatten(1)[..., None]).mean(1)


def ged2_of(samples: Samples, truth: Truth) -> PerImage:
    """The squared generalized energy distance of each image (Kohl et al. 2018), float64 [N].

    GED^2 = 2 E d(s, y) - E d(s, s') - E d(y, y') with d = 1 - IoU, 0 between two empty masks.

    Returns:
        "diversity", E d(s, s') over pairs of different samples; "ged2", with that and E d(y, y') over pairs of
        different annotators: unbiased, so that it is 0 on average of an exact sampler, and may be negative. One
        annotator is taken for the whole law, E d(y, y') = 0, and an exact sampler then has E d(s, s') on average. And
        "ged2_plain", as Kohl et al. have it, over all pairs, those of a mask with itself too.
    """
    k, a = _several(samples), truth.shape[1]
    between = _distances(samples, truth) / (k * a)
    of_samples, of_truth = (_distances(one, one) for one in (samples, truth))
    diversity = of_samples / (k * (k - 1))
    unbiased = 2 * between - diversity - of_truth / max(a * (a - 1), 1)
    return {"diversity": diversity, "ged2": unbiased, "ged2_plain": 2 * between - of_samples / k**2 - of_truth / a**2}


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """The sum of 1 - IoU over all pairs of masks of an image, [N]."""
    return torch.stack([(1 - iou(one[:, None], second)).sum(1) for one in first.unbind(1)]).sum(0)


def _several(samples: Tensor) -> int:
    count = samples.shape[1]
    if count < 2:
        raise ValueError(f"a spread needs two samples of an image or more, got {count}; draw more")
    return count


def segmentation_figures(samples: Samples, truth: Truth) -> tuple[dict[str, Estimate | None], PerImage]:
    """The figures of a report, each with its standard error over images.

    - "dice_of_mean", "iou_of_mean", "dice", "iou": see ``overlaps_of``; "dice_of_mean_present", "dice_present": of the
      images whose truth is not empty. None where there are none.
    - "dice_gain": "dice_of_mean" less "dice", image by image.
    - "brier": the mean of (p - y)^2. Of an exact sampler it is E pi (1 - pi) (1 + 1 / K) with pi = P(y = 1 | image);
      "brier_of_sample", with K = 1.
    - "spread_skill": see ``restoration_figures``; 1 of an exact sampler.
    - "calibration_error": sum over j of |share of pixels that j of K samples have times (the share of them that is true
      less j / K)|. With finite K it is not 0 even of an exact sampler: "calibration_error_exact" is the error of the
      samples as truths of each other, by K - 1 others. An exact sampler's own is somewhat below it, the more
      so the smaller K, since K votes are nearer to the probability than K - 1.
    - "ged2", "ged2_plain", "diversity": see ``ged2_of``.
    - "correlation": of v with e over the pixels of all images, see ``spread_of``; its error is the jackknife's. None
      where one of them is constant.

    Args:
        samples: K samples of each image, K >= 2.
        truth: Masks by A annotators.

    Returns:
        The figures, and values of each image by name, float64 [N].

    Raises:
        ValueError: If there is one sample alone.
    """
    calibration = calibration_of(samples, truth)
    per_image = overlaps_of(samples, truth) | spread_of(samples, truth) | ged2_of(samples, truth)
    found: dict[str, Estimate | None] = {
        name: _mean(per_image[name]) for name in ("dice_of_mean", "dice", "iou_of_mean", "iou")
    }
    found["dice_gain"] = _mean(per_image["dice_of_mean"] - per_image["dice"])
    present = per_image["present"] > 0
    for name in ("dice_of_mean", "dice"):
        found[f"{name}_present"] = _mean(per_image[name][present]) if bool(present.any()) else None
    found |= {"brier": _mean(per_image["mean_mse"]), "brier_of_sample": _mean(per_image["sample_mse"])}
    found["spread_skill"] = ensemble_figures(per_image, num_samples=samples.shape[1])["spread_skill"]
    found["calibration_error"] = _calibration_error(calibration["count"], calibration["true"])
    found["calibration_error_exact"] = _calibration_error(calibration["count_of_others"], calibration["true_of_others"])
    found |= {name: _mean(per_image[name]) for name in ("ged2", "ged2_plain", "diversity")}
    found["correlation"] = _correlation(torch.stack([per_image[name] for name in ("v", "e", "vv", "ee", "ve")], 1))
    return found, per_image


def _mean(values: Tensor) -> Estimate:
    value, stderr = mean_and_stderr(values)
    return {"value": value, "stderr": stderr}


def _calibration_error(count: Tensor, true: Tensor) -> Estimate:
    """sum_j |mean over images of (true_j - count_j j / K)|, with an error that takes the signs for known."""
    off = true - count * torch.linspace(0, 1, count.shape[1], dtype=torch.float64)
    return _mean((off * off.mean(0).sign()).sum(1))


def _correlation(moments: Float[Tensor, "images 5"]) -> Estimate | None:
    """The correlation of all pixels, and its error by leaving out one image at a time."""

    def of(mean: Tensor) -> Tensor:
        v, e, vv, ee, ve = mean.unbind(-1)
        return (ve - v * e) / ((vv - v * v).clamp(min=0) * (ee - e * e).clamp(min=0)).sqrt()

    whole = of(moments.mean(0))
    if not bool(whole.isfinite()):
        return None
    count = len(moments)
    if count < 2:
        return {"value": float(whole), "stderr": math.nan}
    left_out = of((moments.sum(0) - moments) / (count - 1))
    return {"value": float(whole), "stderr": float(left_out.std() * (count - 1) / math.sqrt(count))}


_ROWS = {
    "dice_of_mean": "Dice of the mean, from half on",
    "dice": "Dice of a sample",
    "dice_gain": "Dice, mean less sample",
    "dice_of_mean_present": "Dice of the mean, truth not empty",
    "dice_present": "Dice of a sample, truth not empty",
    "iou_of_mean": "IoU of the mean",
    "iou": "IoU of a sample",
    "brier": "Brier score of the mean",
    "brier_of_sample": "Brier score of a sample",
    "spread_skill": "spread / skill, exact: 1",
    "calibration_error": "calibration error",
    "calibration_error_exact": "the same of the samples themselves",
    "ged2": "GED^2, unbiased",
    "ged2_plain": "GED^2, as published",
    "diversity": "1 - IoU of two samples",
    "correlation": "correlation of variance, error",
}


def segmentation_table(figures: dict[str, Estimate | None], title: str, *, calls: str) -> str:
    """The figures in lines.

    Args:
        figures: See ``segmentation_figures``; {} where no truth is known.
        title: What was segmented.
        calls: The network calls, in words.
    """
    lines = [title]
    for key, name in _ROWS.items():
        one: Any = figures.get(key)
        if one is not None:
            shown = f"{one['value']:.4f}" + ("" if math.isnan(one["stderr"]) else f" ± {one['stderr']:.4f}")
            lines.append(f"{name:34} {shown:>20}")
    return "\n".join([*lines, f"{'network calls a sample':34} {calls:>20}"])
