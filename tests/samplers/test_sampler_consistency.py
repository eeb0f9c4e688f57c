"""The sampler of consistency models: Algorithm 1, its network calls and its streams."""

import itertools

import pytest
import torch

from models import ConsistencyModel, GaussianMixtureScoreModel, Prediction, QuantileFlow, ScoreModel
from samplers import ConsistencySampler, make_sampler
from sde_lib import SDE, VE, VP, NoiseStreams, Tabulated, expand_like

M, S = 0.4, 0.7


class GaussianMap(ScoreModel):
    """The map of N(M, S^2) to data, as the answer x0 of a network."""

    def forward(self, x_t: torch.Tensor, t: torch.Tensor, *, cond: object = None) -> Prediction:
        alpha, sigma = self.sde.alpha_sigma(t)
        shrink = S / (S**2 + (sigma / alpha).square()).sqrt()
        x0 = M + expand_like(shrink, x_t) * (x_t / expand_like(alpha, x_t) - M)
        return Prediction.from_x0(x_t, x0, alpha=alpha, sigma=sigma)


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_it_calls_the_network_once_a_step_and_adds_no_noise_after_the_last(num_steps: int):
    sde = Tabulated.ddpm()
    model, sampler = ConsistencyModel(GaussianMap(sde)), make_sampler("consistency", num_steps=num_steps)
    noise = NoiseStreams(1, range(6))
    x_T = sampler.prior_sample(sde, (3,), noise).double()
    result = sampler.sample(model, x_T, noise=noise)  # pyright: ignore[reportArgumentType]
    assert result.nfe == num_steps
    # by hand, from the same streams
    noise = NoiseStreams(1, range(6))
    x = sampler.prior_sample(sde, (3,), noise).double()
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    for t, s in itertools.pairwise(times):
        x0 = model(x, t.expand(6))
        x = x0 if s == 0 else sde.alpha(s[None]) * x0 + sde.sigma(s[None]) * noise.normal_like(x)
    torch.testing.assert_close(result.x0, x, rtol=1e-12, atol=1e-12)


def test_a_sample_does_not_depend_on_its_batch_mates():
    sde = VP()
    model, sampler = ConsistencyModel(GaussianMap(sde)), make_sampler("consistency", num_steps=3)

    def draw(index: range) -> torch.Tensor:
        noise = NoiseStreams(0, index)
        return sampler.sample(model, sampler.prior_sample(sde, (2,), noise), noise=noise).x0  # pyright: ignore

    assert torch.equal(draw(range(6))[4:], draw(range(4, 6)))


@pytest.mark.parametrize("sde", [VP(), VE(sigma_min=0.002, sigma_max=80.0), Tabulated.ddpm()], ids=repr)
@pytest.mark.parametrize("t_end", [0.0, 0.1])
def test_with_the_exact_map_every_number_of_steps_gives_the_distribution_at_the_end(sde: SDE, t_end: float):
    """Samples in one step are those quantiles of it that their noise is of the prior; renoising keeps it."""
    mixture = GaussianMixtureScoreModel(
        sde, means=torch.tensor([[-1.0], [1.0]]), covs=torch.full((2, 1, 1), 0.04), weights=[0.3, 0.7]
    )
    model = QuantileFlow(mixture, t_end=t_end)
    noise = NoiseStreams(0, range(4_000))
    sampler = make_sampler("consistency", num_steps=3, grid=torch.tensor([1.0, 0.6, 0.3, t_end], dtype=torch.float64))
    x_T = sampler.prior_sample(sde, (1,), noise).double()
    result = sampler.sample(model, x_T, noise=noise)  # pyright: ignore[reportArgumentType]
    y = result.x0 / sde.alpha(torch.tensor([t_end], dtype=torch.float64))
    share = float((y > 0).double().mean())
    assert abs(share - 0.7) < 3.5 * (0.21 / 4_000) ** 0.5
    spread = float((y[y > 0] - 1).std())
    assert spread == pytest.approx((0.04 + model.ratio_end**2) ** 0.5, rel=0.06)


def test_a_named_grid_may_begin_further_down():
    """Only where pure noise still stands for x_t."""
    sde, options = Tabulated.ddpm(beta_start=2e-3), {"grid": "quadratic", "num_steps": 2}
    sampler = make_sampler("consistency", t_start=0.7, **options)
    assert isinstance(sampler, ConsistencySampler)
    torch.testing.assert_close(sampler.times(sde), torch.tensor([0.7, 0.175, 0.0], dtype=torch.float64))
    noise = NoiseStreams(0, range(2_000))
    x_T = sampler.prior_sample(sde, (1,), noise).double()
    x0 = sampler.sample(ConsistencyModel(GaussianMap(sde)), x_T, noise=noise).x0  # pyright: ignore[reportArgumentType]
    assert abs(float(x0.mean()) - M) < 3.5 * S / 2_000**0.5 and float(x0.std()) == pytest.approx(S, rel=0.05)
    with pytest.raises(ValueError, match="where x_t still holds data"):
        make_sampler("consistency", t_start=0.3, **options).prior_sample(sde, (1,), noise)


def test_what_it_cannot_sample_is_refused():
    sde = VP()
    with pytest.raises(ValueError, match=r"t_start must lie in \(0, 1\], got 2"):
        make_sampler("consistency", num_steps=1, t_start=2)
    with pytest.raises(
        ValueError, match="sampler 'consistency' needs a consistency model, got a GaussianMap; take ddim"
    ):
        make_sampler("consistency", num_steps=1).sample(GaussianMap(sde), torch.randn(2, 1))
    with pytest.raises(ValueError, match="leave denoise_final out"):
        make_sampler("consistency", num_steps=1, denoise_final=True)
