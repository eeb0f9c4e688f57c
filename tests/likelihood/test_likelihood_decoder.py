"""The discretized Gaussian: its bins sum to one and are right to the last digits, in the far tails too."""

import math
import re

import mpmath
import numpy as np
import pytest
import torch
from thinning import one_in

from likelihood import VariationalBound, discretized_gaussian_log_prob, level_entropy, levels_of
from models import DiscreteScoreModel
from sde_lib import NoiseStreams, Tabulated

MEANS = [-50.0, -3.0, -1.0, -0.999, -0.3, 0.0, 1e-9, 0.5, 1.0, 1.0001, 2.5, 1000.0]
LOG_STDS = [-12.0, -7.5, -5.0, -2.0, 0.0, 1.0, 5.0]


def lattice(num_levels):
    return 2 * torch.arange(num_levels, dtype=torch.float64) / (num_levels - 1) - 1


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_bins_sum_to_one(num_levels):
    x = lattice(num_levels)[:, None, None]
    mean = torch.tensor(MEANS, dtype=torch.float64)[:, None]
    log_std = torch.tensor(LOG_STDS, dtype=torch.float64)
    shape = (num_levels, len(MEANS), len(LOG_STDS))
    log_prob = discretized_gaussian_log_prob(x.expand(shape), mean.expand(shape), log_std, num_levels=num_levels)
    total = log_prob.exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)
    assert log_prob.shape == shape
    assert log_prob.dtype == torch.float64


def exact_log_prob(level, mean, log_std, num_levels):
    """Differences of the tail that does not cancel, in as many digits as the tail needs."""
    with mpmath.workdps(60):
        center = mpmath.mpf(2 * level) / (num_levels - 1) - 1
        half = mpmath.mpf(1) / (num_levels - 1)
        std = mpmath.exp(mpmath.mpf(log_std))
        low, high = (center - half - mpmath.mpf(mean)) / std, (center + half - mpmath.mpf(mean)) / std

        def upper(z):
            return mpmath.erfc(z / mpmath.sqrt(2)) / 2

        if level == 0:
            mass = upper(-high)
        elif level == num_levels - 1:
            mass = upper(low)
        elif low + high > 0:
            mass = upper(low) - upper(high)
        else:
            mass = upper(-high) - upper(-low)
        return float(mpmath.log(mass))


@pytest.mark.parametrize("num_levels", [2, 17, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_bin_agrees_with_60_digits(num_levels, dtype):
    levels = sorted({0, 1, num_levels // 2, num_levels - 2, num_levels - 1})
    cases = [(k, m, s) for k in levels for m in MEANS for s in LOG_STDS]
    x = lattice(num_levels)[[k for k, _, _ in cases]].to(dtype)
    mean = torch.tensor([m for _, m, _ in cases], dtype=dtype)
    log_std = torch.tensor([s for _, _, s in cases], dtype=dtype)
    ours = discretized_gaussian_log_prob(x, mean, log_std, num_levels=num_levels).numpy()
    exact = np.array(
        [
            exact_log_prob(k, float(m), float(s), num_levels)
            for (k, _, _), m, s in zip(cases, mean, log_std, strict=True)
        ]
    )
    # float64 alone sets the error: the level, not x, places the bin, so that float32 data cost no digits. An end of the
    # bin, z = (edge - mean) / std, is off by dz, a few roundings; log Phi moves by up to (|z| + 1) dz, and the log of a
    # difference over a narrow bin by dz / width. The logs themselves are rounded, and their difference is divided by
    # its size, (|z| + 1) width, where that is below 1.
    eps, std = 2**-52, np.exp(log_std.double().numpy())
    center = 2 * np.array([k for k, _, _ in cases]) / (num_levels - 1) - 1
    offset, width = np.abs(mean.double().numpy() - center), 2 / (num_levels - 1) / std
    z = offset / std + width / 2 + 1
    dz = 2 * eps * ((2 + offset) / std + z)
    bound = dz * (z + 1 / width) + 4 * eps * (1 + np.abs(exact)) * (1 + 1 / np.minimum(1, z * width))
    np.testing.assert_array_less(np.abs(ours - exact), bound)


def test_float32_images_and_log_stds_that_broadcast():
    x = lattice(17).float().reshape(1, 1, 17, 1).expand(2, 1, 17, 3)
    mean = 0.3 * torch.randn(2, 1, 17, 3, generator=torch.Generator().manual_seed(0))
    log_std = torch.tensor([-1.0, -4.0]).reshape(2, 1, 1, 1)
    ours = discretized_gaussian_log_prob(x, mean, log_std, num_levels=17)
    for b in range(2):
        one = discretized_gaussian_log_prob(
            x[b].double(), mean[b].double(), log_std[b].double().expand(1, 17, 3), num_levels=17
        )
        assert torch.equal(ours[b], one)


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_levels_are_read_back(num_levels):
    k = torch.arange(num_levels)
    assert torch.equal(levels_of(lattice(num_levels), num_levels), k.double())
    assert torch.equal(levels_of(lattice(num_levels).float(), num_levels), k.double())
    # as data loaders scale it, in float32
    assert torch.equal(levels_of(2 * k.float() / (num_levels - 1) - 1, num_levels), k.double())


@pytest.mark.parametrize(
    ("x", "num_levels", "words"),
    [
        (lattice(256), 17, ["17 levels"]),
        (lattice(17), 256, ["256 levels"]),
        (torch.tensor([0.0, 0.011]), 17, ["17 levels"]),
        (lattice(17) + 0.02 / 16 * 1.1, 17, ["17 levels"]),
        (torch.tensor([0.0, 255.0]), 256, ["255"]),
        (torch.tensor([-1.0, 1.0 + 2 / 255]), 256, ["-1 to 1"]),
        (torch.tensor([-1.0 - 2 / 255]), 256, ["-1 to 1"]),
        (torch.tensor([0.0, float("nan")]), 3, ["nan"]),
        (torch.tensor([float("inf")]), 3, ["inf"]),
        (torch.zeros(2), 1, ["num_levels", "at least 2"]),
    ],
)
def test_data_off_the_lattice_are_refused(x, num_levels, words):
    with pytest.raises(ValueError) as caught:
        levels_of(x, num_levels)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    if num_levels > 1:
        with pytest.raises(ValueError, match=re.escape(str(caught.value))):
            discretized_gaussian_log_prob(x, x, torch.zeros(()), num_levels=num_levels)


def test_one_percent_of_a_bin_is_tolerated():
    x = lattice(17) + 0.009 * 2 / 16
    assert torch.equal(levels_of(x, 17), torch.arange(17).double())
    log_prob = discretized_gaussian_log_prob(x, x, torch.tensor(-2.0), num_levels=17)
    # the bin stays where the level puts it
    moved = discretized_gaussian_log_prob(lattice(17), x, torch.tensor(-2.0), num_levels=17)
    assert torch.equal(log_prob, moved)


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1.0, 3.0])
def test_entropy_of_two_levels_is_that_of_a_noisy_bit(ratio: float):
    # H(k | y) = E log2(1 + exp(-2 (1 + r z) / r^2)), by quadrature over z
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    bits = torch.nn.functional.softplus(-2 * (1 + ratio * z) / ratio**2) / math.log(2)
    assert level_entropy(ratio, 2) == pytest.approx(float(torch.trapezoid(density * bits, z)), abs=1e-6)


def test_entropy_of_levels_has_its_limits():
    # far below a level's width nothing is left open, far above the data's range everything is
    assert level_entropy(1e-4, 256) == 0
    assert level_entropy(1e4, 5) == pytest.approx(math.log2(5), abs=1e-6)
    # between them, away from the edges, noise of std r leaves log2(r sqrt(2 pi e) / spacing)
    wide = math.log2(0.01 * math.sqrt(2 * math.pi * math.e) / (2 / 8191))
    assert level_entropy(0.01, 8192) == pytest.approx(wide, abs=0.02)
    rising = [level_entropy(ratio, 17) for ratio in (0.01, 0.02, 0.05, 0.1, 0.5)]
    assert rising == sorted(rising)


@pytest.mark.parametrize(("beta_start", "num_levels"), one_in(3, [(2e-3, 17), (1e-4, 256), (2e-3, 64)]))
def test_no_l0_of_equally_likely_levels_is_below_their_entropy(beta_start: float, num_levels: int):
    sde = Tabulated.ddpm(beta_start=beta_start)
    points = torch.linspace(-1, 1, num_levels, dtype=torch.float64)[:, None]
    model = DiscreteScoreModel(sde, points=points, probs=torch.full((num_levels,), 1 / num_levels))
    x0 = model.sample_data(4000)
    bound = VariationalBound(num_levels=num_levels, steps_per_image=1)
    bits = bound(model, x0, noise=NoiseStreams(0, range(4000))).reconstruction / math.log(2)
    first = torch.full((1,), 1 / 1000, dtype=torch.float64)
    floor = level_entropy(float(sde.sigma(first) / sde.alpha(first)), num_levels)
    stderr = float(bits.std()) / math.sqrt(4000)
    # a Gaussian decoder around the exact mean is a little worse than the best there is
    assert floor - 3 * stderr < float(bits.mean()) < floor + 0.35
