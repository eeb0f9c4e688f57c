"""Identities of samplers: where two are the same by mathematics, they agree to rounding."""

import math

import numpy as np
import pytest
import torch
from sampler_oracles import SDES, GaussianModel, mixture
from scipy.integrate import quad
from thinning import only

from samplers import DPMSolverPPSampler, LangevinCorrector, Predictor, make_predictor, make_sampler, points_of
from samplers.dpm_solver import multistep_weights
from samplers.unipc import unipc_weights
from sde_lib import VE, NoiseStreams, Tabulated, points_at_log_snr

MEAN, VAR = 0.7, 0.3


def states(sde, name, *, model=None, grid="uniform", num_steps=12, seed=5, **options):
    model = mixture(sde) if model is None else model
    sampler = make_sampler(name, num_steps=num_steps, grid=grid, record_trajectory=True, **options)
    x_T = sde.prior_sample((2,), NoiseStreams(4, range(3))).double()
    return sampler.sample(model, x_T, noise=NoiseStreams(seed, range(3))).trajectory


def close(first, second):
    scale = first.abs().amax(dim=(1, 2), keepdim=True)
    return float(((first - second) / scale).abs().max()) < 1e-11


@pytest.mark.parametrize("grid", only(("uniform",), ["uniform", "log_snr"]))
@pytest.mark.parametrize("sde", only(("vp", "ve"), SDES))
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("dpm_solver_pp", {"variant": "1"}), ("ddim", {})),
        (("dpm_solver_pp", {"variant": 1}), ("ddim", {})),
        (("dpm_solver_pp", {"variant": "1", "stochastic": True}), ("ancestral", {})),
        (("predictor_corrector", {"predictor": "ancestral", "corrector": "none"}), ("ancestral", {})),
        (("predictor_corrector", {"predictor": "euler_maruyama", "corrector": None}), ("euler_maruyama", {})),
        (("heun", {"churn": 3.0, "churn_min": 1e6}), ("heun", {})),
    ],
)
def test_two_names_for_one_chain(sde, grid, first, second):
    assert close(*(states(SDES[sde], name, grid=grid, **options) for name, options in (first, second)))


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_points_found_together_are_those_found_alone(sde):
    log_snr = torch.linspace(-3, 6, 20).tolist()
    together = points_at_log_snr(sde, log_snr)
    for value, point in zip(log_snr, together, strict=True):
        assert math.isclose(point.log_snr, value, rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(2 * math.log(point.alpha / point.sigma), value, rel_tol=1e-9, abs_tol=1e-9)
        assert math.isclose(points_at_log_snr(sde, [value])[0].t, point.t, rel_tol=1e-12)


@pytest.mark.parametrize(("name", "options"), [("dpm_solver_pp", {"variant": "2S"}), ("heun", {"churn": 5.0})])
def test_times_between_those_of_the_grid_are_looked_up_at_once(name, options):
    class Counting(Tabulated):
        looked_up = 0

        def time_from_log_snr(self, log_snr):
            self.looked_up += 1
            return super().time_from_log_snr(log_snr)

    for num_steps in (5, 20):
        sde = Counting.ddpm()
        states(sde, name, num_steps=num_steps, **options)
        assert sde.looked_up == 1


@pytest.mark.parametrize("options", [{}, {"churn": 4.0}], ids=["heun", "churn"])
def test_flow_samplers_see_an_sde_only_through_sigma_over_alpha(options):
    # DDPM is its table's VE in other units: the states in the scale of data are the same
    ddpm = Tabulated.ddpm()
    rows = torch.arange(1, 1001, dtype=torch.float64) / 1000
    ratios = (-0.5 * ddpm.log_snr(rows)).exp()
    ve = Tabulated.from_sigmas(ratios)
    grid = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.05, 0.0], dtype=torch.float64)
    for name, extra in (("heun", options), ("unipc", {"order": 3}), ("dpm_solver_pp", {"variant": "3M"})):
        ends = []
        for sde in (ddpm, ve):
            sampler = make_sampler(name, grid=grid, **extra)
            x_T = float(sde.alpha(rows[-1:])) * torch.tensor([[100.0, -150.0]], dtype=torch.float64)
            ends.append(sampler.sample(mixture(sde), x_T, noise=NoiseStreams(0, range(1))).x0)
        torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_exact_weights_integrate_the_polynomial_through_the_points(rate):
    h, past = 0.7, [0.4, 0.9]
    nodes = np.array([0.0, -0.4, -1.3])
    for count in (1, 2, 3):
        weights = multistep_weights(h, past[: count - 1], rate=rate)
        for k, weight in enumerate(weights):
            others = np.delete(nodes[:count], k)
            lagrange = lambda u, others=others, k=k: np.prod((u - others) / (nodes[k] - others))  # noqa: E731
            exact = quad(lambda u, f=lagrange: rate * math.exp(-rate * (h - u)) * f(u), 0, h, epsabs=1e-13)[0]
            assert weight == pytest.approx(exact, rel=1e-10, abs=1e-12)
        published = multistep_weights(h, past[: count - 1], rate=rate, correction="published")
        assert sum(published) == pytest.approx(sum(weights), rel=1e-12)


def test_unipc_weights_integrate_powers():
    # of the corrector with r = (r_1, 1): sum_k a_k r_k^n B = -integral_0^1 (-h)... in units of h, by quadrature
    h, ratios = 0.6, [-0.8, 1.0]
    weights = unipc_weights(h, ratios, b_function="bh2")
    for n in (1, 2):
        # alpha_s times minus this is what x0(u) = u^n adds: the differences D_k of u^n are r_k^(n - 1)
        exact = -quad(lambda u, n=n: math.exp(-h * (1 - u)) * h * u**n, 0, 1, epsabs=1e-13)[0]
        assert sum(w * r ** (n - 1) for w, r in zip(weights, ratios, strict=True)) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_reverse_diffusion_step_is_eq_46(sde):
    grid = torch.tensor([0.9, 0.6], dtype=torch.float64)
    x = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    out = make_sampler("reverse_diffusion", grid=grid, denoise_final=False).sample(
        GaussianModel(sde), x, noise=NoiseStreams(0, [0])
    )
    (alpha_t, alpha_s), (sigma_t, sigma_s) = (v.tolist() for v in (sde.alpha(grid), sde.sigma(grid)))
    a = alpha_t / alpha_s
    var = sigma_t**2 - a**2 * sigma_s**2
    score = -(x - alpha_t * MEAN) / (alpha_t**2 * VAR + sigma_t**2)
    expected = (2 - a) * x + var * score + math.sqrt(var) * NoiseStreams(0, [0]).normal((3,)).double()
    torch.testing.assert_close(out.x0, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sde", [SDES[name] for name in ("vp", "subvp", "ve")], ids=["vp", "subvp", "ve"])
def test_euler_maruyama_step_is_eq_6_of_songs_own_coefficients(sde):
    t, s = 0.9, 0.85
    x = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    grid = torch.tensor([t, s], dtype=torch.float64)
    out = make_sampler("euler_maruyama", grid=grid, denoise_final=False).sample(
        GaussianModel(sde), x, noise=NoiseStreams(0, [0])
    )
    time = torch.tensor([t], dtype=torch.float64)
    alpha, sigma = float(sde.alpha(time)), float(sde.sigma(time))
    beta = 0.1 + 19.9 * t
    if isinstance(sde, VE):
        drift, g_sq = 0.0, sigma**2 * 2 * math.log(sde.sigma_max / sde.sigma_min)
    else:
        drift = -0.5 * beta
        g_sq = beta if type(sde).__name__ == "VP" else beta * (1 - alpha**4)
    score = -(x - alpha * MEAN) / (alpha**2 * VAR + sigma**2)
    noise = NoiseStreams(0, [0]).normal((3,)).double()
    expected = x + (drift * x - g_sq * score) * (s - t) + math.sqrt(g_sq * (t - s)) * noise
    torch.testing.assert_close(out.x0, expected, rtol=1e-10, atol=1e-10)


def test_annealed_langevin_on_ncsn_is_its_algorithm():
    sde = Tabulated.ncsn(num_steps=4, sigma_min=0.1, sigma_max=2.0)
    sampler = make_sampler("annealed_langevin", num_steps=4, steps_per_level=3, step_size=0.002)
    x = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    out = sampler.sample(GaussianModel(sde), x, noise=NoiseStreams(0, [0]))
    replay = NoiseStreams(0, [0])
    sigmas = np.geomspace(2.0, 0.1, 4)
    for sigma in sigmas:
        step = 0.002 * sigma**2 / sigmas[-1] ** 2
        for _ in range(3):
            z = replay.normal((3,)).double()
            x = x + step * -(x - MEAN) / (VAR + sigma**2) + math.sqrt(2 * step) * z
    # the final denoising, Tweedie's formula
    x = x + sigmas[-1] ** 2 * -(x - MEAN) / (VAR + sigmas[-1] ** 2)
    torch.testing.assert_close(out.x0, x, rtol=1e-10, atol=1e-10)
    assert out.nfe == 4 * 3 + 1


@pytest.mark.parametrize("name", SDES)
def test_langevin_step_has_the_published_signal_to_noise_ratio(name):
    # Song et al. 2021, Algorithms 4 and 5, written for one step, from the noise that the corrector drew
    sde = SDES[name]
    grid = torch.tensor([0.65, 0.6], dtype=torch.float64)
    sampler = make_sampler("predictor_corrector", predictor="none", snr=0.2, grid=grid, denoise_final=False)
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = sampler.sample(GaussianModel(sde), x, noise=NoiseStreams(0, range(3))).x0
    t = torch.tensor([0.6], dtype=torch.float64)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    before = float(sde.alpha(t - 1 / (sde.table_size or 1000)))
    score = -(x - alpha * MEAN) / (alpha**2 * VAR + sigma**2)
    z = NoiseStreams(0, range(3)).normal((50,)).double()
    step = 2 * (alpha / before) ** 2 * (0.2 * z.norm(dim=1) / score.norm(dim=1)) ** 2
    torch.testing.assert_close(out, x + step[:, None] * score + (2 * step[:, None]).sqrt() * z, rtol=1e-9, atol=1e-9)


def test_churn_raises_the_noise_as_karras_say():
    sde = VE(sigma_min=0.01, sigma_max=20.0)
    grid = sde.time_from_sigma(torch.tensor([4.0, 2.0], dtype=torch.float64))
    sampler = make_sampler("heun", churn=0.3, noise_std=1.01, grid=grid, denoise_final=False)
    x = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64)
    out = sampler.sample(GaussianModel(sde), x, noise=NoiseStreams(0, [0])).x0
    z = NoiseStreams(0, [0]).normal((3,)).double()
    raised = 4 * 1.3
    x = x + math.sqrt(raised**2 - 16) * 1.01 * z
    slope = raised * (x - MEAN) / (VAR + raised**2)
    euler = x + (2 - raised) * slope
    expected = x + (2 - raised) * 0.5 * (slope + 2 * (euler - MEAN) / (VAR + 4))
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)


def test_the_ends_of_the_noise_that_is_churned_belong_to_it():
    """S_tmin <= sigma <= S_tmax (Karras et al. 2022, Algorithm 2)."""
    sde = VE(sigma_min=0.01, sigma_max=20.0)
    grid = sde.time_from_sigma(torch.tensor([4.0, 2.0], dtype=torch.float64))
    x, end = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64), points_of(sde, grid)[0].noise_ratio

    def churned(**limits: float) -> torch.Tensor:
        sampler = make_sampler("heun", churn=0.3, grid=grid, denoise_final=False, **limits)
        return sampler.sample(GaussianModel(sde), x, noise=NoiseStreams(0, [0])).x0

    always = churned()
    assert torch.equal(churned(churn_min=end, churn_max=end), always)
    assert not torch.equal(churned(churn_max=math.nextafter(end, 0)), always)
    assert not torch.equal(churned(churn_min=math.nextafter(end, 9)), always)


def test_churn_stays_within_the_noise_that_networks_know():
    sde = VE(sigma_min=0.01, sigma_max=20.0)
    seen = []

    class Watched(GaussianModel):
        def forward(self, x_t, t, *, cond=None):
            seen.append(float(self.sde.sigma(t)[0]))
            return super().forward(x_t, t)

    make_sampler("heun", num_steps=10, churn=100.0).sample(Watched(sde), torch.ones(1, 2, dtype=torch.float64))
    assert max(seen) <= 20.0 * (1 + 1e-12)


def test_a_state_that_a_hook_replaced_is_not_corrected():
    sde = SDES["vp"]
    model = mixture(sde)
    fixed = torch.full((3, 2), 0.25, dtype=torch.float64)
    x_T = sde.prior_sample((2,), NoiseStreams(4, range(3))).double()
    sampler = make_sampler("unipc", order=2, num_steps=6)
    grid = sampler.times(sde)

    def replace(state):
        return fixed if state.index == 3 else None

    out = sampler.sample(model, x_T, hooks=[replace]).x0
    # the corrector, which would start again from before the replacement, is left out: x0 forgets how it came there
    moved = sampler.sample(model, 2 * x_T, hooks=[replace]).x0
    tail = make_sampler("unipc", order=1, grid=grid[4:]).sample(model, fixed).x0
    assert float((out - moved).abs().max()) < 0.2 * float((out - fixed).abs().max())
    assert float((out - tail).abs().max()) < 0.2


def test_predictors_and_correctors_can_be_passed_as_objects():
    class Half(Predictor):
        def step(self, denoise, x, t, s, noise):
            denoise(x, t)
            return 0.5 * x

    sampler = make_sampler(
        "predictor_corrector", predictor=Half(), corrector=LangevinCorrector(snr=0.1), num_steps=3, corrector_steps=2
    )
    out = sampler.sample(GaussianModel(SDES["vp"]), torch.ones(2, 4), noise=NoiseStreams(0, range(2)))
    assert out.nfe == 2 * (1 + 2) + 1
    assert make_predictor("ancestral", variance="large").variance == "large"


def test_two_singlestep_calls_but_one_onto_zero_noise():
    model = GaussianModel(SDES["vp"])
    assert DPMSolverPPSampler(variant="2S", num_steps=5).sample(model, torch.ones(1, 2)).nfe == 9
    assert DPMSolverPPSampler(variant="3M", warm_start=True, num_steps=5).sample(model, torch.ones(1, 2)).nfe == 6
