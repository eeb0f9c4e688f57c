import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.stats
import torch
from thinning import one_each
from torch import Tensor

from data import ImageDataset, LevelSpace, load_dataset
from evaluation.quality import (
    DigitClassifier,
    block_jackknife,
    frechet_distance,
    grouped_estimate,
    sliced_wasserstein,
    train_feature_classifier,
)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _with_moments(mean: Tensor, cov: Tensor, num: int, *, seed: int = 0) -> Tensor:
    """Points whose sample mean and covariance, over n - 1, are exactly these."""
    white = _normal(num, len(mean), seed=seed)
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(white.T))).T
    return mean + white @ torch.linalg.cholesky(cov).T


def _covariance(dim: int, *, seed: int) -> Tensor:
    root = _normal(dim, dim, seed=seed)
    return root @ root.T / dim + 0.1 * torch.eye(dim, dtype=torch.float64)


# Frechet distance


def test_frechet_of_commuting_gaussians_is_the_distance_of_means_and_standard_deviations():
    # S_a and S_b are diagonal in one basis: |m_a - m_b|^2 + sum (s_a - s_b)^2
    basis = torch.linalg.qr(_normal(4, 4)).Q
    std_a, std_b = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, 2.0, 0.5, 3.0], [2.0, 2.0, 1.5, 0.1]))
    mean_a, mean_b = _normal(4, seed=1), _normal(4, seed=2)
    a = _with_moments(mean_a, basis * std_a**2 @ basis.T, 50, seed=3)
    b = _with_moments(mean_b, basis * std_b**2 @ basis.T, 80, seed=4)
    truth = (mean_a - mean_b).square().sum() + (std_a - std_b).square().sum()
    assert frechet_distance(a, b) == pytest.approx(float(truth), rel=1e-12)


def test_frechet_of_any_gaussians_is_the_formula_with_a_matrix_root():
    mean_a, mean_b, cov_a, cov_b = (
        _normal(6, seed=1),
        _normal(6, seed=2),
        _covariance(6, seed=3),
        _covariance(6, seed=4),
    )
    root = np.real(np.asarray(scipy.linalg.sqrtm((cov_a @ cov_b).numpy())))
    truth = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * np.trace(root)
    got = frechet_distance(_with_moments(mean_a, cov_a, 40), _with_moments(mean_b, cov_b, 70, seed=1))
    assert got == pytest.approx(float(truth), rel=1e-10)


def test_frechet_in_one_dimension():
    a, b = _normal(30, 1), 3 * _normal(50, 1, seed=1) + 2
    truth = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert frechet_distance(a, b) == pytest.approx(float(truth), rel=1e-12)


def test_frechet_is_symmetric_zero_on_itself_and_blind_to_rotation_and_shift():
    a, b = _normal(60, 5), _normal(40, 5, seed=1) @ _covariance(5, seed=2) + 0.3
    value = frechet_distance(a, b)
    assert value > 0.1
    assert frechet_distance(b, a) == pytest.approx(value, rel=1e-12)
    rotation = torch.linalg.qr(_normal(5, 5, seed=5)).Q
    assert frechet_distance(a @ rotation + 7, b @ rotation + 7) == pytest.approx(value, rel=1e-10)
    assert frechet_distance(3 * a, 3 * b) == pytest.approx(9 * value, rel=1e-12)
    assert frechet_distance(a, a) < 1e-13
    assert frechet_distance(a, a[torch.randperm(60)]) < 1e-13
    shift = torch.tensor([1.0, -2.0, 0.0, 0.5, 0.0])
    assert frechet_distance(a, a + shift) == pytest.approx(5.25, rel=1e-12)


@pytest.mark.parametrize(("num_a", "num_b"), [(2, 2), (3, 40), (40, 5), (40, 40)])
def test_frechet_of_singular_covariances_in_different_subspaces(num_a: int, num_b: int):
    # a lives in the first 10 of 20 dimensions, b in the others: nothing overlaps, (S_a S_b)^{1/2} = 0
    a, b = torch.zeros(num_a, 20, dtype=torch.float64), torch.zeros(num_b, 20, dtype=torch.float64)
    a[:, :10], b[:, 10:] = _normal(num_a, 10), _normal(num_b, 10, seed=1)
    truth = (a.mean(0) - b.mean(0)).square().sum() + a.var(0).sum() + b.var(0).sum()
    assert frechet_distance(a, b) == pytest.approx(float(truth), rel=1e-12)
    assert frechet_distance(a, a) < 1e-13
    # a constant set: the distance is |m_a - m_b|^2 + tr S_a
    constant = torch.ones(7, 20, dtype=torch.float64)
    truth = (a.mean(0) - 1).square().sum() + a.var(0).sum()
    assert frechet_distance(a, constant) == pytest.approx(float(truth), rel=1e-12)
    assert frechet_distance(constant, constant) == 0


def test_frechet_bias_is_the_same_at_equal_sizes_and_falls_with_the_size():
    reference = _normal(4000, 8, seed=9)
    small, large = (
        np.mean([frechet_distance(_normal(num, 8, seed=seed), reference) for seed in range(40)]) for num in (50, 200)
    )
    # of order 1 / n, up to the share of the 4000
    assert 3 < small / large < 5


# sliced Wasserstein distance


def test_one_dimension_is_scipy_and_the_quantile_integral():
    a, b = _normal(37, 1), 2 * _normal(37, 1, seed=1) + 1
    # equal sizes: sorted points are paired
    truth = (a.sort(0).values - b.sort(0).values).square().mean()
    assert sliced_wasserstein(a, b, num_projections=3).value == pytest.approx(float(truth), rel=1e-12)
    # for b shifted far above a, W_1 = mean difference, and W_2^2 - W_1^2 is the variance of the gap: W_1 by scipy
    far = b + 100
    gap = far.sort(0).values - a.sort(0).values
    w1 = scipy.stats.wasserstein_distance(a[:, 0].numpy(), far[:, 0].numpy())
    expected = w1**2 + float(gap.var(correction=0))
    assert sliced_wasserstein(a, far, num_projections=3).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("num_a", "num_b"), [(3, 2), (4, 6), (7, 5), (1437 // 99, 360 // 30), (12, 12), (2, 9)])
def test_unequal_sizes_are_those_of_replicated_points(num_a: int, num_b: int):
    a, b = _normal(num_a, 3), _normal(num_b, 3, seed=1) + 0.5
    size = math.lcm(num_a, num_b)
    replicated = (a.repeat_interleave(size // num_a, 0), b.repeat_interleave(size // num_b, 0))
    got, truth = sliced_wasserstein(a, b), sliced_wasserstein(*replicated)
    assert got.value == pytest.approx(truth.value, rel=1e-12)
    assert got.stderr == pytest.approx(truth.stderr, rel=1e-12)


def test_unequal_sizes_are_the_optimal_transport():
    a, b = _normal(3, 1), _normal(4, 1, seed=1)
    cost = (a - b.T).square().numpy()
    rows = np.kron(np.eye(3), np.ones(4)), np.kron(np.ones(3), np.eye(4))
    plan = scipy.optimize.linprog(cost.ravel(), A_eq=np.vstack(rows), b_eq=[1 / 3] * 3 + [1 / 4] * 4)
    assert sliced_wasserstein(a, b, num_projections=2).value == pytest.approx(plan.fun, rel=1e-9)


@pytest.mark.parametrize("num_b", [100, 50])
def test_a_shift_has_its_squared_length_over_the_dimension(num_b: int):
    # <u, v>^2 has mean |v|^2 / D and variance 2 |v|^4 (D - 1) / (D^2 (D + 2))
    points, shift = _normal(50, 6), torch.tensor([1.0, -1.0, 2.0, 0.0, 0.5, 0.0], dtype=torch.float64)
    other = points.repeat(num_b // 50, 1) + shift
    got = sliced_wasserstein(points, other, num_projections=4000)
    length = float(shift.square().sum())
    spread = math.sqrt(2 * length**2 * 5 / (36 * 8) / 4000)
    assert got.stderr == pytest.approx(spread, rel=0.1)
    assert abs(got.value - length / 6) < 4 * spread


def test_a_scaling_has_the_second_moment_over_the_dimension():
    # sorted projections stay sorted: SW^2(a, k a) = (k - 1)^2 E_u mean <a, u>^2 = (k - 1)^2 mean |a|^2 / D
    a = _normal(80, 5)
    got = sliced_wasserstein(a, 1.5 * a, num_projections=4000)
    truth = 0.25 * float(a.square().sum(1).mean()) / 5
    assert abs(got.value - truth) < 4 * got.stderr and got.stderr < 0.02 * truth


def test_sliced_wasserstein_is_symmetric_zero_on_itself_and_takes_images():
    a, b = _normal(20, 1, 4, 4).float(), _normal(30, 1, 4, 4, seed=1).float()
    assert sliced_wasserstein(a, b).value == pytest.approx(sliced_wasserstein(b, a).value, rel=1e-12)
    assert sliced_wasserstein(a, b) == sliced_wasserstein(a.flatten(1), b.flatten(1))
    assert sliced_wasserstein(a, a[torch.randperm(20)]).value == 0
    assert sliced_wasserstein(a, b, seed=1) == sliced_wasserstein(a, b, seed=1)
    assert sliced_wasserstein(a, b, seed=1) != sliced_wasserstein(a, b, seed=2)


# standard errors


def test_jackknife_of_a_mean_is_its_textbook_standard_error():
    values = _normal(40, 1)
    got = block_jackknife(lambda x: float(x.mean()), values, num_blocks=40)
    assert got.value == pytest.approx(float(values.mean()))
    assert got.stderr == pytest.approx(float(values.std()) / math.sqrt(40), rel=1e-12)
    # blocks of 4, every tenth value: the standard error of the 10 block means
    means = values.reshape(4, 10).mean(0)
    got = block_jackknife(lambda x: float(x.mean()), values, num_blocks=10)
    assert got.stderr == pytest.approx(float(means.std()) / math.sqrt(10), rel=1e-12)


@pytest.mark.parametrize(
    ("measure", "shift"), [*one_each(["frechet"], [0.5, 0.0]), *one_each(["sliced"], [], slow=[0.0, 0.5])]
)
def test_jackknife_agrees_with_the_spread_over_new_samples(measure: str, shift: float):
    reference = _normal(600, 4, seed=999)
    statistic = {
        "frechet": lambda x: frechet_distance(x, reference),
        "sliced": lambda x: sliced_wasserstein(x, reference, num_projections=50).value,
    }[measure]
    draws = [_normal(120, 4, seed=seed) + shift for seed in range(200)]
    spread = np.std([statistic(draw) for draw in draws], ddof=1)
    claimed = np.mean([block_jackknife(statistic, draw, num_blocks=20).stderr for draw in draws[:25]])
    # at no distance the jackknife is cautious, as a distance has no slope there; never too small
    assert 0.85 < claimed / spread < (1.25 if shift else 1.9)


def test_groups_are_averaged_with_their_errors():
    values = _normal(60, 1)
    whole = block_jackknife(lambda x: float(x.mean()), values, num_blocks=20)
    grouped = grouped_estimate(lambda x: float(x.mean()), values, group_size=20, num_blocks=20)
    assert grouped.value == pytest.approx(whole.value)
    errors = [float(group.std()) / math.sqrt(20) for group in values.split(20)]
    assert grouped.stderr == pytest.approx(math.sqrt(sum(error**2 for error in errors)) / 3, rel=1e-12)


# the classifier


@pytest.fixture(scope="module")
def digits() -> tuple[ImageDataset, ImageDataset]:
    load = partial(load_dataset, "digits", root="unused")
    return load(split="train"), load(split="test")


@pytest.fixture(scope="module")
def trained(digits: tuple[ImageDataset, ImageDataset]) -> tuple[DigitClassifier, float]:
    return train_feature_classifier(*digits)


@pytest.mark.slow
def test_classifier_names_held_out_digits(
    trained: tuple[DigitClassifier, float], digits: tuple[ImageDataset, ImageDataset]
):
    classifier, accuracy = trained
    x = LevelSpace(17).encode(digits[1].images)
    assert accuracy > 0.95
    assert accuracy == pytest.approx(float((classifier(x).argmax(1) == digits[1].labels).double().mean()))
    torch.testing.assert_close(classifier(x), classifier.output(classifier.features(x)))
    assert classifier.features(x).shape == (360, 32) and not classifier.features(x).requires_grad


def test_training_the_classifier_is_deterministic_and_leaves_the_global_generator(
    digits: tuple[ImageDataset, ImageDataset],
):
    before = torch.get_rng_state()
    (first, _), (again, _), (other, _) = (
        train_feature_classifier(*digits, seed=seed, num_epochs=1) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])
    assert not torch.equal(first.output.weight, other.output.weight)


@pytest.mark.slow
def test_distances_rank_damage_and_put_held_out_digits_lowest(
    trained: tuple[DigitClassifier, float], digits: tuple[ImageDataset, ImageDataset]
):
    classifier, (train, test) = trained[0], digits
    reference, held_out = LevelSpace(17).encode(train.images), LevelSpace(17).encode(test.images)
    noise = _normal(*held_out.shape).float()
    damaged = [held_out, *(held_out + scale * noise for scale in (0.2, 0.4, 0.8))]
    without_ones = reference[train.labels != 1][:360]
    features = classifier.features(reference)
    for estimate in (
        lambda x: grouped_estimate(lambda f: frechet_distance(f, features), classifier.features(x), group_size=360),
        lambda x: grouped_estimate(
            lambda y: sliced_wasserstein(y, reference, num_projections=50).value, x, group_size=360
        ),
    ):
        values = [estimate(x) for x in damaged]
        assert values[0].value < values[1].value < values[2].value < values[3].value
        assert values[3].value > values[0].value + 8 * math.hypot(values[0].stderr, values[3].stderr)
        # a mode that is missing shows, though every image is a training image
        missing = estimate(without_ones)
        assert missing.value > values[0].value + 2 * math.hypot(values[0].stderr, missing.stderr)


# what is refused


@pytest.mark.parametrize("distance", [frechet_distance, sliced_wasserstein])
@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(5), torch.zeros(5, 2), r"first set must have shape \[N, D\] .* got \[5\]; pass one row a sample"),
        (torch.zeros(5, 2), torch.zeros(1, 2), r"second set must have shape .* at least 2, got \[1, 2\]"),
        (torch.zeros(5, 2), torch.zeros(5, 3), "one width, got 2 and 3; use the same features"),
        (torch.zeros(5, 0), torch.zeros(5, 0), r"got \[5, 0\]"),
        (torch.zeros(5, 2), torch.full((5, 2), math.nan), "second set must be finite, got 5 of 5 samples"),
        (torch.tensor([[0.0], [math.inf]]), torch.zeros(5, 1), "first set must be finite, got 1 of 2 samples"),
    ],
)
def test_bad_sets_are_refused_in_one_line(distance, a: Tensor, b: Tensor, message: str):
    with pytest.raises(ValueError, match=message) as error:
        distance(a, b)
    assert "\n" not in str(error.value) and ";" in str(error.value)


def test_frechet_refuses_images():
    with pytest.raises(ValueError, match=r"got \[5, 1, 8, 8\]; pass one row a sample"):
        frechet_distance(torch.zeros(5, 1, 8, 8), torch.zeros(5, 1, 8, 8))


def test_bad_numbers_are_refused_in_one_line(digits: tuple[ImageDataset, ImageDataset]):
    points = _normal(10, 2)
    with pytest.raises(ValueError, match="num_projections must be at least 1, got 0; try 500"):
        sliced_wasserstein(points, points, num_projections=0)
    for blocks in (1, 11):
        with pytest.raises(ValueError, match=rf"num_blocks must be 2 .. 10, .* got {blocks}; change it"):
            block_jackknife(lambda x: float(x.sum()), points, num_blocks=blocks)
    for size in (1, 4, 11):
        with pytest.raises(ValueError, match=f"groups of {size} without a rest, got 10; draw a multiple"):
            grouped_estimate(lambda x: float(x.sum()), points, group_size=size)
    other = ImageDataset(digits[1].images, digits[1].labels, 18, 10, "digits", "test")
    with pytest.raises(
        ValueError, match=r"held_out must have shape, levels and classes .* pass splits of one data set"
    ):
        train_feature_classifier(digits[0], other)
