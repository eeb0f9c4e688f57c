"""Bits per dimension, and means with honest standard errors."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from likelihood import LikelihoodTerms, RunningMean, mean_and_stderr, nats_to_bits_per_dim


def test_uniform_grey_levels_cost_eight_bits():
    num_dims = 3 * 32 * 32
    nats = torch.tensor([num_dims * math.log(256)], dtype=torch.float64)
    torch.testing.assert_close(nats_to_bits_per_dim(nats, num_dims), torch.tensor([8.0]).double(), rtol=1e-15, atol=0)


def test_terms_add_up():
    prior, diffusion, reconstruction = torch.rand(3, 4, generator=torch.Generator().manual_seed(0)).double()
    terms = LikelihoodTerms(prior, diffusion, reconstruction, nfe=1, num_dims=5)
    assert torch.equal(terms.total, prior + diffusion + reconstruction)
    torch.testing.assert_close(terms.bits_per_dim, terms.total / 5 / math.log(2), rtol=1e-15, atol=0)


@pytest.mark.parametrize("sizes", [[7], [1, 1, 1], [3, 0, 50, 1, 20], [2, 1000, 5]])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_running_mean_is_numpys_on_uneven_batches(sizes, offset):
    values = np.random.default_rng(0).standard_normal(sum(sizes)) + offset
    running = RunningMean()
    for part in np.split(values, np.cumsum(sizes)[:-1]):
        running.update(torch.from_numpy(part))
    assert running.count == len(values)
    # a spread of 1 around 1e6 leaves 10 digits; a sum of squares would leave 4
    np.testing.assert_allclose(running.mean, values.mean(), rtol=1e-14)
    np.testing.assert_allclose(running.stderr, values.std(ddof=1) / math.sqrt(len(values)), rtol=1e-14 + 1e-15 * offset)
    assert mean_and_stderr(torch.from_numpy(values)) == pytest.approx((running.mean, running.stderr), rel=1e-9)


def test_running_mean_widens_float32():
    values = torch.full((1000,), 0.1)
    values[::2] = 1e4
    running = RunningMean()
    running.update(values)
    assert running.mean == pytest.approx(values.double().mean().item(), rel=1e-15)


def test_standard_error_needs_two_values():
    running = RunningMean()
    assert math.isnan(running.stderr)
    running.update(torch.tensor([3.0]))
    assert math.isnan(running.stderr)
    assert running.mean == 3
    running.update(torch.tensor([5.0]))
    assert (running.mean, running.stderr) == (4, 1)
    assert math.isnan(mean_and_stderr(torch.tensor([1.0]))[1])


def test_standard_error_covers():
    # mean / stderr of normal values is Student's t, so that the interval's coverage is known exactly
    repeats, size = 3000, 20
    draws = torch.randn(repeats, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covered = 0
    for row in draws:
        mean, stderr = mean_and_stderr(row + 2.0)
        covered += abs(mean - 2.0) < 1.96 * stderr
    exact = 1 - 2 * stats.t.sf(1.96, size - 1)
    assert abs(covered / repeats - exact) < 4 * math.sqrt(exact * (1 - exact) / repeats)
