"""What every sampler is: numbers that turn a model and x_T into x_0."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from models import ScoreModel, count_network_calls
from sde_lib import SDE, NoiseStreams, available_grids, check_grid, choices_message, make_grid


@dataclass(frozen=True)
class SampleResult:
    """What a sampler made.

    Attributes:
        x0: Samples, [B, ...].
        nfe: How often the network was called, counted at the network.
        trajectory: The states from x_T to x_0, [num_states, B, ...], if it was asked for.
    """

    x0: Float[Tensor, "batch *shape"]
    nfe: int
    trajectory: Float[Tensor, "states batch *shape"] | None = None


@dataclass(frozen=True)
class StepState:
    """What a hook sees after each step.

    Attributes:
        index: Number of the step, from 0.
        num_steps: Number of steps in all.
        t: Time before the step.
        s: Time after the step.
        x: The state at s, [B, ...].
        sde: The SDE.
    """

    index: int
    num_steps: int
    t: float
    s: float
    x: Float[Tensor, "batch *shape"]
    sde: SDE


Hook = Callable[[StepState], Tensor | None]


class Sampler(ABC):
    """Turns x_T into x_0 with the help of a model. Holds numbers, never a model."""

    @abstractmethod
    def sample(
        self,
        model: ScoreModel,
        x_T: Float[Tensor, "batch *shape"],
        *,
        cond: Shaped[Tensor, "batch *_"] | None = None,
        noise: NoiseStreams | None = None,
        hooks: Sequence[Hook] = (),
    ) -> SampleResult:
        """Sample.

        Args:
            model: Any ScoreModel.
            x_T: Draws of the prior, [B, ...], such as ``model.sde.prior_sample``.
            cond: Condition, handed to the model.
            noise: One random stream a sample; None takes fresh ones from PyTorch's global generator.
            hooks: Called after each step in turn; what a hook returns replaces the state, cast to the state's dtype.

        Returns:
            The samples, the number of network calls, and the trajectory if it was asked for.

        Raises:
            ValueError: If the grid does not fit the SDE, or a hook changes the shape.
            FloatingPointError: If the state stops being finite; the message says at which t.
        """


class StepSampler(Sampler):
    """A sampler that walks down a time grid, one ``step`` from t to s < t at a time.

    Args:
        num_steps: Number of steps; with a tensor as ``grid`` it may be left out.
        grid: Name of a time grid (``available_grids()``), or a falling tensor of times, [num_steps + 1].
        denoise_final: End with x0 as the model predicts it at the last time. None does so where noise is left there,
            as for VE; this costs one more network call.
        record_trajectory: Keep every state.

    Raises:
        ValueError: If num_steps is below 1, or disagrees with the grid.
    """

    def __init__(
        self,
        *,
        num_steps: int | None = None,
        grid: str | Tensor = "uniform",
        denoise_final: bool | None = None,
        record_trajectory: bool = False,
    ) -> None:
        if isinstance(grid, Tensor):
            grid = check_grid(grid)
            if num_steps not in (None, len(grid) - 1):
                raise ValueError(
                    f"the grid has {len(grid) - 1} steps, got num_steps = {num_steps}; leave num_steps out"
                )
        elif num_steps is None or num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}; pass 1 or more")
        elif grid not in available_grids():
            raise ValueError(choices_message("grid", grid, available_grids()))
        if denoise_final not in (None, True, False):
            raise ValueError(f"denoise_final must be None, True or False, got {denoise_final!r}; leave it out")
        self.num_steps = num_steps
        self.grid = grid
        self.denoise_final = denoise_final
        self.record_trajectory = record_trajectory

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

    def times(self, sde: SDE) -> Float[Tensor, " points"]:
        """The grid this sampler walks on an SDE, falling, float64."""
        if isinstance(self.grid, Tensor):
            return self.grid
        assert self.num_steps is not None
        return make_grid(self.grid, sde, self.num_steps)

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
        noise = NoiseStreams.fresh(x_T.shape[0]) if noise is None else noise
        grid = self.times(model.sde)
        denoise_final = self._denoises(model.sde, grid[-1])
        x = x_T
        states = [x] if self.record_trajectory else []
        with torch.no_grad(), count_network_calls(model) as counter:
            for index, (t, s) in enumerate(itertools.pairwise(grid)):
                x_s = self.step(model, x, _fill(t, x), _fill(s, x), cond=cond, noise=noise)
                if x_s.shape != x.shape:
                    raise ValueError(
                        f"{type(self).__name__}.step must return shape {list(x.shape)}, got {list(x_s.shape)}; "
                        "fix the sampler"
                    )
                x = x_s
                state = StepState(index, len(grid) - 1, float(t), float(s), x, model.sde)
                x = _apply_hooks(hooks, state)
                _check_finite(x, f"step from t = {float(t):.6g} to {float(s):.6g}")
                if self.record_trajectory:
                    states.append(x)
            if denoise_final:
                x = model(x, _fill(grid[-1], x), cond=cond).x0
                _check_finite(x, f"final denoising at t = {float(grid[-1]):.6g}")
                if self.record_trajectory:
                    states.append(x)
        return SampleResult(x0=x, nfe=counter.calls, trajectory=torch.stack(states) if states else None)

    def _denoises(self, sde: SDE, last: Tensor) -> bool:
        if self.denoise_final is None:
            return float(sde.sigma(last)) > 0
        if self.denoise_final and float(sde.sigma(last)) == 0:
            raise ValueError(
                "denoise_final needs noise at the grid's last time, there is none; leave denoise_final out"
            )
        return self.denoise_final


def _fill(time: Tensor, x: Tensor) -> Tensor:
    return time.to(x.device).expand(x.shape[0])


def _check_finite(x: Tensor, where: str) -> None:
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError(
            f"the state stopped being finite in the {where}; look at the model's output there, or clip x0"
        )


def _apply_hooks(hooks: Sequence[Hook], state: StepState) -> Tensor:
    x = state.x
    for hook in hooks:
        replaced = hook(StepState(state.index, state.num_steps, state.t, state.s, x, state.sde))
        if replaced is not None:
            if replaced.shape != x.shape:
                raise ValueError(f"a hook must return shape {list(x.shape)}, got {list(replaced.shape)}; fix the hook")
            x = replaced.to(x)
    return x
