"""Images as one uint8 tensor, one label tensor, and their kind; and what all data sets share."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from .beside import Beside, Column
from .errors import DataError
from .space import LatentSpace, LevelSpace, Space
from .words import TextKind, Vocabulary, longest

SPLITS = ("train", "test")
DIGITS = tuple("0123456789")  # names of the classes of images of digits
ONE_IN_TEN = "one in ten held out, by a fixed permutation"  # what fixed_split does by default
_BESIDE = ("labels", "values", "paired", "masks", "spread", "captions", "sample_names")  # fields with a row a sample

T = TypeVar("T", bound="Dataset")


class Dataset:
    """Samples of one split, whole and in memory, in their fixed order: images, vectors or a plain tensor.

    Attributes:
        labels: int64 [N].
        num_classes: Number of classes.
        name: Name of the dataset.
        split: ``"train"`` or ``"test"``.
        class_names: Name of each class, in the order of their numbers; empty where the source names none.
        space: What networks see of the samples.
        values: Values that each sample has beside its pixels and class, such as an angle, float32 [N, K], finite. They
            should be of order 1, since networks are told them as they are. None without.
        paired: Image that lies beside each sample and is no function of it, grey levels, uint8 [N, c, H, W]. None
            without.
        captions: Caption of each sample, N texts; None without.
        vocabulary: The words that captions are told in; None for those of these captions themselves.
        encodings: What a frozen encoder made of the captions, in place of words: "tokens" [N, L, F], "mask" [N, L] and
            perhaps "pooled" [N, F].
        text_encoder: Digest of that encoder.
        spread: Standard deviation of each number of a sample, which is drawn anew each time; None of samples that are
            what they are.
        train_files: Digest of the names of the train split's files; empty where adding a file cannot move others
            between the splits.
    """

    labels: Tensor
    values: Tensor | None = None
    paired: Tensor | None = None
    spread: Tensor | None = None
    captions: tuple[str, ...] | None = None
    vocabulary: Vocabulary | None = None
    encodings: Mapping[str, Column] = MappingProxyType({})
    text_encoder: str = ""
    space: Space
    num_classes: int
    name: str
    split: str
    class_names: tuple[str, ...]
    train_files: str = ""
    samples_are: ClassVar[str]  # "images" or "vectors", the field that holds them

    @property
    def stored(self) -> Tensor:
        """The samples as the source has them, [N, ...]."""
        return getattr(self, self.samples_are)

    @property
    def num_dims(self) -> int:
        """Dimensions of one sample: what bits/dim divides by."""
        return self.stored[0].numel()

    @property
    def num_values(self) -> int:
        """K of ``values``; 0 without."""
        return 0 if self.values is None else self.values.shape[1]

    @cached_property
    def texts(self) -> Mapping[str, Column]:
        """The captions in numbers, by the names of a condition's fields; empty without.

        "words", int64 [N, words of the longest], without those that the vocabulary does not have; or ``encodings``.
        """
        if self.captions is None or self.encodings:
            return self.encodings
        known = self.vocabulary or Vocabulary.of(self.captions)
        return {"words": known.numbers(self.captions, max(1, longest(self.captions)))}

    @property
    def text_kind(self) -> TextKind | None:
        """The captions, as a network needs to know them; None without."""
        if self.captions is None:
            return None
        if self.encodings:
            pooled = self.encodings.get("pooled")
            features = (self.encodings["tokens"].shape[2], 0 if pooled is None else pooled.shape[1])
            return TextKind((), self.text_encoder, *features)
        return TextKind((self.vocabulary or Vocabulary.of(self.captions)).words)

    @property
    def captions_digest(self) -> str:
        """Digest of all captions in their order, so that a run sees that it goes on with others; empty without."""
        return "" if self.captions is None else hashlib.sha256("\n".join(self.captions).encode()).hexdigest()

    @property
    def beside(self) -> Beside:
        """Values, images and texts beside the samples."""
        return Beside(self.values, self.paired, self.texts)

    def __len__(self) -> int:
        return len(self.stored)

    def subset(self: T, num_images: int) -> T:
        """Return the first ``num_images`` samples, without copying them.

        Args:
            num_images: 1 .. ``len(self)``.

        Returns:
            A dataset that is otherwise the same.

        Raises:
            DataError: If ``num_images`` is out of range.
        """
        if not 1 <= num_images <= len(self):
            raise DataError(
                f"num_images must be 1 .. {len(self)}, the size of the {self.name} {self.split} split, "
                f"got {num_images}; ask for fewer images"
            )
        every = {self.samples_are: self.stored} | {name: getattr(self, name, None) for name in _BESIDE}
        cut = {name: one[:num_images] for name, one in every.items() if one is not None}
        encodings = {name: one[:num_images] for name, one in self.encodings.items()}
        return self._replace(**cut, **({"encodings": encodings} if encodings else {}))

    def with_words(self: T, words: Sequence[str]) -> T:
        """Tell captions in a given vocabulary, such as that of a model that was trained before."""
        return self._replace(vocabulary=Vocabulary(tuple(words)))

    def with_class_order(self: T, class_names: Sequence[str]) -> T:
        """Number the classes in another order, such as that of a model that was trained before.

        Args:
            class_names: The names of ``self.class_names``, in the order of their new numbers.

        Returns:
            The same samples, with the labels that go with the new numbers.

        Raises:
            DataError: If they are not the same names.
        """
        if sorted(class_names) != sorted(self.class_names):
            raise DataError(
                f"{self.name} has the classes {', '.join(self.class_names) or '(unnamed)'}, "
                f"expected {', '.join(class_names)}; use the data that has them"
            )
        if tuple(class_names) == self.class_names:
            return self
        new_numbers = torch.tensor([class_names.index(name) for name in self.class_names])
        return self._replace(labels=new_numbers[self.labels], class_names=tuple(class_names))

    def _replace(self: T, **changes: Any) -> T:
        return replace(self, **changes)  # pyright: ignore[reportArgumentType]

    def _check_told(self, what: str) -> None:
        """Refuse labels and names of classes that contradict each other, and values that are none."""
        where = f"{self.name} {self.split}"
        if self.labels.dtype != torch.int64 or self.labels.shape != self.stored.shape[:1]:
            got = f"{self.labels.dtype} {list(self.labels.shape)}"
            raise DataError(f"{where}: labels must be torch.int64 [{len(self)}], got {got}; give one label {what}")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.num_classes:
            got = low if low < 0 else high
            raise DataError(
                f"{where}: labels must be 0 .. {self.num_classes - 1}, got {got}; correct the labels or num_classes"
            )
        names = self.class_names
        if names and not len(names) == len(set(names)) == self.num_classes:
            raise DataError(
                f"{where}: class_names must be {self.num_classes} different names, one a class, "
                f"got {', '.join(names)}; correct them or num_classes"
            )
        if self.captions is not None and len(self.captions) != len(self):
            raise DataError(f"{where}: captions must be {len(self)}, got {len(self.captions)}; give one caption {what}")
        values = self.values
        if values is None:
            return
        if values.dtype != torch.float32 or values.ndim != 2 or len(values) != len(self) or not values.shape[1]:
            got = f"{values.dtype} {list(values.shape)}"
            raise DataError(f"{where}: values must be torch.float32 [{len(self)}, K], got {got}; give one row {what}")
        bad = int((~torch.isfinite(values)).any(1).sum())
        if bad:
            raise DataError(f"{where}: the values of {bad} of {len(self)} samples are not finite; leave them out")


@dataclass(frozen=True)
class ImageKind:
    """Images without their pixels: all that a network, its samples and its checkpoints need to know of a data set.

    Args:
        image_shape: (C, H, W) of one image, (C, F, H, W) of a clip of F frames.
        num_levels: Number of grey levels, 2 .. 256.
        num_classes: Number of classes, at least 1.
        class_names: Name of each class, in the order of the labels; empty where they are not known.
        num_values: Number of values that each image has beside its pixels and class; see ``Dataset.values``.
        paired_channels: Channels of the image that lies beside each, of the same height and width; 0 without. See
            ``Dataset.paired``.
        paired_levels: Its number of grey levels; 0 without.
        paired_frames: Its number of frames, where it is a clip that lies beside a clip; 0 of others.
        latents: The space of their latents, where networks see those in place of pixels.
        text: Their captions; None without.
    """

    image_shape: tuple[int, ...]
    num_levels: int
    num_classes: int = 1
    class_names: tuple[str, ...] = ()
    num_values: int = 0
    paired_channels: int = 0
    paired_levels: int = 0
    latents: LatentSpace | None = None
    text: TextKind | None = None
    paired_frames: int = 0

    @property
    def of_clips(self) -> bool:
        """True of clips, whose frames are images."""
        return self.num_frames > 0

    @property
    def num_frames(self) -> int:
        """Frames of a clip; 0 of images."""
        return self.image_shape[1] if len(self.image_shape) == 4 else 0

    @property
    def space(self) -> LevelSpace | LatentSpace:
        """The space of x0: levels in [-1, 1], or latents."""
        return LevelSpace(self.num_levels) if self.latents is None else self.latents

    @property
    def picture_space(self) -> LevelSpace | LatentSpace:
        """The space in which x0 is shown: all 256 greys, also between levels; of latents, what their decoder makes."""
        return LevelSpace(256) if self.latents is None else self.latents

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """The shape of one x0."""
        return self.image_shape if self.latents is None else self.latents.latent_shape

    @property
    def of_pixels(self) -> bool:
        """True if networks see pixels, and no latents."""
        return self.latents is None

    @property
    def seen_levels(self) -> int | None:
        """Number of levels that x0 lies on; None of latents other than codes."""
        return self.space.num_levels


@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset):
    """Images of one split, whole and in memory.

    Args:
        images: uint8 [N, C, H, W], every value in 0 .. ``num_levels`` - 1.
        labels: int64 [N], every value in 0 .. ``num_classes`` - 1; all zero where the source has no labels.
        num_levels: Number of grey levels, 2 .. 256; bits/dim integrates the density over bins of this many levels.
        num_classes: Number of classes, the same for both splits of a dataset.
        name: Name of the dataset, as given to ``load_dataset``.
        split: ``"train"`` or ``"test"``.
        class_names: Name of each class, in the order of their numbers; empty where the source names none.
        split_source: Origin of the two splits in a few words, such as ``"official split"``; empty if unknown.
        other_split_size: Number of images of the other split, where it is known without loading them.
        notes: Lines that a user should read once, such as what was left out.
        train_files: See ``Dataset``.
        values: See ``Dataset``.
        paired: See ``Dataset``; of the height and width of the images.
        paired_levels: Number of grey levels of those.
        masks: True masks of what is in each image, by A annotators, bool [N, A, H, W]: networks are not told them.
        captions: See ``Dataset``, as what follows.
        vocabulary: The words that captions are told in.
        encodings: What a frozen encoder made of them.
        text_encoder: Its digest.
        sample_names: Name of each image, by which files of captions tell it; empty where they have none.

    Raises:
        DataError: If shapes, dtypes or values contradict the above, or if there is no image.
    """

    images: Tensor
    labels: Tensor
    num_levels: int
    num_classes: int
    name: str
    split: str
    class_names: tuple[str, ...] = ()
    split_source: str = ""
    other_split_size: int | None = None
    notes: tuple[str, ...] = ()
    train_files: str = ""
    values: Tensor | None = None
    paired: Tensor | None = None
    paired_levels: int = 256
    masks: Tensor | None = None
    captions: tuple[str, ...] | None = None
    vocabulary: Vocabulary | None = None
    encodings: Mapping[str, Column] = field(default_factory=dict)
    text_encoder: str = ""
    sample_names: tuple[str, ...] = ()
    samples_are: ClassVar[str] = "images"
    layout: ClassVar[str] = "[N, C, H, W]"

    def __post_init__(self) -> None:
        where = f"{self.name} {self.split}"
        check_split(self.split)
        _check_levels(where, "images", self.images, self.num_levels, self.layout)
        self._check_told("an image")
        if self.paired is not None:
            _check_levels(where, "paired images", self.paired, self.paired_levels, self.layout)
            self._check_size(self.paired, "paired images", self.layout.replace("C", "c").replace("F", "f"))
        if self.masks is not None:
            if self.layout != "[N, C, H, W]":
                raise DataError(f"{where}: masks are of images, got clips; leave them out")
            if self.masks.dtype != torch.bool:
                raise DataError(f"{where}: masks must be torch.bool, got {self.masks.dtype}; compare them with a level")
            self._check_size(self.masks, "masks", "[N, A, H, W]")

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image."""
        return tuple(self.images.shape[1:])

    @property
    def kind(self) -> ImageKind:
        """The data set without its pixels, labels and values."""
        paired = (0, 0) if self.paired is None else (self.paired.shape[1], self.paired_levels)
        return ImageKind(
            self.image_shape, self.num_levels, self.num_classes, self.class_names, self.num_values, *paired,
            text=self.text_kind,
        )  # fmt: skip

    @property
    def space(self) -> LevelSpace:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Levels in [-1, 1]."""
        return LevelSpace(self.num_levels)

    def _check_size(self, beside: Tensor, what: str, shape: str) -> None:
        """Refuse what lies beside the images if it is of another number, height or width."""
        size, expected = list(beside.shape), [len(self), *self.image_shape[-2:]]
        if [size[0], *size[-2:]] != expected or len(size) != shape.count(",") + 1:
            n, height, width = expected
            raise DataError(
                f"{self.name} {self.split}: {what} must be {shape}, N = {n}, H = {height}, W = {width}, got {size}; "
                "give one an image, of its size"
            )


def _check_levels(where: str, what: str, images: Tensor, num_levels: int, layout: str) -> None:
    """Refuse images that are no grey levels 0 .. num_levels - 1."""
    LevelSpace(num_levels)  # refuses a number of levels that cannot be
    if images.dtype != torch.uint8 or images.ndim != layout.count(",") + 1:
        got = f"{images.dtype} {list(images.shape)}"
        raise DataError(f"{where}: {what} must be torch.uint8 {layout}, got {got}; convert them first")
    if images.numel() == 0:
        raise DataError(f"{where}: {what} are empty, got shape {list(images.shape)}; give at least one image")
    highest = int(images.max()) if num_levels < 256 else 0
    if highest >= num_levels:
        fix = "num_levels" if what == "images" else "paired_levels"
        raise DataError(f"{where}: pixel values must be 0 .. {num_levels - 1}, got {highest}; correct {fix}")


def check_split(split: str) -> None:
    """Refuse a split that is neither ``"train"`` nor ``"test"``.

    Args:
        split: The name to check.

    Raises:
        DataError: If it is unknown; the message lists the choices.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}; choose one of: {', '.join(SPLITS)}")


def fixed_split(count: int, split: str, *, num_test: int | None = None) -> np.ndarray:
    """Choose the images of a split for a source that has no official one.

    The last ``num_test`` entries of one permutation with seed 0 are the test split, the others the train split.

    Args:
        count: Number of images in all.
        split: ``"train"`` or ``"test"``.
        num_test: Size of the test split; by default one in ten, and at least 1.

    Returns:
        Ascending int64 indices, so that a split keeps the order of its source.

    Raises:
        DataError: If ``split`` is unknown, or if nothing would be left to train on.
    """
    check_split(split)
    num_test = max(1, count // 10) if num_test is None else num_test
    if count <= num_test:
        raise DataError(
            f"{count} images cannot be divided into a train and a test split: at least {num_test + 1} are needed; "
            "add images, or provide the two splits separately"
        )
    # RandomState, unlike Generator, promises the same stream in every NumPy release: the split never moves.
    permutation = np.random.RandomState(0).permutation(count)
    chosen = permutation[count - num_test :] if split == "test" else permutation[: count - num_test]
    return np.sort(chosen).astype(np.int64)
