"""Sampling from consistency models, in one call or a few."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from models import Cond, ConsistencyModel, Generator, Prediction, ScoreModel
from sde_lib import SDE, NoiseStreams, Point

from .base import Hook, SampleResult
from .denoiser import Denoiser
from .grid_sampler import GridSampler
from .registry import register_sampler


@register_sampler("consistency")
class ConsistencySampler(GridSampler):
    """Multistep consistency sampling (Song et al. 2023, Algorithm 1), for any SDE and any grid.

        x0 = f(x_t, t),   x_s = alpha_s x0 + sqrt(sigma_s^2 - alpha_s^2 r_end^2) z

    at each step but the last, which ends in x0: no noise is added there. r_end is the sigma / alpha that f leaves. NFE
    is num_steps.

    Args:
        t_start: Where a grid by name begins, which is scaled to it; None is ``sde.t_max``. Noise far above the data
            tells a network nothing and asks it for many digits.
        **kwargs: See ``GridSampler``; num_steps = 1 is one call. The last time of the grid is that of the data and is
            not asked for.

    Raises:
        ValueError: If ``denoise_final`` is given, or t_start is not in (0, 1].
    """

    own_last_step = True

    def __init__(self, *, t_start: float | None = None, **kwargs: Any) -> None:
        options: dict[str, Any] = {"denoise_final": False, **kwargs}
        super().__init__(**options)
        if self.denoise_final is not False:
            raise ValueError("a consistency model's own answer is the last step; leave denoise_final out")
        if t_start is not None and not 0 < t_start <= 1:
            raise ValueError(f"t_start must lie in (0, 1], got {t_start}; leave it out for t_max")
        self.t_start = t_start

    def times(self, sde: SDE) -> Tensor:
        """The grid, scaled to begin at ``t_start``."""
        times = super().times(sde)
        if self.t_start is None or isinstance(self.grid, Tensor):
            return times
        return times * (self.t_start / float(times[0]))

    def sample(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: ConsistencyModel,
        x_T: Tensor,
        *,
        cond: Cond | None = None,
        noise: NoiseStreams | None = None,
        hooks: Sequence[Hook] = (),
    ) -> SampleResult:
        """Sample; see ``Sampler.sample``.

        Raises:
            ValueError: If the model is no consistency model.
        """
        if not isinstance(model, ConsistencyModel):
            raise ValueError(
                f"sampler 'consistency' needs a consistency model, got a {type(model).__name__}; take ddim or another "
                "sampler of score models"
            )
        if isinstance(model, Generator):
            self._check_of_noise(model)
        return super().sample(_AsScoreModel(model), x_T, cond=cond, noise=noise, hooks=hooks)

    def _check_of_noise(self, model: Generator) -> None:
        """Refuse more steps than one, and one that does not begin at pure noise."""
        if self.num_steps != 1:
            raise ValueError(
                f"a one-step generator answers pure noise alone, got {self.num_steps} steps; set sampling.num_steps=1"
            )
        start = float(self.times(model.sde)[0])
        if start != model.sde.t_max:
            raise ValueError(
                f"a one-step generator answers pure noise alone, t={model.sde.t_max:g}, got a start at t={start:g}; "
                "leave sampling.options without t_start"
            )

    def step(self, denoise: Denoiser, x: Tensor, t: Point, s: Point, noise: NoiseStreams) -> Tensor:
        """One step of Algorithm 1."""
        x0 = denoise(x, t).x0
        assert isinstance(denoise.model, _AsScoreModel)
        var = s.sigma**2 - (s.alpha * denoise.model.inner.ratio_end) ** 2
        if var <= 1e-12 * s.sigma**2:
            return s.alpha * x0
        return s.alpha * x0 + math.sqrt(var) * noise.normal_like(x)


class _AsScoreModel(ScoreModel):
    """A consistency model as grid samplers call models, for this sampler's own step alone."""

    def __init__(self, inner: ConsistencyModel) -> None:
        super().__init__(inner.sde)
        self.inner = inner

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        """The answer as x0, and the noise that would go with it."""
        alpha, sigma = self.sde.alpha_sigma(t)
        return Prediction.from_x0(x_t, self.inner(x_t, t, cond=cond), alpha=alpha, sigma=sigma)
