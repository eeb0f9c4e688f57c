"""Models of the posterior against the exact one of Gaussian data, and against their own definitions."""

from collections.abc import Callable
from itertools import pairwise, product

import pytest
import torch
from thinning import only
from torch import Tensor

from models import (
    Condition,
    GaussianMixtureScoreModel,
    GuidedScoreModel,
    LabelledMixtureScoreModel,
    count_network_calls,
)
from models.operators import CircularBlur, Downsampling, Inpainting, LinearOperator, MatrixOperator
from models.wrappers.posterior import (
    DDNMScoreModel,
    DPSScoreModel,
    DPSStepScoreModel,
    MMPSScoreModel,
    ObservedScoreModel,
    PiGDMScoreModel,
    TMPDScoreModel,
    available_posteriors,
    gmres,
    make_posterior,
)
from samplers import AncestralSampler, make_sampler
from samplers.denoiser import Denoiser
from sde_lib import VE, VP, NoiseStreams, points_of

TIMES = torch.tensor([0.003, 0.1, 0.4, 0.7, 0.97], dtype=torch.float64)
GENERATOR = torch.Generator().manual_seed(3)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


ROOT = torch.eye(8, dtype=torch.float64) + 0.3 * _random(8, 8)
MEAN, COV = _random(8), ROOT @ ROOT.T


class _AsImages(GaussianMixtureScoreModel):
    """A Gaussian of 8 numbers as images [1, 2, 4]."""

    def forward(self, x_t, t, *, cond=None):
        answer = super().forward(x_t.flatten(1), t, cond=cond)
        return type(answer)(x0=answer.x0.view_as(x_t), eps=answer.eps.view_as(x_t), sigma=answer.sigma)


def _prior(sde=None, images: bool = False) -> GaussianMixtureScoreModel:
    return (_AsImages if images else GaussianMixtureScoreModel)(sde or VP(), means=MEAN[None], covs=COV[None])


def _told(y: Tensor, batch: int) -> Condition:
    return Condition(measurement=y.expand(batch, *y.shape).clone())


def _matrix(operator: LinearOperator) -> Tensor:
    return operator.forward(torch.eye(8, dtype=torch.float64).view(8, *operator.shape)).flatten(1).T


OPERATORS = {
    "matrix": lambda: MatrixOperator(_random(3, 8)),
    "half": lambda: Inpainting((1, 2, 4), hidden="right"),
    "boxes": lambda: Downsampling((1, 2, 4), factor=2),
    "blur": lambda: CircularBlur((1, 2, 4), std=0.5),
}


@pytest.mark.parametrize("noise_std", [0.0, 0.2])
@pytest.mark.parametrize("sde", [VP(), VE(sigma_max=20.0)], ids=["vp", "ve"])
@pytest.mark.parametrize("name", OPERATORS)
def test_moment_matching_is_the_exact_posterior_of_gaussian_data(name: str, sde, noise_std: float) -> None:
    operator = OPERATORS[name]()
    y = _random(*operator.observed_shape)
    exact = _prior(sde).posterior(_matrix(operator), y.flatten(), noise_std=noise_std)
    model = MMPSScoreModel(_prior(sde, operator.shape != (8,)), operator, noise_std=noise_std, iterations=8)
    x_t = 2 * _random(len(TIMES), *operator.shape)
    with count_network_calls(model) as counter:
        found = model(x_t, TIMES, cond=_told(y, len(TIMES)))
    wanted = exact(x_t.flatten(1), TIMES)
    assert counter.calls == 1
    torch.testing.assert_close(found.x0.flatten(1), wanted.x0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(found.eps.flatten(1), wanted.eps, rtol=1e-6, atol=1e-6)


def test_one_number_is_all_that_a_moment_projection_needs() -> None:
    operator = MatrixOperator(_random(1, 8))
    x_t, told = _random(len(TIMES), 8), _told(_random(1), len(TIMES))
    found = TMPDScoreModel(_prior(), operator, noise_std=0.3)(x_t, TIMES, cond=told)
    wanted = MMPSScoreModel(_prior(), operator, noise_std=0.3)(x_t, TIMES, cond=told)
    torch.testing.assert_close(found.x0, wanted.x0, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", [PiGDMScoreModel, DDNMScoreModel])
def test_white_data_of_the_variance_told_are_exact(method: type[PiGDMScoreModel]) -> None:
    operator, y = MatrixOperator(_random(3, 8)), _random(3)
    white = GaussianMixtureScoreModel(VP(), means=torch.zeros(1, 8), covs=2.5 * torch.eye(8)[None])
    exact = white.posterior(operator.matrix, y, noise_std=0.3)
    x_t = _random(len(TIMES), 8)
    model = method(white, operator, noise_std=0.3, data_var=2.5)
    torch.testing.assert_close(model(x_t, TIMES, cond=_told(y, len(TIMES))).x0, exact(x_t, TIMES).x0)


def _gradient_of(log_likelihood: Callable[[Tensor], Tensor], x_t: Tensor) -> Tensor:
    leaf = x_t.clone().requires_grad_()
    return torch.autograd.grad(log_likelihood(leaf).sum(), leaf)[0]


@pytest.mark.parametrize("name", ["dps", "pigdm"])
def test_guidance_is_the_gradient_of_the_likelihood_that_is_assumed(name: str) -> None:
    operator, y, s = MatrixOperator(_random(3, 8)), _random(3), 0.4
    two = GaussianMixtureScoreModel(VP(), means=torch.stack([MEAN, -MEAN]), covs=torch.stack([COV, 0.2 * COV]))
    model = make_posterior(name, model=two, operator=operator, noise_std=s)
    x_t = _random(len(TIMES), 8)
    alpha, sigma = VP().alpha_sigma(TIMES)
    spread = torch.zeros_like(sigma) if name == "dps" else sigma**2 / (alpha**2 + sigma**2)
    cov = spread[:, None, None] * operator.matrix @ operator.matrix.T + s**2 * torch.eye(3, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(torch.zeros(len(TIMES), 3, dtype=torch.float64), cov)

    def log_likelihood(x: Tensor) -> Tensor:
        return normal.log_prob(y - two(x, TIMES).x0 @ operator.matrix.T)

    gradient = _gradient_of(log_likelihood, x_t)
    found, plain = model(x_t, TIMES, cond=_told(y, len(TIMES))), two(x_t, TIMES)
    torch.testing.assert_close(found.eps, plain.eps - sigma[:, None] * gradient, rtol=1e-9, atol=1e-9)
    # alpha x0 + sigma eps stays x_t
    torch.testing.assert_close(alpha[:, None] * found.x0 + sigma[:, None] * found.eps, x_t)
    if isinstance(model, PiGDMScoreModel):
        misfit = y - plain.x0 @ operator.matrix.T
        torch.testing.assert_close(model.log_likelihood(misfit, TIMES), log_likelihood(x_t))


def test_the_published_step_ends_with_the_gradient_of_each_samples_misfit() -> None:
    operator, y, scale = MatrixOperator(_random(3, 8)), _random(4, 3), 0.7
    prior, x_T = _prior(), _random(4, 8)
    sampler = AncestralSampler(num_steps=7, record_trajectory=True)
    times = sampler.times(prior.sde)
    model = DPSStepScoreModel(prior, operator, times=times, scale=scale)
    found = sampler.sample(model, x_T, cond=Condition(measurement=y), noise=NoiseStreams(0, range(4))).trajectory
    points, noise = points_of(prior.sde, times), NoiseStreams(0, range(4))
    x = x_T
    for k, (t, s) in enumerate(pairwise(points)):
        plain = Denoiser(prior, None)
        moved = s.alpha * plain(x, t).x0 if s.sigma == 0 else sampler.step(plain, x, t, s, noise)
        misfit = _gradient_of(lambda z, t=t: (y - prior(z, t.times_for(z)).x0 @ operator.matrix.T).norm(dim=1), x)
        x = moved - scale * misfit
        torch.testing.assert_close(found[k + 1], x, rtol=1e-9, atol=1e-9)


def test_twice_the_scale_is_twice_the_guidance() -> None:
    operator, told, x_t = MatrixOperator(_random(2, 8)), _told(_random(2), len(TIMES)), _random(len(TIMES), 8)
    plain = _prior()(x_t, TIMES).x0
    once, twice = (
        DPSScoreModel(_prior(), operator, noise_std=0.5, scale=scale)(x_t, TIMES, cond=told).x0 - plain
        for scale in (1.0, 2.0)
    )
    torch.testing.assert_close(twice, 2 * once)


def test_the_null_space_method_fits_a_measurement_without_noise() -> None:
    operator, y = Downsampling((1, 2, 4), factor=2), _random(1, 1, 2)
    x_t, plain = _random(len(TIMES), 1, 2, 4), _prior(images=True)
    found = DDNMScoreModel(plain, operator, noise_std=0.0)(x_t, TIMES, cond=_told(y, len(TIMES))).x0
    torch.testing.assert_close(operator.forward(found), y.expand(len(TIMES), -1, -1, -1))
    change = found - plain(x_t, TIMES).x0
    # of all changes that do so the least
    torch.testing.assert_close(operator.pseudo_inverse(operator.forward(change)), change)


def test_gmres_solves_any_system_and_each_sample_alone() -> None:
    matrices = torch.eye(6).double() + 0.4 * _random(4, 6, 6)
    matrices[2] = torch.eye(6)  # solved after one iteration
    right = _random(4, 6)
    right[3] = 0.0

    def apply(v: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", matrices[: len(v)], v)

    found = gmres(apply, right, iterations=9)
    torch.testing.assert_close(apply(found), right, rtol=0, atol=1e-9)
    assert torch.equal(gmres(apply, right[:2], iterations=9), found[:2])
    residuals = [(apply(gmres(apply, right, iterations=n)) - right).norm(dim=1) for n in range(1, 7)]
    assert all(bool((b <= a + 1e-9).all()) for a, b in pairwise(residuals))
    # two iterations: the least residual of all combinations of b and M b
    krylov = torch.stack([right[0], matrices[0] @ right[0]], 1)
    least = torch.linalg.lstsq(matrices[0] @ krylov, right[0]).solution
    torch.testing.assert_close(gmres(apply, right, iterations=2)[0], krylov @ least)


@pytest.mark.parametrize(
    "case",
    only(
        [*product(available_posteriors(), ("ddim", "ancestral")), ("mmps", "probability_flow")],
        product(available_posteriors(), ("ddim", "ancestral", "probability_flow")),
    ),
)
def test_no_sample_depends_on_its_batch_mates_in_any_sampler(case: tuple[str, str]) -> None:
    name, sampler = case
    operator = MatrixOperator(_random(2, 8))
    model = make_posterior(name, model=_prior(), operator=operator, noise_std=1.0)
    steps = {} if sampler == "probability_flow" else {"num_steps": 6}
    sampled, told = make_sampler(sampler, **steps), Condition(measurement=_random(3, 2))
    x_T = _random(3, 8)
    together = sampled.sample(model, x_T, cond=told, noise=NoiseStreams(0, range(3))).x0
    alone = sampled.sample(model, x_T[2:], cond=told[2:], noise=NoiseStreams(0, [2])).x0
    torch.testing.assert_close(together[2:], alone, rtol=0, atol=1e-12 if steps else 1e-3)


def test_a_guided_model_may_be_inside() -> None:
    mixture = LabelledMixtureScoreModel(
        VP(), means=torch.stack([MEAN, -MEAN]), covs=torch.stack([COV, COV]), labels=[0, 1]
    )
    operator, y, labels = MatrixOperator(_random(2, 8)), _random(5, 2), torch.tensor([0, 1, 0, 1, 0])
    x_t = _random(5, 8)
    guided = GuidedScoreModel(mixture, weight=1.0)
    found = MMPSScoreModel(guided, operator, noise_std=0.2)(x_t, TIMES, cond=Condition(label=labels, measurement=y))
    for k in range(5):
        exact = mixture.of_class(int(labels[k])).posterior(operator.matrix, y[k], noise_std=0.2)
        torch.testing.assert_close(found.x0[k : k + 1], exact(x_t[k : k + 1], TIMES[k : k + 1]).x0)


OPERATOR = MatrixOperator(torch.ones(1, 8))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DPSScoreModel(_prior(), OPERATOR, noise_std=0.0), "DPSScoreModel must be above 0, got 0"),
        (lambda: TMPDScoreModel(_prior(), OPERATOR, noise_std=0.0), "TMPDScoreModel must be above 0, got 0"),
        (lambda: MMPSScoreModel(_prior(), OPERATOR, noise_std=-1.0), "must be at least 0, got -1"),
        (lambda: MMPSScoreModel(_prior(), OPERATOR, noise_std=0.0, iterations=0), "iterations must be"),
        (lambda: PiGDMScoreModel(_prior(), OPERATOR, noise_std=0.0, data_var=0.0), "data_var must be above 0"),
        (lambda: _ask(None), "needs a measurement, got none"),
        (lambda: _ask(torch.zeros(2, dtype=torch.int64)), "needs a measurement, got none"),
        (lambda: _ask(Condition(measurement=torch.ones(2, 3))), r"gives observations \[1\], got \[3\]"),
        (lambda: _ask(Condition(measurement=torch.ones(2, 1)), size=4), r"is of samples \[8\], got \[4\]"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        build()
    assert "\n" not in str(refused.value)


def _ask(cond, size: int = 8) -> object:
    model: ObservedScoreModel = MMPSScoreModel(_prior(), OPERATOR, noise_std=0.1)
    return model(torch.ones(2, size), torch.full((2,), 0.5, dtype=torch.float64), cond=cond)
