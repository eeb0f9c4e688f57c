"""``--mode classify`` end to end: its report, its batches, its restart, and input that cannot work."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import Killer, run_together
from tiny import error, tiny_command

import main
from evaluation.measurement import EvalSplit

CLASSES = "--config.model.class_conditional=true"
# six digits in three batches
BRIEF = ["--config.eval.num_images=6", "--config.eval.batch_size=2", "--config.eval.vlb_steps_per_image=2"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("classes") / "run"
    assert main.run(tiny_command("train", workdir, CLASSES)) == 0
    return workdir


def _command(workdir: Path, *extra: str, mode: str = "classify") -> list[str]:
    return tiny_command(mode, workdir, CLASSES, *BRIEF, *extra)


def _report(workdir: Path, mode: str = "classify") -> dict[str, Any]:
    return json.loads((workdir / mode / "report.json").read_text())


def _results(workdir: Path) -> dict[str, bytes]:
    folder = workdir / "classify"
    assert sorted(path.name for path in folder.iterdir()) == ["per_image.npz", "report.json"]
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_report_fits_its_values_and_that_of_eval(run: Path, capsys: pytest.CaptureFixture[str]):
    # which draws the same steps as eval; by importance, half are drawn where classes differ
    drawn = "--config.eval.vlb_step_sampling=uniform"
    assert main.run(_command(run, drawn)) == 0
    table, report = capsys.readouterr().out, _report(run)
    assert "digits test, 6 images, step 6, 10 classes by vlb" in table
    arrays = np.load(run / "classify" / "per_image.npz")
    nats, labels = arrays["nats"], arrays["labels"]
    assert nats.shape == (6, 10)
    assert report["accuracy"] == (nats.argmin(1) == labels).mean() and np.sum(report["confusion"]) == 6
    log_probs = -nats - np.log(np.exp(-nats + nats.min(1, keepdims=True)).sum(1, keepdims=True)) + nats.min(1)[:, None]
    assert report["cross_entropy"] == pytest.approx(-log_probs[range(6), labels].mean() / np.log(2))
    assert report["calls"] == {"mean": 30, "saved": 0}
    assert f"{report['bits_per_dim']['label_worth']:.4f}" in table and "without a label" not in table
    assert main.run(_command(run, drawn, mode="eval")) == 0
    assert report["bits_per_dim"]["given_label"] == pytest.approx(_report(run, "eval")["vlb"]["bits_per_dim"], abs=1e-9)


def test_it_does_not_depend_on_the_batch_size_nor_on_a_stop(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    more = ["--config.eval.classify_rounds=2", "--config.eval.classify_z=1", "--config.eval.num_images=3"]
    more += ["--config.eval.batch_size=1"]
    assert main.run(_command(run, *more)) == 0
    whole, nats = _results(run), np.load(run / "classify" / "per_image.npz")["nats"]
    assert _report(run)["calls"]["saved"] > 0
    # the noise of L_0 is known of two draws, however few there are of L_t
    assert _report(run)["decoder_draws"] == 2
    assert main.run(_command(run, *more, "--config.eval.batch_size=3")) == 0
    np.testing.assert_allclose(np.load(run / "classify" / "per_image.npz")["nats"], nats, rtol=1e-4)

    measure, calls = EvalSplit.measure, []

    def stopped(self: EvalSplit, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return measure(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(EvalSplit, "measure", stopped)
        assert main.run(_command(run, *more)) == 130
    assert main.run(_command(run, *more)) == 0
    assert "goes on: 2 of 3 batches of vlb were measured before" in capsys.readouterr().err
    assert _results(run) == whole


@pytest.mark.slow
def test_two_processes_give_the_report_of_one(run: Path, killer: Killer):
    assert main.run(_command(run)) == 0
    alone = _results(run)
    assert run_together(killer, _command(run), 2) == [0, 0], killer.said()
    assert _results(run) == alone


def test_points_in_the_plane_are_classified_by_their_densities(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("commands.eval.draw_density", lambda *_, **__: None)
    brief = (
        "eval.num_images=4",
        "eval.classify_by=ode",
        "eval.likelihoods=ode",
        "eval.ode_rtol=0.1",
        "eval.ode_atol=0.1",
    )
    own = ("--config.model.network.hidden=8", *(f"--config.{setting}" for setting in brief))
    for mode in ("train", "eval", "classify"):
        assert main.run(tiny_command(mode, tmp_path / "run", CLASSES, *own, config="vp/moons")) == 0
    report, ode = _report(tmp_path / "run"), _report(tmp_path / "run", "eval")["ode"]
    assert report["bits_per_dim"]["given_label"] == pytest.approx(ode["bits_per_dim"], rel=1e-4)
    assert report["bits_per_dim"]["label_worth_at_most"] == 0.5 and np.shape(report["confusion"]) == (2, 2)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--config.model.class_conditional=false"], "needs a class-conditional model, got one without classes"),
        (["--config.data.condition=lowres"], "needs a model that is told classes alone, got data.condition=lowres"),
        (["--config.eval.classify_by=bound"], "unknown likelihood 'bound'; choices: ode, vlb, vlb_continuous"),
        (["--config.eval.classify_z=3"], "eval.classify_z=3 drops classes between rounds"),
        (
            [
                "--config.eval.classify_z=3",
                "--config.eval.classify_rounds=2",
                "--config.eval.classify_by=vlb_continuous",
            ],
            "by the spread of the draws of L_t and L_0, got eval.classify_by=vlb_continuous",
        ),
        (["--config.eval.classify_told_above_t=0.1"], "needs a network that is trained without its class too"),
        (["--config.eval.classify_rounds=0"], "config.eval.classify_rounds must be at least 1, got 0"),
        (["--config.data.dataset=nosuch"], "nosuch"),
    ],
)
def test_bad_input_is_one_line(run: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str):
    assert message in error(capsys, _command(run, *extra))
    assert not (run / "classify" / "partial").exists()
