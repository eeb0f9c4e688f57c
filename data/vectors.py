"""Real vectors as one float64 tensor, one label tensor, and the space that networks see them in."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Dataset, ImageDataset, ImageKind, check_split
from .errors import DataError
from .latents import LatentDataset
from .space import RealSpace
from .words import TextKind


@dataclass(frozen=True)
class VectorKind:
    """Vectors without their values: all that a network, its samples and its checkpoints need to know of a data set.

    Args:
        image_shape: (D,), by the name that the shape has for images.
        space: What networks see of them.
        num_classes: Number of classes, at least 1.
        class_names: Name of each class, in the order of the labels; empty where they are not known.
        num_values: Number of values that each vector has beside its numbers and class; see ``Dataset.values``.
        text: Their captions, as a model of them is told these; None where it is told none.
    """

    image_shape: tuple[int]
    space: RealSpace
    num_classes: int = 1
    class_names: tuple[str, ...] = ()
    num_values: int = 0
    text: TextKind | None = None
    num_levels: ClassVar[None] = None
    seen_levels: ClassVar[None] = None
    of_pixels: ClassVar[bool] = False

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one x0."""
        return self.image_shape


@dataclass(frozen=True, eq=False)
class VectorDataset(Dataset):
    """Vectors of one split, whole and in memory.

    Args:
        vectors: float64 [N, D], finite.
        labels: int64 [N], every value in 0 .. ``num_classes`` - 1; all zero where the source has no labels.
        space: What networks see of them; both splits of a dataset have the same, that of the train split.
        num_classes: Number of classes, the same for both splits of a dataset.
        name: Name of the dataset, as given to ``load_dataset``.
        split: ``"train"`` or ``"test"``.
        class_names: Name of each class, in the order of their numbers; empty where the source names none.
        split_source: Origin of the two splits in a few words; empty if unknown.
        notes: Lines that a user should read once.
        other_split_size: Number of vectors of the other split, where it is known.
        values: See ``Dataset``.

    Raises:
        DataError: If shapes, dtypes or values contradict the above, or if there is no vector.
    """

    vectors: Tensor
    labels: Tensor
    space: RealSpace  # pyright: ignore[reportIncompatibleVariableOverride]
    num_classes: int
    name: str
    split: str
    class_names: tuple[str, ...] = ()
    split_source: str = ""
    notes: tuple[str, ...] = ()
    other_split_size: int | None = None
    values: Tensor | None = None
    samples_are: ClassVar[str] = "vectors"
    num_levels: ClassVar[None] = None

    def __post_init__(self) -> None:
        where = f"{self.name} {self.split}"
        check_split(self.split)
        if self.vectors.dtype != torch.float64 or self.vectors.ndim != 2 or self.vectors.numel() == 0:
            got = f"{self.vectors.dtype} {list(self.vectors.shape)}"
            raise DataError(f"{where}: vectors must be torch.float64 [N, D], got {got}; convert them first")
        bad = int((~torch.isfinite(self.vectors)).any(1).sum())
        if bad:
            raise DataError(f"{where}: {bad} of {len(self.vectors)} vectors are not finite; leave them out")
        if len(self.space.mean) != self.vectors.shape[1]:
            raise DataError(
                f"{where}: vectors have {self.vectors.shape[1]} dimensions, but those that they are standardized by "
                f"{len(self.space.mean)}; give both splits one shape"
            )
        self._check_told("a vector")

    @property
    def image_shape(self) -> tuple[int]:
        """(D,): the shape of one vector, by the name that it has for images."""
        return (self.vectors.shape[1],)

    @property
    def kind(self) -> VectorKind:
        """The data set without its vectors, labels and values."""
        return VectorKind(self.image_shape, self.space, self.num_classes, self.class_names, self.num_values)


AnyKind = ImageKind | VectorKind
AnyDataset = ImageDataset | VectorDataset | LatentDataset
