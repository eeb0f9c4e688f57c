"""The exact likelihood against truth: of a Gaussian's flow, which is affine, and of a mixture's, by an identity."""

import math

import numpy as np
import pytest
import torch
from thinning import one_each, only
from torch.distributions import MultivariateNormal

from likelihood import FlowLikelihood, make_likelihood
from models import DiscreteScoreModel, GaussianMixtureScoreModel, Prediction, ScoreModel
from samplers import make_sampler
from sde_lib import VE, VP, CosineVP, NoiseStreams, RectifiedFlow, SubVP, Tabulated

SDES = {
    "vp": VP(),
    "cosine": CosineVP(),
    "subvp": SubVP(),
    "ve": VE(sigma_max=20.0),
    "rectified flow": RectifiedFlow(),
    "ddpm": Tabulated.ddpm(),
    "ncsn": Tabulated.ncsn(num_steps=200, sigma_min=0.01, sigma_max=20.0),
}
MEAN = torch.tensor([0.7, -0.4], dtype=torch.float64)
COV = torch.tensor([[0.30, 0.12], [0.12, 0.20]], dtype=torch.float64)
MEANS = torch.tensor([[-0.8, 0.3], [0.6, -0.4]], dtype=torch.float64)
COVS = torch.tensor([[[0.05, 0.03], [0.03, 0.08]], [[0.10, -0.02], [-0.02, 0.04]]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.35, 0.65], dtype=torch.float64)
TIGHT = {"rtol": 1e-6, "atol": 1e-6}


def one(t):
    return torch.tensor([t], dtype=torch.float64)


def noise_ratio(sde, t):
    return float(sde.sigma(one(t)) / sde.alpha(one(t)))


def gaussian(sde):
    return GaussianMixtureScoreModel(sde, means=MEAN[None], covs=COV[None])


def mixture(sde):
    return GaussianMixtureScoreModel(sde, means=MEANS, covs=COVS, weights=WEIGHTS)


def points(num=40, seed=0):
    torch.manual_seed(seed)
    return MultivariateNormal(MEAN, COV).sample((num,))


def law_of_the_gaussian_flow(sde, t_end):
    """The law of the prior after the ODE: y_0 = m + S_0^(1/2) S_T^(-1/2) (y_T - m), S_r = C + r^2."""
    t_max = sde.t_max
    alpha, first, last = float(sde.alpha(one(t_max))), noise_ratio(sde, t_end), noise_ratio(sde, t_max)
    widths, axes = torch.linalg.eigh(COV)
    gain = axes @ torch.diag(((widths + first**2) / (widths + last**2)).sqrt()) @ axes.mT
    return MEAN - gain @ MEAN, gain @ gain.mT * (sde.prior_std / alpha) ** 2


@pytest.mark.parametrize("name", only(("subvp",), SDES))
def test_the_density_of_a_gaussian_is_exact(name):
    sde, x = SDES[name], points()
    flow = make_likelihood("ode", dequantization="none", divergence="exact", **TIGHT)
    terms = flow(gaussian(sde), x, noise=NoiseStreams(0, range(len(x))))
    truth = MultivariateNormal(*law_of_the_gaussian_flow(sde, float(flow.noisy_times(sde)[0]))).log_prob(x)
    # 1e-4 nats a dimension at a tolerance of 1e-6; measured: 2e-5
    assert float((-terms.total - truth).abs().max()) / 2 < 1e-4
    # the parts say what they are
    assert torch.allclose(terms.prior + terms.diffusion, terms.total) and not terms.reconstruction.any()
    assert terms.num_dims == 2 and terms.probe_nats is None


@pytest.mark.parametrize(("name", "solver"), one_each(["vp", "ve"], ["dopri5", "scipy_rk45"]))
def test_other_solvers_find_the_same_density(name, solver):
    sde, x = SDES[name], points()
    flow = FlowLikelihood(dequantization="none", divergence="exact", solver=solver, **TIGHT)
    terms = flow(gaussian(sde), x, noise=NoiseStreams(0, range(len(x))))
    truth = MultivariateNormal(*law_of_the_gaussian_flow(sde, float(flow.noisy_times(sde)[0]))).log_prob(x)
    assert float((-terms.total - truth).abs().max()) / 2 < 1e-4


@pytest.mark.parametrize(
    ("name", "divergence"),
    [
        *one_each(["vp", "ve"], ["rademacher", "gaussian"]),
        *one_each(["subvp"], [], slow=["rademacher", "gaussian"]),
    ],
)
def test_probes_give_the_density_within_their_standard_error(name, divergence):
    sde, x = SDES[name], points(100)
    flow = FlowLikelihood(dequantization="none", divergence=divergence, num_probes=4, **TIGHT)
    terms = flow(gaussian(sde), x, noise=NoiseStreams(0, range(100)))
    truth = MultivariateNormal(*law_of_the_gaussian_flow(sde, float(flow.noisy_times(sde)[0]))).log_prob(x)
    error = -terms.total - truth
    assert terms.probe_nats.shape == (100, 4)
    assert torch.allclose(terms.probe_nats.mean(1), terms.diffusion)
    stderr = float((terms.probe_nats.var(1) / 4).mean().sqrt()) / 10
    assert stderr > 1e-3
    assert abs(float(error.mean())) < 4 * stderr
    # and the spread over the images is as large as the probes say
    assert float(error.std()) / 10 == pytest.approx(stderr, rel=0.35)


@pytest.mark.parametrize("name", only(("ve",), SDES))
@pytest.mark.slow
def test_the_mixture_satisfies_the_change_of_variables(name):
    """log p_flow(y) - log p_data,r0(y) is what the prior and the data's own p_T differ by at the point reached."""
    sde, x = SDES[name], points()
    model = mixture(sde)
    flow = FlowLikelihood(dequantization="none", divergence="exact", **TIGHT)
    terms = flow(model, x, noise=NoiseStreams(0, range(len(x))))
    first, last = flow.noisy_times(sde).tolist()
    x_T = make_sampler("probability_flow", rtol=1e-7, atol=1e-7, t_end=first).encode(model, x).x

    def log_p(at, alpha, sigma):
        covs = alpha**2 * COVS + sigma**2 * torch.eye(2, dtype=torch.float64)
        parts = [MultivariateNormal(alpha * m, c).log_prob(at) for m, c in zip(MEANS, covs, strict=True)]
        return torch.logsumexp(torch.stack(parts) + WEIGHTS.log()[:, None], 0)

    truth = log_p(x, 1.0, noise_ratio(sde, first))
    truth += sde.prior_log_prob(x_T) - log_p(x_T, float(sde.alpha(one(last))), float(sde.sigma(one(last))))
    assert float((-terms.total - truth).abs().max()) / 2 < 1e-4


@pytest.mark.parametrize("name", only(("cosine",), SDES))
def test_the_decoder_accounts_for_what_lies_below_the_least_noise(name):
    sde = SDES[name]
    flow = FlowLikelihood(divergence="exact", **TIGHT)
    first = noise_ratio(sde, float(flow.noisy_times(sde)[0]))
    mean, cov = law_of_the_gaussian_flow(sde, float(flow.noisy_times(sde)[0]))
    # the decoder's mean is affine in y
    gain = COV @ torch.linalg.inv(COV + first**2 * torch.eye(2, dtype=torch.float64))
    decoded = MultivariateNormal(MEAN + gain @ (mean - MEAN), gain @ cov @ gain.mT + first**2 * torch.eye(2).double())
    x = points(200)
    terms = flow(gaussian(sde), x, noise=NoiseStreams(0, range(200)))
    error = (-terms.total - decoded.log_prob(x)) / 2
    assert abs(float(error.mean())) < 1e-4 + 4 * float(error.std()) / 200**0.5
    # without it VE's noise of 0.01 is taken for data: the density is that of wider data, more so in a thin direction
    assert float(error.std()) < 4 * first**2 / 0.1 + 1e-4


def discrete(sde, num_levels=5):
    """Two pixels, four pictures."""
    levels = torch.tensor([[0, num_levels - 1], [1, 1], [3, 2], [num_levels - 1, num_levels - 1]])
    x = 2 * levels.double() / (num_levels - 1) - 1
    return DiscreteScoreModel(sde, points=x, probs=[0.4, 0.3, 0.2, 0.1]), x


@pytest.mark.parametrize(
    ("name", "num_levels"), [*one_each(["ddpm"], [5, 17]), *one_each(["vp", "ve"], [], slow=[5, 17])]
)
def test_discrete_data_lies_at_its_entropy(name, num_levels):
    # so much noise that the prior is the data's own p_T to 1 %
    sde = VE(sigma_max=300.0) if name == "ve" else SDES[name]
    model, x = discrete(sde, num_levels)
    # where the ODE begins, its noise is a third of half a bin, so that the decoder finds the level
    t_end = float(sde.time_from_log_snr(one(-2 * math.log(1 / (num_levels - 1) / 3))))
    flow = FlowLikelihood(num_levels=num_levels, divergence="exact", t_end=t_end, **TIGHT)
    repeats = 60
    many = x.repeat_interleave(repeats, 0)
    terms = flow(model, many, noise=NoiseStreams(1, range(len(many))))
    nats = terms.total.reshape(4, repeats).mean(1)
    # each picture's own: -log of its probability, from above
    truth = -model.probs.double().log()
    spread = terms.total.reshape(4, repeats).std(1) / repeats**0.5
    assert bool((nats > truth - 4 * spread - 2e-2).all())
    assert bool(((nats - truth).abs() < 4 * spread + 2e-2).all()), (nats, truth, spread)


def test_uniform_dequantization_is_a_bound_and_importance_samples_tighten_it():
    sde = VP()
    model, x = discrete(sde)
    many = x.repeat_interleave(30, 0)
    truth = float(-(model.probs.double().log()[:, None].expand(4, 30)).mean())

    def mean_of(**options):
        flow = FlowLikelihood(num_levels=5, divergence="exact", t_end=0.05, rtol=1e-4, atol=1e-4, **options)
        return float(flow(model, many, noise=NoiseStreams(2, range(len(many)))).total.mean())

    once, often = (mean_of(dequantization="uniform", num_importance_samples=k) for k in (1, 8))
    assert once > often > truth - 0.05


@pytest.mark.slow
def test_a_grid_solver_converges_to_the_adaptive_one():
    sde, x = VP(), points(10)
    model = gaussian(sde)
    exact = FlowLikelihood(dequantization="none", divergence="exact", rtol=1e-8, atol=1e-8)
    reference = exact(model, x, noise=NoiseStreams(0, range(10))).total
    errors = []
    for num_steps in (80, 160):
        # the same beginning and end
        ends = [float(sde.log_snr(one(t))) for t in (sde.t_max, sde.t_min)]
        grid = sde.time_from_log_snr(torch.linspace(*ends, num_steps + 1, dtype=torch.float64))
        flow = FlowLikelihood(dequantization="none", divergence="exact", solver="heun", grid=grid)
        errors.append(float((flow(model, x, noise=NoiseStreams(0, range(10))).total - reference).norm()))
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert abs(orders[-1] - 2) < 0.15, orders


def test_one_network_call_gives_drift_and_divergence():
    class Counting(ScoreModel):
        def __init__(self, model):
            super().__init__(model.sde)
            self.calls, self.inner = 0, model.forward

        def forward(self, x_t, t, *, cond=None):
            self.calls += 1
            return self.inner(x_t, t, cond=cond)

    model = Counting(gaussian(VP()))
    flow = FlowLikelihood(num_probes=3)
    terms = flow(model, points(5), noise=NoiseStreams(0, range(5)))
    assert terms.nfe == model.calls > 10


def test_the_same_images_in_other_batches_agree_to_rounding():
    model, x = mixture(VP()), points(3)
    flow = FlowLikelihood(dequantization="decoder", rtol=1e-2, atol=1e-2)
    whole = flow(model, x, noise=NoiseStreams(3, range(3))).total
    parts = torch.cat([flow(model, x[i : i + 1], noise=NoiseStreams(3, [i])).total for i in range(3)])
    # each image has steps of its own
    assert torch.allclose(whole, parts, rtol=0, atol=1e-9)


# bad input


class Broken(ScoreModel):
    """NaN below t = 0.5."""

    def forward(self, x_t, t, *, cond=None):
        eps = torch.where(t.reshape(-1, 1) < 0.5, math.nan, 0.1 * x_t)
        return Prediction(x0=x_t, eps=eps, sigma=self.sde.sigma(t))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dequantization": "half"}, "unknown dequantization 'half'"),
        ({"dequantization": "uniform"}, "needs num_levels, got None"),
        ({"dequantization": "none", "num_levels": 17}, "measures a density, got 17 levels"),
        ({"divergence": "hutch"}, "unknown divergence 'hutch'"),
        ({"num_probes": 0}, "num_probes must be at least 1, a whole number, got 0"),
        ({"num_importance_samples": 4}, "4 importance samples need divergence='exact', got 'rademacher'"),
        ({"solver": "rk5"}, "unknown ODE solver 'rk5'"),
        (
            {"solver": "heun"},
            "num_steps of heun must be at least 1, a whole number, got None; or take an adaptive solver",
        ),
        ({"rtol": 0.0}, "rtol must be above 0 and finite, got 0"),
        ({"max_nfe": 0}, "max_nfe must be at least 1, a whole number, got 0"),
        ({"t_end": 1.0}, r"t_end must lie in \[0, 1\), got 1.0"),
        ({"num_levels": 1}, "num_levels must be at least 2, a whole number, got 1"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        FlowLikelihood(**options)
    assert "\n" not in str(caught.value)


def test_bad_data_and_bad_networks_are_refused_in_one_line():
    model = gaussian(VP())
    with pytest.raises(ValueError, match="must lie on the 17 levels"):
        FlowLikelihood(num_levels=17)(model, torch.full((2, 2), 0.3))
    with pytest.raises(RuntimeError, match="max_nfe = 20 network calls are spent at t = "):
        FlowLikelihood(max_nfe=20)(model, points(2), noise=NoiseStreams(0, range(2)))
    with pytest.raises(FloatingPointError, match="eps is not finite at t = "):
        FlowLikelihood(dequantization="none")(Broken(VP()), points(2), noise=NoiseStreams(0, range(2)))
    with pytest.raises(ValueError, match="t_end must be below t_max"):
        FlowLikelihood(t_end=0.9999999)(gaussian(CosineVP()), points(2))
