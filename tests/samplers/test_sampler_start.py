"""x_T is noise of the time where the grid begins, or is refused where pure noise would lose the data."""

import math

import pytest
import torch
from in_one_process import draw
from sampler_oracles import SDES, GaussianModel
from thinning import one_each, only

from samplers import GridSampler, available_samplers, make_sampler
from sde_lib import VE, VP, LearnedVP, NoiseStreams, SubVP, Tabulated, available_grids

NCSN = Tabulated.ncsn(num_steps=232, sigma_min=0.01, sigma_max=50.0)
MEAN, STD, DRAWS = 0.2, 0.3, 4000


def falling(first, num_steps=100):
    return first * torch.linspace(1, 0, num_steps + 1, dtype=torch.float64) ** 2


# grids that begin below t_max, where the noise is still much larger than the data
STARTS = {
    "ve leading": (VE(), {"grid": "leading", "num_steps": 900}),
    "ve tensor": (VE(), {"grid": falling(0.88)}),
    "ncsn leading": (NCSN, {"grid": "leading", "num_steps": 200}),
    "ncsn tensor": (NCSN, {"grid": falling(0.9)}),
    "vp leading": (VP(), {"grid": "leading", "num_steps": 200}),
    "vp tensor": (VP(), {"grid": falling(0.8)}),
    "subvp tensor": (SubVP(), {"grid": falling(0.8)}),
    "ddpm leading": (Tabulated.ddpm(), {"grid": "leading", "num_steps": 200}),
    "learned tensor": (LearnedVP(log_snr_min=-9.0).requires_grad_(False), {"grid": falling(0.9)}),
}


@pytest.mark.parametrize(("start", "name"), one_each(list(STARTS), ["ddim", "probability_flow", "ancestral"]))
def test_samples_have_the_mean_and_std_of_the_data_wherever_the_grid_begins(start, name):
    sde, options = STARTS[start]
    if name == "probability_flow":
        # each time of a grid is a start anew to an adaptive solver
        first, *_, last = make_sampler("ddim", **options).times(sde).tolist()
        ends = [first, last] if float(sde.sigma(torch.zeros(1))) > 0 else [first, sde.t_min, last]
        options = {"grid": torch.tensor(ends, dtype=torch.float64), "rtol": 1e-3, "atol": 1e-3}
    sampler = make_sampler(name, **options)
    x0, _, _ = draw(
        sampler, GaussianModel(sde, mean=MEAN, var=STD**2), sample_shape=(DRAWS,), num_samples=1, batch_size=1
    )
    # the discretization of the stochastic sampler, and what little signal the start may lack
    rough = 0.06 if name == "ancestral" else 0.03
    assert abs(float(x0.std()) / STD - 1) < rough + 5 / math.sqrt(2 * DRAWS)
    assert abs(float(x0.mean()) - MEAN) < rough + 5 * STD / math.sqrt(DRAWS)


@pytest.mark.parametrize("grid", available_grids())
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_grids_from_t_max_and_all_of_vp_draw_what_the_sde_does(sde, grid):
    sampler = make_sampler("ddim", num_steps=100, grid=grid)
    drawn = sampler.prior_sample(sde, (3, 2), NoiseStreams(5, range(4)))
    same = torch.equal(drawn, sde.prior_sample((3, 2), NoiseStreams(5, range(4))))
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    variance_preserving = torch.allclose(sde.alpha(t) ** 2 + sde.sigma(t) ** 2, torch.ones_like(t), rtol=1e-9)
    assert same == (grid != "leading" or variance_preserving)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_noise_of_a_time_has_the_size_of_x_t_there(sde):
    """Of data of variance 1, at every time with hardly any signal."""
    for t in (1.0, 0.95, 0.9, 0.85):
        t = t * sde.t_max
        time = torch.tensor([t], dtype=torch.float64)
        x_t = math.sqrt(float(sde.alpha(time)) ** 2 + float(sde.sigma(time)) ** 2)
        assert sde.prior_std_at(t) == pytest.approx(x_t, rel=2e-3)
        drawn = sde.prior_sample((50_000,), NoiseStreams(0, [0]), t=t)
        assert float(drawn.std()) == pytest.approx(x_t, rel=0.02)


# grids that begin where pure noise would lose the data, with the noise ratio there
LOST = {
    "vp 1": (VP(), {"grid": "leading", "num_steps": 1}),
    "vp 2": (VP(), {"grid": "leading", "num_steps": 2}),
    "ddpm 2": (Tabulated.ddpm(), {"grid": "leading", "num_steps": 2}),
    "ve 1": (VE(), {"grid": "leading", "num_steps": 1}),
    "ve 2": (VE(), {"grid": "leading", "num_steps": 2}),
    "ncsn 150 of 232": (NCSN, {"grid": "leading", "num_steps": 150}),
    "subvp tensor": (SubVP(), {"grid": falling(0.5)}),
    "ve tensor": (VE(), {"grid": falling(0.6)}),
    "vp tensor": (VP(), {"grid": torch.tensor([0.3, 0.0])}),
}


@pytest.mark.parametrize(("sde", "options"), LOST.values(), ids=LOST)
def test_pure_noise_is_refused_where_it_would_lose_the_data(sde, options):
    model = GaussianModel(sde)
    for name in ("ddim", "heun", "probability_flow"):
        solver = {"solver": "euler"} if name == "probability_flow" else {}
        sampler = make_sampler(name, **options, **solver)
        first = sampler.times(sde)[:1]
        words = f"begins at t = {float(first):.6g}, where x_t still holds data: alpha is {float(sde.alpha(first)):.3g}"
        with pytest.raises(ValueError, match=words.replace(".", r"\.")):
            sampler.prior_sample(sde, (2,), NoiseStreams(0, [0]))
        with pytest.raises(ValueError, match="pure noise loses up to"):
            draw(sampler, model, sample_shape=(2,), num_samples=1, batch_size=1)
        if options["grid"] == "leading":
            # whoever draws x_T elsewhere gets no garbage either
            with pytest.raises(ValueError, match="pure noise loses up to"):
                sampler.sample(model, sde.prior_sample((2,), NoiseStreams(0, [0])))


@pytest.mark.parametrize("first", [0.9, 0.7, 0.5, 0.1])
@pytest.mark.parametrize("sde", [VE(), NCSN], ids=["ve", "ncsn"])
def test_noise_of_t_max_is_refused_where_the_grid_begins_with_less(sde, first):
    sampler, flow = make_sampler("ddim", grid=falling(first)), make_sampler("probability_flow", grid=falling(first))
    x_T = sde.prior_sample((3, 8, 8), NoiseStreams(0, range(4)))
    for begin in (sampler.sample, flow.sample, flow.decode):
        with pytest.raises(
            ValueError, match=r"x_T of standard deviation (49|50|51).* is noise of t_max = 1, .*draw it with"
        ):
            begin(GaussianModel(sde), x_T)


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("scale", only((3.0,), [0.3, 1.0, 3.0]))
@pytest.mark.parametrize("shape", only(((3, 8, 8),), [(1,), (3, 8, 8)]))
def test_a_tensor_grid_may_begin_anywhere_from_data_with_noise(sde, scale, shape):
    model = GaussianModel(sde, mean=0.0, var=scale**2)
    for first in (0.9, 0.1):
        x0 = scale * NoiseStreams(1, range(8)).normal(shape)
        t = torch.full((8,), first * sde.t_max, dtype=torch.float64)
        x_t = sde.perturb(x0, t, NoiseStreams(2, range(8)).normal(shape))
        sampler = make_sampler("ddim", grid=falling(first * sde.t_max))
        rms = float(sampler.sample(model, x_t).x0.square().mean().sqrt())
        by_chance = 1 + 5 / math.sqrt(2 * x0.numel())
        assert 0.9 / by_chance < rms / scale < 1.1 * by_chance


def test_samplers_of_ones_own_begin_where_their_grid_does():
    class Own(GridSampler):
        def step(self, denoise, x, t, s, noise):
            return x

    noise = NoiseStreams(0, [0])
    drawn = Own(num_steps=900, grid="leading").prior_sample(VE(), (50_000,), noise)
    assert float(drawn.std()) == pytest.approx(0.01 * 5000**0.9, rel=0.02)
    assert set(available_samplers()) >= {"ddim", "annealed_langevin"}
