"""Steps drawn by importance: from images that are not measured, the same ones on every process."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_runs import eval_command

import main
from data import LevelSpace, load_dataset
from evaluation.step_weights import NUM_PILOT_IMAGES, fit_step_weights
from experiment.config import load_config
from likelihood import ContinuousBound, VariationalBound
from models import DiscreteScoreModel
from runtime.processes.ranks import Ranks
from sde_lib import VP, NoiseStreams, derive_seed

ROOT = Path(__file__).resolve().parents[2]


def _model() -> DiscreteScoreModel:
    points = torch.linspace(-1, 1, 17, dtype=torch.float64)[:, None].expand(17, 64).reshape(17, 1, 8, 8)
    return DiscreteScoreModel(VP(), points=points, probs=[1 / 17] * 17)


def test_weights_are_fitted_on_the_other_split():
    model = _model()
    for split, other in (("test", "train"), ("train", "test")):
        config = load_config(str(ROOT / "configs/vp/digits.py"), [f"--config.eval.split={split}"])
        drawn = VariationalBound(num_levels=17, num_steps=50, steps_per_image=4, step_sampling="importance")
        limit = ContinuousBound(num_levels=17, steps_per_image=4, step_sampling="importance")
        full = VariationalBound(num_levels=17, num_steps=5, step_sampling="importance")
        seen = {"a": (drawn, model), "b": (limit, model), "c": (full, model)}
        measured = load_dataset("digits", root="unused", split=split)
        weights = fit_step_weights(config, seen, measured, torch.device("cpu"), Ranks.from_environment())
        assert weights.keys() == {"a", "b"} and full.step_weights is None
        pilot = load_dataset("digits", root="unused", split=other)
        x0 = LevelSpace(17).encode(pilot.images[:NUM_PILOT_IMAGES])
        noise = NoiseStreams(derive_seed(0, 0x70696C6F74), range(NUM_PILOT_IMAGES))
        again = VariationalBound(num_levels=17, num_steps=50, steps_per_image=4, step_sampling="importance")
        torch.testing.assert_close(drawn.step_weights, again.fit_steps(model, x0, noise=noise), rtol=0, atol=0)
        assert weights["a"] == again.step_weights.tolist() and len(weights["b"]) == 24


@pytest.mark.slow
def test_the_report_says_what_the_draws_add_to_the_standard_error(tiny_run: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("checkpoints", "config.json"):
        (workdir / name).symlink_to(tiny_run / name)
    few = (
        "--config.eval.likelihoods=vlb,vlb_continuous",
        "--config.eval.vlb_num_steps=40",
        "--config.eval.num_images=4",
    )
    errors = {}
    for draws in (2, 8, 0):
        assert main.run(eval_command(workdir, *few, f"--config.eval.vlb_steps_per_image={draws}")) == 0
        report = json.loads((workdir / "eval" / "report.json").read_text())
        errors[draws] = report["vlb"].get("sampling_stderr")
        assert report["vlb"]["step_sampling"] == "importance"
        assert 0 < report["vlb_continuous"]["sampling_stderr"] < 10
    assert errors[0] is None and 0 < errors[8] < 0.8 * errors[2]
    values = np.load(workdir / "eval" / "per_image.npz")
    assert values["vlb"].shape == (4,)
