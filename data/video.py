"""Clips as one uint8 tensor, and the frames of them that a network is given."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar

from .base import ImageDataset, ImageKind
from .errors import DataError
from .vectors import AnyKind


@dataclass(frozen=True, eq=False)
class VideoDataset(ImageDataset):
    """Clips of one split, whole and in memory, all of as many frames.

    It is an ``ImageDataset`` but for its shapes, so that bits/dim divide by C F H W: ``images`` are clips, uint8
    [N, C, F, H, W], frames in the order of time, and ``paired`` are frames that came before, uint8 [N, C, f, H, W].
    There are no masks.

    Raises:
        DataError: If shapes, dtypes or values contradict that, or if there is no clip.
    """

    layout: ClassVar[str] = "[N, C, F, H, W]"

    @property
    def kind(self) -> ImageKind:
        """The data set without its pixels, labels and values."""
        before = 0 if self.paired is None else self.paired.shape[2]
        return replace(super().kind, paired_frames=before)

    def after(self, num_frames: int) -> VideoDataset:
        """The clips after their first frames, which lie beside them: ``paired``.

        Args:
            num_frames: Number of first frames, 1 .. F - 1; 0 leaves the clips as they are.

        Raises:
            DataError: If no frame would be left, or there are frames beside the clips already.
        """
        if not num_frames:
            return self
        _, total, height, width = self.image_shape
        if self.paired is not None or not 0 < num_frames < total:
            raise DataError(
                f"{self.name} has clips of {total} frames of {height}x{width}, got data.given_frames={num_frames}; "
                f"give 1 to {total - 1} of them"
            )
        given, rest = self.images[:, :, :num_frames], self.images[:, :, num_frames:]
        return replace(self, images=rest.contiguous(), paired=given.contiguous(), paired_levels=self.num_levels)

    def as_frames(self) -> ImageDataset:
        """All frames as images, [N F, C, H, W], clip after clip, each with the label of its clip."""
        told = {"images", "labels", "values", "paired", "paired_levels", "captions", "encodings", "sample_names"}
        shared = {one.name: getattr(self, one.name) for one in fields(ImageDataset) if one.name not in told}
        frames = self.images.movedim(2, 1)
        labels = self.labels.repeat_interleave(frames.shape[1])
        shared["other_split_size"] = None if self.other_split_size is None else self.other_split_size * frames.shape[1]
        return ImageDataset(frames.flatten(0, 1), labels, **shared)


def refuse_clips(kind: AnyKind, who: str) -> None:
    """Refuse clips where something is of images alone.

    Args:
        kind: The data.
        who: What is, as the message names it.

    Raises:
        DataError: If they are clips.
    """
    if isinstance(kind, ImageKind) and kind.of_clips:
        shape = "x".join(map(str, kind.image_shape))
        raise DataError(f"{who} is of images, got clips of {shape}; take a model of images")
