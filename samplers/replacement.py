"""Replacement: a hook that draws what is observed of the state anew after each step."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from models.operators import LinearOperator

from .base import StepState


class ReplaceObserved:
    """A hook under which A x_s has the law of A x_s given y = A x0 + n, n ~ N(0, noise_std^2 I), after each step:

        A x_s := alpha_s y + (sigma_s^2 A A^T - alpha_s^2 noise_std^2 I)^(1/2) z

    and what A does not see stays as it is (Song et al. 2021, Appendix I.2, for A a mask and no noise). Where y has more
    noise than the state, in directions with sigma_s^2 e < alpha_s^2 noise_std^2 for an eigenvalue e of A A^T, it
    stays too. What is hidden is drawn by the model without a look at y, so that what is sampled is not the posterior;
    ``ResampledSampler`` mends that by time travel.

    Args:
        operator: A.
        y: The measurement of each sample, [B, ...].
        noise_std: Standard deviation of n, at least 0.

    Raises:
        ValueError: If y does not fit the operator, or noise_std is negative.

    Example:
        >>> seen = Inpainting(run.sample_shape, hidden="right")
        >>> sampler.sample(model, x_T, noise=noise, hooks=[ReplaceObserved(seen, seen.forward(x0))])
    """

    def __init__(
        self, operator: LinearOperator, y: Float[Tensor, "batch *observed"], *, noise_std: float = 0.0
    ) -> None:
        operator.check_observed(y)
        if not noise_std >= 0:
            raise ValueError(f"noise_std must be at least 0, got {noise_std}; 0 is no noise")
        self.operator, self.y, self.noise_std = operator, y, noise_std

    def __call__(self, state: StepState) -> Tensor:
        """The state with what is observed replaced."""
        y = self.y.to(state.x)
        noise_of_y = (state.alpha * self.noise_std) ** 2

        def left(e: Tensor) -> Tensor:
            return state.sigma**2 * e - noise_of_y

        z = self.operator.gram(lambda e: left(e).clamp(min=0).sqrt(), state.noise.normal_like(y))
        off = state.alpha * y + z - self.operator.forward(state.x)
        seen = self.operator.gram(lambda e: torch.where((left(e) >= 0) & (e > 0), 1 / e, 0.0), off)
        return state.x + self.operator.adjoint(seen)
