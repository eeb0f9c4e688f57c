"""Reading checkpoints of other projects as data alone, and loading their tensors with none left over."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from runtime.files import one_line

# The function that rebuilds a NumPy scalar, under both names that files give it. It makes a number and nothing else;
# training loops that compute a learning rate with NumPy leave one in the optimizer's state.
_SCALAR = np.float64(0.0).__reduce__()[0]
_ALLOWED = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    type(np.dtype(np.float64)),
    type(np.dtype(np.float32)),
    type(np.dtype(np.int64)),
]
_FORBIDDEN = re.compile(r"GLOBAL ([\w.]+)")
_CONVERT = (
    ", refused unread, since that could run code; "
    "where you trust the file, load it with its own project and torch.save the network's state_dict()"
)
_MOST_NAMES = 6
_COMPILED, _PARALLEL = "_orig_mod.", "module."


def read_checkpoint(path: Path) -> Any:
    """Read what a checkpoint holds, on the CPU, without running code from it.

    Files named ``.safetensors`` are read as that; all others by ``torch.load(weights_only=True)``, with the function
    that rebuilds NumPy scalars allowed by name: score_sde_pytorch's training loop leaves such a number in the
    optimizer's learning rate.

    Args:
        path: The file: ``.pt``, ``.pth``, ``.ckpt``, ``.bin``, or ``.safetensors``.

    Returns:
        What was saved: usually tensors by name, perhaps with more around them.

    Raises:
        ValueError: In one line: there is no such file, it is truncated or of another format, or its pickle asks for
            anything but tensors and plain containers, which is then neither imported nor called.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint {path} is no file; pass the path of the project's checkpoint")
    try:
        with path.open("rb") as file:
            head = file.read(2)
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read ({error.strerror or one_line(error, 200)})") from error
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device="cpu")
        _check_kind(path, head)
        with torch.serialization.safe_globals(_ALLOWED), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is raised, in one line
            return torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, _RefusedError):
        raise
    except SafetensorError as error:
        raise ValueError(
            f"checkpoint {path} is truncated or no safetensors file ({one_line(error, 200)}); fetch it again"
        ) from error
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(_why_refused(path, error)) from error


def is_pickle(path: Path) -> bool:
    """Tell a bare pickle of Python objects by its name or its first bytes."""
    if path.suffix in (".pkl", ".pickle") or not path.is_file():
        return path.is_file()
    with path.open("rb") as file:
        head = file.read(2)
    return head[:1] == b"\x80" and head[1:] > b"\x02"  # torch.save writes zip archives, and once wrote protocol 2


class _RefusedError(ValueError):
    """Already one line."""


def _check_kind(path: Path, head: bytes) -> None:
    if is_pickle(path):
        raise _RefusedError(f"checkpoint {path} is a pickle of Python objects{_CONVERT}")
    if head not in (b"PK", b"\x80\x02"):
        raise _RefusedError(f"checkpoint {path} is no file of torch.save; fetch it again, or check its name")


def _why_refused(path: Path, error: Exception) -> str:
    found = _FORBIDDEN.search(str(error))
    if found:
        return f"checkpoint {path} is a pickle that asks for {found[1]}{_CONVERT}"
    if "TorchScript" in str(error):
        return (
            f"checkpoint {path} is a TorchScript archive, which is code; torch.save the module's state_dict() instead"
        )
    return (
        f"checkpoint {path} is truncated or no file of torch.save ({type(error).__name__}: {one_line(error, 120)}); "
        "fetch it again"
    )


def as_tensors(value: Any, *, path: Path, what: str = "checkpoint") -> dict[str, Tensor]:
    """The same value, if it is tensors by name.

    Args:
        value: What should be a state dict.
        path: The file, for the message.
        what: What part of it this is, for the message.

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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a plain state dict: ``read_checkpoint`` for files that hold tensors by name and nothing else.

    Raises:
        ValueError: In one line: see ``read_checkpoint`` and ``as_tensors``.
    """
    return as_tensors(read_checkpoint(path), path=path)


def strip_prefix(tensors: Mapping[str, Tensor], *own: str) -> dict[str, Tensor]:
    """Drop what wrappers put before every name, in any order and as often as they did.

    These are ``_orig_mod.`` of ``torch.compile``, which may stand before parts of a name too, and ``module.`` of
    ``DataParallel`` and its kin.

    Args:
        tensors: Tensors by name.
        own: What the project itself puts there, such as EDM's ``model.``.

    Returns:
        The tensors; a prefix that one of the names lacks is left.
    """
    stripped = {name.replace(_COMPILED, ""): tensor for name, tensor in tensors.items()}
    if len(stripped) < len(tensors):
        # two of one name: neither is known to be the network's
        return dict(tensors)
    prefixes = (_PARALLEL, *own)
    while prefix := next((p for p in prefixes if stripped and all(name.startswith(p) for name in stripped)), None):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], *, path: Path) -> None:
    """Load tensors into a module that has exactly these, in these shapes; they take the module's dtypes.

    Args:
        module: The module, changed in place; unchanged where this raises.
        tensors: Under the module's own names.
        path: The file they are from, for the message.

    Raises:
        ValueError: In one line that lists tensors that are missing, unexpected, or of another shape or kind.
    """
    expected = module.state_dict()
    problems = list_problems(expected, tensors)
    if problems:
        raise ValueError(f"checkpoint {path} does not fit the network: {problems}; check the source and the settings")
    module.load_state_dict(dict(tensors))


def list_problems(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """List the differences of tensors from the names, shapes and kinds of ``expected``; "" if there are none."""
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    shared = [name for name in expected if name in tensors]
    misshapen = [
        f"{name} is {list(tensors[name].shape)}, expected {list(expected[name].shape)}"
        for name in shared
        if tensors[name].shape != expected[name].shape
    ]
    not_floats = [
        f"{name} is {tensors[name].dtype}, expected {expected[name].dtype}"
        for name in shared
        if tensors[name].is_floating_point() != expected[name].is_floating_point()
    ]
    lists = [
        ("missing", missing),
        ("unexpected", unexpected),
        ("misshapen", misshapen),
        ("of a wrong type", not_floats),
    ]
    return "; ".join(f"{len(names)} {what} ({_some(names)})" for what, names in lists if names)


def _some(names: Iterable[str]) -> str:
    names = [one_line(name, 80) for name in names]
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")
