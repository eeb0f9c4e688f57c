"""Checkpoint files that were damaged, swapped or forged: never loaded silently, refused in one line, no code run."""

import hashlib
import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_tensors
from tiny import error, tiny_command
from torch import Tensor

import main
from experiment.checkpoints.optimizer import flatten_optimizer, optimizer_mismatch
from experiment.checkpoints.store import Checkpoint, load_newest, save_checkpoint

FILES = ("tensors.safetensors", "state.json", "manifest.json")
STEPS = (1, 2, 3)


class Run:
    """Three checkpoints of a small network, and what they held when they were written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        torch.manual_seed(0)
        self.network = torch.nn.Linear(6, 5)
        self.optimizer = torch.optim.Adam(self.network.parameters())
        self.tensors: dict[int, dict[str, Tensor]] = {}
        self.state: dict[int, dict[str, Any]] = {}
        for step in STEPS:
            self.optimizer.zero_grad()
            self.network(torch.randn(4, 6)).square().sum().backward()
            self.optimizer.step()
            self.tensors[step] = {name: tensor.clone() for name, tensor in self._now().items()}
            self.state[step] = {**flatten_optimizer(self.optimizer)[1], "losses": [0.1 * step], "ema_updates": step}
            save_checkpoint(root, step=step, tensors=self.tensors[step], state=self.state[step], keep=9)
        self.files = {(step, name): (self.folder(step) / name).read_bytes() for step in STEPS for name in FILES}

    def _now(self) -> dict[str, Tensor]:
        weights = self.network.state_dict()
        both = {f"{part}.{name}": tensor for part in ("model", "ema") for name, tensor in weights.items()}
        return both | flatten_optimizer(self.optimizer)[0] | {"loss.values": torch.zeros(3, dtype=torch.float64)}

    def folder(self, step: int) -> Path:
        return self.root / f"step_{step:08d}"

    def restore(self) -> None:
        """Undo all damage."""
        for path in [path for folder in self.root.iterdir() for path in folder.iterdir()]:
            step = path.parent.name.removeprefix("step_")
            original = self.files.get((int(step), path.name)) if step.isdecimal() and len(step) == 8 else None
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            elif not path.is_file() or path.read_bytes() != original:
                path.unlink()
        for folder in self.root.iterdir():
            if not any(folder.iterdir()):
                folder.rmdir()
        for (step, name), data in self.files.items():
            self.folder(step).mkdir(exist_ok=True)
            if not (self.folder(step) / name).exists():
                (self.folder(step) / name).write_bytes(data)
        assert len(list(self.root.rglob("*"))) == 12 and all(map(self.is_untouched, STEPS))

    def load(self) -> Checkpoint | None:
        expected = {name: tensor for name, tensor in self.tensors[3].items() if not name.startswith("optim.")}
        return load_newest(self.root, expected, lambda found: optimizer_mismatch(self.optimizer, found))

    def is_original(self, found: Checkpoint) -> bool:
        """Compare a checkpoint, to the bit, with what was written as that step."""
        ours, theirs = self.tensors[found.step], found.tensors
        same = ours.keys() == theirs.keys() and all(
            (tensor.dtype, tensor.shape, tensor.numpy().tobytes())
            == (theirs[name].dtype, theirs[name].shape, theirs[name].numpy().tobytes())
            for name, tensor in ours.items()
        )
        return same and json.dumps(self.state[found.step]) == json.dumps(found.state)

    def is_untouched(self, step: int) -> bool:
        return all(
            (self.folder(step) / name).is_file() and (self.folder(step) / name).read_bytes() == self.files[step, name]
            for name in FILES
        )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "checkpoints")


def _edit(change: Callable[[bytearray, random.Random], bytes | bytearray]) -> Callable[[Path, random.Random], None]:
    def mutate(path: Path, rng: random.Random) -> None:
        data = bytearray(path.read_bytes()) if path.is_file() else bytearray(b"gone")
        changed = bytes(change(data, rng))
        if path.is_symlink() or path.exists():
            path.unlink()
        path.write_bytes(changed)

    return mutate


def _place(data: bytearray, rng: random.Random, longest: int) -> slice:
    start = rng.randrange(len(data) or 1)
    return slice(start, start + rng.randint(1, longest))


def _flip(data: bytearray, rng: random.Random) -> bytearray:
    for _ in range(rng.choice([1, 1, 2, 30])):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _zero(data: bytearray, rng: random.Random) -> bytearray:
    """Blocks that a power cut kept from the disk."""
    block = rng.choice([1, 16, 64, 512])
    start = rng.randrange(len(data) or 1) // block * block
    end = min(len(data), start + block * rng.randint(1, 4)) if rng.random() < 0.5 else len(data)
    data[start:end] = bytes(end - start)
    return data


def _repeat(data: bytearray, rng: random.Random) -> bytearray:
    where = _place(data, rng, 64)
    data[where] = data[where] * 2
    return data


def _move(data: bytearray, rng: random.Random) -> bytearray:
    """A block in another's place, the length being the same."""
    size = rng.randint(1, max(1, len(data) // 3))
    one, other = rng.randrange(len(data) - size + 1), rng.randrange(len(data) - size + 1)
    data[one : one + size] = data[other : other + size]
    return data


def _cut_out(data: bytearray, rng: random.Random) -> bytearray:
    del data[_place(data, rng, 40)]
    return data


def _insert(data: bytearray, rng: random.Random) -> bytearray:
    where = rng.randrange(len(data) + 1)
    data[where:where] = rng.choice([b" ", b"\n", b"0", b'"', rng.randbytes(9)])
    return data


def _becomes(make: Callable[[Path], None]) -> Callable[[Path, random.Random], None]:
    def mutate(path: Path, _: random.Random) -> None:
        path.unlink(missing_ok=True)
        make(path)

    return mutate


def _swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def _swap_in_folder(path: Path, rng: random.Random) -> None:
    _swap(path, path.with_name(rng.choice([name for name in FILES if name != path.name])))


def _swap_between(path: Path, rng: random.Random) -> None:
    _swap(path, path.parent.with_name(f"step_{rng.choice(STEPS[:2]):08d}") / path.name)


def _swap_two_between(path: Path, rng: random.Random) -> None:
    """All but one of the files of another checkpoint: manifest and tensors, say, without the state."""
    other = path.parent.with_name(f"step_{rng.choice(STEPS[:2]):08d}")
    for name in FILES:
        if name != path.name:
            _swap(path.parent / name, other / name)


def _copy_from_older(path: Path, rng: random.Random) -> None:
    shutil.copy(path.parent.with_name(f"step_{rng.choice(STEPS[:2]):08d}") / path.name, path)


def _swap_folders(path: Path, rng: random.Random) -> None:
    _swap(path.parent, path.parent.with_name(f"step_{rng.choice(STEPS[:2]):08d}"))


def _rename_folder(path: Path, rng: random.Random) -> None:
    path.parent.rename(path.parent.with_name(rng.choice(["step_00000004", "step_99999999", "step_5", "step_x"])))


def _swap_pairs(path: Path, rng: random.Random) -> None:
    _swap_in_folder(path, rng)
    _swap_between(path, rng)


MUTATIONS: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": _edit(lambda data, rng: data[: rng.randrange(len(data) or 1)]),
    "bits flipped": _edit(_flip),
    "zeroed": _edit(_zero),
    "all zeros": _edit(lambda data, _: bytes(len(data))),
    "emptied": _edit(lambda *_: b""),
    "extended": _edit(lambda data, rng: data + rng.choice([b"\0", b"\n", bytes(4096), rng.randbytes(33), data])),
    "block repeated": _edit(_repeat),
    "block moved": _edit(_move),
    "cut out": _edit(_cut_out),
    "inserted": _edit(_insert),
    "noise": _edit(lambda data, rng: rng.randbytes(len(data))),
    "deleted": _becomes(lambda path: None),
    "a folder": _becomes(lambda path: path.mkdir()),
    "a pipe": _becomes(lambda path: os.mkfifo(path)),
    "a loop of links": _becomes(lambda path: path.symlink_to(path.name)),
    "a link to a device": _becomes(lambda path: path.symlink_to("/dev/zero")),
    "swapped in its folder": _swap_in_folder,
    "swapped with another checkpoint's": _swap_between,
    "the others swapped with another checkpoint's": _swap_two_between,
    "swapped twice": _swap_pairs,
    "copied from an older checkpoint": _copy_from_older,
    "folders swapped": _swap_folders,
    "folder renamed": _rename_folder,
}


def test_a_thousand_mutations_never_load_silently(run: Run):
    rng = random.Random(20)
    refused: dict[str, int] = {kind: 0 for kind in MUTATIONS}
    for number in range(1000):
        kind = list(MUTATIONS)[number % len(MUTATIONS)]
        path = run.folder(3) / rng.choice(FILES)
        MUTATIONS[kind](path, rng)
        found = run.load()
        # whatever was loaded is what was once written as that step, to the bit
        assert found is not None and run.is_original(found), (number, kind, path.name)
        untouched = run.is_untouched(3)
        assert (found.step == 3) == untouched, (number, kind, path.name)
        if not untouched:
            refused[kind] += 1
            assert found.notes or not run.folder(3).exists(), (number, kind)
        for note in found.notes:
            assert note.startswith("checkpoint ") and " is passed over: " in note and note.isprintable()
            # it names the file, or one that does not go with it
            assert any(name in note.split(" is passed over: ")[1] for name in FILES), note
            assert len(note) < 500
        run.restore()
    # nearly every mutation changed something; flips of a bit always do
    assert min(refused.values()) >= 35 and refused["bits flipped"] >= 43, refused


def test_if_all_are_mutated_it_is_one_line(run: Run):
    rng = random.Random(21)
    for number in range(100):
        kinds = [kind for kind in MUTATIONS if "fold" not in kind and "swapped" not in kind and "copied" not in kind]
        for step in STEPS:
            MUTATIONS[rng.choice(kinds)](run.folder(step) / rng.choice(FILES), rng)
        if not any(run.is_untouched(step) for step in STEPS):
            with pytest.raises(ValueError, match=r"no checkpoint in .* can be used: .*; restore a good one") as caught:
                run.load()
            assert str(caught.value).isprintable(), number
        run.restore()


def _seal(folder: Path) -> None:
    """Write the manifest that goes with the files, as a forger would."""
    files = {name: (folder / name).read_bytes() for name in FILES[:2]}
    sums = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    (folder / "manifest.json").write_text(json.dumps(sums, indent=1))


def test_what_is_forged_with_good_checksums_is_loaded_as_it_is_or_refused_in_one_line(run: Run):
    rng = random.Random(22)
    bytes_only = [
        "truncated", "bits flipped", "zeroed", "emptied", "extended", "block repeated", "block moved", "cut out",
        "inserted", "swapped with another checkpoint's",
    ]  # fmt: skip
    passed_over = 0
    for number in range(600):
        MUTATIONS[bytes_only[number % len(bytes_only)]](run.folder(3) / rng.choice(FILES[:2]), rng)
        _seal(run.folder(3))
        # anything but a ValueError, which load_newest turns into a note, would come out here
        found = run.load()
        assert found is not None
        assert all(note.isprintable() and len(note) < 500 for note in found.notes)
        assert found.step == 3 or (run.is_original(found) and found.notes)
        passed_over += found.step != 3
        run.restore()
    assert passed_over > 300


NESTED = b'{"step": 3, "a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"


def _header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


FORGED_FILES: dict[str, tuple[str, bytes, str]] = {
    "nested without end": ("state.json", NESTED, "state.json cannot be read (it is nested too deeply)"),
    "a number without end": ("state.json", b'{"step": ' + b"9" * 10_000 + b"}", "state.json"),
    "a key twice": ("state.json", b'{"step": 1, "step": 3}', "state.json cannot be read (a key stands in it twice)"),
    "not UTF-8": ("state.json", b'{"step": 3, "a": "\xff"}', "state.json cannot be read"),
    "UTF-16": ("state.json", '{"step": 3}'.encode("utf-16"), "state.json cannot be read"),
    "a list": ("state.json", b"[3]", "state.json cannot be read (it holds a list, not an object)"),
    "null": ("state.json", b"null", "state.json cannot be read (it holds a NoneType, not an object)"),
    "nothing": ("state.json", b"", "state.json cannot be read"),
    "no step": ("state.json", b"{}", "it is of step None in state.json"),
    "another step": ("state.json", b'{"step": 4}', "it is of step 4 in state.json"),
    "step as text": ("state.json", b'{"step": "3"}', "it is of step '3' in state.json"),
    "step as float": ("state.json", b'{"step": 3.0}', "it is of step 3.0 in state.json"),
    "step NaN": ("state.json", b'{"step": NaN}', "it is of step nan in state.json"),
    "step infinite": ("state.json", b'{"step": 1e999}', "it is of step inf in state.json"),
    "step true": ("state.json", b'{"step": true}', "it is of step True in state.json"),
    "step a list of lines": ("state.json", b'{"step": ["\\n", "\\u001b[2J", "\\ud800"]}', "it is of step ["),
    "step very long": ("state.json", json.dumps({"step": "x" * 10**6}).encode(), "it is of step 'xxx"),
    "no tensors": ("tensors.safetensors", b"", "tensors.safetensors cannot be read"),
    "header beyond the end": ("tensors.safetensors", _header(b"{}", 10**6), "tensors.safetensors cannot be read"),
    "header without end": ("tensors.safetensors", _header(b"{}", 2**64 - 1), "tensors.safetensors cannot be read"),
    "header nested": ("tensors.safetensors", _header(NESTED), "tensors.safetensors cannot be read"),
    "header of another type": ("tensors.safetensors", _header(b"[1]"), "tensors.safetensors cannot be read"),
    "unknown dtype": (
        "tensors.safetensors",
        _header(b'{"a":{"dtype":"F31","shape":[1],"data_offsets":[0,4]}}') + bytes(4),
        "tensors.safetensors cannot be read",
    ),
    "overlapping": (
        "tensors.safetensors",
        _header(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
        )
        + bytes(4),
        "tensors.safetensors cannot be read",
    ),
    "shape without end": (
        "tensors.safetensors",
        _header(b'{"a":{"dtype":"F32","shape":[9223372036854775807,9],"data_offsets":[0,4]}}') + bytes(4),
        "tensors.safetensors cannot be read",
    ),
    "names of control characters": (
        "tensors.safetensors",
        save_tensors({"\x1b[2J\n" + "x" * 10**5: torch.zeros(1)}),
        "it is of another architecture",
    ),
}


@pytest.mark.parametrize("kind", FORGED_FILES)
def test_forged_files_are_refused_by_name(run: Run, kind: str):
    name, data, message = FORGED_FILES[kind]
    (run.folder(3) / name).write_bytes(data)
    _seal(run.folder(3))
    found = run.load()
    assert found is not None and found.step == 2 and run.is_original(found)
    (note,) = found.notes
    assert f"is passed over: {message}" in note and note.isprintable() and len(note) < 500


def _group(run: Run, **changed: Any) -> dict[str, Any]:
    return {"param_groups": [json.loads(json.dumps(run.state[3]["param_groups"][0])) | changed]}


def _forged_content(run: Run) -> dict[str, tuple[dict[str, Tensor], dict[str, Any], str]]:
    """Checkpoints that are written as any other, of what no run of this kind holds."""
    weight, count = "model.weight", "optim.0.step"
    moments, squares = run.tensors[3]["optim.0.exp_avg"], run.tensors[3]["optim.0.exp_avg_sq"]
    return {
        "dtype": ({weight: run.tensors[3][weight].double()}, {}, "model.weight: expected [5, 6] float32, got [5, 6]"),
        "shape": ({weight: run.tensors[3][weight].T.clone()}, {}, "model.weight: expected [5, 6] float32, got [6, 5]"),
        "one more": ({"model.more": torch.zeros(1)}, {}, "has unexpected model.more"),
        "NaN": ({weight: torch.full((5, 6), float("nan"))}, {}, "model.weight is not finite"),
        "infinite": ({"ema.bias": torch.tensor([0, 0, 0, 0, -float("inf")])}, {}, "ema.bias is not finite"),
        "of an older optimizer": ({count: torch.tensor(4.0)}, {}, "optim.0.step is 4, not a number of updates up to 3"),
        "half a step": ({count: torch.tensor(2.5)}, {}, "optim.0.step is 2.5"),
        "NaN steps": ({count: torch.tensor(float("nan"))}, {}, "optim.0.step is nan"),
        "moments": ({"optim.0.exp_avg": moments / 0}, {}, "optim.0.exp_avg is not finite"),
        "squares": ({"optim.0.exp_avg_sq": squares - 1e9}, {}, "optim.0.exp_avg_sq is not a mean of squares"),
        "squares NaN": ({"optim.0.exp_avg_sq": squares * float("nan")}, {}, "exp_avg_sq is not a mean of squares"),
        "betas": ({}, _group(run, betas=[0.9, 0.5]), "its optimizer's betas is [0.9, 0.5], expected [0.9, 0.999]"),
        "betas NaN": ({}, _group(run, betas=[float("nan"), 0.999]), "its optimizer's betas is [NaN, 0.999]"),
        "eps": ({}, _group(run, eps="small"), 'its optimizer\'s eps is "small", expected 1e-08'),
        "lr NaN": ({}, _group(run, lr=float("nan")), "its optimizer's lr is nan, not a learning rate"),
        "lr true": ({}, _group(run, lr=True), "its optimizer's lr is True, not a learning rate"),
        "params": ({}, _group(run, params={"0": 1}), "its optimizer is another one"),
        "groups": ({}, {"param_groups": {"0": 1}}, "its optimizer has no 1 param_groups"),
        "amsgrad": ({}, _group(run, amsgrad=1), "its optimizer's amsgrad is 1, expected false"),
    }


def test_forged_content_is_refused_by_name(run: Run):
    for kind, (tensors, state, message) in _forged_content(run).items():
        save_checkpoint(run.root, step=3, tensors=run.tensors[3] | tensors, state=run.state[3] | state, keep=9)
        found = run.load()
        assert found is not None and found.step == 2 and run.is_original(found), kind
        assert len(found.notes) == 1 and message in found.notes[0] and found.notes[0].isprintable(), (kind, found.notes)
        run.restore()
    for missing in ("model.bias", "ema.weight", "loss.values", "optim.1.exp_avg", "optim.0.step"):
        tensors = {name: tensor for name, tensor in run.tensors[3].items() if name != missing}
        save_checkpoint(run.root, step=3, tensors=tensors, state=run.state[3], keep=9)
        found = run.load()
        assert found is not None and found.step == 2 and f"lacks {missing}" in found.notes[0]
        run.restore()


@pytest.mark.parametrize("surprise", [OverflowError, KeyError, TypeError, AttributeError, RecursionError])
def test_a_check_that_did_not_expect_what_it_met_refuses_too(run: Run, surprise: type[Exception]):
    def check(found: Checkpoint) -> str | None:
        if found.step == 3:
            raise surprise("int too large")
        return None

    expected = {name: tensor for name, tensor in run.tensors[3].items() if not name.startswith("optim.")}
    found = load_newest(run.root, expected, check)
    assert found is not None and found.step == 2 and run.is_original(found)
    assert f"is passed over: its state cannot be read ({surprise.__name__}: " in found.notes[0]


class _Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def test_no_code_is_run(run: Run, tmp_path: Path):
    went_off = tmp_path / "went off"
    torch.save({"model.weight": _Bomb(went_off)}, tmp_path / "zip.pt")
    torch.save({"a": _Bomb(went_off)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    bombs = [pickle.dumps(_Bomb(went_off)), (tmp_path / "zip.pt").read_bytes(), (tmp_path / "old.pt").read_bytes()]
    # they are live
    torch.load(tmp_path / "zip.pt", weights_only=False)
    assert went_off.is_dir()
    went_off.rmdir()
    for bomb in bombs:
        for name in [*FILES, "data.pkl", "tensors.pt", "__init__.py"]:
            for sealed in (False, True):
                (run.folder(3) / name).write_bytes(bomb)
                if sealed:
                    _seal(run.folder(3))
                found = run.load()
                # a manifest that was sealed again is as it was, and files that no checkpoint has are not looked at
                strange = name in FILES[:2] or (name == "manifest.json" and not sealed)
                assert found is not None and found.step == (2 if strange else 3) and run.is_original(found)
                assert not went_off.exists()
                run.restore()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("truncated", "tensors.safetensors"),
        ("a pipe", "state.json"),
        *(
            pytest.param(*damage, marks=pytest.mark.slow)
            for damage in (
                ("bits flipped", "manifest.json"),
                ("zeroed", "state.json"),
                ("a loop of links", "tensors.safetensors"),
                ("a folder", "manifest.json"),
            )
        ),
    ],
)
def test_whole_commands_fall_back_or_refuse_in_one_line(
    run_copy: Path, kind: str, name: str, capsys: pytest.CaptureFixture[str]
):
    rng = random.Random(23)
    MUTATIONS[kind](run_copy / "checkpoints" / "step_00000006" / name, rng)
    assert main.run(tiny_command("eval", run_copy)) == 0
    assert f"step_00000006 is passed over: {name} " in capsys.readouterr().err
    assert json.loads((run_copy / "eval" / "report.json").read_text())["step"] == 3
    MUTATIONS[kind](run_copy / "checkpoints" / "step_00000003" / name, rng)
    for mode in ("train", "eval", "sample"):
        said = error(capsys, tiny_command(mode, run_copy))
        assert f"no checkpoint in {run_copy / 'checkpoints'} can be used: {name} " in said


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "a loop of links", "emptied", "nested", "a list", "not UTF-8"])
def test_a_damaged_config_of_a_run_is_one_line(run_copy: Path, kind: str, capsys: pytest.CaptureFixture[str]):
    path = run_copy / "config.json"
    contents = {"nested": NESTED, "a list": b"[1]", "not UTF-8": b"\xff{}"}
    if kind in contents:
        path.write_bytes(contents[kind])
    else:
        MUTATIONS[kind](path, random.Random(24))
    for mode in ("train", "eval"):
        said = error(capsys, tiny_command(mode, run_copy))
        assert str(path) in said and len(said) < 500
        assert kind == "a loop of links" or "config.json is damaged (" in said
