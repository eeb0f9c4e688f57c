"""Hooks see the final x0 of every sampler, where a denoising without a step of the grid makes it too."""

import pytest
import torch
from sampler_oracles import mixture
from score_samplers import OF_SCORES

from samplers import GridSampler, make_sampler
from sde_lib import VE, VP, CosineVP, NoiseStreams, Tabulated

SDES = {"ve": VE(sigma_max=20.0), "ncsn": Tabulated.ncsn(num_steps=6), "vp": VP(), "cosine": CosineVP()}
KNOWN = 0.37


class Euler(GridSampler):
    """A sampler of one's own."""

    own_last_step = True

    def step(self, denoise, x, t, s, noise):
        return s.alpha * (x / t.alpha + denoise(x, t).eps * (s.noise_ratio - t.noise_ratio))


def build(name, **options):
    if name == "euler":
        return Euler(num_steps=6, **options)
    few = {"annealed_langevin": {"steps_per_level": 2}, "probability_flow": {"rtol": 1e-2, "atol": 1e-2}}
    return make_sampler(name, num_steps=6, **few.get(name, {}), **options)


def samplers():
    return [
        *(name for name in OF_SCORES if make_sampler(name, num_steps=2).__module__.startswith("samplers.")),
        "euler",
    ]


def inpaint(sampler, sde):
    """Samples whose first number is known, and what the hook saw."""
    seen = []
    noise = NoiseStreams(8, range(3))

    def keep_known(state):
        seen.append(state)
        x = state.x.clone()
        x[:, 0] = state.alpha * KNOWN + state.sigma * noise.normal((1,)).to(x)[:, 0]
        return x

    x_T = sde.prior_sample((2,), NoiseStreams(7, range(3))).double()
    return sampler.sample(mixture(sde), x_T, noise=NoiseStreams(9, range(3)), hooks=[keep_known]), seen


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("name", samplers())
def test_what_a_hook_keeps_is_kept_to_the_end(name, sde):
    sampler = build(name, record_trajectory=True)
    result, seen = inpaint(sampler, SDES[sde])
    assert result.x0[:, 0].tolist() == [KNOWN] * 3
    assert torch.equal(result.trajectory[-1], result.x0)
    assert [state.index for state in seen] == list(range(seen[0].num_steps))
    assert len(seen) == len(result.trajectory) - 1
    assert (seen[-1].alpha, seen[-1].sigma, seen[-1].s) == (1.0, 0.0, 0.0)
    # before that the scales are the SDE's
    time = torch.tensor([seen[1].t], dtype=torch.float64)
    alpha, sigma = (float(value) for value in SDES[sde].alpha_sigma(time))
    assert (seen[0].alpha, seen[0].sigma) == pytest.approx((alpha, sigma))


@pytest.mark.parametrize("name", ["ddim", "probability_flow"])
def test_a_denoising_that_is_asked_for_is_seen_and_one_that_is_left_out_is_not(name):
    grid = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    for denoise_final, last in ((True, (3, 0.2, 0.0, 1.0, 0.0)), (False, (2, 0.5, 0.2, None, None))):
        sampler = make_sampler(name, grid=grid, denoise_final=denoise_final)
        _, seen = inpaint(sampler, SDES["vp"])
        state = seen[-1]
        assert (len(seen), state.t, state.s) == last[:3]
        if denoise_final:
            assert (state.alpha, state.sigma) == last[3:]
        else:
            assert state.sigma == pytest.approx(float(SDES["vp"].sigma(torch.tensor([0.2]).double())))


def test_a_final_state_that_a_hook_spoils_is_refused():
    sampler, sde = build("ddim"), SDES["ve"]
    x_T = sde.prior_sample((2,), NoiseStreams(7, range(3))).double()

    def spoil(state):
        return state.x * float("nan") if state.sigma == 0 else None

    with pytest.raises(FloatingPointError, match="final denoising at t = 0;"):
        sampler.sample(mixture(sde), x_T, hooks=[spoil])
    with pytest.raises(ValueError, match=r"a hook must return shape \[3, 2\], got \[3, 1\]"):
        sampler.sample(mixture(sde), x_T, hooks=[lambda state: state.x[:, :1] if state.sigma == 0 else None])
