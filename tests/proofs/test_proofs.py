"""The proofs of ``proofs`` on a smaller budget, and that what is wrong fails them."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from thinning import only

from models import GaussianMixtureScoreModel
from proofs import (
    guidance_report,
    orders,
    report,
    weak,
)
from proofs import (
    run_all as table,
)
from proofs.checked import Checked
from proofs.entries import Entry, entries
from proofs.gaussian import prove_gaussian
from proofs.mixture import prove_mixture
from proofs.oracles import (
    GAUSSIAN,
    MIXTURE,
    PARAMETERIZATIONS,
    SDES,
    PlaneOracle,
    central_moments,
    network_model,
    to_unit_square,
)
from proofs.recursion import MEAN, VAR
from samplers import available_samplers, make_sampler, registry
from sde_lib import VE, VP, NoiseStreams, points_of

ENTRIES = {entry.label: entry for entry in entries()}
NAMES = list(SDES)
# of samplers that have nothing but Langevin steps
LONG = [label for label, entry in ENTRIES.items() if "none +" in label or entry.name == "annealed_langevin"]
SHORT = [label for label in ENTRIES if label not in LONG]


def test_every_registered_sampler_is_in_the_table():
    # not what other tests have registered
    ours = {name for name in available_samplers() if registry.SAMPLERS.get(name).__module__.startswith("samplers.")}
    # which is no sampler of score models
    assert {entry.name for entry in ENTRIES.values()} == ours - {"consistency"}
    assert len(ENTRIES) == len(entries())


# Every tenth sampler on one of the SDEs, with one parameterization. The slow test has all cells; all samplers are
# held against the mixture in test_sampler_every.py too.


@pytest.mark.parametrize("index", only(range(0, len(SHORT), 20), range(len(SHORT))), ids=SHORT)
def test_gaussian(index: int):
    entry, name = ENTRIES[SHORT[index]], NAMES[index % len(NAMES)]
    parameterization = PARAMETERIZATIONS[(index + len(name)) % len(PARAMETERIZATIONS)]
    cells = prove_gaussian(SDES[name], entry, parameterizations=[parameterization], num_points=8000)
    assert cells[parameterization].passed, (name, cells)


@pytest.mark.slow
@pytest.mark.parametrize("label", LONG)
def test_gaussian_by_langevin_steps_alone(label: str):
    cells = prove_gaussian(SDES["DDPM table"], ENTRIES[label], parameterizations=["eps"], num_points=4000)
    assert cells["eps"].passed, cells


@pytest.mark.parametrize("index", only(range(6, len(SHORT), 20), range(len(SHORT))), ids=SHORT)
def test_mixture(index: int):
    entry, name = ENTRIES[SHORT[index]], NAMES[(2 * index + 1) % len(NAMES)]
    parameterization = PARAMETERIZATIONS[index % len(PARAMETERIZATIONS)]
    cell = prove_mixture(SDES[name], entry, parameterizations=[parameterization], num_points=8000)
    assert cell.passed, (name, cell)


@pytest.mark.slow
@pytest.mark.parametrize("label", ENTRIES)
@pytest.mark.parametrize("name", NAMES)
def test_every_cell(name: str, label: str):
    for parameterization, cell in prove_gaussian(SDES[name], ENTRIES[label], num_points=20_000).items():
        assert cell.passed, (parameterization, cell)
    cell = prove_mixture(SDES[name], ENTRIES[label], num_points=20_000)
    assert cell.passed, cell


# Deterministic samplers are held to their orders in test_sampler_orders.py too.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["VP", "NCSN table"])
def test_orders(name: str):
    fast = tuple(s for s in orders.SOLVERS if s.order < 4)
    for convergence in orders.convergences(SDES[name], solvers=fast, steps=(120, 240)):
        assert convergence.checked.passed, (convergence, convergence.measured)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["VP", "sub-VP", "NCSN table"])
def test_weak_order_of_euler_maruyama(name: str):
    (sampler,) = (s for s in weak.SAMPLERS if s.name == "euler_maruyama")
    for convergence in weak.weak_convergences(SDES[name], samplers=(sampler,), steps=(160, 320)):
        assert convergence.checked.passed, (convergence, convergence.measured)


# What is wrong must fail.


def _changed(label: str, **options: Any) -> Entry:
    """An entry of the table that builds something else than it says."""
    entry = ENTRIES[label]

    def build(sde, refinement):
        numbers = {"num_steps": 100 * 2**refinement, "grid": "log_snr", **options}
        return make_sampler(entry.name, **numbers)

    return dataclasses.replace(entry, build=build)


def test_a_sampler_of_lower_order_fails():
    entry = dataclasses.replace(ENTRIES["UniPC 2"], build=_changed("DDIM, eta = 0").build)
    cell = prove_gaussian(VP(), entry, parameterizations=["eps"])["eps"]
    assert not cell.checks["cov"].passed and not cell.checks["kl"].passed
    assert not prove_mixture(VP(), entry, parameterizations=[], num_points=100_000).passed


@pytest.mark.slow
def test_a_published_step_that_falls_short_of_its_order_fails():
    wrong = orders.Solver("3M", "dpm_solver_pp", 3, {"variant": "3M", "warm_start": True, "correction": "published"})
    found = list(orders.convergences(VP(), solvers=(wrong,), steps=(120, 240)))
    assert not any(convergence.checked.passed for convergence in found)


@pytest.mark.slow
def test_too_little_noise_fails():
    # Heun takes noise_std as an option: a sampler that converges, but not to the data
    entry = _changed("Heun, churn 10", churn=40.0, noise_std=0.8)
    assert not prove_gaussian(VP(), entry, parameterizations=["x0"])["x0"].passed
    assert not prove_mixture(VP(), entry, parameterizations=["x0"], num_points=20_000).checks["cov"].passed


def test_a_number_that_is_not_a_number_fails():
    assert not Checked(float("nan"), 1.0).passed
    assert not Checked(1.0, float("nan")).passed
    assert Checked(-1.0, 1.0).passed and not Checked(-1.1, 1.0).passed


# What the proofs know.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("components", [GAUSSIAN, MIXTURE], ids=["Gaussian", "mixture"])
def test_the_oracle_is_the_exact_model(name: str, components):
    sde = SDES[name]
    covs = torch.tensor([[[c.cov[0], c.cov[1]], [c.cov[1], c.cov[2]]] for c in components])
    means, weights = torch.tensor([c.mean for c in components]), [c.weight for c in components]
    library = GaussianMixtureScoreModel(sde, means=means, covs=covs, weights=weights)
    x = 2 * torch.randn(3, 2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.02, 0.3, 0.9], dtype=torch.float64)
    ours = PlaneOracle(sde, components)(x, t)
    theirs = library(x.transpose(1, 2).reshape(-1, 2), t.repeat_interleave(50))
    for mine, their in ((ours.x0, theirs.x0), (ours.eps, theirs.eps)):
        # the library's means and covariances went through float32
        assert torch.allclose(mine.transpose(1, 2).reshape(-1, 2), their, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_networks_answer_as_the_oracle(name: str, parameterization: str):
    sde = SDES[name]
    oracle = PlaneOracle(sde)
    x = torch.randn(3, 2, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    exact, network = oracle(x, t), network_model(oracle, parameterization)(x, t)
    assert torch.allclose(network.x0, exact.x0, atol=1e-9) and torch.allclose(network.eps, exact.eps, atol=1e-9)
    assert network.variance_fraction is not None
    assert torch.allclose(network.variance_fraction, exact.variance_fraction)


def test_draws_are_of_the_mixture():
    draws = PlaneOracle(VP()).draw(50_000, NoiseStreams(0, range(4)))
    points = draws.transpose(1, 2).reshape(-1, 2)
    mean, cov, third = central_moments(MIXTURE)
    root = len(points) ** 0.5
    centred = points - mean
    assert ((centred.mean(0)).abs() < 5 * points.std(0) / root).all()
    products = torch.stack([centred[:, 0] ** 2, centred[:, 0] * centred[:, 1], centred[:, 1] ** 2], 1)
    target = torch.stack([cov[0, 0], cov[0, 1], cov[1, 1]])
    assert ((products.mean(0) - target).abs() < 5 * products.std(0) / root).all()
    assert (((centred**3).mean(0) - third).abs() < 5 * (centred**3).std(0) / root).all()
    uniform = to_unit_square(points)
    assert ((uniform.mean(0) - 0.5).abs() < 5 * (1 / 12) ** 0.5 / root).all()
    assert (((uniform - 0.5).prod(1)).mean().abs() < 5 / 12 / root).all()


def test_the_axes_are_those_of_the_gaussian():
    mean, cov, _ = central_moments(GAUSSIAN)
    assert float(torch.from_numpy(VAR).sum()) == pytest.approx(float(cov.trace()))
    assert float(torch.from_numpy(MEAN).norm()) == pytest.approx(float(mean.norm()))


@pytest.mark.slow
def test_the_reference_of_the_flow_is_that_of_the_gaussian_where_both_are_known():
    sde = VE(sigma_max=20.0)
    grid = orders.grid_between(sde, 2000, orders.MIDDLE)
    first, last = points_of(sde, grid[[0, -1]])
    x = orders.starting_points(first)
    flow = make_sampler("probability_flow", solver="rk4", grid=grid, denoise_final=False)
    found = flow.sample(PlaneOracle(sde, GAUSSIAN), x).x0
    assert torch.allclose(found, orders.gaussian_flow(x, first, last), atol=1e-12)


# The command.


def test_the_page_is_what_the_program_makes_of_the_numbers_beside_it():
    docs = Path(__file__).resolve().parents[2] / "docs"
    text = (docs / "proofs.json").read_text()
    found = json.loads(text)
    assert report.as_json(found) == text
    assert report.page(found) == (docs / "proofs.md").read_text()
    assert len(report.page(found).splitlines()) <= 100
    # five parameterizations, of the rectified flow six, and seven SDEs; every registered sampler
    kinds = ("gaussian", "orders", "weak_orders", *guidance_report.KINDS)
    count = sum(len(row["same"]) for row in found["mixture"]) + sum(len(found[kind]) for kind in kinds)
    assert found["cells"] == count and found["failures"] == []
    assert {entry.name for entry in ENTRIES.values()} == set(
        re.findall(r"^\| `(\w+)` \|", report.page(found), re.MULTILINE)
    )


@pytest.mark.slow
def test_the_command_writes_and_reports(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(table, "ProcessPoolExecutor", _Here)
    few = {name: SDES[name] for name in ("VP", "NCSN table")}
    for module in (table, report):
        monkeypatch.setattr(module, "SDES", few)
    arguments = ["--only", "DPM-Solver++ 2M", "--num-points", "2000", "--output", str(tmp_path)]
    assert table.main(arguments) == 0
    assert "cells pass" in capsys.readouterr().out
    numbers = json.loads((tmp_path / "docs/proofs.json").read_text())
    # two samplers, two SDEs, five parameterizations, two distributions; guidance by three weights, and a condition
    assert numbers["cells"] == 40 + 6 + 2 and numbers["failures"] == []
    page = (tmp_path / "docs/proofs.md").read_text()
    assert "| `dpm_solver_pp` | " in page and "**All pass.**" in page and "FAIL" not in page

    failing = dataclasses.replace(ENTRIES["DPM-Solver++ 2M"], order=6.0)
    monkeypatch.setattr(table, "entries", lambda: [failing])
    assert table.main(arguments) == 1
    assert "FAIL DPM-Solver++ 2M on VP, eps, Gaussian" in capsys.readouterr().out
    page = (tmp_path / "docs/proofs.md").read_text()
    assert " FAIL**" in page and "- DPM-Solver++ 2M on VP, eps, Gaussian" in page


class _Here:
    """A pool that works in this process."""

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return None

    def submit(self, function, *args):
        from concurrent.futures import Future

        future = Future()
        future.set_result(function(*args))
        return future


def test_bad_arguments_are_refused(capsys):
    with pytest.raises(SystemExit, match="no sampler's label has 'nothing'"):
        table.main(["--only", "nothing"])
    with pytest.raises(SystemExit) as ended:
        table.main(["--num-points", "10"])
    assert ended.value.code == 2
    assert "expected at least 1000 points and 1 worker, got 10" in capsys.readouterr().err
