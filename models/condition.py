"""Condition: everything that a model is told of each sample besides x_t and t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Samples = slice | Tensor | Sequence[int]


@dataclass(frozen=True, eq=False)
class Condition:
    """The condition of a batch; a field that is None is not given, and all others have one entry a sample.

    A plain int64 tensor of labels means ``Condition(label=...)`` wherever a condition is taken.

    Args:
        label: Class, int64 [B]; -1 is no class.
        image: An image beside x_t, such as one of low resolution, [B, C, H, W], or beside a clip the frames before it,
            [B, C, f, H, W]; NaN throughout is no image.
        image_log_snr: log-SNR of the noise that the image has, [B]; None where it is clean.
        values: Real numbers, [B, K]; NaN is no value.
        words: Numbers of words, for a network that learns what they mean, int64 [B, L]; 0 is no word, and a row of
            zeros is no text.
        tokens: Embedded text or other sequences, [B, L, F].
        mask: True where a token is one, bool [B, L]; all False is no text. Needs ``tokens``.
        pooled: One vector of a text or an image, [B, F]; NaN throughout is none.
        measurement: Numbers A x0 + noise that were measured of each sample, [B, ...], for models of the posterior; see
            ``ObservedScoreModel``.

    Raises:
        ValueError: If no field is given, a type is wrong, or the fields are not of one batch.

    Example:
        >>> model(x_t, t, cond=Condition(label=torch.tensor([3, 7])))
    """

    label: Int64[Tensor, " batch"] | None = None
    image: Float[Tensor, "batch channels *space"] | None = None
    image_log_snr: Float[Tensor, " batch"] | None = None
    values: Float[Tensor, "batch numbers"] | None = None
    words: Int64[Tensor, "batch words"] | None = None
    tokens: Float[Tensor, "batch length features"] | None = None
    mask: Bool[Tensor, "batch length"] | None = None
    pooled: Float[Tensor, "batch features"] | None = None
    measurement: Float[Tensor, "batch *observed"] | None = None

    def __post_init__(self) -> None:
        given = self.given
        if not given:
            raise ValueError("a condition needs a field, got none; pass label=..., or cond=None for no condition")
        for name, value in given.items():
            ndim = _NDIM.get(name)
            if ndim and value.ndim != ndim and not (name == "image" and value.ndim == _CLIP):
                raise ValueError(f"condition {name} must have {ndim} dimensions, got {list(value.shape)}; reshape it")
            kind = {"label": "int64", "words": "int64", "mask": "bool"}.get(name, "float")
            if kind != ("float" if value.is_floating_point() else str(value.dtype).removeprefix("torch.")):
                raise ValueError(f"condition {name} must be {kind}, got {value.dtype}; convert it")
        sizes = {name: len(value) for name, value in given.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the fields of a condition must be of one batch, got {sizes}; give each sample one entry")
        if (self.mask is not None) and (self.tokens is None or self.mask.shape != self.tokens.shape[:2]):
            tokens = None if self.tokens is None else list(self.tokens.shape[:2])
            raise ValueError(f"condition mask must be [B, L] as tokens are, got {list(self.mask.shape)} and {tokens}")

    @property
    def given(self) -> dict[str, Tensor]:
        """The fields that are not None, by name."""
        pairs = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in pairs if value is not None}

    def __len__(self) -> int:
        """Number of samples."""
        return len(next(iter(self.given.values())))

    def __getitem__(self, samples: Samples) -> Condition:
        """The condition of some samples, by slice or index."""
        return Condition(**{name: value[samples] for name, value in self.given.items()})

    def to(self, device: torch.device | str) -> Condition:
        """The same on a device."""
        return Condition(**{name: value.to(device) for name, value in self.given.items()})

    def without(self, samples: Bool[Tensor, " batch"] | None = None, *, part: str | None = None) -> Condition:
        """The null condition of the same fields: label -1, no word, no token, and NaN for images, values and pooled.

        ``image_log_snr`` stays, and so does the shape of each field.

        Args:
            samples: True for those that it is of, [B]; the others keep their condition. None for all.
            part: One of ``PARTS``, whose fields alone are left out; None for all.
        """
        given = self.given
        if self.tokens is not None and self.mask is None:
            given["mask"] = torch.ones(self.tokens.shape[:2], dtype=torch.bool, device=self.tokens.device)
        of = torch.ones(len(self), dtype=torch.bool) if samples is None else samples
        nulls = {
            name: value.masked_fill(of.to(value.device).view(-1, *[1] * (value.ndim - 1)), _NULL[name])
            for name, value in given.items()
            if name in (_NULL if part is None else PARTS[part])
        }
        return Condition(**given | nulls)

    @staticmethod
    def cat(conditions: Sequence[Condition]) -> Condition:
        """The conditions of several batches as one; all must have the same fields."""
        names = [sorted(one.given) for one in conditions]
        if any(one != names[0] for one in names):
            raise ValueError(f"conditions must have the same fields, got {names}; give each the same ones")
        return Condition(**{name: torch.cat([one.given[name] for one in conditions]) for name in names[0]})


_NDIM = {"label": 1, "image": 4, "image_log_snr": 1, "values": 2, "words": 2, "tokens": 3, "mask": 2, "pooled": 2}
_CLIP = 5  # of an image that is a clip
# a measurement has the dimensions that its operator gives it
_NAN = float("nan")
_NULL = {"label": -1, "image": _NAN, "values": _NAN, "words": 0, "mask": False, "pooled": _NAN}
# what may be left out by itself, and the fields that tell it
PARTS = {"class": ("label",), "image": ("image",), "values": ("values",), "text": ("words", "mask", "pooled")}

# what is taken wherever a condition is: a plain tensor is the labels
Cond = Condition | Tensor


def told_fields(cond: Cond | None) -> dict[str, Tensor]:
    """The fields of a condition by the names of a backbone's arguments: the label is ``cond``."""
    if cond is None:
        return {}
    given = cond.given if isinstance(cond, Condition) else {"label": cond}
    return {"cond" if name == "label" else name: value for name, value in given.items()}


def null_of(cond: Cond, samples: Bool[Tensor, " batch"] | None = None, *, part: str | None = None) -> Cond:
    """The null condition of the same kind: see ``Condition.without``; of plain labels, labels of -1."""
    if isinstance(cond, Condition):
        return cond.without(samples, part=part)
    return torch.full_like(cond, -1) if samples is None else cond.masked_fill(samples, -1)


def label_of(cond: Cond | None) -> Tensor | None:
    """The labels of a condition, for a model that is told nothing else; None without a condition.

    Raises:
        ValueError: If the condition says more.
    """
    if not isinstance(cond, Condition):
        return cond
    others = sorted(cond.given.keys() - {"label"})
    if others:
        raise ValueError(f"this model is told labels alone, got a condition of {', '.join(others)}; leave these out")
    return cond.label
