"""Skip the steps that would spoil the weights, and end a training that has too many of them in a row."""

from __future__ import annotations

import math
from typing import Any

_DECAY, _WARM_UP = 0.99, 50  # of the mean loss, and the steps before it is trusted


class BadSteps:
    """Tells for each step if it may change the weights.

    A step is skipped if its loss or gradient norm is not finite, or its loss exceeds ``explosion_factor`` times the
    running mean of |loss| over the steps that were not skipped (exponential, decay 0.99, once there are 50).

    Args:
        explosion_factor: That factor, above 1; 0 lets any finite loss pass.
        max_bad_steps: Steps in a row that may be skipped; one more ends the run.

    Attributes:
        skipped: Steps skipped so far.
    """

    def __init__(self, *, explosion_factor: float = 1000.0, max_bad_steps: int = 10) -> None:
        self.explosion_factor, self.max_bad_steps = explosion_factor, max_bad_steps
        self.skipped = self._in_a_row = self._count = 0
        self._mean = 0.0

    @property
    def doubtful(self) -> bool:
        """True if the last step was skipped: the weights may be the reason."""
        return self._in_a_row > 0

    def accepts(self, loss: float, grad_norm: float, step: int) -> bool:
        """True if the step may change the weights.

        Args:
            loss: Its mean loss.
            grad_norm: The norm of its gradient, before clipping.
            step: Its number, for the error.

        Raises:
            FloatingPointError: If it is one too many in a row.
        """
        reason = self._reason(loss, grad_norm)
        if reason is None:
            self._in_a_row, self._count = 0, self._count + 1
            self._mean = _DECAY * self._mean + (1 - _DECAY) * abs(loss)
            return True
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        if self._in_a_row > self.max_bad_steps:
            raise FloatingPointError(
                f"{reason} at step {step}, as in the {self._in_a_row - 1} steps before it, which were skipped; lower "
                "optim.learning_rate or training.grad_clip, and go on from the last checkpoint if there is one"
            )
        return False

    def check_trained(self, step: int) -> None:
        """Refuse to end a training of which no step changed the weights.

        Args:
            step: The number of its last step.

        Raises:
            FloatingPointError: If all of its steps were skipped.
        """
        if self.skipped == step > 0:
            raise FloatingPointError(
                f"nothing was trained: every step up to {step} was skipped; correct what makes the loss or its "
                "gradient nan or infinite, or lower optim.learning_rate, and train anew in another work directory"
            )

    def _reason(self, loss: float, grad_norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient norm is {grad_norm}"
        if self.explosion_factor > 0 and self._count >= _WARM_UP:
            mean = self._mean / (1 - _DECAY**self._count)
            if abs(loss) > self.explosion_factor * mean:
                return f"the loss is {loss:g}, its running mean {mean:g}"
        return None

    def state(self) -> dict[str, Any]:
        """The entry of a checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self._in_a_row, "count": self._count, "mean": self._mean}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo ``state``."""
        self.skipped, self._in_a_row = int(state["skipped"]), int(state["in_a_row"])
        self._count, self._mean = int(state["count"]), float(state["mean"])


def bad_steps_mismatch(state: Any) -> str | None:
    """The reason why ``BadSteps.restore`` cannot read a checkpoint's entry, or None; old checkpoints have none."""
    if state is None:
        return None
    counts = [state.get(name) for name in ("skipped", "in_a_row", "count")] if isinstance(state, dict) else [None]
    whole = all(isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**53 for count in counts)
    if whole and isinstance(state.get("mean"), float) and 0 <= state["mean"] < math.inf:
        return None
    return "its entry guard does not hold the counts of skipped steps"
