"""Checkpoints of other projects read as data alone, and what is wrong with their tensors."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from runtime.files import one_line


class _NamedOnly:
    """Stands for a class that a file names and makes no object of."""


# The function that rebuilds a NumPy scalar, under both names that files give it. It makes a number and nothing else;
# training loops that compute a learning rate with NumPy leave one in the optimizer's state. And the class under which
# PyTorch Lightning kept the state of its checkpoints until version 1.5, as in the files of Stable Diffusion 1. And that
# of the flags that DiT's and SiT's trainings keep beside the weights.
_SCALAR = np.float64(0.0).__reduce__()[0]
_ALLOWED = [
    (_NamedOnly, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (_NamedOnly, "argparse.Namespace"),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(np.dtype, *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64))),
]
_FORBIDDEN = re.compile(r"GLOBAL ([\w.]+)")
_CONVERT = "load it with its own project and torch.save the network's state_dict()"
_MOST_NAMES = 6


def read_checkpoint(path: Path, *, convert: str = _CONVERT) -> Any:
    """Read what a checkpoint holds, on the CPU, without running code from it.

    Files named ``.safetensors`` are read as that; all others by ``torch.load(weights_only=True)``, with the function
    that rebuilds NumPy scalars allowed by name: score_sde_pytorch's training loop leaves such a number in the
    optimizer's learning rate. The names of PyTorch Lightning's class of checkpoints and of argparse's flags are allowed
    too, for an empty class.

    Args:
        path: The file: ``.pt``, ``.pth``, ``.ckpt``, ``.bin``, or ``.safetensors``.
        convert: The way to make a file without code of one that has it, for the message.

    Returns:
        What was saved: usually tensors by name, perhaps with more around them.

    Raises:
        ValueError: In one line: there is no such file, it is truncated or of another format, or its pickle asks for
            anything but tensors and plain containers, which is then neither imported nor called.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint {path} is no file; pass the path of the project's checkpoint")
    refused = f", refused unread, since that could run code; where you trust the file, {convert}"
    is_safe = path.suffix == ".safetensors"
    try:
        with path.open("rb") as file:
            head = file.read(2)
        if is_safe:
            return load_file(path, device="cpu")
        # torch.save writes zip archives, and once wrote pickles of protocol 2
        if head in (b"PK", b"\x80\x02") and path.suffix not in (".pkl", ".pickle"):
            with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what is wrong is raised, in one line
                return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except PermissionError as error:
        raise ValueError(f"checkpoint {path} cannot be read ({error.strerror}); see to its permissions") from error
    except Exception as error:  # a damaged file can raise nearly anything
        found = _FORBIDDEN.search(str(error))
        if found:
            reason = f"is a pickle that asks for {found[1]}{refused}"
        elif "TorchScript" in str(error):
            reason = "is a TorchScript archive, which is code; torch.save the module's state_dict() instead"
        else:
            kind = "safetensors file" if is_safe else "file of torch.save"
            reason = f"is truncated or no {kind} ({type(error).__name__}: {one_line(error, 200)}); fetch it again"
        raise ValueError(f"checkpoint {path} {reason}") from error
    if head[:1] == b"\x80" or path.suffix in (".pkl", ".pickle"):
        raise ValueError(f"checkpoint {path} is a pickle of Python objects{refused}")
    raise ValueError(f"checkpoint {path} is no file of torch.save; fetch it again, or check its name")


def as_tensors(value: Any, *, path: Path, what: str = "checkpoint") -> dict[str, Tensor]:
    """The same value, if it is tensors by name.

    Args:
        value: What should be a state dict.
        path: The file, for the message.
        what: What this is, for the message.

    Raises:
        ValueError: If it is something else, or empty.
    """
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"{what} {path} must be a state dict of tensors, got {type(value).__name__} of "
            f"{len(value) if isinstance(value, Mapping | list | tuple) else 'unknown'} entries; "
            "torch.save the network's state_dict()"
        )
    wrong = [str(name) for name, tensor in value.items() if not (isinstance(name, str) and isinstance(tensor, Tensor))]
    if wrong:
        raise ValueError(
            f"{what} {path} must be a state dict of tensors alone, got others under {_some(wrong)}; "
            "is it of another project? check the source"
        )
    sparse = [name for name, tensor in value.items() if tensor.layout is not torch.strided or tensor.is_quantized]
    if sparse:
        raise ValueError(f"{what} {path} has sparse or quantized tensors ({_some(sparse)}); save them dense, in floats")
    return dict(value)


def read_tensors(path: Path, *own: str, convert: str = _CONVERT) -> dict[str, Tensor]:
    """Read a plain state dict: tensors by name and nothing else, without the prefixes of wrappers.

    Args:
        path: The file; see ``read_checkpoint``.
        own: Prefixes of the project; see ``strip_prefix``.
        convert: See ``read_checkpoint``.

    Raises:
        ValueError: In one line: see ``read_checkpoint`` and ``as_tensors``.
    """
    return strip_prefix(as_tensors(read_checkpoint(path, convert=convert), path=path), *own)


def check_project(tensors: Mapping[str, Tensor], name: str, project: str, *, path: Path) -> None:
    """Refuse the tensors of another project.

    Args:
        tensors: Those of a checkpoint.
        name: A tensor that all networks of the project have.
        project: The project, for the message.
        path: The file, for the message.

    Raises:
        ValueError: If the tensor is not there.
    """
    if name not in tensors:
        raise ValueError(
            f"checkpoint {path} is of another project than {project}: it has no {name}, but "
            f"{next(iter(tensors))}; check the source"
        )


def notes_on_types(tensors: Mapping[str, Tensor], *, path: Path) -> tuple[str, ...]:
    """A line on tensors of a checkpoint that are rounded to less than float32, if there are any.

    Args:
        tensors: Those of the checkpoint.
        path: The file they are from.
    """
    kinds = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.is_floating_point()}
    if kinds <= {"float32"}:
        return ()
    return (f"{path} has weights in {', '.join(sorted(kinds))}, which are taken as float32",)


def strip_prefix(tensors: Mapping[str, Tensor], *own: str) -> dict[str, Tensor]:
    """Drop what wrappers put before every name, in any order and as often as they did.

    These are ``_orig_mod.`` of ``torch.compile``, which may stand before parts of a name too, and ``module.`` of
    ``DataParallel`` and its kin.

    Args:
        tensors: Tensors by name.
        own: What the project itself puts there, such as EDM's ``model.``.

    Returns:
        The tensors; a prefix that one of the names lacks is left.

    Raises:
        ValueError: If a name is there with and without ``_orig_mod.``.
    """
    stripped: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = name.replace("_orig_mod.", "")
        if bare in stripped:
            raise ValueError(f"the checkpoint has two tensors {bare}, with and without '_orig_mod.'; save one of them")
        stripped[bare] = tensor
    prefixes = ("module.", *own)
    while prefix := next((p for p in prefixes if stripped and all(name.startswith(p) for name in stripped)), None):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped


def check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], *, path: Path) -> None:
    """Refuse tensors of other names, shapes or kinds than those that a network needs.

    Args:
        expected: Tensors of the right names, shapes and kinds.
        tensors: Those of a checkpoint.
        path: The file they are from, for the message.

    Raises:
        ValueError: In one line that lists what is missing, unexpected, or of another shape or kind.
    """
    pairs = {name: (tensors[name], expected[name]) for name in expected if name in tensors}
    lists = {
        "missing": [name for name in expected if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "misshapen": [
            f"{name} is {list(found.shape)}, expected {list(like.shape)}"
            for name, (found, like) in pairs.items()
            if found.shape != like.shape
        ],
        "of a wrong type": [
            f"{name} is {found.dtype}, expected {like.dtype}"
            for name, (found, like) in pairs.items()
            if found.is_floating_point() != like.is_floating_point()
        ],
    }
    problems = "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in lists.items() if names)
    if problems:
        raise ValueError(f"checkpoint {path} does not fit the network: {problems}; check the source and the settings")


def _some(names: Iterable[str]) -> str:
    names = [one_line(name, 80) for name in names]
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
