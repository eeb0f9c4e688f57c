"""Ensembles of masks whose law is known, and their figures against what they are by definition."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models import DiscreteScoreModel
from samplers import make_sampler
from sde_lib import VP
from tasks.ensembles import draw_ensemble
from tasks.segmentation import (
    calibration_of,
    dice,
    ged2_of,
    iou,
    overlaps_of,
    segmentation_figures,
    segmentation_table,
    spread_of,
)

# a lesion by four hands, [4, 1, 2, 4]; each pixel has a probability of its own
MASKS = torch.tensor(
    [[[1, 1, 0, 0], [1, 0, 0, 0]], [[1, 1, 1, 0], [0, 0, 0, 0]], [[1, 1, 1, 1], [1, 1, 0, 0]], [[0] * 4] * 2]
).bool()[:, None]
PROBS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
PI = (PROBS[:, None, None] * MASKS[:, 0]).sum(0)
SAMPLER = make_sampler("ancestral", num_steps=30, grid="log_snr")


def law(probs: Tensor = PROBS, masks: Tensor = MASKS) -> DiscreteScoreModel:
    return DiscreteScoreModel(VP(), points=2.0 * masks - 1, probs=probs)


def drawn(model: DiscreteScoreModel, num_images: int, count: int, **options: Any) -> Tensor:
    """Masks [N, K, H, W] of images that all have one law."""
    numbers = [(k, j) for k in range(num_images) for j in range(count)]
    x0 = draw_ensemble(SAMPLER, model, numbers, sample_shape=(1, 2, 4), **options).x0
    # at the end of the chain x0 is one of the masks
    assert float((x0.abs() - 1).abs().max()) < 1e-3
    return (x0[:, 0] > 0).view(num_images, count, 2, 4)


def hands(num_images: int, count: int, seed: int = 0, probs: Tensor = PROBS, masks: Tensor = MASKS) -> Tensor:
    """Masks by annotators, [N, A, H, W], draws of the law."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(probs, num_images * count, replacement=True, generator=generator)
    return masks[chosen, 0].view(num_images, count, 2, 4)


def figures_of(samples: Tensor, truth: Tensor) -> tuple[dict, dict]:
    return segmentation_figures(samples, truth)


def off(figures: dict, name: str, wanted: float) -> float:
    """The distance of a figure from what it should be, in standard errors."""
    return (figures[name]["value"] - wanted) / figures[name]["stderr"]


def test_ensembles_of_a_known_law_have_its_mean_and_variance():
    samples = drawn(law(), 150, 8)
    # 1,200 draws: the binomial error of each pixel
    error = (PI * (1 - PI) / 1200).sqrt().clamp(min=1e-9)
    assert ((samples.double().mean((0, 1)) - PI).abs() / error).max() < 4
    p = samples.double().mean(1)
    variance = 8 / 7 * p * (1 - p)
    error = variance.std(0) / math.sqrt(150)
    assert ((variance.mean(0) - PI * (1 - PI)).abs() / error.clamp(min=1e-9)).max() < 4
    # masks come whole
    whole = (samples.flatten(0, 1)[:, None] == MASKS[:, 0]).flatten(2).all(-1).double()
    assert bool((whole.sum(1) == 1).all())
    assert ((whole.mean(0) - PROBS).abs() / (PROBS * (1 - PROBS) / 1200).sqrt()).max() < 4


def test_of_an_exact_law_truth_and_samples_cannot_be_told_apart():
    samples, truth = drawn(law(), 150, 6), hands(150, 1)
    found, _ = figures_of(samples, truth)
    assert abs(off(found, "spread_skill", 1)) < 3
    spread = float((PI * (1 - PI)).mean())
    assert abs(off(found, "brier", spread * 7 / 6)) < 3 and abs(off(found, "brier_of_sample", spread * 2)) < 3
    error = math.hypot(found["calibration_error"]["stderr"], found["calibration_error_exact"]["stderr"])
    assert abs(found["calibration_error"]["value"] - found["calibration_error_exact"]["value"]) < 3 * error
    assert found["dice_of_mean"]["value"] > found["dice"]["value"]
    # one that is too sure of itself
    sure, _ = figures_of(hands(150, 6, 1, torch.tensor([0.02, 0.96, 0.01, 0.01])), truth)
    assert off(sure, "brier", spread * 7 / 6) > 3 and off(sure, "spread_skill", 1) < -5
    assert sure["calibration_error"]["value"] > 3 * sure["calibration_error_exact"]["value"]


def test_two_hands_are_drawn_as_often_as_they_are_and_at_the_distance_that_they_have():
    two, p = MASKS[[0, 2]], torch.tensor([0.3, 0.7], dtype=torch.float64)
    samples, truth = drawn(law(p, two), 150, 5), hands(150, 4, probs=p, masks=two)
    share = (samples == two[0]).flatten(2).all(-1).double().mean()
    assert abs(float(share) - 0.3) < 3 * math.sqrt(0.21 / 750)
    d = 1 - 3 / 6  # of three pixels and of six that enclose them
    found, _ = figures_of(samples, truth)
    assert abs(off(found, "ged2", 0)) < 3
    # pairs of a mask with itself are at no distance: 2 p (1 - p) d (1 / K + 1 / A)
    assert abs(off(found, "ged2_plain", 2 * 0.21 * d * (1 / 5 + 1 / 4))) < 3
    assert abs(off(found, "diversity", 2 * 0.21 * d)) < 3
    # another law, p' = 0.8: 2 d (p - p')^2
    other, _ = figures_of(hands(150, 5, 1, torch.tensor([0.8, 0.2]), two), truth)
    assert abs(off(other, "ged2", 2 * d * 0.5**2)) < 3
    assert other["ged2"]["stderr"] < 0.04


def test_a_sample_does_not_depend_on_its_batch_mates():
    model = law()

    def some(numbers: list[tuple[int, int]]) -> Tensor:
        return draw_ensemble(SAMPLER, model, numbers, sample_shape=(1, 2, 4), seed=3, dtype=torch.float64).x0

    many = some([(k, j) for k in range(3) for j in range(4)])
    torch.testing.assert_close(some([(1, 3), (2, 0), (0, 0)]), many[[7, 8, 0]], rtol=0, atol=1e-10)


def test_figures_of_known_arrays():
    rng = np.random.default_rng(0)
    s, y = rng.random((5, 4, 3, 6)) < 0.4, rng.random((5, 2, 3, 6)) < 0.5
    found, per_image = figures_of(torch.from_numpy(s), torch.from_numpy(y))

    def overlap(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
        both, either = (a & b).sum(), (a | b).sum()
        return 2 * both / (both + either), both / either

    p = s.mean(1)
    half, images = p >= 0.5, range(5)
    of_mean = np.array([[overlap(half[i], y[i, a]) for a in (0, 1)] for i in images]).mean((0, 1))
    single = np.array([[[overlap(s[i, k], y[i, a]) for a in (0, 1)] for k in range(4)] for i in images])
    assert found["dice_of_mean"]["value"] == pytest.approx(of_mean[0])
    assert found["iou_of_mean"]["value"] == pytest.approx(of_mean[1])
    assert found["dice"]["value"] == pytest.approx(single[..., 0].mean())
    assert found["dice"]["stderr"] == pytest.approx(single[..., 0].mean((1, 2)).std(ddof=1) / math.sqrt(5))
    gain = np.array([[overlap(half[i], y[i, a])[0] for a in (0, 1)] for i in images]) - single[..., 0].mean(1)
    assert found["dice_gain"]["stderr"] == pytest.approx(gain.mean(1).std(ddof=1) / math.sqrt(5))
    e = ((p[:, None] - y) ** 2).mean(1)
    v = s.var(1, ddof=1)
    assert found["brier"]["value"] == pytest.approx(e.mean())
    assert found["brier_of_sample"]["value"] == pytest.approx(((s[:, :, None] ^ y[:, None]) * 1.0).mean())
    assert found["correlation"]["value"] == pytest.approx(np.corrcoef(v.ravel(), e.ravel())[0, 1])
    bins = [abs(((p == j / 4)[:, None] * (y - j / 4)).mean()) for j in range(5)]
    assert found["calibration_error"]["value"] == pytest.approx(sum(bins))
    others = (s.sum(1, keepdims=True) - s) / 3
    bins = [abs(((others == j / 3) * (s - j / 3)).mean()) for j in range(4)]
    assert found["calibration_error_exact"]["value"] == pytest.approx(sum(bins))

    def apart(a: np.ndarray, b: np.ndarray, *, same: bool) -> float:
        pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if same or i != j]
        return float(np.mean([1 - overlap(a[i], b[j])[1] for i, j in pairs]))

    for name, same in (("ged2", False), ("ged2_plain", True)):
        wanted = [
            2 * apart(s[i], y[i], same=True) - apart(s[i], s[i], same=same) - apart(y[i], y[i], same=same)
            for i in images
        ]
        np.testing.assert_allclose(per_image[name].numpy(), wanted)
    table = segmentation_table(found, "title", calls="21")
    assert f"{found['ged2']['value']:.4f} ± {found['ged2']['stderr']:.4f}" in table and table.endswith(" 21")


def test_empty_masks_count_as_found_if_both_are_empty():
    none, some = torch.zeros(2, 3).bool(), torch.eye(2, 3).bool()
    assert float(dice(none, none)) == float(iou(none, none)) == 1
    assert float(dice(none, some)) == float(iou(some, none)) == 0
    samples = torch.stack([torch.stack([none, none]), torch.stack([some, none])])
    found = overlaps_of(samples, torch.stack([none, some])[:, None])
    # a half of the votes is enough
    assert found["dice_of_mean"].tolist() == [1, 1] and found["dice"].tolist() == [1, 0.5]
    figures, _ = figures_of(samples, torch.stack([none, some])[:, None])
    assert figures["dice_present"]["value"] == 0.5 and figures["dice"]["value"] == 0.75
    # nothing is found where nothing is: there is no variance, and no image to have a Dice of
    empty, _ = figures_of(torch.zeros(2, 3, 2, 3).bool(), torch.zeros(2, 1, 2, 3).bool())
    assert empty["dice_present"] is None and empty["correlation"] is None and empty["ged2"]["value"] == 0
    assert "truth not empty" not in segmentation_table(empty, "title", calls="1")


def test_errors_are_those_of_repeated_experiments():
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(100):
        # images differ in how sure they are
        pi = torch.rand(60, 1, 2, 4, generator=generator) ** 2
        masks = torch.rand(60, 6, 2, 4, generator=generator) < pi
        found.append(figures_of(masks[:, 1:], masks[:, :1])[0])
    for name in ("correlation", "brier", "dice_of_mean", "ged2", "calibration_error"):
        values, errors = (np.array([one[name][key] for one in found]) for key in ("value", "stderr"))
        ratio = errors.mean() / values.std()
        # of bins that are hardly off it is on the safe side
        assert 0.75 < ratio < (2 if name == "calibration_error" else 1.25), name


def test_one_sample_has_no_spread_and_one_image_no_error():
    one = torch.ones(1, 1, 2, 3).bool()
    for measure in (spread_of, calibration_of, ged2_of):
        with pytest.raises(ValueError, match="a spread needs two samples of an image or more, got 1; draw more"):
            measure(one, one)
    samples = torch.tensor([[[[1, 0]], [[1, 1]]]]).bool()
    found, _ = figures_of(samples, samples[:, :1])
    assert math.isnan(found["correlation"]["stderr"]) and "±" not in segmentation_table(found, "title", calls="1")
