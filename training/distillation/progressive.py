"""Progressive distillation: a student whose one step of DDIM is two of its teacher's, stage after stage."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, ScoreModel
from sde_lib import SDE, expand_like

from ..losses.base import Loss, weighted_error


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
        halve = all(a == 2 * b for a, b in zip(steps, steps[1:], strict=False))
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


@torch.no_grad()
def two_step_target(
    teacher: ScoreModel,
    x_t: Float[Tensor, "batch *shape"],
    t: Float[Tensor, " batch"],
    middle: Float[Tensor, " batch"],
    s: Float[Tensor, " batch"],
    *,
    cond: Cond | None = None,
) -> Float[Tensor, "batch *shape"]:
    """The x0 with which one DDIM step from t to s ends where the teacher's two steps over ``middle`` do.

    Salimans & Ho 2022, Appendix G, give it as

        x~ = (x_s - (sigma_s / sigma_t) x_t) / (alpha_s - (sigma_s / sigma_t) alpha_t),

    a difference of nearly equal states where steps are short. Written out, it is a mean of the teacher's two answers,

        x~ = w x0(x_t, t) + (1 - w) x0(x_m, m),    w = (q_m - q_t) / (q_s - q_t),    q = alpha / sigma,

    without that cancellation; at sigma_s = 0 it is the second answer.

    Args:
        teacher: The teacher.
        x_t: States at t, [B, ...].
        t: Times, [B].
        middle: Times between, [B].
        s: Times where the steps end, [B]; there may be no noise.
        cond: Condition, or None.

    Returns:
        x~, [B, ...].
    """
    sde = teacher.sde
    first = teacher(x_t, t, cond=cond)
    alpha, sigma = sde.alpha_sigma(middle)
    x_middle = expand_like(alpha, x_t) * first.x0 + expand_like(sigma, x_t) * first.eps
    second = teacher(x_middle, middle, cond=cond)
    log_snr = sde.log_snr(t)
    share = torch.expm1((sde.log_snr(middle) - log_snr) / 2) / torch.expm1((sde.log_snr(s) - log_snr) / 2)
    return torch.lerp(second.x0, first.x0, expand_like(share, x_t))


class ProgressiveLoss(Loss):
    """The error of a student that takes one step of DDIM for two of its teacher's (Salimans & Ho 2022, Algorithm 2).

    Times are those of the student's grid, t = i / N t_max for i uniform in 1 .. N; it answers at no others. Where
    stages are given, ``begin_step`` says which one a step belongs to.

    Args:
        teacher: The frozen model. As a stage begins, the student's averaged weights are copied into it.
        stages: The steps of the students, and how long each is trained.
        weighting: See ``weighted_error``; "truncated_snr" is max(SNR, 1), "v" is SNR + 1 for VP.

    Raises:
        ValueError: If a weighting is unknown, or the SDE ends with noise left, which DDIM takes a call more for.
    """

    name = "progressive"

    def __init__(self, teacher: ScoreModel, stages: Stages, *, weighting: str = "truncated_snr") -> None:
        super().__init__(weighting=weighting)
        self.teacher, self.stages = teacher, stages
        self.num_steps = stages.num_steps[0]
        self.check(teacher.sde)

    def check(self, sde: SDE) -> None:
        """Refuse an SDE that has noise left at t = 0, and weightings of other losses."""
        super().check(sde)
        if float(sde.sigma(torch.zeros(1, dtype=torch.float64))) > 0:
            raise ValueError(
                "progressive distillation needs an SDE without noise at t = 0, such as ddpm or vp, got one with; take "
                "a teacher of another SDE"
            )

    def begin_step(self, step: int) -> None:
        """Train the student of the stage that a training step belongs to."""
        self.num_steps = self.stages.num_steps[self.stages.at(step)]

    def rate(self, step: int) -> float:
        """Factor of the learning rate: from 1 to 0 along a line in each stage (Salimans & Ho 2022, Appendix E)."""
        return 1 - (step % self.stages.length) / self.stages.length

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """t = i / N t_max, with i = 1 .. N of uniform draws."""
        index = (u.double() * self.num_steps).floor().clamp(max=self.num_steps - 1) + 1
        return index / self.num_steps * sde.t_max

    def __call__(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Cond | None = None) -> Tensor:
        """The loss of each sample, [B]; see ``Loss``."""
        sde = model.sde
        index = (t / sde.t_max * self.num_steps).round()
        middle, s = ((index - part) / self.num_steps * sde.t_max for part in (0.5, 1.0))
        alpha, sigma = sde.alpha_sigma(t)
        x_t = expand_like(alpha, x0) * x0 + expand_like(sigma, x0) * eps
        target = two_step_target(self.teacher, x_t, t, middle, s, cond=cond)
        target_eps = (x_t - expand_like(alpha, x0) * target) / expand_like(sigma, x0)
        prediction = model(x_t, t, cond=cond)
        return weighted_error(
            self.weighting, prediction, target, target_eps, alpha=alpha, data_std=self.data_std
        )
