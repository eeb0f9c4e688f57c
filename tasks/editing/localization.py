"""Maps of what an edit changed, and how well they tell the pixels of a known mask."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

Estimate = dict[str, float]
_MOST_GROUPS = 50  # of images, left out one after the other


def change_map(
    x0: Float[Tensor, "batch channels height width"], other: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch height width"]:
    """|x - x'|, summed over channels (Wolleb et al. 2022, Section 2)."""
    return (x0 - other).abs().sum(1)


def smoothed_map(change: Float[Tensor, "batch height width"], *, std: float) -> Float[Tensor, "batch height width"]:
    """The map under a Gaussian kernel, since what is sought is larger than a pixel; mirrored beyond the rims.

    Args:
        change: See ``change_map``.
        std: Of the kernel, in pixels.
    """
    return _blurred(change, std)


def blur_residual(
    x0: Float[Tensor, "batch channels height width"], *, std: float = 1.0
) -> Float[Tensor, "batch height width"]:
    """|x - blur(x)|, a map that needs no model.

    Args:
        x0: The images, which are mirrored beyond the rims.
        std: Of the Gaussian kernel, in pixels.
    """
    return change_map(x0, _blurred(x0, std))


def _blurred(x: Tensor, std: float) -> Tensor:
    """Each image under a Gaussian kernel of sum 1."""
    return torch.from_numpy(gaussian_filter(x.cpu().numpy(), std, axes=(-2, -1))).to(x)


def otsu_threshold(values: np.ndarray) -> float:
    """The threshold that leaves the least variance within the two sides (Otsu 1979), without a histogram.

    Args:
        values: Numbers of any shape; what is above the threshold is the upper side.

    Returns:
        The largest value of the lower side; the value itself where all are one.
    """
    ordered = np.sort(values.astype(np.float64).ravel())
    below = np.arange(1, len(ordered))
    sums = ordered.cumsum()
    lower, upper = sums[:-1] / below, (sums[-1] - sums[:-1]) / (len(ordered) - below)
    # the variance between the sides; a cut between equal values is none
    between = np.where(np.diff(ordered) > 0, below * (len(ordered) - below) * (upper - lower) ** 2, -1.0)
    return float(ordered[between.argmax()]) if len(between) else float(ordered[0])


def localization_figures(
    maps: Float[Tensor, "images height width"], masks: Tensor, *, jackknife: bool = True
) -> dict[str, Estimate]:
    """Figures of maps against the truth, over all pixels of all images together, those without a lesion included.

    - "auroc": the area under the ROC curve: the chance that a pixel of a lesion is above one that is of none.
    - "auprc": the area under the precision-recall curve, as average precision; the share of lesion pixels by chance.
    - "dice_best": 2 |A and B| / (|A| + |B|) at the one threshold at which it is largest, which asks for the truth.
    - "dice_otsu": at Otsu's threshold of all maps, which does not.

    Standard errors are those of the jackknife over images (Efron & Stein 1981), in at most 50 groups: thresholds are
    found anew without each of them.

    Args:
        maps: A map of each image.
        masks: True where the lesion is, [N, H, W].
        jackknife: Find the standard errors; else they are NaN.

    Raises:
        ValueError: If there is no lesion, or nothing else.
    """
    values, truth = maps.double().flatten(1).cpu().numpy(), masks.flatten(1).cpu().numpy().astype(bool)
    if values.shape != truth.shape or not 0 < truth.mean() < 1:
        raise ValueError(
            f"masks must be those of the maps, with pixels of lesions and others, got {list(masks.shape)} with a share "
            f"of {float(masks.double().mean()):.3g} for maps of {list(maps.shape)}; pass other images"
        )
    groups = min(len(values), _MOST_GROUPS) if jackknife else 1
    return _with_jackknife(lambda rows: _figures(values[rows], truth[rows]), len(values), groups)


def _figures(values: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    found, known = values.ravel(), truth.ravel()
    if not 0 < known.mean() < 1:
        return dict.fromkeys(("auroc", "auprc", "dice_best", "dice_otsu"), math.nan)
    falling = np.argsort(-found, kind="stable")
    # at each threshold, the last of equal values: how many lesion pixels, and others, are at or above it
    last = np.append(np.diff(found[falling]) < 0, True)
    hits = known[falling].cumsum()[last]
    alarms = (~known[falling]).cumsum()[last]
    recall, false_rate = hits / hits[-1], alarms / alarms[-1]
    cut = found > otsu_threshold(found)
    return {
        "auroc": float((np.diff(false_rate, prepend=0) * (recall + np.append(0, recall[:-1]))).sum() / 2),
        "auprc": float((np.diff(recall, prepend=0) * hits / (hits + alarms)).sum()),
        "dice_best": float((2 * hits / (hits + alarms + hits[-1])).max()),
        "dice_otsu": float(2 * (cut & known).sum() / (cut.sum() + known.sum())),
    }


def _with_jackknife(figures: Callable[[np.ndarray], dict[str, float]], count: int, groups: int) -> dict[str, Estimate]:
    """Figures of all images, and the standard errors by leaving out groups of them."""
    whole = figures(np.arange(count))
    without = [figures(np.arange(count)[np.arange(count) % groups != k]) for k in range(groups)] if groups > 1 else []
    found = {}
    for name, value in whole.items():
        left_out = np.array([one[name] for one in without])
        spread = np.sqrt((groups - 1) * np.mean((left_out - left_out.mean()) ** 2)) if len(left_out) else math.nan
        found[name] = {"value": value, "stderr": float(spread)}
    return found


_ROWS = {"auroc": "AUROC", "auprc": "AUPRC", "dice_best": "Dice, best", "dice_otsu": "Dice, Otsu"}


def localization_table(figures: dict[str, dict[str, Estimate]]) -> list[str]:
    """A line for each kind of map, with its figures and their standard errors.

    Args:
        figures: ``localization_figures`` of each, by name.
    """
    lines = [f"{'map':16}" + "".join(f"{name:>18}" for name in _ROWS.values())]
    for name, of in figures.items():
        shown = [_written(of[key]) for key in _ROWS]
        lines.append(f"{name:16}" + "".join(f"{one:>18}" for one in shown))
    return lines


def _written(one: Estimate) -> str:
    # a left-out group without lesions has no figure, and the whole then no error
    return f"{one['value']:.4f}" + ("" if math.isnan(one["stderr"]) else f" ± {one['stderr']:.4f}")


def mean_square_change(x0: Tensor, other: Tensor) -> Float[Tensor, " images"]:
    """The mean of (x - x')^2 of each image, float64 [N]."""
    return (x0.double() - other.double()).flatten(1).square().mean(1)
