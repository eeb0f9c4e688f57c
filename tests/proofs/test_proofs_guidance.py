"""Guidance on Gaussians: the closed forms, the samplers' laws on a smaller budget, and that what is wrong fails."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from thinning import only

from models import (
    CFGPlusPlusWeight,
    ClassifierGuidedScoreModel,
    Condition,
    GaussianMixtureScoreModel,
    GuidedScoreModel,
)
from proofs import cascade, guidance, guidance_report, identities, report
from proofs.cascade import NOISE_T, exact_cascade, prove_cascade
from proofs.checked import times_of
from proofs.entries import Entry, entries
from proofs.guidance import (
    V_COND,
    V_NULL,
    WEIGHTS,
    exact_law,
    guided_var,
    line,
    linear_entries,
    noise_share,
    plane,
    prove_condition,
    prove_forms,
    prove_guidance,
    told_and_law,
)
from proofs.identities import prove_identities
from proofs.oracles import SDES
from proofs.recursion import noisy_points
from samplers import make_sampler
from sde_lib import VP, NoiseStreams, make_grid

LINEAR = {entry.label: entry for entry in linear_entries()}
SLOW = ("annealed Langevin", "PC, none + annealed_langevin", "Heun, churn 10", "flow, rk4")
# those that take seconds
QUICK = [label for label in LINEAR if label not in SLOW]


@pytest.mark.parametrize("weight", [2.0, 4.0, 7.5])
def test_the_limits_of_the_flow_and_of_the_reverse_sde(weight: float):
    ends = {"start": (1e6, 1e12), "r": 1e-6}
    flow = guided_var(1.0, 2.0, weight, **ends)
    assert flow == pytest.approx(2 ** (1 - weight), rel=1e-9)
    assert guided_var(0.5, 3.0, weight, **ends) == pytest.approx(0.5**weight * 3 ** (1 - weight), rel=1e-9)
    reverse = guided_var(1.0, 2.0, weight, noise=1.0, **ends)
    assert reverse == pytest.approx((2 - 2 ** (2 - 2 * weight)) / (2 * weight - 1), rel=1e-9)
    # at finite R: that of the flow, from noise of variance R^2
    start = guided_var(1.0, 2.0, weight, start=(3.0, 9.0), r=1e-9)
    assert start == pytest.approx(9 * 10**-weight * (11 / 2) ** (weight - 1), rel=1e-9)


def test_without_guidance_every_walk_from_the_marginal_leads_to_the_data():
    for noise in (0.0, 0.25, 1.0):
        assert guided_var(1.0, 2.0, 1.0, start=(5.0, 26.0), r=1e-6, noise=noise) == pytest.approx(1.0, rel=1e-9)


def test_every_sampler_whose_limit_is_known_is_held_to_it():
    left_out = {entry.label for entry in entries()} - LINEAR.keys()
    assert left_out and all(label.endswith("+ langevin") for label in left_out)
    shares = {label: noise_share(entry.build(VP(), 0), VP()) for label, entry in LINEAR.items()}
    assert shares["annealed Langevin"] is None and shares["DDIM, eta = 0.5"] == 0.25
    assert shares["PC, none + annealed_langevin"] is None
    # where there is little noise alpha_i is 1
    share = shares["PC, ancestral + annealed_langevin"]
    assert callable(share)
    added = share(0.01) - 1
    first, *_, last = noisy_points(VP(), make_grid("log_snr", VP(), 3))
    assert added == pytest.approx(2 * 0.16**2 * 99 / math.log(first.noise_ratio / last.noise_ratio), rel=1e-3)
    assert {label for label, share in shares.items() if share == 1} == {
        label
        for label in LINEAR
        if label.startswith(("ancestral", "Euler", "reverse", "SDE")) or "eta = 1" in label or label.endswith("+ none")
    }


@pytest.mark.parametrize("index", only(range(0, len(QUICK), 12), range(len(QUICK))), ids=QUICK)
def test_samplers_lead_to_their_law(index: int):
    sde = SDES[list(SDES)[index % len(SDES)]]
    for weight, (cell, var) in prove_guidance(sde, LINEAR[QUICK[index]], [WEIGHTS[index % 3]]).items():
        assert cell.passed, (weight, var, cell)


@pytest.mark.slow
@pytest.mark.parametrize("label", SLOW)
def test_slow_samplers_lead_to_their_law(label: str):
    assert all(cell.passed for cell, _ in prove_guidance(VP(), LINEAR[label]).values())


@pytest.mark.parametrize("name", only(["VE"], ["VP", "VE", "sub-VP"]))
def test_an_interval_autoguidance_and_other_variances(name: str):
    found = prove_forms(SDES[name])
    assert len(found) == 3 and all(checked.passed for checked, _, _ in found.values()), found


@pytest.mark.parametrize("label", only(["DDIM, eta = 0.5", "UniPC 2"], list(LINEAR)))
def test_a_condition_is_obeyed(label: str):
    assert prove_condition(VP(), LINEAR[label]).passed


@pytest.mark.parametrize("entry", [e for e in entries() if e.by_norms], ids=lambda entry: entry.label)
def test_correctors_whose_steps_norms_set_draw_of_a_condition_what_they_draw_of_the_gaussian_it_leaves(entry: Entry):
    """They are not linear: instead of a law, each draw is compared with that of the Gaussian, which proofs.md is on."""
    (told, (mean, cov)), sde = told_and_law(), VP()
    gaussian = GaussianMixtureScoreModel(sde, means=mean[None], covs=cov[None])
    sampler, x_T = entry.build(sde, 0), NoiseStreams(1, range(8)).normal((2,)).double()
    noise = partial(NoiseStreams, 0, range(8))
    cond = Condition(values=told.expand(8, -1))
    found = sampler.sample(plane(sde), x_T, cond=cond, noise=noise()).x0
    torch.testing.assert_close(found, sampler.sample(gaussian, x_T, noise=noise()).x0, rtol=0, atol=1e-9)


def test_what_is_wrong_fails(monkeypatch: pytest.MonkeyPatch):
    too_slow = replace(LINEAR["DDIM, eta = 0"], order=3.0)
    assert not any(cell.passed for cell, _ in prove_guidance(VP(), too_slow, [4.0]).values())
    # the reverse SDE is not the flow
    monkeypatch.setattr(guidance, "noise_share", lambda *_: 0.0)
    wrong = LINEAR["DDIM, eta = 1"]
    assert not any(cell.passed for cell, _ in prove_guidance(VP(), wrong, [4.0]).values())
    # nor do Langevin correctors leave it as it is
    monkeypatch.setattr(guidance, "noise_share", lambda *_: 1.0)
    wrong = LINEAR["PC, reverse_diffusion + annealed_langevin"]
    assert not any(cell.passed for cell, _ in prove_guidance(VP(), wrong, [2.0]).values())


def test_cfgpp_has_no_limit_of_many_steps():
    """Weights grow as steps get shorter, so that the variance falls with their number."""
    found = []
    for steps in (40, 80, 160):
        sampler = make_sampler("ddim", num_steps=steps, grid="log_snr")
        model = GuidedScoreModel(line(VP()), weight=CFGPlusPlusWeight(0.6, times_of(sampler, VP())))
        start = (torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
        (_, cov), _ = exact_law(sampler, model, torch.zeros(1), start)
        found.append(float(cov))
    assert found[0] > 2 * found[1] > 4 * found[2]


@pytest.mark.parametrize("name", SDES)
def test_what_is_exact_for_any_model_is_exact_to_rounding(name: str):
    found = prove_identities(SDES[name])
    assert len(found) == 4 and all(checked.passed for checked in found.values()), found


@pytest.mark.parametrize("s", only([0.2], NOISE_T))
def test_a_cascade_of_exact_stages_has_the_law_of_the_data(s: float):
    assert prove_cascade(s, truncated=True, steps=50).passed


def test_a_cascade_whose_first_stage_is_wrong_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cascade, "exact_cascade", partial(exact_cascade, delta=torch.tensor([1e-3, 0.0])))
    assert not prove_cascade(0.2, truncated=False, steps=25).passed


def test_identities_of_a_wrong_classifier_or_schedule_fail(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(identities, "ClassifierGuidedScoreModel", partial(ClassifierGuidedScoreModel, scale=1.001))
    monkeypatch.setattr(identities, "CFGPlusPlusWeight", lambda scale, times: CFGPlusPlusWeight(scale + 1e-4, times))
    failed = [name.split(" ")[0] for name, checked in prove_identities(VP()).items() if not checked.passed]
    assert failed == ["score", "CFG++"]


def test_the_page_is_what_the_program_makes_of_the_numbers():
    docs = Path(__file__).resolve().parents[2] / "docs"
    found = json.loads((docs / "proofs.json").read_text())
    assert guidance_report.guidance_page(found) == (docs / "guidance.md").read_text()
    samplers = {row["sampler"] for row in found["guidance"]}
    assert samplers == LINEAR.keys() == {row["sampler"] for row in found["condition"]}
    assert V_COND == 1 and V_NULL == 2 and report.as_json(found) == (docs / "proofs.json").read_text()
