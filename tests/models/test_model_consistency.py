"""Consistency models: their boundary, what a trained network is as one, and the exact maps of 1-D mixtures."""

import math

import pytest
import torch
from torch import nn

from likelihood import make_likelihood
from models import (
    ConsistencyModel,
    EDMParameterization,
    EpsParameterization,
    GaussianMixtureScoreModel,
    NetworkScoreModel,
    Prediction,
    QuantileFlow,
    VParameterization,
)
from samplers import ProbabilityFlowSampler, make_sampler
from sde_lib import SDE, VE, VP, NoiseStreams, Tabulated, expand_like

SDES: list[SDE] = [VP(), VE(sigma_min=0.002, sigma_max=80.0), Tabulated.ddpm()]


class Backbone(nn.Module):
    """A function of both inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3).double()

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return self.layer(x).sin() + expand_like(c_noise.cos(), x)


def network(sde: SDE, parameterization: type = EpsParameterization) -> NetworkScoreModel:
    torch.manual_seed(0)
    return NetworkScoreModel(Backbone(), sde, parameterization())


@pytest.mark.parametrize("sde", SDES, ids=repr)
@pytest.mark.parametrize("parameterization", [EpsParameterization, VParameterization, EDMParameterization])
def test_at_the_boundary_the_map_is_the_identity_in_the_scale_of_data(sde: SDE, parameterization: type):
    x, t_end = torch.randn(4, 3, dtype=torch.float64), 0.3
    for end in (0.0, t_end):
        model = ConsistencyModel(network(sde, parameterization), t_end=end)
        t = torch.full((4,), end, dtype=torch.float64)
        assert torch.equal(model(x, t), x / sde.alpha(t)[:, None])


def test_with_edm_preconditioning_it_is_the_published_one():
    """c_skip and c_out of Song et al. 2023, Appendix C, on the raw output of the network."""
    sde, d, t_end = VE(sigma_min=0.002, sigma_max=80.0), 0.5, 0.2
    inner = network(sde, EDMParameterization)
    model = ConsistencyModel(inner, t_end=t_end, data_std=d)
    x, t = 3 * torch.randn(5, 3, dtype=torch.float64), torch.linspace(0.21, 1, 5, dtype=torch.float64)
    sigma, end = sde.sigma(t), float(sde.sigma(torch.tensor([t_end], dtype=torch.float64)))
    raw = inner.backbone(x / (sigma**2 + d**2).sqrt()[:, None], sigma.log() / 4)
    c_skip, c_out = d**2 / ((sigma - end) ** 2 + d**2), d * (sigma - end) / (sigma**2 + d**2).sqrt()
    torch.testing.assert_close(model(x, t), c_skip[:, None] * x + c_out[:, None] * raw, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sde", [VP(), Tabulated.ddpm()], ids=repr)
def test_where_the_map_ends_in_data_a_trained_network_begins_as_its_denoiser(sde: SDE):
    inner = network(sde)
    x, t = torch.randn(5, 3, dtype=torch.float64), torch.linspace(0.01, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(ConsistencyModel(inner)(x, t), inner(x, t).x0, rtol=1e-12, atol=1e-12)


def test_options_are_refused_in_one_line():
    with pytest.raises(ValueError, match=r"t_end must lie in \[0, t_max = 1\), got 1.0; 0 is the data"):
        ConsistencyModel(network(VP()), t_end=1.0)
    with pytest.raises(ValueError, match="data_std must be above 0, got 0"):
        ConsistencyModel(network(VP()), data_std=0)
    with pytest.raises(ValueError, match=r"t must have shape \[4\]"):
        ConsistencyModel(network(VP()))(torch.zeros(4, 3), torch.zeros(4, 1))


def mixture(sde: SDE, *, one: bool = False) -> GaussianMixtureScoreModel:
    means, stds, weights = (
        ([[0.4]], [0.7], [1.0]) if one else ([[-1.2], [0.3], [1.5]], [0.2, 0.4, 0.1], [0.3, 0.5, 0.2])
    )
    covs = torch.tensor(stds, dtype=torch.float64).square()[:, None, None]
    return GaussianMixtureScoreModel(sde, means=torch.tensor(means, dtype=torch.float64), covs=covs, weights=weights)


@pytest.mark.parametrize("sde", SDES, ids=repr)
def test_the_map_of_a_gaussian_moves_by_the_ratio_of_standard_deviations(sde: SDE):
    """f = m + sqrt((s^2 + r_end^2) / (s^2 + r^2)) (y - m), also far out in the tails."""
    for t_end in (0.0, 0.2):
        flow = QuantileFlow(mixture(sde, one=True), t_end=t_end)
        t = torch.linspace(t_end + 0.01, 1, 7, dtype=torch.float64)
        alpha, sigma = sde.alpha_sigma(t)
        z = torch.tensor([-9.0, -3.0, -0.1, 0.0, 1.0, 4.0, 8.0], dtype=torch.float64)
        std = (0.49 + (sigma / alpha).square()).sqrt()
        x_t = alpha * (0.4 + std * z)
        expected = 0.4 + math.sqrt(0.49 + flow.ratio_end**2) * z
        torch.testing.assert_close(flow(x_t[:, None], t)[:, 0], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("sde", [VP(), VE(sigma_min=0.002, sigma_max=80.0)], ids=repr)
def test_quantile_to_quantile_is_the_probability_flow(sde: SDE):
    t_end = 0.05
    model = mixture(sde)
    y = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    grid = torch.tensor([0.7, t_end], dtype=torch.float64)
    x = float(sde.alpha(grid[:1])) * y
    solver = ProbabilityFlowSampler(solver="dopri5", rtol=1e-11, atol=1e-11, grid=grid, denoise_final=False)
    followed = solver.decode(model, x).x
    mapped = QuantileFlow(model, t_end=t_end)(x, torch.full((9,), 0.7, dtype=torch.float64))
    torch.testing.assert_close(mapped, followed, rtol=1e-9, atol=1e-9)


def test_the_oracle_is_of_one_dimension_and_has_a_density():
    two = GaussianMixtureScoreModel(VP(), means=torch.zeros(1, 2), covs=torch.eye(2)[None])
    point = GaussianMixtureScoreModel(VP(), means=torch.zeros(1, 1), covs=torch.zeros(1, 1, 1))
    for wrong in (two, point):
        with pytest.raises(ValueError, match="the mixture must be of one dimension"):
            QuantileFlow(wrong)


def test_it_is_no_score_model_to_samplers_and_likelihoods():
    model, x = ConsistencyModel(network(VP())), torch.randn(2, 3, dtype=torch.float64)
    for name in ("ddim", "heun", "dpm_solver_pp", "ancestral", "probability_flow"):
        with pytest.raises(ValueError, match="got a ConsistencyModel, which is not a density"):
            make_sampler(name, num_steps=2).sample(model, x, noise=NoiseStreams(0, range(2)))  # pyright: ignore
    for name, options in (("ode", {"dequantization": "none"}), ("vlb_continuous", {"num_levels": 256})):
        with pytest.raises(ValueError, match="got a ConsistencyModel, which is not a density"):
            make_likelihood(name, **options)(model, x.sign())  # pyright: ignore


def test_a_prediction_of_the_same_answer_is_no_part_of_it():
    """The network inside is a score model still: its answer is what it was."""
    inner = network(VP())
    answer = ConsistencyModel(inner).network(torch.zeros(1, 3, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert isinstance(answer, Prediction)
