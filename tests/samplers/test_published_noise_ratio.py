"""Schedulers of diffusers that work in sigma / alpha: Euler, Heun, ancestral Euler, VE predictor and corrector."""

from functools import partial

import diffusers.schedulers.scheduling_euler_ancestral_discrete as euler_ancestral
import diffusers.schedulers.scheduling_euler_discrete as euler
import diffusers.schedulers.scheduling_heun_discrete as heun
import diffusers.schedulers.scheduling_sde_ve as sde_ve
import pytest
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    ScoreSdeVeScheduler,
)
from published_oracles import (
    SHAPE,
    Wave,
    assert_states_agree,
    grid_of,
    our_states,
    read_as_float64,
    sde_of,
    step_noise,
)

from models import EDMParameterization, NetworkScoreModel
from samplers import (
    AncestralSampler,
    DDIMSampler,
    HeunSampler,
    LangevinCorrector,
    PredictorCorrectorSampler,
)
from samplers.probability_flow import ProbabilityFlowSampler
from sde_lib import NoiseStreams, Tabulated, make_grid

GRIDS = {
    "trailing": {"timestep_spacing": "trailing"},
    "leading": {"timestep_spacing": "leading"},
    "linspace": {"timestep_spacing": "linspace"},
    "karras": {"timestep_spacing": "linspace", "use_karras_sigmas": True},
}
ROWS = ("trailing", "leading")  # their linspace has times between rows, and interpolates sigma linearly


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request, monkeypatch):
    if request.param == torch.float64:
        read_as_float64(monkeypatch, euler, heun, euler_ancestral)
    return request.param


def prepared(cls, name, num_steps, dtype):
    scheduler = cls(beta_start=1e-4, beta_end=0.02, **GRIDS[name])
    scheduler.set_timesteps(num_steps)
    assert scheduler.alphas_cumprod.dtype == scheduler.sigmas.dtype == dtype
    return scheduler, sde_of(scheduler), grid_of(scheduler, rows=name in ROWS)


def published_states(scheduler, ours, sde, grid, *, calls=1):
    """Theirs keeps y = x / alpha, and scales it to x for the network; a step may take several calls."""
    alpha = sde.alpha(grid).tolist()
    network, theirs, call = Wave(), [ours[0]], 0
    for i in range(len(grid) - 1):
        y = (theirs[-1] if ours.dtype == torch.float64 else ours[i]) / alpha[i]
        # the step onto zero noise is one of Euler
        for stage in range(calls if i < len(grid) - 2 else 1):
            timestep, t = scheduler.timesteps[call], grid[i + stage]
            x = scheduler.scale_model_input(y, timestep)
            eps = network(x, torch.full((len(x),), 1000 * float(t) - 1, dtype=torch.float64))
            y = scheduler.step(eps, timestep, y).prev_sample
            call += 1
        theirs.append(y * alpha[i + 1])
    assert call == len(scheduler.timesteps)
    return theirs


@pytest.mark.parametrize("num_steps", [5, 30])
@pytest.mark.parametrize("name", GRIDS)
def test_ddim_is_their_euler(name, num_steps, dtype):
    scheduler, sde, grid = prepared(EulerDiscreteScheduler, name, num_steps, dtype)
    states = our_states(DDIMSampler(grid=grid, record_trajectory=True), sde, dtype=dtype)
    assert_states_agree(states, published_states(scheduler, states, sde, grid))
    # Euler's method on the ODE in sigma / alpha is that very step
    flow = ProbabilityFlowSampler(solver="euler", grid=grid, record_trajectory=True)
    assert_states_agree(our_states(flow, sde, dtype=dtype), states)


@pytest.mark.parametrize("num_steps", [5, 30])
@pytest.mark.parametrize("name", GRIDS)
def test_heun_agrees(name, num_steps, dtype):
    scheduler, sde, grid = prepared(HeunDiscreteScheduler, name, num_steps, dtype)
    states = our_states(HeunSampler(grid=grid, record_trajectory=True), sde, dtype=dtype)
    assert_states_agree(states, published_states(scheduler, states, sde, grid, calls=2))


@pytest.mark.parametrize("sampler", [AncestralSampler, partial(DDIMSampler, eta=1.0)], ids=["ancestral", "ddim"])
@pytest.mark.parametrize("num_steps", [5, 30])
@pytest.mark.parametrize("name", ["trailing", "leading", "linspace"])
def test_ancestral_and_ddim_with_eta_1_are_their_ancestral_euler(name, num_steps, sampler, dtype, monkeypatch):
    scheduler, sde, grid = prepared(EulerAncestralDiscreteScheduler, name, num_steps, dtype)
    states, noise = our_states(sampler(grid=grid, record_trajectory=True), sde, dtype=dtype), step_noise()
    monkeypatch.setattr(euler_ancestral, "randn_tensor", lambda *_, **__: noise.normal_like(states[0]))
    assert_states_agree(states, published_states(scheduler, states, sde, grid))


@pytest.mark.parametrize("num_steps", [7, 40])
def test_karras_grid_is_theirs(num_steps, monkeypatch):
    read_as_float64(monkeypatch, euler)
    scheduler, sde, _ = prepared(EulerDiscreteScheduler, "karras", num_steps, torch.float64)
    ours = make_grid("karras", sde, num_steps)[:-1]
    torch.testing.assert_close((-0.5 * sde.log_snr(ours)).exp(), scheduler.sigmas[:-1], rtol=1e-10, atol=0)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def default_dtype(request):
    """The VE scheduler takes whatever is the default."""
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(torch.float32)


def test_ve_predictor_and_corrector_agree(default_dtype, monkeypatch):
    sde = Tabulated.ncsn(num_steps=50, sigma_min=0.01, sigma_max=50.0)
    scheduler = ScoreSdeVeScheduler(num_train_timesteps=50, snr=0.16, sigma_min=0.01, sigma_max=50.0)
    scheduler.set_timesteps(50)
    scheduler.set_sigmas(50)
    assert scheduler.discrete_sigmas.dtype == default_dtype
    model, grid = NetworkScoreModel(Wave(), sde, EDMParameterization()), make_grid("uniform", sde, 50)
    # one sample: their corrector's norms are means over the batch, ours those of each sample
    x_T = sde.prior_sample(SHAPE, NoiseStreams(0, [0])).to(default_dtype)
    corrector = LangevinCorrector(snr=0.16)
    sampler = PredictorCorrectorSampler(corrector=corrector, grid=grid[:-1], record_trajectory=True)
    states, noise = sampler.sample(model, x_T, noise=NoiseStreams(1, [0])).trajectory, NoiseStreams(1, [0])
    monkeypatch.setattr(sde_ve, "randn_tensor", lambda *_, **__: noise.normal_like(x_T))

    def score(x, t):
        return -model(x, t[None]).eps / sde.sigma(t[None]).to(x.dtype)

    theirs = [states[0]]
    for i, timestep in enumerate(scheduler.timesteps):
        x = theirs[-1] if default_dtype == torch.float64 else states[i]
        predicted = scheduler.step_pred(score(x, grid[i]), timestep, x)
        if i < 49:
            x = predicted.prev_sample
            theirs.append(scheduler.step_correct(score(x, grid[i + 1]), x).prev_sample)
    # both end with the mean of a step from the last level to zero
    assert_states_agree(states, [*theirs, predicted.prev_sample_mean])
