"""Checkpoints written one tensor at a time: the bytes that safetensors writes, without a second copy of everything."""

import weakref

import pytest
import torch
from safetensors.torch import load, save
from tiny import ROOT, snapshot

from experiment.build import build_dataset
from experiment.config import load_config
from runtime.tensor_bytes import Content
from training.build import build_state, state_of_weights

DTYPES = [
    torch.float32, torch.uint8, torch.float64, torch.bool, torch.bfloat16, torch.int64, torch.float16, torch.int32,
    torch.int8, torch.int16,
]  # fmt: skip


def tensors_of_every_kind():
    tensors = {f"{k % 3}.{str(dtype)[6:]}": (torch.randn(k, 3) * 9).to(dtype) for k, dtype in enumerate(DTYPES, 1)}
    tensors |= {"scalar": torch.tensor(3.5), "none": torch.empty(0, 4), 'ümläut "quoted" \\ \t': torch.ones(2)}
    return tensors


def test_the_bytes_are_those_of_safetensors_for_every_dtype_and_any_name():
    for tensors in (tensors_of_every_kind(), {}, {"a": torch.ones(1)}, {"a" * k: torch.ones(k) for k in range(1, 9)}):
        content, expected = Content(tensors), save(tensors)
        assert b"".join(content) == expected
        assert content.size == len(expected)
        # again, as when a full disk has been cleared
        assert b"".join(content) == expected


def test_tensors_laid_out_otherwise_and_those_that_share_memory_are_written_as_they_read():
    one = torch.randn(4, 3, 2, 2)
    tensors = {
        "channels last": one.to(memory_format=torch.channels_last),
        "transposed": one[:, :, 0, 0].t(),
        "every other": one[::2],
        "shared": one,
        "parameter": torch.nn.Parameter(one),
    }
    found = load(b"".join(Content(tensors)))
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_no_more_than_one_copy_of_a_tensor_is_held_at_a_time(monkeypatch):
    tensors = {f"{k}": torch.randn(4, 4).t() for k in range(5)}
    copies, whole = [], torch.Tensor.contiguous

    def contiguous(tensor):
        # the loop below holds none, and the one before is let go when the next is asked for
        assert sum(copy() is not None for copy in copies) <= 1
        copy = whole(tensor)
        copies.append(weakref.ref(copy))
        return copy

    monkeypatch.setattr(torch.Tensor, "contiguous", contiguous)
    for _ in Content(tensors):
        pass
    assert len(copies) == 5


@pytest.fixture
def config():
    overrides = ["--config.model.channels=16", "--config.model.channel_mult=1,1", "--config.device=cpu"]
    return load_config(str(ROOT / "configs" / "vp" / "digits.py"), overrides)


def test_a_state_of_given_weights_holds_them_once_and_is_saved_as_any_other(config, tmp_path):
    kind = build_dataset(config, "train").kind
    created = build_state(config, kind, torch.device("cpu"))
    weights = {name: torch.randn_like(tensor) for name, tensor in created.model.backbone.state_dict().items()}
    state = state_of_weights(config, kind, weights)
    for one in (state.model, state.ema.model):
        found = one.backbone.state_dict()
        assert {name: tensor.data_ptr() for name, tensor in found.items()} == {
            name: tensor.data_ptr() for name, tensor in weights.items()
        }
    for one in (created.model, created.ema.model):
        one.backbone.load_state_dict(weights)
    for which, folder in ((state, tmp_path / "of_weights"), (created, tmp_path / "created")):
        which.save(folder, keep=1)
    assert snapshot(tmp_path / "of_weights") == snapshot(tmp_path / "created")
