"""Distribution matching against closed forms of Gaussians, where both scores are known."""

import math

import pytest
import torch
from torch import Tensor, nn

from models import GaussianMixtureScoreModel, Generator, NetworkScoreModel, Prediction, ScoreModel, X0Parameterization
from samplers import DDIMSampler
from sde_lib import SDE, VP, expand_like
from training.losses.matching import DistributionMatching, kl_gradient, matching_weight

MEAN, STD = 0.7, 0.6


class Affine(nn.Module):
    """x0 = a x_T + b."""

    def __init__(self, a: float, b: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.b = nn.Parameter(torch.tensor(b, dtype=torch.float64))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.a * x + self.b


class ScoreOf(ScoreModel):
    """The exact score of a x_T + b for x_T ~ N(0, 1), whatever a and b are by now."""

    def __init__(self, sde: SDE, generator: Affine) -> None:
        super().__init__(sde)
        self.of = [generator]
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x_t: Tensor, t: Tensor, *, cond: object = None) -> Prediction:
        generator = self.of[0]
        alpha, sigma = (expand_like(value, x_t) for value in self.sde.alpha_sigma(t))
        var = (alpha * generator.a).square() + sigma.square()
        score = (alpha * generator.b - x_t) / var
        alpha, sigma = self.sde.alpha_sigma(t)
        return Prediction.from_score(x_t, score.detach(), alpha=alpha, sigma=sigma)


def affine(sde: SDE, a: float, b: float) -> tuple[Affine, Generator]:
    backbone = Affine(a, b)
    return backbone, Generator(NetworkScoreModel(backbone, sde, X0Parameterization()))


def target(sde: SDE, dim: int = 1) -> GaussianMixtureScoreModel:
    return GaussianMixtureScoreModel(sde, means=torch.full((1, dim), MEAN), covs=STD**2 * torch.eye(dim)[None])


def test_the_gradient_of_a_gaussian_generator_is_that_of_the_divergence():
    """d KL / db = alpha^2 (b - m) / S_r, d KL / da = alpha^2 a (1 / S_r - 1 / S_f), within four standard errors."""
    sde, a, b = VP(), 1.3, -0.4
    backbone, generator = affine(sde, a, b)
    count = 200_000
    z, eps = torch.randn(2, count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.full((count,), 0.3, dtype=torch.float64)
    alpha, sigma = (float(value[0]) for value in sde.alpha_sigma(t))
    x = generator.generate(z)
    x_t = sde.perturb(x, t, eps).detach()
    gradient = kl_gradient(target(sde)(x_t, t), ScoreOf(sde, backbone)(x_t, t), sde.alpha(t))[:, 0].detach()
    real_var, fake_var = (alpha * STD) ** 2 + sigma**2, (alpha * a) ** 2 + sigma**2
    expected = {
        "b": (gradient, alpha**2 * (b - MEAN) / real_var),
        "a": (gradient * z[:, 0], alpha**2 * a * (1 / real_var - 1 / fake_var)),
    }
    for values, exact in expected.values():
        assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / math.sqrt(count)
    # by automatic differentiation of the divergence itself
    var = (alpha * backbone.a).square() + sigma**2
    divergence = 0.5 * (var / real_var + (alpha * (backbone.b - MEAN)) ** 2 / real_var - 1 - (var / real_var).log())
    by_a, by_b = torch.autograd.grad(divergence, (backbone.a, backbone.b))
    assert float(by_b) == pytest.approx(expected["b"][1]) and float(by_a) == pytest.approx(expected["a"][1])


def test_the_loss_has_the_weighted_gradient_of_the_paper():
    """d loss / d theta is the mean over dimensions of w_t alpha_t (s_fake - s_real) dG / dtheta."""
    sde = VP()
    backbone, generator = affine(sde, 0.8, 0.1)
    teacher, fake = target(sde), ScoreOf(sde, backbone)
    loss = DistributionMatching(teacher, fake=fake)
    loss.begin_step(0)
    z, eps = torch.randn(2, 6, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = loss.times(sde, torch.linspace(0, 0.99, 6))
    values = loss(generator, torch.zeros_like(z), t, z, more_noise=eps)
    by_a, by_b = torch.autograd.grad(values.sum(), (backbone.a, backbone.b))
    x = (0.8 * z + 0.1).detach()
    alpha, sigma = sde.alpha_sigma(t)
    x_t = sde.perturb(x, t, eps)
    real = teacher(x_t, t)
    weight = sigma**2 / alpha / (real.x0 - x).abs()[:, 0]
    gradient = weight * alpha * (fake(x_t, t).score - real.score)[:, 0]
    torch.testing.assert_close(matching_weight(x, real, alpha)[:, 0], weight)
    torch.testing.assert_close(by_b, gradient.sum())
    torch.testing.assert_close(by_a, (gradient * z[:, 0]).sum())
    torch.testing.assert_close(values, 0.5 * gradient.square())


@pytest.mark.parametrize("start", [(1.5, -1.0), (0.1, 2.0), (-1.0, 0.0)])
def test_the_only_fixed_point_is_the_teachers_distribution(start: tuple[float, float]):
    """|a| = s and b = m, from any start, by the loss and Adam."""
    # in one dimension the mean of Eq. 8's weight, 1 / |x0_real - x|, is infinite
    sde, dim, steps = VP(), 8, 300
    backbone, generator = affine(sde, *start)
    loss = DistributionMatching(target(sde, dim), fake=ScoreOf(sde, backbone))
    loss.begin_step(0)
    optimizer = torch.optim.Adam(backbone.parameters())
    draws = torch.Generator().manual_seed(2)
    for step in range(steps):
        z, eps = torch.randn(2, 128, dim, dtype=torch.float64, generator=draws)
        t = loss.times(sde, torch.rand(128, dtype=torch.float64, generator=draws))
        optimizer.zero_grad()
        loss(generator, z, t, z, more_noise=eps).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / steps)
        optimizer.step()
    a, b = backbone.a.detach().abs(), backbone.b.detach()
    assert (float(a), float(b)) == pytest.approx((STD, MEAN), abs=0.01)


class Critic(nn.Module):
    """The exact score of a generator's samples, and logits that are the means of what it sees."""

    def __init__(self, fake: ScoreModel) -> None:
        super().__init__()
        self.fake = fake

    def forward(self, x_t: Tensor, t: Tensor, *, cond: object = None) -> tuple[Prediction, Tensor]:
        return self.fake(x_t, t), x_t.flatten(1).mean(1)


def of_data(sde: SDE) -> ScoreOf:
    """The score of the data, as a network that can be trained."""
    return ScoreOf(sde, Affine(STD, MEAN))


def draws(sde: SDE) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Data, x_T, more noise and times."""
    x0, z, eps = torch.randn(3, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return x0, z, eps, DistributionMatching(target(sde), fake=of_data(sde)).times(sde, torch.linspace(0, 0.99, 6))


def test_the_critic_learns_the_score_of_the_samples():
    """Denoising score matching on G(x_T): the weighted error, least in the mean for the exact score."""
    sde = VP()
    backbone, generator = affine(sde, 0.8, 0.1)
    fake = ScoreOf(sde, backbone)
    loss = DistributionMatching(target(sde, 2), fake=fake, weighting="eps")
    loss.begin_step(1)
    x0, z, eps, t = draws(sde)
    x_t = sde.perturb(0.8 * z + 0.1, t, eps)
    expected = (fake(x_t, t).eps - eps).square().mean(1)
    torch.testing.assert_close(loss(generator, x0, t, z, more_noise=eps), expected)
    # and not that of data, which the generator does not draw
    count = 4000
    z, eps = torch.randn(2, count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    t = torch.full((count,), 0.5, dtype=torch.float64)
    errors = []
    for model in (fake, of_data(sde)):
        loss = DistributionMatching(target(sde), fake=model, weighting="eps")
        loss.begin_step(1)
        errors.append(loss(generator, z, t, z, more_noise=eps))
    gap = (errors[1] - errors[0]).detach()
    assert float(gap.mean()) > 5 * float(gap.std()) / math.sqrt(count)


def test_the_generator_is_drawn_to_the_ends_of_the_teachers_flow():
    sde, weight = VP(), 0.5
    _, generator = affine(sde, 0.8, 0.1)
    x0, z, eps, t = draws(sde)
    end = DDIMSampler(num_steps=7).sample(target(sde, 2), z).x0
    values = []
    for regression in (0.0, weight):
        loss = DistributionMatching(target(sde, 2), fake=of_data(sde), regression=regression, regression_steps=7)
        loss.begin_step(0)
        values.append(loss(generator, x0, t, z, more_noise=eps))
    torch.testing.assert_close(values[1] - values[0], weight * (0.8 * z + 0.1 - end).square().mean(1))


def test_the_head_tells_data_from_samples_and_the_generator_deceives_it():
    """Logits are to be large for data and small for samples; the generator makes those of samples large."""
    sde, weight = VP(), 0.3
    backbone, generator = affine(sde, 0.8, 0.1)
    x0, z, eps, t = draws(sde)
    by_samples, by_data = (sde.perturb(x, t, eps).mean(1) for x in (0.8 * z + 0.1, x0))
    added = {
        1: nn.functional.softplus(by_samples) + nn.functional.softplus(-by_data),
        0: nn.functional.softplus(-by_samples),
    }
    for step, expected in added.items():
        values = []
        for gan in (0.0, weight):
            loss = DistributionMatching(target(sde, 2), fake=ScoreOf(sde, backbone))
            loss.critic, loss.gan = Critic(loss.critic.fake), gan  # type: ignore[assignment]
            loss.begin_step(step)
            values.append(loss(generator, x0, t, z, more_noise=eps))
        torch.testing.assert_close((values[1] - values[0]).detach(), weight * expected)
