"""The kernel distance against a loop, closed forms of Gaussians, and repeated experiments."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.kernel_distance import kernel_distance


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _mean_kernel(a: Tensor, b: Tensor) -> float:
    """E (<x, y> / D + 1)^3 of independent x ~ N(a, I), y ~ N(b, I), by the moments of s = <x, y>.

    E s = <a, b>, Var s = |a|^2 + |b|^2 + D, and the third central moment is 6 <a, b>.
    """
    dim, c = len(a), float(a @ b)
    var = float(a @ a + b @ b) + dim
    second, third = c**2 + var, c**3 + 3 * c * var + 6 * c
    return 1 + 3 * c / dim + 3 * second / dim**2 + third / dim**3


def _by_loops(a: Tensor, b: Tensor) -> float:
    def mean(x: Tensor, y: Tensor, *, of_one_set: bool) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not of_one_set or i != j]
        return sum((float(x[i] @ y[j]) / x.shape[1] + 1) ** 3 for i, j in pairs) / len(pairs)

    return mean(a, a, of_one_set=True) + mean(b, b, of_one_set=True) - 2 * mean(a, b, of_one_set=False)


def test_it_is_its_definition_and_its_error_that_of_leaving_out_one_point(monkeypatch: pytest.MonkeyPatch):
    a, b = _normal(12, 3) + 0.3, _normal(17, 3, seed=1)
    got = kernel_distance(a, b)
    assert got.value == pytest.approx(_by_loops(a, b), rel=1e-12)
    left_out = [_by_loops(torch.cat([a[:i], a[i + 1 :]]), b) for i in range(12)]
    assert got.stderr == pytest.approx(math.sqrt(11 * np.var(left_out)), rel=1e-9)
    monkeypatch.setattr("evaluation.kernel_distance._CHUNK", 40)
    assert kernel_distance(a, b).value == pytest.approx(got.value, rel=1e-12)
    assert kernel_distance(b, a).value == pytest.approx(got.value, rel=1e-12)


@pytest.mark.parametrize("length", [0.0, 1.0])
def test_shifted_gaussians_have_the_distance_of_their_moments_at_any_size(length: float):
    shift = length * torch.tensor([0.6, -0.8, 0.0, 0.0], dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    truth = _mean_kernel(shift, shift) + _mean_kernel(zero, zero) - 2 * _mean_kernel(shift, zero)
    assert (truth == 0) if length == 0 else (truth > 0.5)
    for n, m in ((10, 30), (60, 40)):
        found = [kernel_distance(_normal(n, 4, seed=k) + shift, _normal(m, 4, seed=1000 + k)) for k in range(200)]
        values = np.array([one.value for one in found])
        assert abs(values.mean() - truth) < 3 * values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("length", [0.0, 0.8])
def test_its_error_is_the_spread_over_new_samples(length: float):
    reference = _normal(100, 3, seed=999)
    draws = [_normal(60, 3, seed=k) + length for k in range(200)]
    found = [kernel_distance(draw, reference) for draw in draws]
    spread = np.std([one.value for one in found], ddof=1)
    # cautious at no distance, where the mean discrepancy has no slope
    assert 0.85 < np.mean([one.stderr for one in found]) / spread < (1.2 if length else 1.7)
    # over draws of both sets: one law has 0, within the root of both squares
    pairs = [(draw, _normal(100, 3, seed=5000 + k) + length) for k, draw in enumerate(draws)]
    scores = [
        one.value / math.hypot(one.stderr, kernel_distance(b, a).stderr)
        for a, b in pairs
        for one in [kernel_distance(a, b)]
    ]
    assert 0.6 < np.std(scores) < 1.1


def test_few_or_bad_samples_are_refused_in_one_line():
    with pytest.raises(ValueError, match="first set must have 3 samples at least for a standard error, got 2; draw"):
        kernel_distance(_normal(2, 3), _normal(9, 3))
    with pytest.raises(ValueError, match="one width, got 3 and 2; use the same features"):
        kernel_distance(_normal(5, 3), _normal(9, 2))
