"""--init-from: a run that begins with another run's averaged weights, and how it goes on."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import error, last_tensors, snapshot, tiny_command
from vector_runs import command, gaussian_vectors

import main
from experiment.trained_run import load_run

# what a new run is begun for
OTHER = ["--config.training.batch_size=4", "--config.optim.learning_rate=1e-3", "--config.training.num_steps=2",
         "--config.training.loss=dsm", "--config.sde.name=ddpm", "--config.optim.beta1=0.5"]  # fmt: skip


def begin(workdir: Path, source: Path, *extra: str) -> list[str]:
    return tiny_command("train", workdir, *OTHER, f"--init-from={source}", *extra)


def weights(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def of_step(workdir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(workdir / "checkpoints" / f"step_{step:08d}" / "tensors.safetensors")


def test_it_begins_with_the_average_of_the_other_run_and_a_fresh_optimizer(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = snapshot(run_copy)
    assert main.run(begin(tmp_path / "new", run_copy)) == 0
    said = capsys.readouterr().err
    assert f"begins at step 0 with the averaged weights (EMA) of step 6 of {run_copy}, and a fresh optimizer" in said
    assert snapshot(run_copy) == before

    first, averaged = of_step(tmp_path / "new", 0), weights(last_tensors(run_copy), "ema.")
    for prefix in ("model.", "ema."):
        assert weights(first, prefix).keys() == averaged.keys()
        assert all(torch.equal(weights(first, prefix)[name], averaged[name]) for name in averaged)
    assert not weights(first, "optim.")
    raw = weights(last_tensors(run_copy), "model.")
    assert any(not torch.equal(raw[name], averaged[name]) for name in averaged)

    last = of_step(tmp_path / "new", 2)
    assert {tensor.item() for name, tensor in weights(last, "optim.").items() if name.endswith("step")} == {2.0}
    saved = json.loads((tmp_path / "new" / "config.json").read_text())
    assert saved["source"]["name"] == "run"
    assert saved["source"]["checkpoint"] == str(run_copy / "checkpoints" / "step_00000006")
    assert saved["training"]["batch_size"] == 4


def test_the_same_command_resumes_to_the_same_bits_also_when_the_other_run_is_gone(run_copy: Path, tmp_path: Path):
    assert main.run(begin(tmp_path / "whole", run_copy, "--config.training.num_steps=4")) == 0
    assert main.run(begin(tmp_path / "parts", run_copy)) == 0
    run_copy.rename(tmp_path / "moved")
    assert main.run(begin(tmp_path / "parts", run_copy, "--config.training.num_steps=3")) == 0
    # without the flag it goes on too
    assert main.run(tiny_command("train", tmp_path / "parts", *OTHER, "--config.training.num_steps=4")) == 0
    whole, parts = (last_tensors(tmp_path / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["source"]["name"] == "run"


def test_a_checkpoint_in_a_run_may_be_named(run_copy: Path, tmp_path: Path):
    checkpoint = run_copy / "checkpoints" / "step_00000003"
    assert main.run(begin(tmp_path / "new", checkpoint)) == 0
    averaged = weights(load_file(checkpoint / "tensors.safetensors"), "ema.")
    first = weights(of_step(tmp_path / "new", 0), "model.")
    assert all(torch.equal(first[name], averaged[name]) for name in averaged)
    (tmp_path / "link").symlink_to(run_copy)
    same = tmp_path / "link" / "checkpoints" / ".." / "checkpoints" / checkpoint.name
    assert main.run(begin(tmp_path / "new", same, "--config.training.num_steps=3")) == 0


def test_the_newest_checkpoint_that_is_good_is_taken(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = run_copy / "checkpoints" / "step_00000006" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert main.run(begin(tmp_path / "new", run_copy)) == 0
    said = capsys.readouterr().err
    assert "step_00000006 is passed over" in said and "(EMA) of step 3 of" in said
    only = tmp_path / "again"
    said = error(capsys, begin(only, run_copy / "checkpoints" / "step_00000006"))
    assert "can be used: tensors.safetensors has" in said
    assert not (only / "checkpoints").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ["--config.model.channels=32"],
            "has another model: model.channels is 16 there, 32 here; set it as it is there",
        ),
        (["--config.model.dropout=0.5"], "has another model: model.dropout is 0.1 there, 0.5 here"),
    ],
)
def test_another_model_is_refused(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
):
    assert message in error(capsys, begin(tmp_path / "new", run_copy, *extra))
    assert not (tmp_path / "new").exists()


def test_images_of_another_shape_are_refused_and_other_levels_are_not(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data = ["--config.data.dataset=npz", f"--config.data.root={tmp_path}"]
    for name, shape, new in (("larger", (24, 12, 12, 1), tmp_path / "new"), ("same", (24, 8, 8, 1), tmp_path / "new")):
        for split in ("train", "test"):
            np.savez(tmp_path / f"{split}.npz", images=np.arange(np.prod(shape)).reshape(shape).astype(np.uint8))
        if name == "larger":
            said = error(capsys, begin(new, run_copy, *data))
            assert "is of images of image_shape [1, 8, 8], got [1, 12, 12] in npz; use such images" in said
            assert not (new / "checkpoints").exists()
        else:
            assert main.run(begin(new, run_copy, *data)) == 0
    state = json.loads((tmp_path / "new" / "checkpoints" / "step_00000002" / "state.json").read_text())
    assert state["data"]["num_levels"] == 256


def test_where_another_run_is_it_is_refused(run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = Path(shutil.copytree(run_copy, tmp_path / "other"))
    before = snapshot(other)
    said = error(capsys, begin(other, run_copy))
    assert f"{other} holds a run that began with weights drawn at random, not from --init-from {run_copy}" in said
    assert main.run(begin(tmp_path / "new", run_copy)) == 0
    said = error(capsys, begin(tmp_path / "new", other))
    began = run_copy / "checkpoints" / "step_00000006"
    assert f"holds a run that began from {began}, not from --init-from {other}; leave --init-from out" in said
    assert snapshot(other) == before


def test_what_is_no_run_is_one_line(run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for source in (tmp_path / "nothing", run_copy / "checkpoints", run_copy / "checkpoints" / "step_00000005"):
        said = error(capsys, begin(tmp_path / "new", source))
        assert f"--init-from {source} holds no trained run; pass the --workdir of one" in said
    said = error(capsys, tiny_command("sample", run_copy, f"--init-from={run_copy}"))
    assert "--init-from is a flag of --mode train, got --mode sample" in said
    with pytest.raises(SystemExit, match="2"):
        main.run([*tiny_command("train", tmp_path / "new"), "--init-from="])
    assert "argument --init-from: needs a path, got none" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_another_sde_is_said(run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main.run(begin(tmp_path / "new", run_copy, "--config.sde.name=vp_cosine")) == 0
    assert "was trained on another SDE: sde.name is 'ddpm' there, 'vp_cosine' here" in capsys.readouterr().err


def test_classes_keep_their_numbers_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def data(*names: str) -> list[str]:
        for split in ("train", "test"):
            images = np.arange(24 * 64).reshape(24, 8, 8, 1).astype(np.uint8)
            arrays = {"labels": np.arange(24) % len(names), "class_names": np.array(names)}
            np.savez(tmp_path / f"{split}.npz", images=images, **arrays)
        flags = ["--config.data.dataset=npz", f"--config.data.root={tmp_path}"]
        return [*flags, "--config.model.class_conditional=true"]

    assert main.run(tiny_command("train", tmp_path / "old", *OTHER, *data("ant", "bee", "cat"))) == 0
    assert main.run(begin(tmp_path / "new", tmp_path / "old", *data("bee", "cat", "dog"))) == 0
    assert f"other classes than those of {tmp_path / 'old'}: 0 was ant, is dog\n" in capsys.readouterr().err
    for step in (0, 2):
        path = tmp_path / "new" / "checkpoints" / f"step_{step:08d}" / "state.json"
        assert json.loads(path.read_text())["data"]["class_names"] == ["dog", "bee", "cat"]
    said = error(capsys, begin(tmp_path / "other", tmp_path / "old", *data("bee", "cat")))
    assert "is of images of num_classes 3, got 2 in npz; use such images" in said


def test_vectors_are_standardized_as_the_weights_know_them(tmp_path: Path):
    vectors = {"old": gaussian_vectors(2, 60), "new": 2 * gaussian_vectors(2, 60, seed=1) - 5}
    for name, found in vectors.items():
        np.savez(tmp_path / f"{name}.npz", vectors=found)
    assert main.run(command("train", tmp_path / "a", tmp_path / "old.npz")) == 0
    init = f"--init-from={tmp_path / 'a'}"
    assert main.run(command("train", tmp_path / "b", tmp_path / "new.npz", init)) == 0
    old, new = (load_run(tmp_path / name, device="cpu") for name in "ab")
    assert new.kind.space == old.kind.space and new.step == 4
    x0 = new.encode(torch.from_numpy(vectors["new"]))
    assert torch.allclose(new.decode(x0), torch.from_numpy(vectors["new"]), rtol=1e-5)
    assert x0.std() > 1.5
