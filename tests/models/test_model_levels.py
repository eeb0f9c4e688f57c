import math

import pytest
import torch
from torch import Tensor, nn

from models import (
    DiscreteScoreModel,
    LevelsParameterization,
    NetworkScoreModel,
    level_posterior_mean,
    make_parameterization,
)
from sde_lib import SDE, VE, VP, LearnedVP, Tabulated


class _Marginals(nn.Module):
    """A network that says the same of each pixel, whatever it sees."""

    def __init__(self, pmf: Tensor) -> None:
        super().__init__()
        self.logits = pmf.log() + 3.0

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.logits.repeat(x.shape[1])[None, :, None].expand(len(x), -1, x.shape[2])


@pytest.mark.parametrize("levels", [2, 17])
@pytest.mark.parametrize("sde", [VP(), VE(), LearnedVP(), Tabulated.ddpm()], ids=["vp", "ve", "learned", "ddpm"])
def test_independent_pixels_with_their_marginals_are_the_exact_model(sde: SDE, levels: int):
    generator = torch.Generator().manual_seed(0)
    pmf = torch.rand(levels, generator=generator, dtype=torch.float64) + 0.05
    pmf = pmf / pmf.sum()
    model = NetworkScoreModel(_Marginals(pmf), sde, LevelsParameterization(num_levels=levels))
    points = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]
    exact = DiscreteScoreModel(sde, points=points, probs=pmf)
    level = torch.multinomial(pmf, 400, replacement=True, generator=generator)
    x0 = points[level].reshape(50, 2, 4)
    low, high = max(sde.t_min, 1e-3), sde.t_max
    t = torch.linspace(low, high, 50, dtype=torch.float64)
    x_t = sde.perturb(x0, t, torch.randn(50, 2, 4, generator=generator, dtype=torch.float64))
    with torch.no_grad():
        ours, truth = model(x_t, t), exact(x_t.reshape(400, 1), t.repeat_interleave(8))
    torch.testing.assert_close(ours.x0, truth.x0.reshape(50, 2, 4), rtol=1e-9, atol=1e-11)


def test_digits_last_in_float32_where_the_noise_is_a_sixth_of_a_level():
    levels, sigma = 256, 1 / 775
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 1, levels, 9, generator=generator, dtype=torch.float64)
    level = torch.randint(levels, (64, 1, 9), generator=generator).double()
    x = 2 * level / 255 - 1 + sigma * torch.randn(64, 1, 9, generator=generator, dtype=torch.float64)
    log_snr = torch.full((64,), -2 * math.log(sigma), dtype=torch.float64)
    points = torch.arange(levels, dtype=torch.float64)[:, None] * 2 / 255 - 1
    weights = (logits - 0.5 * ((x.unsqueeze(2) - points) / sigma) ** 2).softmax(2)
    truth = (weights * points).sum(2)
    single = level_posterior_mean(logits.float(), x.float(), log_snr)
    torch.testing.assert_close(level_posterior_mean(logits, x, log_snr), truth, rtol=0, atol=1e-13)
    # a ten-thousandth of the noise, whose own rounding in x is half of that
    assert float((single.double() - truth).abs().max()) < 1e-3 * sigma


def test_gradient_is_the_derivative_of_the_posterior_mean():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 2, 5, 4, generator=generator, dtype=torch.float64).requires_grad_()
    x = (1.5 * torch.randn(3, 2, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    log_snr = torch.tensor([-2.0, 1.0, 4.0], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(level_posterior_mean, (logits, x, log_snr))


def test_the_network_sees_an_input_of_power_one_also_under_large_noise():
    t = torch.linspace(0.1, 1.0, 8, dtype=torch.float64)
    parameterization, sde = LevelsParameterization(num_levels=3), VE(sigma_max=50.0)
    seen: list[Tensor] = []

    class Backbone(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            seen.append(x)
            return torch.zeros(len(x), 3, 4, dtype=x.dtype)

    x_t = torch.ones(8, 1, 4, dtype=torch.float64)
    NetworkScoreModel(Backbone(), sde, parameterization)(x_t, t)
    torch.testing.assert_close(seen[0][:, 0, 0], (1 + sde.sigma(t) ** 2) ** -0.5)


def test_shapes_and_refusals():
    with pytest.raises(ValueError, match="num_levels must be at least 2"):
        make_parameterization("levels", num_levels=1)
    with pytest.raises(ValueError, match="num_levels"):
        make_parameterization("levels")
    model = NetworkScoreModel(nn.Identity(), VP(), LevelsParameterization(num_levels=3))
    model.backbone.forward = lambda x, c: x  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"must return shape \[2, 3, 4\], got \[2, 1, 4\]"):
        model(torch.zeros(2, 1, 4), torch.tensor([0.5, 0.5]))
