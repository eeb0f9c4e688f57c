"""The meaning of a network's input scale, time input and output (Karras et al. 2022, Table 1)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from runtime.options import ShowsOptions
from runtime.registry import Registry, choices_message
from sde_lib import SDE, expand_like

PerSample = Float[Tensor, " batch"]
Reading = tuple[Literal["eps", "x0", "v"], Tensor]
TimeInput = Literal[
    "auto",
    "index",
    "index1000",
    "reversed_index",
    "t",
    "t999",
    "t1000",
    "reversed_t",
    "reversed_t999",
    "log_snr",
    "log_sigma",
    "log_half_sigma",
    "edm",
    "edm1000",
]
_TIMES_T = {"t": 1, "t999": 999, "t1000": 1000}


def _check_time_input(name: str) -> None:
    if name not in get_args(TimeInput):
        raise ValueError(choices_message("time input", name, sorted(get_args(TimeInput))))


def time_input(name: str, sde: SDE, t: PerSample) -> PerSample:
    """The number that the network's time embedding is given: the only place where time is rescaled.

    Args:
        name: "index": timestep of the SDE's table, N t - 1, as DDPM; "index1000": that times 1000 / N, as Improved DDPM
            (Nichol & Dhariwal 2021) tells networks whatever N is; "reversed_index": N - N t, 0 at the largest noise, as
            Song et al. 2021's NCSN++ of discrete noise levels; "t999": 999 t, as Song et al. 2021's continuous models;
            "t" and "t1000": t and 1000 t, as Stable Diffusion 3 (Esser et al. 2024); "reversed_t": 1 - t, as SiT (Ma et
            al. 2024); "reversed_t999": 999 (1 - t), as Liu et al. 2023, whose time is 0 at noise; "log_snr": log-SNR,
            from 0 at its largest (t_min) to 999 at its smallest (t_max), as VDM (Kingma et al. 2021), whose learned
            schedule moves t; "log_sigma": ln sigma; "log_half_sigma": ln(sigma / 2), the ln sigma of data in [0, 1]
            rather than [-1, 1], as Song et al. 2021's NCSN++; "edm": ln(sigma / alpha) / 4 (Karras et al. 2022);
            "edm1000": 1000 times that, as Song et al. 2023's consistency models;
            "auto": "index" where the SDE has a table, else "t999".
        sde: The SDE.
        t: Times, [B].

    Returns:
        float64 [B].

    Raises:
        ValueError: If the name is unknown, or an index is asked of an SDE without a table.
    """
    _check_time_input(name)
    t = t.double()
    if name == "auto":
        name = "t999" if sde.table_size is None else "index"
    if name in ("index", "index1000", "reversed_index"):
        if sde.table_size is None:
            raise ValueError(f"time input {name!r} needs an SDE with a table; use 't999', or an SDE such as 'ddpm'")
        timestep = sde.table_size * t
        if name == "reversed_index":
            return sde.table_size - timestep
        return timestep - 1 if name == "index" else (timestep - 1) * (1000 / sde.table_size)
    if name in _TIMES_T:
        return _TIMES_T[name] * t
    if name in ("reversed_t", "reversed_t999"):
        return _TIMES_T[name.removeprefix("reversed_")] * (1 - t)
    if name == "log_snr":
        # one a sample, as a schedule that is being learned takes them
        high, low = (sde.log_snr(torch.full_like(t, end)) for end in (sde.t_min, sde.t_max))
        return 999 * (high - sde.log_snr(t)) / (high - low)
    if name == "log_sigma":
        return sde.log_sigma(t)
    if name == "log_half_sigma":
        return sde.log_sigma(t) - math.log(2.0)
    return (-125 if name == "edm1000" else -0.125) * sde.log_snr(t)


class Parameterization(ShowsOptions, ABC):
    """c_in scales the network's input, c_noise is its time, ``read`` gives the output its meaning.

    Args:
        time_input: What the network is told of t; see ``time_input``.

    Raises:
        ValueError: If the time input is unknown.

    Attributes:
        outputs_per_channel: Outputs of the network for each channel of the data.
    """

    outputs_per_channel: int = 1

    def __init__(self, *, time_input: TimeInput = "auto") -> None:
        _check_time_input(time_input)
        self.time_input: TimeInput = time_input

    @property
    def scales_input(self) -> bool:
        """True if ``c_in`` is another than 1."""
        return type(self).c_in is not Parameterization.c_in

    def c_in(self, sde: SDE, t: PerSample) -> PerSample:
        """Scale of the network's input, [B]: 1 unless a subclass says otherwise."""
        return torch.ones_like(t, dtype=torch.float64)

    def c_noise(self, sde: SDE, t: PerSample) -> PerSample:
        """The network's time input, [B]."""
        return time_input(self.time_input, sde, t)

    @abstractmethod
    def read(self, raw: Tensor, x_t: Tensor, sde: SDE, t: PerSample) -> Reading:
        """Read the raw output: the name of a quantity, and its value.

        Args:
            raw: The network's output, [B, ...].
            x_t: Noisy data, [B, ...].
            sde: The SDE.
            t: Times, [B].
        """


PARAMETERIZATIONS: Registry[Parameterization] = Registry("parameterization")
register_parameterization = PARAMETERIZATIONS.register


def make_parameterization(
    name: str, *, time_input: TimeInput = "auto", data_std: float = 0.5, num_levels: int | None = None
) -> Parameterization:
    """Build a parameterization by name.

    Args:
        name: One of "eps", "x0", "v", "velocity", "velocity_to_data", "score", "edm", "levels".
        time_input: See ``time_input``; "auto" is "edm" for EDM.
        data_std: Standard deviation of the data, used by EDM alone.
        num_levels: Number of grey levels of the data, used by "levels" alone.

    Raises:
        ValueError: If the name is unknown, or "levels" lacks its number.
    """
    if name == "edm":
        return EDMParameterization(data_std=data_std, time_input="edm" if time_input == "auto" else time_input)
    if name == "levels":
        return PARAMETERIZATIONS.make(name, time_input=time_input, num_levels=num_levels)
    return PARAMETERIZATIONS.make(name, time_input=time_input)


@register_parameterization("eps")
class EpsParameterization(Parameterization):
    """The output is eps (Ho et al. 2020, Eq. 11)."""

    def read(self, raw: Tensor, x_t: Tensor, sde: SDE, t: PerSample) -> Reading:
        """eps = raw."""
        return "eps", raw


@register_parameterization("x0")
class X0Parameterization(Parameterization):
    """The output is x0."""

    def read(self, raw: Tensor, x_t: Tensor, sde: SDE, t: PerSample) -> Reading:
        """x0 = raw."""
        return "x0", raw


@register_parameterization("v")
class VParameterization(Parameterization):
    """The output is v = alpha eps - sigma x0 (Salimans & Ho 2022, Section 4)."""

    def read(self, raw: Tensor, x_t: Tensor, sde: SDE, t: PerSample) -> Reading:
        """v = raw."""
        return "v", raw


@register_parameterization("velocity")
class VelocityParameterization(Parameterization):
    """The output is the velocity u = alpha' x0 + sigma' eps, dx_t / dt at fixed x0 and eps, for any SDE:

        v = ((alpha^2 + sigma^2) u - (alpha alpha' + sigma sigma') x_t) / W,   W = alpha sigma' - sigma alpha'.

    On ``RectifiedFlow`` without shift u = eps - x0, and W = 1 (Liu et al. 2023, Eq. 1; Lipman et al. 2023, Eq. 23).

    Args:
        time_input: See ``time_input``.
        towards_data: The output is -u, of those whose time runs from noise to data (Liu et al. 2023, SiT).
    """

    def __init__(self, *, time_input: TimeInput = "auto", towards_data: bool = False) -> None:
        super().__init__(time_input=time_input)
        self.towards_data = towards_data

    def read(self, raw: Tensor, x_t: Tensor, sde: SDE, t: PerSample) -> Reading:
        """v from u; both ends of a rectified flow are regular."""
        alpha, sigma = sde.alpha_sigma(t)
        alpha_rate, sigma_rate = sde.rates(t)
        determinant = alpha * sigma_rate - sigma * alpha_rate
        of_output = (alpha.square() + sigma.square()) / determinant
        of_state = (alpha * alpha_rate + sigma * sigma_rate) / determinant
        if self.towards_data:
            of_output = -of_output
        return "v", expand_like(of_output, raw) * raw - expand_like(of_state, x_t) * x_t


@register_parameterization("velocity_to_data")
class DataVelocityParameterization(VelocityParameterization):
    """The output is -u, of networks whose time runs from noise to data; see ``VelocityParameterization``.

    Args:
        time_input: See ``time_input``.
    """

    def __init__(self, *, time_input: TimeInput = "auto") -> None:
        super().__init__(time_input=time_input, towards_data=True)


@register_parameterization("score")
class ScoreParameterization(Parameterization):
    """The output is sigma times the score, so that the network's own scale is 1 (Song & Ermon 2020, Technique 3).

    It is ``scale_by_sigma`` of Song et al. 2021's code.
    """

    def read(self, raw: Tensor, x_t: Tensor, sde: SDE, t: PerSample) -> Reading:
        """eps = -sigma score = -raw."""
        return "eps", -raw


@register_parameterization("edm")
class EDMParameterization(Parameterization):
    """Preconditioning of Karras et al. 2022, Table 1, written for any SDE by x = x_t / alpha and s = sigma / alpha:

        x0 = c_skip x + c_out raw,   c_skip = d^2 / (s^2 + d^2),   c_out = s d / sqrt(s^2 + d^2),
        c_in = 1 / sqrt(s^2 + d^2) on x,   c_noise = ln(s) / 4.

    Args:
        data_std: d, the standard deviation of the data, above 0.
        time_input: See ``time_input``.

    Raises:
        ValueError: If data_std is not positive.
    """

    def __init__(self, *, data_std: float = 0.5, time_input: TimeInput = "edm") -> None:
        super().__init__(time_input=time_input)
        if not data_std > 0:
            raise ValueError(f"data_std must be above 0, got {data_std}; pass the standard deviation of the data")
        self.data_std = data_std

    def _power(self, sde: SDE, t: PerSample) -> Tensor:
        """sigma^2 + d^2 alpha^2, the variance of x_t."""
        return sde.sigma(t).square() + (self.data_std * sde.alpha(t)).square()

    def c_in(self, sde: SDE, t: PerSample) -> PerSample:
        """1 / sqrt(sigma^2 + d^2 alpha^2), on x_t."""
        return self._power(sde, t).rsqrt()

    def read(self, raw: Tensor, x_t: Tensor, sde: SDE, t: PerSample) -> Reading:
        """x0 = c_skip x_t / alpha + c_out raw."""
        power = self._power(sde, t)
        c_skip = self.data_std**2 * sde.alpha(t) / power
        c_out = self.data_std * sde.sigma(t) * power.rsqrt()
        return "x0", expand_like(c_skip, x_t) * x_t + expand_like(c_out, raw) * raw
