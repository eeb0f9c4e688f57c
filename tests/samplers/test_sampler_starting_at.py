"""Any sampler begins at any time: the rest of its way is as it was, and its end is where the exact one is."""

import pytest
import torch
from sampler_oracles import SDES, GaussianModel, mixture
from score_samplers import OF_SCORES

from samplers import GridSampler, ProbabilityFlowSampler, make_sampler
from sde_lib import VP, NoiseStreams

MEAN, VAR = 0.4, 0.3
# without memory of steps before t
ALONE = {"probability_flow": {"solver": "heun"}, "dpm_solver_pp": {"variant": "2S"}}


def _sampler(name: str, **options) -> GridSampler:
    # with few steps Euler-Maruyama's diverge
    sampler = make_sampler(name, num_steps=60 if name == "euler_maruyama" else 8, grid="log_snr", **options)
    assert isinstance(sampler, GridSampler)
    return sampler


# UniPC always remembers earlier steps: it is in the test below
@pytest.mark.parametrize("name", [name for name in OF_SCORES if name != "unipc"])
@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_the_rest_of_the_way_is_that_of_the_whole(name: str, sde: str):
    # a noise level of the grid, so that the copy's steps are those of the whole from there on
    model = GaussianModel(SDES[sde], mean=MEAN, var=VAR)
    sampler = _sampler(name, **ALONE.get(name, {}))
    times, noise, states = sampler.times(model.sde), NoiseStreams(3, range(2)), []
    x_T = sampler.prior_sample(model.sde, (3,), noise).double()
    whole = sampler.sample(model, x_T, noise=noise, hooks=[lambda state: states.append(state.x)])
    t, x_t = float(times[3]), states[2]
    started = sampler.starting_at(model.sde, t)
    assert type(started) is type(sampler) and torch.equal(started.times(model.sde), times[3:])
    assert torch.equal(sampler.times(model.sde), times)
    # the draws that the whole has made by then
    again, skipped = NoiseStreams(3, range(2)), []
    x_T = sampler.prior_sample(model.sde, (3,), again).double()

    class _Reached(Exception):  # noqa: N818
        pass

    def stop(state):
        skipped.append(state)
        if len(skipped) == 3:
            raise _Reached

    with pytest.raises(_Reached):
        sampler.sample(model, x_T, noise=again, hooks=[stop])
    x0 = started.sample(model, x_t, noise=again).x0
    torch.testing.assert_close(x0, whole.x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("solver", ["dopri5", "rk4"])
@pytest.mark.parametrize("t", [0.9, 0.123])
def test_the_flow_from_t_is_the_known_map(solver: str, t: float):
    model = GaussianModel(VP(), mean=MEAN, var=VAR)
    at = torch.tensor([t], dtype=torch.float64)
    alpha, sigma = model.sde.alpha(at), model.sde.sigma(at)
    x_t = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    sampler = make_sampler("probability_flow", solver=solver, num_steps=60, grid="log_snr")
    assert isinstance(sampler, ProbabilityFlowSampler)
    started = sampler.starting_at(model.sde, t)
    expected = MEAN + (VAR / (alpha**2 * VAR + sigma**2)).sqrt() * (x_t - alpha * MEAN)
    torch.testing.assert_close(started.sample(model, x_t).x0, expected, rtol=0, atol=3e-4)
    # and back
    torch.testing.assert_close(started.encode(model, expected).x, x_t, rtol=0, atol=3e-4)


@pytest.mark.parametrize("name", ["ddim", "heun", "dpm_solver_pp", "unipc"])
def test_samplers_without_noise_end_where_the_flow_does(name: str):
    model, t = GaussianModel(VP(), mean=MEAN, var=VAR), 0.5
    x_t = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    flow = make_sampler("probability_flow", solver="rk4", num_steps=60, grid="log_snr")
    sampler = make_sampler(name, num_steps=100, grid="log_snr")
    assert isinstance(flow, GridSampler) and isinstance(sampler, GridSampler)
    exact, found = (one.starting_at(model.sde, t).sample(model, x_t).x0 for one in (flow, sampler))
    torch.testing.assert_close(found, exact, rtol=0, atol=0.05 if name == "ddim" else 5e-3)


def test_a_round_trip_from_t_falls_with_the_tolerance():
    model, errors = mixture(VP()), []
    x0 = torch.tensor([[-0.9, 0.1], [0.5, -0.5], [-0.7, 0.5]], dtype=torch.float64)
    for tolerance in (1e-2, 1e-4):
        flow = ProbabilityFlowSampler(solver="dopri5", rtol=tolerance, atol=tolerance).starting_at(model.sde, 0.6)
        back = flow.decode(model, flow.encode(model, x0).x).x
        errors.append(float((back - x0).abs().max()))
        assert errors[-1] < tolerance * (1 + float(x0.abs().max()))
    assert errors[0] > 10 * errors[1]


@pytest.mark.parametrize("t", [0.0, 1.2, float("nan")])
def test_a_time_that_is_not_on_the_way_is_refused(t: float):
    for name in ("ddim", "probability_flow"):
        with pytest.raises(ValueError, match=r"can start at t in \(.*, 1\], got .*; change t, or the grid"):
            _sampler(name).starting_at(VP(), t)


def test_times_of_a_samplers_own_are_not_cut():
    class Own(GridSampler):
        def step(self, denoise, x, t, s, noise):
            return x

        def times(self, sde):
            return torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)

    with pytest.raises(ValueError, match=r"Own has times of its own, and cannot start at t = 0.6; take ddim"):
        Own(num_steps=2).starting_at(VP(), 0.6)
