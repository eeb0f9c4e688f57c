"""Samples that are in model space already: a plain float tensor as a data set."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Dataset
from .errors import DataError
from .space import ModelSpace


@dataclass(frozen=True, eq=False)
class TensorDataset(Dataset):
    """Samples that a network sees as they are; ``x0`` for vectors, latents or images scaled by yourself.

    Args:
        x0: Floats [N, ...], finite; networks expect a standard deviation of about 0.5 to 1.
        labels: int64 [N], every value in 0 .. ``num_classes`` - 1; all zero where there are none.
        num_classes: Number of classes, at least 1.
        name: Name of the data set, for errors.
        split: ``"train"`` or ``"test"``.
        values: See ``Dataset``.

    Raises:
        DataError: If shapes, dtypes or values contradict the above, or if there is no sample.
    """

    x0: Tensor
    labels: Tensor
    num_classes: int = 1
    name: str = "tensor"
    split: str = "train"
    class_names: tuple[str, ...] = ()
    values: Tensor | None = None
    space: ClassVar[ModelSpace] = ModelSpace()  # pyright: ignore[reportIncompatibleVariableOverride]
    samples_are: ClassVar[str] = "x0"

    def __post_init__(self) -> None:
        if not self.x0.is_floating_point() or self.x0.ndim < 2 or self.x0.numel() == 0:
            got = f"{self.x0.dtype} {list(self.x0.shape)}"
            raise DataError(f"x0 must be floats [N, ...] with N >= 1, got {got}; pass images as uint8 [N, C, H, W]")
        bad = int((~torch.isfinite(self.x0)).flatten(1).any(1).sum())
        if bad:
            raise DataError(f"{bad} of {len(self.x0)} samples are not finite; leave them out")
        self._check_told("a sample")
