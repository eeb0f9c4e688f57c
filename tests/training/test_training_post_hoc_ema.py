"""Averages of power-function profiles, and others made of them, against closed forms."""

import pytest
import torch
from torch import Tensor, nn

from training.ema import (
    WIDEST,
    PowerFunctionEMA,
    Profile,
    coefficients,
    gamma_of,
    profile_error,
    reconstruct,
    sigma_rel_of,
)

WIDTHS = (0.05, 0.10, 0.13, 0.20)


class _Weights(nn.Module):
    """A model that is one vector."""

    def __init__(self, size: int, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.full((size,), 7.0, dtype=dtype))

    def set(self, values: Tensor) -> None:
        with torch.no_grad():
            self.w.copy_(values)


def _averages(path: Tensor, widths: tuple[float, ...], every: int) -> dict[Profile, Tensor]:
    """The averages of weights [T, D] at every so many updates."""
    model = _Weights(path.shape[1], path.dtype)
    averages, found = [PowerFunctionEMA(model, width) for width in widths], {}
    for values in path:
        model.set(values)
        for average in averages:
            average.update(model)
            if average.num_updates % every == 0:
                found[Profile(average.sigma_rel, average.num_updates)] = average.weights["w"].clone()
    return found


def _density(profile: Profile, tau: Tensor) -> Tensor:
    gamma, end = gamma_of(profile.sigma_rel), profile.updates
    return torch.where(tau <= end, (gamma + 1) * (tau / end) ** gamma / end, 0.0)


@pytest.mark.parametrize("sigma_rel", [0.005, 0.05, 0.1, 0.13, 0.25, WIDEST])
def test_a_width_is_the_standard_deviation_of_its_profile(sigma_rel: float):
    gamma = gamma_of(sigma_rel)
    assert sigma_rel_of(gamma) == pytest.approx(sigma_rel, rel=1e-12)
    # moments of (gamma + 1) tau^gamma on [0, 1]
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert (square - mean**2) ** 0.5 == pytest.approx(sigma_rel, rel=1e-9)


def test_published_pairs_of_width_and_exponent():
    # Karras et al. 2024, Section 3.1
    assert gamma_of(0.05) == pytest.approx(16.97, abs=5e-3) and gamma_of(0.10) == pytest.approx(6.94, abs=5e-3)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.3, float("nan")])
def test_widths_out_of_range_are_refused(sigma_rel: float):
    with pytest.raises(ValueError, match=r"sigma_rel must lie in \(0, 0.2887\], .* got"):
        gamma_of(sigma_rel)


@pytest.mark.parametrize("power", [0, 1, 2.5])
@pytest.mark.parametrize("sigma_rel", [0.05, 0.2, WIDEST])
def test_the_average_of_a_power_of_t(sigma_rel: float, power: float):
    total = 2_000
    t = torch.arange(1, total + 1, dtype=torch.float64)
    found = _averages((t**power)[:, None], (sigma_rel,), total)[Profile(sigma_rel, total)]
    exponent = gamma_of(sigma_rel) + 1
    # beta(t) = (1 - 1/t)^(gamma + 1): the weights are the integrals of the profile over each step
    weights = (t**exponent - (t - 1) ** exponent) / total**exponent
    assert float(found) == pytest.approx(float(weights @ t**power), rel=1e-11)
    # and their sum is the integral of tau^k over the profile, up to the length of a step
    assert float(found) == pytest.approx(exponent / (exponent + power) * total**power, rel=power / total + 1e-12)


def test_nothing_of_the_beginning_is_left_after_the_first_update():
    model = _Weights(1)
    average = PowerFunctionEMA(model, 0.1)
    model.set(torch.tensor([3.0]))
    average.update(model)
    assert float(average.weights["w"]) == 3.0


@pytest.mark.parametrize(("sigma_rel", "most"), [(0.07, 1e-5), (0.13, 2e-5), (0.20, 2e-3)])
def test_a_width_that_nobody_tracked_from_closed_forms_alone(sigma_rel: float, most: float):
    tracked = [Profile(width, end) for width in (0.05, 0.10) for end in range(50, 1001, 50)]
    wanted = Profile(sigma_rel, 1000)
    x = coefficients(tracked, wanted)
    assert float(x.sum()) == pytest.approx(1, abs=1e-12)

    def moment(profile: Profile, k: float) -> float:
        gamma = gamma_of(profile.sigma_rel)
        return (gamma + 1) / (gamma + 1 + k) * (profile.updates / 1000) ** k

    for k in (0.0, 0.5, 1.0, 3.0):
        ours = sum(float(weight) * moment(one, k) for weight, one in zip(x, tracked, strict=True))
        assert ours == pytest.approx(moment(wanted, k), rel=most)


def test_the_error_of_a_profile_is_its_distance():
    tracked = [Profile(width, end) for width in (0.05, 0.10) for end in (250, 500, 750, 1000)]
    wanted = Profile(0.13, 1000)
    x = coefficients(tracked, wanted)
    tau = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200
    mixed = sum(weight * _density(one, tau) for weight, one in zip(x, tracked, strict=True))
    missed = (mixed - _density(wanted, tau)).square().mean() / _density(wanted, tau).square().mean()
    assert profile_error(tracked, wanted, x) == pytest.approx(float(missed.sqrt()), rel=1e-3)
    # it is the smallest among those whose coefficients add to 1
    for i in range(len(tracked) - 1):
        other = x.clone()
        other[i] += 1e-3
        other[i + 1] -= 1e-3
        assert profile_error(tracked, wanted, other) > profile_error(tracked, wanted, x)


def test_a_tracked_width_is_itself_also_when_it_is_there_twice():
    tracked = [Profile(0.05, 80), Profile(0.1, 80), Profile(0.05, 100), Profile(0.1, 100)]
    torch.testing.assert_close(coefficients(tracked, tracked[3]), torch.eye(4, dtype=torch.float64)[3])
    twice = coefficients([*tracked, tracked[3]], tracked[3])
    assert float(twice[3] + twice[4]) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("sigma_rel", "most"), [(0.13, 1e-4), (0.20, 1e-3)])
def test_a_tracked_third_width_is_reconstructed(sigma_rel: float, most: float):
    total, size, draw = 600, 64, torch.Generator().manual_seed(0)
    # weights that drift, wander and shake
    drift = torch.linspace(0, 1, total)[:, None] * torch.randn(size, generator=draw)
    wander = torch.randn(total, size, generator=draw).cumsum(0) / total**0.5
    path = 1 + drift + wander + 0.3 * torch.randn(total, size, generator=draw)
    found = _averages(path.float(), WIDTHS, 20)
    tracked = [profile for profile in found if profile.sigma_rel in WIDTHS[:2]]
    wanted = Profile(sigma_rel, total)
    ours = reconstruct(({"w": found[one]} for one in tracked), coefficients(tracked, wanted))["w"]
    error = torch.linalg.vector_norm(ours - found[wanted]) / torch.linalg.vector_norm(found[wanted])
    assert ours.dtype == torch.float32 and float(error) < most
    # not because all widths are nearly the same
    apart = torch.linalg.vector_norm(found[Profile(0.1, total)] - found[wanted])
    assert float(apart / torch.linalg.vector_norm(found[wanted])) > 30 * float(error)


def test_weights_that_stay_come_out_as_they_are():
    tracked = [Profile(width, end) for width in (0.05, 0.10) for end in (5, 10, 15, 20)]
    x = coefficients(tracked, Profile(0.2, 20))
    constant = torch.tensor([1e-8, 0.1, 1e6])
    assert torch.equal(reconstruct([{"w": constant}] * len(tracked), x)["w"], constant)
