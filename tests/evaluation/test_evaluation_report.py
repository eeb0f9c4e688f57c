"""The facts beside a number: the quote, the report, and warnings where a setting decides it."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eval_runs import eval_command
from PIL import Image
from tiny import ROOT, tiny_command

import main
from evaluation.quote import quote
from evaluation.report_warnings import warnings_of
from likelihood import LatentBound, LikelihoodEstimator, make_likelihood
from runtime.version import VERSION
from sde_lib import make_sde

NUMBER = r"-?\d+\.\d{4}"
REPORT: dict[str, Any] = {
    "dataset": "folder",
    "split": "test",
    "num_images": 20,
    "split_size": 20,
    "num_levels": 256,
    "units": "bits/dim",
    "sde": {"name": "ddpm"},
    "learned_variance": False,
    "class_conditional": True,
    "weights": "ema",
}
VLB = {
    "kind": "bound",
    "bits_per_dim": 3.61,
    "stderr": 0.07,
    "prior": 0.0,
    "variance": "small",
    "grid": "uniform",
    "num_steps": 1000,
    "steps_per_image": None,
    "clip_x0": True,
}
ODE = {
    "kind": "bound",
    "bits_per_dim": 3.5,
    "stderr": 0.06,
    "divergence": "rademacher",
    "num_probes": 1,
    "solver": "adams",
    "rtol": 1e-4,
    "atol": 1e-5,
    "dequantization": "decoder",
    "importance_samples": 1,
    "clip_x0": False,
}


@pytest.mark.parametrize(
    ("of_all", "ours", "expected"),
    [
        (
            {},
            VLB,
            "≤ 3.6100 ± 0.0700 bits/dim: chain of T = 1000, small variance, clipped x0, class-conditional, EMA "
            "weights, 20 test images of folder, 256 levels",
        ),
        (
            {"class_conditional": False, "split_size": 2000, "weights": "raw"},
            VLB | {"grid": "quadratic", "num_steps": 50, "steps_per_image": 9, "variance": "learned", "clip_x0": False},
            "≤ 3.6100 ± 0.0700 bits/dim: chain of T = 50 on the quadratic grid, learned variance, L_t from 9 draws an "
            "image, raw weights, the first 20 of 2000 test images of folder, 256 levels",
        ),
        # no fewer draws than steps: all are evaluated
        ({}, VLB | {"num_steps": 5, "steps_per_image": 4}, "T = 5, small variance, clipped x0, class"),
        ({}, VLB | {"stderr": math.nan}, "≤ 3.6100 bits/dim: chain"),
        (
            {},
            ODE,
            "≤ 3.5000 ± 0.0600 bits/dim: probability flow, Hutchinson with 1 rademacher probe, adams with rtol 0.0001 "
            "and atol 1e-05, decoder dequantization, class-conditional, EMA weights, 20 test images of folder, "
            "256 levels",
        ),
        (
            {"units": "bits/dim of the density", "num_levels": None, "num_images": 1, "split_size": 1},
            {key: value for key, value in ODE.items() if key != "rtol"}
            | {
                "kind": "exact",
                "divergence": "exact",
                "dequantization": "none",
                "solver": "rk4",
                "num_steps": 60,
                "grid": "log_snr",
            }
            | {"nats": 4.8520, "nats_stderr": 0.0832},
            "= 3.5000 ± 0.0600 bits/dim of the density (4.8520 ± 0.0832 nats a vector): probability flow, exact "
            "divergence, 60 steps of rk4 on the log_snr grid, class-conditional, EMA weights, 1 test vector of folder",
        ),
    ],
)
def test_the_quote_says_what_decides_the_number(of_all: dict[str, Any], ours: dict[str, Any], expected: str):
    line = quote(REPORT | of_all | {"mine": ours}, "mine")
    assert line == expected if "folder" in expected else expected in line


def test_numbers_of_quote_table_and_report_are_the_same(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    few = ["--config.eval.likelihoods=vlb,vlb_continuous,ode", "--config.eval.num_images=4"]
    assert main.run(eval_command(run_copy, *few)) == 0
    printed = capsys.readouterr().out
    report = json.loads((run_copy / "eval" / "report.json").read_text())
    names = ["vlb", "vlb_continuous", "ode"]
    rows = {line.split()[0]: line for line in printed.splitlines()}
    for row in ("prior", "diffusion", "reconstruction", "bits_per_dim"):
        stderr = "stderr" if row == "bits_per_dim" else f"{row}_stderr"
        expected = [f"{report[name][row]:.4f} ± {report[name][stderr]:.4f}" for name in names]
        assert re.findall(f"{NUMBER} ± {NUMBER}", rows[row]) == expected
    assert rows["nfe"].split()[-3:] == [str(report[name]["nfe"]) for name in names]
    for name in names:
        ours = report[name]
        assert f"{name} {ours['quote']}" in printed.splitlines()
        total = f"{ours['bits_per_dim']:.4f} ± {ours['stderr']:.4f}"
        assert ours["quote"].startswith(f"≤ {total} {report['units']}: ") and total in rows["bits_per_dim"]
        assert ours["quote"].endswith("EMA weights, the first 4 of 360 test images of digits, 17 levels")
        assert ours["kind"] == "bound"
    assert "chain of T = 4, small variance, L_t from 2 draws an image, clipped x0" in report["vlb"]["quote"]
    assert "continuous time, L_t from 2 draws an image, clipped x0" in report["vlb_continuous"]["quote"]


def test_the_report_says_what_was_measured(run_copy: Path):
    assert main.run(tiny_command("eval", run_copy)) == 0
    report = json.loads((run_copy / "eval" / "report.json").read_text())
    expected = {
        "dataset": "digits",
        "split": "test",
        "num_images": 10,
        "split_size": 360,
        "split_source": "360 images held out, by a fixed permutation",
        "num_classes": 10,
        "class_names": list("0123456789"),
        "image_shape": [1, 8, 8],
        "num_levels": 17,
        "units": "bits/dim",
        "sde": {"name": "ddpm", "num_steps": 1000, "beta_start": 2e-3, "beta_end": 0.02},
        "parameterization": "eps",
        "learned_variance": False,
        "class_conditional": False,
        "weights": "ema",
        "precision": "fp32",
        "step": 6,
        "seed": 0,
    }
    assert {key: report[key] for key in expected} == expected
    versions = report["versions"]
    assert versions["torch"] == torch.__version__ and versions["numpy"] == np.__version__
    assert versions["project"] == VERSION
    assert 'version = { attr = "runtime.version.VERSION" }' in (ROOT / "pyproject.toml").read_text()


def _warned(
    report: dict[str, Any], estimator: LikelihoodEstimator | None = None, sde: tuple[str, dict[str, Any]] = ("ddpm", {})
) -> list[str]:
    name, options = sde
    estimator = estimator or make_likelihood("vlb", num_levels=256)
    whole = REPORT | {"num_images": 2000, "split_size": 2000, "sde": {"name": name}, "mine": VLB} | report
    return warnings_of(whole, {"mine": estimator}, make_sde(name, **options))


def test_a_good_number_has_no_warning():
    assert _warned({}) == []


@pytest.mark.parametrize(
    ("levels", "mean", "stderr", "warns"),
    [
        (256, 10.44, 0.3, True),
        (256, 8.1, 0.01, True),
        (256, 8.1, 0.06, False),
        (256, 7.9, 0.01, False),
        (17, 4.2, 0.01, True),
        (17, 4.0, 0.01, False),
        (2, 1.1, math.nan, True),
    ],
)
def test_worse_than_uniform_is_said(levels: int, mean: float, stderr: float, warns: bool):
    lines = _warned({"num_levels": levels, "mine": VLB | {"bits_per_dim": mean, "stderr": stderr}})
    uniform = f"log2({levels}) = {math.log2(levels):.4g}"
    assert [uniform in line and f"mine {mean:.4f}" in line for line in lines] == [True] * warns


@pytest.mark.parametrize(
    ("variance", "learned", "warns"),
    [("small", True, True), ("large", True, True), ("learned", True, False), ("small", False, False)],
)
def test_another_variance_than_the_learned_one_is_said(variance: str, learned: bool, warns: bool):
    lines = _warned({"learned_variance": learned, "mine": VLB | {"variance": variance}})
    assert [line for line in lines if "eval.vlb_variance=learned" in line and variance in line] == lines
    assert len(lines) == warns


@pytest.mark.parametrize(
    ("count", "size", "levels", "said"),
    [
        (1, 1, 256, "one image has no standard error; hold out more test images"),
        (9, 9, 256, "9 images are few: the standard error is itself off by 25%; hold out more test images"),
        (9, 400, 256, "9 images are few: the standard error is itself off by 25%; raise eval.num_images"),
        (9, 9, None, "9 vectors are few: the standard error is itself off by 25%; hold out more test vectors"),
        (30, 400, 256, None),
    ],
)
def test_few_images_are_said(count: int, size: int, levels: int | None, said: str | None):
    of_all = {"num_images": count, "split_size": size, "num_levels": levels}
    assert _warned(of_all) == ([] if said is None else [said])


def test_a_standard_error_is_as_uncertain_as_said():
    estimates = torch.randn(20_000, 9, generator=torch.Generator().manual_seed(0)).std(1)
    assert float(estimates.std() / estimates.mean()) == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(("ours", "prior", "warns"), [(VLB, 0.35, True), (VLB, 0.002, False), (ODE, 2.0, False)])
def test_a_prior_that_is_not_reached_is_said(ours: dict[str, Any], prior: float, warns: bool):
    lines = _warned({"mine": ours | {"prior": prior}})
    # the SDE does reach it: another grid of the chain will do
    assert [f"mine: {prior:.3g} bits/dim are L_T" in line and "eval.vlb_grid" in line for line in lines] == [
        True
    ] * warns


def test_a_prior_that_the_sde_does_not_reach_is_cured_by_the_sde():
    short = ("ddpm", {"num_steps": 100})
    report = {"sde": {"name": "ddpm", "num_steps": 100}, "mine": VLB | {"prior": 0.35}}
    (line,) = [line for line in _warned(report, sde=short) if "L_T" in line]
    assert "sde.num_steps=100 keeps the betas of 1000 steps" in line


def test_densities_are_not_compared_with_levels():
    density = {"num_levels": None, "units": "nats, density", "mine": ODE | {"bits_per_dim": 30.0, "prior": 2.0}}
    assert _warned(density, make_likelihood("ode")) == []


@pytest.mark.parametrize(
    ("sde", "chain", "levels", "said"),
    [
        (("ddpm", {}), {}, 256, None),
        (("ddpm", {"beta_start": 2e-3}), {}, 17, None),
        (("ddpm", {"beta_start": 2e-3}), {}, 256, r"0\.0448, 11 times .* of 256.* take 4\.5 bits/dim.*sde\.beta_start"),
        (("improved_ddpm", {"num_steps": 500, "s": 0.2}), {}, 256, r"sde\.s "),
        (("improved_ddpm", {"num_steps": 4000}), {}, 256, None),
        (("ve", {}), {}, 256, None),
        (("ve", {"sigma_min": 0.05}), {}, 256, r"sde\.sigma_min"),
        (("vp", {}), {}, 256, None),
        # what wider steps of the chain do is not for the SDE to cure
        (("ddpm", {}), {"num_steps": 50}, 256, r"the SDE begins with less at t = 0\.001: set eval\.vlb_num_steps=0$"),
        (("ddpm", {}), {"num_steps": 50}, 17, None),
    ],
)
def test_first_noise_wide_beside_a_level_is_said(
    sde: tuple[str, dict[str, Any]], chain: dict[str, int], levels: int, said: str | None
):
    lines = _warned({"num_levels": levels}, make_likelihood("vlb", num_levels=levels, **chain), sde)
    assert len(lines) == (said is not None)
    assert said is None or re.search(said, lines[0]), lines


@pytest.mark.parametrize(
    ("sde", "t_end", "spread", "said"),
    [
        (("vp", {}), None, 0.1, None),
        # 64 numbers of as many pixels, each log2(1 + 0.05^2 / 0.1^2) / 2 bits
        (
            ("ve", {"sigma_min": 0.05}),
            None,
            0.1,
            r"0\.05, .* 0\.1 in .* up to 0\.16 bits/dim .* 0\.11 nats .*sigma_min$",
        ),
        (("ve", {"sigma_min": 0.05}), None, 1.0, None),
        (("vp", {}), 0.01, 0.1, r"the SDE begins with less at t = 1e-05: set eval\.ode_t_end=0$"),
    ],
)
def test_first_noise_wide_beside_latents_is_said(
    sde: tuple[str, dict[str, Any]], t_end: float | None, spread: float, said: str | None
):
    flow = make_likelihood("ode", num_levels=None, dequantization="none", solver="adams", t_end=t_end)
    estimators = {"mine": LatentBound(flow, num_levels=256)}
    whole = REPORT | {"num_images": 2000, "split_size": 2000, "image_shape": [1, 8, 8], "sde": {"name": sde[0]}}
    whole["mine"] = ODE
    spreads = torch.full((3, 4, 4, 4), spread)
    lines = warnings_of(whole, estimators, make_sde(sde[0], **sde[1]), spreads)
    assert len(lines) == (said is not None)
    assert said is None or re.search(said, lines[0]), lines
    # without it, as of codes, nothing is known
    assert warnings_of(whole, estimators, make_sde(sde[0], **sde[1])) == []


def _folder(root: Path) -> list[str]:
    generator = np.random.default_rng(0)
    for k in range(24):
        folder = root / ("circle", "square", "triangle")[k % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    return [
        "--config.data.dataset=folder",
        f"--config.data.root={root}",
        "--config.data.image_size=8",
        "--config.eval.num_images=0",
        "--config.training.num_steps=1",
    ]


def test_a_folder_with_the_digits_table_is_warned_of_when_it_can_be_cured_and_when_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = _folder(tmp_path / "images")
    assert main.run(tiny_command("train", tmp_path / "run", *images)) == 0
    line = (
        "the first sigma is 0.0448, 11 times half a grey level of 256, at which equally likely levels take 4.5 bits/dim"
    )
    assert f"warning: {line}" in capsys.readouterr().err
    chain = ["--config.eval.vlb_num_steps=0", "--config.eval.vlb_steps_per_image=2"]
    assert main.run(tiny_command("eval", tmp_path / "run", *images, *chain)) == 0
    said = capsys.readouterr().err
    report = json.loads((tmp_path / "run" / "eval" / "report.json").read_text())
    assert f"warning: vlb: {line}" in said and report["vlb"]["reconstruction"] > 4
    assert [line.removeprefix("warning: ") for line in said.splitlines() if "warning" in line] == report["warnings"]


def test_the_config_for_images_of_ones_own_trains_measures_and_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    images = [*_folder(tmp_path / "images"), "--config.model.class_conditional=true"]
    for mode in ("train", "eval", "sample"):
        assert main.run(tiny_command(mode, tmp_path / "run", *images, config="vp/folder")) == 0
    said = capsys.readouterr()
    # its table is for 256 levels; the chain of four steps that is measured here is not
    assert "warning" not in said.err.split("train: 100%")[0]
    assert "class-conditional, EMA weights, 2 test images of folder, 256 levels" in said.out
    assert np.load(tmp_path / "run" / "samples" / "samples.npz")["arr_0"].shape == (5, 8, 8, 3)
