"""Progressive distillation: a student whose one step of DDIM is two of its teacher's, stage after stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from experiment.distillation.stages import Stages
from models import ClippedScoreModel, Cond, NetworkScoreModel, ScoreModel, require_flow
from sde_lib import SDE, expand_like

from .base import Loss, register_loss, weighted_error


def given_teacher(teacher: ScoreModel | None, loss: str) -> ScoreModel:
    """The teacher of a loss.

    Raises:
        ValueError: If there is none.
    """
    if teacher is None:
        raise ValueError(
            f"loss {loss!r} needs a trained model, got none; set distillation.teacher to its work directory"
        )
    return teacher


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


@register_loss("progressive_distillation")
class ProgressiveLoss(Loss):
    """The error of a student that takes one step of DDIM for two of its teacher's (Salimans & Ho 2022, Algorithm 2).

    Times are those of the student's grid, t = i / N t_max for i uniform in 1 .. N; it answers at no others. Where
    stages are given, ``begin_step`` says which one a step belongs to.

    Args:
        teacher: The frozen model. As a stage begins, the student's averaged weights are copied into it.
        stages: Steps of DDIM of each student; see ``Stages``.
        stage_steps: Training steps of each stage.
        clip_x0: Clip each answer of the teacher to [-1, 1], as samplers of images do. Where hardly any signal is left
            a network that predicts eps tells x0 with an error many times that range, which its student would learn.
        **kwargs: See ``Loss``. Weighting "truncated_snr", the usual one, is max(SNR, 1), and "v" SNR + 1 for VP.

    Raises:
        ValueError: If there is no teacher, or it is a student of other steps than twice those of the first stage; if
            the stages do not halve; or if the SDE ends with noise left, for which DDIM takes one call more.
    """

    name = "progressive_distillation"
    of_distillation = True
    usual_weighting = "truncated_snr"

    def __init__(
        self,
        teacher: ScoreModel | None = None,
        *,
        stages: Sequence[int] = (),
        stage_steps: int = 1000,
        clip_x0: bool = False,
        **kwargs: Any,
    ) -> None:
        options: dict[str, Any] = {"weighting": "truncated_snr", **kwargs}
        super().__init__(**options)
        self.teacher = given_teacher(teacher, self.name)
        self.stages, self.clip_x0 = Stages(tuple(stages), stage_steps), clip_x0
        self.num_steps = self.own_steps = self.stages.num_steps[0]
        require_flow(self.teacher, f"a first stage of {self.num_steps} steps", ddim_steps=2 * self.num_steps)
        self.check(self.teacher.sde)

    def check(self, sde: SDE) -> None:
        """Refuse an SDE that has noise left at t = 0, and weightings of other losses."""
        super().check(sde)
        if float(sde.sigma(torch.zeros(1, dtype=torch.float64))) > 0:
            raise ValueError(
                "progressive distillation needs an SDE without noise at t = 0, such as ddpm or vp, got one with; take "
                "a teacher of another SDE"
            )

    def begin_step(self, step: int) -> None:
        """Train the student of the stage that a training step belongs to.

        The learning rate falls from its value to 0 along a line in each stage (Salimans & Ho 2022, Appendix E).
        """
        self.num_steps = self.own_steps = self.stages.num_steps[self.stages.at(step)]
        self.rate = 1 - (step % self.stages.length) / self.stages.length

    def restarts(self, step: int) -> bool:
        """True where a stage follows another, whose student is its teacher."""
        return self.stages.begins(step)

    def take_teacher(self, model: ScoreModel) -> None:
        """Copy a student's weights into the teacher's network."""
        assert isinstance(self.teacher, NetworkScoreModel) and isinstance(model, NetworkScoreModel)
        self.teacher.backbone.load_state_dict(model.backbone.state_dict())

    def _teacher_of(self, student: ScoreModel) -> ScoreModel:
        """The teacher of this stage: past the first one its output means what the student's does."""
        teacher, is_first = self.teacher, self.num_steps == self.stages.num_steps[0]
        if not is_first and isinstance(teacher, NetworkScoreModel) and isinstance(student, NetworkScoreModel):
            teacher = student.with_backbone(teacher.backbone)
        return ClippedScoreModel(teacher) if self.clip_x0 else teacher

    def memory(self) -> dict[str, Tensor]:
        """The teacher's weights."""
        if not isinstance(self.teacher, NetworkScoreModel):
            return {}
        return {f"teacher.{name}": tensor for name, tensor in self.teacher.backbone.state_dict().items()}

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
        target = two_step_target(self._teacher_of(model), x_t, t, middle, s, cond=cond)
        target_eps = (x_t - expand_like(alpha, x0) * target) / expand_like(sigma, x0)
        prediction = model(x_t, t, cond=cond)
        return weighted_error(self.weighting, prediction, target, target_eps, sde=sde, t=t, data_std=self.data_std)
