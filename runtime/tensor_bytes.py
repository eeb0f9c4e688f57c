"""Tensors as the bytes of a safetensors file, one tensor at a time: a checkpoint is never in memory a second time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

# the order in which safetensors lays tensors out, of which each begins at a multiple of its element's size
_DTYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = list(_DTYPES)


class Content:
    """The bytes of a file, made anew each time that they are iterated.

    ``safetensors.torch.save`` gives the same bytes, but holds all of them at once beside contiguous copies.

    Args:
        held: Bytes as they are, or tensors by name, which must not change meanwhile.

    Attributes:
        size: Number of bytes.
    """

    def __init__(self, held: bytes | Mapping[str, Tensor]) -> None:
        if isinstance(held, bytes):
            self._head, self._tensors = held, []
        else:
            in_order = sorted(held.items(), key=lambda item: (_ORDER.index(item[1].dtype), item[0].encode()))
            self._head, self._tensors = _header(in_order), [tensor for _, tensor in in_order]
        self.size = len(self._head) + sum(tensor.nbytes for tensor in self._tensors)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self._head
        for tensor in self._tensors:
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            yield flat.view(torch.uint8).numpy().data


def _header(tensors: Iterable[tuple[str, Tensor]]) -> bytes:
    entries: dict[str, dict[str, object]] = {}
    end = 0
    for name, tensor in tensors:
        begin, end = end, end + tensor.nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
