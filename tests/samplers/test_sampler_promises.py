"""Promises of every sampler: streams, batches, hooks, counted calls, errors in one line, and a registry."""

import pytest
import torch
from sampler_oracles import SDES, GaussianModel, Stacked, WithFraction, mixture
from torch import nn

from models import ClippedScoreModel, EpsParameterization, NetworkScoreModel, Prediction, ScoreModel
from samplers import (
    AncestralSampler,
    DDIMSampler,
    Denoiser,
    GridSampler,
    Sampler,
    SampleResult,
    available_samplers,
    make_sampler,
    register_sampler,
)
from sde_lib import VE, VP, NoiseStreams, SubVP, Tabulated, expand_like, points_of

EVERY = [
    ("ancestral", {"variance": "small"}),
    ("ancestral", {"variance": "large"}),
    ("ddim", {"eta": 0.0}),
    ("ddim", {"eta": 0.6}),
]


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


def draw(sampler, model, indices, *, shape=(6,), dtype=torch.float64, **kwargs):
    noise = NoiseStreams(11, indices)
    return sampler.sample(model, model.sde.prior_sample(shape, noise).to(dtype), noise=noise, **kwargs)


@pytest.mark.parametrize(("name", "options"), EVERY)
@pytest.mark.parametrize("sde", ["vp", "ve"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_image_k_is_the_same_at_any_batch_size_and_order(name, options, sde, dtype):
    model = GaussianModel(SDES[sde])
    sampler = make_sampler(name, num_steps=10, **options)
    together = draw(sampler, model, range(7), dtype=dtype).x0
    assert together.dtype == dtype
    for indices in ([0], [6], [3, 1], [5, 0, 2], [6, 5, 4, 3, 2, 1, 0]):
        assert torch.equal(draw(sampler, model, indices, dtype=dtype).x0, together[indices])


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_no_sample_depends_on_its_batch_mates(name, options):
    model = mixture(SDES["vp"])
    sampler = make_sampler(name, num_steps=10, **options)
    together = draw(sampler, model, range(5), shape=(2,)).x0
    # matrix products may round differently by batch size
    alone = torch.cat([draw(sampler, model, [k], shape=(2,)).x0 for k in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
    noise = NoiseStreams(11, range(5))
    x_T = model.sde.prior_sample((2,), noise).double()
    x_T[1:] = 1e3
    mates_moved = sampler.sample(model, x_T, noise=noise).x0
    torch.testing.assert_close(mates_moved[0], together[0], rtol=0, atol=1e-12)


def test_streams_default_to_the_global_generator():
    model, sampler = GaussianModel(VP()), AncestralSampler(num_steps=5)
    x_T = torch.ones(2, 3)
    torch.manual_seed(3)
    first = sampler.sample(model, x_T).x0
    second = sampler.sample(model, x_T).x0
    torch.manual_seed(3)
    assert torch.equal(sampler.sample(model, x_T).x0, first)
    assert not torch.equal(first, second)


class Linear(nn.Module):
    """A network that counts its own calls, and fails when told to."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.calls, self.fail_at = 0, fail_at

    def forward(self, x, c_noise, cond=None):
        self.calls += 1
        return x * (float("nan") if self.calls == self.fail_at else 0.5)


@pytest.mark.parametrize(
    ("sde", "denoise_final", "extra"),
    [
        (VP(), None, 0),
        (VP(), False, 0),
        (SubVP(), None, 0),
        (Tabulated.ddpm(), None, 0),
        (Tabulated.ncsn(), None, 0),
        (VE(), None, 1),
        (VE(), True, 1),
        (VE(), False, 0),
    ],
)
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(("name", "options"), EVERY)
def test_nfe_is_what_the_network_counts(name, options, wrap, sde, denoise_final, extra):
    network = Linear()
    model = NetworkScoreModel(network, sde, EpsParameterization())
    if wrap:
        model = ClippedScoreModel(ClippedScoreModel(model, low=-2.0, high=2.0))
    sampler = make_sampler(name, num_steps=7, denoise_final=denoise_final, **options)
    assert draw(sampler, model, range(3)).nfe == network.calls == 7 + extra
    assert draw(sampler, model, range(2)).nfe == 7 + extra


def test_final_denoising_is_the_models_x0_at_the_last_time():
    grid = torch.tensor([1.0, 0.5, 0.25])
    model = GaussianModel(VP())
    result = draw(AncestralSampler(grid=grid, denoise_final=True, record_trajectory=True), model, range(2))
    assert result.trajectory.shape == (4, 2, 6)
    expected = model(result.trajectory[-2], torch.full((2,), 0.25, dtype=torch.float64)).x0
    assert torch.equal(result.x0, expected)
    kept = draw(AncestralSampler(grid=grid, denoise_final=False), model, range(2))
    assert torch.equal(kept.x0, result.trajectory[-2])
    assert kept.nfe == 2


def test_denoise_final_without_noise_left_is_refused_before_the_first_step(refuses):
    network = Linear()
    model = NetworkScoreModel(network, VP(), EpsParameterization())
    sampler = AncestralSampler(num_steps=5, denoise_final=True)
    refuses(ValueError, lambda: draw(sampler, model, range(2)), "denoise_final", "leave denoise_final out")
    assert network.calls == 0


@pytest.mark.parametrize("sde", [VP(), VE()])
def test_trajectory_runs_from_the_prior_to_x0(sde):
    model = GaussianModel(sde)
    result = draw(DDIMSampler(num_steps=4, eta=0.5, record_trajectory=True), model, range(3), dtype=torch.float32)
    noise = NoiseStreams(11, range(3))
    assert result.trajectory.shape == (5 + (sde.sigma(torch.zeros(1)) > 0).item(), 3, 6)
    assert result.trajectory.dtype == torch.float32
    assert torch.equal(result.trajectory[0], sde.prior_sample((6,), noise))
    assert torch.equal(result.trajectory[-1], result.x0)
    assert draw(DDIMSampler(num_steps=4), model, range(3)).trajectory is None


def test_hooks_see_every_step_in_order_and_chain():
    model = GaussianModel(VP())
    sampler = AncestralSampler(num_steps=4, grid="quadratic", record_trajectory=True)
    seen, doubled = [], []

    def watch(state):
        seen.append(state)

    def double(state):
        return 2 * state.x

    def check_doubled(state):
        doubled.append(state.x)

    result = draw(sampler, model, range(2), hooks=[watch, double, check_doubled])
    grid = sampler.times(model.sde).tolist()
    assert [(s.index, s.num_steps, s.t, s.s) for s in seen] == [(i, 4, grid[i], grid[i + 1]) for i in range(4)]
    assert all(s.sde is model.sde for s in seen)
    for i in range(4):
        assert torch.equal(doubled[i], 2 * seen[i].x)
        assert torch.equal(result.trajectory[i + 1], doubled[i])
    # a replaced state is what the next step starts from
    x = doubled[0]
    t, s = points_of(model.sde, sampler.times(model.sde)[1:3])
    noise = NoiseStreams(11, range(2))
    noise.normal((6,)), noise.normal((6,))
    assert torch.equal(sampler.step(Denoiser(model), x, t, s, noise), seen[1].x)


def test_hooks_keep_the_dtype_and_may_not_change_the_shape(refuses):
    model, sampler = GaussianModel(VP()), DDIMSampler(num_steps=3)
    result = draw(sampler, model, range(2), dtype=torch.float32, hooks=[lambda state: state.x.double()])
    assert result.x0.dtype == torch.float32
    refuses(
        ValueError, lambda: draw(sampler, model, range(2), hooks=[lambda state: state.x[:, :3]]), "[2, 6]", "[2, 3]"
    )


def test_inpainting_by_a_hook_follows_the_chains_recursion():
    # x = (known, unknown), correlated; the known half is replaced at every step by its own noisy version (Song et al.
    # 2021, Appendix I.2). That is only near the conditional law: the truth here is the chain's own linear recursion.
    corr, known, num_steps, points = 0.8, 1.2, 20, 20_000
    sde = VP()

    class Correlated(ScoreModel):
        def forward(self, x_t, t, *, cond=None):
            cov = torch.tensor([[1.0, corr], [corr, 1.0]], dtype=torch.float64)
            alpha, sigma = float(sde.alpha(t)[0]), float(sde.sigma(t)[0])
            inverse = torch.linalg.inv(alpha**2 * cov + sigma**2 * torch.eye(2, dtype=torch.float64))
            pairs = x_t.reshape(len(x_t), -1, 2)
            x0, eps = alpha * pairs @ inverse @ cov, sigma * pairs @ inverse
            return Prediction(x0=x0.reshape(x_t.shape), eps=eps.reshape(x_t.shape), sigma=sde.sigma(t))

    replaced = NoiseStreams(12, range(2))

    def keep_known(state):
        s = torch.full((2,), state.s, dtype=torch.float64)
        pairs = state.x.reshape(2, -1, 2).clone()
        given = torch.full((2, points), known, dtype=torch.float64)
        pairs[:, :, 0] = state.sde.perturb(given, s, replaced.normal_like(given))
        return pairs.reshape(state.x.shape)

    sampler = AncestralSampler(num_steps=num_steps)
    x0 = draw(sampler, Correlated(sde), range(2), shape=(2 * points,), hooks=[keep_known]).x0.reshape(-1, 2)
    assert torch.equal(x0[:, 0], torch.full_like(x0[:, 0], known))

    # mean and covariance of (x_s, noise-replaced) through the same steps, in plain formulas
    grid = sampler.times(sde)
    alpha, sigma = sde.alpha(grid).tolist(), sde.sigma(grid).tolist()
    cov0 = torch.tensor([[1.0, corr], [corr, 1.0]], dtype=torch.float64)
    mean, cov = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    for i in range(num_steps):
        power = alpha[i] ** 2 * cov0 + sigma[i] ** 2 * torch.eye(2, dtype=torch.float64)
        forward_var = sigma[i] ** 2 - (alpha[i] / alpha[i + 1]) ** 2 * sigma[i + 1] ** 2
        gain = alpha[i + 1] * forward_var / sigma[i] ** 2 * alpha[i] * cov0 @ torch.linalg.inv(power)
        gain = gain + alpha[i] / alpha[i + 1] * sigma[i + 1] ** 2 / sigma[i] ** 2 * torch.eye(2, dtype=torch.float64)
        mean, cov = gain @ mean, gain @ cov @ gain.T
        unknown_var = float(cov[1, 1]) + forward_var * sigma[i + 1] ** 2 / sigma[i] ** 2
        mean = torch.tensor([alpha[i + 1] * known, float(mean[1])], dtype=torch.float64)
        cov = torch.tensor([[sigma[i + 1] ** 2, 0.0], [0.0, unknown_var]], dtype=torch.float64)
    var = float(cov[1, 1])
    assert abs(float(x0[:, 1].mean() - mean[1])) < 5 * (var / len(x0)) ** 0.5
    assert abs(float(x0[:, 1].var()) / var - 1) < 5 * (2 / len(x0)) ** 0.5
    # and the known half does pull the unknown one its way
    assert float(mean[1]) > 0.5 * corr * known


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_state_that_stops_being_finite_is_reported_with_its_time(name, options, refuses):
    sampler = make_sampler(name, num_steps=5, **options)
    model = NetworkScoreModel(Linear(fail_at=3), VP(), EpsParameterization())
    refuses(FloatingPointError, lambda: draw(sampler, model, range(2)), "t = 0.6 to 0.4")
    # VE's sixth call is the final denoising
    model = NetworkScoreModel(Linear(fail_at=6), VE(), EpsParameterization())
    refuses(FloatingPointError, lambda: draw(sampler, model, range(2)), "final denoising at t = 0")


def test_conditions_reach_the_model():
    class Conditional(GaussianModel):
        def forward(self, x_t, t, *, cond=None):
            raw = super().forward(x_t, t)
            x0 = expand_like(cond, x_t).expand_as(x_t)
            return Prediction.from_x0(x_t, x0, alpha=self.sde.alpha(t), sigma=raw.sigma)

    cond = torch.tensor([0.25, -0.5, 1.0])
    for sde in (VP(), VE()):
        for name, options in EVERY:
            x0 = draw(make_sampler(name, num_steps=3, **options), Conditional(sde), range(3), cond=cond).x0
            torch.testing.assert_close(x0, cond.double()[:, None].expand(3, 6), rtol=0, atol=1e-7)


def test_samplers_leave_gradients_and_the_start_alone():
    model = NetworkScoreModel(nn.ModuleList([]), VP(), EpsParameterization())
    model.backbone = Linear()
    x_T = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    result = AncestralSampler(num_steps=3).sample(model, x_T, noise=NoiseStreams(0, range(2)))
    assert not result.x0.requires_grad
    assert torch.equal(x_T, torch.ones_like(x_T))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: make_sampler("dddim", num_steps=3), ["'dddim'", "did you mean 'ddim'", "ancestral"]),
        (lambda: make_sampler("ancestral", nmu_steps=3), ["'nmu_steps'", "did you mean 'num_steps'", "variance"]),
        (lambda: make_sampler("ddim", num_steps=3, variance="small"), ["'variance'", "eta", "denoise_final"]),
        (lambda: make_sampler("ancestral", num_steps=0), ["num_steps", "at least 1", "got 0"]),
        (lambda: make_sampler("ancestral", num_steps=-2), ["got -2"]),
        (lambda: make_sampler("ddim"), ["num_steps", "got None"]),
        (lambda: make_sampler("ddim", num_steps=3, eta=1.5), ["eta", "[0, 1]", "1.5"]),
        (lambda: make_sampler("ddim", num_steps=3, eta=-0.1), ["eta", "-0.1"]),
        (lambda: make_sampler("ddim", num_steps=3, eta=float("nan")), ["eta", "nan"]),
        (lambda: make_sampler("ancestral", num_steps=3, variance="tiny"), ["'tiny'", "large, learned, small"]),
        (lambda: make_sampler("ddim", num_steps=3, grid=torch.tensor([1.0, 0.5, 0.0])), ["2 steps", "num_steps = 3"]),
        (lambda: make_sampler("ddim", grid=torch.tensor([0.0, 0.5, 1.0])), ["grid times", "fall"]),
        (lambda: draw(make_sampler("ddim", num_steps=3, grid="unifrom"), GaussianModel(VP()), range(2)), ["'uniform'"]),
        (
            lambda: draw(make_sampler("ancestral", num_steps=3, variance="learned"), GaussianModel(VP()), range(2)),
            ["'learned'", "use 'small' or 'large'"],
        ),
        (
            lambda: AncestralSampler(num_steps=3).sample(
                GaussianModel(VP()), torch.ones(3, 2), noise=NoiseStreams(0, range(2))
            ),
            ["2 streams", "batch of 3"],
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(build, words, refuses):
    refuses(ValueError, build, *words)


def test_a_grid_of_times_needs_no_num_steps_and_agrees_with_the_named_one():
    model = GaussianModel(SubVP())
    named = DDIMSampler(num_steps=6, grid="quadratic")
    times = named.times(model.sde)
    for sampler in (DDIMSampler(grid=times), DDIMSampler(grid=times, num_steps=6)):
        assert torch.equal(draw(sampler, model, range(2)).x0, draw(named, model, range(2)).x0)


@pytest.fixture
def registered():
    """Take what a test registers out again."""
    from samplers import registry

    factories = registry.SAMPLERS._factories
    before = dict(factories)
    yield
    factories.clear()
    factories.update(before)


def test_a_users_sampler_is_built_by_name_and_names_are_unique(registered, refuses):
    @register_sampler("heavy_ball")
    class Shrink(GridSampler):
        own_last_step = True

        def __init__(self, *, factor: float = 0.5, **kwargs):
            super().__init__(**kwargs)
            self.factor = factor

        def step(self, denoise, x, t, s, noise):
            denoise(x, t)
            return self.factor * x

    assert "heavy_ball" in available_samplers()
    sampler = make_sampler("heavy_ball", num_steps=3, factor=0.25)
    x_T = torch.ones(2, 3)
    result = sampler.sample(GaussianModel(VP()), x_T)
    assert torch.equal(result.x0, torch.full((2, 3), 0.25**3))
    assert result.nfe == 3
    refuses(ValueError, lambda: make_sampler("heavy_ball", num_steps=3, facto=1), "'factor'", "grid")

    def another(**kwargs):
        return Shrink(**kwargs)

    for name in ("heavy_ball", "ddim"):
        refuses(ValueError, lambda name=name: register_sampler(name)(another), f"'{name}'", "already registered")
    assert isinstance(make_sampler("ddim", num_steps=3), DDIMSampler)

    # a sampler that is no GridSampler, and a factory that takes anything
    @register_sampler("zeros")
    class Zeros(Sampler):
        def sample(self, model, x_T, *, cond=None, noise=None, hooks=()):
            return SampleResult(x0=torch.zeros_like(x_T), nfe=0)

    assert make_sampler("zeros").sample(GaussianModel(VP()), x_T).nfe == 0
    register_sampler("anything")(another)
    assert make_sampler("anything", num_steps=2, factor=0.1).factor == 0.1


def test_samplers_hold_no_model():
    for name in ("ancestral", "ddim"):
        held = vars(make_sampler(name, num_steps=3)).values()
        assert not any(isinstance(value, nn.Module) for value in held)


def test_learned_fractions_pass_through_clipping():
    model = WithFraction(Stacked(mixture(VP()), 2), 1.0)
    clipped = ClippedScoreModel(model, low=-10.0, high=10.0)
    learned = draw(AncestralSampler(num_steps=6, variance="learned"), clipped, range(2)).x0
    large = draw(AncestralSampler(num_steps=6, variance="large"), clipped, range(2)).x0
    torch.testing.assert_close(learned, large, rtol=0, atol=1e-12)
