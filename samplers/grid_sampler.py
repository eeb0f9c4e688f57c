"""Samplers that walk down a time grid: the base of ours and of your own."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, RecomputedScoreModel, ScoreModel, count_network_calls, require_flow, require_posterior_mean
from sde_lib import SDE, NoiseStreams, Point, check_grid_choice, make_grid, points_of

from .base import Hook, Sampler, SampleResult, States, StepState, apply_hooks, check_finite
from .denoiser import Denoiser
from .start import check_prior, check_start

_Same = TypeVar("_Same", bound="GridSampler")


class GridSampler(Sampler):
    """A sampler that walks down a time grid.

    A step that ends without noise, at t = 0 of most SDEs, is no step of the method: it gives alpha(0) times x0 as the
    model predicts it, which costs one network call like a step of first order. All methods of first order agree there
    with that, and those of higher order cannot be written there, since log-SNR is infinite.

    A subclass gives ``step``, or ``walk`` if it remembers earlier steps.

    Args:
        num_steps: Number of steps; with a tensor as ``grid`` it may be left out.
        grid: Name of a time grid (``available_grids()``), or a falling tensor of times, [num_steps + 1].
        denoise_final: End with x0 as the model predicts it at the last time (Tweedie's formula). None does so where
            noise is left there, as for VE; this costs one more network call.
        record_trajectory: Keep every state.

    Raises:
        ValueError: If num_steps is below 1, or disagrees with the grid.
    """

    # True of methods that make the step onto zero noise themselves
    own_last_step: ClassVar[bool] = False

    @property
    def follows_flow(self) -> bool:
        """True of methods that solve the probability-flow ODE, and so need a model's velocity alone."""
        return False

    @property
    def ddim_steps(self) -> int | None:
        """The number of equal steps in t of DDIM without noise; None of all other methods and grids."""
        return None

    def __init__(
        self,
        *,
        num_steps: int | None = None,
        grid: str | Tensor = "uniform",
        denoise_final: bool | None = None,
        record_trajectory: bool = False,
    ) -> None:
        cls = type(self)
        if cls.step is GridSampler.step and cls.walk is GridSampler.walk:
            raise TypeError(f"{cls.__name__} has no step; define step(self, denoise, x, t, s, noise), or walk")
        if denoise_final not in (None, True, False):
            raise ValueError(f"denoise_final must be None, True or False, got {denoise_final!r}; leave it out")
        self.grid, self.num_steps = check_grid_choice(grid, num_steps)
        self.denoise_final = denoise_final
        self.record_trajectory = record_trajectory

    def step(
        self, denoise: Denoiser, x: Float[Tensor, "batch *shape"], t: Point, s: Point, noise: NoiseStreams
    ) -> Float[Tensor, "batch *shape"]:
        """One step from t to s of a method without memory.

        Args:
            denoise: The model: ``denoise(x, t)`` predicts ``x0``, ``eps`` and ``score``.
            x: State at t, [B, ...], not to be changed in place.
            t: Where the step starts.
            s: Where it ends, with s.t < t.t, and with noise left unless the class says ``own_last_step``.
            noise: One random stream a sample.

        Returns:
            The state at s, [B, ...].
        """
        raise NotImplementedError

    def walk(
        self, denoise: Denoiser, x: Float[Tensor, "batch *shape"], points: Sequence[Point], noise: NoiseStreams
    ) -> States:
        """Yield the state after each step; what is sent back, the state after the hooks, is where the next one starts.

        Args:
            denoise: The model.
            x: State at the first point, [B, ...].
            points: The grid; a step onto zero noise at its end is not asked for, unless the class says
                ``own_last_step``.
            noise: One random stream a sample.
        """
        for t, s in self.moves(points):
            x = yield self.step(denoise, x, t, s, noise)

    def moves(self, points: Sequence[Point]) -> list[tuple[Point, Point]]:
        """The steps in order, from point to point: down the grid, unless a sampler goes back up in between."""
        return list(pairwise(points))

    def times(self, sde: SDE) -> Float[Tensor, " points"]:
        """The grid this sampler walks on an SDE, falling, float64."""
        return make_grid(self.grid, sde, self.num_steps)

    def starting_at(self: _Same, sde: SDE, t: float) -> _Same:
        """A copy that begins at a state x_t of yours: its grid is t and all times of this one's below.

        Args:
            sde: The SDE of the model that is to be sampled, which places a grid by name.
            t: Below or at the first time of the grid, above its last.

        Raises:
            ValueError: If t is not, or the class makes times of its own that ``grid`` does not change.
        """
        times = self.times(sde)
        first, last = float(times[0]), float(times[-1])
        if not last < t <= first:
            raise ValueError(
                f"{type(self).__name__} can start at t in ({last:.6g}, {first:.6g}], got {t:.6g}; change t, or the grid"
            )
        started = self._on_grid(torch.cat([times.new_tensor([t]), times[times < t]]))
        if float(started.times(sde)[0]) != t:
            raise ValueError(f"{type(self).__name__} has times of its own, and cannot start at t = {t:.6g}; take ddim")
        return started

    def _on_grid(self: _Same, grid: Tensor) -> _Same:
        """A copy that walks down these times."""
        moved = copy.copy(self)
        moved.grid, moved.num_steps = check_grid_choice(grid, len(grid) - 1)
        return moved

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
        cond: Cond | None = None,
        noise: NoiseStreams | None = None,
        hooks: Sequence[Hook] = (),
    ) -> SampleResult:
        """Walk down the grid; see ``Sampler.sample``."""
        with torch.no_grad():
            return self._walked(model, x_T, cond, noise, hooks)

    def unroll(
        self,
        model: ScoreModel,
        x_T: Float[Tensor, "batch *shape"],
        *,
        cond: Cond | None = None,
        noise: NoiseStreams | None = None,
    ) -> SampleResult:
        """Sample so that gradients pass through all steps, to x_T and to the parameters of the model.

        Of the network no activations are kept: the backward pass computes them anew, a step at a time
        (``RecomputedScoreModel``), so that memory holds one call and the states.

        Args:
            model: Any ScoreModel, in float32 and not compiled.
            x_T: See ``Sampler.sample``.
            cond: Condition, handed to the model.
            noise: One random stream a sample.

        Raises:
            ValueError: As ``sample``.
            FloatingPointError: As ``sample``.
        """
        with torch.enable_grad():
            return self._walked(RecomputedScoreModel(model), x_T, cond, noise, ())

    def _walked(
        self, model: ScoreModel, x_T: Tensor, cond: Cond | None, noise: NoiseStreams | None, hooks: Sequence[Hook]
    ) -> SampleResult:
        if not x_T.is_floating_point() or x_T.ndim < 1 or x_T.shape[0] < 1:
            raise ValueError(
                f"x_T must be a batch of floating-point samples, got {x_T.dtype} {list(x_T.shape)}; "
                "draw it with sampler.prior_sample(model.sde, shape, noise)"
            )
        if self.follows_flow:
            require_flow(model, type(self).__name__, ddim_steps=self.ddim_steps)
        else:
            require_posterior_mean(model, type(self).__name__)
        denoise = Denoiser(model, cond)
        noise = NoiseStreams.fresh(x_T.shape[0]) if noise is None else noise
        points = points_of(model.sde, self.times(model.sde))
        if isinstance(self.grid, str):
            # whoever passes times may have an x_T of their own there
            check_prior(model.sde, points[0])
        # the final denoising is a step, too
        ends = [Point(0.0, 1.0, 0.0, math.inf, model.sde)] if self._denoises(points[-1]) else []
        steps = [*self.moves(points), *((points[-1], end) for end in ends)]
        with count_network_calls(model) as counter:
            check_finite(x_T, "start x_T")
            check_start(model.sde, x_T, points[0])
            x, states = x_T, [x_T]
            walk = self.walk(denoise, x_T, points, noise)
            for index, (t, s) in enumerate(steps):
                is_final = s in ends
                if is_final or (s.sigma == 0 and not self.own_last_step):
                    x = s.alpha * denoise(x, t).x0
                else:
                    x = walk.send(x) if index else next(walk)
                if x.shape != x_T.shape:
                    raise ValueError(
                        f"{type(self).__name__}.step must return shape {list(x_T.shape)}, got {list(x.shape)}; "
                        "fix the sampler"
                    )
                x = apply_hooks(hooks, StepState(index, len(steps), t.t, s.t, s.alpha, s.sigma, x, model.sde, noise))
                at = f"final denoising at t = {t.t:.6g}" if is_final else f"step from t = {t.t:.6g} to {s.t:.6g}"
                check_finite(x, at)
                if self.record_trajectory:
                    states.append(x)
        trajectory = torch.stack(states) if self.record_trajectory else None
        return SampleResult(x0=x, nfe=counter.calls, trajectory=trajectory)

    def _denoises(self, last: Point) -> bool:
        if self.denoise_final is None:
            return last.sigma > 0
        if self.denoise_final and last.sigma == 0:
            raise ValueError(
                "denoise_final needs noise at the grid's last time, there is none; leave denoise_final out"
            )
        return self.denoise_final
