"""A generator of one call draws all modes of its teacher as often as it should."""

import math

import pytest
import torch

from models import GaussianMixtureScoreModel, Generator, NetworkScoreModel, VParameterization
from models.backbones import MLP
from sde_lib import VP
from training.fit import fit
from training.losses import DistributionMatching

MODES, STD, RADIUS = 8, 0.15, 1.5


def network() -> NetworkScoreModel:
    return NetworkScoreModel(MLP(2, 64), VP(), VParameterization())


@pytest.mark.slow
def test_eight_gaussians_have_the_weights_of_their_teacher():
    """Each weight is 1 / 8 within three standard errors of 2,000 samples."""
    angles = torch.arange(MODES) * 2 * math.pi / MODES
    means = RADIUS * torch.stack([angles.cos(), angles.sin()], dim=1)
    teacher = GaussianMixtureScoreModel(VP(), means=means, covs=STD**2 * torch.eye(2).expand(MODES, 2, 2))
    torch.manual_seed(0)
    loss = DistributionMatching(teacher, fake=network(), ratio=2, regression=0.25, regression_steps=10, weighting="v")
    trained = fit(
        Generator(network()), torch.zeros(256, 2), steps=2400, loss=loss, batch_size=256, learning_rate=2e-3,
        warmup_steps=50, decay_steps=2400, ema_decay=0.99, device="cpu",
    )  # fmt: skip
    z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        distances = torch.cdist(trained.generate(z), means)
    weights = torch.bincount(distances.argmin(1), minlength=MODES) / len(z)
    p = 1 / MODES
    assert float((weights - p).abs().max()) < 3 * math.sqrt(p * (1 - p) / len(z))
