"""Reading pickles from others without running their code."""

import io
import pickle
from typing import Any

import numpy as np

from ..errors import DataError


def _encode_latin1(text: str, encoding: str) -> bytes:
    # How Python 3 writes bytes in protocol 2; codecs.encode itself would reach every registered codec.
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin-1")


# Taken from an array, because the function's module has moved between NumPy releases.
_RECONSTRUCT = np.zeros(0).__reduce__()[0]

_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _ALLOWED[module_name, global_name]
        except KeyError:
            raise _ForbiddenGlobalError(f"{module_name}.{global_name}") from None


class _ForbiddenGlobalError(Exception):
    pass


def load_restricted(content: bytes, *, source: str) -> Any:
    """Unpickle plain containers, bytes, numbers and NumPy arrays, and refuse every other global.

    Args:
        content: The pickle; strings written by Python 2 come back as bytes.
        source: Name of the file, for messages.

    Returns:
        The unpickled object.

    Raises:
        DataError: If the pickle names a global that is not allowed (it is not imported, let alone called), or if it
            is truncated or corrupt.
    """
    try:
        return _RestrictedUnpickler(io.BytesIO(content), encoding="bytes").load()
    except _ForbiddenGlobalError as error:
        raise DataError(
            f"{source} is refused: its pickle asks for {error}, expected only NumPy arrays and plain containers; "
            "fetch the file from the official source"
        ) from None
    except Exception as error:  # a corrupt pickle can raise nearly anything
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{source} is truncated or corrupt ({reason}); fetch the file again") from error
