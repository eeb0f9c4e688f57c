"""Noise streams: stream k is the same whatever batch it is drawn in, and it is noise."""

import numpy as np
import pytest
import torch
from scipy import stats

from sde_lib import NoiseStreams, derive_seed

SHAPE = (3, 5)


@pytest.mark.parametrize("method", ["normal", "uniform"])
def test_a_stream_does_not_know_its_batch(method):
    def draws(indices, count=3):
        streams = NoiseStreams(7, indices)
        return torch.stack([getattr(streams, method)(SHAPE) for _ in range(count)], 1)

    whole = draws(range(6))
    assert torch.equal(torch.cat([draws(range(2)), draws(range(2, 6))]), whole)
    order = [4, 0, 5, 2]
    assert torch.equal(draws(order), whole[order])
    assert torch.equal(draws([3]), whole[3:4])


def test_streams_of_mixed_draws_stay_in_step():
    whole, part = NoiseStreams(1, range(4)), NoiseStreams(1, [2])
    for shape in [(), (7,), (2, 3, 4), (64, 64)]:
        assert torch.equal(whole.normal(shape)[2:3], part.normal(shape))
        assert torch.equal(whole.uniform(shape)[2:3], part.uniform(shape))


def test_seeds_and_indices_that_differ_give_other_noise():
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (2**32, 0), (2**32 + 1, 0), (0, 2**32), (5, 7), (7, 5), (5 + 7 * 2**32, 0)]
    draws = {tuple(NoiseStreams(seed, [index]).normal((4,))[0].tolist()) for seed, index in keys}
    assert len(draws) == len(keys)
    keys += [(0,), (1,), (1, 0, 0)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


def test_derived_seeds_are_repeatable_63_bit_numbers():
    seeds = [derive_seed(3, k) for k in range(2000)]
    assert seeds == [derive_seed(3, k) for k in range(2000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({seed % 2**32 for seed in seeds}) > 1995
    bits = np.array([[seed >> b & 1 for b in range(63)] for seed in seeds]).mean(0)
    assert np.abs(bits - 0.5).max() < 5 * 0.5 / np.sqrt(2000)


def test_normal_draws_are_normal_and_independent():
    x = NoiseStreams(11, range(16)).normal((50, 50)).double().flatten(1)
    count = x.numel()
    assert abs(x.mean().item()) < 4 / count**0.5
    assert abs(x.var().item() - 1) < 4 * (2 / count) ** 0.5
    assert stats.kstest(x.flatten().numpy(), stats.norm.cdf).pvalue > 1e-3
    correlation = torch.corrcoef(x) - torch.eye(16)
    assert correlation.abs().max().item() < 5 / x.shape[1] ** 0.5
    # successive draws of one stream are independent as well
    streams = NoiseStreams(11, [0])
    pair = torch.cat([streams.normal((4000,)), streams.normal((4000,))])
    assert abs(torch.corrcoef(pair)[0, 1].item()) < 5 / 4000**0.5


def test_uniform_draws_are_uniform_below_one():
    u = NoiseStreams(12, range(16)).uniform((50, 50))
    assert u.dtype == torch.float32
    assert u.min().item() >= 0
    assert u.max().item() < 1
    assert stats.kstest(u.flatten().numpy(), stats.uniform.cdf).pvalue > 1e-3
    assert NoiseStreams(12, range(3)).uniform().shape == (3,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_normal_like_has_the_shape_and_dtype(dtype):
    x = torch.zeros(2, 3, 4, dtype=dtype)
    drawn = NoiseStreams(5, range(2)).normal_like(x)
    assert drawn.dtype == dtype
    assert torch.equal(drawn, NoiseStreams(5, range(2)).normal((3, 4)).to(dtype))


def test_a_batch_of_another_size_is_refused():
    with pytest.raises(ValueError, match="noise has 3 streams, got a batch of 4; make one stream a sample"):
        NoiseStreams(0, range(3)).normal_like(torch.zeros(4, 2))


def test_negative_seeds_are_refused():
    with pytest.raises(ValueError, match="pass non-negative integers"):
        NoiseStreams(-1, range(2))
    with pytest.raises(ValueError, match="pass non-negative integers"):
        derive_seed(0, -1)


def test_fresh_streams_follow_the_global_generator():
    torch.manual_seed(0)
    first, second = NoiseStreams.fresh(3).normal((4,)), NoiseStreams.fresh(3).normal((4,))
    torch.manual_seed(0)
    assert torch.equal(NoiseStreams.fresh(3).normal((4,)), first)
    assert not torch.equal(first, second)


def test_drawing_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    NoiseStreams(0, range(5)).normal((10,))
    assert torch.equal(torch.rand(3), expected)


def test_the_length_is_the_batch():
    streams = NoiseStreams(0, [3, 9])
    assert len(streams) == 2
    assert streams.indices == [3, 9]
    assert NoiseStreams(0, []).normal((2,)).shape == (0, 2)
