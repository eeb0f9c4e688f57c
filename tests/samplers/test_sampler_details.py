"""Details that no distribution shows: where a sampler asks the network, what a hook changes, which default is taken."""

import math

import numpy as np
import pytest
import torch
from sampler_oracles import GaussianModel, mixture

from models import Prediction, ScoreModel
from samplers import Denoiser, make_corrector, make_sampler, points_of
from samplers.base import check_finite
from sde_lib import VE, VP, CosineVP, NoiseStreams, Tabulated
from sde_lib.ode.solvers import ADAPTIVE


class Recorder(ScoreModel):
    """Keeps every t and x that it is asked for."""

    def __init__(self, model):
        super().__init__(model.sde)
        self.forward_of, self.times, self.states = model.forward, [], []

    def forward(self, x_t, t, *, cond=None):
        self.times.append(float(t[0]))
        self.states.append(x_t.clone())
        return self.forward_of(x_t, t, cond=cond)


class Silence(NoiseStreams):
    def normal_like(self, x):
        return torch.zeros_like(x)


def grid_of(sde, first, last, num_steps):
    return sde.time_from_log_snr(torch.linspace(first, last, num_steps + 1, dtype=torch.float64))


def draw(sampler, model, *, noise=None, batch=2, **kwargs):
    x_T = torch.linspace(-1, 1, batch * 3, dtype=torch.float64).reshape(batch, 3)
    return sampler.sample(model, x_T, noise=Silence(0, range(batch)) if noise is None else noise, **kwargs)


def raised(sde, **options):
    """By how much each step of Heun raises the noise ratio before it looks."""
    grid = grid_of(sde, -2.0, 4.0, 6)
    recorder = Recorder(GaussianModel(sde))
    draw(make_sampler("heun", grid=grid, denoise_final=False, **options), recorder)
    asked = torch.tensor(recorder.times[::2], dtype=torch.float64)
    return (0.5 * (sde.log_snr(grid[:-1]) - sde.log_snr(asked))).exp().tolist(), (-0.5 * sde.log_snr(grid)).exp()


def test_churn_raises_the_noise_by_its_share_and_never_by_more_than_root_two():
    factors, _ = raised(VP(), churn=0.6)
    assert factors == pytest.approx([1.1] * 6, rel=1e-9)
    factors, _ = raised(VP(), churn=1e6)
    assert factors == pytest.approx([math.sqrt(2)] * 6, rel=1e-9)


def test_churn_keeps_to_its_range():
    _, ratios = raised(VP())
    low, high = float(ratios[4]), float(ratios[1])
    factors, _ = raised(VP(), churn=0.6, churn_min=low * 0.99, churn_max=high * 1.01)
    assert factors == pytest.approx([1.0, 1.1, 1.1, 1.1, 1.1, 1.0], rel=1e-9)


def test_churn_never_asks_for_more_noise_than_the_network_knows():
    sde = VE(sigma_max=20.0)
    recorder = Recorder(GaussianModel(sde))
    draw(make_sampler("heun", num_steps=4, churn=1.0), recorder)
    assert recorder.times[0] == sde.t_max


def test_annealed_langevin_steps_at_every_level_the_last_one_too():
    sde = Tabulated.ncsn(num_steps=10)
    grid = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    recorder = Recorder(GaussianModel(sde))
    result = draw(make_sampler("annealed_langevin", grid=grid, steps_per_level=4), recorder)
    assert recorder.times == [1.0] * 4 + [0.5] * 4 + [0.2] * 5
    assert result.nfe == 13


def test_annealed_langevin_goes_from_level_to_level_in_the_scale_of_the_data():
    class NoNoise(ScoreModel):
        def forward(self, x_t, t, *, cond=None):
            alpha = self.sde.alpha(t)[:, None]
            return Prediction(x0=x_t / alpha, eps=torch.zeros_like(x_t), sigma=self.sde.sigma(t))

    sde = VP()
    grid = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    result = draw(make_sampler("annealed_langevin", grid=grid, steps_per_level=2), NoNoise(sde))
    start = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    assert torch.allclose(result.x0, start / sde.alpha(grid[:1]), rtol=1e-12)


def test_the_default_step_of_annealed_langevin_is_a_fifth_of_the_last_level_squared():
    sde = Tabulated.ncsn(num_steps=10)
    model, options = GaussianModel(sde), {"num_steps": 10, "steps_per_level": 3}
    found = [
        draw(make_sampler("annealed_langevin", **options, **given), model, noise=NoiseStreams(1, range(2))).x0
        for given in ({}, {"step_size": 2e-5})
    ]
    assert torch.allclose(found[0], found[1], rtol=1e-9)


@pytest.mark.parametrize("solver", ["euler", "heun", "rk4"])
def test_a_grid_solver_asks_at_the_grids_own_times(solver):
    sde = VP()
    grid = torch.tensor([1.0, 0.73, 0.41, 0.17], dtype=torch.float64)
    recorder = Recorder(GaussianModel(sde))
    draw(make_sampler("probability_flow", solver=solver, grid=grid, denoise_final=False), recorder)
    assert set(grid.tolist()) - {0.17} <= set(recorder.times)


def test_an_adaptive_flow_keeps_its_state_in_float64(monkeypatch):
    seen = []

    def solver(slope, y, start, end, *, rtol, atol):
        seen.append(y.dtype)
        return y

    monkeypatch.setitem(ADAPTIVE, "dopri5", solver)
    flow, x = make_sampler("probability_flow", solver="dopri5"), torch.zeros(2, 2)
    for result in (flow.encode(mixture(VP()), x).x, flow.decode(mixture(VP()), x).x, flow.sample(mixture(VP()), x).x0):
        assert result.dtype == torch.float32
    assert seen == [torch.float64] * 3


@pytest.mark.parametrize(("num_steps", "taken"), [(14, True), (15, False)])
def test_dpm_solver_lowers_its_order_at_the_end_of_short_grids(num_steps, taken):
    sde = VP()
    grid = grid_of(sde, -5.0, 5.0, num_steps)

    def result(**options):
        return draw(make_sampler("dpm_solver_pp", grid=grid, denoise_final=False, **options), GaussianModel(sde)).x0

    default, same, other = (result(**o) for o in ({}, {"lower_order_final": taken}, {"lower_order_final": not taken}))
    assert torch.equal(default, same) and not torch.allclose(default, other, rtol=1e-9)


@pytest.mark.parametrize("clean", [True, False])
def test_unipc_lowers_its_order_where_the_grid_ends_without_noise(clean):
    sde = VP()
    grid = grid_of(sde, -5.0, 5.0, 8)
    if clean:
        grid = torch.cat([grid, torch.zeros(1, dtype=torch.float64)])

    def result(**options):
        sampler = make_sampler("unipc", order=3, grid=grid, denoise_final=False, **options)
        return draw(sampler, GaussianModel(sde)).x0

    default, same, other = (result(**o) for o in ({}, {"lower_order_final": clean}, {"lower_order_final": not clean}))
    assert torch.equal(default, same) and not torch.allclose(default, other, rtol=1e-9)


@pytest.mark.parametrize("name", ["unipc", "dpm_solver_pp", "heun", "ddim"])
def test_what_a_hook_returns_is_where_the_next_step_starts(name):
    sde = VP()
    recorder = Recorder(GaussianModel(sde))
    put = torch.full((2, 3), 0.123, dtype=torch.float64)
    grid = grid_of(sde, -3.0, 4.0, 6)

    def hook(state):
        return put if state.index == 2 else None

    kept = draw(make_sampler(name, grid=grid, denoise_final=False, record_trajectory=True), recorder, hooks=[hook])
    at_hook = recorder.times.index(float(grid[3]))
    assert any(torch.equal(state, put) for state in recorder.states[at_hook:])
    assert torch.equal(kept.trajectory[3], put)
    # UniPC would correct the state it proposed; what the hook put there is not to be corrected
    alone = Recorder(GaussianModel(sde))
    sampler = make_sampler(name, grid=grid, denoise_final=False, record_trajectory=True)
    again = draw(sampler, alone, hooks=[lambda state: put.clone() if state.index == 2 else None])
    assert torch.equal(again.x0, kept.x0)


def test_unipc_starts_from_what_the_hook_put_there_not_from_its_own_correction():
    """After the hook the step of order 1 is known: sigma_s / sigma_t x - alpha_s expm1(-h) x0."""
    sde = VP()
    grid = grid_of(sde, -1.0, 2.0, 3)
    model = GaussianModel(sde)
    put = torch.full((2, 3), 0.123, dtype=torch.float64)
    states = []

    def hook(state):
        states.append(state.x)
        return put if state.index == 1 else None

    draw(make_sampler("unipc", order=1, grid=grid, denoise_final=False), model, hooks=[hook])
    t, s = grid[2:3], grid[3:4]
    h = 0.5 * float(sde.log_snr(s) - sde.log_snr(t))
    x0 = model(put, t.expand(2)).x0
    expected = float(sde.sigma(s) / sde.sigma(t)) * put - float(sde.alpha(s)) * math.expm1(-h) * x0
    assert torch.allclose(states[2], expected, rtol=1e-12)


def test_a_sum_that_overflows_is_no_state_that_is_not_finite():
    check_finite(torch.full((8,), 3e38), "step")
    with pytest.raises(FloatingPointError, match="in the step"):
        check_finite(torch.tensor([1.0, math.inf]), "step")


def test_data_in_another_scale_comes_out_in_it():
    class Half(VP):
        """Half as much signal at every time, so that alpha(0) = 1 / 2."""

        def log_alpha(self, t):
            return super().log_alpha(t) - math.log(2)

        def log_sigma(self, t):
            return VP().log_sigma(t)

    sde = Half()
    model = GaussianModel(sde)
    result = draw(make_sampler("ddim", num_steps=5, record_trajectory=True), model)
    times = make_sampler("ddim", num_steps=5).times(sde)
    last = model(result.trajectory[-2], times[-2:-1].expand(2))
    assert torch.allclose(result.x0, 0.5 * last.x0)


@pytest.mark.parametrize("name", ["unipc", "dpm_solver_pp", "heun", "ancestral"])
def test_a_hook_may_change_the_state_in_place(name):
    model = GaussianModel(VP())

    def in_place(state):
        state.x.mul_(0.9)

    found = [
        draw(make_sampler(name, num_steps=8, grid="log_snr"), model, hooks=[hook]).x0
        for hook in (in_place, lambda state: state.x * 0.9)
    ]
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("annealed_langevin", {}),
        ("euler_maruyama", {}),
        ("heun", {}),
        ("unipc", {}),
        ("probability_flow", {"solver": "heun"}),
        *(("dpm_solver_pp", {"variant": variant}) for variant in ("2M", "2S", "3M")),
    ],
)
def test_a_start_without_signal_is_refused_in_one_line_where_it_cannot_be(name, options):
    grid = torch.tensor([1.0, 0.5, 0.1, 0.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="alpha is 0 at t = 1, where this sampler cannot start; begin the grid at sde"):
        draw(make_sampler(name, grid=grid, **options), GaussianModel(CosineVP()))


@pytest.mark.parametrize("grid", ["karras", "uniform"])
def test_hardly_any_signal_is_refused_in_one_line_too(grid):
    # betas made for 1000 steps: alpha is 6e-121 at the last, and sigma / alpha beyond float32
    sde = Tabulated.ddpm(num_steps=50000)
    with pytest.raises(ValueError, match=r"hardly any signal is left at t = .*, alpha is .*e-1\d\d, where"):
        draw(make_sampler("heun", num_steps=20, grid=grid), GaussianModel(sde))


@pytest.mark.parametrize(("name", "options"), [("ddim", {}), ("ancestral", {}), ("dpm_solver_pp", {"variant": "1"})])
def test_a_start_without_signal_is_pure_noise_to_the_others(name, options):
    sde = CosineVP()
    grid = torch.tensor([1.0, 0.5, 0.1, 0.0], dtype=torch.float64)
    model = GaussianModel(sde)
    result = draw(make_sampler(name, grid=grid, record_trajectory=True, **options), model)
    # x0 is the mean there whatever x_T is
    start = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    alpha, sigma = float(sde.alpha(grid[1:2])), float(sde.sigma(grid[1:2]))
    expected = alpha * model.mean + (0.0 if name == "ancestral" else sigma) * start
    assert torch.allclose(result.trajectory[1], expected, rtol=1e-9)


@pytest.mark.parametrize("grid", [[1.0, 0.5, 0.0], (1.0, 0.0), np.array([1.0, 0.5, 0.0])])
def test_a_grid_that_is_no_tensor_is_refused_by_its_type(grid):
    with pytest.raises(ValueError, match=f"torch tensor of times, got {type(grid).__name__}; pass torch.tensor"):
        make_sampler("ddim", grid=grid)


def test_a_grid_is_the_samplers_own():
    grid = torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64)
    sampler = make_sampler("ddim", grid=grid)
    grid.fill_(0.7)
    assert sampler.times(VP()).tolist() == [1.0, 0.5, 0.0]


def test_the_langevin_corrector_takes_samples_of_one_number():
    sampler = make_sampler("predictor_corrector", num_steps=4)
    x_T = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    found = sampler.sample(ScalarModel(VP()), x_T, noise=NoiseStreams(0, range(3))).x0
    row = sampler.sample(ScalarModel(VP()), x_T[:, None], noise=NoiseStreams(0, range(3))).x0
    assert torch.equal(found, row[:, 0])


class ScalarModel(ScoreModel):
    def forward(self, x_t, t, *, cond=None):
        return Prediction(x0=x_t, eps=x_t + 1, sigma=self.sde.sigma(t))


class PartlySilent(ScoreModel):
    """eps = 0 of every other sample, as of a network whose last layer is still zero."""

    def forward(self, x_t, t, *, cond=None):
        speaks = (torch.arange(len(x_t)) % 2).to(x_t)[:, None]
        return Prediction(x0=0 * x_t, eps=speaks * x_t, sigma=self.sde.sigma(t))


@pytest.mark.parametrize("sde", [VP(), VE(sigma_max=20.0), Tabulated.ddpm()], ids=["vp", "ve", "ddpm"])
def test_a_score_of_zero_takes_the_usual_step(sde):
    """With |score| = |z| / sigma the step is 2 alpha_i (r sigma)^2, that of the annealed corrector."""
    x, indices = torch.ones(4, 3, dtype=torch.float64), range(4)
    (t,) = points_of(sde, torch.tensor([0.6], dtype=torch.float64))
    found, usual = (
        make_corrector(name, snr=0.1).step(Denoiser(PartlySilent(sde)), x, t, NoiseStreams(3, indices))
        for name in ("langevin", "annealed_langevin")
    )
    assert torch.allclose(found[::2], usual[::2], rtol=1e-6)
    assert not torch.allclose(found[1::2], usual[1::2], rtol=1e-2)
    # a single dimension too, as of a point
    alone = make_corrector("langevin").step(Denoiser(PartlySilent(sde)), x[:1, :1], t, NoiseStreams(3, [0]))
    assert torch.isfinite(alone).all()
