"""Refusals of ``--mode eval``: one line, before hours of work where that can be."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_runs import eval_command
from tiny import error, snapshot, tiny_command

import main

EARLY = [
    (["--config.eval.vlb_variance=learned"], "eval.vlb_variance=learned needs a network with model.learned_variance"),
    (["--config.eval.ode_solver=dopri"], "unknown ODE solver 'dopri'; did you mean 'dopri"),
    (["--config.eval.ode_solver=heun"], "eval.ode_solver=heun needs eval.ode_num_steps, at least 1, got 0; set it, or"),
    (
        ["--config.eval.ode_solver=rk4", "--config.eval.ode_num_steps=9", "--config.eval.ode_grid=od"],
        "unknown grid 'od'",
    ),
    (["--config.eval.ode_num_steps=9"], "eval.ode_num_steps=9 is of a grid, but adams chooses its steps itself"),
    (["--config.eval.ode_num_steps=-1"], "config.eval.ode_num_steps must be at least 0, got -1"),
    (
        ["--config.eval.ode_t_end=0.1", "--config.eval.ode_solver=rk4", "--config.eval.ode_num_steps=9"],
        "eval.ode_t_end=0.1 is for adaptive solvers, got eval.ode_solver=rk4",
    ),
    (
        ["--config.eval.ode_num_probes=3", "--config.eval.ode_divergence=exact"],
        "eval.ode_num_probes=3 is of random probes, but eval.ode_divergence=exact takes none",
    ),
    (["--config.eval.vlb_grid=unifrom"], "unknown grid 'unifrom'; did you mean 'uniform'?"),
    (["--config.eval.ode_divergence=exakt"], "unknown divergence 'exakt'; did you mean 'exact'?"),
    (["--config.eval.ode_importance_samples=5"], "eval.ode_importance_samples=5 needs eval.ode_divergence=exact"),
    (
        ["--config.eval.ode_dequantization=none"],
        "eval.ode_dequantization=none is of data without grey levels, got 17",
    ),
    (["--config.eval.ode_rtol=0"], "config.eval.ode_rtol must be at least 1e-16, got 0.0"),
    (["--config.eval.ode_max_nfe=-1"], "config.eval.ode_max_nfe must be at least 0, got -1"),
    (["--config.eval.likelihoods=vlb,odd"], "unknown likelihood 'odd'"),
]


@pytest.mark.parametrize(("extra", "message"), EARLY, ids=[row[0][0] for row in EARLY])
def test_bad_settings_are_found_before_the_network_is_called(
    tiny_run: Path,
    extra: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr("evaluation.measurement.EvalSplit.measure", None)
    before = snapshot(tiny_run)
    assert message in error(capsys, eval_command(tiny_run, *extra))
    assert snapshot(tiny_run) == before


def test_a_learned_variance_is_asked_for_in_vain_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said = error(capsys, tiny_command("train", tmp_path / "run", "--config.eval.vlb_variance=learned"))
    assert "needs a network with model.learned_variance" in said and not (tmp_path / "run").exists()


def test_a_solver_that_spends_max_nfe_ends_at_the_first_batch(
    run_copy: Path, measured: list[tuple[int, str]], capsys: pytest.CaptureFixture[str]
):
    said = error(capsys, eval_command(run_copy, "--config.eval.ode_max_nfe=5"))
    assert "max_nfe = 5 network calls are spent at t = " in said and "raise max_nfe" in said
    # not after the bound of the whole split
    assert measured == [(0, "vlb")]
    # and with more, what was measured is still good
    assert main.run(eval_command(run_copy, "--config.eval.ode_max_nfe=5000")) == 0
    assert measured[1:] == [(0, "ode"), (1, "vlb"), (1, "ode"), (2, "vlb"), (2, "ode")]


@pytest.fixture(scope="module")
def npz_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 8x8 pictures of 4 levels; ``data/test.npz`` may be changed."""
    folder = tmp_path_factory.mktemp("npz")
    (folder / "data").mkdir()
    for split in ("train", "test"):
        _write(folder, split)
    assert main.run(_npz_command("train", folder)) == 0
    return folder


def _write(folder: Path, split: str, *, shape: tuple[int, ...] = (8, 8, 8, 1), top: int = 4, **others: Any) -> None:
    images = np.random.default_rng(0).integers(0, top, shape, dtype=np.uint8)
    np.savez(folder / "data" / f"{split}.npz", images=images, **({"num_levels": 4} | others))


def _npz_command(mode: str, folder: Path) -> list[str]:
    # no attention: the network would take images of any size
    data = [
        "--config.model.attention_resolutions=()",
        "--config.data.dataset=npz",
        f"--config.data.root={folder / 'data'}",
    ]
    return tiny_command(mode, folder / "run", "--config.eval.num_images=0", *data)


BAD_DATA: list[tuple[str, dict[str, Any], str]] = [
    ("above its levels", {"top": 9}, "pixel values must be 0 .. 3, got 8; correct num_levels"),
    ("other channels", {"shape": (8, 8, 8, 3)}, "was trained on images of image_shape [1, 8, 8], got [3, 8, 8] in npz"),
    ("not square", {"shape": (8, 8, 6, 1)}, "was trained on images of image_shape [1, 8, 8], got [1, 8, 6] in npz"),
    ("larger", {"shape": (8, 16, 16, 1)}, "was trained on images of image_shape [1, 8, 8], got [1, 16, 16] in npz"),
    ("other levels", {"num_levels": 5}, "was trained on images of num_levels 4, got 5 in npz test"),
    ("fewer labels", {"labels": np.zeros(3, np.int64)}, "has 3 labels, expected 8"),
    ("one level", {"num_levels": 1}, "num_levels must be 2 .. 256, got 1"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), BAD_DATA, ids=[row[0] for row in BAD_DATA])
def test_bad_data_is_one_line(
    npz_run: Path, kind: str, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
):
    _write(npz_run, "test", **changes)
    assert message in error(capsys, _npz_command("eval", npz_run))
    assert not (npz_run / "run" / "eval").exists()
