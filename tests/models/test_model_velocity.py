"""Velocity: its parameterization and its weighting on any SDE, flow matching among them, and models of flows."""

import math
from itertools import pairwise

import pytest
import torch
from score_samplers import OF_SCORES
from torch import Tensor, nn

from likelihood import ContinuousBound, FlowLikelihood, VariationalBound
from models import (
    GaussianMixtureScoreModel,
    Identity,
    NetworkScoreModel,
    PiGDMScoreModel,
    Prediction,
    RecomputedScoreModel,
    VelocityParameterization,
    make_parameterization,
    time_input,
)
from samplers import DDIMSampler, HeunSampler, make_sampler
from sde_lib import VE, VP, CosineVP, NoiseStreams, RectifiedFlow, SubVP, Tabulated, make_grid
from training.losses import weighted_error

SDES = {
    "rectified flow": RectifiedFlow(),
    "shifted": RectifiedFlow(shift=3.0),
    "vp": VP(),
    "cosine": CosineVP(),
    "subvp": SubVP(),
    "ve": VE(),
    "ddpm": Tabulated.ddpm(),
}


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Said(nn.Module):
    """A network whose output is given."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.output


class ExactVelocity(nn.Module):
    """The velocity of an exact model of an SDE without table."""

    def __init__(self, exact: GaussianMixtureScoreModel) -> None:
        super().__init__()
        self.exact = [exact]

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        (exact,), t = self.exact, c_noise / 999
        alpha_rate, sigma_rate = exact.sde.rates(t)
        prediction = exact(x, t)
        return alpha_rate[:, None] * prediction.x0 + sigma_rate[:, None] * prediction.eps


def mixture(sde: RectifiedFlow | VP) -> GaussianMixtureScoreModel:
    means = doubles(-0.8, 0.3, 0.6, -0.4).view(2, 2)
    covs = 0.04 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    return GaussianMixtureScoreModel(sde, means=means, covs=covs, weights=doubles(0.35, 0.65))


@pytest.mark.parametrize("name", SDES)
def test_rates_are_derivatives(name: str):
    sde, h = SDES[name], 1e-6
    t = doubles(0.0501, 0.3203, 0.7707, 0.95011)  # off the rows of the table
    for rate, function in zip(sde.rates(t), (sde.alpha, sde.sigma), strict=True):
        differences = (function(t + h) - function(t - h)) / (2 * h)
        torch.testing.assert_close(rate, differences, rtol=1e-4 if name == "ddpm" else 1e-6, atol=1e-8)


@pytest.mark.parametrize("towards_data", [False, True])
@pytest.mark.parametrize("name", SDES)
def test_a_velocity_is_read_as_the_x0_and_eps_that_it_was_made_of(name: str, towards_data: bool):
    sde = SDES[name]
    t = doubles(max(sde.t_min, 1e-3), 0.3, 0.7, sde.t_max)
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(4, 3, dtype=torch.float64, generator=generator) for _ in range(2))
    alpha_rate, sigma_rate = sde.rates(t)
    u = alpha_rate[:, None] * x0 + sigma_rate[:, None] * eps
    parameterization = VelocityParameterization(towards_data=towards_data)
    model = NetworkScoreModel(Said(-u if towards_data else u), sde, parameterization)
    prediction = model(sde.perturb(x0, t, eps), t)
    torch.testing.assert_close(prediction.x0, x0, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(prediction.eps, eps, rtol=1e-8, atol=1e-8)


def test_a_rectified_flow_is_regular_at_both_ends():
    """x0 = x - t u and eps = x + (1 - t) u, in float32, at t = 0 and t = 1 too."""
    t, x, u = doubles(0.0, 1e-7, 1 - 1e-7, 1.0), torch.randn(4, 3), torch.randn(4, 3)
    prediction = NetworkScoreModel(Said(u), RectifiedFlow(), VelocityParameterization())(x, t)
    torch.testing.assert_close(prediction.x0, (x - t[:, None] * u).float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(prediction.eps, (x + (1 - t[:, None]) * u).float(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"), [("t", 0.2), ("t1000", 200.0), ("reversed_t", 0.8), ("reversed_t999", 999 * 0.8)]
)
def test_time_inputs_of_published_flows(name, expected: float):
    assert float(time_input(name, RectifiedFlow(), doubles(0.2))) == pytest.approx(expected, rel=1e-14)


def integral(values: Tensor, over: Tensor) -> float:
    return float(torch.trapezoid(values, over))


def test_flow_matching_weights_errors_in_eps_by_half_the_noise_ratio():
    """int |u err|^2 dt = 1/2 int exp(-lambda / 2) |eps err|^2 d lambda (Kingma & Gao 2023, Appendix D.3)."""
    sde = RectifiedFlow()
    t = torch.linspace(0.01, 0.99, 400_001, dtype=torch.float64)
    zero, wrong = torch.zeros(len(t), 1, dtype=torch.float64), (1 + t.sin() - t**2)[:, None]
    alpha, sigma = sde.alpha_sigma(t)
    prediction = Prediction.from_eps(zero, wrong, alpha=alpha, sigma=sigma)
    by_t = integral(weighted_error("velocity", prediction, zero, zero, sde=sde, t=t, data_std=0.5), t)
    log_snr = sde.log_snr(t)
    by_log_snr = -0.5 * integral((-0.5 * log_snr).exp() * wrong[:, 0].square(), log_snr)
    assert by_t == pytest.approx(by_log_snr, rel=1e-6)


def test_the_weighting_of_v_on_the_cosine_schedule_is_flow_matchings_up_to_two_over_pi():
    """Both weight |eps err|^2 d lambda by exp(-lambda / 2) (Kingma & Gao 2023, Appendix D.3)."""
    flow, cosine = RectifiedFlow(), CosineVP(s=0.0)
    log_snr = doubles(-6.0, -1.0, 0.0, 2.0, 7.0)
    per_log_snr = {}
    for name, sde in (("velocity", flow), ("v", cosine)):
        t = sde.time_from_log_snr(log_snr)
        alpha, sigma = sde.alpha_sigma(t)
        zero = torch.zeros(len(t), 1, dtype=torch.float64)
        prediction = Prediction.from_eps(zero, zero + 1, alpha=alpha, sigma=sigma)
        error = weighted_error(name, prediction, zero, zero, sde=sde, t=t, data_std=0.5)
        per_log_snr[name] = error * sde.sigma(t).square() / sde.diffusion_sq(t)  # dt / d lambda
    torch.testing.assert_close(per_log_snr["velocity"], 0.5 * (-0.5 * log_snr).exp(), rtol=1e-9, atol=0)
    torch.testing.assert_close(per_log_snr["v"], per_log_snr["velocity"] * 2 / math.pi, rtol=1e-9, atol=0)


def test_eulers_method_on_the_velocity_is_ddim():
    sde = RectifiedFlow()
    exact = mixture(sde)
    x = NoiseStreams(0, range(50)).normal((2,)).double()
    ddim = DDIMSampler(num_steps=10).sample(exact, x).x0
    times = make_grid("uniform", sde, 10)
    velocity = ExactVelocity(exact)
    for t, s in pairwise(times):
        x = x + (s - t) * velocity(x, 999 * t.expand(50))
    torch.testing.assert_close(ddim, x, rtol=1e-12, atol=1e-12)


def test_heun_in_t_is_of_order_two_and_better_than_in_the_noise_ratio():
    sde = RectifiedFlow()
    model = GaussianMixtureScoreModel(sde, means=doubles(0.7, -0.4).view(1, 2), covs=0.3 * torch.eye(2).double()[None])
    x_T = NoiseStreams(0, range(20)).normal((2,)).double()
    # the flow of a Gaussian: the standard score of x stays
    end = torch.linspace(sde.t_max, 0.01, 2, dtype=torch.float64)
    alpha, sigma = sde.alpha_sigma(end)
    spread, mean = (alpha**2 * 0.3 + sigma**2).sqrt(), doubles(0.7, -0.4)
    truth = alpha[1] * mean + spread[1] / spread[0] * (x_T - alpha[0] * mean)

    def error(variable: str, num_steps: int) -> float:
        grid = torch.linspace(sde.t_max, 0.01, num_steps + 1, dtype=torch.float64)
        sampler = make_sampler("heun", variable=variable, grid=grid, denoise_final=False)
        return float((sampler.sample(model, x_T).x0 - truth).abs().max())

    assert error("t", 80) / error("t", 160) == pytest.approx(4, rel=0.2)
    assert 10 * error("t", 20) < error("noise_ratio", 20)
    with pytest.raises(ValueError, match="unknown variable 'sigma'; choices: noise_ratio, t"):
        HeunSampler(num_steps=3, variable="sigma")  # pyright: ignore[reportArgumentType]


def test_the_flows_likelihood_is_exact():
    sde = RectifiedFlow()
    model = NetworkScoreModel(ExactVelocity(mixture(sde)), sde, make_parameterization("velocity"), answers="flow")
    x0 = doubles(-0.8, 0.2, 0.5, -0.5, 0.0, 0.0).view(3, 2)
    terms = FlowLikelihood(dequantization="none", divergence="exact", rtol=1e-7, atol=1e-7)(model, x0)
    components = [
        math.log(weight) - 0.5 * ((x0 - mean) ** 2).sum(1) / (0.04 + r) - math.log(2 * math.pi * (0.04 + r))
        for r in [(sde.t_min / (1 - sde.t_min)) ** 2]  # the flow ends with this noise
        for weight, mean in ((0.35, doubles(-0.8, 0.3)), (0.65, doubles(0.6, -0.4)))
    ]
    # at t_max alpha is 1e-4, by which the prior is off
    torch.testing.assert_close(terms.total, -torch.logsumexp(torch.stack(components), 0), rtol=0, atol=5e-4)


def flow_model() -> NetworkScoreModel:
    sde = RectifiedFlow()
    return NetworkScoreModel(ExactVelocity(mixture(sde)), sde, make_parameterization("velocity"), answers="flow")


FOLLOW = {"ddim", "heun", "dpm_solver_pp", "unipc", "probability_flow"}


@pytest.mark.parametrize("name", OF_SCORES)
def test_samplers_refuse_a_flow_unless_they_follow_it(name: str):
    sampler = make_sampler(name, num_steps=2)
    x_T = NoiseStreams(0, range(2)).normal((2,)).double()
    if name in FOLLOW:
        assert sampler.sample(flow_model(), x_T).x0.shape == (2, 2)
        return
    with pytest.raises(ValueError, match="needs a model that predicts posterior means") as error:
        sampler.sample(RecomputedScoreModel(flow_model()), x_T)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "use",
    [
        lambda: make_sampler("ddim", num_steps=2, eta=0.5).sample(flow_model(), torch.zeros(1, 2)),
        lambda: make_sampler("heun", num_steps=2, churn=1.0).sample(flow_model(), torch.zeros(1, 2)),
        lambda: make_sampler("dpm_solver_pp", num_steps=2, stochastic=True).sample(flow_model(), torch.zeros(1, 2)),
        lambda: ContinuousBound(num_levels=None)(flow_model(), torch.zeros(1, 2)),
        lambda: VariationalBound(num_levels=3)(flow_model(), torch.zeros(1, 2)),
        lambda: PiGDMScoreModel(flow_model(), Identity((2,)), noise_std=0.1),
        lambda: flow_model().score(torch.zeros(1, 2), doubles(0.5)),
        lambda: flow_model().with_backbone(Said(torch.zeros(1, 2))).score(torch.zeros(1, 2), doubles(0.5)),
    ],
    ids=["eta", "churn", "stochastic", "continuous bound", "variational bound", "posterior", "score", "copy"],
)
def test_what_needs_posterior_means_refuses_a_flow(use):
    with pytest.raises(ValueError, match="needs a model that predicts posterior means"):
        use()
