"""The stages of a progressive distillation."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from ..config.files import Config


@dataclass(frozen=True)
class Stages:
    """The students of a progressive distillation, one after the other; each is the teacher of the next.

    Attributes:
        num_steps: Steps of DDIM of each student, halving; the first learns from a teacher of twice as many.
        length: Training steps of a stage.

    Raises:
        ValueError: If the steps do not halve, or the length is below 1.
    """

    num_steps: tuple[int, ...]
    length: int

    def __post_init__(self) -> None:
        steps = self.num_steps
        halve = all(a == 2 * b for a, b in pairwise(steps))
        if not steps or steps[-1] < 1 or not halve:
            raise ValueError(
                f"the steps of stages must halve from one to the next and end at 1 or more, got "
                f"{', '.join(map(str, steps)) or 'none'}; give distillation.stages such as 8,4,2,1"
            )
        if self.length < 1:
            raise ValueError(f"a stage must last at least 1 training step, got {self.length}; raise it")

    @property
    def total(self) -> int:
        """Training steps of all stages."""
        return self.length * len(self.num_steps)

    def at(self, step: int) -> int:
        """Number of the stage that a training step belongs to, from 0; past the last one it stays there."""
        return min(step // self.length, len(self.num_steps) - 1)

    def begins(self, step: int) -> bool:
        """True if a training step is the first one of a stage that follows another."""
        return 0 < step < self.total and step % self.length == 0

    def student_steps(self, step: int) -> int:
        """Steps of DDIM of the student after so many training steps, that is, in the checkpoint of that number."""
        return self.num_steps[self.at(max(step - 1, 0))]


def stages_of(config: Config) -> Stages:
    """The stages of ``config.distillation``.

    Raises:
        ValueError: If the steps do not halve.
    """
    return Stages(tuple(config.distillation.stages), config.distillation.stage_steps)
