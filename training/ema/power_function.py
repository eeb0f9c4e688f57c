"""Averages of weights with power-function profiles, and others made of them afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from experiment.checkpoints.sharding import split_like

from .exponential import average_into

WIDEST = 12**-0.5  # sigma_rel of the uniform average, gamma = 0


def gamma_of(sigma_rel: float) -> float:
    """The exponent gamma >= 0 of the profile of a relative width; the inverse of ``sigma_rel_of``.

    It is the largest root of (gamma + 2)^2 (gamma + 3) = (gamma + 1) / sigma_rel^2.

    Args:
        sigma_rel: Standard deviation of the profile as a share of the training so far, in (0, 12^(-1/2)], which is
            0.2887.

    Raises:
        ValueError: If it is out of range.

    Source: Karras et al. 2024 (Analyzing and improving the training dynamics of diffusion models), Section 3.1 and
    Appendix C.
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(
            f"sigma_rel must lie in (0, {WIDEST:.4f}], where the widest is the uniform average, got {sigma_rel}; 0.05 "
            "to 0.2 are usual"
        )
    inverse = sigma_rel**-2
    return max(0.0, float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max()))


def sigma_rel_of(gamma: float) -> float:
    """The relative width (gamma + 1)^(1/2) / ((gamma + 2) (gamma + 3)^(1/2)) of the profile of an exponent gamma >= 0.

    Source: Karras et al. 2024, Appendix C.
    """
    return (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)


@dataclass(frozen=True)
class Profile:
    """The weight p(tau) = (gamma + 1) tau^gamma / T^(gamma + 1) of the weights at tau in their average at T >= tau.

    Attributes:
        sigma_rel: Its standard deviation as a share of T, in (0, 0.2887].
        updates: T, the number of updates that the average has seen, at least 1.
    """

    sigma_rel: float
    updates: int


class PowerFunctionEMA:
    """avg <- beta avg + (1 - beta) weights, with beta = (1 - 1/t)^(gamma + 1) at update t = 1, 2, ...

    After T updates each weight stands in it with (t^(gamma + 1) - (t - 1)^(gamma + 1)) / T^(gamma + 1), the integral
    of ``Profile`` over the step. Nothing of the weights before the first update is left.

    Args:
        model: The model whose parameters are averaged, sharded ones in their shards.
        sigma_rel: The relative width, in (0, 0.2887].

    Attributes:
        weights: The average of each parameter, by its name in the model.
        num_updates: Number of updates so far.

    Source: Karras et al. 2024, Section 3.1 and Appendix C.
    """

    def __init__(self, model: nn.Module, sigma_rel: float) -> None:
        self.sigma_rel, self.gamma = sigma_rel, gamma_of(sigma_rel)
        self.num_updates = 0
        self.weights: dict[str, Tensor] = {
            name: parameter.detach().clone() for name, parameter in model.named_parameters()
        }

    def update(self, model: nn.Module) -> None:
        """Take in the weights of ``model``."""
        self.num_updates += 1
        beta = (1 - 1 / self.num_updates) ** (self.gamma + 1)
        average_into(list(self.weights.values()), list(model.parameters()), beta)

    def state(self) -> dict[str, Tensor]:
        """The average as tensors of a checkpoint."""
        return {f"profiles.{self.sigma_rel!r}.{name}": value for name, value in self.weights.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Undo ``state``."""
        self.num_updates = num_updates
        for name, value in self.state().items():
            value.copy_(split_like(tensors[name], value))


def _products(some: Sequence[Profile], others: Sequence[Profile]) -> Tensor:
    """The integrals of the products of two profiles each, float64 [len(some), len(others)].

    With T <= T' it is (gamma + 1) (gamma' + 1) / (gamma + gamma' + 1) (T / T')^gamma' / T'.
    """

    def grid(profiles: Sequence[Profile], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        values = [(gamma_of(one.sigma_rel), one.updates) for one in profiles]
        gamma, updates = torch.tensor(values, dtype=torch.float64).reshape(-1, 2).T
        return gamma.reshape(shape), updates.reshape(shape)

    (gamma, ends), (their_gamma, their_ends) = grid(some, (-1, 1)), grid(others, (1, -1))
    first, last = torch.minimum(ends, their_ends), torch.maximum(ends, their_ends)
    of_later = torch.where(ends < their_ends, their_gamma, gamma)
    scale = (gamma + 1) * (their_gamma + 1) / (gamma + their_gamma + 1)
    return scale * (first / last) ** of_later / last


def coefficients(tracked: Sequence[Profile], wanted: Profile) -> Tensor:
    """The weights x_i of averages whose sum has the profile next to a wanted one.

        min |sum_i x_i p_i - p|^2  with  sum_i x_i = 1,

    solved in float64. The condition, which is not in the paper, lets weights that do not move come out as they are, and
    lowers the error where averages are few: by four with ten of each of two widths.

    Args:
        tracked: The profiles p_i of the averages.
        wanted: The profile p.

    Returns:
        Float64 [len(tracked)].

    Source: Karras et al. 2024, Section 3.2 and Appendix C.
    """
    size, scale = len(tracked), float(max(one.updates for one in (*tracked, wanted)))
    system, right = torch.ones(size + 1, size + 1, dtype=torch.float64), torch.ones(size + 1, 1, dtype=torch.float64)
    system[:size, :size], right[:size] = _products(tracked, tracked) * scale, _products(tracked, [wanted]) * scale
    system[size, size] = 0.0
    # of equal profiles there are many solutions: the smallest
    return torch.linalg.lstsq(system, right, driver="gelsd").solution[:size, 0]


def profile_error(tracked: Sequence[Profile], wanted: Profile, x: Tensor) -> float:
    """|sum_i x_i p_i - p| / |p|: the share of a wanted profile p that a sum of others misses.

    Args:
        tracked: The profiles p_i.
        wanted: The profile p.
        x: Their coefficients, float64 [len(tracked)].
    """
    norm, mixed = float(_products([wanted], [wanted])), _products(tracked, [wanted])[:, 0]
    missed = norm - 2 * float(x @ mixed) + float(x @ _products(tracked, tracked) @ x)
    return max(0.0, missed / norm) ** 0.5


def reconstruct(averages: Iterable[Mapping[str, Tensor]], x: Tensor) -> dict[str, Tensor]:
    """The sum of averages with coefficients, computed in float64.

    Args:
        averages: The tensors of each average by name, all with the same names; they are read once, one after the other.
        x: The coefficients, as ``coefficients`` gives them.

    Returns:
        The tensors, each of the type that it had.

    Example:
        >>> tracked = [Profile(0.05, 500), Profile(0.10, 500), Profile(0.05, 1000), Profile(0.10, 1000)]
        >>> x = coefficients(tracked, Profile(0.13, 1000))
        >>> weights = reconstruct([early_05, early_10, late_05, late_10], x)
    """
    totals: dict[str, Tensor] = {}
    types: dict[str, torch.dtype] = {}
    for weight, average in zip(x.tolist(), averages, strict=True):
        for name, tensor in average.items():
            part = weight * tensor.double()
            totals[name] = totals[name].add_(part) if name in totals else part
            types[name] = tensor.dtype
    return {name: total.to(types[name]) for name, total in totals.items()}
