"""Images as an autoencoder's latents, which are encoded once and then trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from .base import Dataset, ImageDataset, ImageKind
from .beside import Column
from .errors import DataError
from .space import LatentSpace, ModelSpace, Space
from .words import Vocabulary


@dataclass(frozen=True, eq=False)
class LatentDataset(Dataset):
    """Latents of the images of one split, standardized: x0 as networks see it.

    Args:
        latents: Mean of each latent, float32 [N, c, h, w].
        labels: See ``ImageDataset``, as what follows; so are num_classes, name, split, class_names, split_source,
            other_split_size, notes, train_files, values, captions, vocabulary, encodings and text_encoder.
        latent_space: The space of these latents, whose ``num_pixel_levels`` are those of the images.
        image_shape: Shape of the images, (C, H, W).
        spread: Standard deviation of each number, float32, the shape of ``latents``; see ``Dataset``.

    Raises:
        DataError: If shapes contradict each other.
    """

    latents: Tensor
    labels: Tensor
    latent_space: LatentSpace
    image_shape: tuple[int, ...]
    num_classes: int
    name: str
    split: str
    spread: Tensor | None = None
    class_names: tuple[str, ...] = ()
    split_source: str = ""
    other_split_size: int | None = None
    notes: tuple[str, ...] = ()
    train_files: str = ""
    values: Tensor | None = None
    captions: tuple[str, ...] | None = None
    vocabulary: Vocabulary | None = None
    encodings: Mapping[str, Column] = field(default_factory=dict)
    text_encoder: str = ""
    samples_are: ClassVar[str] = "latents"

    def __post_init__(self) -> None:
        for what, one in (("latents", self.latents), ("spread", self.spread)):
            if one is not None and one.shape != (len(self.labels), *self.latent_space.latent_shape):
                expected = [len(self.labels), *self.latent_space.latent_shape]
                raise DataError(f"{self.name} {self.split}: {what} must be {expected}, got {list(one.shape)}")
        self._check_told("a latent")

    @classmethod
    def of(cls, images: ImageDataset, z: Tensor, spread: Tensor | None, space: LatentSpace) -> LatentDataset:
        """The latents of images, not yet standardized.

        Args:
            images: The images.
            z: Mean of each latent, [N, c, h, w].
            spread: Their standard deviations, or None for none.
            space: Their space.
        """
        stds = None if spread is None else replace(space, mean=(0.0,) * len(space.mean)).standardize(spread)
        return cls(
            space.standardize(z),
            images.labels,
            space,
            images.image_shape,
            images.num_classes,
            images.name,
            images.split,
            spread=stds,
            class_names=images.class_names,
            split_source=images.split_source,
            other_split_size=images.other_split_size,
            notes=images.notes,
            train_files=images.train_files,
            values=images.values,
            captions=images.captions,
            vocabulary=images.vocabulary,
            encodings=images.encodings,
            text_encoder=images.text_encoder,
        )

    @property
    def space(self) -> Space:  # pyright: ignore[reportIncompatibleVariableOverride]
        """x0 as it is, on the levels of codes."""
        return ModelSpace(self.latent_space.num_levels)

    @property
    def num_levels(self) -> int:
        """Number of grey levels of the images."""
        return self.latent_space.num_pixel_levels

    @property
    def kind(self) -> ImageKind:
        """The images without their pixels, labels and values, with the space of their latents."""
        return ImageKind(
            self.image_shape, self.num_levels, self.num_classes, self.class_names, self.num_values,
            latents=self.latent_space, text=self.text_kind,
        )  # fmt: skip
