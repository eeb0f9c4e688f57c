"""load_run: a run in a notebook, as the commands have it."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_checkpoints import WRITERS
from safetensors.torch import load_file
from tiny import tiny_command

import main
from configs.default import get_default_config
from data import ImageKind, LevelSpace, load_dataset
from experiment import build
from experiment.build import bound_x0, build_sampler
from experiment.config import load_config
from experiment.saved_config import DEFAULTS
from experiment.trained_run import load_run
from models import ScoreModel
from sde_lib import NoiseStreams

DIGITS = ImageKind((1, 8, 8), 17, 10, tuple("0123456789"))


@pytest.fixture(autouse=True)
def _no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the data was touched")

    monkeypatch.setattr(build, "load_dataset", refuse)


load_cpu = partial(load_run, device="cpu")


def test_it_is_the_model_that_the_commands_sample_and_measure(run_copy: Path, monkeypatch: pytest.MonkeyPatch):
    run = load_cpu(str(run_copy))
    assert isinstance(run.model, ScoreModel) and not run.model.training and run.sde is run.model.sde
    assert not any(parameter.requires_grad for parameter in run.model.parameters())
    assert (run.step, run.kind, run.sample_shape) == (6, DIGITS, (1, 8, 8))

    assert main.run(tiny_command("sample", run_copy)) == 0
    noise, sampler = NoiseStreams(0, range(5)), build_sampler(run.config)
    x_T = sampler.prior_sample(run.sde, run.sample_shape, noise)
    x0 = sampler.sample(bound_x0(run.config, run.model, run.kind), x_T, noise=noise).x0
    images = np.load(run_copy / "samples" / "samples.npz")["arr_0"]
    difference = np.abs(LevelSpace(17).pixels(x0).astype(int) - images.astype(int))
    # another size of batch may round otherwise, which moves a pixel by a level at most
    assert difference.max() <= 16 and (difference == 0).mean() > 0.98
    assert torch.equal(run.sample(5), run.decode(x0))
    with pytest.raises(ValueError, match="label=2 needs a class-conditional model, got one without; leave it out"):
        run.sample(5, label=2)
    assert torch.equal(run.decode(run.encode(torch.arange(17, dtype=torch.uint8))), torch.arange(17, dtype=torch.uint8))
    # 17 levels, spread over 0 to 255 in the file
    assert torch.equal(
        run.decode(x0).float().mul(255 / 16).round().byte().permute(0, 2, 3, 1), torch.tensor(LevelSpace(17).pixels(x0))
    )

    monkeypatch.undo()
    assert main.run(tiny_command("eval", run_copy)) == 0
    report = json.loads((run_copy / "eval" / "report.json").read_text())
    assert run.report == {} and load_cpu(run_copy).report == report and "vlb" in report
    images = load_dataset("digits", root=".", split="test").images[:10]
    measured = np.load(run_copy / "eval" / "per_image.npz")["vlb"]
    np.testing.assert_allclose(run.bits_per_dim(images, progress=False).numpy(), measured, rtol=1e-6)
    # of steps that are drawn by importance no pilot run is made: they are drawn in strata
    run.config.eval.vlb_steps_per_image = 2
    assert run.bits_per_dim(images, progress=False).mean() == pytest.approx(float(measured.mean()), rel=0.5)
    with pytest.raises(ValueError, match="data, labels and values must be as many, and one at least, got 0 data"):
        run.bits_per_dim(images[:0])
    with pytest.raises(ValueError, match="the model needs no labels; the model is told no class"):
        run.bits_per_dim(images, labels=torch.zeros(10, dtype=torch.int64))
    with pytest.raises(ValueError, match="unknown likelihood 'elbo'"):
        run.bits_per_dim(images, likelihood="elbo")


def test_the_config_is_that_of_the_command(run_copy: Path):
    command = tiny_command("eval", run_copy)
    flags = [word for word in command if word.startswith("--config.")]
    config, saved = load_config(command[0].removeprefix("--config="), flags), load_cpu(run_copy).config
    assert saved.model.to_dict() == config.model.to_dict()
    assert saved.sampling.to_dict() == config.sampling.to_dict() and saved.eval.likelihoods == ("vlb",)


def test_weights_and_steps_are_those_that_are_asked_for(run_copy: Path):
    for weights, prefix in (("ema", "ema."), ("raw", "model.")):
        for step in (3, 6):
            run = load_cpu(run_copy, weights=weights, step=step)
            tensors = load_file(run_copy / "checkpoints" / f"step_{step:08d}" / "tensors.safetensors")
            expected = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            found = run.model.backbone.state_dict()
            assert run.step == step and found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_damaged_checkpoint_is_passed_over(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    (run_copy / "checkpoints" / "step_00000006" / "tensors.safetensors").write_bytes(b"")
    assert load_cpu(run_copy).step == 3
    assert "step_00000006 is passed over" in capsys.readouterr().err


def test_a_config_of_an_earlier_version_is_read_as_it_was_meant(run_copy: Path):
    """Keys that were not there yet have the old behaviour."""
    expected = load_cpu(run_copy).model.backbone
    saved = json.loads((run_copy / "config.json").read_text())
    later = "backbone network time_input data_std dequantizer learned_variance class_conditional input_frequencies"
    for key in [*later.split(), "norm_eps", "embedding", "symmetric_downsample", "head_channels"]:
        del saved["model"][key]
    saved["sde"] = {"name": "ddpm"}
    del saved["source"], saved["plugins"]
    (run_copy / "config.json").write_text(json.dumps(saved))
    again = load_cpu(run_copy)
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 0.5, 1.0])
    assert torch.equal(again.model.backbone(x, t), expected(x, t))


def test_settings_that_an_earlier_version_did_not_write_have_their_defaults(run_copy: Path):
    expected = load_cpu(run_copy)
    saved, default = json.loads((run_copy / "config.json").read_text()), get_default_config().to_dict()
    for section in ("sampling", "eval"):
        assert {key: default[section][key] for key in DEFAULTS[section]} == DEFAULTS[section]
        written = json.loads(json.dumps(default[section]))
        saved[section] = {key: value for key, value in saved[section].items() if value != written[key]}
    (run_copy / "config.json").write_text(json.dumps(saved))
    again, images = load_cpu(run_copy), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert torch.equal(again.sample(2), expected.sample(2))
    ours, theirs = (run.bits_per_dim(images, progress=False) for run in (again, expected))
    assert torch.equal(ours, theirs)


def test_an_imported_run_is_loaded_too(tmp_path: Path):
    foreign = WRITERS["edm"](tmp_path)
    workdir = tmp_path / "run"
    assert main.run(foreign.command("import", workdir)) == 0
    run = load_cpu(workdir)
    assert run.step == 0 and run.kind == DIGITS and run.config.source.checkpoint == str(foreign.checkpoint)
    assert (
        run.model(torch.zeros(2, *run.sample_shape), torch.full((2,), 0.5), cond=torch.tensor([0, 9]))
        .x0.isfinite()
        .all()
    )


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"step": 4}, "has no checkpoint of step 4; choose one of: 6, 3"),
        ({"weights": "emma"}, "unknown weights 'emma'; did you mean 'ema'?"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"workdir": "nowhere"}, "nowhere holds no trained run; name the work directory of one"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(run_copy: Path, how: dict, message: str):
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as raised:
        load_cpu(**{"workdir": run_copy, **how}) if "device" not in how else load_run(run_copy, **how)
    assert message in str(raised.value)


def test_a_run_without_checkpoints_says_so(run_copy: Path):
    shutil.rmtree(run_copy / "checkpoints")
    with pytest.raises(ValueError, match="has no checkpoint yet; run --mode train first"):
        load_cpu(run_copy)
