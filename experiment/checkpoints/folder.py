"""One checkpoint as a folder: safetensors, JSON and their checksums, complete or absent. Reading runs no code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load as load_tensors
from torch import Tensor

from runtime.files import make_folder, parse_json, read_regular, sync_folder, write_synced
from runtime.tensor_bytes import Content

_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
_WRITING, _DROPPED = ".writing_", ".dropped_"
_NAME = re.compile(r"step_[0-9]{1,15}")

# The manifest is the lengths and SHA-256 of the two files in this one form, so that each byte of it is checked.
_ENTRY = r'"{}": \{{\n  "bytes": (0|[1-9][0-9]{{0,15}}),\n  "sha256": "([0-9a-f]{{64}})"\n \}}'
_ENTRIES = ",\n ".join(_ENTRY.format(re.escape(name)) for name in (_TENSORS, _STATE))
_MANIFEST_FORM = re.compile(f"{{\n {_ENTRIES}\n}}")


def step_of(folder: Path) -> int:
    """The step that a checkpoint folder's name says."""
    return int(folder.name.removeprefix("step_"))


def checkpoint_folders(root: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def encode(step: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> dict[str, Content]:
    """The files of a checkpoint, by name, but for the manifest, which follows from them."""
    return {
        _TENSORS: Content(tensors),
        _STATE: Content(json.dumps({"step": step, **state}, indent=1).encode()),
    }


def _manifest(files: dict[str, Content]) -> bytes:
    sums = {name: {"bytes": content.size, "sha256": _sha256(content)} for name, content in files.items()}
    return json.dumps(sums, indent=1).encode()


def _sha256(content: Content) -> str:
    found = hashlib.sha256()
    for chunk in content:
        found.update(chunk)
    return found.hexdigest()


def _promised(folder: Path) -> list[tuple[str, int, str]]:
    """Name, length and SHA-256 of each file, as the manifest says."""
    form = _MANIFEST_FORM.fullmatch(read_regular(folder / _MANIFEST, most=4096).decode("latin-1"))
    if form is None:
        raise ValueError(f"{_MANIFEST} is damaged")
    one, other = form.groups()[:2], form.groups()[2:]
    return [(name, int(size), sha256) for name, (size, sha256) in ((_TENSORS, one), (_STATE, other))]


def _read_files(folder: Path) -> dict[str, bytes]:
    """The files' bytes, which match their checksums, or raise ValueError with what is wrong."""
    contents: dict[str, bytes] = {}
    try:
        for name, size, sha256 in _promised(folder):
            contents[name] = read_regular(folder / name, size=size)
            if hashlib.sha256(contents[name]).hexdigest() != sha256:
                raise ValueError(f"{name} does not match its checksum (it is corrupt, or of another checkpoint)")
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        problem = "is missing" if missing else f"cannot be read ({error.strerror})"
        raise ValueError(f"{Path(error.filename or folder).name} {problem}") from error
    return contents


def read_folder(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read one checkpoint: its tensors, and its state with the step.

    Raises:
        ValueError: With what is wrong with it.
    """
    contents = _read_files(folder)
    try:
        state = parse_json(contents[_STATE])
    except ValueError as error:
        raise ValueError(f"{_STATE} cannot be read ({error})") from error
    if type(state.get("step")) is not int or state["step"] != step_of(folder):
        raise ValueError(f"it is of step {state.get('step')!r} in {_STATE}, not of the step its name says")
    try:
        return load_tensors(contents[_TENSORS]), state
    except MemoryError:
        raise
    except Exception as error:
        # safetensors and torch raise many kinds
        raise ValueError(f"{_TENSORS} cannot be read ({type(error).__name__}: {error})") from error


def peek_state(folder: Path) -> dict[str, Any] | None:
    """A checkpoint's ``state.json``, without its tensors; None if it cannot be read or does not match its checksum."""
    try:
        _, (name, size, sha256) = _promised(folder)
        data = read_regular(folder / name, size=size)
        return parse_json(data) if hashlib.sha256(data).hexdigest() == sha256 else None
    except (OSError, ValueError):
        return None


def _is_this(folder: Path, manifest: bytes) -> bool:
    """Tell a folder that already holds just this: a checkpoint is not taken away to be written again."""
    try:
        _read_files(folder)
        return read_regular(folder / _MANIFEST, size=len(manifest)) == manifest
    except (OSError, ValueError):
        return False


def looks_whole(folder: Path) -> bool:
    """Compare the lengths of the files with the manifest's, which takes no reading of them."""
    try:
        return all((folder / name).stat().st_size == size for name, size, _ in _promised(folder))
    except (OSError, ValueError):
        return False


def _delete(path: Path) -> None:
    """Delete what may be in use elsewhere; what is left of it has a name that no reader looks at."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    """Take a checkpoint away under a name that no reader looks at, so that none is ever half there."""
    aside = folder.with_name(f"{_DROPPED}{folder.name}")
    _delete(aside)
    folder.rename(aside)
    # for a power cut only, and then its checksums tell; a full disk may refuse even this
    with contextlib.suppress(OSError):
        sync_folder(folder.parent)
    return aside


def drop_folder(folder: Path) -> None:
    """Delete a checkpoint.

    Raises:
        OSError: If it cannot be taken away.
    """
    _delete(_set_aside(folder))


def write_folder(root: Path, step: int, files: dict[str, Content]) -> Path:
    """Write one checkpoint: it is there in full, or nothing is. What a killed writer left behind is swept away.

    Args:
        root: The folder of checkpoints.
        step: Number of training steps done.
        files: What ``encode`` gave.

    Returns:
        The checkpoint's folder.
    """
    make_folder(root)
    for leftover in [*root.glob(f"{_WRITING}*"), *root.glob(f"{_DROPPED}*")]:
        _delete(leftover)
    final, temporary = root / f"step_{step:08d}", root / f"{_WRITING}{step:08d}"
    manifest = _manifest(files)
    if not _is_this(final, manifest):
        aside = None
        try:
            temporary.mkdir()
            for name, content in files.items():
                write_synced(temporary / name, content)
            write_synced(temporary / _MANIFEST, [manifest])
            sync_folder(temporary)
            aside = _set_aside(final) if final.exists() else None
            temporary.rename(final)
        except BaseException:
            if aside is not None and not final.exists():
                aside.rename(final)
            _delete(temporary)
            raise
        if aside is not None:
            _delete(aside)
    sync_folder(root)
    return final
