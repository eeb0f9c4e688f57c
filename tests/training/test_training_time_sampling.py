from typing import Any

import pytest
import torch
from scipy.special import logit
from scipy.stats import norm

from sde_lib import SDE, VP, Tabulated
from training.losses import make_loss
from training.losses.step_sampling import LossHistory, check_step_sampling, spread


def _times(steps: list[int], table_size: int) -> torch.Tensor:
    """t of timesteps of a table."""
    return (torch.tensor(steps, dtype=torch.float64) + 1) / table_size


def test_timesteps_are_drawn_by_the_root_mean_square_of_their_last_losses():
    """Nichol & Dhariwal 2021, Eq. 18, by hand."""
    history = LossHistory(3, length=2, uniform_fraction=0.1)
    history.observe(_times([0, 1, 2, 0, 1], 3), torch.tensor([100.0, 3.0, 1.0, 3.0, 4.0]))
    assert not history.full
    torch.testing.assert_close(history.probabilities(), torch.full((3,), 1 / 3, dtype=torch.float64))
    history.observe(_times([2, 0], 3), torch.tensor([1.0, 4.0]))  # the 100 is forgotten
    assert history.full
    magnitude = torch.tensor([12.5**0.5, 12.5**0.5, 1.0], dtype=torch.float64)
    expected = 0.9 * magnitude / magnitude.sum() + 0.1 / 3
    torch.testing.assert_close(history.probabilities(), expected)
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    drawn = history.draw(u)
    steps, weight = (drawn.t * 3).round().long() - 1, drawn.weight
    torch.testing.assert_close(drawn.t, _times(steps.tolist(), 3), rtol=0, atol=0)
    torch.testing.assert_close(steps.bincount(minlength=3) / 100_000, expected, rtol=0, atol=2e-5, check_dtype=False)
    torch.testing.assert_close(weight, 1 / (3 * expected[steps]))
    assert float(weight.mean()) == pytest.approx(1, abs=1e-4)


def test_losses_that_are_not_finite_are_not_remembered_and_zeros_are_uniform():
    history = LossHistory(2, length=1)
    history.observe(_times([0, 1, 0], 2), torch.tensor([float("nan"), 0.0, float("inf")]))
    assert history.counts.tolist() == [0, 1]
    history.observe(_times([0], 2), torch.tensor([0.0]))
    assert history.full and history.probabilities().tolist() == [0.5, 0.5]


def test_spread_draws_are_one_in_each_share_of_the_unit_interval():
    u = torch.rand(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = spread(u)
    assert float(places[0]) == float(u[0])
    assert sorted((places * 7).long().tolist()) == list(range(7))
    steps = places.sort().values.diff()
    torch.testing.assert_close(steps, torch.full((6,), 1 / 7, dtype=torch.float64))


def test_unknown_time_sampling_lists_the_choices():
    with pytest.raises(ValueError, match="did you mean 'importance'"):
        check_step_sampling("importence")


@pytest.mark.parametrize(("name", "sde"), [("dsm", VP()), ("ddpm", Tabulated.ddpm())])
def test_logit_normal_times_have_the_quantiles_of_that_law_and_weight_one(name: str, sde: SDE):
    times = make_loss(name, sde=sde, parameterization="eps").time_sampler(sde, "logit_normal")
    drawn = times.draw(torch.full((100_000,), 0.5 / 100_000, dtype=torch.float64))
    assert torch.equal(drawn.weight, torch.ones(100_000, dtype=torch.float64))
    shares = torch.tensor([0.01, 0.1, 0.3, 0.5, 0.8, 0.99], dtype=torch.float64)
    found = torch.quantile(drawn.t, shares)
    u = (found - sde.t_min) / (sde.t_max - sde.t_min) if name == "dsm" else found - 0.5 / 1000
    # of a table one of its rows
    tolerance = 1e-4 if name == "dsm" else 0.02
    torch.testing.assert_close(torch.from_numpy(norm.cdf(logit(u.numpy()))), shares, rtol=0, atol=tolerance)
    assert sde.t_min <= float(drawn.t.min()) and float(drawn.t.max()) <= sde.t_max


@pytest.mark.parametrize(
    ("name", "options"),
    [("dsm", {"weighting": "likelihood"}), ("vlb", {"num_levels": 17}), ("vlb_continuous", {"num_levels": 17})],
)
def test_bounds_refuse_times_that_weight(name: str, options: dict[str, Any]):
    sde = Tabulated.ddpm() if name == "vlb" else VP()
    with pytest.raises(
        ValueError, match=f"^step sampling 'logit_normal' weights times, which loss '{name}' with weight"
    ):
        make_loss(name, sde=sde, parameterization="eps", **options).time_sampler(sde, "logit_normal")
