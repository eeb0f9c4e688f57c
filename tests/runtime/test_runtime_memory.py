"""Out of memory is one line that names the batch size and what takes less."""

from pathlib import Path

import pytest
import torch
from tiny import error, snapshot, tiny_command

from runtime.memory import explain_out_of_memory, is_out_of_memory


def test_the_cpus_own_error_is_known():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and not is_out_of_memory(ValueError("memory"))


def test_other_errors_pass_unchanged():
    wrong = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError) as raised, explain_out_of_memory("training.batch_size", 8, training=True):
        raise wrong
    assert raised.value is wrong


@pytest.mark.parametrize("mode", ["train", "eval", "sample"])
def test_the_line_names_the_batch_size_and_the_knobs(
    run_copy: Path, mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def forward(*_: object) -> torch.Tensor:
        return torch.empty(10**15)

    monkeypatch.setattr("models.backbones.UNet.forward", forward)
    before = snapshot(run_copy / "checkpoints")
    said = error(capsys, tiny_command(mode, run_copy, *(["--config.training.num_steps=9"] if mode == "train" else [])))
    size = {"train": "training.batch_size=8", "eval": "eval.batch_size=4", "sample": "sampling.batch_size=3"}[mode]
    assert said.startswith(f"error: out of memory with {size}; ") and "DefaultCPUAllocator" in said
    for knob in ("training.accumulation_steps", "training.gradient_checkpointing=True", "training.precision=bf16"):
        assert (knob in said) == (mode == "train")
    assert "lower it" in said
    assert snapshot(run_copy / "checkpoints") == before
