"""ControlNets from the command line: what they keep, what they give back at scale 0, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from control_runs import HINT, control_command
from killing import Killer, run_together
from PIL import Image
from tiny import CLASSES, ROOT, error, last_tensors, tiny_command

import main
from experiment import load_run
from models.backbones import ControlledBackbone, ControlNet

NO_DROPOUT = "--config.model.dropout=0"
NO_HINT = ["--config.data.condition=", "--config.data.condition_options="]


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run beside ``tiny_run``; copy it before changing it."""
    workdir = tmp_path_factory.mktemp("control") / "run"
    assert main.run(control_command("train", workdir, tiny_run)) == 0
    return workdir


def samples(folder: Path) -> np.ndarray:
    with np.load(folder / "samples.npz") as arrays:
        return arrays["arr_0"]


def bits(workdir: Path) -> list[dict[str, object]]:
    """The figures of a report, without the sentences that quote them."""
    report = json.loads((workdir / "eval" / "report.json").read_text())
    return [{key: value for key, value in report[name].items() if key != "quote"} for name in ("vlb", "ode")]


def test_its_checkpoints_hold_the_control_and_the_fingerprint_of_the_frozen_model(run: Path, tiny_run: Path):
    tensors = last_tensors(run)
    names = {name.removeprefix("ema.") for name in tensors if name.startswith("ema.")}
    assert names and all(name.startswith("controls.0.") for name in names)
    assert not torch.equal(tensors["model.controls.0.zero.0.weight"], torch.zeros(()).expand_as(
        tensors["model.controls.0.zero.0.weight"]
    ))  # fmt: skip
    trained = load_run(run).model.backbone
    assert isinstance(trained, ControlledBackbone)
    frozen, base = trained.base.state_dict(), load_run(tiny_run).model.backbone.state_dict()
    assert all(torch.equal(frozen[name], base[name]) for name in base)


def test_the_optimizer_holds_what_is_trained_alone(run: Path):
    moments = [name for name in last_tensors(run) if name.startswith("optim.") and name.endswith(".exp_avg")]
    trained = load_run(run).model.backbone
    assert len(moments) == len(list(trained.parameters()))


def test_at_scale_0_samples_bound_and_flow_are_those_of_the_frozen_model_to_the_bit(
    run: Path, tiny_run: Path, tmp_path: Path
):
    shutil.copytree(tiny_run, tmp_path / "base")
    shutil.copytree(run, tmp_path / "control")
    off, drawn = "--config.control.scale=0", tmp_path / "drawn"
    how = ["--config.eval.likelihoods=vlb,ode", "--config.eval.ode_solver=euler", "--config.eval.ode_num_steps=2"]
    for name, command in (
        ("base", lambda mode, *extra: tiny_command(mode, tmp_path / "base", *extra)),
        ("control", lambda mode, *extra: control_command(mode, tmp_path / "control", tiny_run, off, *extra)),
    ):
        assert main.run(command("sample", f"--output={drawn / name}")) == 0
        assert main.run(command("eval", *how)) == 0
    assert np.array_equal(samples(drawn / "base"), samples(drawn / "control"))
    assert bits(tmp_path / "base") == bits(tmp_path / "control")
    assert main.run(control_command("sample", tmp_path / "control", tiny_run, f"--output={drawn / 'on'}")) == 0
    assert not np.array_equal(samples(drawn / "base"), samples(drawn / "on"))


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(run: Path, tiny_run: Path, tmp_path: Path):
    assert main.run(control_command("train", tmp_path, tiny_run, "--config.training.num_steps=3")) == 0
    assert main.run(control_command("train", tmp_path, tiny_run)) == 0
    one, other = last_tensors(run), last_tensors(tmp_path)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_killed_run_goes_on_to_the_same_bits(killer: Killer, run: Path, tiny_run: Path, tmp_path: Path):
    assert killer.run(control_command("train", tmp_path, tiny_run), die_at=4) != 0
    assert killer.run(control_command("train", tmp_path, tiny_run)) == 0
    one, other = last_tensors(run), last_tensors(tmp_path)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes_have_the_losses_of_one(killer: Killer, tmp_path: Path):
    base = tmp_path / "base"
    assert main.run(tiny_command("train", base, NO_DROPOUT)) == 0
    one, two = tmp_path / "one", tmp_path / "two"
    assert killer.run(control_command("train", one, base, NO_DROPOUT)) == 0
    assert run_together(killer, control_command("train", two, base, NO_DROPOUT), 2) == [0, 0]
    ours, theirs = last_tensors(one), last_tensors(two)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)
    drawn = tmp_path / "drawn"
    assert killer.run(control_command("sample", one, base, NO_DROPOUT, f"--output={drawn / '1'}")) == 0
    together = control_command("sample", one, base, NO_DROPOUT, f"--output={drawn / '2'}")
    assert run_together(killer, together, 2) == [0, 0]
    assert np.array_equal(samples(drawn / "1"), samples(drawn / "2"))


def test_a_config_leaves_the_network_to_the_frozen_model(tiny_run: Path, tmp_path: Path):
    short = ["--config.device=cpu", "--config.training.num_steps=2", "--config.training.batch_size=8"]
    command = [f"--config={ROOT / 'configs/control/digits_edges.py'}", f"--workdir={tmp_path}", *short]
    assert main.run([*command, "--mode=train", f"--config.control.base={tiny_run}"]) == 0
    saved = json.loads((tmp_path / "config.json").read_text())
    theirs = json.loads((tiny_run / "config.json").read_text())
    assert saved["model"] == theirs["model"] and saved["sde"] == theirs["sde"]
    # another place of the same model is no other run
    shutil.copytree(tiny_run, tmp_path / "moved")
    assert main.run([*command, "--mode=train", f"--config.control.base={tmp_path / 'moved'}"]) == 0


def test_hints_are_drawn_of_files(tiny_run: Path, tmp_path: Path):
    # slowly trained, six steps say too little to be seen in grey levels
    run, fast = tmp_path / "run", "--config.optim.learning_rate=0.05"
    assert main.run(control_command("train", run, tiny_run, fast)) == 0
    edges = np.zeros((8, 8), np.uint8)
    edges[2:6, 3] = 255
    Image.fromarray(edges).save(tmp_path / "hint.png")
    folder = tmp_path / "hints"
    folder.mkdir()
    for k in range(2):
        Image.fromarray(edges).save(folder / f"{k}.png")

    def draw(name: str, hint: Path) -> np.ndarray:
        output = tmp_path / "drawn" / name
        assert main.run(control_command("sample", run, tiny_run, fast, f"--hint={hint}", f"--output={output}")) == 0
        return samples(output)

    Image.fromarray(np.zeros_like(edges)).save(tmp_path / "none.png")
    of_file, of_folder, of_none = (draw(name, tmp_path / name) for name in ("hint.png", "hints", "none.png"))
    assert np.array_equal(of_file, of_folder) and not np.array_equal(of_file, of_none)
    about = json.loads((tmp_path / "drawn" / "hint.png" / "samples.json").read_text())
    assert about["input"] == str(tmp_path / "hint.png")


def test_other_controls_are_added_with_scales_of_their_own(run: Path, tiny_run: Path, tmp_path: Path):
    gray = tmp_path / "gray"
    told = ["--config.data.condition=lowres", "--config.data.condition_options=factor=4"]
    assert main.run(control_command("train", gray, tiny_run, *told)) == 0

    def draw(name: str, *extra: str) -> np.ndarray:
        assert main.run(control_command("sample", run, tiny_run, f"--output={tmp_path / name}", *extra)) == 0
        return samples(tmp_path / name)

    alone, none = draw("alone"), draw("none", f"--config.control.also={gray}:0")
    both = draw("both", f"--config.control.also={gray}")
    assert np.array_equal(alone, none) and not np.array_equal(alone, both)
    edges = tmp_path / "hint.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(edges)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "low.png")
    hints = [f"--hint={edges}", f"--hint={tmp_path / 'low.png'}"]
    draw("given", f"--config.control.also={gray}", *hints)
    told = json.loads((tmp_path / "given" / "samples.json").read_text())["input"]
    assert told == f"{edges},{tmp_path / 'low.png'}"


def test_other_controls_have_no_part_in_training(run: Path, tiny_run: Path, tmp_path: Path):
    assert main.run(control_command("train", tmp_path, tiny_run, f"--config.control.also={run}")) == 0
    one, other = last_tensors(run), last_tensors(tmp_path)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_cannot_be_is_refused_in_one_line(
    run: Path, tiny_run: Path, class_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def refused(mode: str, *extra: str, base: Path = tiny_run, workdir: Path = run) -> str:
        return error(capsys, control_command(mode, workdir, base, *extra))

    new = tmp_path / "new"
    assert "holds no trained run, which a ControlNet needs" in refused("train", base=tmp_path / "no", workdir=new)
    assert "is a ControlNet itself" in refused("train", base=run, workdir=new)
    other = tmp_path / "other"
    assert main.run(tiny_command("train", other, "--config.seed=1")) == 0
    for mode in ("train", "sample"):
        more = "--config.training.num_steps=9"
        assert "another fingerprint; name the one" in refused(mode, more, base=other)
    assert "config.model.class_conditional is False, but control.base has True" in refused(
        "train", base=class_run, workdir=new
    )
    assert "a ControlNet needs a hint, an image" in refused("train", *NO_HINT, workdir=new)
    assert "got model.condition_noise_t" in refused("train", "--config.model.condition_noise_t=0.5", workdir=new)
    assert "set control.guided=conditional" in refused("sample", "--config.sampling.guidance_weight=2")
    assert "control.guided must be both or conditional" in refused("sample", "--config.control.guided=left")
    assert "control.decay must lie in (0, 1]" in refused("sample", "--config.control.decay=2")
    assert "holds no ControlNet" in refused("sample", f"--config.control.also={tiny_run}")
    assert "ends in no number after the colon" in refused("sample", "--config.control.also=a:b")
    for scale in ("nan", "-1"):
        assert "a scale in control.also must be at least 0" in refused("sample", f"--config.control.also=a:{scale}")
    # hints of another size, of many greys, and too few of them
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(tmp_path / "large.png")
    assert "must be 1x8x8 (C x H x W), got 1x9x8; resize them" in refused("sample", f"--hint={tmp_path / 'large.png'}")
    Image.fromarray(np.full((8, 8), 128, np.uint8)).save(tmp_path / "grey.png")
    assert "must be black and white, got 100% of pixels between" in refused("sample", f"--hint={tmp_path / 'grey.png'}")
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "ones.png")
    assert "got 0 and 1, which is all black; multiply them by 255" in refused(
        "sample", f"--hint={tmp_path / 'ones.png'}"
    )
    hints = [f"--hint={tmp_path / 'large.png'}"] * 2
    assert "got 2, but the model is told 1" in refused("sample", *hints)
    assert "give its hint by --hint" in refused("sample", f"--input={tmp_path / 'large.png'}")
    alone = tiny_command("sample", tiny_run, f"--hint={tmp_path / 'large.png'}")
    assert "--hint is of ControlNets" in error(capsys, alone)
    off = tiny_command("sample", tiny_run, "--config.control.scale=0.5")
    assert "control.scale is of a ControlNet" in error(capsys, off)
    bare = [f"--config={ROOT / 'configs/control/digits_edges.py'}", "--mode=train", f"--workdir={new}"]
    assert "set control.base" in error(capsys, [*bare, "--config.control.base="])
    assert not new.exists()


def test_the_weights_of_a_model_are_not_those_of_a_control(
    run: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    begins = control_command("train", tmp_path / "new", tiny_run, f"--init-from={tiny_run}")
    assert "holds a model of its own, got a ControlNet; leave --init-from out" in error(capsys, begins)
    begins = tiny_command("train", tmp_path / "new", *HINT, f"--init-from={run}")
    assert "holds a ControlNet, got a model of its own; leave --init-from out" in error(capsys, begins)
    assert not (tmp_path / "new").exists()


def test_condition_dropout_leaves_out_what_the_frozen_model_is_told_and_not_the_hint(
    class_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    labels, forward = [], ControlNet.forward

    def seen(self: ControlNet, x: torch.Tensor, c_noise: torch.Tensor, cond: torch.Tensor, **told: torch.Tensor):
        assert not told["hint"].isnan().any()
        labels.append(cond)
        return forward(self, x, c_noise, cond, **told)

    monkeypatch.setattr(ControlNet, "forward", seen)
    assert main.run(control_command("train", tmp_path, class_run, *CLASSES)) == 0
    share = float((torch.cat(labels) == -1).double().mean())
    assert 0.2 < share < 0.8, share


def test_other_networks_and_those_that_hear_an_image_already_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    ncsnpp, told = tmp_path / "ncsnpp", tmp_path / "told"
    kind = ["--config.model.backbone=ncsnpp", "--config.model.symmetric_downsample=false"]
    assert main.run(tiny_command("train", ncsnpp, *kind)) == 0
    assert "a ControlNet is made of a unet or adm, got a ncsnpp in" in error(
        capsys, control_command("train", tmp_path / "new", ncsnpp, *kind)
    )
    assert main.run(tiny_command("train", told, *HINT)) == 0
    assert "is told an image itself, the place of the hint" in error(
        capsys, control_command("train", tmp_path / "new", told)
    )
