"""Losses of consistency models: training, tuning of a trained model, and distillation of a teacher."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models import Cond, ConsistencyModel, ScoreModel
from runtime.registry import choices_message
from sde_lib import SDE, LearnedVP, expand_like, last_noisy_time, make_grid

from .base import Loss, register_loss


class ConsistencyLoss(Loss):
    """A loss of consistency models, at times whose r = sigma / alpha is log-normal, cut off at the SDE's ends.

    Args:
        log_ratio_mean: Mean of log r.
        log_ratio_std: Standard deviation of log r.
        double_every: Steps of a stage, after which the two points that are compared come nearer to each other.
        **kwargs: Options of all losses, which have no effect here.

    Raises:
        ValueError: If a number is out of range.
    """

    name = "consistency"
    own_weighting = "x0"
    of_distillation = True

    def __init__(
        self, *, log_ratio_mean: float = -1.1, log_ratio_std: float = 2.0, double_every: int = 50_000, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not (log_ratio_std > 0 and double_every >= 1):
            raise ValueError(
                f"log_ratio_std must be above 0 and double_every at least 1, got {log_ratio_std} and {double_every}; "
                "leave them out"
            )
        self.log_ratio_mean, self.log_ratio_std = log_ratio_mean, log_ratio_std
        self.double_every, self._step = double_every, 0

    def begin_step(self, step: int) -> None:
        """Take note of the step, on whose stage the loss depends."""
        self._step = step

    @property
    def stage(self) -> int:
        """The number of stages done."""
        return self._step // self.double_every

    def check(self, sde: SDE) -> None:
        """Refuse a noise schedule that is learned.

        Raises:
            ValueError: In one line.
        """
        if isinstance(sde, LearnedVP):
            raise ValueError(f"loss {self.name!r} trains no noise schedule, got a learned one; set sde.name=vp")

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """Times of log-normal r."""
        return log_normal_times(sde, u, self.log_ratio_mean, self.log_ratio_std)


class PairLoss(ConsistencyLoss):
    """The distance of a model's answers at two points of one trajectory, t > s, over their distance in r:

        d(f(x_t, t), f^-(x_s, s)) / (r_t - r_s),   d(a, b) = sqrt(|a - b|^2 + c^2) - c,   c = huber sqrt(D),

    with no gradient through f^-, whose dropout is that of f (Song & Dhariwal 2023, Sections 3.3 and 3.4).

    Args:
        huber: c over the root of the data's dimensions.
        **kwargs: See ``ConsistencyLoss``.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, *, huber: float = 5.4e-4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 < huber < math.inf:
            raise ValueError(f"huber must be above 0, got {huber}; 0.00054 is usual")
        self.huber = huber

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """d of each sample, [B]."""
        c = self.huber * math.sqrt(a[0].numel())
        squared = (a - b).square().flatten(1).sum(1)
        # the root less c, without the digits that the difference would lose
        return squared / ((squared + c**2).sqrt() + c)

    @abstractmethod
    def pair(
        self, model: ConsistencyModel, x0: Tensor, t: Tensor, eps: Tensor, cond: Cond | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The states x_t and x_s of one trajectory, [B, ...], and s, [B]."""

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: ConsistencyModel, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Cond | None = None
    ) -> Tensor:
        """The loss of each sample, [B]; see ``Loss``.

        Raises:
            ValueError: If the boundary of the model is not at t = 0.
        """
        check_consistency_model(model, self.name)
        devices = [x0.device] if x0.is_cuda else []
        with torch.no_grad():
            x_t, x_s, s = self.pair(model, x0, t, eps, cond)
            # what dropout draws for one, it draws for the other
            with torch.random.fork_rng(devices=devices):
                target = model(x_s, s, cond=cond)
        distance = self.distance(model(x_t, t, cond=cond), target)
        return distance / (noise_ratio(model.sde, t) - noise_ratio(model.sde, s))


def check_consistency_model(model: ConsistencyModel, name: str) -> None:
    """Refuse a model that a loss does not train.

    Raises:
        ValueError: In one line.
    """
    if not isinstance(model, ConsistencyModel) or model.t_end != 0:
        raise ValueError(
            f"loss {name!r} needs a ConsistencyModel whose t_end is 0, got a {type(model).__name__}; pass one"
        )


def noise_ratio(sde: SDE, t: Tensor) -> Tensor:
    """r = sigma / alpha, float64 [B]."""
    alpha, sigma = sde.alpha_sigma(t)
    return sigma / alpha


def log_normal_times(sde: SDE, u: Tensor, mean: float, std: float) -> Tensor:
    """Times at which log r is N(mean, std^2), cut off at the first noisy time and at t_max.

    Args:
        sde: The SDE.
        u: Uniform draws in [0, 1), [B].
        mean: Mean of log r.
        std: Its standard deviation.
    """
    low = last_noisy_time(sde)
    ends = -0.5 * sde.log_snr(torch.tensor([low, sde.t_max], dtype=torch.float64))
    below, above = torch.special.ndtr((ends - mean) / std).tolist()
    z = torch.special.ndtri(below + u.double() * (above - below))
    return sde.time_from_log_snr(-2 * (mean + std * z)).clamp(low, sde.t_max)


class _OnLevels(PairLoss):
    """A loss at neighbours of a grid of N + 1 times, t = 0 first: Karras' levels (Karras et al. 2022, Eq. 5).

    N begins at ``noise_levels[0]`` and doubles up to ``noise_levels[1]`` (Song & Dhariwal 2023, Eq. 10 and 11, with a
    length of a stage that does not depend on that of the training). The upper one of two is drawn with the log-normal's
    probability of the interval between them (Section 3.5).
    """

    def __init__(self, *, noise_levels: Sequence[int] = (10, 1280), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if len(noise_levels) != 2 or not 1 <= noise_levels[0] <= noise_levels[1]:
            raise ValueError(f"noise_levels must be the least and the most, got {noise_levels}; (10, 1280) is usual")
        self.noise_levels = tuple(noise_levels)
        self._grid: tuple[SDE, int, Tensor] | None = None

    @property
    def num_intervals(self) -> int:
        """N at this step."""
        first, last = self.noise_levels
        return min(first * 2 ** min(self.stage, 60), last)

    def grid(self, sde: SDE) -> Tensor:
        """The times at this step, rising from 0, float64 [N + 1]."""
        known = self._grid
        if known is None or known[0] is not sde or known[1] != self.num_intervals:
            known = self._grid = (sde, self.num_intervals, make_grid("karras", sde, self.num_intervals).flip(0))
        return known[2]

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """The upper ones of the pairs."""
        grid = self.grid(sde)
        below = torch.special.ndtr((-0.5 * sde.log_snr(grid) - self.log_ratio_mean) / self.log_ratio_std)
        share = (below[1:] - below[0]) / (below[-1] - below[0])
        return grid[1:][torch.searchsorted(share[:-1].contiguous(), u.double().cpu(), right=True)]

    def below(self, sde: SDE, t: Tensor) -> Tensor:
        """The time below each of the grid's, [B]."""
        grid = self.grid(sde).to(t.device)
        return grid[torch.searchsorted(grid, t.contiguous()) - 1]


@register_loss("consistency_training")
class ConsistencyTraining(_OnLevels):
    """Consistency training without a teacher (Song & Dhariwal 2023, "iCT"): x_s has the noise of x_t.

    Where a teacher is named, training begins with its weights.
    """

    name = "consistency_training"

    def pair(
        self, model: ConsistencyModel, x0: Tensor, t: Tensor, eps: Tensor, cond: Cond | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both states by the same noise."""
        s = self.below(model.sde, t)
        return model.sde.perturb(x0, t, eps), model.sde.perturb(x0, s, eps), s


@register_loss("consistency_tuning")
class ConsistencyTuning(PairLoss):
    """Consistency training of a trained score model, from the denoiser that it is (Geng et al. 2024, "ECT").

    r_t is log-normal, and

        r_s = max(0, r_t (1 - (1 + 8 sigmoid(-r_t)) / 2^(k + 1)))

    after k stages: near the data r_s is 0, which is denoising, and the two come together as k grows.

    Args:
        teacher: The trained model with whose weights training begins; asked for nothing else.
        **kwargs: See ``PairLoss``.
    """

    name = "consistency_tuning"

    def __init__(self, *, teacher: ScoreModel | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        _check_teacher(teacher, self.name)

    def pair(
        self, model: ConsistencyModel, x0: Tensor, t: Tensor, eps: Tensor, cond: Cond | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both states by the same noise."""
        sde, ratio = model.sde, noise_ratio(model.sde, t)
        low = noise_ratio(sde, torch.zeros(1, dtype=torch.float64, device=t.device))
        lower = (ratio * (1 - (1 + 8 * (-ratio).sigmoid()) / 2.0 ** (self.stage + 1))).maximum(low)
        first = last_noisy_time(sde)
        s = sde.time_from_log_snr(-2 * lower.log())
        # below the first noisy time there are data alone
        s = torch.where((lower > low) & (s >= first), torch.minimum(s, t), 0.0)
        return sde.perturb(x0, t, eps), sde.perturb(x0, s, eps), s


@register_loss("consistency_distillation")
class ConsistencyDistillation(_OnLevels):
    """Consistency distillation (Song et al. 2023, Algorithm 2): x_s is a step of the teacher's ODE down from x_t.

    The ODE is dy/dr = eps(x_t, t) in y = x / alpha. The teacher's answer is exact for the distillation of many levels;
    of few, the fixed point errs as the solver does, Euler's to first order, Heun's to second.

    Args:
        teacher: The teacher, in evaluation mode.
        solver: "euler" or "heun".
        **kwargs: See ``PairLoss``; and ``noise_levels``.
    """

    name = "consistency_distillation"

    def __init__(self, *, teacher: ScoreModel | None, solver: str = "heun", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if solver not in ("euler", "heun"):
            raise ValueError(choices_message("solver", solver, ["euler", "heun"]))
        self._teacher, self.solver = _check_teacher(teacher, self.name), solver

    def pair(
        self, model: ConsistencyModel, x0: Tensor, t: Tensor, eps: Tensor, cond: Cond | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x_t by the noise, and x_s by the teacher's step."""
        sde, s = model.sde, self.below(model.sde, t)
        x_t = sde.perturb(x0, t, eps)
        alpha_s, step = expand_like(sde.alpha(s), x0), expand_like(noise_ratio(sde, s) - noise_ratio(sde, t), x0)
        y, slope = x_t / expand_like(sde.alpha(t), x0), self._teacher(x_t, t, cond=cond).eps
        euler = y + step * slope
        if self.solver == "euler":
            return x_t, alpha_s * euler, s
        # where no noise is left the teacher has no slope to give, and Euler's step is its own last one
        asked = s.clamp_min(last_noisy_time(sde))
        second = self._teacher(alpha_s * euler, asked, cond=cond).eps
        noisy = expand_like((s == asked).to(x0.dtype), x0) > 0
        return x_t, alpha_s * torch.where(noisy, y + 0.5 * step * (slope + second), euler), s


def _check_teacher(teacher: ScoreModel | None, name: str) -> ScoreModel:
    if teacher is None:
        raise ValueError(f"loss {name!r} begins from a trained model, got none; set distillation.teacher")
    return teacher
