"""Prediction: what a network says of x_t, under each of its names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sde_lib import expand_like


class _Source:
    """The values still to be found of a prediction: alpha and sigma, looked up once, and then x0 or eps.

    Args:
        x_t: Noisy data.
        coefficients: Gives alpha and sigma.
        unchanged: What all this rests on, x_t among it.
    """

    def __init__(
        self, x_t: Tensor, coefficients: Callable[[], tuple[Tensor, Tensor]], unchanged: tuple[Tensor, ...]
    ) -> None:
        self.x_t = x_t
        self._coefficients: tuple[Tensor, Tensor] | None = None
        self._look_up = coefficients
        self._versions = [(tensor, tensor._version) for tensor in unchanged]

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """alpha and sigma."""
        if any(tensor._version != version for tensor, version in self._versions):
            raise RuntimeError(
                "x_t, t or the prediction was changed in place before x0 and eps were read; read them first, or clone"
            )
        if self._coefficients is None:
            self._coefficients = self._look_up()
        return self._coefficients

    def other(self, one: Tensor, scale: Tensor, divisor: Tensor) -> Tensor:
        """(x_t - scale one) / divisor."""
        # multiplying by the reciprocal, taken in float64, is twice as fast as dividing
        difference = torch.addcmul(self.x_t, expand_like(scale, self.x_t), one, value=-1)
        return difference.mul_(expand_like(divisor.reciprocal(), self.x_t))


class Prediction:
    """A network's prediction at x_t: the clean data x0 and the noise eps, with x_t = alpha x0 + sigma eps.

    From one of the two the other is found when it is first asked for, since most samplers use one alone.

    Args:
        x0: Predicted data, E[x0 | x_t] for a perfect network, [B, ...].
        eps: Predicted noise, [B, ...].
        sigma: Noise standard deviation at t, float64 [B].
        variance_fraction: Where a network that learns its reverse variance places it between the small one (0) and the
            large one (1), in the logarithm (Nichol & Dhariwal 2021, Eq. 15), [B, ...]; None without.
    """

    def __init__(
        self,
        x0: Float[Tensor, "batch *shape"],
        eps: Float[Tensor, "batch *shape"],
        sigma: Float[Tensor, " batch"],
        variance_fraction: Float[Tensor, "batch *shape"] | None = None,
    ) -> None:
        self._x0: Tensor | None = x0
        self._eps: Tensor | None = eps
        self._sigma: Tensor | None = sigma
        self._source: _Source | None = None
        self.variance_fraction: Float[Tensor, "batch *shape"] | None = variance_fraction

    @property
    def x0(self) -> Float[Tensor, "batch *shape"]:
        """Predicted data, [B, ...].

        Raises:
            RuntimeError: If it is still to be found, from an x_t, a t or an eps that was changed in place since.
        """
        if self._x0 is None:
            assert self._eps is not None and self._source is not None
            alpha, sigma = self._source.coefficients()
            self._x0 = self._source.other(self._eps, sigma, alpha)
        return self._x0

    @property
    def eps(self) -> Float[Tensor, "batch *shape"]:
        """Predicted noise, [B, ...].

        Raises:
            RuntimeError: If it is still to be found, from an x_t, a t or an x0 that was changed in place since.
        """
        if self._eps is None:
            assert self._x0 is not None and self._source is not None
            alpha, sigma = self._source.coefficients()
            self._eps = self._source.other(self._x0, alpha, sigma)
        return self._eps

    @property
    def sigma(self) -> Float[Tensor, " batch"]:
        """Noise standard deviation at t, float64 [B]."""
        if self._sigma is None:
            assert self._source is not None
            self._sigma = self._source.coefficients()[1]
        return self._sigma

    @property
    def given(self) -> Literal["x0", "eps", "both"]:
        """The one of x0 and eps that costs nothing."""
        if self._x0 is None:
            return "eps"
        return "x0" if self._eps is None else "both"

    @property
    def score(self) -> Float[Tensor, "batch *shape"]:
        """grad log p_t(x_t) = -eps / sigma."""
        return -self.eps / expand_like(self.sigma, self.eps)

    @classmethod
    def from_eps(
        cls, x_t: Tensor, eps: Tensor, *, alpha: Tensor, sigma: Tensor, variance_fraction: Tensor | None = None
    ) -> Prediction:
        """x0 = (x_t - sigma eps) / alpha."""
        return cls.from_one("eps", x_t, eps, lambda: (alpha, sigma), variance_fraction=variance_fraction)

    @classmethod
    def from_x0(
        cls, x_t: Tensor, x0: Tensor, *, alpha: Tensor, sigma: Tensor, variance_fraction: Tensor | None = None
    ) -> Prediction:
        """eps = (x_t - alpha x0) / sigma."""
        return cls.from_one("x0", x_t, x0, lambda: (alpha, sigma), variance_fraction=variance_fraction)

    @classmethod
    def from_one(
        cls,
        kind: Literal["x0", "eps"],
        x_t: Tensor,
        value: Tensor,
        coefficients: Callable[[], tuple[Tensor, Tensor]],
        *,
        rests_on: tuple[Tensor, ...] = (),
        variance_fraction: Tensor | None = None,
    ) -> Prediction:
        """The other of x0 and eps by x_t = alpha x0 + sigma eps, when it is asked for.

        Args:
            kind: Which one is given.
            x_t: Noisy data, [B, ...].
            value: The one that is given, [B, ...].
            coefficients: Gives alpha and sigma, float64 [B] each; called once at most.
            rests_on: Tensors besides x_t and the value that must not change until all is read.
            variance_fraction: See ``Prediction``.
        """
        prediction = cls.__new__(cls)
        prediction._x0, prediction._eps = (value, None) if kind == "x0" else (None, value)
        prediction._sigma, prediction.variance_fraction = None, variance_fraction
        unchanged = (x_t, value, *rests_on)
        # with gradients the graph is to be made here, wherever x0 and eps are read; inference tensors count no changes
        now = torch.is_grad_enabled() or any(tensor.is_inference() for tensor in unchanged)
        prediction._source = _Source(x_t, coefficients, () if now else unchanged)
        if now:
            _ = prediction.x0, prediction.eps, prediction.sigma
        return prediction

    @classmethod
    def from_v(
        cls, x_t: Tensor, v: Tensor, *, alpha: Tensor, sigma: Tensor, variance_fraction: Tensor | None = None
    ) -> Prediction:
        """v = alpha eps - sigma x0 (Salimans & Ho 2022, Appendix D), for any alpha and sigma:

        x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2),   eps = (sigma x_t + alpha v) / (alpha^2 + sigma^2).
        """
        power = alpha.square() + sigma.square()
        x0 = expand_like(alpha / power, x_t) * x_t - expand_like(sigma / power, x_t) * v
        eps = expand_like(sigma / power, x_t) * x_t + expand_like(alpha / power, x_t) * v
        return cls(x0=x0, eps=eps, sigma=sigma, variance_fraction=variance_fraction)

    @classmethod
    def from_score(
        cls, x_t: Tensor, score: Tensor, *, alpha: Tensor, sigma: Tensor, variance_fraction: Tensor | None = None
    ) -> Prediction:
        """eps = -sigma score, and x0 by Tweedie's formula (Robbins 1956)."""
        eps = -expand_like(sigma, x_t) * score
        return cls.from_eps(x_t, eps, alpha=alpha, sigma=sigma, variance_fraction=variance_fraction)
