"""Every sampler on every SDE: it reaches the data, keeps streams apart, counts its calls and fails in one line."""

import pytest
import torch
from sampler_oracles import SDES, GaussianModel, Stacked, mixture
from score_samplers import OF_SCORES
from thinning import one_each, only
from torch import nn

from models import EpsParameterization, NetworkScoreModel
from samplers import make_sampler, registry
from sde_lib import VE, VP, NoiseStreams

# name, options, network calls of n steps onto zero noise, and of n steps that leave noise, with the final denoising
EVERY = {
    "euler_maruyama": ("euler_maruyama", {}, lambda n: n, lambda n: n + 1),
    "reverse_diffusion": ("reverse_diffusion", {}, lambda n: n, lambda n: n + 1),
    "pc": ("predictor_corrector", {"snr": 0.1}, lambda n: 2 * n - 1, lambda n: 2 * n + 1),
    "pc ald": (
        "predictor_corrector",
        {"predictor": "ancestral", "corrector": "annealed_langevin", "snr": 0.1, "corrector_steps": 2},
        lambda n: 3 * n - 2,
        lambda n: 3 * n + 1,
    ),
    "corrector alone": (
        "predictor_corrector",
        {"predictor": "none", "corrector": "annealed_langevin", "corrector_steps": 4, "snr": 0.3},
        lambda n: 4 * n - 3,
        lambda n: 4 * n + 1,
    ),
    "annealed_langevin": (
        "annealed_langevin",
        {"steps_per_level": 10},
        lambda n: 10 * n + 1,
        lambda n: 10 * n + 11,
    ),
    "heun": ("heun", {}, lambda n: 2 * n - 1, lambda n: 2 * n + 1),
    "heun churn": ("heun", {"churn": 5.0}, lambda n: 2 * n - 1, lambda n: 2 * n + 1),
    "dpm 2M": ("dpm_solver_pp", {}, lambda n: n, lambda n: n + 1),
    "dpm 2S": ("dpm_solver_pp", {"variant": "2S"}, lambda n: 2 * n - 1, lambda n: 2 * n + 1),
    "dpm 3M": ("dpm_solver_pp", {"variant": "3M"}, lambda n: n, lambda n: n + 1),
    "sde-dpm 2M": ("dpm_solver_pp", {"stochastic": True}, lambda n: n, lambda n: n + 1),
    "sde-dpm 3M": ("dpm_solver_pp", {"stochastic": True, "variant": "3M"}, lambda n: n, lambda n: n + 1),
    "unipc 1": ("unipc", {"order": 1}, lambda n: n, lambda n: n + 1),
    "unipc 2": ("unipc", {"order": 2}, lambda n: n, lambda n: n + 1),
    "unipc 3": ("unipc", {"order": 3, "b_function": "bh1"}, lambda n: n, lambda n: n + 1),
}
CELLS = pytest.mark.parametrize("cell", EVERY.values(), ids=EVERY)


def draw(sampler, model, indices, *, shape=(6,), dtype=torch.float64, **kwargs):
    noise = NoiseStreams(11, indices)
    return sampler.sample(model, model.sde.prior_sample(shape, noise).to(dtype), noise=noise, **kwargs)


# correctors that walk alone take longest; annealed_langevin is one of them
LONG = ["corrector alone", "pc ald"]
SHORT = [name for name in EVERY if name not in LONG]


# each sampler's steps are compared with the papers' elsewhere, and those without noise have orders, on the mixture too:
# what is fast here is that the whole way arrives
FAST = ["euler_maruyama", "reverse_diffusion", "pc", "sde-dpm 2M"]


@pytest.mark.parametrize(
    ("cell", "sde"),
    [
        *one_each([name for name in SHORT if name in FAST], list(SDES)),
        *one_each([*LONG, *(name for name in SHORT if name not in FAST)], [], slow=list(SDES)),
    ],
)
def test_every_sampler_reaches_the_mixture_on_every_sde(cell, sde):
    (name, options, _, _), sde = EVERY[cell], SDES[sde]
    model = Stacked(mixture(sde), 2)
    mean, cov = model.model.mean_and_cov()
    errors = []
    for num_steps in (40, 160):
        # Langevin steps have a bias of their own, which falls with their size; more levels leave each less to do
        options = dict(options)
        if "snr" in options:
            options["snr"] = options["snr"] if num_steps == 40 else 0.5 * options["snr"]
        grid = "uniform" if name == "euler_maruyama" and sde is SDES["vp"] else "log_snr"
        x0 = draw(make_sampler(name, num_steps=num_steps, grid=grid, **options), model, range(2), shape=(4000,)).x0
        points = x0.reshape(-1, 2)
        error = torch.cat([points.mean(0) - mean, (points.T.cov() - cov).flatten()])
        errors.append(float(error.abs().max()))
    # 4000 points of standard deviation 0.75: 5 standard errors are 0.06, and the rest is what the steps leave
    assert errors[1] < 0.06 + 0.06, errors
    assert errors[1] < errors[0] + 0.06, errors


@CELLS
@pytest.mark.parametrize("sde", only(("vp",), ["vp", "ve"]))
def test_image_k_is_the_same_at_any_batch_size_and_order(sde, cell):
    name, options, _, _ = cell
    model = GaussianModel(SDES[sde])
    sampler = make_sampler(name, num_steps=6, **options)
    for dtype in (torch.float32, torch.float64):
        together = draw(sampler, model, range(5), dtype=dtype).x0
        assert together.dtype == dtype
        for indices in ([0], [3, 1], [4, 3, 2, 1, 0]):
            assert torch.equal(draw(sampler, model, indices, dtype=dtype).x0, together[indices])


@CELLS
def test_no_sample_depends_on_its_batch_mates(cell):
    name, options, _, _ = cell
    model = mixture(SDES["vp"])
    sampler = make_sampler(name, num_steps=6, **options)
    together = draw(sampler, model, range(4), shape=(2,)).x0
    noise = NoiseStreams(11, range(4))
    x_T = model.sde.prior_sample((2,), noise).double()
    x_T[1:] = 1e3
    moved = sampler.sample(model, x_T, noise=noise).x0
    torch.testing.assert_close(moved[0], together[0], rtol=0, atol=1e-11)


class Linear(nn.Module):
    """A network that counts its own calls, and fails when told to."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.calls, self.fail_at = 0, fail_at

    def forward(self, x, c_noise, cond=None):
        self.calls += 1
        return x * (float("nan") if self.calls == self.fail_at else 0.5)


@CELLS
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_nfe_is_what_the_network_counts_and_what_is_promised(cell, num_steps):
    name, options, onto_zero, leaving_noise = cell
    for sde, promised in ((VP(), onto_zero), (VE(), leaving_noise)):
        network = Linear()
        result = draw(
            make_sampler(name, num_steps=num_steps, **options),
            NetworkScoreModel(network, sde, EpsParameterization()),
            [0],
        )
        assert result.nfe == network.calls == promised(num_steps)


@CELLS
def test_a_network_that_fails_is_reported_with_its_time(cell):
    name, options, _, _ = cell
    model = NetworkScoreModel(Linear(fail_at=4), VP(), EpsParameterization())
    with pytest.raises(FloatingPointError, match=r"t = [01]") as caught:
        draw(make_sampler(name, num_steps=5, **options), model, [0, 1])
    assert "\n" not in str(caught.value)


@CELLS
def test_one_step_onto_zero_noise_is_tweedie_on_any_grid(cell):
    name, options, _, _ = cell
    if name == "annealed_langevin":
        pytest.skip("it has steps at the first level before")
    for sde_name in ("vp", "cosine", "subvp", "ddpm", "ncsn"):
        model = GaussianModel(SDES[sde_name])
        x_T = model.sde.prior_sample((6,), NoiseStreams(11, [0, 1])).double()
        for grid in ("uniform", "quadratic", "trailing", "karras", "log_snr"):
            sampler = make_sampler(name, num_steps=1, grid=grid, **options)
            expected = model(x_T, sampler.times(model.sde)[:1].expand(2)).x0
            assert torch.equal(sampler.sample(model, x_T, noise=NoiseStreams(11, [0, 1])).x0, expected)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: make_sampler("predictor_corrector", num_steps=3, predictor="eulr"), ["'eulr'", "reverse_diffusion"]),
        (
            lambda: make_sampler("predictor_corrector", num_steps=3, corrector="lang"),
            ["did you mean 'langevin'", "none"],
        ),
        (lambda: make_sampler("predictor_corrector", num_steps=3, snr=0.0), ["snr", "above 0", "got 0.0"]),
        (lambda: make_sampler("predictor_corrector", num_steps=3, snr=float("nan")), ["snr", "nan"]),
        (lambda: make_sampler("predictor_corrector", num_steps=3, corrector_steps=0), ["corrector_steps", "got 0"]),
        (lambda: make_sampler("predictor_corrector", num_steps=3, predictor="none", corrector="none"), ["both 'none'"]),
        (lambda: make_sampler("predictor_corrector", num_steps=0), ["num_steps", "got 0"]),
        (lambda: make_sampler("annealed_langevin", num_steps=3, steps_per_level=0), ["steps_per_level", "got 0"]),
        (lambda: make_sampler("annealed_langevin", num_steps=3, step_size=-1.0), ["step_size", "-1.0"]),
        (
            lambda: draw(make_sampler("annealed_langevin", num_steps=3, step_size=1.0), GaussianModel(VE()), [0]),
            ["step_size", "below"],
        ),
        (lambda: make_sampler("heun", num_steps=3, churn=-1.0), ["churn", "-1.0"]),
        (lambda: make_sampler("heun", num_steps=3, churn_min=2.0, churn_max=1.0), ["churn_min", "churn_max"]),
        (lambda: make_sampler("heun", num_steps=3, noise_std=0.0), ["noise_std", "0.0"]),
        (lambda: make_sampler("dpm_solver_pp", num_steps=3, variant="4M"), ["'4M'", "2M", "3M"]),
        (lambda: make_sampler("dpm_solver_pp", num_steps=3, correction="no"), ["'no'", "published"]),
        (lambda: make_sampler("dpm_solver_pp", num_steps=3, variant="2S", stochastic=True), ["stochastic", "2M"]),
        (lambda: make_sampler("dpm_solver_pp", num_steps=3, warm_start=True), ["warm_start", "3M"]),
        (lambda: make_sampler("unipc", num_steps=3, order=4), ["order", "1, 2 or 3", "got 4"]),
        (lambda: make_sampler("unipc", num_steps=3, b_function="bh3"), ["'bh3'", "bh1, bh2"]),
        (lambda: make_sampler("heun", num_steps=2.5), ["num_steps", "whole number", "2.5"]),
        (
            lambda: make_sampler("heun", num_steps=3).sample(GaussianModel(VP()), torch.ones(2, 3).long()),
            ["x_T", "int64"],
        ),
        (lambda: make_sampler("heun", grid=torch.tensor([1.0])), ["at least 2 times"]),
        (lambda: make_sampler("heun", grid=torch.tensor([1.5, 0.0])), ["[0, 1]", "1.5"]),
        (
            lambda: draw(make_sampler("heun", grid=torch.tensor([1.0, 0.5, 0.1])), GaussianModel(SDES["cosine"]), [0]),
            ["alpha is 0 at t = 1", "t_max"],
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(build, words):
    with pytest.raises(ValueError) as caught:
        build()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_start_that_is_not_finite_is_refused():
    with pytest.raises(FloatingPointError, match="start x_T"):
        make_sampler("heun", num_steps=3).sample(GaussianModel(VP()), torch.full((1, 2), float("nan")))


def test_every_registered_sampler_is_in_a_table():
    tested = {name for name, *_ in EVERY.values()} | {"ancestral", "ddim", "probability_flow"}
    ours = {name for name in OF_SCORES if registry.SAMPLERS.get(name).__module__.startswith("samplers.")}
    assert ours == tested
