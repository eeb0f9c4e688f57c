"""States x_t on the way from x_T to x_0, of a few samples, at a bounded number of times."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from samplers import StepState
from sde_lib import SDE

MOST_FRAMES = 60
MOST_SAMPLES = 16


class TrajectoryHook:
    """A sampler's hook that keeps the states of the first samples of a batch: x_T, evenly spread steps, and x_0.

    Args:
        sde: The SDE.
        x_T: Where the sampler starts, [B, ...].
        num_samples: How many samples to keep states of.
        most: How many states to keep at most, x_T and x_0 included; at least 3.
    """

    def __init__(self, sde: SDE, x_T: Float[Tensor, "batch *shape"], num_samples: int, most: int = MOST_FRAMES) -> None:
        self._sde, self._x_T, self._num_samples, self._most = sde, self._part(x_T, num_samples), num_samples, most
        self._states: list[tuple[float, Tensor]] = []

    def __call__(self, state: StepState) -> None:
        """Keep a state, if it is one of those."""
        if not self._states:
            self._states.append((state.t, self._x_T))
        # two are left for x_T and, where the sampler denoises after its last step, x_0
        spread = min(self._most - 2, state.num_steps)
        if (state.index + 1) * spread // state.num_steps > state.index * spread // state.num_steps:
            self._states.append((state.s, self._part(state.x, self._num_samples)))

    def arrays(self, x0: Float[Tensor, "batch *shape"]) -> dict[str, np.ndarray]:
        """What was kept.

        Args:
            x0: What the sampler returned, [B, ...].

        Returns:
            "states", float32 [frames, num_samples, ...], "t", float64 [frames], and "scales", float64 [frames],
            1 / sqrt(alpha^2 + sigma^2), which brings states to unit variance.
        """
        last = self._part(x0, self._num_samples)
        states = self._states or [(self._sde.t_max, self._x_T)]
        if not torch.equal(states[-1][1], last):
            states = [*states, (states[-1][0], last)]
        t = torch.tensor([t for t, _ in states], dtype=torch.float64)
        with torch.no_grad():
            scales = (self._sde.alpha(t).square() + self._sde.sigma(t).square()).rsqrt()
        scales[-1] = 1
        return {"states": torch.stack([x for _, x in states]).numpy(), "t": t.numpy(), "scales": scales.numpy()}

    @staticmethod
    def _part(x: Tensor, num_samples: int) -> Tensor:
        return x[:num_samples].detach().to("cpu", torch.float32, copy=True)
