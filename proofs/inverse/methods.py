"""The methods of posterior sampling, and the samplers that run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from models import DPSStepScoreModel, ScoreModel, make_posterior
from samplers import Hook, ReplaceObserved, ResampledSampler
from samplers.grid_sampler import GridSampler

from ..entries import Entry, entries
from .problems import OPERATOR, SDE, Problem

# 200 steps, and the refinement of the table of samplers that gives them: of the reverse SDE, of the probability flow by
# orders 1 and 2, and with Langevin steps between
STEPS = 200
_REFINEMENTS = {"ancestral, small": 1, "DDIM, eta = 0": 1, "Heun": 2, "PC, ancestral + annealed_langevin": 1}
ANCESTRAL, DDIM, HEUN, PC = _REFINEMENTS
RESAMPLES = (2, 5, 10, 20)
SCALES = (0.3, 1.0)
# jumps of time travel that make up the whole way: 10 points each of 200, twice as many of 400
_JUMPS = 20


@dataclass(frozen=True)
class Method:
    """A way to sample p(x | y).

    Attributes:
        label: Its name in the table.
        model: The model that is sampled, of a problem and the sampler.
        samplers: Those that it is shown with.
        resamples: How often time travel walks each stretch.
        replaces: After each step what is seen is replaced.
        noiseless: It can do without noise of y.
        affine: What it makes of Gaussian data is affine in x_T and the noise.
    """

    label: str
    model: Callable[[Problem, GridSampler], ScoreModel]
    samplers: tuple[str, ...] = tuple(_REFINEMENTS)
    resamples: int = 1
    replaces: bool = False
    noiseless: bool = True
    affine: bool = True

    def sampler(self, inner: GridSampler) -> GridSampler:
        """The sampler, around one that steps down the grid."""
        if self.resamples == 1:
            return inner
        times = inner.times(SDE)
        jump_length = (len(times) - 1) // _JUMPS
        return ResampledSampler(inner=inner, grid=times, jump_length=jump_length, num_resamples=self.resamples)

    def hooks(self, problem: Problem, batch: int) -> list[Hook]:
        """The hooks for a batch."""
        y = problem.told(batch).measurement
        return [ReplaceObserved(OPERATOR, y, noise_std=problem.noise_std)] if self.replaces and y is not None else []

    def order(self, entry: Entry) -> float:
        """The order of what is left of a sampler's own error; replacement after each step is of order 1."""
        return 1.0 if self.replaces else entry.order


def inner_sampler(label: str, refinement: int) -> tuple[Entry, GridSampler]:
    """One of the samplers with 200 steps, or with 400 or 800 for a refinement of 1 or 2, and its row in their table."""
    entry = next(entry for entry in entries() if entry.label == label)
    sampler = entry.build(SDE, _REFINEMENTS[label] + refinement)
    assert isinstance(sampler, GridSampler)
    return entry, sampler


def _guided(name: str) -> Callable[[Problem, GridSampler], ScoreModel]:
    def build(problem: Problem, sampler: GridSampler) -> ScoreModel:
        return make_posterior(name, model=problem.prior, operator=OPERATOR, noise_std=problem.noise_std)

    return build


def _published(scale: float) -> Callable[[Problem, GridSampler], ScoreModel]:
    def build(problem: Problem, sampler: GridSampler) -> ScoreModel:
        return DPSStepScoreModel(problem.prior, OPERATOR, times=sampler.times(SDE), scale=scale)

    return build


def _prior(problem: Problem, sampler: GridSampler) -> ScoreModel:
    return problem.prior


def _exact(problem: Problem, sampler: GridSampler) -> ScoreModel:
    return problem.posterior


_METHODS = [
    Method("exact posterior score", _exact),
    Method("MMPS", _guided("mmps")),
    Method("TMPD", _guided("tmpd"), noiseless=False),
    Method("PiGDM", _guided("pigdm")),
    Method("DDNM", _guided("ddnm")),
    Method("DPS", _guided("dps"), noiseless=False),
    *(
        Method(f"DPS as published, {scale:g}", _published(scale), (ANCESTRAL,), noiseless=False, affine=False)
        for scale in SCALES
    ),
    Method("replacement", _prior, replaces=True),
    *(
        Method(f"RePaint, r = {count}", _prior, (ANCESTRAL, DDIM), replaces=True, resamples=count)
        for count in RESAMPLES
    ),
]
METHODS = {method.label: method for method in _METHODS}
