"""Common parts of the proofs: a number beside its bound, and the grid that a sampler walks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from torch import Tensor

from samplers import Sampler
from samplers.grid_sampler import GridSampler
from sde_lib import SDE

# standard errors allowed wherever there is Monte-Carlo error
SIGMAS = 5.0


@dataclass(frozen=True)
class Checked:
    """A number of the table and the bound that it is held to.

    Attributes:
        value: The number.
        bound: The most that its absolute value may be.
    """

    value: float
    bound: float

    @property
    def passed(self) -> bool:
        """True if the value is within the bound; NaN is not, and an infinite bound bounds nothing."""
        return abs(self.value) <= self.bound < math.inf


def times_of(sampler: Sampler, sde: SDE) -> Tensor:
    """The grid that a sampler walks on an SDE; every registered sampler has one."""
    return cast("GridSampler", sampler).times(sde)
