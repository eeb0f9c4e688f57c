"""Base classes: an estimate has three terms in nats per image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from models import Cond, ScoreModel
from runtime.options import ShowsOptions
from runtime.registry import Registry
from sde_lib import NoiseStreams

from .units import nats_to_bits_per_dim


@dataclass(frozen=True)
class LikelihoodTerms:
    """-log p(x0), or a bound above it, in nats per image.

    Attributes:
        prior: L_T, float64 [B].
        diffusion: Sum of L_t over the steps, or an unbiased estimate of it, float64 [B].
        reconstruction: L_0, float64 [B].
        nfe: Network calls, counted at the network; a batch is one call.
        num_dims: Number of dimensions of one image.
        step_index: Which of the steps were evaluated, 0 nearest to the data, [B, K]; None where there are no steps.
        step_nats: L_t of those steps in nats, float64 [B, K]; of a bound that is an integral, its integrand. Which
            images a step is drawn for does not depend on what they show: its mean over those is unbiased as it is,
            however the steps were drawn.
        step_scale: What each counts for: ``diffusion`` is the sum of step_scale times step_nats, float64 [B, K].
        decoder_nats: L_0 by each draw of its noise, float64 [B, D], of a bound that draws it; else None.
        probe_nats: ``diffusion`` by each probe of a randomized divergence, float64 [B, P]; None where it has none.
        sampling_variance: Variance of ``diffusion`` for this image, over the draws of steps and of noise, in nats^2, or
            an estimate that is too large rather than too small, float64 [B]; None where no steps are drawn, or only
            one, which says nothing of it. sqrt(mean / B) is the part of the mean's standard error that more draws an
            image would take away.
    """

    prior: Float[Tensor, " batch"]
    diffusion: Float[Tensor, " batch"]
    reconstruction: Float[Tensor, " batch"]
    nfe: int
    num_dims: int
    step_index: Int[Tensor, "batch evaluated"] | None = None
    step_nats: Float[Tensor, "batch evaluated"] | None = None
    decoder_nats: Float[Tensor, "batch draws"] | None = None
    probe_nats: Float[Tensor, "batch probes"] | None = None
    step_scale: Float[Tensor, "batch evaluated"] | None = None
    sampling_variance: Float[Tensor, " batch"] | None = None

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """prior + diffusion + reconstruction, nats per image, [B]."""
        return self.prior + self.diffusion + self.reconstruction

    @property
    def bits_per_dim(self) -> Float[Tensor, " batch"]:
        """total / (num_dims ln 2), [B]."""
        return nats_to_bits_per_dim(self.total, self.num_dims)


class LikelihoodEstimator(ShowsOptions, ABC):
    """Measures data under a model. Holds numbers, never a model.

    Attributes:
        kind: "bound": the mean lies above -log p(x0), as any dequantization makes it. "exact": it is -log p(x0), up to
            the solver's tolerance.
    """

    kind: Literal["bound", "exact"] = "bound"

    @abstractmethod
    def __call__(
        self,
        model: ScoreModel,
        x0: Float[Tensor, "batch *shape"],
        *,
        cond: Cond | None = None,
        noise: NoiseStreams | None = None,
    ) -> LikelihoodTerms:
        """-log p(x0) or a bound above it.

        Args:
            model: Any ScoreModel.
            x0: Data in the model's space, [-1, 1] for images, [B, ...].
            cond: Condition, handed to the model.
            noise: One random stream a sample; None takes fresh ones from PyTorch's global generator.

        Returns:
            The terms in nats per image.

        Raises:
            ValueError: If the data is off its levels or no batch of numbers, or its condition or noise has another
                length.
            FloatingPointError: If the model's answer is not finite; the message says at which t.
        """


LIKELIHOODS: Registry[LikelihoodEstimator] = Registry("likelihood")
register_likelihood, available_likelihoods, make_likelihood = LIKELIHOODS.register, LIKELIHOODS.names, LIKELIHOODS.make
