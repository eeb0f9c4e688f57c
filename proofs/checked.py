"""Common parts of the proofs: a number beside its bound, a cell of such numbers, the grid that a sampler walks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Cell:
    """A sampler on an SDE and a distribution.

    Attributes:
        nfe: Network calls of the finer run.
        checks: Numbers by name: errors of moments and of the law; None for what does not apply.
        same: For each parameterization, the largest difference of its samples from those of the closed form.
    """

    nfe: int
    checks: Mapping[str, Checked | None]
    same: dict[str, Checked] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True if all numbers are within their bounds."""
        return all(number.passed for number in (*self.checks.values(), *self.same.values()) if number is not None)


def times_of(sampler: Sampler, sde: SDE) -> Tensor:
    """The grid that a sampler walks on an SDE; every registered sampler has one."""
    return cast("GridSampler", sampler).times(sde)
