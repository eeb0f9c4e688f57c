"""A Gaussian clip of covariance K_time (x) K_space through samplers and likelihoods, against closed forms."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from likelihood import make_likelihood
from models import DiscreteScoreModel, GaussianMixtureScoreModel, Prediction, ScoreModel
from samplers import make_sampler
from sde_lib import VP, NoiseStreams, Tabulated

SHAPE = (1, 3, 2, 2)  # C, F, H, W
DIMS = math.prod(SHAPE)


def decay(size, correlation):
    index = torch.arange(size, dtype=torch.float64)
    return correlation ** (index[:, None] - index).abs()


K_TIME = decay(3, 0.9)
K_SPACE = 0.4 * torch.kron(decay(2, 0.6), decay(2, 0.3))


class GaussianClip(ScoreModel):
    """E[x0 | x_t] of N(0, K_time (x) K_space), by the axes of time and of space, of x_t [B, 1, F, H, W] as it is."""

    def __init__(self, sde):
        super().__init__(sde)
        (self.of_time, self.in_time), (self.of_space, self.in_space) = map(torch.linalg.eigh, (K_TIME, K_SPACE))

    def forward(self, x_t, t, *, cond=None):
        alpha, sigma = (one.view(-1, 1, 1) for one in self.sde.alpha_sigma(t))
        modes = self.in_time.mT @ x_t.double().flatten(3)[:, 0] @ self.in_space
        var = self.of_time[:, None] * self.of_space
        total = alpha**2 * var + sigma**2
        x0, eps = (
            (self.in_time @ (gain * modes / total) @ self.in_space.mT).reshape(x_t.shape).to(x_t.dtype)
            for gain in (alpha * var, sigma)
        )
        return Prediction(x0=x0, eps=eps, sigma=sigma.flatten())


def as_vectors(sde):
    return GaussianMixtureScoreModel(
        sde, means=torch.zeros(1, DIMS, dtype=torch.float64), covs=torch.kron(K_TIME, K_SPACE)[None]
    )


SAMPLERS = [
    *[(name, {"num_steps": 6}) for name in ("ancestral", "ddim", "dpm_solver_pp", "unipc", "heun", "euler_maruyama")],
    ("predictor_corrector", {"num_steps": 4}),
    ("probability_flow", {}),
]


@pytest.mark.parametrize(("name", "options"), SAMPLERS, ids=[name for name, _ in SAMPLERS])
def test_a_sampler_draws_the_same_of_clips_as_of_their_numbers_in_a_row(name, options):
    sde, sampler = VP(), make_sampler(name, **options)
    noise = [NoiseStreams(0, range(4)) for _ in range(2)]
    x_T = sampler.prior_sample(sde, SHAPE, noise[0]).double()
    flat = sampler.prior_sample(sde, (DIMS,), noise[1]).double()
    assert torch.equal(x_T.flatten(1), flat)
    clips = sampler.sample(GaussianClip(sde), x_T, noise=noise[0])
    rows = sampler.sample(as_vectors(sde), flat, noise=noise[1])
    assert clips.x0.shape == (4, *SHAPE) and clips.nfe == rows.nfe
    torch.testing.assert_close(clips.x0.flatten(1), rows.x0, rtol=1e-8, atol=1e-8)


def test_the_flow_takes_pure_noise_to_a_clip_of_that_covariance():
    sde = VP()
    sampler = make_sampler("probability_flow", solver="dopri5", rtol=1e-8, atol=1e-8)
    x_T = torch.eye(DIMS, dtype=torch.float64).reshape(DIMS, *SHAPE)
    x0 = sampler.sample(GaussianClip(sde), x_T, noise=NoiseStreams(0, range(DIMS))).x0.flatten(1)
    # linear in x_T: S^(1/2) = axes sqrt(c / (alpha^2 c + sigma^2)) axes^T
    cov = torch.kron(K_TIME, K_SPACE)
    widths, axes = torch.linalg.eigh(cov)
    alpha, sigma = sde.alpha_sigma(torch.tensor([sde.t_max], dtype=torch.float64))
    expected = axes @ torch.diag((widths / (alpha**2 * widths + sigma**2)).sqrt()) @ axes.mT
    torch.testing.assert_close(x0, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(x0.mT @ x0, cov, rtol=0, atol=3e-4)


def test_the_flow_gives_the_density_of_a_clip():
    sde, cov = VP(), torch.kron(K_TIME, K_SPACE)
    torch.manual_seed(0)
    law = MultivariateNormal(torch.zeros(DIMS, dtype=torch.float64), cov)
    x0 = law.sample((2,))
    estimator = make_likelihood("ode", dequantization="none", divergence="exact", solver="dopri5", rtol=1e-5, atol=1e-5)
    terms = estimator(GaussianClip(sde), x0.reshape(2, *SHAPE), noise=NoiseStreams(0, range(2)))
    # the ODE ends at r_0, the least noise, and begins at a prior that is not quite that of the data
    assert terms.num_dims == DIMS
    torch.testing.assert_close(terms.total, -law.log_prob(x0), rtol=0, atol=0.02)
    rows = estimator(as_vectors(sde), x0, noise=NoiseStreams(0, range(2)))
    torch.testing.assert_close(terms.total, rows.total, rtol=0, atol=1e-6)


def test_the_bound_of_a_clip_is_that_of_its_numbers_and_divides_by_all_of_them():
    # two clips, black but for a pixel that stands or goes on, as likely as each other
    clips = torch.full((2, *SHAPE), -1.0, dtype=torch.float64)
    clips[0, 0, :, 0, 0] = clips[1, 0, 0, 0, 0] = clips[1, 0, 1:, 0, 1] = 1.0
    sde = Tabulated.ddpm(num_steps=50, beta_start=2e-3, beta_end=0.4)
    estimator = make_likelihood("vlb", num_levels=2)
    found = [
        estimator(
            DiscreteScoreModel(sde, points=points, probs=[0.5, 0.5]),
            points.repeat(200, *[1] * (points.ndim - 1)),
            noise=NoiseStreams(3, range(400)),
        )
        for points in (clips, clips.flatten(1))
    ]
    torch.testing.assert_close(found[0].total, found[1].total, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found[0].bits_per_dim, found[0].total / math.log(2) / DIMS)
    # a bound on the entropy, one bit a clip, but for the noise of 400 draws
    bits = found[0].total / math.log(2)
    assert -3 * float(bits.std()) / 20 < float(bits.mean()) - 1.0 < 0.2
