"""The law of a cascade of exact stages, without Monte-Carlo error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from data import ImageKind, make_conditions
from experiment.conditions import Conditions
from models import LinearGaussianScoreModel, ObservedGaussianScoreModel
from samplers import Sampler, make_sampler
from sde_lib import VP
from tasks import Cascade, Stage
from tasks import cascade as _module

from .checked import Cell, Checked
from .gaussian import ROUNDING, Moments

# so much noise at t = 1 that x_T forgets the data to 1e-6
SDE = VP(beta_max=60.0)
FORGOTTEN = 1e-5
SMALL, LARGE = ImageKind((1, 1, 2), 5, 1), ImageKind((1, 2, 4), 2, 1)
# the means of two boxes of 2x2 pixels
A = torch.kron(torch.full((1, 2), 0.5), torch.kron(torch.eye(2), torch.full((1, 2), 0.5))).double()
MEAN = torch.linspace(-0.6, 0.9, 8, dtype=torch.float64)
_FACTOR = torch.randn(8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
COV = 0.08 * _FACTOR @ _FACTOR.mT + 0.02 * torch.eye(8, dtype=torch.float64)
# t of the noise on the small image
NOISE_T = (0.0, 0.05, 0.2, 0.5)


def exact_cascade(s: float, sampler: Sampler, *, truncated: bool = False, delta: Tensor | None = None) -> Cascade:
    """The cascade of two exact stages, images of 1x2 and 2x4 pixels; the first one's mean is wrong by delta."""
    wrong = A @ MEAN + (0 if delta is None else delta)
    small = LinearGaussianScoreModel(SDE, weight=torch.zeros(2, 1).double(), bias=wrong, cov=A @ COV @ A.mT)
    first = Stage(small, sampler, Conditions(SMALL), rounded=False)
    large = ObservedGaussianScoreModel(SDE, mean=MEAN, cov=COV, operator=A)
    second = Stage(large, sampler, Conditions(LARGE, makers=make_conditions(["lowres"])), most_noise_t=1.0)
    return Cascade([first, second], noise_t=[s], truncated=truncated)


class _Numbers:
    """The places of all noise numbers of a cascade: those of a seed and its draw have places of their own."""

    def __init__(self) -> None:
        self.first: dict[tuple[int, int], int] = {}
        self.total = 0

    def place(self, seed: int, draw: int, size: int) -> int:
        """The place of the first number of a draw."""
        if (seed, draw) not in self.first:
            self.first[seed, draw] = self.total
            self.total += size
        return self.first[seed, draw]

    def streams(self, seed: int, indices: Sequence[int]) -> _Impulses:
        """In place of ``NoiseStreams(seed, indices)``."""
        return _Impulses(self, seed, indices)


class _Impulses:
    """Noise that is 0 of sample 0, and of sample 1 + k a 1 in the k-th number alone."""

    def __init__(self, numbers: _Numbers, seed: int, indices: Sequence[int]) -> None:
        self._numbers, self._seed, self._draws = numbers, seed, 0
        self._samples = torch.tensor(list(indices))

    def __len__(self) -> int:
        return len(self._samples)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """The next draw, [samples, *shape]."""
        size = math.prod(shape)
        places = 1 + self._numbers.place(self._seed, self._draws, size) + torch.arange(size)
        self._draws += 1
        return (self._samples[:, None] == places).double().reshape(-1, *shape)

    def normal_like(self, x: Tensor) -> Tensor:
        """The next draw, of x's shape."""
        return self.normal(x.shape[1:])


@contextmanager
def _impulses() -> Iterator[_Numbers]:
    numbers = _Numbers()
    with mock.patch.object(_module, "NoiseStreams", numbers.streams):
        yield numbers


def affine(cascade: Cascade) -> tuple[list[Tensor], list[Tensor]]:
    """Offsets [D] and gains [D, numbers] of each stage's images x0 = offset + gain z as functions of all noise z."""
    with _impulses() as numbers:
        cascade.sample(range(1))
        result = cascade.sample(range(1 + numbers.total))
    flat = [x0.flatten(1) for x0 in result.x0]
    return [x0[0] for x0 in flat], [(x0[1:] - x0[0]).mT for x0 in flat]


def law(cascade: Cascade) -> Moments:
    """Mean and covariance of the large images."""
    (_, mean), (_, gain) = affine(cascade)
    return mean, gain @ gain.mT


def prove_cascade(s: float, *, truncated: bool, steps: int = 100) -> Cell:
    """The errors of mean and covariance of the large images against those of the data.

    Args:
        s: t of the noise on the small image.
        truncated: Stop the first chain there.
        steps: Steps of UniPC 2 in each stage; the error of twice as many is held to 1.5 / 7 of what the doubling
            changes, as of an error of third order.
    """
    cascades = [
        exact_cascade(s, make_sampler("unipc", num_steps=n, grid="log_snr"), truncated=truncated)
        for n in (steps, 2 * steps)
    ]
    (_, coarse), (mean, fine) = map(law, cascades)
    change = float((fine - coarse).norm())
    checks = {
        "mean": Checked(float((mean - MEAN).norm()), FORGOTTEN),
        "cov": Checked(float((fine - COV).norm()), 1.5 / 7 * change + ROUNDING),
    }
    return Cell(cascades[1].sample(range(1)).nfe, checks)
