"""L_T of a dimension: what is lost where pure noise takes the place of x_t."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from sde_lib import MOST_PRIOR_BITS, VE, VP, CosineVP, LearnedVP, SubVP, Tabulated


def test_it_is_the_gaussian_kl(sde):
    for x0 in (0.0, 0.4, -1.0):
        end = torch.tensor([sde.t_max], dtype=torch.float64)
        there = Normal(sde.alpha(end) * x0, sde.sigma(end))
        nats = float(kl_divergence(there, Normal(0 * end, 0 * end + sde.prior_std)))
        assert sde.prior_bits_per_dim(mean_square=x0**2) == pytest.approx(nats / math.log(2), rel=1e-9, abs=1e-14)


def test_it_grows_towards_the_data_as_half_the_signal_to_noise_ratio_of_ve():
    sde = VE()
    for t in (1.0, 0.9, 0.8, 0.7):
        snr = float(sde.log_snr(torch.tensor([t], dtype=torch.float64)).exp())
        assert sde.prior_bits_per_dim(t) == pytest.approx(0.5 * snr / math.log(2), rel=0.1)
    # Song & Ermon's levels of 2019 on data of mean square 0.35
    assert Tabulated.ncsn(num_steps=10, sigma_max=1.0).prior_bits_per_dim(mean_square=0.35) == pytest.approx(
        0.25, abs=0.01
    )


@pytest.mark.parametrize(
    "sde",
    [
        VP(), SubVP(), CosineVP(), VE(), VE(sigma_max=10.0), Tabulated.ddpm(), Tabulated.ncsn(), LearnedVP(),
        Tabulated.improved_ddpm(), Tabulated.improved_ddpm(num_steps=10),
        Tabulated.ddpm(num_steps=50, beta_start=2e-3, beta_end=0.4),
    ],
)  # fmt: skip
def test_every_sde_ends_in_its_prior_as_it_comes(sde):
    assert sde.prior_bits_per_dim() < MOST_PRIOR_BITS


@pytest.mark.parametrize(
    "sde",
    [
        VP(beta_max=2.0), SubVP(beta_max=3.0), VE(sigma_max=1.0), VE(sigma_max=5.0), LearnedVP(log_snr_min=-3.0),
        Tabulated.ddpm(num_steps=50), Tabulated.ncsn(sigma_max=1.0), Tabulated.from_betas([0.1, 0.2, 0.3]),
    ],
)  # fmt: skip
def test_a_short_diffusion_does_not(sde):
    assert sde.prior_bits_per_dim() > MOST_PRIOR_BITS
