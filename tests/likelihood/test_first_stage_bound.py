"""The bound of an autoencoder: exact where encoder and prior are, above the entropy elsewhere."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from likelihood import FirstStageBound, first_stage_terms, pixel_nats
from models import FirstStage, GaussianLatent, GaussianPixels, LevelPixels
from sde_lib import VP, NoiseStreams
from training.losses import make_loss


class LinearAutoencoder(nn.Module):
    """z = V (x - m) + std eps, x = W z + m + noise of standard deviation s: probabilistic PCA."""

    pixels = "gaussian"

    def __init__(self, num_dims: int, num_latent: int) -> None:
        super().__init__()
        self.in_channels, self.latent_shape = num_dims, (num_latent,)
        self.mean = nn.Parameter(torch.zeros(num_dims))
        self.encoder = nn.Parameter(0.1 * torch.randn(num_latent, num_dims))
        self.decoder = nn.Parameter(0.1 * torch.randn(num_dims, num_latent))
        self.latent_log_std = nn.Parameter(torch.zeros(num_latent))
        self.log_std = nn.Parameter(torch.zeros(()))

    def encode(self, x: Tensor) -> GaussianLatent:
        mean = (x - self.mean) @ self.encoder.T
        return GaussianLatent(mean, self.latent_log_std.expand_as(mean))

    def decode(self, z: Tensor) -> Tensor:
        mean = z @ self.decoder.T + self.mean
        return torch.cat((mean, self.log_std.expand_as(mean)), dim=1)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latent = self.encode(x)
        return latent.mean, latent.log_std, self.decode(latent.draw(eps))


def _exact(weight: Tensor, std: float) -> LinearAutoencoder:
    """The autoencoder of x = W z + std eps whose encoder is the posterior, of W with orthogonal columns."""
    network = LinearAutoencoder(*weight.shape).double()
    precision = torch.eye(weight.shape[1], dtype=torch.float64) + weight.T @ weight / std**2
    with torch.no_grad():
        network.decoder.copy_(weight)
        network.encoder.copy_(torch.linalg.solve(precision, weight.T / std**2))
        network.latent_log_std.copy_(-0.5 * precision.diagonal().log())
        network.log_std.fill_(math.log(std))
    return network


def _mean_bound(model: FirstStage, x0: Tensor) -> Tensor:
    """The bound of each datum with its mean over z taken exactly: of a quadratic, that over +-sqrt(q) in each of q."""
    num_latent = model.latent_shape[0]
    points = math.sqrt(num_latent) * torch.eye(num_latent, dtype=x0.dtype)
    with torch.no_grad():
        bounds = [
            first_stage_terms(model, x0, point.expand(len(x0), -1), num_levels=None).total
            for point in torch.cat((points, -points))
        ]
    return torch.stack(bounds).mean(0)


def test_with_the_exact_posterior_the_bound_is_the_density():
    torch.manual_seed(0)
    weight = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64)).Q * torch.tensor([2.0, 0.7])
    model = FirstStage(_exact(weight, 0.5), VP())
    covariance = weight @ weight.T + 0.25 * torch.eye(6, dtype=torch.float64)
    density = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=torch.float64), covariance)
    x0 = density.sample((7,))
    torch.testing.assert_close(_mean_bound(model, x0), -density.log_prob(x0), rtol=0, atol=1e-10)
    # another spread of the posterior costs its KL to the right one, which here is the same for all data
    with torch.no_grad():
        model.backbone.latent_log_std[0] += 0.3
    lost = 0.5 * (math.exp(0.6) - 1) - 0.3
    torch.testing.assert_close(_mean_bound(model, x0), lost - density.log_prob(x0), rtol=0, atol=1e-10)


def test_a_trained_linear_autoencoder_reaches_probabilistic_pca():
    torch.manual_seed(0)
    data = torch.randn(400, 3, dtype=torch.float64) @ torch.randn(3, 8, dtype=torch.float64)
    data = data + 0.3 * torch.randn(400, 8, dtype=torch.float64) + 1.0
    best = PCA(n_components=3, svd_solver="full").fit(data.numpy()).score(data.numpy())
    model: Any = FirstStage(LinearAutoencoder(8, 3).double(), VP())
    loss = make_loss("autoencoder", sde=model.sde, parameterization=None, num_levels=None)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    steps = 1_000
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        eps = torch.randn(len(data), 8, dtype=torch.float64, generator=generator)
        loss(model, data, torch.zeros(len(data)), eps).mean().backward()
        optimizer.step()
        schedule.step()
    missing = float(_mean_bound(model, data).mean() + best) / 8
    # scikit-learn divides covariances by N - 1, so that its likelihood is a trace below the largest
    assert -1e-5 < missing < 1e-3


def test_a_gaussian_decoder_gives_the_density_and_the_mass_of_bins():
    x0 = torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64)
    pixels = GaussianPixels(torch.tensor([[-0.5, 0.1, 0.9]]).double(), torch.tensor([[-0.2, 0.3, 0.0]]).double())
    normal = torch.distributions.Normal(pixels.mean, pixels.log_std.exp())
    torch.testing.assert_close(pixel_nats(pixels, x0, None), -normal.log_prob(x0).sum(1))
    # bins of three levels end at -1/2 and 1/2; the outer ones are open
    edges = normal.cdf(torch.tensor([[-0.5], [0.5]]).double().unsqueeze(1))[:, 0]
    mass = torch.stack([edges[0, 0], edges[1, 1] - edges[0, 1], 1 - edges[1, 2]])
    torch.testing.assert_close(pixel_nats(pixels, x0, 3), -mass.log().sum()[None])


def test_a_decoder_of_levels_sums_to_one_and_knows_its_number_of_levels():
    torch.manual_seed(0)
    pixels = LevelPixels(torch.randn(1, 1, 3, 2, 2).log_softmax(2))
    levels = torch.tensor([-1.0, 0.0, 1.0])
    images = torch.cartesian_prod(levels, levels, levels, levels).view(-1, 1, 2, 2)
    every = LevelPixels(pixels.log_probs.expand(len(images), -1, -1, -1, -1))
    assert float((-pixel_nats(every, images, 3)).exp().sum()) == pytest.approx(1, abs=1e-6)
    mean = (images * (-pixel_nats(every, images, 3)).exp().view(-1, 1, 1, 1)).sum(0)
    torch.testing.assert_close(pixels.mean[0].double(), mean, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="the decoder is of 3 grey levels, got data of 17"):
        pixel_nats(pixels, images[:1], 17)


class Toy(nn.Module):
    """Two pixels of two levels, always alike, and one latent of their level: mean a level, noise r."""

    pixels, in_channels, latent_shape = "levels", 1, (1, 1, 1)

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.log_std = math.log(noise)

    def forward(self, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = x[:, :, :1, :1]
        z = mean + math.exp(self.log_std) * eps
        # the log odds of the level given z, were levels equally likely
        odds = 2 * z * math.exp(-2 * self.log_std)
        logits = torch.cat((torch.zeros_like(odds), odds), 1).unsqueeze(1).expand(-1, 1, 2, 1, 2).flatten(1, 2)
        return mean, torch.full_like(mean, self.log_std), logits


@pytest.mark.parametrize("noise", [1.0, 0.5, 0.2, 0.05])
def test_discrete_toys_stay_above_their_entropy_at_every_noise(noise: float):
    images = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]).view(2, 1, 1, 2).repeat(500, 1, 1, 1)
    bound = FirstStageBound(num_levels=2)
    terms = bound(FirstStage(Toy(noise), VP()), images, noise=NoiseStreams(0, range(1000)))
    bits = terms.total / math.log(2)
    # one bit an image; a standard normal prior does not fit two points, and so is never tight
    assert float(bits.mean() - 4 * bits.std() / math.sqrt(1000)) > 1
    assert terms.num_dims == 2 and float(terms.bits_per_dim.mean()) == pytest.approx(float(bits.mean()) / 2)
    rate = 0.5 * (1 + noise**2 - 1) - math.log(noise)
    np.testing.assert_allclose(terms.rate.numpy(), rate, rtol=1e-6)


def test_a_sample_does_not_depend_on_its_batch_mates():
    model: Any = FirstStage(Toy(0.3), VP())
    images = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]]).view(3, 1, 1, 2)
    bound = FirstStageBound(num_levels=2)
    every = bound(model, images, noise=NoiseStreams(0, range(3))).total
    alone = bound(model, images[1:2], noise=NoiseStreams(0, [1])).total
    assert torch.equal(every[1:2], alone)
    with pytest.raises(ValueError, match="noise has 2 streams, got a batch of 3"):
        bound(model, images, noise=NoiseStreams(0, range(2)))
