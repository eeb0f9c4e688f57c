"""Differences between schedulers of diffusers and ours: closed forms show the right one of the two."""

import diffusers.schedulers.scheduling_ddim as ddim
import diffusers.schedulers.scheduling_ddpm as ddpm
import diffusers.schedulers.scheduling_dpmsolver_multistep as multistep
import diffusers.schedulers.scheduling_dpmsolver_singlestep as singlestep
import diffusers.schedulers.scheduling_unipc_multistep as unipc
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    UniPCMultistepScheduler,
)
from published_oracles import (
    Clock,
    Line,
    Wave,
    as_noted,
    graded_grid,
    integral_weights,
    order_of,
    our_states,
    published_states,
    read_as_float64,
    sde_of,
    second_difference,
)
from thinning import only

from models import EpsParameterization, NetworkScoreModel
from samplers import AncestralSampler, DPMSolverPPSampler, UniPCSampler
from samplers.dpm_solver import multistep_weights
from sde_lib import NoiseStreams, make_grid

noted = as_noted("diffusers")
PAST = [(), (0.31,), (0.31, 0.17), (0.4, 0.9)]
STEP = 0.23


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    read_as_float64(monkeypatch, ddim, ddpm, multistep, singlestep, unipc)


class Silence(NoiseStreams):
    """Noise that is always zero, for the mean of a chain that is linear in it."""

    def normal(self, sample_shape):
        return torch.zeros(len(self), *sample_shape)


def their_weights(scheduler, update, num_before, *, h=STEP, past_steps=(0.31, 0.17)):
    """Weights of the model's answers, the newest first, in a step after ``past_steps``, and alpha and sigma at its end.

    ``num_before``: how many steps of the grid come before the one that is made.
    """
    scheduler.set_timesteps(num_before + 1)
    steps = [*past_steps[::-1], h] if past_steps else [h]
    scheduler.sigmas = torch.exp(-torch.cumsum(torch.tensor([0.2, *steps], dtype=torch.float64), 0))
    scheduler._step_index = num_before
    answers = list(torch.eye(num_before + 1, dtype=torch.float64))
    zero = torch.zeros(num_before + 1, dtype=torch.float64)
    out = getattr(scheduler, update)(answers, sample=zero, noise=zero)
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[-1])
    return out.numpy()[::-1], float(alpha), float(sigma)


@pytest.mark.parametrize("rate", [1, 2])
@pytest.mark.parametrize("past", PAST)
def test_our_exact_weights_are_the_integral(past, rate):
    ours = multistep_weights(STEP, past, rate=rate, correction="exact")
    np.testing.assert_allclose(ours, integral_weights(STEP, past, rate), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize(("algorithm", "rate"), [("dpmsolver++", 1), ("sde-dpmsolver++", 2)])
def test_second_order_heun_weights_of_diffusers_are_the_integral(algorithm, rate):
    scheduler = DPMSolverMultistepScheduler(algorithm_type=algorithm, solver_type="heun", final_sigmas_type="sigma_min")
    update = "multistep_dpm_solver_second_order_update"
    theirs, alpha, _ = their_weights(scheduler, update, 1, past_steps=(0.31,))
    np.testing.assert_allclose(theirs, alpha * integral_weights(STEP, (0.31,), rate), rtol=1e-12)


@noted
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("algorithm", "rate"), [("dpmsolver++", 1), ("dpmsolver", -1)])
def test_third_order_weights_of_diffusers_lack_half_the_square_term(algorithm, rate):
    past = (0.31, 0.17)
    scheduler = DPMSolverMultistepScheduler(solver_order=3, algorithm_type=algorithm, final_sigmas_type="sigma_min")
    theirs, alpha, sigma = their_weights(scheduler, "multistep_dpm_solver_third_order_update", 2)
    theirs = theirs / (alpha if rate == 1 else -sigma)
    u, shares = np.polynomial.legendre.leggauss(40)
    u = 0.5 * STEP * (u + 1)
    square = 0.5 * STEP * shares @ (np.exp(-rate * (STEP - u)) * u**2)
    exact = integral_weights(STEP, past, rate)
    np.testing.assert_allclose(exact - theirs, 0.5 * square * second_difference(past), rtol=1e-9)
    if rate == 1:
        np.testing.assert_allclose(theirs, multistep_weights(STEP, past, correction="published"), rtol=1e-10)


@noted
@pytest.mark.parametrize("h", [0.23, 0.023])
def test_third_order_sde_weights_of_diffusers_have_a_wrong_sign(h):
    past = (0.31, 0.17)
    scheduler = DPMSolverMultistepScheduler(
        solver_order=3, algorithm_type="sde-dpmsolver++", final_sigmas_type="sigma_min"
    )
    theirs, alpha, _ = their_weights(scheduler, "multistep_dpm_solver_third_order_update", 2, h=h)
    # with + 0.5 in place of - 0.5 they would be ours, in which half the square term is still missing
    mended = multistep_weights(h, past, rate=2, correction="published")
    np.testing.assert_allclose(theirs / alpha, mended - h**2 * second_difference(past), rtol=1e-8)


@noted
@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_singlestep_third_order_weights_of_diffusers(algorithm):
    """Its square term is whole; in the SDE form it has the same wrong sign."""
    scheduler = DPMSolverSinglestepScheduler(
        solver_order=3, solver_type="heun", algorithm_type=algorithm, final_sigmas_type="sigma_min"
    )
    inner = (0.1, 0.07)
    theirs, alpha, _ = their_weights(
        scheduler, "singlestep_dpm_solver_third_order_update", 2, h=STEP - sum(inner), past_steps=inner[::-1]
    )
    # three points inside the step: from its start, forwards
    points = np.array([sum(inner), inner[0], 0.0])
    rate = 1 if algorithm == "dpmsolver++" else 2
    u, shares = np.polynomial.legendre.leggauss(40)
    u = 0.5 * STEP * (u + 1)
    kernel = 0.5 * STEP * shares * rate * np.exp(-rate * (STEP - u))
    basis = [np.prod([(u - q) / (p - q) for q in np.delete(points, k)], 0) for k, p in enumerate(points)]
    exact = np.array([kernel @ line for line in basis])
    curvature = np.array([1 / np.prod(p - np.delete(points, k)) for k, p in enumerate(points)])
    wrong = 0.0 if rate == 1 else 2 * STEP**2
    np.testing.assert_allclose(theirs / alpha, exact - wrong * curvature, rtol=1e-9)


def problem(grid, stochastic):
    """A model, where it starts, and where it must end."""
    line = Line()
    if not stochastic:
        return line.model, line.x, line.at(grid)
    clock = Clock(line.sde)
    return clock, line.x, clock.mean_at(line.x, grid)


def their_error(scheduler, num_steps, *, stochastic=False):
    grid = graded_grid(num_steps)
    model, x, expected = problem(grid, stochastic)
    scheduler.set_timesteps(num_steps)
    scheduler.sigmas = (-0.5 * model.sde.log_snr(grid)).exp()
    scheduler.timesteps = torch.arange(num_steps)
    noise = {"variance_noise": torch.zeros_like(x)} if stochastic else {}
    for i in range(num_steps):
        x = scheduler.step(model(x, grid[i : i + 1]).x0, i, x, **noise).prev_sample
    return float((x - expected).abs().max())


def our_error(cls, num_steps, **options):
    grid = graded_grid(num_steps)
    model, x, expected = problem(grid, options.get("stochastic"))
    sampler = cls(grid=grid, denoise_final=False, lower_order_final=False, **options)
    return float((sampler.sample(model, x, noise=Silence(0, [0])).x0 - expected).abs().max())


OURS = {"1": 1, "2M": 2, "3M": 3}
PLAIN = {"prediction_type": "sample", "final_sigmas_type": "sigma_min", "lower_order_final": False}


@noted
@pytest.mark.parametrize(
    ("algorithm", "solver_type", "solver_order", "expected"),
    [
        ("dpmsolver++", "midpoint", 1, 1),
        ("dpmsolver++", "midpoint", 2, 2),
        ("dpmsolver++", "heun", 2, 2),
        ("dpmsolver++", "midpoint", 3, 2),
        # the mean is what a chain that is linear in its noise gives without any
        ("sde-dpmsolver++", "midpoint", 2, 2),
        ("sde-dpmsolver++", "midpoint", 3, 1),
    ],
)
def test_order_of_diffusers_dpm_solver(algorithm, solver_type, solver_order, expected):
    def error(num_steps):
        scheduler = DPMSolverMultistepScheduler(
            algorithm_type=algorithm, solver_type=solver_type, solver_order=solver_order, **PLAIN
        )
        return their_error(scheduler, num_steps, stochastic=algorithm.startswith("sde"))

    assert order_of(error) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("stochastic", only((True,), [False, True]))
@pytest.mark.parametrize("variant", OURS)
def test_order_of_ours_on_the_same_grid(variant, stochastic):
    order = order_of(lambda n: our_error(DPMSolverPPSampler, n, variant=variant, stochastic=stochastic), num_steps=320)
    assert order == pytest.approx(OURS[variant], abs=0.1)


@pytest.mark.parametrize("b_function", only(("bh2",), ["bh1", "bh2"]))
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_of_both_is_of_order_p_plus_1(order, b_function):
    def theirs(num_steps):
        return their_error(UniPCMultistepScheduler(solver_order=order, solver_type=b_function, **PLAIN), num_steps)

    assert order_of(theirs) == pytest.approx(order + 1, abs=0.1)
    ours = order_of(lambda n: our_error(UniPCSampler, n, order=order, b_function=b_function))
    assert ours == pytest.approx(order + 1, abs=0.1)


@noted
@pytest.mark.parametrize(
    ("order", "b_function", "lower_order_final", "outcome"),
    [(p, "bh1", True, "not finite") for p in (1, 2, 3)] + [(2, "bh2", False, "not finite"), (3, "bh2", False, "crash")],
)
def test_unipc_of_diffusers_fails_on_the_step_onto_zero_noise(order, b_function, lower_order_final, outcome):
    scheduler = UniPCMultistepScheduler(
        solver_order=order, solver_type=b_function, lower_order_final=lower_order_final, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(20)
    sde, grid = sde_of(scheduler), make_grid("trailing", sde_of(scheduler), 20)
    options = {"order": order, "b_function": b_function, "lower_order_final": lower_order_final}
    states = our_states(UniPCSampler(grid=grid, record_trajectory=True, **options), sde)
    # all its formulas of first order lead to alpha x0 there
    model = NetworkScoreModel(Wave(), sde, EpsParameterization())
    torch.testing.assert_close(states[-1], model(states[-2], grid[-2].expand(len(states[-2]))).x0)
    if outcome == "crash":
        with pytest.raises(RuntimeError, match="singular"):
            published_states(scheduler, states, grid)
    else:
        theirs = published_states(scheduler, states, grid)
        assert torch.isfinite(theirs[-2]).all()
        assert not torch.isfinite(theirs[-1]).any()


@noted
@pytest.mark.parametrize(
    ("spacing", "num_steps", "num_wrong"),
    [("leading", 20, 0), ("leading", 30, 0), ("trailing", 20, 0), ("trailing", 30, 10), ("linspace", 20, 19)],
)
def test_ddim_of_diffusers_steps_to_another_level_than_its_next(spacing, num_steps, num_wrong):
    """Of one image and its own noise, DDIM must give alpha x0 + sigma eps at each level; theirs takes t - N // n."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(num_steps)
    sde, (x0, eps) = sde_of(scheduler), torch.tensor([[0.3, 0.9], [-1.2, 0.4]], dtype=torch.float64)
    rows = scheduler.timesteps.double()
    times = torch.cat([(rows + 1) / 1000, rows.new_zeros(1)])
    states = sde.alpha(times)[:, None] * x0 + sde.sigma(times)[:, None] * eps
    wrong = 0
    for i, row in enumerate(rows.long().tolist()):
        wrong += float((scheduler.step(eps, row, states[i]).prev_sample - states[i + 1]).abs().max()) > 1e-9
    assert wrong == num_wrong


@noted
@pytest.mark.parametrize(("spacing", "leftover"), [("leading", 0.0), ("trailing", 1.0)])
def test_ddpm_of_diffusers_adds_noise_to_the_image_itself(spacing, leftover, monkeypatch):
    """Its last step adds the large variance, there sigma_t^2, unless the last row is row 0; ours adds none to x0."""
    scheduler = DDPMScheduler(variance_type="fixed_large", clip_sample=False, timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    row = int(scheduler.timesteps[-1])
    monkeypatch.setattr(ddpm, "randn_tensor", lambda *_, **__: torch.ones(1, 1))
    image = scheduler.step(torch.zeros(1, 1), row, torch.zeros(1, 1)).prev_sample
    sigma = float((1 - scheduler.alphas_cumprod[row]).sqrt())
    assert float(image) == pytest.approx(leftover * sigma, rel=1e-5)
    line = Line(sde_of(scheduler))
    ours = AncestralSampler(variance="large", num_steps=20, grid=spacing, record_trajectory=True)
    states = ours.sample(line.model, line.x, noise=NoiseStreams(0, [0])).trajectory
    t = make_grid(spacing, line.sde, 20)[-2:-1]
    torch.testing.assert_close(states[-1], line.model(states[-2], t).x0)
