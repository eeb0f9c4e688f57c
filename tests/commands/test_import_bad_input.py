"""Checkpoints that cannot be imported: one line, exit code 2, nothing written."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_checkpoints import GUIDED, WRITERS, Foreign
from tiny import ROOT, error, snapshot, tiny_command

import main
from runtime.locks import locked


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    return WRITERS["guided_diffusion"](tmp_path_factory.mktemp("guided"))


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    return WRITERS["ddpm"](tmp_path_factory.mktemp("ddpm"))


def refused(capsys: pytest.CaptureFixture[str], command: list[str], message: str, workdir: Path | None = None) -> None:
    said = error(capsys, command)
    assert message in said, said
    assert workdir is None or not workdir.exists()


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--source=guided_difusion"], "--source=guided_difusion contradicts config.source.name=guided_diffusion"),
        (["--source=edm"], "--source=edm contradicts config.source.name=guided_diffusion; leave one of them out"),
        (["--config.source.name=edm"], "--source=guided_diffusion contradicts config.source.name=edm"),
        (["--checkpoint=nowhere/model.pt"], "checkpoint nowhere/model.pt is no file; pass the path of the project's"),
        (["--config.source.config=nowhere.json"], "config nowhere.json cannot be read"),
        (
            ["--config.source.weights=raw"],
            "config.source.weights=raw is for latent_diffusion and score_sde alone, got guided_diffusion",
        ),
        (["--config.source.preconditioning=vp"], "config.source.preconditioning=vp is for edm alone"),
        (["--config.data.dataset=mnist"], "is of images with image_size 8, got 28 by config.data.dataset=mnist"),
        (["--config.data.dataset=cifar10"], "is of images with channels 1, got 3 by config.data.dataset=cifar10"),
        (["--config.data.dataset=folder", "--config.data.image_size=16"], "with image_size 8, got 16 by config.data"),
        (["--config.data.dataset=digit"], "unknown dataset 'digit'"),
        (["--config.training.loss=ddpm"], "model.learned_variance needs a loss that trains it"),
        (["--config.training.batch_size=0"], "config.training.batch_size must be at least 1, got 0"),
        (["--config.sampling.sampler=ancestrl"], "unknown sampler 'ancestrl'"),
        (["--config.model.channels=64"], "unknown key of config.model: 'channels'; choices: backbone"),
        (
            ["--config.model.backbone=transformer"],
            "unknown backbone 'transformer'; did you mean 'prior_transformer'? choices: adm, autoencoder, classifier",
        ),
        (["--format=diffusers"], "--format is a flag of --mode export, got --mode import; leave it out"),
    ],
)
def test_bad_flags_and_configs_are_one_line(
    guided: Foreign, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
):
    workdir = tmp_path / "run"
    refused(capsys, guided.command("import", workdir, *flags), message, workdir)


def test_flags_that_are_missing_or_of_no_use(guided: Foreign, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    workdir = tmp_path / "run"
    unnamed = ["--config.source.name="]
    for name in ("source", "checkpoint"):
        command = [word for word in guided.command("import", workdir, *unnamed) if not word.startswith(f"--{name}=")]
        refused(capsys, command, f"--mode import needs --{name}", workdir)
    for mode in ("train", "eval", "sample"):
        command = tiny_command(mode, workdir, "--source=ddpm")
        refused(capsys, command, f"--source is a flag of --mode import, got --mode {mode}; leave it out", workdir)
    refused(capsys, guided.command("import", workdir, *unnamed, "--source=sde"), "unknown source 'sde'; ", workdir)


def test_modes_before_the_import_are_one_line(guided: Foreign, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    workdir = tmp_path / "run"
    for mode in ("train", "eval", "sample", "export"):
        flags = ["--format=diffusers"] if mode == "export" else []
        refused(capsys, guided.command(mode, workdir, *flags), "holds no imported model, for which", workdir)
    # a config of a network is not one of a checkpoint
    command = tiny_command("train", workdir, "--config.model.backbone=checkpoint")
    refused(capsys, command, "holds no imported model", workdir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_channels": 64}, "does not fit the network"),
        ({"num_res_blocks": 2}, "missing"),
        ({"num_classes": 7}, "label_emb.weight is [10, 128], expected [7, 128]"),
        ({"steps": "many"}, "config's steps must be a whole number of at least 2, got 'many'"),
        ({"widht": 3}, "unknown setting of the config 'widht'"),
    ],
)
def test_settings_that_contradict_the_checkpoint_are_one_line(
    guided: Foreign, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
):
    (tmp_path / "other.json").write_text(json.dumps(GUIDED | changes))
    command = guided.command("import", tmp_path / "run", f"--config.source.config={tmp_path / 'other.json'}")
    refused(capsys, command, message, tmp_path / "run")


def test_files_of_other_projects_damage_and_code_are_one_line(
    guided: Foreign, ddpm: Foreign, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    whole = guided.checkpoint.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    trap = Trap(tmp_path / "it_ran")
    torch.save({"model": trap}, tmp_path / "code.pt")
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps(trap))
    tensors = torch.load(guided.checkpoint, weights_only=True)
    tensors["out.2.bias"] = tensors["out.2.bias"] * float("nan")
    torch.save(tensors, tmp_path / "nan.pt")
    workdir = tmp_path / "run"
    for name, message in (
        ("cut.pt", "is truncated or no file of torch.save"),
        ("empty.pt", "is no file of torch.save"),
        ("code.pt", "system, refused unread, since that could run code"),
        ("raw.pkl", "is a pickle of Python objects, refused unread"),
        ("nan.pt", "has weights that are not finite (conv_out.bias); fetch it again"),
    ):
        flag = f"--checkpoint={tmp_path / name}"
        refused(capsys, guided.command("import", workdir, flag), message, workdir)
    assert not trap.path.exists()
    # what the trap would have done, had it been read
    pickle.loads((tmp_path / "raw.pkl").read_bytes())
    assert trap.path.exists()
    refused(
        capsys,
        guided.command("import", workdir, f"--checkpoint={ddpm.checkpoint}"),
        "is of another project than guided-diffusion",
        workdir,
    )
    refused(
        capsys,
        ddpm.command("import", workdir, f"--checkpoint={guided.checkpoint}", f"--config.source.config={''}"),
        "is of another project than pytorch_diffusion",
        workdir,
    )


def test_a_directory_in_use_is_refused(
    ddpm: Foreign, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = snapshot(run_copy)
    refused(capsys, ddpm.command("import", run_copy), "holds a run already; choose another --workdir")
    assert snapshot(run_copy) == before
    workdir = tmp_path / "new"
    with locked(workdir, "train"):
        refused(capsys, ddpm.command("import", workdir), "another process is at --mode train in")
    assert snapshot(workdir) == {}
    assert main.run(ddpm.command("import", workdir)) == 0
    before = snapshot(workdir)
    refused(capsys, ddpm.command("import", workdir), "holds a run already; choose another --workdir")
    assert snapshot(workdir) == before
    (workdir / "config.json").unlink()
    refused(capsys, ddpm.command("import", workdir), "holds an import that was interrupted; delete it")


def test_a_config_that_contradicts_the_checkpoint_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run_copy: Path
):
    """A config with numbers of its own: each that differs is named, with its value and the checkpoint's."""
    assert main.run(tiny_command("export", run_copy, "--format=diffusers", f"--output={tmp_path / 'out'}")) == 0
    flags = ["--source=diffusers", f"--checkpoint={tmp_path / 'out'}"]
    workdir = tmp_path / "new"
    for key, said, found in (
        ("model.channels", "32", "16"),
        ("model.channel_mult", "(1, 2)", "(1, 1)"),
        ("model.dropout", "0.3", "0.1"),
        ("model.parameterization", "v", "'eps'"),
        ("model.time_input", "t999", "'index'"),
        ("model.class_conditional", "True", "False"),
        ("model.backbone", "adm", "'unet'"),
        ("sde.num_steps", "500", "1000"),
        ("sde.beta_end", "0.03", "0.02"),
        ("sde.name", "improved_ddpm", "'ddpm'"),
    ):
        line = error(capsys, tiny_command("import", workdir, *flags, f"--config.{key}={said}"))
        value = said if said[0] in "(0123456789TF" else repr(said)
        assert f"config.{key} is " in line and value.strip("()") in line.split("but")[0], line
        assert found.strip("()") in line.split("but")[1] and "configs/pretrained/" in line, line
    assert not workdir.exists()


def test_a_config_file_that_leaves_the_rest_to_the_checkpoint_may_say_some(
    ddpm: Foreign, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    text = (ROOT / "configs/pretrained/ddpm_cifar10.py").read_text()
    for dropout, code in (("0.1", 0), ("0.2", 2)):
        path = tmp_path / f"mine_{code}.py"
        path.write_text(text.replace("    return config", f"    config.model.dropout = {dropout}\n    return config"))
        workdir = tmp_path / str(code)
        command = ddpm.command("import", workdir)[1:]
        assert main.run([f"--config={path}", *command]) == code
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert "config.model.dropout is 0.2, but checkpoint" in line and "has 0.1; correct it, or leave it out" in line
    # and so afterwards
    command = ddpm.command("eval", tmp_path / "0")[1:]
    refused(capsys, [f"--config={tmp_path / 'mine_2.py'}", *command], "model.dropout was 0.1, is 0.2")


@pytest.mark.parametrize("name", ["num_classes", "image_size", "channels"])
def test_a_data_set_of_other_images_is_refused_when_it_is_loaded(
    guided: Foreign, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    """Of a npz only loading it says what it holds: at import, and again where it has changed since."""
    shape = {"image_size": (16, 16, 1), "channels": (8, 8, 3), "num_classes": (8, 8, 1)}[name]
    images = {"images": np.zeros((20, 8, 8, 1), np.uint8), "labels": np.arange(20) % 10}
    other = {"images": np.zeros((20, *shape), np.uint8), "labels": np.arange(20) % (7 if name == "num_classes" else 10)}
    np.savez(tmp_path / "good.npz", **images)
    np.savez(tmp_path / "other.npz", **other)
    npz = ["--config.data.dataset=npz"]
    good, bad = (f"--config.data.root={tmp_path / file}.npz" for file in ("good", "other"))
    word = {"num_classes": "classes 10, got 7", "image_size": "image_size 8, got 16", "channels": "channels 1, got 3"}
    message = f"is of images with {word[name]} by config.data.dataset=npz"
    refused(capsys, guided.command("import", tmp_path / "bad", *npz, bad), message, tmp_path / "bad")
    workdir = tmp_path / "run"
    assert main.run(guided.command("import", workdir, *npz, good)) == 0
    for mode in ("eval", "train"):
        line = error(capsys, guided.command(mode, workdir, *npz, bad))
        assert "7" in line if name == "num_classes" else "was trained on" in line or "the model has" in line


@pytest.mark.parametrize("when", ["save_checkpoint", "claim_for_training"])
def test_an_import_that_is_cut_short_leaves_nothing_to_train_anew_unknowingly(
    ddpm: Foreign, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, when: str
):
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    workdir = tmp_path / "run"
    module = "training.state" if when == "save_checkpoint" else "training.init_from"
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{when}", full)
        refused(capsys, ddpm.command("import", workdir), "no space left on device")
    for mode in ("train", "eval", "sample"):
        refused(capsys, ddpm.command(mode, workdir), "holds no imported model, for which")
