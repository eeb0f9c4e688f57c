"""Checkpoints are read as data alone: what could run code, is damaged, or does not fit is one line."""

import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models.pretrained.shared.renaming import Source, load_renamed, same
from models.pretrained.shared.tensors import as_tensors, read_checkpoint, read_tensors, strip_prefix


def load(module, tensors, path):
    """Load tensors that have a network's own names."""
    load_renamed(module, tensors, {name: Source((name,), same) for name in module.state_dict()}, path=path)


class Trap:
    """Runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def trap(tmp_path):
    trap = Trap(tmp_path / "it_ran")
    yield trap
    assert not trap.path.exists()


def refused(path, message):
    with pytest.raises(ValueError, match=message) as error:
        read_tensors(path)
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 600
    assert path.name in text


def test_what_torch_and_safetensors_save_is_read_back(tmp_path):
    tensors = {"a": torch.randn(2, 3), "b": torch.arange(4)}
    torch.save(tensors, tmp_path / "new.pt")
    torch.save(tensors, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    save_file(tensors, tmp_path / "safe.safetensors")
    for name in ("new.pt", "old.ckpt", "safe.safetensors"):
        found = read_tensors(tmp_path / name)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_a_numpy_scalar_is_read_under_both_of_its_names(tmp_path, module):
    path = tmp_path / "checkpoint.pth"
    torch.save({"lr": np.float64(2e-4), "model": {"a": torch.ones(2)}}, path, _use_new_zipfile_serialization=False)
    written = type(np.float64(0)).__reduce__(np.float64(0))[0].__module__
    path.write_bytes(path.read_bytes().replace(written.encode(), module.encode()))
    found = read_checkpoint(path)
    assert found["lr"] == 2e-4
    assert torch.equal(found["model"]["a"], torch.ones(2))


def test_only_that_scalar_is_allowed_and_only_while_a_file_is_read(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"lr": np.float64(2e-4)}, path)
    read_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    torch.save({"array": np.zeros(3)}, path)
    refused(path, "is a pickle that asks for numpy.*_reconstruct, refused unread")


def test_code_is_never_run(tmp_path, trap):
    zipped, old = tmp_path / "zip.pth", tmp_path / "old.pth"
    torch.save({"model": trap}, zipped)
    torch.save({"model": trap}, old, _use_new_zipfile_serialization=False)
    for path in (zipped, old):
        refused(
            path,
            r"is a pickle that asks for (posix|nt)\.system, refused unread, since that could run code; .*state_dict",
        )
    for protocol in (2, 4, 5):
        path = tmp_path / f"network-{protocol}.pkl"
        path.write_bytes(pickle.dumps({"ema": trap}, protocol=protocol))
        refused(path, "is a pickle .*refused unread, since that could run code; .*state_dict")


def test_a_torchscript_archive_is_refused(tmp_path):
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    refused(path, "is a TorchScript archive, which is code")


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_truncated_files_are_one_line(tmp_path, name, kept):
    path, tensors = tmp_path / name, {"a": torch.randn(50, 50)}
    if path.suffix == ".pt":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    refused(path, "(is truncated or no|is no file of torch.save)")


def test_other_files_are_one_line(tmp_path):
    page = tmp_path / "page.pth"
    page.write_text("<!DOCTYPE html>\n<html>not found</html>")
    refused(page, "is no file of torch.save; fetch it again, or check its name")
    refused(tmp_path / "absent.pt", "is no file; pass the path")
    refused(tmp_path, "is no file; pass the path")


def test_what_is_no_state_dict_is_refused(tmp_path):
    path = tmp_path / "a.pt"
    for value, message in (
        ([torch.ones(1)], "must be a state dict of tensors, got list of 1 entries"),
        ({}, "got dict of 0 entries"),
        ({"a": torch.ones(1), "step": 3}, "got others under step"),
        (torch.ones(3), "got Tensor of unknown entries"),
    ):
        torch.save(value, path)
        refused(path, message)


def test_a_prefix_is_dropped_where_all_have_it():
    one = torch.ones(1)
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."):
        assert strip_prefix({f"{prefix}a": one, f"{prefix}b": one}) == {"a": one, "b": one}
    for lacking in ({"module.a": one, "b": one}, {"model.a": one, "model.b": one}):
        assert strip_prefix(lacking) == lacking
    with pytest.raises(ValueError, match=r"two tensors a, with and without '_orig_mod\.'; save one of them"):
        strip_prefix({"_orig_mod.a": one, "a": one + 1})
    # of parts that are compiled each for itself
    assert strip_prefix({"module.a._orig_mod.b": one, "module.c": one}) == {"a.b": one, "c": one}
    for prefix in ("model.", "module.model.", "model._orig_mod.", "_orig_mod.model.module."):
        assert strip_prefix({f"{prefix}a": one, f"{prefix}module": one}, "model.") == {"a": one, "module": one}


def test_missing_unexpected_and_misshapen_tensors_are_listed_and_nothing_is_loaded(tmp_path):
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1), nn.BatchNorm1d(1))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tensors = {name: torch.full_like(tensor, 7) for name, tensor in before.items()}
    del tensors["0.bias"]
    tensors |= {"1.weight": torch.ones(2, 3), "2.running_mean": torch.ones(1).long()}
    tensors |= {f"extra.{i}": torch.ones(1) for i in range(9)}
    with pytest.raises(ValueError, match="does not fit the network") as error:
        load(module, tensors, tmp_path / "a.pt")
    text = str(error.value)
    assert "\n" not in text
    for part in (
        "1 missing (0.bias)",
        "9 unexpected (extra.0, extra.1, extra.2, extra.3, extra.4, extra.5 and 3 more)",
        "1 misshapen (1.weight is [2, 3], expected [1, 3])",
        "1 of a wrong type (2.running_mean is torch.int64, expected torch.float32)",
    ):
        assert part in text
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_tensors_take_the_modules_dtype(tmp_path):
    module = nn.Linear(2, 2).double()
    load(module, {"weight": torch.ones(2, 2).half(), "bias": torch.zeros(2)}, tmp_path)
    assert module.weight.dtype == torch.float64
    assert torch.equal(module.weight, torch.ones(2, 2).double())


def test_names_from_a_file_do_not_break_the_line():
    with pytest.raises(ValueError, match="others under") as error:
        as_tensors({"a\nb": 1, "c" * 1000: 2}, path="a.pt")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400
