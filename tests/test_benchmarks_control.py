"""The benchmark of ControlNets on runs of seconds, and its frozen row, which knows no hint."""

import json
from pathlib import Path

import pytest
from control_runs import HINT, control_command
from tiny import tiny_command

import main
from benchmarks import control


def test_a_small_run_of_it(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, beside = tmp_path / "run", tmp_path / "beside"
    assert main.run(control_command("train", run, tiny_run)) == 0
    assert main.run(tiny_command("train", beside, *HINT)) == 0
    output = tmp_path / "control.json"
    control.main(
        [f"--workdir={run}", f"--beside={beside}", "--num-samples=4", "--num-steps=2", "--num-images=4",
         "--steps-per-image=2", "--batch-size=3", f"--pictures={tmp_path / 'pictures'}", f"--output={output}"]
    )  # fmt: skip
    report = json.loads(output.read_text())
    frozen, controlled, told = (report["models"][name] for name in ("frozen model", "control", "hint as an image"))
    assert frozen["saved_bits_per_dim"] == {"value": 0.0, "stderr": 0.0}
    assert controlled["saved_bits_per_dim"]["value"] != 0 and told["saved_bits_per_dim"]["value"] != 0
    assert 0 < report["cost"]["control"]["share"] < 1 and report["cost"]["hint as an image"]["share"] == 1
    assert [one["step"] for one in report["curve"]] == [3, 6]
    assert report["curve"][-1]["f1"] == controlled["f1"]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir())[:2] == ["control.png", "f1.png"]
    assert "| hint as an image |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds no ControlNet of edges"):
        control.main([f"--workdir={tiny_run}"])
