"""The probability flow against closed forms: every solver on a Gaussian, orders, latents, and all parameterizations."""

import math
from functools import cache

import pytest
import torch
from sampler_oracles import SDES, GaussianModel, mixture
from thinning import one_each, only
from torch import nn

from models import GaussianMixtureScoreModel, NetworkScoreModel, make_parameterization
from samplers import DDIMSampler
from samplers.probability_flow import ProbabilityFlowSampler
from sde_lib import ADAMS, NoiseStreams, expand_like, points_of
from sde_lib.ode.solvers import ADAPTIVE

MEAN, VAR = 0.7, 0.3
SOLVERS = [ADAMS, *ADAPTIVE]
ORDERS = {"euler": 1, "heun": 2, "midpoint": 2, "rk4": 4}
SLOW = ["adaptive_heun", "torchode_heun"]
QUICK = [solver for solver in SOLVERS if solver not in SLOW]
LOW_ORDER = {"adaptive_heun", "torchode_heun", "bosh3", "scipy_rk23", "scipy_radau"}


def flow(solver, tolerance=1e-5, **options):
    return ProbabilityFlowSampler(solver=solver, rtol=tolerance, atol=tolerance, **options)


def prior(sde, batch_size=4, shape=(3,)):
    return sde.prior_sample(shape, NoiseStreams(5, range(batch_size))).double()


def ends_of(sampler, sde):
    """The first and the last noisy point."""
    points = [point for point in points_of(sde, sampler.times(sde)) if point.sigma > 0]
    return points[0], points[-1]


def gaussian_flow(y, start, end):
    """(y - mean) / sqrt(var + r^2) never changes."""
    return MEAN + (y - MEAN) * math.sqrt((VAR + end.noise_ratio**2) / (VAR + start.noise_ratio**2))


def worst(error, y, tolerance):
    return float((error.abs() / (tolerance * (1 + y.abs()))).max())


@pytest.mark.parametrize(("solver", "sde"), [*one_each(QUICK, list(SDES)), *one_each(SLOW, [], slow=list(SDES))])
def test_every_solver_meets_its_tolerance_on_a_gaussian_both_ways(solver, sde):
    sde = SDES[sde]
    model, x_T = GaussianModel(sde, mean=MEAN, var=VAR), prior(sde)
    # a round trip by Adams steps to 0.0005 of it
    tolerance = 1e-2 if solver == ADAMS else 1e-3 if solver in LOW_ORDER else 3e-4
    sampler = flow(solver, tolerance)
    top, bottom = ends_of(sampler, sde)
    x0 = gaussian_flow(x_T / top.alpha, top, bottom)
    assert worst(sampler.decode(model, x_T).x - x0, x0, tolerance) < 20
    latent = sampler.encode(model, x0).x
    assert worst((latent - x_T) / top.alpha, x_T / top.alpha, tolerance) < 20


@pytest.mark.parametrize("solver", only((ADAMS, "dopri5", "scipy_rk45", "torchode_dopri5"), SOLVERS))
def test_a_smaller_tolerance_makes_a_smaller_error(solver):
    sde = SDES["vp"]
    model, x_T = GaussianModel(sde, mean=MEAN, var=VAR), prior(sde)
    factor = 10 if solver in LOW_ORDER else 100
    errors = []
    # decode takes its steps to a hundredth of these, or less
    for tolerance in (1e-1, 1e-1 / factor):
        sampler = flow(solver, tolerance)
        top, bottom = ends_of(sampler, sde)
        error = sampler.decode(model, x_T).x - gaussian_flow(x_T / top.alpha, top, bottom)
        errors.append(float(error.square().mean().sqrt()))
    assert errors[1] < errors[0] / factor**0.5


@pytest.mark.parametrize("sde", only(("vp", "ve"), SDES))
def test_a_sample_is_the_models_x0_where_the_flow_ends(sde):
    sde = SDES[sde]
    model, x_T = mixture(sde), prior(sde, shape=(2,))
    sampler = flow(ADAMS, 1e-3, record_trajectory=True)
    result = sampler.sample(model, x_T)
    top, bottom = ends_of(sampler, sde)
    assert top.t == sde.t_max
    assert bottom.t == (0.0 if float(sde.sigma(torch.zeros(1))) > 0 else sde.t_min)
    # which takes its steps to 0.0005 of what it is asked for
    decoded = flow(ADAMS, 1e-3 / 0.0005).decode(model, x_T)
    torch.testing.assert_close(result.trajectory[1], bottom.alpha * decoded.x, rtol=0, atol=1e-14)
    last = torch.full((len(x_T),), bottom.t, dtype=torch.float64)
    torch.testing.assert_close(result.x0, model(result.trajectory[1], last).x0, rtol=0, atol=1e-12)
    assert result.nfe == decoded.nfe + 1


def wide_grid(sde, num_steps):
    """Equal steps in log-SNR from r = 3 to r = 0.1, where no end of the schedule is near."""
    return sde.time_from_log_snr(-2 * torch.linspace(math.log(3.0), math.log(0.1), num_steps + 1).double())


@cache
def ends_of_wide_grid(sde, upwards):
    """The mixture's states at one end of the wide grid, and where a tight tolerance takes them."""
    model = mixture(SDES[sde])
    reference = flow("scipy_dop853", 1e-10, grid=wide_grid(model.sde, 1))
    if upwards:
        start = model.sample_data(12, torch.Generator().manual_seed(0))
        return start, reference.encode(model, start).x
    start = math.sqrt(10.0) * prior(SDES["vp"], 12, (2,)) * ends_of(reference, model.sde)[0].alpha
    return start, reference.decode(model, start).x


@pytest.mark.parametrize(
    ("solver", "sde", "upwards"),
    [
        *(
            pytest.param(solver, sde, False, marks=() if sde == fast else pytest.mark.slow)
            for solver, fast in (("euler", "vp"), ("heun", "ve"), ("rk4", "vp"))
            for sde in SDES
        ),
        *(
            pytest.param(solver, "vp", True, marks=() if solver in ("heun", "rk4") else pytest.mark.slow)
            for solver in ORDERS
        ),
        ("midpoint", "vp", False),
    ],
)
def test_grid_solvers_have_their_order_on_the_mixture(solver, sde, upwards):
    order, model = ORDERS[solver], mixture(SDES[sde])
    start, reference = ends_of_wide_grid(sde, upwards)
    errors = []
    for num_steps in {1: (32, 64), 2: (24, 48), 4: (10, 20)}[order]:
        sampler = flow(solver, grid=wide_grid(model.sde, num_steps))
        result = (sampler.encode if upwards else sampler.decode)(model, start)
        assert result.nfe == order * num_steps
        errors.append(float((result.x - reference).square().mean().sqrt()))
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.15


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_euler_is_ddim_without_noise(sde, dtype):
    model = mixture(SDES[sde])
    x_T = prior(SDES[sde], 8, (2,)).to(dtype)
    euler = flow("euler", num_steps=12, grid="karras").sample(model, x_T)
    ddim = DDIMSampler(num_steps=12, grid="karras", eta=0.0).sample(model, x_T)
    assert euler.x0.dtype == dtype
    assert euler.nfe == ddim.nfe
    tolerance = {torch.float32: 2e-4, torch.float64: 1e-11}[dtype]
    torch.testing.assert_close(euler.x0, ddim.x0, rtol=0, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_libraries_agree_on_the_mixture(sde):
    model, x_T = mixture(SDES[sde]), prior(SDES[sde], 16, (2,))
    results = {
        solver: flow(solver, 1e-6).sample(model, x_T).x0
        for solver in (ADAMS, "dopri5", "dopri8", "scipy_rk45", "scipy_dop853", "scipy_lsoda", "torchode_dopri5")
    }
    for x0 in results.values():
        torch.testing.assert_close(x0, results["scipy_dop853"], rtol=0, atol=5e-5)


def far_apart(sde):
    """Two narrow modes in three dimensions, where the ODE up leaves a saddle, and data of it."""
    means = torch.tensor([[-1.0, 0.5, 0.0], [1.0, 0.0, 0.3]])
    model = GaussianMixtureScoreModel(sde, means=means, covs=0.02 * torch.eye(3)[None].repeat(2, 1, 1))
    return model, model.sample_data(24, torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize(
    ("solver", "sde", "tolerance"),
    [
        *(
            pytest.param(
                ADAMS, sde, tolerance, marks=() if sde in ("vp", "ve") and tolerance == 1e-3 else pytest.mark.slow
            )
            for sde in SDES
            for tolerance in (1e-2, 1e-3, 1e-5)
        ),
        *(
            pytest.param(
                solver, "vp", tolerance, marks=() if (solver, tolerance) == ("scipy_rk45", 1e-2) else pytest.mark.slow
            )
            for solver in ("dopri5", "scipy_rk45", "dopri8")
            for tolerance in (1e-2, 1e-3)
        ),
        # one image near the saddle is off by 3e-2 at 1e-2
        pytest.param("torchode_dopri5", "vp", 1e-3, marks=pytest.mark.slow),
        *(
            pytest.param(solver, "vp", 1e-5, marks=pytest.mark.slow)
            for solver in ("dopri5", "scipy_rk45", "dopri8", "torchode_dopri5")
        ),
    ],
)
def test_encode_and_decode_return_the_image_within_the_tolerance(solver, sde, tolerance):
    model, data = far_apart(SDES[sde])
    sampler = flow(solver, tolerance)
    error = sampler.decode(model, sampler.encode(model, data).x).x - data
    assert float(error.abs().max()) < tolerance


# as test_encode_and_decode_return_the_image_within_the_tolerance, the other way round
@pytest.mark.slow
@pytest.mark.parametrize("sde", SDES)
def test_encode_undoes_decode(sde):
    sde = SDES[sde]
    model, tolerance = mixture(sde), 1e-4
    sampler = flow(ADAMS, tolerance)
    latents = prior(sde, 8, (2,))
    error = sampler.encode(model, sampler.decode(model, latents).x).x - latents
    # the way up spreads what the way down left near the saddle
    assert worst(error / sde.prior_std, latents / sde.prior_std, tolerance) < 20
    # latents of the data look like draws of the prior: same second moment, within 5 standard errors of 16 draws
    latent = sampler.encode(model, model.sample_data(8, torch.Generator().manual_seed(1)))
    assert abs(float((latent.x / sde.prior_std).square().mean()) - 1) < 5 * math.sqrt(2 / 16)


def test_grid_solvers_undo_each_other_to_within_their_error():
    model = mixture(SDES["vp"])
    data = model.sample_data(8, torch.Generator().manual_seed(1))
    errors = []
    for num_steps in (40, 80):
        sampler = flow("rk4", num_steps=num_steps, grid="log_snr")
        error = sampler.decode(model, sampler.encode(model, data).x).x - data
        errors.append(float(error.abs().max()))
    assert errors[1] < 1e-2
    assert errors[1] < errors[0] / 8


@pytest.mark.parametrize("sde", only(("ve",), ["vp", "cosine", "ve"]))
def test_nearby_images_have_nearby_latents(sde):
    # d eps / dy = (1 - Cov[x0 | y] / r^2) / r, and Cov[x0 | y] is at least the posterior covariance of the narrowest
    # direction of all components, v r^2 / (v + r^2): distances grow by at most sqrt((v + r1^2) / (v + r0^2))
    model = mixture(SDES[sde])
    sampler = flow("dopri8", 1e-6)
    top, bottom = ends_of(sampler, SDES[sde])
    v = float(model.eigenvalues.min())
    growth = top.alpha * math.sqrt((v + top.noise_ratio**2) / (v + bottom.noise_ratio**2))
    data = model.sample_data(16, torch.Generator().manual_seed(2))
    shift = 1e-2 * torch.randn(16, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    moved = sampler.encode(model, data + shift).x - sampler.encode(model, data).x
    ratio = moved.norm(dim=1) / shift.norm(dim=1) / growth
    assert float(ratio.max()) < 1 + 1e-3
    # the bound is of the right size: some pair comes near it
    assert float(ratio.max()) > 0.3


class ExactNetwork(nn.Module):
    """A perfect network of some parameterization on Gaussian data."""

    def __init__(self, kind, sde):
        super().__init__()
        self.kind, self.sde = kind, sde

    def forward(self, scaled, c_noise, cond=None):
        sde = self.sde
        t = sde.time_from_log_snr(-8 * c_noise) if self.kind == "edm" else c_noise / 999
        alpha, sigma = sde.alpha(t), sde.sigma(t)
        power = sigma**2 + 0.25 * alpha**2
        x = scaled * expand_like(power.sqrt(), scaled) if self.kind == "edm" else scaled
        answer = GaussianModel(sde, mean=MEAN, var=VAR)(x, t)
        alpha, sigma, power = (expand_like(value, x) for value in (alpha, sigma, power))
        return {
            "eps": answer.eps,
            "x0": answer.x0,
            "v": alpha * answer.eps - sigma * answer.x0,
            "score": -answer.eps,
            "edm": (answer.x0 - 0.25 * alpha / power * x) / (0.5 * sigma / power.sqrt()),
        }[self.kind]


@pytest.mark.parametrize("sde", only(("ve",), ["vp", "cosine", "subvp", "ve"]))
def test_perfect_networks_of_every_parameterization_agree(sde):
    sde = SDES[sde]
    x_T = prior(sde)
    # they give the same slopes, so that the steps are the same at any tolerance
    sampler = flow(ADAMS, 1e-3)
    exact = sampler.decode(GaussianModel(sde, mean=MEAN, var=VAR), x_T)
    for kind in ("eps", "x0", "v", "score", "edm"):
        parameterization = make_parameterization(kind, time_input="edm" if kind == "edm" else "t999")
        model = NetworkScoreModel(ExactNetwork(kind, sde), sde, parameterization)
        torch.testing.assert_close(sampler.decode(model, x_T).x, exact.x, rtol=0, atol=1e-8)
