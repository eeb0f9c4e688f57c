"""Stored values of a data set and what networks see of them, x0: there and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import DataError
from .levels import check_num_levels, to_levels, to_model_space


@dataclass(frozen=True)
class LevelSpace:
    """Grey levels 0 .. L - 1, which networks see in [-1, 1].

    Args:
        num_levels: L, 2 .. 256.

    Raises:
        DataError: If it is out of range.
    """

    num_levels: int

    def __post_init__(self) -> None:
        check_num_levels(self.num_levels)

    def encode(self, stored: Tensor) -> Tensor:
        """x0 of grey levels: see ``to_model_space``."""
        return to_model_space(stored, self.num_levels)

    def decode(self, x0: Tensor) -> Tensor:
        """The nearest grey levels: see ``to_levels``."""
        return to_levels(x0, self.num_levels)


@dataclass(frozen=True)
class RealSpace:
    """Real vectors v, which networks see standardized: x0 = (v - mean) / std in each dimension.

    Densities are of v: log p(v) = log p(x0) - sum log std.

    Args:
        mean: D numbers.
        std: As many, above 0.

    Raises:
        DataError: If they are not.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        if len(self.mean) != len(self.std) or not self.mean or not all(map(math.isfinite, numbers)):
            raise DataError(
                f"mean and std must be as many finite numbers, got {self.mean} and {self.std}; correct them"
            )
        if min(self.std) <= 0:
            raise DataError(
                f"dimension {self.std.index(min(self.std))} of the vectors is constant, and so has no density; drop it"
            )

    @classmethod
    def of(cls, vectors: Tensor) -> RealSpace:
        """The space in which these vectors [N, D] have mean 0 and standard deviation 1 in each dimension.

        Raises:
            DataError: If a vector is not finite, or a dimension constant.
        """
        wide = vectors.double()
        bad = int((~torch.isfinite(wide)).any(1).sum())
        if bad:
            raise DataError(f"{bad} of {len(wide)} vectors are not finite; leave them out")
        return cls(tuple(wide.mean(0).tolist()), tuple(wide.std(0, correction=0).tolist()))

    @property
    def num_levels(self) -> None:
        """None: there are no levels."""
        return None

    @property
    def log_volume(self) -> float:
        """sum log std: log |dv / dx0|, in nats."""
        return math.fsum(math.log(std) for std in self.std)

    def encode(self, stored: Tensor) -> Tensor:
        """x0 of vectors [N, D], float32."""
        return ((stored.double() - stored.new_tensor(self.mean).double()) / self._stds(stored)).float()

    def decode(self, x0: Tensor) -> Tensor:
        """Vectors [N, D] of x0, in float64."""
        return x0.double() * self._stds(x0) + torch.tensor(self.mean, dtype=torch.float64, device=x0.device)

    def _stds(self, like: Tensor) -> Tensor:
        return torch.tensor(self.std, dtype=torch.float64, device=like.device)


@dataclass(frozen=True)
class ModelSpace:
    """Samples that are x0 already."""

    @property
    def num_levels(self) -> None:
        """None: there are no levels."""
        return None

    def encode(self, stored: Tensor) -> Tensor:
        """The samples as float32."""
        return stored.float()

    def decode(self, x0: Tensor) -> Tensor:
        """x0 itself."""
        return x0


Space = LevelSpace | RealSpace | ModelSpace
