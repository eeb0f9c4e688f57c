"""Beside azula: agreement in float64 where its samplers are right, and the closed form where one is not."""

import inspect
import math
import textwrap

import pytest
import torch
from published_oracles import (
    Line,
    Wave,
    as_noted,
    assert_states_agree,
    graded_grid,
    order_of,
    our_states,
    step_noise,
)
from sampler_oracles import SDES, GaussianModel
from thinning import one_in

from models import EpsParameterization, NetworkScoreModel
from samplers import AncestralSampler, DDIMSampler, DPMSolverPPSampler, HeunSampler
from samplers.probability_flow import ProbabilityFlowSampler
from sde_lib import VE, VP, CosineVP, SubVP, Tabulated, make_grid

azula = pytest.importorskip("azula", reason="azula is not installed; pip install azula")
from azula import denoise, noise, sample  # noqa: E402

noted = as_noted("azula")


class Schedule(noise.Schedule):
    """Any SDE on any grid: azula's time is the number of a point."""

    def __init__(self, sde, grid):
        self.alphas, self.sigmas = sde.alpha(grid), sde.sigma(grid)

    def __call__(self, t):
        return self.alphas[t.round().long()], self.sigmas[t.round().long()]


class Denoiser(denoise.Denoiser):
    """One of our models, which keeps the states that it is shown."""

    def __init__(self, model, grid):
        super().__init__()
        self.model, self.grid, self.schedule, self.seen = model, grid, Schedule(model.sde, grid), []

    def forward(self, x_t, t, **kwargs):
        self.seen.append(x_t)
        return denoise.DiracPosterior(mean=self.model(x_t, self.grid[t.round().long()].expand(len(x_t))).x0)


def sampled(cls, denoiser, x, **options):
    """azula's sample, from the first point of a grid to its last."""
    last = len(denoiser.grid) - 1
    return cls(denoiser, start=0.0, stop=float(last), steps=last, silent=True, dtype=torch.float64, **options)(x)


SDES_HERE = {"vp": VP(), "subvp": SubVP(), "ve": VE(sigma_max=5.0), "ddpm": Tabulated.ddpm()}
# theirs, ours, calls a step
AGREE = {
    "ddpm": (sample.DDPMSampler, {}, AncestralSampler, {}, 1),
    "ddim": (sample.DDIMSampler, {"eta": 0.0}, DDIMSampler, {"eta": 0.0}, 1),
    # their eta is a share of the variance, that of Song et al. 2020, Eq. 16, of the standard deviation
    "ddim 0.5": (sample.DDIMSampler, {"eta": 0.5}, DDIMSampler, {"eta": math.sqrt(0.5)}, 1),
    "ddim 1": (sample.DDIMSampler, {"eta": 1.0}, DDIMSampler, {"eta": 1.0}, 1),
    "euler": (sample.EulerSampler, {}, DDIMSampler, {}, 1),
    "euler flow": (sample.EulerSampler, {}, ProbabilityFlowSampler, {"solver": "euler"}, 1),
    "heun": (sample.HeunSampler, {}, HeunSampler, {}, 2),
    "heun flow": (sample.HeunSampler, {}, ProbabilityFlowSampler, {"solver": "heun"}, 2),
    "z 1": (sample.zABSampler, {"order": 1}, DDIMSampler, {}, 1),
    "x 1": (sample.xEABSampler, {"order": 1}, DPMSolverPPSampler, {"variant": "1"}, 1),
    "x 2": (sample.xEABSampler, {"order": 2}, DPMSolverPPSampler, {"variant": "2M", "correction": "exact"}, 1),
    "x 3": (sample.xEABSampler, {"order": 3}, DPMSolverPPSampler, {"variant": "3M", "correction": "exact"}, 1),
}


# theirs divides by sigma: on the step onto zero noise these are not finite, see below
DIVIDE_BY_SIGMA = (sample.HeunSampler, sample.zEABSampler, sample.xEABSampler, sample.REABSampler)
CELLS = [
    (pair, name, to_zero)
    for pair in AGREE
    for name in SDES_HERE
    for to_zero in (False, True)
    if not to_zero or (name != "ve" and AGREE[pair][0] not in DIVIDE_BY_SIGMA)
]


@pytest.mark.parametrize(("pair", "name", "to_zero"), one_in(3, CELLS))
def test_every_state_agrees(pair, name, to_zero, monkeypatch):
    their_class, their_options, our_class, our_options, calls = AGREE[pair]
    sde = SDES_HERE[name]
    grid = make_grid("karras", sde, 25) if to_zero else torch.linspace(sde.t_max, 0.02, 25, dtype=torch.float64)
    if our_class is DPMSolverPPSampler:
        our_options = {**our_options, "lower_order_final": False}
    sampler = our_class(grid=grid, denoise_final=False, record_trajectory=True, **our_options)
    ours, streams = our_states(sampler, sde), step_noise()
    monkeypatch.setattr(torch, "randn_like", streams.normal_like)
    denoiser = Denoiser(NetworkScoreModel(Wave(), sde, EpsParameterization()), grid)
    last = sampled(their_class, denoiser, ours[0], **their_options)
    assert_states_agree(ours, [*denoiser.seen[::calls], last])


@noted
def test_eta_of_azula_is_not_that_of_the_paper(monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    grid, eta = torch.tensor([0.6, 0.5], dtype=torch.float64), 0.5
    only_noise = Denoiser(GaussianModel(VP(), mean=0.0, var=0.0), grid)
    theirs = float(sampled(sample.DDIMSampler, only_noise, grid.new_zeros(1, 1), eta=eta))
    alpha_bar_t, alpha_bar_s = (VP().alpha(grid) ** 2).tolist()
    # Song et al. 2020, Eq. 16
    paper = eta * math.sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_s))
    assert theirs == pytest.approx(paper / math.sqrt(eta), rel=1e-12)


def mended_reab():
    """azula's REABSampler with one letter changed: it takes sigma at the end of the step, not at its start."""
    source = textwrap.dedent(inspect.getsource(sample.REABSampler.__call__))
    assert source.count("alpha_s**2 + sigma_t**2") == 1
    scope = {}
    exec(source.replace("alpha_s**2 + sigma_t**2", "alpha_s**2 + sigma_s**2"), vars(sample), scope)
    return type("Mended", (sample.REABSampler,), scope)


MULTISTEP = (sample.zABSampler, sample.vABSampler, sample.zEABSampler, sample.xEABSampler)


@pytest.mark.parametrize(
    ("cls", "order", "measured"),
    [pytest.param(cls, p, p, marks=() if p == 3 else pytest.mark.slow) for cls in MULTISTEP for p in (1, 2, 3)]
    + [
        pytest.param(sample.REABSampler, p, 1, marks=[noted] if p == 3 else [noted, pytest.mark.slow])
        for p in (1, 2, 3)
    ]
    + [pytest.param("mended", p, p, marks=[noted] if p == 3 else [noted, pytest.mark.slow]) for p in (1, 2, 3)],
)
@pytest.mark.parametrize("sde", [VP(), pytest.param(VE(sigma_max=20.0), marks=pytest.mark.slow)], ids=["vp", "ve"])
def test_orders_of_multistep_azula(cls, order, measured, sde):
    line = Line(sde)
    cls = mended_reab() if cls == "mended" else cls

    def error(num_steps):
        grid = graded_grid(num_steps, sde=sde, first=-1.0, last=2.0)
        return float((sampled(cls, Denoiser(line.model, grid), line.x, order=order) - line.at(grid)).abs().max())

    assert order_of(error, num_steps=160) == pytest.approx(measured, abs=0.2)


@pytest.mark.parametrize(("cls", "order"), [(sample.EulerSampler, 1), (sample.DDIMSampler, 1), (sample.HeunSampler, 2)])
def test_orders_of_singlestep_azula(cls, order):
    line = Line()

    def error(num_steps):
        grid = graded_grid(num_steps)
        return float((sampled(cls, Denoiser(line.model, grid), line.x) - line.at(grid)).abs().max())

    assert order_of(error) == pytest.approx(order, abs=0.1)


@noted
def test_reab_of_azula_takes_the_noise_of_the_wrong_end():
    """Its one step beside its own formula, x_s = sqrt(p_s / p_t) x + sqrt(p_s) f integral, p = alpha^2 + sigma^2."""
    sde = VE(sigma_max=20.0)
    model, grid = GaussianModel(sde), graded_grid(1, sde=sde)
    x = torch.tensor([[1.3, -0.4]], dtype=torch.float64)
    sigma_t, sigma_s = sde.sigma(grid).tolist()
    power_t, power_s = 1 + sigma_t**2, 1 + sigma_s**2
    a_t = sigma_t**2 / power_t
    f = ((1 - a_t) * x - model(x, grid[:1]).x0) / math.sqrt(a_t)
    # the integral of e^u / (1 + e^(2u)) from log sigma_t to log sigma_s
    integral = math.atan(sigma_s) - math.atan(sigma_t)
    right = math.sqrt(power_s / power_t) * x + math.sqrt(power_s) * f * integral
    theirs = sampled(sample.REABSampler, Denoiser(model, grid), x, order=1)
    # their integral is by the trapezoidal rule with 256 parts
    torch.testing.assert_close(
        theirs - right, (math.sqrt(power_t) - math.sqrt(power_s)) * f * integral, rtol=1e-4, atol=0
    )


def ends_clean(name):
    return float(SDES[name].sigma(torch.zeros(1))) == 0


@noted
@pytest.mark.parametrize("name", [name for name in SDES if ends_clean(name)])
def test_azula_is_not_finite_onto_zero_noise_where_ours_is_near_the_flow(name):
    line, grid = Line(SDES[name]), make_grid("uniform", SDES[name], 20)
    x = line.sde.prior_std * line.x
    line.x = x
    for cls in DIVIDE_BY_SIGMA:
        assert not torch.isfinite(sampled(cls, Denoiser(line.model, grid), x)).any()
    for cls, bound in ((HeunSampler, 0.03), (DPMSolverPPSampler, 0.08)):
        assert float((cls(grid=grid).sample(line.model, x).x0 - line.at(grid)).abs().max()) < bound


@noted
@pytest.mark.parametrize(
    "name", ["EulerSampler", "HeunSampler", "ItoSampler", "zABSampler", "zEABSampler", "REABSampler"]
)
def test_azula_is_not_finite_from_a_start_without_signal(name):
    """As of the cosine schedule at t = 1; our named grids start at t_max, where there is some."""
    sde, grid = CosineVP(), torch.tensor([1.0, 0.6, 0.3, 0.1], dtype=torch.float64)
    assert float(sde.alpha(grid[:1])) == 0 < float(sde.alpha(make_grid("uniform", sde, 3)[:1]))
    line = Line(sde)
    assert not torch.isfinite(sampled(getattr(sample, name), Denoiser(line.model, grid), line.x)).any()
    # DDIM, of which Euler is another form, does not divide by alpha, neither theirs nor ours
    theirs = sampled(sample.DDIMSampler, Denoiser(line.model, grid), line.x)
    ours = DDIMSampler(grid=grid, denoise_final=False).sample(line.model, line.x).x0
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def linear_step(sampler, t, s, monkeypatch):
    """slope, offset and kick of  x_s = slope x + offset + kick z."""
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    zero, t, s = torch.zeros(1, 1, dtype=torch.float64), *torch.tensor([t, s], dtype=torch.float64)
    offset = float(sampler.step(zero, t, s))
    slope = float(sampler.step(zero + 1, t, s)) - offset
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    return slope, offset, float(sampler.step(zero, t, s)) - offset


@pytest.mark.parametrize("cls", [sample.ItoSampler, sample.DDPMSampler])
def test_azula_is_of_weak_order_1_with_noise(cls, monkeypatch):
    line = Line()

    def error(num_steps):
        grid = line.sde.time_from_log_snr(torch.linspace(-1, 5, num_steps + 1, dtype=torch.float64))
        sampler, mean, var = cls(Denoiser(line.model, grid)), 0.2, 1.5
        for i in range(num_steps):
            slope, offset, kick = linear_step(sampler, i, i + 1, monkeypatch)
            mean, var = slope * mean + offset, slope**2 * var + kick**2
        (alpha_t, mean_t, var_t), (alpha_s, mean_s, var_s) = line.moments(grid[0]), line.moments(grid[-1])
        # cov(x_s, x_t) / var x_t, of the forward process
        exact = alpha_t / alpha_s * var_s / var_t
        off_mean = mean - mean_s - exact * (0.2 - mean_t)
        off_var = var - var_s - exact**2 * (1.5 - var_t)
        return max(abs(off_mean), abs(off_var))

    assert order_of(error) == pytest.approx(1, abs=0.1)


@noted
def test_ito_of_azula_leaves_noise_in_a_step_onto_zero_noise(monkeypatch):
    """Even of a single image, whose x0 is known from the start: its standard deviation is sqrt(2) sigma_t / alpha_t."""
    sde, grid = VP(), torch.tensor([0.05, 0.0], dtype=torch.float64)
    slope, _, kick = linear_step(sample.ItoSampler(Denoiser(GaussianModel(sde, var=0.0), grid)), 0, 1, monkeypatch)
    alpha, sigma = float(sde.alpha(grid[:1])), float(sde.sigma(grid[:1]))
    assert slope**2 * sigma**2 + kick**2 == pytest.approx(2 * (sigma / alpha) ** 2, rel=1e-12)


@pytest.mark.parametrize("delta", [0.4, 0.1])
@pytest.mark.parametrize("var", [0.0, 0.3])
def test_corrector_of_azula_keeps_the_variance_to_order_delta(var, delta, monkeypatch):
    sde, grid = VP(), torch.tensor([0.3], dtype=torch.float64)
    sampler = sample.PCSampler(Denoiser(GaussianModel(sde, var=var), grid), corrections=1, delta=delta)
    slope, _, kick = linear_step(sampler, 0, 0, monkeypatch)
    alpha_sq, sigma_sq = float(sde.alpha(grid)) ** 2, float(sde.sigma(grid)) ** 2
    exact, settled = alpha_sq * var + sigma_sq, kick**2 / (1 - slope**2)
    assert abs(settled / exact - 1) <= (delta / 4 if var else 1e-12)
