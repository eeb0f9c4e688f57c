"""Values, images and texts that lie beside samples and are no function of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class TableRows:
    """Rows of a table by number, as of texts that many samples share; an index gives a tensor.

    Args:
        table: [M, ...].
        rows: The row of each sample, int64 [N].
    """

    table: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, samples: slice | Tensor | Sequence[int]) -> Tensor:
        """The rows of some samples, by slice or index."""
        return self.table[self.rows[samples]]

    @property
    def shape(self) -> torch.Size:
        """That of all rows, which are not there as one tensor."""
        return torch.Size((len(self.rows), *self.table.shape[1:]))


Column = Tensor | TableRows


@dataclass(frozen=True)
class Beside:
    """Values, images and texts beside samples, an entry for each; those that they do not have are None or empty.

    Args:
        values: Floats [N, K]; see ``Dataset.values``.
        paired: Images, uint8 [N, c, H, W]; see ``Dataset.paired``.
        texts: Captions in numbers, by the names of a condition's fields: "words", int64 [N, L], or what a frozen
            encoder made of them, "tokens", "mask" and "pooled"; see ``Dataset.texts``.
        noise: The noise that each sample is coupled with, float [N, ...], in place of a draw; no network is told it.
    """

    values: Tensor | None = None
    paired: Tensor | None = None
    texts: Mapping[str, Column] = field(default_factory=dict)
    noise: Tensor | None = None

    def __getitem__(self, samples: slice | Tensor | Sequence[int]) -> Beside:
        """That of some samples, by slice or index, all in tensors."""
        return self.map(lambda one: one[samples])

    def map(self, function: Callable[[Any], Tensor]) -> Beside:
        """A function of each part."""
        single = {name: getattr(self, name) for name in ("values", "paired", "noise")}
        mapped = {name: None if one is None else function(one) for name, one in single.items()}
        return replace(self, **mapped, texts={name: function(one) for name, one in self.texts.items()})

    @property
    def empty(self) -> bool:
        """True if nothing lies beside the samples."""
        return self.values is None and self.paired is None and self.noise is None and not self.texts

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors that there are, in a fixed order."""
        texts = (self.texts[name] for name in sorted(self.texts))
        return tuple(
            one[:] if isinstance(one, TableRows) else one
            for one in (self.values, self.paired, self.noise, *texts)
            if one is not None
        )


NOTHING = Beside()
