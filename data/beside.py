"""Values, images and texts that lie beside samples and are no function of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor


@dataclass(frozen=True)
class Beside:
    """Values, images and texts beside samples, an entry for each; those that they do not have are None or empty.

    Args:
        values: Floats [N, K]; see ``Dataset.values``.
        paired: Images, uint8 [N, c, H, W]; see ``Dataset.paired``.
        texts: Captions in numbers, by the names of a condition's fields: "words", int64 [N, L], or what a frozen
            encoder made of them, "tokens", "mask" and "pooled"; see ``Dataset.texts``.
    """

    values: Tensor | None = None
    paired: Tensor | None = None
    texts: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, samples: slice | Tensor | Sequence[int]) -> Beside:
        """That of some samples, by slice or index."""
        return self.map(lambda one: one[samples])

    def map(self, function: Callable[[Tensor], Tensor]) -> Beside:
        """A function of each tensor."""
        values, paired = (None if one is None else function(one) for one in (self.values, self.paired))
        return replace(
            self, values=values, paired=paired, texts={name: function(one) for name, one in self.texts.items()}
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors that there are, in a fixed order."""
        given = (one for one in (self.values, self.paired) if one is not None)
        return (*given, *(self.texts[name] for name in sorted(self.texts)))


NOTHING = Beside()
