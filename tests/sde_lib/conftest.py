"""The SDEs that every law of this package is checked on, one of them written as a user would."""

import pytest
import torch
from learned_schedules import perturbed

from sde_lib import SDE, LearnedVP, make_sde


class Quadratic(SDE):
    """alpha = exp(-t^2), sigma = 0.1 + 2 t: neither variance preserving nor exploding, and nothing else is given."""

    prior_std = 2.1

    def log_alpha(self, t):
        return -(t.double() ** 2)

    def log_sigma(self, t):
        return torch.log(0.1 + 2 * t.double())


BUILDERS = {
    "vp": lambda: make_sde("vp"),
    "vp_cosine": lambda: make_sde("vp_cosine"),
    "subvp": lambda: make_sde("subvp"),
    "ve": lambda: make_sde("ve"),
    "rectified_flow": lambda: make_sde("rectified_flow"),
    "rectified_flow_shifted": lambda: make_sde("rectified_flow", shift=3.0),
    "ddpm": lambda: make_sde("ddpm"),
    "ddpm_50": lambda: make_sde("ddpm", num_steps=50, beta_start=2e-3, beta_end=0.4),
    "improved_ddpm": lambda: make_sde("improved_ddpm"),
    # a divisor of 4000, the steps by which the moments are integrated from row to row
    "ncsn": lambda: make_sde("ncsn", num_steps=200),
    "vp_learned": lambda: LearnedVP(log_snr_min=-11.0).requires_grad_(False),
    "vp_learned_trained": lambda: perturbed(LearnedVP(log_snr_min=-11.0)).requires_grad_(False),
    "user": Quadratic,
}


@pytest.fixture(params=list(BUILDERS))
def sde(request):
    return BUILDERS[request.param]()
