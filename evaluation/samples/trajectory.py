"""States x_t on the way from x_T to x_0, of a few samples, at a bounded number of times."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from samplers import StepState

MOST_FRAMES = 60
MOST_SAMPLES = 16


class TrajectoryHook:
    """A sampler's hook that keeps the states of the first samples of a batch: x_T, evenly spread steps, and x_0.

    Args:
        x_T: Where the sampler starts, [B, ...].
        num_samples: How many samples to keep states of.
        most: How many states to keep at most, x_T and x_0 included; at least 2.
    """

    def __init__(self, x_T: Float[Tensor, "batch *shape"], num_samples: int, most: int = MOST_FRAMES) -> None:
        self._x_T, self._num_samples, self._most = x_T, num_samples, most
        self._states: list[Tensor] = []
        self._times: list[float] = []
        self._scales: list[float] = []

    def __call__(self, state: StepState) -> None:
        """Keep a state, if it is one of those."""
        if not self._states:
            t = torch.tensor([state.t], dtype=torch.float64)
            with torch.no_grad():
                alpha, sigma = state.sde.alpha_sigma(t)
            self._keep(self._x_T, state.t, float(alpha), float(sigma))
        spread = min(self._most - 1, state.num_steps)
        if (state.index + 1) * spread // state.num_steps > state.index * spread // state.num_steps:
            self._keep(state.x, state.s, state.alpha, state.sigma)

    def _keep(self, x: Tensor, t: float, alpha: float, sigma: float) -> None:
        self._states.append(x[: self._num_samples].detach().to("cpu", torch.float32, copy=True))
        self._times.append(t)
        self._scales.append(1 / math.hypot(alpha, sigma))

    def arrays(self) -> dict[str, np.ndarray]:
        """The recorded states.

        Returns:
            "states", float32 [frames, num_samples, ...], "t", float64 [frames], and "scales", float64 [frames],
            1 / sqrt(alpha^2 + sigma^2), which brings states to unit variance.

        Raises:
            ValueError: If the sampler called no hook.
        """
        if not self._states:
            raise ValueError(
                "sampling.record_trajectory needs a sampler that calls its hooks, got one that does not; "
                "call them after each step, or leave it out"
            )
        return {
            "states": torch.stack(self._states).numpy(),
            "t": np.array(self._times),
            "scales": np.array(self._scales),
        }
