"""Base class of samplers, which are stateless: the model is an argument."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, ScoreModel
from runtime.options import ShowsOptions
from sde_lib import SDE, NoiseStreams


@dataclass(frozen=True)
class SampleResult:
    """The result of sampling.

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
    """The state that a hook sees after each step, the final denoising included, whose state is x0 itself.

    Attributes:
        index: Number of the step, from 0.
        num_steps: Number of steps in all.
        t: Time before the step.
        s: Time after the step; 0 after a final denoising.
        alpha: Signal scale of the state: alpha(s), and 1 after a final denoising.
        sigma: Its noise standard deviation: sigma(s), and 0 after a final denoising, for VE too.
        x: The state, alpha x0 + sigma eps, [B, ...].
        sde: The SDE.
        noise: One random stream a sample, the sampler's own: a hook that draws from it moves it on.

    Example:
        >>> def keep_known(state):  # inpainting by replacement (Song et al. 2021, Appendix I.2)
        ...     noisy = state.alpha * image + state.sigma * state.noise.normal_like(image)
        ...     return torch.where(mask, noisy, state.x)
    """

    index: int
    num_steps: int
    t: float
    s: float
    alpha: float
    sigma: float
    x: Float[Tensor, "batch *shape"]
    sde: SDE
    noise: NoiseStreams


Hook = Callable[[StepState], Tensor | None]
States = Generator[Tensor, Tensor, None]


class Sampler(ShowsOptions, ABC):
    """Turns x_T into x_0 with the help of a model."""

    def prior_sample(
        self, sde: SDE, sample_shape: Sequence[int], noise: NoiseStreams, *, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "batch *shape"]:
        """Draw x_T, pure noise at the time where this sampler begins: ``sde.t_max`` unless its grid says otherwise.

        Args:
            sde: The SDE of the model that is to be sampled.
            sample_shape: Shape of one sample, such as (3, 32, 32).
            noise: One random stream a sample; hand the same to ``sample``.
            device: Where the result goes.

        Returns:
            float32 [B, *sample_shape].

        Raises:
            ValueError: If x_T should hold signal there, which pure noise lacks.
        """
        return sde.prior_sample(sample_shape, noise, device=device)

    @abstractmethod
    def sample(
        self,
        model: ScoreModel,
        x_T: Float[Tensor, "batch *shape"],
        *,
        cond: Cond | None = None,
        noise: NoiseStreams | None = None,
        hooks: Sequence[Hook] = (),
    ) -> SampleResult:
        """Sample.

        Args:
            model: Any ScoreModel.
            x_T: The states where the sampler begins, [B, ...]: noise by ``prior_sample``, or, where a grid of your own
                begins further down, data with noise by ``model.sde.perturb`` at its first time.
            cond: Condition, handed to the model.
            noise: One random stream a sample; None takes fresh ones from PyTorch's global generator.
            hooks: Called after each step in turn, the final denoising included; what a hook returns replaces the state,
                cast to the state's dtype.

        Returns:
            The samples, the number of network calls, and the trajectory if it was asked for.

        Raises:
            ValueError: If the grid does not fit the SDE, x_T is noise of another time than its first, or a hook changes
                the shape.
            FloatingPointError: If the state stops being finite; the message says at which t.
        """


def check_finite(x: Float[Tensor, "batch *shape"], where: str) -> None:
    """Refuse a state that is not finite.

    Args:
        x: The state.
        where: What the message calls the place, such as "step from t = 0.2 to 0.1".

    Raises:
        FloatingPointError: If a number is NaN or infinite.
    """
    # a sum is three times as fast as isfinite, and not finite where a term is not; finite terms may overflow it
    if not math.isfinite(float(x.detach().sum())) and not bool(torch.isfinite(x).all()):
        raise FloatingPointError(
            f"the state stopped being finite in the {where}; look at the model's output there, or clip x0"
        )


def apply_hooks(hooks: Sequence[Hook], state: StepState) -> Tensor:
    """Call hooks in turn; what one returns replaces the state for the next.

    Args:
        hooks: The hooks.
        state: What the first one sees.

    Returns:
        The state in the end.

    Raises:
        ValueError: If a hook changes the shape.
    """
    x = state.x
    version = None if x.is_inference() else x._version
    for hook in hooks:
        replaced = hook(replace(state, x=x))
        if replaced is not None:
            if replaced.shape != x.shape:
                raise ValueError(f"a hook must return shape {list(x.shape)}, got {list(replaced.shape)}; fix the hook")
            x = replaced.to(x)
    # a state that was changed in place is another one too, to samplers that would correct the one they proposed
    return x.clone() if x is state.x and hooks and (version is None or x._version != version) else x
