"""An SDE that is a module: in models and their wrappers, and before every sampler and likelihood."""

import copy
import math

import pytest
import torch
from learned_schedules import perturbed
from score_samplers import OF_SCORES
from torch import nn

from likelihood import ContinuousBound, FlowLikelihood, VariationalBound
from models import (
    ClippedScoreModel,
    EpsParameterization,
    GaussianMixtureScoreModel,
    NetworkScoreModel,
    ThresholdedScoreModel,
    count_network_calls,
)
from samplers import make_sampler
from sde_lib import SDE, LearnedVP, NoiseStreams
from training.ema import ExponentialMovingAverage

MEAN = torch.tensor([0.4, -0.3], dtype=torch.float64)
COV = torch.tensor([[0.30, 0.12], [0.12, 0.20]], dtype=torch.float64)


class Plain(SDE):
    """The same alpha and sigma as any user would give them: no module, no closed form, no inverse."""

    t_min, prior_std = 0.0, 1.0

    def __init__(self, learned):
        self.learned = [copy.deepcopy(learned).requires_grad_(False)]

    def log_alpha(self, t):
        return self.learned[0].log_alpha(t)

    def log_sigma(self, t):
        return self.learned[0].log_sigma(t)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x, c_noise):
        return self.linear(torch.cat([x, c_noise[:, None].to(x)], 1))


def gaussian(sde):
    return GaussianMixtureScoreModel(sde, means=MEAN[None], covs=COV[None])


def network():
    return NetworkScoreModel(Network(), perturbed(LearnedVP(hidden_size=5)), EpsParameterization(time_input="edm"))


def test_a_model_has_the_parameters_of_its_schedule_once():
    model = network()
    names = {f"sde.{name}" for name in model.sde.state_dict()}
    assert {name for name in model.state_dict() if name.startswith("sde.")} == names and len(names) == 5
    for wrapper in (ClippedScoreModel(model), ThresholdedScoreModel(ClippedScoreModel(model))):
        assert len(list(wrapper.parameters())) == len(list(model.parameters())) == 7
        twin = copy.deepcopy(wrapper)
        assert twin.sde is twin.model.sde and twin.sde is not wrapper.sde
        twin.load_state_dict(wrapper.state_dict())
        # registered under two names, cast and moved once
        before = [parameter.clone() for parameter in twin.sde.parameters()]
        twin.half()
        assert all(torch.equal(a, b) for a, b in zip(before, twin.sde.parameters(), strict=True))
        with count_network_calls(wrapper) as counter:
            wrapper(torch.zeros(3, 2), torch.rand(3))
        assert counter.calls == 1


def test_a_loss_reaches_network_and_schedule_and_the_average_follows_both():
    model = network()
    average = ExponentialMovingAverage(model, decay=0.9)
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 16, 2, generator=generator)
    t = torch.rand(16, generator=generator, dtype=torch.float64)
    with model.sde.split_gradients() as split:
        error = (model(model.sde.perturb(x0, t, eps), t).eps - eps).double().square().sum(1)
        loss = -0.5 * model.sde.log_snr_and_rate(t)[1] * error
        split.loss = loss
    loss.mean().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype and (p.grad != 0).any() for p in model.parameters())
    torch.nn.utils.clip_grad_norm_(list(model.parameters()), 1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.step()
    average.update(model)
    for name, value in average.model.state_dict().items():
        now = model.state_dict()[name]
        assert value.dtype == now.dtype and not torch.equal(now, before[name])
        # the first update is with d = 1/10
        torch.testing.assert_close(value, before[name].lerp(now, 0.9))
    assert average.model.sde is not model.sde


def test_the_gradient_that_reaches_the_schedule_through_a_model_is_that_of_differences():
    model = network().double()
    x0, eps = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    with torch.no_grad():
        model.sde.gamma_min.fill_(-3.0)
        model.sde.gamma_max.fill_(2.0)

    def loss(*_):
        prediction = model(model.sde.perturb(x0, t, eps), t)
        return -0.5 * model.sde.log_snr_and_rate(t)[1] * (prediction.eps - eps).square().sum(1)

    assert torch.autograd.gradcheck(loss, tuple(model.sde.parameters()), atol=1e-6)


# one of them asks for sigma(0) as a number while gradients are recorded
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("name", OF_SCORES)
def test_every_sampler_takes_it_as_it_takes_alpha_and_sigma(name):
    sde = perturbed(LearnedVP())
    options: dict[str, object] = {
        "predictor_corrector": {"snr": 0.1},
        "annealed_langevin": {"steps_per_level": 5},
        "probability_flow": {"rtol": 1e-2, "atol": 1e-2},
    }.get(name, {})
    if name != "probability_flow":
        options |= {"num_steps": 6, "grid": "log_snr"}
    results = []
    for model in (gaussian(sde), gaussian(Plain(sde))):
        noise = NoiseStreams(3, range(5))
        x_T = model.sde.prior_sample((2,), noise).double()
        results.append(make_sampler(name, **options).sample(model, x_T, noise=noise).x0)
    assert not results[0].requires_grad
    torch.testing.assert_close(*results, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [pytest.param(LearnedVP, id="new"), pytest.param(lambda: perturbed(LearnedVP()), id="perturbed")],
)
def test_exact_likelihood_of_a_gaussian(build):
    """The ODE of a Gaussian is affine: log p(y_0) is that of the prior at the place where y_0 comes from."""
    sde = build()
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    with torch.no_grad():
        first, last = (-0.5 * sde.log_snr(ends)).exp().tolist()
        alpha = float(sde.alpha(ends[1:]))
    y = MEAN + torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    widths, axes = torch.linalg.eigh(COV)
    stretch = ((widths + last**2) / (widths + first**2)).sqrt()
    x_T = alpha * (MEAN + (y - MEAN) @ axes * stretch @ axes.mT)
    expected = 0.5 * x_T.square().sum(1) + math.log(2 * math.pi) - 2 * math.log(alpha) - stretch.log().sum()
    flow = FlowLikelihood(dequantization="none", divergence="exact", rtol=1e-8, atol=1e-8)
    terms = flow(gaussian(sde), y, noise=NoiseStreams(0, range(20)))
    assert not terms.total.requires_grad
    torch.testing.assert_close(terms.total, expected, rtol=0, atol=1e-6)


def bound_in_closed_form(x0, std, log_snr_ends):
    """1/2 integral over SNR of E|x0 - E[x0 | x_t]|^2 in one dimension of data N(0, std^2), as a function of x0."""

    def antiderivative(snr):
        power = 1 + std**2 * snr
        return 0.5 * (-x0.square() / (std**2 * power) + math.log(power) + 1 / power)

    low, high = sorted(math.exp(value) for value in log_snr_ends)
    return antiderivative(high) - antiderivative(low)


@pytest.mark.slow
def test_the_continuous_bound_of_a_gaussian_whatever_the_schedule():
    std, copies = 0.6, 800
    x0 = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).repeat_interleave(copies)[:, None]
    trained = perturbed(LearnedVP(log_snr_max=8.0))
    with torch.no_grad():
        trained.gamma_min.fill_(-8.0)
        trained.gamma_max.fill_(5.0)
    found = []
    for sde in (LearnedVP(log_snr_max=8.0), trained):
        model = GaussianMixtureScoreModel(
            sde, means=torch.zeros(1, 1), covs=torch.full((1, 1, 1), std**2, dtype=torch.float64)
        )
        terms = ContinuousBound(num_levels=3)(model, x0, noise=NoiseStreams(0, range(len(x0))))
        assert not terms.diffusion.requires_grad
        found.append(terms)
    # the same noise at the same log-SNR: the schedule has no say
    torch.testing.assert_close(found[1].diffusion, found[0].diffusion, rtol=1e-9, atol=0)
    torch.testing.assert_close(found[1].total, found[0].total, rtol=1e-9, atol=0)
    diffusion = found[0].diffusion.reshape(3, copies)
    expected = bound_in_closed_form(x0[::copies, 0], std, (8.0, -5.0))
    assert ((diffusion.mean(1) - expected).abs() < 4 * diffusion.std(1) / math.sqrt(copies)).all()
    assert (diffusion.std(1) / math.sqrt(copies) < 0.03 * expected).all()
    # KL of N(alpha x0, sigma^2) from N(0, 1)
    alpha_sq = 1 / (1 + math.exp(5.0))
    prior = 0.5 * (alpha_sq * x0[::copies, 0].square() - alpha_sq - math.log1p(-alpha_sq))
    torch.testing.assert_close(found[0].prior.reshape(3, copies), prior[:, None].expand(3, copies), rtol=1e-9, atol=0)


def test_the_bound_on_a_grid_is_that_of_alpha_and_sigma():
    sde = perturbed(LearnedVP())
    x0 = torch.tensor([[-1.0, 0.0], [1.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    totals = [
        VariationalBound(num_levels=3, num_steps=30, grid=grid)(gaussian(s), x0, noise=NoiseStreams(0, range(3))).total
        for s in (sde, Plain(sde))
        for grid in ("uniform", "log_snr")
    ]
    assert not totals[0].requires_grad
    torch.testing.assert_close(totals[:2], totals[2:], rtol=1e-9, atol=0)
    assert (totals[0] - totals[1]).abs().min() > 1e-3
