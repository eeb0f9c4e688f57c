"""One call of ``sample``: the model and its condition, the noise, and points of the SDE as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from models import Prediction, ScoreModel
from sde_lib import SDE, NoiseStreams, combine

_NO_SIGNAL = 1e-12


@dataclass(frozen=True)
class Point:
    """A time of an SDE with its coefficients, as Python floats: all that a step needs to know of the SDE.

    Attributes:
        t: Time.
        alpha: Signal scale.
        sigma: Noise standard deviation.
        log_snr: lambda = log(alpha^2 / sigma^2); infinite where sigma or alpha is 0.
    """

    t: float
    alpha: float
    sigma: float
    log_snr: float

    @property
    def noise_ratio(self) -> float:
        """sigma / alpha, the noise in the scale of the data: the time of Karras et al. 2022.

        Raises:
            ValueError: If there is no signal left, as for the cosine schedule at t = 1.
        """
        self.check_signal()
        return self.sigma / self.alpha

    def check_signal(self) -> None:
        """Refuse a point without signal, in the scale of whose data the noise is beyond float32.

        Raises:
            ValueError: If alpha is below 1e-12 sigma.
        """
        if self.alpha == 0:
            raise ValueError(
                f"alpha is 0 at t = {self.t:.6g}, where this sampler cannot start; begin the grid at sde.t_max, and if "
                f"that is here, set it lower, such as {0.999 * self.t:.6g}"
            )
        if self.alpha < _NO_SIGNAL * self.sigma:
            raise ValueError(
                f"hardly any signal is left at t = {self.t:.6g}, alpha is {self.alpha:.3g}, where this sampler cannot "
                "start; take an SDE with less noise, such as fewer or smaller betas"
            )


def points_of(sde: SDE, times: Float[Tensor, " points"]) -> list[Point]:
    """The SDE's coefficients at some times, computed together in float64.

    Args:
        sde: The SDE.
        times: Times in [0, 1], [n].

    Returns:
        One point a time.
    """
    times = times.detach().cpu().double()
    columns = (times, *sde.alpha_sigma(times), sde.log_snr(times))
    return [Point(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


@dataclass(frozen=True)
class Run:
    """One call of ``sample``.

    Attributes:
        model: The model.
        cond: Its condition, or None.
        noise: One random stream a sample.
    """

    model: ScoreModel
    cond: Tensor | None
    noise: NoiseStreams
    _scratch: list[Tensor] = field(default_factory=list, repr=False, compare=False)

    @property
    def sde(self) -> SDE:
        """The model's SDE."""
        return self.model.sde

    def predict(self, x: Float[Tensor, "batch *shape"], point: Point) -> Prediction:
        """Call the model at a point."""
        return self.model(x, time_at(point, x), cond=self.cond)

    def borrow_noise(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Standard normal draws in the shape and dtype and on the device of ``x``, gone with the next draw.

        The numbers are those of ``noise.normal_like``, which is what to use for noise that is kept or returned. These
        lie in memory that is used again: for a batch of 64 CIFAR-10 images new memory, and its division into samples,
        would cost a twentieth of the draw.
        """
        its_own = type(self.noise).normal_like is not NoiseStreams.normal_like
        if its_own or x.dtype != torch.float32 or x.device.type != "cpu" or len(x) != len(self.noise):
            return self.noise.normal_like(x)
        if not self._scratch or self._scratch[0].shape != x.shape:
            draws = torch.empty(x.shape)
            self._scratch[:] = [draws, *draws.unbind()]
        draws, *rows = self._scratch
        self.noise.fill_normal(rows)
        return draws

    def points_at_log_snr(self, log_snr: Sequence[float]) -> list[Point]:
        """The points whose log-SNR are nearest to these, found together: of one point at a time each costs as much."""
        return points_of(self.sde, self.sde.time_from_log_snr(torch.tensor(log_snr, dtype=torch.float64)))


def time_at(point: Point, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
    """A point's time for every sample of a batch, float64 [B]."""
    return torch.full((x.shape[0],), point.t, dtype=torch.float64, device=x.device)


def weigh(
    prediction: Prediction, x: Tensor, t: Point, *, on_x0: float = 0.0, on_eps: float = 0.0, on_x: float = 0.0
) -> Tensor:
    """on_x0 x0 + on_eps eps + on_x x, with x = alpha x0 + sigma eps put in for what the network did not give.

    Args:
        prediction: What the model says of x.
        x: The state, [B, ...].
        t: Where it is.
        on_x0: Weight of x0.
        on_eps: Weight of eps.
        on_x: Weight of the state.
    """
    if prediction.given == "eps" and t.alpha > 0:
        on_x += on_x0 / t.alpha
        on_eps -= on_x0 / t.alpha * t.sigma
        return combine((on_x, x), (on_eps, prediction.eps))
    if prediction.given == "x0" and t.sigma > 0:
        on_x += on_eps / t.sigma
        on_x0 -= on_eps / t.sigma * t.alpha
        return combine((on_x, x), (on_x0, prediction.x0))
    return combine((on_x, x), (on_x0, prediction.x0), (on_eps, prediction.eps))
