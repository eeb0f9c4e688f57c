"""The step of a corrector is that of the table's own row, whatever the table's length."""

import math

import pytest
import torch

from models import Prediction, ScoreModel
from samplers import Denoiser, make_corrector, make_sampler, points_of
from sde_lib import VE, VP, NoiseStreams, Tabulated, ddpm_betas

SNR, DIM = 0.2, 40


class Growing(ScoreModel):
    """eps = x (1 + t): another answer at each time."""

    def forward(self, x_t, t, *, cond=None):
        eps = x_t * (1 + t.to(x_t))[:, None]
        alpha, sigma = (one.to(x_t)[:, None] for one in self.sde.alpha_sigma(t))
        return Prediction(x0=(x_t - sigma * eps) / alpha, eps=eps, sigma=self.sde.sigma(t))


def _corrected(corrector: str, x, t: float, sigma: float, alpha_i: float, z):
    """Song et al. 2021, Algorithms 4 and 5, and "ald" of their code, at noise ``sigma``."""
    score = -x * (1 + t) / sigma
    size = SNR * sigma if corrector == "annealed_langevin" else SNR * z.norm(dim=1) / score.norm(dim=1)
    step = torch.as_tensor(2 * alpha_i * size**2, dtype=torch.float64).expand(len(x))[:, None]
    return x + step * score + (2 * step).sqrt() * z


def _rows(num_steps: int) -> list[int]:
    return sorted({0, 1, num_steps // 3, num_steps // 2, num_steps - 1})


@pytest.mark.parametrize("corrector", ["langevin", "annealed_langevin"])
@pytest.mark.parametrize("num_steps", [10, 100, 1000])
def test_the_step_has_alpha_of_the_row(corrector: str, num_steps: int):
    """alpha_i = 1 - beta_i of DDPM's table; of NCSN's levels 1."""
    betas = ddpm_betas(num_steps, beta_start=0.01, beta_end=0.3)
    sigmas = torch.logspace(-2, math.log10(20), num_steps, dtype=torch.float64)
    tables = (
        (Tabulated.from_betas(betas), (1 - (1 - betas).cumprod(0)).sqrt(), 1 - betas),
        (Tabulated.from_sigmas(sigmas), sigmas, torch.ones(num_steps)),
    )
    x = torch.randn(3, DIM, dtype=torch.float64)
    z = NoiseStreams(4, range(3)).normal((DIM,)).double()
    for sde, sigma, alpha in tables:
        for row in _rows(num_steps):
            (point,) = points_of(sde, torch.tensor([(row + 1) / num_steps], dtype=torch.float64))
            found = make_corrector(corrector, snr=SNR).step(Denoiser(Growing(sde)), x, point, NoiseStreams(4, range(3)))
            expected = _corrected(corrector, x, (row + 1) / num_steps, float(sigma[row]), float(alpha[row]), z)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sde", [VP(), VE()], ids=["vp", "ve"])
def test_without_a_table_the_step_is_that_of_1000_rows(sde: VP | VE):
    x, z = torch.randn(3, DIM, dtype=torch.float64), NoiseStreams(4, range(3)).normal((DIM,)).double()
    for t in (0.0004, 0.3, 1.0):
        times = torch.tensor([t, max(t - 1e-3, 0.0)], dtype=torch.float64)
        alpha, before = sde.alpha(times).tolist()
        (point,) = points_of(sde, times[:1])
        found = make_corrector("langevin", snr=SNR).step(Denoiser(Growing(sde)), x, point, NoiseStreams(4, range(3)))
        expected = _corrected("langevin", x, t, float(sde.sigma(times)[0]), (alpha / before) ** 2, z)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("num_steps", [10, 100])
def test_the_corrector_comes_at_the_row_that_the_predictor_reached(num_steps: int):
    betas = ddpm_betas(num_steps, beta_start=0.01, beta_end=0.3)
    sde, sigma = Tabulated.from_betas(betas), (1 - (1 - betas).cumprod(0)).sqrt()
    rows = [num_steps - 1, num_steps // 2, 1]
    grid = torch.tensor([(row + 1) / num_steps for row in rows], dtype=torch.float64)
    sampler = make_sampler("predictor_corrector", predictor="none", snr=SNR, grid=grid, denoise_final=False)
    x, noise = torch.randn(3, DIM, dtype=torch.float64), NoiseStreams(4, range(3))
    found = sampler.sample(Growing(sde), x, noise=NoiseStreams(4, range(3))).x0
    for row in rows[1:]:
        z = noise.normal((DIM,)).double()
        x = _corrected("langevin", x, (row + 1) / num_steps, float(sigma[row]), float(1 - betas[row]), z)
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-6)
