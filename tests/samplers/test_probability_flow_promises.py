"""Promises of the probability-flow sampler: counted calls, limits, batches, dtypes, and errors in one line."""

import sys

import pytest
import torch
from sampler_oracles import SDES, GaussianModel, mixture
from thinning import only
from torch import nn

from models import ClippedScoreModel, EpsParameterization, NetworkScoreModel, Prediction
from samplers import make_sampler
from samplers.probability_flow import ProbabilityFlowSampler
from sde_lib import ADAMS, VE, VP, CosineVP, NoiseStreams, expand_like
from sde_lib.ode.solvers import ADAPTIVE, TABLEAUS, available_ode_solvers

SOLVERS = [ADAMS, *ADAPTIVE]
# of each library
ONE_EACH = (ADAMS, "dopri5", "scipy_rk45", "torchode_dopri5")
HIGH_ORDER = sorted({*SOLVERS} - {"adaptive_heun", "torchode_heun"})


@pytest.fixture
def refuses():
    def expect(error, function, *words):
        with pytest.raises(error) as caught:
            function()
        message = str(caught.value)
        assert "\n" not in message
        for word in words:
            assert word in message, message

    return expect


def flow(solver=ADAMS, **options):
    return ProbabilityFlowSampler(solver=solver, **options)


def prior(sde, batch_size=3, shape=(2,)):
    return sde.prior_sample(shape, NoiseStreams(5, range(batch_size))).double()


class Linear(nn.Module):
    """A network that counts its own calls, keeps what it was given, and fails when told to."""

    def __init__(self, fail_at=None, factor=0.5):
        super().__init__()
        self.calls, self.fail_at, self.factor = 0, fail_at, factor
        self.dtypes, self.times = set(), []

    def forward(self, x, c_noise, cond=None):
        self.calls += 1
        self.dtypes.add((x.dtype, c_noise.dtype))
        self.times.append(c_noise / 999)
        return x * (float("nan") if self.calls == self.fail_at else self.factor)


def network_model(network, sde):
    return NetworkScoreModel(network, sde, EpsParameterization(time_input="t999"))


@pytest.mark.parametrize("sde", [VP(), pytest.param(VE(), marks=pytest.mark.slow)])
@pytest.mark.parametrize("solver", only((*ONE_EACH, "scipy_lsoda", "heun", "rk4"), available_ode_solvers()))
def test_nfe_is_what_the_network_counts(solver, sde):
    network = Linear(factor=0.05)
    model = ClippedScoreModel(network_model(network, sde), low=-50.0, high=50.0)
    sampler = flow(solver, rtol=1e-2, atol=1e-2, num_steps=6)
    x_T = prior(sde).float()
    for method in (sampler.sample, sampler.decode, sampler.encode):
        before = network.calls
        assert method(model, x_T).nfe == network.calls - before > 0
    if solver in TABLEAUS:
        # a step onto t = 0, or the denoising there, is one call
        stages, steps = len(TABLEAUS[solver].nodes), 5 if isinstance(sde, VP) else 6
        assert sampler.sample(model, x_T).nfe == stages * steps + 1
        assert sampler.encode(model, x_T).nfe == stages * steps
    # t at full precision and x in the dtype of x_T, within the times that networks know
    assert network.dtypes == {(torch.float32, torch.float64)}
    times = torch.cat(network.times)
    assert float(times.max()) <= sde.t_max * (1 + 1e-12)
    assert float(times.min()) >= (sde.t_min if isinstance(sde, VP) else 0.0) * (1 - 1e-12)


@pytest.mark.parametrize(
    "solver",
    only((ADAMS, "scipy_rk45", "torchode_dopri5"), [ADAMS, "dopri5", "scipy_rk45", "scipy_lsoda", "torchode_dopri5"]),
)
def test_max_nfe_is_the_most_that_is_spent(solver, refuses):
    x_T = prior(VP())
    loose = {"rtol": 1e-3, "atol": 1e-3}
    needed = flow(solver, **loose).decode(network_model(Linear(), VP()), x_T).nfe
    assert flow(solver, **loose, max_nfe=needed).decode(network_model(Linear(), VP()), x_T).nfe == needed
    assert flow(solver, **loose, max_nfe=None).decode(network_model(Linear(), VP()), x_T).nfe == needed
    network = Linear()
    short = flow(solver, **loose, max_nfe=needed - 1)
    refuses(
        RuntimeError,
        lambda: short.decode(network_model(network, VP()), x_T),
        f"max_nfe = {needed - 1}",
        "at t = ",
        "t = 1e-05",
        "raise max_nfe",
    )
    assert network.calls == needed - 1


def test_max_nfe_is_for_all_stretches_of_a_grid_together(refuses):
    grid = torch.tensor([1.0, 0.6, 0.3, 0.1, 0.0])
    model, x_T = GaussianModel(VP()), prior(VP())
    needed = flow(grid=grid).sample(model, x_T).nfe - 1
    assert flow(grid=grid, max_nfe=needed).sample(model, x_T).nfe == needed + 1
    refuses(RuntimeError, lambda: flow(grid=grid, max_nfe=needed - 1).sample(model, x_T), "t = 0.1;")
    assert flow("rk4", grid=grid, max_nfe=1).sample(model, x_T).nfe == 13


@pytest.mark.parametrize("solver", only((ADAMS,), SOLVERS))
def test_no_sample_is_worse_for_its_batch_mates(solver):
    model = mixture(SDES["vp"])
    tolerance = 2e-4 if solver in HIGH_ORDER else 2e-3
    sampler = flow(solver, rtol=tolerance, atol=tolerance)
    exact = flow("dopri8", rtol=1e-8, atol=1e-8)
    x_T = prior(model.sde, 4)
    alone = sampler.decode(model, x_T[:1]).x
    mates = x_T.clone()
    mates[1:] *= 1e3
    together = sampler.decode(model, mates).x[:1]
    if solver == ADAMS or solver.startswith("torchode"):
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)
    # mates may tighten the steps, so that the truth is what both are measured by
    truth = exact.decode(model, x_T[:1]).x
    for result in (alone, together):
        assert float((result - truth).abs().max()) < 40 * tolerance


@pytest.mark.parametrize("solver", only(ONE_EACH, HIGH_ORDER))
def test_one_hard_sample_among_many_easy_ones_keeps_its_tolerance(solver):
    # 400 samples sit still at the mean, where a norm over the whole batch would hide the error of the last one
    model = GaussianModel(VE(sigma_max=20.0), mean=0.7, var=0.3)
    x_T = torch.full((401, 1), 0.7, dtype=torch.float64)
    x_T[-1] = 30.0
    result = flow(solver, rtol=1e-4, atol=1e-4).decode(model, x_T).x
    expected = 0.7 + (x_T - 0.7) * ((0.3 + 0.01**2) / (0.3 + 400.0)) ** 0.5
    assert float((result - expected).abs().max()) < 2e-3


@pytest.mark.parametrize("solver", ["scipy_radau", "scipy_bdf"])
def test_a_jacobian_costs_a_batch_as_many_calls_as_one_sample(solver):
    # samples do not mix; differences over the whole batch would cost 16 times as many
    model, sampler = mixture(SDES["ve"]), flow(solver, rtol=1e-2, atol=1e-2)
    x_T = prior(model.sde, 1)
    alone = sampler.decode(model, x_T).nfe
    assert sampler.decode(model, x_T.expand(16, 2)).nfe < 2 * alone


@pytest.mark.parametrize("solver", [*SOLVERS, "rk4"])
def test_a_network_that_fails_is_reported_with_its_time(solver, refuses):
    network = Linear(fail_at=9)
    model = network_model(network, VP())
    refuses(FloatingPointError, lambda: flow(solver, num_steps=5).sample(model, prior(VP())), "eps is not finite at t")
    assert network.calls == 9
    if solver == "rk4":
        assert float(network.times[-1][0]) == pytest.approx(0.6, abs=1e-12)


@pytest.mark.parametrize("solver", [ADAMS, "dopri5", "scipy_rk45", "torchode_dopri5"])
def test_a_tolerance_out_of_reach_is_one_line(solver, refuses):
    class Rough(GaussianModel):
        def forward(self, x_t, t, *, cond=None):
            answer = super().forward(x_t, t)
            wild = 1e12 * torch.sin(1e9 * expand_like(t, x_t) + 1e9 * x_t)
            return Prediction(x0=answer.x0, eps=answer.eps + wild, sigma=answer.sigma)

    sampler = flow(solver, max_nfe=1000)
    words = ["max_nfe"] if solver.startswith("torchode") else [solver, "gave up at t = 1", "raise rtol"]
    refuses(RuntimeError, lambda: sampler.sample(Rough(VP()), prior(VP())), *words)


@pytest.mark.parametrize("solver", only((*ONE_EACH, "rk4"), available_ode_solvers()))
def test_float32_and_any_shape_stay(solver):
    sde = VE(sigma_max=20.0)
    sampler = flow(solver, rtol=1e-2, atol=1e-2, num_steps=4, grid="karras")
    for shape in ((2, 1, 3, 2), (2,)):
        x_T = prior(sde, 2, shape[1:]).float()
        for result in (sampler.sample(GaussianModel(sde), x_T).x0, sampler.decode(GaussianModel(sde), x_T).x):
            assert result.dtype == torch.float32
            assert result.shape == shape
    # deterministic, and no noise is drawn
    state = torch.get_rng_state()
    assert torch.equal(sampler.decode(GaussianModel(sde), x_T).x, result)
    assert torch.equal(torch.get_rng_state(), state)


def test_adaptive_solvers_stop_at_the_times_of_a_tensor_grid_and_at_t_end():
    model, x_T = mixture(VP()), prior(VP())
    grid = torch.tensor([1.0, 0.5, 0.2, 0.0], dtype=torch.float64)
    seen = []
    result = flow(grid=grid, record_trajectory=True).sample(
        model, x_T, hooks=[lambda state: seen.append((state.t, state.s))]
    )
    assert seen == [(1.0, 0.5), (0.5, 0.2), (0.2, 0.0)]
    assert result.trajectory.shape == (4, 3, 2)
    direct = flow(t_end=0.2, num_steps=77).sample(model, x_T)
    torch.testing.assert_close(direct.x0, result.x0, rtol=0, atol=1e-3)
    assert flow(t_end=0.2).times(VP()).tolist() == [1.0, 0.2, 0.0]
    assert flow(t_end=0.2).times(VE()).tolist() == [1.0, 0.2]
    assert flow().times(VE()).tolist() == [1.0, 0.0]
    assert flow().times(CosineVP()).tolist() == [CosineVP.t_max, CosineVP.t_min, 0.0]
    assert flow("heun", num_steps=4).times(VP()).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_conditions_reach_the_model_both_ways():
    class Conditional(GaussianModel):
        def forward(self, x_t, t, *, cond=None):
            x0 = expand_like(cond, x_t).expand_as(x_t)
            return Prediction.from_x0(x_t, x0, alpha=self.sde.alpha(t), sigma=self.sde.sigma(t))

    cond = torch.tensor([0.25, -0.5, 1.0])
    for solver in (ADAMS, "dopri5", "torchode_dopri5", "rk4"):
        x0 = flow(solver, num_steps=5).sample(Conditional(VP()), prior(VP()), cond=cond).x0
        torch.testing.assert_close(x0, cond.double()[:, None].expand(3, 2), rtol=0, atol=1e-4)
        latent = flow(solver, num_steps=5).encode(Conditional(VP()), cond.double()[:, None], cond=cond).x
        assert float(latent.abs().max()) < 1e-2


def test_torchode_is_optional(monkeypatch, refuses):
    monkeypatch.setitem(sys.modules, "torchode", None)
    refuses(ValueError, lambda: flow("torchode_dopri5"), "torchode_dopri5", "pip install 'score-diffusion[ode]'")
    # (y - mean) / sqrt(var + r^2) never changes
    found = flow(ADAMS, rtol=1e-2, atol=1e-2).decode(GaussianModel(VP(), mean=0.7, var=0.3), prior(VP())).x
    alpha, sigma = VP().alpha_sigma(torch.tensor([1e-5, 1.0], dtype=torch.float64))
    first, last = (0.3 + (sigma / alpha).square()).sqrt()
    expected = 0.7 + (prior(VP()) / alpha[1] - 0.7) * first / last
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: flow("dopri6"), ["'dopri6'", "did you mean 'dopri", "scipy_rk45, torchode"]),
        (lambda: flow("scipy_rk45", rtol=0.0), ["rtol", "above 0", "got 0.0"]),
        (lambda: flow(rtol=float("inf")), ["rtol", "finite", "inf"]),
        (lambda: flow(atol=float("nan")), ["atol", "nan"]),
        (lambda: flow(atol=-1e-5), ["atol", "-1e-05"]),
        (lambda: flow(max_nfe=0), ["max_nfe", "at least 1", "got 0"]),
        (lambda: flow(max_nfe=2.5), ["max_nfe", "whole number"]),
        (lambda: flow(t_end=1.5), ["t_end", "[0, 1)", "1.5"]),
        (lambda: flow(t_end=-0.1), ["t_end", "-0.1"]),
        (lambda: flow("euler", num_steps=4, t_end=0.1), ["t_end", "adaptive"]),
        (lambda: flow(grid=torch.tensor([1.0, 0.5]), t_end=0.1), ["t_end", "tensor grid"]),
        (lambda: flow(t_end=0.0).times(VP()), ["t_end", "leave noise", "try 1e-05"]),
        (lambda: flow(t_end=0.9995).times(CosineVP()), ["t_end", "below t_max = 0.999"]),
        (lambda: flow("rk4"), ["num_steps", "got None"]),
        (lambda: flow(num_steps=0), ["num_steps", "got 0"]),
        (lambda: flow(grid="unifrom"), ["'uniform'"]),
        (lambda: flow(grid=torch.tensor([1.0, 0.5])).sample(GaussianModel(CosineVP()), prior(VP())), ["alpha is 0"]),
        (lambda: flow("euler", num_steps=1).encode(GaussianModel(VP()), prior(VP())), ["2 times with noise"]),
        (lambda: flow().encode(GaussianModel(VP()), torch.ones(2, 3, dtype=torch.uint8)), ["x0", "uint8", "[2, 3]"]),
        (lambda: flow().decode(GaussianModel(VP()), torch.tensor(1.0)), ["x_T", "batch"]),
        (lambda: make_sampler("probability_flow", rtoll=1e-3), ["'rtoll'", "did you mean 'rtol'", "denoise_final"]),
    ],
)
def test_bad_input_is_refused_in_one_line(build, words, refuses):
    refuses(ValueError, build, *words)


@pytest.mark.parametrize("method", ["sample", "encode", "decode"])
def test_input_that_is_not_finite_is_refused_before_the_first_call(method, refuses):
    network = Linear()
    bad = torch.tensor([[1.0, float("nan")]])
    refuses(FloatingPointError, lambda: getattr(flow(), method)(network_model(network, VP()), bad), "start x")
    assert network.calls == 0
