"""From ``config.eval`` to likelihood estimators, and from them to what the report says of their settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from data import AnyKind
from likelihood import FlowLikelihood, LatentBound, LikelihoodEstimator, VariationalBound, make_likelihood
from models import ClippedScoreModel, ScoreModel, pick_variance
from sde_lib import TABLEAUS, AdaptiveSolver, make_ode_solver

from .config import Config
from .config.checks import check_learned_parts


@dataclass(frozen=True)
class _Levels:
    """The levels of latents, as an estimator needs to know of them."""

    num_levels: int | None


def build_estimator(name: str, config: Config, kind: AnyKind | _Levels) -> LikelihoodEstimator:
    """A likelihood estimator with the settings of ``config.eval``.

    A setting of one likelihood begins with its name ("vlb_", "ode_"): what is kept of the others' measurements is then
    still good when it changes. What an estimator gives for an image must depend on nothing that it saw before.

    Args:
        name: One of ``available_likelihoods()``.
        config: The config.
        kind: The data, for their number of levels.

    Raises:
        ValueError: If the name, or a setting, is unknown or out of range.
    """
    settings = config.eval
    if name == "vlb":
        return make_likelihood(
            name,
            num_levels=kind.num_levels,
            num_steps=settings.vlb_num_steps or None,
            variance=pick_variance(settings.vlb_variance, learned=config.model.learned_variance),
            grid=settings.vlb_grid,
            steps_per_image=settings.vlb_steps_per_image or None,
            step_sampling=settings.vlb_step_sampling,
        )
    if name == "vlb_continuous":
        return make_likelihood(
            name,
            num_levels=kind.num_levels,
            steps_per_image=settings.vlb_steps_per_image or 10,
            step_sampling=settings.vlb_step_sampling,
        )
    if name == "ode":
        _check_ode(settings)
        return make_likelihood(
            name,
            num_levels=kind.num_levels,
            dequantization=settings.ode_dequantization,
            num_importance_samples=settings.ode_importance_samples,
            divergence=settings.ode_divergence,
            num_probes=settings.ode_num_probes,
            solver=make_ode_solver(
                settings.ode_solver,
                rtol=settings.ode_rtol,
                atol=settings.ode_atol,
                num_steps=settings.ode_num_steps or None,
                grid=settings.ode_grid,
                max_nfe=settings.ode_max_nfe or None,
                t_end=settings.ode_t_end or None,
            ),
        )
    return make_likelihood(name, num_levels=kind.num_levels)


def _check_ode(settings: Any) -> None:
    """Refuse settings without the others that they need, or that the others leave without effect.

    Raises:
        ValueError: Naming the first of them, as it is called in ``config.eval``.
    """
    by_steps = settings.ode_solver in TABLEAUS
    if by_steps and settings.ode_t_end:
        raise ValueError(
            f"eval.ode_t_end={settings.ode_t_end} is for adaptive solvers, got eval.ode_solver={settings.ode_solver}, "
            "which begins at the grid's last time; leave it at 0"
        )
    if by_steps and not settings.ode_num_steps:
        raise ValueError(
            f"eval.ode_solver={settings.ode_solver} needs eval.ode_num_steps, at least 1, got 0; set it, or take an "
            "adaptive solver"
        )
    if settings.ode_num_steps and not by_steps:
        raise ValueError(
            f"eval.ode_num_steps={settings.ode_num_steps} is of a grid, but {settings.ode_solver} chooses its "
            "steps itself; set eval.ode_solver=heun, or leave it at 0"
        )
    if settings.ode_importance_samples > 1 and settings.ode_divergence != "exact":
        raise ValueError(
            f"eval.ode_importance_samples={settings.ode_importance_samples} needs eval.ode_divergence=exact, got "
            f"{settings.ode_divergence}, whose noise would make the bound too good; leave it at 1"
        )
    if settings.ode_divergence == "exact" and settings.ode_num_probes > 1:
        raise ValueError(
            f"eval.ode_num_probes={settings.ode_num_probes} is of random probes, but eval.ode_divergence=exact takes "
            "none; leave it at 1, or set rademacher"
        )


def build_estimators(config: Config, kind: AnyKind) -> dict[str, LikelihoodEstimator]:
    """All of ``config.eval.likelihoods``, in that order.

    Args:
        config: The config.
        kind: The data.

    Raises:
        ValueError: If there is none, or one cannot be built, or is not for such a model.
    """
    if not config.eval.likelihoods:
        raise ValueError("config.eval.likelihoods is empty; set it to vlb,ode")
    check_learned_parts(config)
    latents = getattr(kind, "latents", None)
    if kind.seen_levels is None:
        _check_density(config, "vectors" if latents is None else "latents")
    elif "ode" in config.eval.likelihoods and config.eval.ode_dequantization == "none":
        raise ValueError(
            f"eval.ode_dequantization=none is of data without grey levels, got {kind.seen_levels}; "
            "set decoder or uniform"
        )
    if latents is not None:
        if "vlb_continuous" in config.eval.likelihoods and config.eval.vlb_step_sampling == "importance":
            raise ValueError("eval.vlb_step_sampling=importance is fitted to pixels, got latents; set low_discrepancy")
        levels = _Levels(kind.seen_levels)
        every = {name: build_estimator(name, config, levels) for name in config.eval.likelihoods}
        return {name: LatentBound(one, num_levels=kind.num_levels) for name, one in every.items()}
    return {name: build_estimator(name, config, kind) for name in config.eval.likelihoods}


def _check_density(config: Config, data: str) -> None:
    """Refuse what is of grey levels alone for data that have a density.

    Raises:
        ValueError: Naming the first such key.
    """
    if "vlb" in config.eval.likelihoods:
        raise ValueError(
            f"eval.likelihoods=vlb ends in the probability of a grey level, which {data} do not have; set ode or "
            "vlb_continuous"
        )
    if "ode" in config.eval.likelihoods and config.eval.ode_dequantization in ("uniform", "variational"):
        raise ValueError(
            f"eval.ode_dequantization={config.eval.ode_dequantization} is of data with grey levels, got {data}; "
            "set none, for the density of the ODE itself, or decoder"
        )


def clips_x0(estimator: LikelihoodEstimator, config: Config) -> bool:
    """True if an estimator is to see the model with x0 clipped to [-1, 1].

    Data without grey levels have no such range. The ODE of a clipped x0 has kinks, and is not the one that is sampled
    without clipping.
    """
    of_seen = estimator.prior if isinstance(estimator, LatentBound) else estimator
    has_levels = getattr(of_seen, "num_levels", None) is not None
    return bool(config.eval.clip_x0) and has_levels and not isinstance(of_seen, FlowLikelihood)


def model_for(estimator: LikelihoodEstimator, model: ScoreModel, config: Config) -> ScoreModel:
    """The model as an estimator is to see it."""
    return ClippedScoreModel(model) if clips_x0(estimator, config) else model


def settings_of(estimator: LikelihoodEstimator, model: ScoreModel, config: Config) -> dict[str, Any]:
    """The settings that a number is of, for ``eval/report.json``."""
    if isinstance(estimator, LatentBound):
        return settings_of(estimator.prior, model, config) | {"first_stage": config.data.first_stage or "its own"}
    common: dict[str, Any] = {"seed": config.seed, "batch_size": config.eval.batch_size}
    if isinstance(estimator, FlowLikelihood):
        solver = estimator.solver
        if isinstance(solver, AdaptiveSolver):
            solver_settings = {"rtol": solver.rtol, "atol": solver.atol}
        else:
            solver_settings = {"num_steps": solver.num_steps, "grid": solver.grid}
        return common | {
            "dequantization": estimator.dequantization,
            "importance_samples": estimator.num_importance_samples,
            "divergence": estimator.divergence,
            "num_probes": estimator.num_probes,
            "solver": solver.name,
            **solver_settings,
            "t_end": float(estimator.noisy_times(model.sde)[0]),
            "clip_x0": False,
        }
    common["clip_x0"] = clips_x0(estimator, config)
    if isinstance(estimator, VariationalBound):
        common["variance"] = estimator.variance
        common["grid"] = estimator.grid
        common["num_steps"] = len(estimator.noisy_times(model.sde))
    # absent from a plugin's estimators
    drawn = {key: getattr(estimator, key) for key in ("steps_per_image", "step_sampling") if hasattr(estimator, key)}
    return common | drawn
