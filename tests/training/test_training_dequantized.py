"""Learned dequantization: densities against quadrature, and the bound against masses of bins known in closed form."""

import math

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor, nn

from likelihood import FlowLikelihood
from likelihood.dequantization import place_variational
from models import Dequantizer, GaussianMixtureScoreModel, NetworkScoreModel, Prediction, place_on_bin
from sde_lib import SDE, VE, VP, NoiseStreams
from training.losses import make_loss

STD, LEVELS = 0.4, 5
LEVEL = torch.linspace(-1, 1, LEVELS, dtype=torch.float64)


class _Gaussian(NetworkScoreModel):
    """Independent pixels of N(0, STD^2), exactly, with a dequantizer beside it."""

    def __init__(self, sde: SDE, dequantizer: Dequantizer | None) -> None:
        super().__init__(nn.Identity(), sde, None, dequantizer=dequantizer)  # pyright: ignore[reportArgumentType]
        self.exact = GaussianMixtureScoreModel(sde, means=torch.zeros(1, 1), covs=STD**2 * torch.ones(1, 1, 1))

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Tensor | None = None) -> Prediction:
        flat = self.exact(x_t.reshape(-1, 1), t.repeat_interleave(x_t[0].numel()))
        alpha, sigma = self.sde.alpha_sigma(t)
        return Prediction.from_x0(x_t, flat.x0.reshape(x_t.shape), alpha=alpha, sigma=sigma)


def _bin_bits() -> Tensor:
    """-log2 of the mass of each level's bin, which no dequantization can beat."""
    edge = 1 / (LEVELS - 1)
    normal = torch.distributions.Normal(0.0, STD)
    return -(normal.cdf(LEVEL + edge) - normal.cdf(LEVEL - edge)).log2()


def _uniform_bits() -> Tensor:
    """Minus the mean of log2 p over each bin, and log2 of its width: what uniform noise gives."""
    edge = 1 / (LEVELS - 1)

    def one(level: float) -> float:
        def integrand(y: float) -> float:
            return (0.5 * (y / STD) ** 2 + math.log(STD * math.sqrt(2 * math.pi))) / math.log(2)

        return quad(integrand, level - edge, level + edge)[0] / (2 * edge) - math.log2(2 * edge)

    return torch.tensor([one(float(level)) for level in LEVEL], dtype=torch.float64)


def _images() -> Tensor:
    """Each level once, each an image of 2 x 2 equal pixels."""
    return LEVEL[:, None, None, None].expand(LEVELS, 1, 2, 2).clone()


def test_density_of_u_integrates_to_one_and_is_the_derivative_of_the_map():
    torch.manual_seed(0)
    dequantizer = Dequantizer(1, hidden_channels=4).double()
    for parameter in dequantizer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x0 = _images()[:1, :, :1, :1]
    z = torch.linspace(-9, 9, 20_001, dtype=torch.float64)[:, None, None, None]
    with torch.no_grad():
        u, log_q = dequantizer(x0.expand(len(z), 1, 1, 1), z)
    u = u.flatten()
    assert float(u[0]) < 1e-6 and float(u[-1]) > 1 - 1e-6 and bool((u.diff() >= 0).all())
    assert float(torch.trapezoid(log_q.exp(), u)) == pytest.approx(1, abs=1e-4)
    density = torch.exp(-0.5 * z.flatten().square()) / math.sqrt(2 * math.pi)
    slope = torch.gradient(u, spacing=(z.flatten(),))[0]
    middle = slice(8000, 12_000)
    torch.testing.assert_close(log_q[middle].exp(), (density / slope)[middle], rtol=1e-4, atol=0)


def test_a_new_one_is_uniform_exactly_and_bins_are_the_levels_own():
    z = torch.randn(50, 2, 3, 3)
    u, log_q = Dequantizer(2)(torch.rand(50, 2, 3, 3), z)
    torch.testing.assert_close(u, torch.special.ndtr(z.double()), rtol=0, atol=1e-15)
    assert float(log_q.detach().abs().max()) == 0
    y, log_width = place_on_bin(LEVEL[:, None], torch.tensor([[0.0], [0.25], [0.5], [0.75], [1.0]]), LEVELS)
    assert y.flatten().tolist() == [-1.25, -0.625, 0.0, 0.625, 1.25] and log_width == math.log(0.5)


@pytest.mark.parametrize("sde", [VP(), VE(sigma_min=1e-3, sigma_max=50.0)], ids=["vp", "ve"])
def test_loss_of_the_exact_score_is_the_bits_of_uniform_dequantization(sde: SDE):
    """At equality of the bound in continuous time, whose decoder at t_min costs nothing for so smooth a density."""
    model = _Gaussian(sde, None)
    count = 200_000
    x0 = _images().repeat(count // LEVELS, 1, 1, 1)
    loss = make_loss("dequantized", sde=sde, parameterization="eps", num_levels=LEVELS)
    torch.manual_seed(0)
    drawn = loss.time_sampler(sde, "importance").draw(torch.rand(count, dtype=torch.float64))
    eps = torch.randn_like(x0)
    values = drawn.weight * loss(model, x0, drawn.t, eps)
    # most of the noise is that of q^2 |eps|^2 and of q itself, whose means are known: the error is q eps + ...
    high, low = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).tolist()
    q = torch.sigmoid(sde.log_snr(drawn.t) + 2 * math.log(STD))
    values -= 0.5 * ((high - low) * q.square() + 1) * (eps.square().flatten(1).mean(1) - 1) / math.log(2)
    values -= 0.5 * (high - low) * (q - q.mean()) / math.log(2)
    mean_q = (math.log1p(STD**2 * math.exp(high)) - math.log1p(STD**2 * math.exp(low))) / (high - low)
    assert float(q.mean()) == pytest.approx(mean_q, abs=1e-4)
    truth = float(_uniform_bits().mean())
    error = float(values.std()) / math.sqrt(count)
    assert error < 0.02 and abs(float(values.mean()) - truth) < 4 * error


def test_the_prior_term_is_that_of_the_dequantized_data():
    """A short schedule leaves data at t_max: moving y by its place on the bin moves L_T by alpha^2 (y^2 - x0^2) / 2."""
    sde, x0 = VP(beta_min=0.1, beta_max=0.5), _images()
    loss = make_loss("dequantized", sde=sde, parameterization="eps", num_levels=LEVELS)
    model, eps = _Gaussian(sde, None), torch.zeros_like(x0)
    t = torch.full((LEVELS,), 0.5, dtype=torch.float64)
    torch.manual_seed(0)
    bits = loss(model, x0, t, eps)
    torch.manual_seed(0)
    u = torch.special.ndtr(torch.randn_like(x0).double())
    y = x0 + 0.5 * (u - 0.5)
    error = model(sde.perturb(y, t, eps), t).eps
    ends = torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)
    rate = sde.diffusion_sq(t) / sde.sigma(t) ** 2
    diffusion = 0.5 * (sde.t_max - sde.t_min) * rate * error.square().flatten(1).mean(1)
    alpha_sq, var = sde.alpha(ends)[1] ** 2, sde.sigma(ends)[1] ** 2
    prior = 0.5 * (alpha_sq * y.square().flatten(1).mean(1) + var - 1 - var.log())
    decoder = -0.5 * sde.log_snr(ends)[0] + 0.5 * math.log(2 * math.pi)
    truth = (diffusion + prior + decoder - math.log(0.5)) / math.log(2)
    torch.testing.assert_close(bits, truth, rtol=1e-9, atol=1e-11)
    assert float(alpha_sq) > 0.5


@pytest.mark.slow
def test_trained_beside_the_exact_score_it_closes_the_gap_to_the_mass_of_the_bin():
    sde = VP()
    torch.manual_seed(0)
    dequantizer = Dequantizer(1, hidden_channels=16)
    model = _Gaussian(sde, dequantizer)
    loss = make_loss("dequantized", sde=sde, parameterization="eps", num_levels=LEVELS)
    times = loss.time_sampler(sde, "importance")
    optimizer = torch.optim.Adam(dequantizer.parameters(), lr=1e-2)
    x0 = _images().repeat(20, 1, 1, 1).float()
    for _ in range(150):
        drawn = times.draw(torch.rand(len(x0), dtype=torch.float64))
        values = drawn.weight * loss(model, x0, drawn.t, torch.randn_like(x0))
        optimizer.zero_grad()
        values.mean().backward()
        optimizer.step()
    x0 = _images().repeat(20, 1, 1, 1)
    bits = {}
    for kind in ("uniform", "variational"):
        likelihood = FlowLikelihood(num_levels=LEVELS, dequantization=kind, divergence="exact", rtol=1e-6, atol=1e-6)
        terms = likelihood(model, x0, noise=NoiseStreams(0, range(len(x0))))
        bits[kind] = terms.bits_per_dim.reshape(20, LEVELS).mean(0)
    torch.testing.assert_close(bits["uniform"], _uniform_bits(), rtol=0, atol=0.25)
    gap = {kind: float((value - _bin_bits()).mean()) for kind, value in bits.items()}
    # uniform noise loses 0.1 bits/dim here; a Gaussian squashed to the bin can follow a Gaussian's slope
    assert gap["uniform"] > 0.1
    assert -0.005 < gap["variational"] < 0.1 * gap["uniform"]
    # the tighter bound has less noise too: the log weight of each draw is nearly the mass itself
    several = FlowLikelihood(
        num_levels=LEVELS, dequantization="variational", divergence="exact", num_importance_samples=8
    )
    tight = several(model, x0, noise=NoiseStreams(0, range(len(x0)))).bits_per_dim.reshape(20, LEVELS).mean(0)
    assert -0.003 < float((tight - _bin_bits()).mean()) < gap["variational"]


def test_the_measured_q_is_the_density_of_the_places():
    """E[1 / q(y)] is the width of the bin; a single pixel's noise, which is not uniform."""
    dequantizer = Dequantizer(1)
    with torch.no_grad():
        dequantizer.network[-1].bias.copy_(torch.tensor([0.4, 0.2]))  # type: ignore[union-attr]
    count, model = 4_000, _Gaussian(VP(), dequantizer)
    with torch.no_grad():
        y, minus_log_q = place_variational(torch.zeros(count, 1, 1, 1), model, LEVELS, NoiseStreams(0, range(count)))
    width, inverse = 2 / (LEVELS - 1), minus_log_q.exp()
    assert bool((y.abs() <= width / 2).all()) and float(inverse.std()) > 0.1 * width
    assert abs(float(inverse.mean()) - width) < 4 * float(inverse.std()) / count**0.5


def test_refusals():
    model = _Gaussian(VP(), None)
    with pytest.raises(ValueError, match="needs a model that learned a dequantizer"):
        FlowLikelihood(num_levels=LEVELS, dequantization="variational")(model, _images())
    with pytest.raises(ValueError, match="'variational' needs num_levels"):
        FlowLikelihood(dequantization="variational")
    with pytest.raises(ValueError, match="'dequantized' needs num_levels"):
        make_loss("dequantized", sde=VP(), parameterization="eps")
    with pytest.raises(ValueError, match="widths must be at least 1"):
        Dequantizer(1, hidden_channels=0)
