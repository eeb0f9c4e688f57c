"""A cascade from the command line: its stages are ordinary runs, its samples and bits are theirs together."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from killing import Killer, run_together
from tiny import ROOT, error, snapshot, tiny_command

import main
from configs.default import get_default_config
from experiment import load_run
from experiment.config import load_config, load_stages
from samplers import make_sampler
from tasks import Cascade, Stage

STAGES = ("digits_2", "digits_4_sr")
# so large steps that a network listens to its condition
TWO = (
    "--config.cascade.stages=vp/digits_2,vp/digits_4_sr", "--config.cascade.noise_t=0.1",
    "--config.optim.learning_rate=0.02",
)  # fmt: skip


def command(mode: str, workdir: Path, *extra: str) -> list[str]:
    return tiny_command(mode, workdir, *TWO, *extra, config="cascade/digits_2_4_8")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("cascade") / "run"
    assert main.run(command("train", workdir)) == 0
    return workdir


def drawn(workdir: Path, folder: Path, *extra: str) -> dict[str, np.ndarray]:
    assert main.run(command("sample", workdir, f"--output={folder}", *extra)) == 0
    found = {"last": np.load(folder / "samples.npz")["arr_0"]}
    return found | {"first": np.load(folder / "stages" / "digits_2.npz")["arr_0"]}


def test_stages_are_ordinary_runs_with_the_settings_of_the_command_line(
    trained: Path, capsys: pytest.CaptureFixture[str]
):
    for stage, config in zip(STAGES, ("vp/digits_2", "vp/digits_4_sr"), strict=True):
        assert len(list((trained / stage / "checkpoints").glob("step_*"))) == 2
        assert main.run(tiny_command("train", trained / stage, config=config)) == 0
        assert "already trained to step 6" in capsys.readouterr().err
    # an interrupted cascade goes on where it was: what is trained is not trained again
    before = snapshot(trained / "digits_2")
    assert main.run(command("train", trained)) == 0
    assert capsys.readouterr().err.count("already trained to step 6") == 2
    assert snapshot(trained / "digits_2") == before


def test_samples_are_those_of_the_cascade_in_a_notebook_at_any_batch_size(trained: Path, tmp_path: Path):
    found = drawn(trained, tmp_path / "command")
    stages = [
        Stage.of(load_run(trained / name, device="cpu"), make_sampler("ancestral", num_steps=5)) for name in STAGES
    ]
    samples = Cascade(stages, noise_t=[0.1]).sample(range(5))
    for stage, x0, images in zip(stages, samples.x0, (found["first"], found["last"]), strict=True):
        np.testing.assert_array_equal(stage.kind.space.pixels(x0), images)
    about = json.loads((tmp_path / "command" / "samples.json").read_text())
    assert about["nfe"] == samples.nfe == 10
    assert about["cascade"] == {"stages": list(STAGES), "noise_t": [0.1], "truncated": False}
    assert (tmp_path / "command" / "stages" / "digits_2.png").exists()
    whole = drawn(trained, tmp_path / "whole", "--config.sampling.batch_size=5")
    for name, images in found.items():
        np.testing.assert_array_equal(whole[name], images)
    other = drawn(trained, tmp_path / "other", "--config.cascade.noise_t=0.05")
    np.testing.assert_array_equal(other["first"], found["first"])
    assert (other["last"] != found["last"]).any()
    short = drawn(trained, tmp_path / "short", "--config.cascade.truncated=true")
    assert (short["last"] != found["last"]).any()


def test_an_interrupted_command_goes_on_to_the_same_samples(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder, calls, sample = tmp_path / "parts", [], Cascade.sample

    def stopped(self: Cascade, index: range, **options: object) -> object:
        calls.append(index)
        if index.start and len(calls) == 2:
            raise KeyboardInterrupt
        return sample(self, index, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Cascade, "sample", stopped)
    assert main.run(command("sample", trained, f"--output={folder}")) == 130
    assert "stopped with 1 of 2 batches" in capsys.readouterr().err
    found = drawn(trained, folder)
    assert calls == [range(3), range(3, 5), range(3, 5)]
    monkeypatch.undo()
    for name, images in drawn(trained, tmp_path / "whole").items():
        np.testing.assert_array_equal(found[name], images)
    # they are there already, and others take their place without loss
    before = snapshot(folder)
    assert main.run(command("sample", trained, f"--output={folder}")) == 0
    assert "are in" in capsys.readouterr().err and snapshot(folder) == before
    drawn(trained, folder, "--config.seed=1")
    (aside,) = folder.glob("ancestral*")
    assert (aside / "stages" / "digits_2.npz").exists()


@pytest.mark.slow
def test_several_processes_draw_the_same_samples(trained: Path, tmp_path: Path, killer: Killer):
    folder = tmp_path / "together"
    assert run_together(killer, command("sample", trained, f"--output={folder}"), 2, limit=90) == [0, 0]
    for name, images in drawn(trained, tmp_path / "alone").items():
        path = folder / ("samples.npz" if name == "last" else "stages/digits_2.npz")
        np.testing.assert_array_equal(np.load(path)["arr_0"], images)


def test_the_bits_of_an_image_are_those_of_its_small_image_and_the_rest(
    trained: Path, capsys: pytest.CaptureFixture[str]
):
    assert main.run(command("eval", trained)) == 0
    bits = {name: np.load(trained / name / "eval" / "per_image.npz")["vlb"] for name in STAGES}
    # 4 numbers of the small image and 16 of the large one, in bits of the image over 16
    expected = (4 * bits["digits_2"] + 16 * bits["digits_4_sr"]) / 16
    np.testing.assert_allclose(np.load(trained / "eval" / "per_image.npz")["vlb"], expected, rtol=1e-12)
    report = json.loads((trained / "eval" / "report.json").read_text())
    assert report["vlb"]["bits_per_dim"] == pytest.approx(expected.mean())
    assert report["vlb"]["stderr"] == pytest.approx(expected.std(ddof=1) / np.sqrt(10))
    assert report["vlb"]["of_stages"]["digits_2"] == pytest.approx(bits["digits_2"].mean() / 4)
    assert f"vlb ≤ {expected.mean():.4f} ± " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("mode", "extra", "message"),
    [
        ("sample", ["--config.cascade.noise_t=0.6"], "noise_t of stage digits_4_sr must be from 0 to 0.1"),
        ("train", ["--config.cascade.noise_t=0.1,0.1"], "a cascade of 2 stages needs 1 noise levels, got 2"),
        ("train", ["--config.cascade.stages=vp/digits_2"], "a cascade has 2 stages or more, got 1"),
        ("train", ["--config.cascade.stages=vp/digits_2,vp/digits_3"], "vp/digits_3.py does not exist; there are"),
        ("train", ["--config.cascade.stages=vp/digits_2,ve/digits_2"], "must have different names, got digits_2, "),
        (
            "train", ["--config.cascade.stages=vp/digits_2,vp/digits_sr"],
            "stage digits_sr is told images of 1x4x4 with 65 levels, but stage digits_2 draws 1x2x2 with 256 levels",
        ),
        ("sample", ["--config.sampling.record_trajectory=true"], "record_trajectory is of one model, got a cascade"),
        ("sample", ["--config.sampling.condition_split=train"], "condition_split is of one model, got a cascade"),
        ("sample", ["--config.sampling.condition_noise_t=0.05"], "is of one model, got a cascade; set cascade.noise_t"),
        ("sample", ["--input=some.npz"], "--input is of one model, got a cascade"),
        ("train", ["--init-from=elsewhere"], "--init-from is of one model, got a cascade"),
        ("export", ["--format=diffusers"], "--mode export is of one model, got a cascade; run it for a stage"),
        ("sample", ["--config.cascade.noise_t=much"], "config.cascade.noise_t must be of type tuple, got 'much'"),
        ("sample", ["--config.cascade.stage=a"], "unknown key of config.cascade: 'stage'; did you mean 'stages'?"),
    ],
)  # fmt: skip
def test_what_is_no_cascade_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, extra: list[str], message: str
):
    workdir = tmp_path / "new" if mode == "train" else trained
    assert message in error(capsys, command(mode, workdir, *extra))
    assert not (tmp_path / "new").exists()


def test_bits_of_images_that_are_rounded_otherwise_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    first = tmp_path / "configs" / "vp" / "digits_2.py"
    first.write_text(first.read_text().replace("(2, 2)", "(4,)"))
    config = f"--config={tmp_path}/configs/cascade/digits_2_4_8.py"
    message = error(capsys, [*command("eval", tmp_path / "new"), config])
    assert "digits_4_sr is told images made smaller by (2, 2), but stage digits_2 is of those by (4,); make" in message


def test_a_stage_that_is_not_trained_is_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(trained / "digits_2", tmp_path / "run" / "digits_2")
    assert f"{tmp_path}/run/digits_4_sr holds no trained run" in error(capsys, command("sample", tmp_path / "run"))
    assert f"{tmp_path}/run/digits_4_sr holds no trained run" in error(capsys, command("eval", tmp_path / "run"))


def test_a_stage_that_cannot_be_guided_is_named(trained: Path, capsys: pytest.CaptureFixture[str]):
    message = error(capsys, command("sample", trained, "--config.sampling.guidance_weight=2"))
    assert "stage digits_2: guidance needs a network that is trained without its condition now and then" in message


def test_a_cascade_file_sets_its_stages_alone(tmp_path: Path):
    path = tmp_path / "configs" / "cascade" / "mine.py"
    path.parent.mkdir(parents=True)
    path.write_text((ROOT / "configs/cascade/digits_2_4_8.py").read_text() + "\n")
    (tmp_path / "configs" / "vp").symlink_to(ROOT / "configs" / "vp")
    defaults = get_default_config()
    config = load_config(str(path), defaults=defaults)
    overrides = ["--config.seed=5", "--config.cascade.noise_t=0.2,0.2"]
    stages = load_stages(config, str(path), overrides, defaults=defaults)
    assert list(stages) == [*STAGES, "digits_sr"] and {one.seed for one in stages.values()} == {5}
    path.write_text(path.read_text().replace("return config", "config.seed = 3\n    return config"))
    with pytest.raises(ValueError, match="sets seed, but a cascade's settings are its stages'"):
        load_stages(config, str(path), defaults=defaults)
