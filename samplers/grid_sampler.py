"""Samplers that walk down a time grid: what they share, and the base for one of your own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from models import ScoreModel, count_network_calls
from runtime.registry import choices_message
from runtime.whole_numbers import whole_number
from sde_lib import SDE, NoiseStreams, available_grids, check_grid, make_grid

from .base import Hook, Sampler, SampleResult, States, StepState, apply_hooks, check_finite
from .run import Point, Run, points_of, time_at
from .start import check_prior, check_start


class GridSampler(Sampler):
    """A sampler that walks down a time grid.

    A step that ends without noise, at t = 0 of most SDEs, is no step of the method: it gives alpha(0) times x0 as the
    model predicts it, which costs one network call like a step of first order. All methods of first order agree there
    with that, and those of higher order cannot be written there, since log-SNR is infinite.

    A subclass gives ``advance``, or ``walk`` if it remembers earlier steps.

    Args:
        num_steps: Number of steps; with a tensor as ``grid`` it may be left out.
        grid: Name of a time grid (``available_grids()``), or a falling tensor of times, [num_steps + 1].
        denoise_final: End with x0 as the model predicts it at the last time (Tweedie's formula). None does so where
            noise is left there, as for VE; this costs one more network call.
        record_trajectory: Keep every state.

    Raises:
        ValueError: If num_steps is below 1, or disagrees with the grid.
    """

    # whether the step onto zero noise is left to this class
    _ends_clean: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_steps: int | None = None,
        grid: str | Tensor = "uniform",
        denoise_final: bool | None = None,
        record_trajectory: bool = False,
    ) -> None:
        if isinstance(grid, Tensor):
            grid = check_grid(grid).clone()
            if num_steps not in (None, len(grid) - 1):
                raise ValueError(
                    f"the grid has {len(grid) - 1} steps, got num_steps = {num_steps}; leave num_steps out"
                )
        elif not isinstance(grid, str):
            raise ValueError(
                f"grid must be a name or a falling torch tensor of times, got {type(grid).__name__}; "
                "pass torch.tensor(grid, dtype=torch.float64)"
            )
        else:
            num_steps = whole_number("num_steps", num_steps, fix="pass 1 or more")
            if grid not in available_grids():
                raise ValueError(choices_message("grid", grid, available_grids()))
        if denoise_final not in (None, True, False):
            raise ValueError(f"denoise_final must be None, True or False, got {denoise_final!r}; leave it out")
        self.num_steps = num_steps
        self.grid = grid
        self.denoise_final = denoise_final
        self.record_trajectory = record_trajectory

    def advance(self, run: Run, x: Float[Tensor, "batch *shape"], t: Point, s: Point) -> Float[Tensor, "batch *shape"]:
        """One step of a method without memory.

        Args:
            run: The model and the noise.
            x: State at t, [B, ...], not to be changed in place.
            t: Where the step starts.
            s: Where it ends, with s.t < t.t.

        Returns:
            The state at s, [B, ...].
        """
        raise NotImplementedError(f"{type(self).__name__} must define advance or walk")

    def step(
        self,
        model: ScoreModel,
        x_t: Float[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        s: Float[Tensor, " batch"],
        *,
        cond: Shaped[Tensor, "batch *_"] | None,
        noise: NoiseStreams,
    ) -> Float[Tensor, "batch *shape"]:
        """One step from t to s of a method without memory, the same t and s for the whole batch.

        Args:
            model: The model.
            x_t: State at t, [B, ...].
            t: Time, float64 [B].
            s: Next time, below t, float64 [B].
            cond: Condition, or None.
            noise: One random stream a sample.

        Returns:
            The state at s, [B, ...].

        Raises:
            ValueError: If t or s differs within the batch, or s is not below t.
        """
        if bool((t != t[0]).any()) or bool((s != s[0]).any()):
            raise ValueError(
                f"t and s must be the same for the whole batch, got {t.tolist()} and {s.tolist()}; split it"
            )
        start, end = points_of(model.sde, check_grid(torch.stack([t[0].double(), s[0].double()])))
        run = Run(model, cond, noise)
        if self._ends_clean and end.sigma == 0:
            return end.alpha * run.predict(x_t, start).x0
        return self.advance(run, x_t, start, end)

    def walk(self, run: Run, x: Float[Tensor, "batch *shape"], points: Sequence[Point]) -> States:
        """Yield the state after each step; what is sent back, the state after the hooks, is where the next one starts.

        Args:
            run: The model and the noise.
            x: State at the first point, [B, ...].
            points: The grid; a step onto zero noise at its end is not asked for.
        """
        for i in range(len(points) - 1):
            x = yield self.advance(run, x, points[i], points[i + 1])

    def times(self, sde: SDE) -> Float[Tensor, " points"]:
        """The grid this sampler walks on an SDE, falling, float64."""
        if isinstance(self.grid, Tensor):
            return self.grid
        assert self.num_steps is not None
        return make_grid(self.grid, sde, self.num_steps)

    def prior_sample(
        self, sde: SDE, sample_shape: Sequence[int], noise: NoiseStreams, *, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "batch *shape"]:
        """Draw x_T at the grid's first time; see ``Sampler.prior_sample``."""
        (first,) = points_of(sde, self.times(sde)[:1])
        check_prior(sde, first)
        return sde.prior_sample(sample_shape, noise, t=first.t, device=device)

    def sample(
        self,
        model: ScoreModel,
        x_T: Tensor,
        *,
        cond: Tensor | None = None,
        noise: NoiseStreams | None = None,
        hooks: Sequence[Hook] = (),
    ) -> SampleResult:
        """Walk down the grid; see ``Sampler.sample``."""
        if not x_T.is_floating_point() or x_T.ndim < 1 or x_T.shape[0] < 1:
            raise ValueError(
                f"x_T must be a batch of floating-point samples, got {x_T.dtype} {list(x_T.shape)}; "
                "draw it with sampler.prior_sample(model.sde, shape, noise)"
            )
        run = Run(model, cond, NoiseStreams.fresh(x_T.shape[0]) if noise is None else noise)
        points = points_of(model.sde, self.times(model.sde))
        if isinstance(self.grid, str):
            # whoever passes times may have an x_T of their own there
            check_prior(model.sde, points[0])
        denoise_final = self._denoises(points[-1])
        with torch.no_grad(), count_network_calls(model) as counter:
            check_finite(x_T, "start x_T")
            check_start(model.sde, x_T, points[0])
            states = self._descend(run, x_T, points, hooks, num_steps=len(points) - 1 + denoise_final)
            if denoise_final:
                t, index = points[-1].t, len(points) - 1
                x = run.predict(states[-1], points[-1]).x0
                x = apply_hooks(hooks, StepState(index, index + 1, t, 0.0, 1.0, 0.0, x, run.sde))
                check_finite(x, f"final denoising at t = {t:.6g}")
                states.append(x)
        trajectory = torch.stack(states) if self.record_trajectory else None
        return SampleResult(x0=states[-1], nfe=counter.calls, trajectory=trajectory)

    def _descend(
        self, run: Run, x: Tensor, points: list[Point], hooks: Sequence[Hook], *, num_steps: int
    ) -> list[Tensor]:
        """The states at all points, or the last alone if no trajectory is kept."""
        to_zero = self._ends_clean and points[-1].sigma == 0
        states, shape = [x], x.shape
        walk = self.walk(run, x, points)
        for index, (t, s) in enumerate(pairwise(points)):
            if to_zero and s is points[-1]:
                x = s.alpha * run.predict(x, t).x0
            elif index:
                x = walk.send(x)
            else:
                x = next(walk)
            if x.shape != shape:
                raise ValueError(
                    f"{type(self).__name__}.step must return shape {list(shape)}, got {list(x.shape)}; fix the sampler"
                )
            x = apply_hooks(hooks, StepState(index, num_steps, t.t, s.t, s.alpha, s.sigma, x, run.sde))
            check_finite(x, f"step from t = {t.t:.6g} to {s.t:.6g}")
            if not self.record_trajectory:
                states.clear()
            states.append(x)
        return states

    def _denoises(self, last: Point) -> bool:
        if self.denoise_final is None:
            return last.sigma > 0
        if self.denoise_final and last.sigma == 0:
            raise ValueError(
                "denoise_final needs noise at the grid's last time, there is none; leave denoise_final out"
            )
        return self.denoise_final


class StepSampler(GridSampler):
    """A sampler of your own: one ``step`` from t to s < t at a time, the last one included.

    Args:
        **kwargs: See ``GridSampler``.
    """

    _ends_clean = False

    @abstractmethod
    def step(
        self,
        model: ScoreModel,
        x_t: Float[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        s: Float[Tensor, " batch"],
        *,
        cond: Shaped[Tensor, "batch *_"] | None,
        noise: NoiseStreams,
    ) -> Float[Tensor, "batch *shape"]:
        """One step from t to s.

        Args:
            model: The model.
            x_t: State at t, [B, ...].
            t: Time, float64 [B].
            s: Next time, below t, float64 [B].
            cond: Condition, or None.
            noise: One random stream a sample.

        Returns:
            The state at s, [B, ...].
        """

    def advance(self, run: Run, x: Tensor, t: Point, s: Point) -> Tensor:
        """Call ``step``."""
        return self.step(run.model, x, time_at(t, x), time_at(s, x), cond=run.cond, noise=run.noise)
