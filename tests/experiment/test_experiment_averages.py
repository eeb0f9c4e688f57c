"""A model that is sampled, measured, previewed, exported or begun from is the average of a checkpoint's weights.

It is compared with the tensors of the file, as safetensors reads them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_calls import Bench
from tiny import last_tensors, tiny_command
from torch import Tensor, nn

import main
from commands import export
from experiment.trained_run import load_run
from models import NetworkScoreModel


def _of_file(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    assert found
    return found


def _is(module: Any, tensors: dict[str, Tensor], prefix: str) -> bool:
    """Compare a module, to the bit, with the tensors of a file whose names begin so."""
    assert isinstance(module, nn.Module)
    # a frozen copy for inference wraps the network
    state, expected = getattr(module, "inner", module).state_dict(), _of_file(tensors, prefix)
    assert state.keys() == expected.keys()
    return all(torch.equal(state[name], value) for name, value in expected.items())


def _network(model: Any) -> Any:
    """The backbone of a model, which may be clipped."""
    while not isinstance(model, NetworkScoreModel):
        model = model.model
    return model.backbone


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def _command(workdir: Path, mode: str, *extra: str) -> Callable[[], object]:
    return lambda: main.run(tiny_command(mode, workdir, *extra))


def test_the_weights_of_the_file_differ(tiny_run: Path):
    tensors = last_tensors(tiny_run)
    average, raw = _of_file(tensors, "ema."), _of_file(tensors, "model.")
    assert average.keys() == raw.keys() and not any(torch.equal(average[name], raw[name]) for name in raw)


def test_what_is_sampled_and_measured_is_the_average(run_copy: Path, calls: Bench):
    tensors = last_tensors(run_copy)
    drawn = calls.call(_command(run_copy, "sample"), "commands.sample.draw_batch")
    assert _is(_network(drawn.args[1]), tensors, "ema.")
    both = "--config.eval.likelihoods=vlb,ode"
    for _, model in calls.call(_command(run_copy, "eval", both), "commands.eval.Schedule").args[1].values():
        assert _is(_network(model), tensors, "ema.")


def test_what_is_previewed_is_the_average_of_that_moment(run_copy: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[dict[str, Tensor]] = []

    def preview(model: NetworkScoreModel, *_: object, **__: object) -> None:
        seen.append({name: value.clone() for name, value in model.backbone.state_dict().items()})

    monkeypatch.setattr("training.trainer.preview_samples", preview)
    longer = ("--config.training.num_steps=8", "--config.training.sample_every=8")
    assert main.run(tiny_command("train", run_copy, *longer)) == 0
    expected = _of_file(last_tensors(run_copy), "ema.")
    assert len(seen) == 1 and all(torch.equal(seen[0][name], value) for name, value in expected.items())


def test_what_is_exported_is_the_average(run_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[NetworkScoreModel] = []

    def write(model: NetworkScoreModel, folder: Path) -> None:
        seen.append(model)
        folder.mkdir()

    monkeypatch.setitem(export._FORMATS, "diffusers", write)
    command = [*tiny_command("export", run_copy), "--format=diffusers", f"--output={tmp_path / 'out'}"]
    assert main.run(command) == 0
    assert _is(_network(seen[0]), last_tensors(run_copy), "ema.")


def test_a_run_begins_from_the_average_of_another(run_copy: Path, tmp_path: Path, calls: Bench):
    command = [*tiny_command("train", tmp_path / "new"), f"--init-from={run_copy}"]
    call = calls.call(lambda: main.run(command), "training.job.Trainer")
    state, tensors = call.args[0], last_tensors(run_copy)
    assert _is(state.model.backbone, tensors, "ema.") and _is(state.ema.model.backbone, tensors, "ema.")


@pytest.mark.parametrize(
    ("part", "flags"),
    [
        ("dequantizer", ("--config.model.dequantizer=True", "--config.training.loss=dequantized")),
        (
            "sde",
            (
                "--config.sde.name=vp_learned",
                "--config.training.loss=vlb_continuous",
                "--config.model.time_input=log_snr",
            ),
        ),
    ],
)
def test_what_is_learned_besides_the_network_is_averaged_too(part: str, flags: tuple[str, ...], tmp_path: Path):
    assert main.run(tiny_command("train", tmp_path, *flags, "--config.training.num_steps=2")) == 0
    tensors = last_tensors(tmp_path)
    assert any(
        not torch.equal(value, tensors[f"{part}.model.{name}"])
        for name, value in _of_file(tensors, f"{part}.ema.").items()
    )
    for weights, prefix in (("ema", "ema."), ("raw", "model.")):
        model = load_run(tmp_path, device="cpu", weights=weights).model
        assert _is(model.backbone, tensors, prefix) and _is(getattr(model, part), tensors, f"{part}.{prefix}")
