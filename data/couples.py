"""Pairs of noise and the sample that a flow makes of it, which a reflow learns on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Dataset
from .beside import Beside
from .errors import DataError
from .space import ModelSpace, Space
from .vectors import AnyDataset, AnyKind

COUPLES = "couples.npz"


@dataclass(frozen=True, eq=False)
class CoupleDataset(Dataset):
    """Samples as networks see them, and the noise of each.

    Args:
        x0: float32 [N, ...].
        noise: Of standard deviation 1, the shape of ``x0``.
        labels: int64 [N].
        of: The data that the samples are like.

    Raises:
        DataError: If shapes contradict each other, or a number is not finite.
    """

    x0: Tensor
    noise: Tensor
    labels: Tensor
    of: AnyDataset
    samples_are: ClassVar[str] = "x0"

    def __post_init__(self) -> None:
        expected = (len(self.labels), *self.of.kind.sample_shape)
        for what, one in (("x0", self.x0), ("noise", self.noise)):
            if one.shape != expected:
                raise DataError(
                    f"couples: {what} must be {list(expected)}, as {self.name} has it, got {list(one.shape)}; "
                    "name the couples of a model of this data"
                )
            if not bool(torch.isfinite(one).all()):
                raise DataError(f"couples: {what} must be finite, got numbers that are not; write them anew")
        self._check_told("a couple")

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the data."""
        return self.of.name

    @property
    def split(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the data."""
        return self.of.split

    @property
    def num_classes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the data."""
        return self.of.num_classes

    @property
    def class_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of the data."""
        return self.of.class_names

    @property
    def kind(self) -> AnyKind:
        """That of the data."""
        return self.of.kind

    @property
    def space(self) -> Space:  # pyright: ignore[reportIncompatibleVariableOverride]
        """x0 as it is."""
        return ModelSpace()

    @property
    def beside(self) -> Beside:
        """The noise."""
        return Beside(noise=self.noise)


def read_couples(folder: Path, of: AnyDataset) -> CoupleDataset:
    """Read ``couples.npz``, which ``--mode couple`` writes.

    Args:
        folder: Its folder.
        of: The data that the samples are like.

    Raises:
        DataError: If it is not there, or of other data.
    """
    path = folder / COUPLES
    if not path.is_file():
        raise DataError(f"{path} is not there; write it by --mode couple, and set data.couples to its folder")
    with np.load(path, allow_pickle=False) as arrays:
        lacking = sorted({"x0", "noise", "labels"} - set(arrays.files))
        if lacking:
            raise DataError(f"{path} lacks {', '.join(lacking)}; write it by --mode couple")
        x0, noise, labels = (torch.from_numpy(arrays[name]) for name in ("x0", "noise", "labels"))
    return CoupleDataset(x0.float(), noise.float(), labels, of)
