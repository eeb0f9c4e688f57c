"""Every registered sampler in its variants, each with its promised order and the way in which it is refined."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from torch import Tensor

from samplers import Sampler, available_correctors, available_predictors, make_predictor, make_sampler
from sde_lib import SDE, make_grid

from . import recursion
from .recursion import Law

# the 0.16 of Song et al. 2021; correctors without a predictor have all the way to go, and take longer steps
SNR, SNR_ALONE = 0.16, 0.3
# annealed Langevin dynamics: the step in units of r_L^2; the chain is stable below 2
STEP = 0.4
# Langevin steps at each level of a sampler that has nothing else
LANGEVIN_STEPS = 25
TOLERANCES = (1e-3, 1e-5)
# steps of samplers with a predictor, and noise levels of those without, before any refinement
STEPS, LEVELS = 100, 20


@dataclass(frozen=True)
class Entry:
    """A sampler of the table.

    Attributes:
        label: What it is called there.
        name: Its name in the registry.
        order: Promised order of its bias, in a parameter that each refinement halves.
        build: Makes it for an SDE and a refinement, 0 or above.
        by_norms: Its steps depend on norms of x or the score; others are linear in x_T and the noise on a Gaussian,
            given their steps.
        law: For Langevin samplers: what the papers' formulas give on the Gaussian, for an SDE, a grid, a refinement.
        order_on: Orders on classes of SDEs where they differ.
    """

    label: str
    name: str
    order: float
    build: Callable[[SDE, int], Sampler]
    by_norms: bool = False
    law: Callable[[SDE, Tensor, int], Law] | None = None
    order_on: Mapping[str, float] = field(default_factory=dict)

    def allowance(self, sde: SDE) -> float:
        """The allowed bias after a refinement, over the change by it: 1.5 / (2^p - 1).

        A bias c h^p changes by 2^p - 1 times what is left of it; 1.5 leaves room for the next order.
        """
        return 1.5 / (2 ** self.order_on.get(type(sde).__name__, self.order) - 1)


def _plain(label: str, name: str, promised: float, steps: int = 100, /, **options: Any) -> Entry:
    def build(sde: SDE, refinement: int) -> Sampler:
        return make_sampler(name, num_steps=steps * 2**refinement, grid="log_snr", **options)

    return Entry(label, name, promised, build)


def _adaptive(solver: str) -> Entry:
    def build(sde: SDE, refinement: int) -> Sampler:
        tolerance = TOLERANCES[refinement]
        return make_sampler("probability_flow", solver=solver, rtol=tolerance, atol=tolerance)

    # a hundredth of the tolerance must leave no more than a tenth of the error
    return Entry(f"flow, {solver}", "probability_flow", math.log2(10), build)


def _predictor_corrector(predictor: str, corrector: str) -> Entry:
    """Both keep p_t in the limit of small steps: twice the steps and half the Langevin step keep the Langevin time.

    A corrector alone needs more of that time: four times the steps of half the length.
    """
    alone = predictor == "none"

    def numbers(refinement: int) -> dict[str, Any]:
        snr = (SNR_ALONE if alone else SNR) / 2 ** (refinement / 2)
        return {"snr": snr, "corrector_steps": LANGEVIN_STEPS * 4**refinement if alone else 1}

    def build(sde: SDE, refinement: int) -> Sampler:
        num_steps = LEVELS if alone else STEPS * 2**refinement
        # the law is that of the small variance, and the model has a learned one
        first = make_predictor(predictor, variance="small") if predictor == "ancestral" else predictor
        options = {"predictor": first, "corrector": corrector, "num_steps": num_steps, "grid": "log_snr"}
        return make_sampler("predictor_corrector", **options, **numbers(refinement))

    def law(sde: SDE, times: Tensor, refinement: int) -> Law:
        options = {"predictor": predictor, "corrector": corrector, **numbers(refinement)}
        return recursion.predictor_corrector(sde, times, **options)

    return Entry(
        f"PC, {predictor} + {corrector}",
        "predictor_corrector",
        1,
        build,
        by_norms=corrector == "langevin",
        law=None if corrector == "none" else law,
        # Steps in proportion to sigma^2 stop working where sigma^2 is about 1 / (Langevin time). What is left then is
        # of order sigma^2, but for sub-VP of order sigma = 1 - alpha^2, the share by which x is still to grow, which is
        # sigma = 1 - alpha for a rectified flow: there the covariance is far from that order yet (0.10, 0.24, 0.31 and
        # 0.39 from refinement to refinement), so that the papers' formulas are what the cell is held to.
        order_on={"SubVP": 0.5, "RectifiedFlow": 0.14} if alone and corrector == "annealed_langevin" else {},
    )


def _annealed_langevin() -> Entry:
    def numbers(sde: SDE, times: Tensor, refinement: int) -> dict[str, Any]:
        step_size = STEP / 2**refinement * recursion.noisy_points(sde, times)[-1].noise_ratio ** 2
        return {"step_size": step_size, "steps_per_level": LANGEVIN_STEPS * 4**refinement}

    def build(sde: SDE, refinement: int) -> Sampler:
        times = make_grid("log_snr", sde, LEVELS)
        return make_sampler("annealed_langevin", grid=times, **numbers(sde, times, refinement))

    def law(sde: SDE, times: Tensor, refinement: int) -> Law:
        return recursion.annealed_langevin(sde, times, **numbers(sde, times, refinement))

    return Entry("annealed Langevin", "annealed_langevin", 1, build, law=law)


def entries() -> list[Entry]:
    """Every sampler of the project, in its variants."""
    return [
        *(_plain(f"ancestral, {v}", "ancestral", 1, variance=v) for v in ("small", "large", "learned")),
        *(_plain(f"DDIM, eta = {eta:g}", "ddim", 1, eta=eta) for eta in (0.0, 0.5, 1.0)),
        _plain("Euler-Maruyama", "euler_maruyama", 1),
        _plain("reverse diffusion", "reverse_diffusion", 1),
        *(
            _predictor_corrector(predictor, corrector)
            for predictor, corrector in product(available_predictors(), available_correctors())
            if (predictor, corrector) != ("none", "none")
        ),
        _annealed_langevin(),
        _plain("Heun", "heun", 2, 50),
        _plain("Heun, churn 10", "heun", 1, 50, churn=10.0),
        *(_plain(f"DPM-Solver++ {v}", "dpm_solver_pp", order, 50, variant=v)
          for v, order in (("1", 1), ("2M", 2), ("2S", 2), ("3M", 3))),
        _plain("DPM-Solver++ 3M, warm start", "dpm_solver_pp", 3, 50, variant="3M", warm_start=True),
        *(_plain(f"SDE-DPM-Solver++ {v}", "dpm_solver_pp", 1, variant=v, stochastic=True) for v in ("1", "2M", "3M")),
        # 3 of the 4 that the order of 3 promises: the start-up shows
        *(_plain(f"UniPC {p}", "unipc", min(p + 1, 3), 100, order=p) for p in (1, 2, 3)),
        *(_plain(f"flow, {solver}", "probability_flow", order, 50, solver=solver)
          for solver, order in (("euler", 1), ("heun", 2), ("midpoint", 2), ("rk4", 4))),
        *(_adaptive(solver) for solver in ("dopri5", "scipy_rk45", "torchode_dopri5", "adams")),
    ]  # fmt: skip
