"""Precision, recall, density and coverage against loops, closed forms and repeated experiments."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.nearest import Neighbourhoods, coverage, coverage_of_one_law, density, precision, recall
from evaluation.quality import block_jackknife, grouped_estimate


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _modes(which: range, each: int, *, seed: int) -> Tensor:
    """Small Gaussians about the corners of an octagon, far from each other."""
    angle = 2 * math.pi * torch.tensor(list(which), dtype=torch.float64).repeat_interleave(each) / 8
    return 10 * torch.stack([angle.cos(), angle.sin()], 1) + 0.3 * _normal(len(angle), 2, seed=seed)


def _all(features: Tensor, reference: Neighbourhoods) -> tuple[float, float, float, float]:
    found = precision(features, reference).value, recall(features, reference)
    return *found, density(features, reference).value, coverage(features, reference)


def _by_loops(samples: Tensor, real: Tensor, k: int) -> tuple[float, float, float, float]:
    """The papers' definitions, a pair of points at a time."""

    def radius(points: Tensor, i: int) -> float:
        return sorted(math.dist(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    around_real = [radius(real, i) for i in range(len(real))]
    around_samples = [radius(samples, j) for j in range(len(samples))]
    gap = [[math.dist(x, y) for y in samples] for x in real]
    n, m = len(samples), len(real)
    inside = [[gap[i][j] <= around_real[i] for j in range(n)] for i in range(m)]
    return (
        sum(any(inside[i][j] for i in range(m)) for j in range(n)) / n,
        sum(any(gap[i][j] <= around_samples[j] for j in range(n)) for i in range(m)) / m,
        sum(map(sum, inside)) / (k * n),
        sum(map(any, inside)) / m,
    )


@pytest.mark.parametrize(("k", "n", "m"), [(1, 30, 40), (3, 40, 25), (5, 17, 60)])
def test_all_four_are_their_definitions(k: int, n: int, m: int):
    samples, real = 0.8 * _normal(n, 3) + 0.4, _normal(m, 3, seed=1)
    truth = _by_loops(samples, real, k)
    assert _all(samples, Neighbourhoods(real, num_neighbours=k)) == pytest.approx(truth, rel=1e-12)
    assert min(truth) > 0 and min(truth[:2]) < 1


def test_pieces_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch):
    samples, real = _normal(50, 2), _normal(70, 2, seed=1)
    whole = _all(samples, Neighbourhoods(real))
    monkeypatch.setattr("evaluation.nearest._CHUNK", 150)
    assert _all(samples, Neighbourhoods(real)) == whole


def test_equal_sets_cover_each_other_and_far_ones_do_not():
    points = _normal(40, 3)
    assert _all(points, Neighbourhoods(points)) == (1, 1, pytest.approx(6 / 5), 1)  # each ball: k others and its own
    assert _all(points + 100, Neighbourhoods(points)) == (0, 0, 0, 0)
    # grey levels make equal points, whose balls are points themselves
    equal = points.repeat_interleave(7, 0)
    assert _all(equal, Neighbourhoods(equal))[:2] == (1, 1)


def test_one_law_has_density_1_and_the_coverage_of_its_sizes_whatever_it_is():
    # Cauchy's law, which has no moments
    n, m, k = 40, 60, 3
    found = []
    for seed in range(300):
        points = _normal(n + m, 2, seed=seed) / _normal(n + m, 2, seed=1000 + seed)
        reference = Neighbourhoods(points[n:], num_neighbours=k)
        found.append((density(points[:n], reference).value, coverage(points[:n], reference)))
    means, errors = np.mean(found, 0), np.std(found, 0) / math.sqrt(len(found))
    truth = np.array([1, coverage_of_one_law(n, m, num_neighbours=k)])
    assert (np.abs(means - truth) < 3 * errors).all() and (errors < 0.02).all()
    # by its own definition: the k nearest of a point's n + m - 1 others are all of the reference
    none = math.prod((m - 1 - i) / (n + m - 1 - i) for i in range(k))
    assert truth[1] == pytest.approx(1 - none, rel=1e-12)
    # of many points 1 - 2^-k, which Naeem et al. choose k by
    assert coverage_of_one_law(10**5, 10**5, num_neighbours=5) == pytest.approx(1 - 2**-5, abs=1e-5)


def test_modes_that_are_dropped_show_in_recall_and_coverage_alone():
    n, each, k = 240, 45, 5
    found, whole = [], []
    for seed in range(30):
        reference = Neighbourhoods(_modes(range(8), each, seed=seed), num_neighbours=k)
        found.append(_all(_modes(range(4), n // 4, seed=100 + seed), reference))
        whole.append(_all(_modes(range(8), n // 8, seed=200 + seed), reference))
    (p, r, d, c), (p_whole, r_whole, *_) = np.mean(found, 0), np.mean(whole, 0)
    errors = np.std(found, 0) / math.sqrt(len(found))
    assert p == pytest.approx(p_whole, abs=0.02) and p > 0.9
    # four modes as dense as all of n samples in one half of the modes are
    assert 0.45 < r <= 0.5 and r_whole > 0.9
    assert abs(d - 1) < 3 * errors[2]
    # a mode's reference points meet the samples of that mode alone
    assert abs(c - 0.5 * coverage_of_one_law(n // 4, each, num_neighbours=k)) < 3 * errors[3]


def test_noise_about_the_data_shows_in_precision_alone():
    # half of the samples are far away: the others as before
    reference = Neighbourhoods(_normal(300, 2))
    good, far = _normal(300, 2, seed=1), 50 + _normal(300, 2, seed=2)
    before, after = _all(good, reference), _all(torch.cat([good, far]), reference)
    assert after == (before[0] / 2, before[1], before[2] / 2, before[3])


def test_one_stray_sample_fools_recall_but_not_coverage():
    # data at 0 and at 10, samples at 0 and one at 14: its ball reaches to 0, over all that is at 10
    data = torch.cat([_normal(100, 2), _normal(100, 2, seed=1) + torch.tensor([10.0, 0.0])])
    stray = torch.tensor([[14.0, 0.0]], dtype=torch.float64)
    samples, reference = _normal(199, 2, seed=2), Neighbourhoods(data)
    for drawn, found in ((samples, 0.5), (torch.cat([samples, stray]), 1.0)):
        assert recall(drawn, reference) == pytest.approx(found, abs=0.02)
        assert coverage(drawn, reference) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_standard_errors_are_the_spread_over_new_samples(shift: float):
    reference = Neighbourhoods(_normal(150, 3, seed=999))
    draws = [_normal(100, 3, seed=seed) + shift for seed in range(150)]
    for measure in (precision, density):
        found = [measure(draw, reference) for draw in draws]
        spread = np.std([one.value for one in found], ddof=1)
        # in the mean square, which is what has no bias where few samples are outside
        assert 0.85 < math.sqrt(np.mean([one.stderr**2 for one in found])) / spread < 1.2, measure
    for measure in (recall, coverage):
        spread = np.std([measure(draw, reference) for draw in draws], ddof=1)
        claimed = [block_jackknife(lambda x, of=measure: of(x, reference), d, num_blocks=20) for d in draws[:20]]
        # Efron and Stein 1981: cautious, where it is not exact
        assert 0.85 < math.sqrt(np.mean([one.stderr**2 for one in claimed])) / spread < 1.6, measure


def test_coverage_grows_with_the_samples_and_groups_of_one_size_have_that_of_their_size():
    reference = Neighbourhoods(_normal(400, 2))
    samples = _normal(900, 2, seed=1)
    got = grouped_estimate(lambda x: coverage(x, reference), samples, group_size=90, num_blocks=18)
    assert abs(got.value - coverage_of_one_law(90, 400)) < 3 * got.stderr < 0.1
    assert coverage(samples, reference) > 0.9 > coverage_of_one_law(90, 400) + 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Neighbourhoods(torch.zeros(5)), r"reference set must have shape \[N, D\] .* got \[5\]; pass one row"),
        (lambda: Neighbourhoods(_normal(5, 2)), "must be 1 .. 4, one less than the points, got 5; change it, or give"),
        (lambda: Neighbourhoods(_normal(5, 2), num_neighbours=0), "must be 1 .. 4, .* got 0; change it"),
        (lambda: precision(_normal(5, 3), Neighbourhoods(_normal(9, 2))), "one width, got 3 and 2; use the same"),
        (lambda: coverage(torch.full((5, 2), math.nan), Neighbourhoods(_normal(9, 2))), "got 5 of 5 samples that are"),
        (lambda: recall(_normal(5, 2), Neighbourhoods(_normal(9, 2))), "must be 1 .. 4, .* got 5; .* more points"),
    ],
)
def test_bad_sets_are_refused_in_one_line(call: Callable[[], object], message: str):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value) and ";" in str(error.value)
