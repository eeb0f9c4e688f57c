"""Step by step beside Ho et al.'s Algorithm 2 and the schedulers of diffusers, with the same network and noise."""

import diffusers.schedulers.scheduling_ddpm as published_ddpm
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from published_oracles import as_noted
from torch import nn

from models import ClippedScoreModel, EpsParameterization, NetworkScoreModel, ThresholdedScoreModel
from samplers import AncestralSampler, DDIMSampler
from sde_lib import NoiseStreams, Tabulated

SHAPE = (2, 3, 3)


class Wave(nn.Module):
    """A fixed network whose x0 leaves [-1, 1] often enough for clipping to matter."""

    def __init__(self, learned_variance=False):
        super().__init__()
        self.learned_variance = learned_variance

    def forward(self, x, c_noise):
        time = (c_noise / 300).reshape(-1, 1, 1, 1).to(x.dtype)
        eps = 0.9 * x * torch.sigmoid(time) + 0.4 * torch.sin(2 * x + time)
        return torch.cat([eps, torch.tanh(x.flip(1) - time)], 1) if self.learned_variance else eps


def our_states(sampler, sde, *, clip, learned_variance=False, dtype=torch.float64):
    model = NetworkScoreModel(Wave(learned_variance), sde, EpsParameterization(), learned_variance=learned_variance)
    x_T = NoiseStreams(0, range(3)).normal(SHAPE).to(dtype)
    return sampler.sample(
        ClippedScoreModel(model) if clip else model, x_T, noise=NoiseStreams(1, range(3))
    ).trajectory.to(dtype)


def float64_tables(scheduler, sde):
    """Give a scheduler, which keeps its tables in float32, the same in float64."""
    assert scheduler.alphas_cumprod.dtype == torch.float32
    alphas_cumprod = sde.alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000) ** 2
    # float32's cumprod of 1000 factors is off by up to 1000 roundings
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), alphas_cumprod, rtol=1000 * 2**-24, atol=0)
    scheduler.alphas_cumprod = alphas_cumprod
    return scheduler


def sde_of(scheduler):
    """The SDE of a scheduler's own float32 table."""
    alphas_cumprod = scheduler.alphas_cumprod.double()
    return Tabulated(torch.log(alphas_cumprod) - torch.log1p(-alphas_cumprod), family="vp")


def published_states(scheduler, x, step_noise, *, learned_variance=False, monkeypatch=None, **kwargs):
    """Every state of a scheduler, from ours at the start; noise is drawn in our order."""
    network = Wave(learned_variance)
    states = [x]
    for t in scheduler.timesteps.tolist():
        out = network(x, torch.full((len(x),), float(t), dtype=torch.float64))
        if monkeypatch is None:
            x = scheduler.step(out, t, x, variance_noise=step_noise(t, x), **kwargs).prev_sample
        else:
            noise = step_noise(t, x)
            monkeypatch.setattr(published_ddpm, "randn_tensor", lambda *_, noise=noise, **__: noise)
            x = scheduler.step(out, t, x).prev_sample
        states.append(x)
    return torch.stack(states)


def replay():
    """The streams' draws again; none for the last step, which adds no noise."""
    streams = NoiseStreams(1, range(3))
    return lambda t, x: streams.normal_like(x)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ancestral_on_the_table_is_algorithm_2(variance):
    num_rows = 1000
    beta = np.linspace(1e-4, 0.02, num_rows)
    alpha_bar = np.cumprod(1 - beta)
    states = our_states(
        AncestralSampler(num_steps=num_rows, variance=variance, record_trajectory=True), Tabulated.ddpm(), clip=False
    )
    network, streams = Wave(), NoiseStreams(1, range(3))
    for i in range(num_rows - 1, -1, -1):
        x = states[num_rows - 1 - i]
        eps = network(x, torch.full((3,), float(i), dtype=torch.float64))
        # Algorithm 2, line 4; in Eq. 7's terms the small variance is beta_tilde
        expected = (x - beta[i] / np.sqrt(1 - alpha_bar[i]) * eps) / np.sqrt(1 - beta[i])
        if i > 0:
            beta_tilde = (1 - alpha_bar[i - 1]) / (1 - alpha_bar[i]) * beta[i]
            expected = expected + np.sqrt({"small": beta_tilde, "large": beta[i]}[variance]) * streams.normal_like(x)
        # 1 - alpha_bar from a cumulative product of 1000 factors keeps 1000 eps / 1e-4 = 2e-9 at worst, 1e-12 typically
        torch.testing.assert_close(states[num_rows - i], expected, rtol=1e-9, atol=1e-10)


def test_posterior_step_is_eq_7():
    beta = np.linspace(1e-4, 0.02, 1000)
    alpha_bar = np.cumprod(1 - beta)
    sde = Tabulated.ddpm()
    i = np.arange(1, 1000)
    a, b, var = sde.posterior_coefficients(torch.from_numpy(i / 1000), torch.from_numpy((i + 1) / 1000))
    np.testing.assert_allclose(a, np.sqrt(alpha_bar[i - 1]) * beta[i] / (1 - alpha_bar[i]), rtol=1e-9)
    np.testing.assert_allclose(b, np.sqrt(1 - beta[i]) * (1 - alpha_bar[i - 1]) / (1 - alpha_bar[i]), rtol=1e-9)
    np.testing.assert_allclose(var, (1 - alpha_bar[i - 1]) / (1 - alpha_bar[i]) * beta[i], rtol=1e-9)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(
    ("variance", "variance_type"), [("small", "fixed_small"), ("large", "fixed_large"), ("learned", "learned_range")]
)
@pytest.mark.parametrize("num_steps", [100, 20])
def test_ancestral_agrees_with_diffusers_ddpm(variance, variance_type, clip, num_steps, monkeypatch):
    sde = Tabulated.ddpm()
    learned = variance == "learned"
    sampler = AncestralSampler(num_steps=num_steps, variance=variance, grid="leading", record_trajectory=True)
    states = our_states(sampler, sde, clip=clip, learned_variance=learned)
    # with trailing spacing DDPMScheduler adds its noise in the last step too, whenever that is not row 0; not compared
    scheduler = DDPMScheduler(variance_type=variance_type, clip_sample=clip, timestep_spacing="leading")
    scheduler.set_timesteps(num_steps)
    float64_tables(scheduler, sde)
    theirs = published_states(scheduler, states[0], replay(), learned_variance=learned, monkeypatch=monkeypatch)
    # relative to the largest number in play: unclipped, this network's states grow
    assert float((states - theirs).abs().max()) < 1e-9 * max(1, float(theirs.abs().max()))


@pytest.mark.parametrize(("quantile", "largest"), [(0.995, 1e9), (0.6, 1e9), (0.8, 1.2), (0.995, 1.0)])
def test_thresholding_agrees_with_diffusers_ddpm(quantile, largest, monkeypatch):
    sde = Tabulated.ddpm()
    model = NetworkScoreModel(Wave(), sde, EpsParameterization())
    bounded = ThresholdedScoreModel(model, quantile=quantile, max_scale=largest)
    sampler = AncestralSampler(num_steps=40, grid="leading", record_trajectory=True)
    x_T = NoiseStreams(0, range(3)).normal(SHAPE).double()
    states = sampler.sample(bounded, x_T, noise=NoiseStreams(1, range(3))).trajectory
    scheduler = DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=largest, timestep_spacing="leading"
    )
    scheduler.set_timesteps(40)
    theirs = published_states(float64_tables(scheduler, sde), x_T, replay(), monkeypatch=monkeypatch)
    assert float((states - theirs).abs().max()) < 1e-9
    # and x0 itself, in one step, of which some samples are beyond the range and some are not
    bound = []
    for row, x in zip(scheduler.timesteps.tolist(), states[:-1], strict=True):
        t = torch.full((3,), (row + 1) / 1000, dtype=torch.float64)
        out = Wave()(x, torch.full((3,), float(row), dtype=torch.float64))
        x0 = scheduler.step(out, row, x).pred_original_sample
        torch.testing.assert_close(bounded(x, t).x0, x0, rtol=1e-12, atol=1e-12)
        bound += torch.quantile(model(x, t).x0.abs().flatten(1), quantile, dim=1).gt(1).tolist()
    assert set(bound) == {True, False}


@as_noted("diffusers")
def test_thresholding_of_diffusers_is_clipping_unless_it_is_given_a_limit():
    x0 = 3 * torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(DDPMScheduler(thresholding=True)._threshold_sample(x0), x0.clamp(-1, 1))


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_agrees_with_diffusers(eta, clip, spacing):
    sde = Tabulated.ddpm()
    states = our_states(DDIMSampler(eta=eta, num_steps=40, grid=spacing, record_trajectory=True), sde, clip=clip)
    scheduler = DDIMScheduler(clip_sample=clip, timestep_spacing=spacing)
    scheduler.set_timesteps(40)
    # clipping makes eps agree with the clipped x0; diffusers does so only when asked
    theirs = published_states(
        float64_tables(scheduler, sde), states[0], replay(), eta=eta, use_clipped_model_output=clip
    )
    assert float((states - theirs).abs().max()) < 1e-9 * max(1, float(theirs.abs().max()))


def test_clipped_ddim_differs_from_diffusers_where_eps_is_left_as_it_was():
    sde = Tabulated.ddpm()
    states = our_states(DDIMSampler(num_steps=40, grid="leading", record_trajectory=True), sde, clip=True)
    scheduler = DDIMScheduler(clip_sample=True, timestep_spacing="leading")
    scheduler.set_timesteps(40)
    theirs = published_states(float64_tables(scheduler, sde), states[0], replay())
    # both end with the last clipped x0, so that what differs is the way there
    assert float((states - theirs).abs().max()) > 1e-2


@pytest.mark.parametrize("method", ["ddpm", "ddim"])
def test_float32_states_agree_with_diffusers_as_published(method, monkeypatch):
    # Its own float32 table, read as an SDE: built from float64 betas instead, sigma_1 differs by 1e-4 relative, as
    # 1 - alpha_bar_1 = 1e-4 keeps 3 to 4 digits in float32. From the same table, each step agrees to 1e-5; what a state
    # differs by is fed back, so the steps are compared one by one from our states.
    if method == "ddpm":
        scheduler = DDPMScheduler(clip_sample=True, timestep_spacing="leading")
        sampler = AncestralSampler(num_steps=100, grid="leading", record_trajectory=True)
    else:
        scheduler = DDIMScheduler(clip_sample=True, timestep_spacing="leading")
        sampler = DDIMSampler(num_steps=100, grid="leading", eta=0.7, record_trajectory=True)
    scheduler.set_timesteps(100)
    states = our_states(sampler, sde_of(scheduler), clip=True, dtype=torch.float32)
    assert states.dtype == torch.float32
    network, noise = Wave(), replay()
    for i, t in enumerate(scheduler.timesteps.tolist()):
        x = states[i]
        out = network(x, torch.full((len(x),), float(t)))
        z = noise(t, x)
        if method == "ddpm":
            monkeypatch.setattr(published_ddpm, "randn_tensor", lambda *_, noise=z, **__: noise)
            theirs = scheduler.step(out, t, x).prev_sample
        else:
            theirs = scheduler.step(out, t, x, eta=0.7, use_clipped_model_output=True, variance_noise=z).prev_sample
        torch.testing.assert_close(states[i + 1], theirs, rtol=1e-5, atol=1e-5)
