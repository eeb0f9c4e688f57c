"""Steps whose error is counted in log-likelihood: score, slopes and error against closed forms; what they cost."""

import math

import pytest
import torch
from test_likelihood_flow import (
    COV,
    COVS,
    MEAN,
    MEANS,
    SDES,
    TIGHT,
    WEIGHTS,
    gaussian,
    law_of_the_gaussian_flow,
    mixture,
    noise_ratio,
    one,
    points,
)
from thinning import only
from torch.distributions import MultivariateNormal

from likelihood import FlowLikelihood
from likelihood.flow_steps import DivergenceSlope, LogDensityFlow
from models import CallCounter, FlowEquation, GaussianMixtureScoreModel, Prediction, ScoreModel
from sde_lib import VP, NoiseStreams, points_of


@pytest.mark.parametrize("name", only(("ve",), ["vp", "subvp", "ve"]))
@pytest.mark.slow
def test_the_error_falls_with_the_tolerance(name):
    sde, x = SDES[name], points()
    errors, calls = [], []
    for tolerance in (1e-4, 1e-6, 1e-8):
        flow = FlowLikelihood(dequantization="none", divergence="exact", rtol=tolerance, atol=tolerance)
        terms = flow(gaussian(sde), x, noise=NoiseStreams(0, range(len(x))))
        truth = MultivariateNormal(*law_of_the_gaussian_flow(sde, float(flow.noisy_times(sde)[0]))).log_prob(x)
        errors.append(float((-terms.total - truth).abs().max()) / 2)
        calls.append(terms.nfe)
        # no more than a step's error in each of them
        assert errors[-1] < terms.nfe * tolerance
    # of order three at least
    assert errors[2] < 0.1 * errors[1] < 1e-2 * errors[0]
    assert calls[2] < 10 * calls[0]


def slope_at(sde, model, t_end=None):
    t = sde.t_min if t_end is None else t_end
    ends = points_of(sde, torch.tensor([t, sde.t_max]).double())
    equation = FlowEquation(model, None, *ends, dtype=torch.float64, counter=CallCounter(), max_nfe=None)
    return LogDensityFlow(DivergenceSlope(equation, torch.Size([2]), None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SDES)
def test_the_scaled_flow_has_the_score_and_the_slopes_of_the_density_it_carries(name):
    """With p_r the data's density under noise r, all three by automatic differentiation of its closed form."""
    sde = SDES[name]
    flow = slope_at(sde, mixture(sde), 0.01)

    def log_p(x, u):
        """Of x = y / g."""
        r = u.exp()
        g = (1 + r**2).sqrt()
        parts = [
            MultivariateNormal(m, c).log_prob(g * x)
            for m, c in zip(MEANS, COVS + r**2 * torch.eye(2, dtype=torch.float64), strict=True)
        ]
        return torch.logsumexp(torch.stack(parts) + WEIGHTS.log()[:, None], 0) + 2 * g.log()

    for r in (0.2, 1.0, 5.0):
        u = torch.tensor(math.log(r), dtype=torch.float64, requires_grad=True)
        x = (points(6) / math.sqrt(1 + r**2)).requires_grad_()
        rates = flow.slope(u.detach().expand(6), torch.cat([x.detach(), x.new_zeros(6, 1)], 1), torch.arange(6))
        values = log_p(x, u)
        (score,) = torch.autograd.grad(values.sum(), x, retain_graph=True)
        assert torch.allclose(flow.score, score, rtol=1e-6, atol=1e-8)
        # along the ODE, d log p / du = -div dx/du: what l adds up
        passing = torch.stack([torch.autograd.grad(value, u, retain_graph=True)[0] for value in values])
        along = passing + (score * rates[:, :2]).sum(1)
        assert torch.allclose(along, -2 * rates[:, 2], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_a_steps_error_is_what_it_does_to_the_log_likelihood(name):
    """Of a Gaussian: moved by dx on the way, at a state (x, l), log p(x) + D l changes by score . dx + D dl."""
    sde = SDES[name]
    flow = slope_at(sde, gaussian(sde), 0.01)
    r = 0.4
    x = points(5) / math.sqrt(1 + r**2)
    flow.slope(torch.full((5,), r).double().log(), torch.cat([x, x.new_zeros(5, 1)], 1), torch.arange(5))
    density = MultivariateNormal(MEAN, COV + r**2 * torch.eye(2, dtype=torch.float64))
    torch.manual_seed(1)
    # along the contours of the density an error in x does nothing but by its size
    score = flow.score
    across = torch.stack([-score[:, 1], score[:, 0]], 1) / score.norm(dim=1, keepdim=True)
    for direction, moves in ((torch.randn(5, 2).double(), True), (across, False)):
        for i in range(5):
            difference = torch.zeros(5, 3, dtype=torch.float64)
            difference[i, :2] = 1e-6 * direction[i]
            difference[i, 2] = 2e-6 if moves else 0.0
            old = torch.zeros(5, 3, dtype=torch.float64)
            change = density.log_prob(math.sqrt(1 + r**2) * (x + difference[:, :2])) - density.log_prob(
                math.sqrt(1 + r**2) * x
            )
            nats = abs(float(change[i]) / 2 + float(difference[i, 2])) / 1e-5
            scatter = float(difference[i, :2].norm()) / 2 / 1e-5
            # of this sample alone
            error = flow.step_error(old, old, difference)
            assert float(error[i]) == pytest.approx(max(nats, scatter), rel=1e-3)
            assert int(error.count_nonzero()) == 1


class OfWidth(ScoreModel):
    """Gaussians whose standard deviation is the condition; narrow ones take more steps."""

    def forward(self, x_t, t, *, cond=None):
        alpha, sigma = (value[:, None] for value in self.sde.alpha_sigma(t))
        eps = sigma * x_t / (alpha**2 * cond[:, None] ** 2 + sigma**2)
        return Prediction(x0=x_t, eps=eps, sigma=self.sde.sigma(t))


def test_conditions_and_probes_stay_with_their_samples():
    sde, widths = VP(), torch.tensor([1.0, 0.02, 0.3, 1.0], dtype=torch.float64)
    model, x = OfWidth(sde), widths[:, None] * points(4)
    # the probes' divergence of a multiple of the identity is exact, by Rademacher's
    flow = FlowLikelihood(dequantization="none", num_probes=2, **TIGHT)
    terms = flow(model, x, cond=widths, noise=NoiseStreams(0, range(4)))
    first, last = noise_ratio(sde, sde.t_min), noise_ratio(sde, sde.t_max)
    scales = ((widths**2 + first**2) / (widths**2 + last**2)).sqrt() / float(sde.alpha(one(sde.t_max)))
    truth = torch.distributions.Normal(0.0, scales[:, None]).log_prob(x).sum(1)
    assert float((-terms.total - truth).abs().max()) / 2 < 1e-4
    calls = [flow(model, x[i : i + 1], cond=widths[i : i + 1], noise=NoiseStreams(0, [i])).nfe for i in range(4)]
    # they leave the batch at different times, the slowest last
    assert terms.nfe == max(calls) > 1.2 * min(calls)


class Rippling(ScoreModel):
    """A Gaussian's model with a ripple in t, as a network told sines of its time has, of an amplitude of 3e-3."""

    def __init__(self, model):
        super().__init__(model.sde)
        self.inner = model.forward

    def forward(self, x_t, t, *, cond=None):
        eps = self.inner(x_t, t, cond=cond).eps
        phases = torch.arange(8, dtype=torch.float64)
        ripple = 3e-3 * torch.sin(1000 * t[:, None] + phases) + 3e-3 * torch.sin(600 * t[:, None] + phases**2)
        eps = eps + ripple * torch.cos(x_t)
        return Prediction(x0=x_t, eps=eps, sigma=self.sde.sigma(t))


@pytest.mark.slow
def test_a_network_that_ripples_in_time_costs_fewer_calls_for_a_smaller_error():
    sde = VP()
    model = Rippling(GaussianMixtureScoreModel(sde, means=torch.zeros(1, 8), covs=torch.eye(8)[None] * 0.25))
    x = 0.5 * torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def measure(solver, tolerance):
        flow = FlowLikelihood(
            dequantization="none", solver=solver, t_end=1e-3, rtol=tolerance, atol=tolerance, max_nfe=100_000
        )
        terms = flow(model, x, noise=NoiseStreams(0, range(5)))
        return terms.total / 8, terms.nfe

    truth, _ = measure("scipy_dop853", 1e-7)
    ours, calls = measure("adams", 1e-5)
    theirs, their_calls = measure("dopri5", 1e-5)
    errors = [float((value - truth).square().mean().sqrt()) for value in (ours, theirs)]
    assert calls < 0.8 * their_calls
    assert errors[0] < 2e-4 and errors[0] < errors[1]
