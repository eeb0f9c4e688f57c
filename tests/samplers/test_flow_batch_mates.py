"""Steps of the adaptive ODE sampler are each sample's own: none depends on its batch mates, or waits for them."""

import pytest
import torch
from sampler_oracles import SDES, GaussianModel, mixture
from thinning import one_in, only

from models import GaussianMixtureScoreModel, Prediction
from samplers.probability_flow import ProbabilityFlowSampler
from sde_lib import VE, VP, NoiseStreams, expand_like


def flow(tolerance, **options):
    return ProbabilityFlowSampler(rtol=tolerance, atol=tolerance, **options)


def latents(sde, batch_size=8):
    # samples of other sizes need other steps
    sizes = torch.linspace(0.2, 2.0, batch_size, dtype=torch.float64)[:, None]
    return sizes * sde.prior_sample((2,), NoiseStreams(5, range(batch_size))).double()


@pytest.mark.parametrize(
    ("way", "sde"),
    [
        *(pytest.param("sample", sde, marks=() if sde == "vp" else pytest.mark.slow) for sde in SDES),
        pytest.param("decode", "vp", marks=pytest.mark.slow),
        ("encode", "ve"),
    ],
)
def test_a_sample_is_the_same_alone_and_in_a_batch(way, sde):
    model, sampler = mixture(SDES[sde]), flow(1e-3)
    start = model.sample_data(8, torch.Generator().manual_seed(3)) if way == "encode" else latents(model.sde)

    def end(rows):
        result = getattr(sampler, way)(model, start[rows])
        return result.x0 if way == "sample" else result.x

    together = end(slice(0, 8))
    for rows in (slice(0, 1), slice(1, 3), slice(7, 8)):
        torch.testing.assert_close(end(rows), together[rows], rtol=0, atol=1e-9)


class ByClass(GaussianModel):
    """Gaussian data whose variance is the condition's; keeps how many samples each call had."""

    def __init__(self, sde):
        super().__init__(sde)
        self.asked = []

    def forward(self, x_t, t, *, cond=None):
        self.asked.append(len(x_t))
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        eps = expand_like(sigma / (alpha**2 * cond + sigma**2), x_t) * x_t
        return Prediction.from_eps(x_t, eps, alpha=alpha, sigma=sigma)


def test_a_sample_costs_its_own_steps_alone_under_its_own_condition():
    model, sampler = ByClass(VP()), flow(1e-4, denoise_final=False, t_end=0.01, record_trajectory=True)
    variances = torch.tensor([1.0, 0.3, 1e-2, 1e-4], dtype=torch.float64)
    x_T = latents(model.sde, 4)
    alone = [sampler.sample(model, x_T[k : k + 1], cond=variances[k : k + 1]) for k in range(4)]
    assert len({result.nfe for result in alone}) > 1
    model.asked.clear()
    together = sampler.sample(model, x_T, cond=variances)
    torch.testing.assert_close(together.x0, torch.cat([result.x0 for result in alone]), rtol=0, atol=1e-10)
    assert together.nfe == len(model.asked) == max(result.nfe for result in alone)
    assert sum(model.asked) == sum(result.nfe for result in alone)
    # y^2 / (variance + r^2) never changes
    start, end = (model.sde.alpha_sigma(torch.tensor([t]).double()) for t in (1.0, 0.01))
    spread = [((variances * alpha**2 + sigma**2) ** 0.5)[:, None] for alpha, sigma in (start, end)]
    at_end = together.trajectory[1]
    torch.testing.assert_close(at_end, x_T / spread[0] * spread[1], rtol=0, atol=2e-3)


@pytest.mark.parametrize("sde", only(("ve",), SDES))
def test_encode_is_right_within_the_tolerance_and_decode_undoes_it(sde):
    sde, tolerance = SDES[sde], 1e-2
    means = torch.tensor([[-1.0, 0.5, 0.0], [1.0, 0.0, 0.3]])
    model = GaussianMixtureScoreModel(sde, means=means, covs=0.02 * torch.eye(3)[None].repeat(2, 1, 1))
    data = model.sample_data(40, torch.Generator().manual_seed(2)).double()
    exact = flow(1e-4, solver="dopri8").encode(model, data).x / sde.prior_std
    latent = flow(tolerance).encode(model, data).x
    assert float(((latent / sde.prior_std - exact).abs() / (1 + exact.abs())).max()) < tolerance
    back = flow(tolerance).decode(model, latent).x
    assert float(((back - data).abs() / (1 + data.abs())).max()) < tolerance


@pytest.mark.parametrize("tolerance", only((1e-2,), [1e-2, 1e-3]))
def test_narrow_modes_are_encoded_within_the_tolerance(tolerance):
    """On a VE-SDE one number of x_T may be small where another is large, and each is held to its own size."""
    means = torch.rand(2, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    model = GaussianMixtureScoreModel(VE(), means=means, covs=0.0025 * torch.eye(2).double()[None].repeat(2, 1, 1))
    data = model.sample_data(256, torch.Generator().manual_seed(2)).double()
    exact = flow(1e-6, solver="dopri8").encode(model, data).x
    latent = flow(tolerance).encode(model, data).x
    assert float(((latent - exact).abs() / (1 + exact.abs())).max()) < tolerance


class RoundsByBatch(GaussianModel):
    """Slopes with ripples in time, as of a network told sines of it, and a rounding that the batch size decides."""

    def forward(self, x_t, t, *, cond=None):
        exact = super().forward(x_t, t)
        ripples = 2e-3 * torch.sin(expand_like(t, x_t) * torch.tensor([30.0, 300.0, 3000.0]).double() + x_t)
        rounding = 1e-7 * torch.sin(1e7 * x_t + 17.0 * len(x_t))
        return Prediction.from_eps(
            x_t, exact.eps + ripples + rounding, alpha=self.sde.alpha(t), sigma=self.sde.sigma(t)
        )


@pytest.mark.parametrize(("sde", "tolerance"), one_in(3, [("vp", 1e-3), ("vp", 1e-4), ("ve", 1e-3)]))
def test_a_networks_rounding_does_not_move_the_steps(sde, tolerance):
    """Steps that follow the error freely drift apart until the samples differ by the tolerance."""
    model, sampler = RoundsByBatch(SDES[sde]), flow(tolerance)
    x_T = SDES[sde].prior_sample((3,), NoiseStreams(5, range(5))).double()
    together = sampler.sample(model, x_T).x0
    for k in range(5):
        alone = sampler.sample(model, x_T[k : k + 1]).x0
        torch.testing.assert_close(alone, together[k : k + 1], rtol=0, atol=1e-5)
