import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiment.checkpoints.optimizer import flatten_optimizer, optimizer_mismatch, restore_optimizer
from experiment.checkpoints.store import (
    Checkpoint,
    load_newest,
    mismatch,
    save_checkpoint,
)
from training.optimizers import MuonWithAdamW


def _tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"model.w": torch.randn(3, 4, generator=generator), "ema.w": torch.randn(3, 4, generator=generator)}


def _save(root: Path, step: int, keep: int = 10) -> Path:
    return save_checkpoint(root, step=step, tensors=_tensors(step), state={"note": step}, keep=keep)


def test_what_is_written_comes_back_to_the_bit(tmp_path: Path):
    special = {
        "loss.w": torch.tensor([float("nan"), -0.0, 1e-45]),
        "model.n": torch.tensor(7),
        "model.e": torch.empty(0),
        "ema.z": torch.tensor([-0.0, 1e-45, 3.4e38]),
    }
    save_checkpoint(tmp_path, step=3, tensors=special, state={"a": [1, None]}, keep=1)
    found = load_newest(tmp_path, special)
    assert found is not None and found.step == 3 and found.state == {"a": [1, None]} and found.notes == ()
    for name, tensor in special.items():
        assert found.tensors[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_newest_n_are_kept_and_the_newest_is_read(tmp_path: Path):
    for step in (5, 10, 9999, 100_000_000):
        _save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00009999", "step_100000000"]
    found = load_newest(tmp_path, _tensors())
    assert found is not None and found.step == 100_000_000


def test_no_checkpoint_is_none(tmp_path: Path):
    assert load_newest(tmp_path / "absent", {}) is None
    (tmp_path / ".writing_00000003").mkdir()
    assert load_newest(tmp_path, {}) is None


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "remove"])
def test_damaged_newest_falls_back_and_says_so(tmp_path: Path, file: str, damage: str):
    _save(tmp_path, 1)
    path = _save(tmp_path, 2) / file
    data = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "flip":
        data[len(data) * 2 // 3] ^= 0x10
        path.write_bytes(data)
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncate" else b"")
    found = load_newest(tmp_path, _tensors())
    assert found is not None and found.step == 1
    torch.testing.assert_close(found.tensors["model.w"], _tensors(1)["model.w"], rtol=0, atol=0)
    (note,) = found.notes
    assert "step_00000002 is passed over" in note and "\n" not in note


def test_every_flipped_byte_of_the_tensors_is_noticed(tmp_path: Path):
    path = _save(tmp_path, 1) / "tensors.safetensors"
    good = path.read_bytes()
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(ValueError, match=r"no checkpoint in .* can be used"):
            load_newest(tmp_path, _tensors())


def test_files_swapped_between_checkpoints_are_noticed(tmp_path: Path):
    one, two = _save(tmp_path, 1), _save(tmp_path, 2)
    shutil.copy(one / "tensors.safetensors", two / "tensors.safetensors")
    found = load_newest(tmp_path, _tensors())
    assert found is not None and found.step == 1 and "checksum" in found.notes[0]


def test_another_architecture_is_passed_over_by_name(tmp_path: Path):
    save_checkpoint(tmp_path, step=1, tensors=_tensors(), state={}, keep=5)
    wide = {name: torch.zeros(3, 5) for name in _tensors()}
    save_checkpoint(tmp_path, step=2, tensors=wide, state={}, keep=5)
    save_checkpoint(tmp_path, step=3, tensors={"model.other": torch.zeros(2)}, state={}, keep=5)
    found = load_newest(tmp_path, _tensors())
    assert found is not None and found.step == 1
    assert "of another architecture (lacks ema.w and 1 more)" in found.notes[0]
    assert "of another architecture (model.w: expected [3, 4] float32, got [3, 5] float32)" in found.notes[1]
    halves = {name: tensor.half() for name, tensor in _tensors().items()}
    save_checkpoint(tmp_path, step=4, tensors=halves, state={}, keep=5)
    found = load_newest(tmp_path, _tensors())
    assert found is not None and "got [3, 4] float16" in found.notes[0]


def test_a_folder_that_lies_about_its_step_is_passed_over(tmp_path: Path):
    _save(tmp_path, 1)
    _save(tmp_path, 2).rename(tmp_path / "step_00000099")
    found = load_newest(tmp_path, _tensors())
    assert found is not None and found.step == 1 and "it is of step 2 in state.json" in found.notes[0]


def _damaged_optimizers(tensors: dict[str, Tensor], state: dict[str, Any]) -> dict[str, tuple[dict, dict]]:
    """Tensors and state, by what is said of them."""
    group = state["param_groups"][0]
    return {
        "its optimizer has no 1 param_groups": (tensors, {"param_groups": None}),
        "its optimizer is another one (param_groups differ)": (tensors, {"param_groups": [group | {"params": [0]}]}),
        "its optimizer's betas is [0.5, 0.999], expected [0.9, 0.999]": (
            tensors,
            {"param_groups": [group | {"betas": [0.5, 0.999]}]},
        ),
        "it is of another architecture (lacks optim.0.exp_avg and 5 more)": ({}, state),
        "it is of another architecture (lacks optim.1.exp_avg)": (
            {k: v for k, v in tensors.items() if k != "optim.1.exp_avg"},
            state,
        ),
        "it is of another architecture (optim.0.exp_avg: expected [2, 4] float32, got [7] float32)": (
            tensors | {"optim.0.exp_avg": torch.zeros(7)},
            state,
        ),
        "it is of another architecture (has unexpected optim.x)": (tensors | {"optim.x": torch.zeros(1)}, state),
    }


def test_an_optimizer_that_does_not_fit_is_noticed():
    net = torch.nn.Linear(4, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    tensors, state = flatten_optimizer(optimizer)
    fresh = torch.optim.Adam(net.parameters())
    assert optimizer_mismatch(fresh, Checkpoint(step=1, tensors=tensors, state=state)) is None
    damaged = _damaged_optimizers(tensors, state)
    found = [optimizer_mismatch(fresh, Checkpoint(step=1, tensors=t, state=s)) for t, s in damaged.values()]
    assert found == list(damaged)
    for groups in ({}, {"param_groups": [{"params": [0, 1], "momentum": 0.9}]}):
        said = optimizer_mismatch(fresh, Checkpoint(step=1, tensors=tensors, state=groups))
        assert said == list(damaged)[bool(groups)]


def test_the_momentum_of_muon_is_looked_at():
    net = torch.nn.Linear(4, 2)

    def make() -> MuonWithAdamW:
        return MuonWithAdamW([net.weight], [net.bias], lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)

    optimizer = make()
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    tensors, state = flatten_optimizer(optimizer)

    def said(tensors: dict[str, torch.Tensor], of: torch.optim.Optimizer) -> str | None:
        return optimizer_mismatch(of, Checkpoint(step=1, tensors=tensors, state=state))

    assert said(tensors, make()) is None
    broken = tensors | {"optim.0.momentum_buffer": torch.full((2, 4), torch.nan)}
    assert said(broken, make()) == "optim.0.momentum_buffer is not finite"
    missing = {name: value for name, value in tensors.items() if name != "optim.0.momentum_buffer"}
    assert said(missing, make()) == "it is of another architecture (lacks optim.0.momentum_buffer)"
    assert said(tensors, torch.optim.Adam(net.parameters())) == "its optimizer has no 1 param_groups"


def test_nothing_usable_is_refused_in_one_line(tmp_path: Path):
    (_save(tmp_path, 1) / "state.json").unlink()
    with pytest.raises(ValueError, match=r"state\.json is missing") as caught:
        load_newest(tmp_path, _tensors())
    assert "\n" not in str(caught.value) and "move the folder away" in str(caught.value)


def test_mismatch_says_what_is_unexpected():
    assert mismatch({}, {"b": torch.zeros(1)}) == "it is of another architecture (has unexpected b)"
    assert mismatch({"b": torch.ones(1)}, {"b": torch.zeros(1)}) is None


def test_an_interrupted_write_leaves_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _save(tmp_path, 1)

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runtime.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        _save(tmp_path, 2)
    monkeypatch.undo()
    found = load_newest(tmp_path, _tensors())
    assert found is not None and found.step == 1 and found.notes == ()
    assert _save(tmp_path, 2).is_dir()


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, MuonWithAdamW])
def test_optimizer_goes_on_to_the_bit(tmp_path: Path, kind: type[torch.optim.Adam] | type[MuonWithAdamW]):
    def make() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 2)
        if kind is MuonWithAdamW:
            return net, kind([net.weight], [net.bias], lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01)
        return net, kind(net.parameters(), lr=0.1, weight_decay=0.01)

    def steps(net: torch.nn.Linear, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for k in range(first, last):
            optimizer.zero_grad()
            net(torch.full((3, 4), float(k))).square().mean().backward()
            optimizer.step()

    whole, optimizer = make()
    steps(whole, optimizer, 0, 5)

    part, optimizer = make()
    steps(part, optimizer, 0, 2)
    tensors, state = flatten_optimizer(optimizer)
    weights = {f"model.{name}": value for name, value in part.state_dict().items()}
    save_checkpoint(tmp_path, step=2, tensors=tensors | weights, state=state, keep=1)
    found = load_newest(tmp_path, weights)
    assert found is not None
    resumed, optimizer = make()
    resumed.load_state_dict({name.removeprefix("model."): found.tensors[name] for name in weights})
    restore_optimizer(optimizer, found.tensors, json.loads(json.dumps(found.state)))
    steps(resumed, optimizer, 2, 5)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_damaged_newer_checkpoints_never_cost_a_good_one(tmp_path: Path):
    _save(tmp_path, 500)
    (_save(tmp_path, 1000) / "state.json").unlink()
    assert _save(tmp_path, 600, keep=1).is_dir()
    found = load_newest(tmp_path, _tensors())
    assert found is not None and found.step == 600 and len(found.notes) == 1
    _save(tmp_path, 1000, keep=1)
    found = load_newest(tmp_path, _tensors())
    assert found is not None and found.step == 1000 and found.notes == ()
    assert [path.name for path in tmp_path.iterdir()] == ["step_00001000"]


def test_the_same_checkpoint_is_never_taken_away_to_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = _save(tmp_path, 1).stat().st_ino
    assert _save(tmp_path, 1).stat().st_ino == before
    (tmp_path / ".writing_00000007").mkdir()
    (tmp_path / ".dropped_step_00000000").mkdir()
    _save(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def test_settings_that_another_torch_version_has_keep_their_defaults():
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.5)
    tensors, state = flatten_optimizer(optimizer)
    group = {k: v for k, v in state["param_groups"][0].items() if k != "foreach"} | {"of_the_future": 1}
    saved = Checkpoint(step=0, tensors=tensors, state={"param_groups": [group]})
    fresh = torch.optim.Adam(net.parameters(), lr=0.1)
    assert optimizer_mismatch(fresh, saved) is None
    restore_optimizer(fresh, saved.tensors, saved.state)
    assert fresh.param_groups[0]["lr"] == 0.5 and "of_the_future" not in fresh.param_groups[0]


def test_each_file_is_on_the_disk_before_its_name_and_the_old_one_leaves_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The remains of a power cut follow from this order."""
    _save(tmp_path, 1)
    order: list[str] = []
    sync, rename, remove = os.fsync, Path.rename, shutil.rmtree

    def synced(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        order.append(f"sync {path.relative_to(tmp_path)} {path.stat().st_size if path.is_file() else 'names'}")
        sync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        order.append(f"{path.name} -> {target.name}")
        return rename(path, target)

    def removed(path: Path, **options: bool) -> None:
        order.append(f"delete {path.name}")
        remove(path, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(shutil, "rmtree", removed)
    folder = _save(tmp_path, 2, keep=1)
    whole = {path.name: path.stat().st_size for path in folder.iterdir()}
    writing = ".writing_00000002"
    assert order == [
        f"sync {writing}/tensors.safetensors {whole['tensors.safetensors']}",
        f"sync {writing}/state.json {whole['state.json']}",
        f"sync {writing}/manifest.json {whole['manifest.json']}",
        f"sync {writing} names",
        f"{writing} -> step_00000002",
        "sync . names",
        "step_00000001 -> .dropped_step_00000001",
        "sync . names",
        "delete .dropped_step_00000001",
    ]


def test_damaged_older_checkpoints_do_not_count_as_kept(tmp_path: Path):
    for step in (1, 2, 3):
        _save(tmp_path, step)
    (tmp_path / "step_00000002" / "tensors.safetensors").write_bytes(b"")
    (tmp_path / "step_00000003" / "manifest.json").unlink()
    _save(tmp_path, 4, keep=2)
    # two that can be used; what lies between them is left to whoever wants to look at it
    assert sorted(int(path.name[-1]) for path in tmp_path.iterdir()) == [1, 2, 3, 4]
    _save(tmp_path, 5, keep=2)
    assert sorted(int(path.name[-1]) for path in tmp_path.iterdir()) == [4, 5]


def test_a_checkpoint_of_other_bits_takes_the_place_of_one_of_the_same_step(tmp_path: Path):
    _save(tmp_path, 1)
    save_checkpoint(tmp_path, step=1, tensors=_tensors(7), state={"note": 7}, keep=1)
    found = load_newest(tmp_path, _tensors())
    assert (
        found is not None
        and found.state == {"note": 7}
        and [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    )


def test_names_that_are_no_steps_are_not_looked_at(tmp_path: Path):
    _save(tmp_path, 1)
    for name in ("step_", "step_x", "step_²", "step_-2", "step_2.old", "step_1e9", "step_" + "9" * 200):
        shutil.copytree(tmp_path / "step_00000001", tmp_path / name)
    (tmp_path / "step_00000009").write_text("a file")
    found = load_newest(tmp_path, _tensors())
    assert found is not None and found.step == 1 and found.notes == ()
    assert load_newest(tmp_path / "step_00000009", _tensors()) is None
