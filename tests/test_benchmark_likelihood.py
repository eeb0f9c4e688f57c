"""The benchmark of the ODE's likelihood: both of its sides, and its reference, are right on a Gaussian."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import likelihood
from models import EpsParameterization, NetworkScoreModel
from sde_lib import VE, VP, Tabulated

VAR = 0.3


class GaussiansEps(nn.Module):
    """eps of N(0, 0.3), told 999 t; float64 inside, as its parameter's dtype asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        alpha, sigma = VP().alpha_sigma(c_noise / 999)
        factor = (sigma / (alpha**2 * VAR + sigma**2)).to(x.dtype)
        return self.one * factor.reshape(-1, 1, 1, 1) * x


def gaussian_pair() -> likelihood.Pair:
    model = NetworkScoreModel(GaussiansEps(), VP(), EpsParameterization(time_input="t999"))
    levels = torch.randint(5, (4, 1, 3, 3), generator=torch.Generator().manual_seed(0))
    return likelihood.Pair(model.eval().requires_grad_(requires_grad=False), levels / 2.0 - 1.0, 5)


def truth_of(pair: likelihood.Pair) -> Tensor:
    """y / sqrt(0.3 + r^2) never changes, and the probes' divergence of a multiple of the identity is exact."""
    first, last = (
        float(sigma / alpha) for alpha, sigma in (VP().alpha_sigma(torch.tensor([t])) for t in (likelihood.T_END, 1.0))
    )
    alpha = float(VP().alpha(torch.ones(1)))
    std = math.sqrt((VAR + first**2) / (VAR + last**2)) / alpha
    log_p = torch.distributions.Normal(0.0, std).log_prob(pair.y).flatten(1).mean(1)
    return -(log_p + math.log(2 / 4)) / math.log(2)


def test_both_sides_and_the_reference_find_the_gaussians_density():
    pair = gaussian_pair()
    truth = truth_of(pair)
    for found, tolerance in ((pair.ours(1e-6), 1e-4), (pair.textbook(1e-6), 1e-4)):
        assert float((found.bits - truth).abs().max()) < tolerance
    assert float((pair.reference(1e-8, 3) - truth[:3]).abs().max()) < 1e-6
    # one call is drift and divergence; the textbook's way takes two
    assert pair.textbook(1e-5).calls % 2 == 0


def test_what_is_reported_of_a_side():
    bits = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    of = likelihood.row(
        [likelihood.Measured(bits, 10, taken) for taken in (3.0, 1.0)], torch.tensor([1.5, 2.0], dtype=torch.float64)
    )
    assert of == pytest.approx(
        {
            "network_calls": 10,
            "seconds": 2.0,
            "bits_per_dim": 3.0,
            "error_mean": -0.25,
            "error_rms": math.sqrt(0.125),
            "error_largest": 0.5,
        }
    )


def test_the_network_of_a_table_is_told_the_row_of_the_same_log_snr():
    table = Tabulated.ddpm()
    rows = torch.tensor([0.0, 400.0, 990.0], dtype=torch.float64)
    t = VP().time_from_log_snr(table.log_snr((rows + 1) / 1000))
    told: Any = likelihood.RowOfTable(table).c_noise(VP(), t)
    assert torch.allclose(told, rows, rtol=0, atol=1e-6)


def test_another_sde_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(likelihood, "load_named_run", lambda _: SimpleNamespace(sde=VE()))
    with pytest.raises(SystemExit, match="needs a config on DDPM's table, got "):
        likelihood.load_pair(SimpleNamespace(config="configs/ve/digits.py"))  # pyright: ignore[reportArgumentType]
