"""Couples of a Gaussian's flow, whose paths and whose reflow are known in closed form."""

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from models import GaussianMixtureScoreModel, NetworkScoreModel, make_parameterization
from samplers import DDIMSampler, HeunSampler
from sde_lib import NoiseStreams, RectifiedFlow
from tasks.couples import draw_couples
from training.losses import make_loss

MEAN, STD = 0.7, 0.3
SDE = RectifiedFlow()


def gaussian() -> GaussianMixtureScoreModel:
    mean = torch.full((1, 2), MEAN, dtype=torch.float64)
    return GaussianMixtureScoreModel(SDE, means=mean, covs=STD**2 * torch.eye(2, dtype=torch.float64)[None])


class Straight(nn.Module):
    """The velocity of the reflow of a Gaussian: z - m - s z on x_t = (1 - t) (m + s z) + t z."""

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        t = c_noise[:, None] / 999
        z = (x - (1 - t) * MEAN) / ((1 - t) * STD + t)
        return z - MEAN - STD * z


def test_couples_of_a_gaussian_and_their_straightness():
    """x0 = m + s z, and S = z^2 (integral of (d rho / dt)^2 - (1 - s)^2) with rho^2 = (1 - t)^2 s^2 + t^2."""
    noise = NoiseStreams(0, range(64))
    couples = draw_couples(gaussian(), HeunSampler(num_steps=400, variable="t"), noise, sample_shape=(2,))
    torch.testing.assert_close(couples.x0, MEAN + STD * couples.noise, rtol=0, atol=2e-3)

    def rate_squared(t: float) -> float:
        return (t - (1 - t) * STD**2) ** 2 / ((1 - t) ** 2 * STD**2 + t**2)

    per_square = quad(rate_squared, 0, 1)[0] - (1 - STD) ** 2
    assert couples.straightness is not None
    expected = per_square * couples.noise.double().square().mean(1)
    torch.testing.assert_close(couples.straightness, expected, rtol=0.02, atol=1e-3)


def test_the_reflow_of_a_gaussian_is_straight_and_one_step_of_euler_exact():
    model = NetworkScoreModel(Straight(), SDE, make_parameterization("velocity"), answers="flow")
    z = NoiseStreams(0, range(32)).normal((2,)).double()
    loss = make_loss("reflow", sde=SDE, parameterization="velocity", weighting="auto")
    t = torch.linspace(SDE.t_min, SDE.t_max, 32, dtype=torch.float64)
    assert loss.weighting == "velocity" and float(loss(model, MEAN + STD * z, t, z).max()) < 1e-20
    one_step = DDIMSampler(grid=torch.tensor([1.0, 0.0])).sample(model, z)
    torch.testing.assert_close(one_step.x0, MEAN + STD * z, rtol=1e-12, atol=1e-12)
    couples = draw_couples(model, DDIMSampler(num_steps=50), NoiseStreams(0, range(32)), sample_shape=(2,))
    assert couples.straightness is not None and float(couples.straightness.abs().max()) < 1e-5


def test_couples_need_a_flow():
    with pytest.raises(ValueError, match="couples need a sampler that follows the flow, got DDIMSampler"):
        draw_couples(gaussian(), DDIMSampler(num_steps=2, eta=1.0), NoiseStreams(0, range(2)), sample_shape=(2,))
