"""Posterior sampling where the posterior is known: the page's claims, and how its figures are found."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from thinning import only

from proofs.guidance import exact_law
from proofs.inverse import report, run_all
from proofs.inverse.draws import PARTICLES, drawn_row
from proofs.inverse.methods import ANCESTRAL, DDIM, HEUN, METHODS, PC, RESAMPLES
from proofs.inverse.moments import affine_row, errors_of, law_of
from proofs.inverse.problems import GAUSSIAN, NOISELESS, SDE, TWO_MODES
from samplers import make_sampler
from sde_lib import points_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
FOUND = json.loads((DOCS / "inverse_problems.json").read_text())
AFFINE = {(row["problem"], row["method"], row["sampler"]): row for row in FOUND["affine"]}
DRAWN = {(row["problem"], row["method"], row["sampler"], row["refinement"]): row for row in FOUND["drawn"]}
# few steps, of each sampler of the table
FEW = {
    ANCESTRAL: partial(make_sampler, "ancestral"),
    DDIM: partial(make_sampler, "ddim"),
    HEUN: partial(make_sampler, "heun"),
    PC: partial(make_sampler, "predictor_corrector", predictor="ancestral", corrector="annealed_langevin"),
}


def _few(label: str, num_steps: int) -> Any:
    return FEW[label](num_steps=num_steps, grid="log_snr")


# How the figures are found.


@pytest.mark.parametrize("label", FEW)
def test_the_law_step_by_step_is_that_of_whole_runs(label: str):
    sampler, exact = _few(label, 20), METHODS["exact posterior score"]
    found, nfe = law_of(exact, GAUSSIAN, sampler)
    start = GAUSSIAN.noisy(points_of(SDE, sampler.times(SDE)[:1])[0])
    wanted, same_nfe = exact_law(sampler, GAUSSIAN.posterior, torch.zeros(1), start)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert nfe == same_nfe


@pytest.mark.parametrize("label", only([ANCESTRAL], [ANCESTRAL, DDIM]))
def test_the_law_of_time_travel_with_replacement_is_that_of_draws(label: str):
    method, sampler = METHODS["RePaint, r = 2"], _few(label, 40)
    law, nfe = law_of(method, GAUSSIAN, sampler)
    drawn = drawn_row(method, GAUSSIAN, sampler, count=4000, seed=1)
    exact = errors_of(law, GAUSSIAN.posterior.mean_and_cov(), GAUSSIAN.scales)
    assert drawn.nfe == nfe and bool(((drawn.errors - exact).abs() < 4 * drawn.stderrs).all()), (drawn, exact)


@pytest.mark.parametrize("method", only(["DDNM"], ["DDNM", "PiGDM", "DPS"]))
def test_extrapolation_leads_two_solvers_of_the_flow_to_one_law(method: str):
    euler, heun = (affine_row(METHODS[method], GAUSSIAN, label, refinement=-1) for label in (DDIM, HEUN))
    assert bool((euler.errors - heun.errors).abs().max() > 0.01)
    assert bool(((euler.limit - heun.limit).abs() <= euler.within + heun.within).all()), (euler, heun)


# What is true of the methods.


@pytest.mark.parametrize("label", FEW)
def test_moment_matching_draws_what_the_exact_score_draws(label: str):
    for problem in (GAUSSIAN, NOISELESS):
        exact, found = (
            law_of(METHODS[name], problem, _few(label, 20))[0] for name in ("exact posterior score", "MMPS")
        )
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-9)


def test_the_bias_of_repaint_falls_as_one_over_its_resamples():
    truth, sampler = NOISELESS.posterior.mean_and_cov(), _few(ANCESTRAL, 40)
    biases = {
        count: float(
            errors_of(law_of(METHODS[f"RePaint, r = {count}"], NOISELESS, sampler)[0], truth, torch.ones(2))[1]
        )
        for count in (5, 10, 20)
    }
    assert biases[5] < -0.05
    assert all(biases[count] * count == pytest.approx(5 * biases[5], rel=0.05) for count in biases), biases


# The page.


def test_the_page_is_what_the_program_makes_of_the_numbers():
    assert report.page(FOUND) == (DOCS / "inverse_problems.md").read_text()
    assert report.as_json(FOUND) == (DOCS / "inverse_problems.json").read_text()
    shown = [(problem, method, sampler) for problem, method, sampler, _ in run_all.tasks()]
    assert set(shown) == AFFINE.keys() | {key[:3] for key in DRAWN} and len(run_all.tasks()) == len(AFFINE) + len(DRAWN)


def test_the_table_has_no_error_of_exact_methods_alone():
    for (_, method, _), row in AFFINE.items():
        if method in ("exact posterior score", "MMPS", "TMPD"):
            assert all(abs(limit) <= within + 1e-4 for limit, within in zip(row["limit"], row["within"], strict=True))
        else:
            assert max(abs(limit) for limit in row["limit"]) > 0.015, row


def test_the_table_has_one_limit_of_both_solvers_of_the_flow():
    pairs = [(row, AFFINE[problem, method, HEUN]) for (problem, method, sampler), row in AFFINE.items()
             if sampler == DDIM and (problem, method, HEUN) in AFFINE]  # fmt: skip
    assert len(pairs) == 12
    for euler, heun in pairs:
        for a, b, *within in zip(euler["limit"], heun["limit"], euler["within"], heun["within"], strict=True):
            assert abs(a - b) <= sum(within) + 2e-4, (euler, heun)


def test_the_order_of_the_methods_in_the_table():
    """The hidden number's mean, which only the correlation tells: by the reverse SDE and by the flow."""
    for sampler in (ANCESTRAL, DDIM):
        errors = {m: abs(AFFINE["Gaussian", m, sampler]["limit"][1]) for m in ("MMPS", "PiGDM", "DPS", "replacement")}
        assert errors["MMPS"] < errors["PiGDM"] < errors["DPS"] < errors["replacement"]
        ddnm, replacement = (AFFINE["Gaussian, no noise", m, sampler]["limit"][1] for m in ("DDNM", "replacement"))
        assert ddnm == pytest.approx(replacement, abs=1e-3)
        biases = [AFFINE["Gaussian, no noise", f"RePaint, r = {r}", sampler]["limit"][1] for r in RESAMPLES]
        for count, bias in zip(RESAMPLES[1:], biases[1:], strict=True):
            assert count * bias == pytest.approx(20 * biases[-1], rel=0.05)
        # of a measurement with noise time travel forgets the part that is more exact than the state
        seen = [AFFINE["Gaussian", f"RePaint, r = {r}", sampler]["limit"][2] for r in RESAMPLES]
        assert seen == sorted(seen) and seen[-1] > 5


def test_particles_give_a_mode_its_weight_in_the_table_and_guidance_does_not():
    wanted = float(TWO_MODES.posterior.log_weights.exp()[0])
    assert wanted == pytest.approx(0.223, abs=5e-4)
    for (problem, method, _, refinement), row in DRAWN.items():
        if problem == TWO_MODES.name and refinement == 1:
            weight, stderr = row["weight"]
            if method in ("exact posterior score", "TDS, K = 16", "TDS, K = 64"):
                assert abs(weight - wanted) < 3 * stderr, row
            elif method in ("MMPS", "TMPD", "PiGDM", "DDNM", "replacement"):
                assert weight - wanted > 5 * stderr, row


@pytest.mark.parametrize("problem", [GAUSSIAN, TWO_MODES], ids=lambda problem: problem.name)
def test_particles_give_the_evidence_in_the_table(problem):
    for method in PARTICLES:
        (coarse, coarse_err), (fine, fine_err) = (
            DRAWN[problem.name, method, ANCESTRAL, k]["log_evidence"] for k in (0, 1)
        )
        # the chain's own error, of order 1, is taken away
        assert abs(2 * fine - coarse) < 3 * math.hypot(2 * fine_err, coarse_err), method


def test_dps_as_published_has_no_limit_in_the_table():
    for scale in ("0.3", "1"):
        few, many = (DRAWN[TWO_MODES.name, f"DPS as published, {scale}", ANCESTRAL, k] for k in (0, 1))
        assert many["errors"][1] - few["errors"][1] > 5 * math.hypot(few["stderrs"][1], many["stderrs"][1])


@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in AFFINE if "RePaint" not in key[1]], ids=" ".join)
def test_rows_of_the_table_repeat(key: tuple[str, str, str]):
    row = run_all.prove((*key, 0), 100, 0)
    assert row.nfe == AFFINE[key]["nfe"]
    for name in ("errors", "limit", "within"):
        assert getattr(row, name).tolist() == pytest.approx(AFFINE[key][name], abs=2e-4)


@pytest.mark.slow
def test_the_command_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    few = [("Gaussian", "DDNM", DDIM, 0), *((TWO_MODES.name, "TDS, K = 4", ANCESTRAL, k) for k in (0, 1))]
    monkeypatch.setattr(run_all, "tasks", lambda: few)
    assert run_all.main(["--num-samples", "400", "--workers", "1", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "docs/inverse_problems.json").read_text())
    assert [len(found[kind]) for kind in ("affine", "drawn")] == [1, 2]
    assert "| TDS, K = 4 | ancestral | 400 | " in (tmp_path / "docs/inverse_problems.md").read_text()


def test_bad_arguments_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        run_all.main(["--num-samples", "10"])
    assert ended.value.code == 2
    assert "expected at least 100 samples and 1 worker, got 10" in capsys.readouterr().err
