"""Ways to draw from p(x0 | y), where y = A x0 + noise was measured, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from jaxtyping import Float
from torch import Tensor

from experiment.config.keys import fitting
from models import (
    DPSStepScoreModel,
    LinearOperator,
    ScoreModel,
    available_posteriors,
    make_posterior,
)
from models.wrappers.posterior import POSTERIORS
from runtime.registry import choices_message
from samplers import AncestralSampler, Hook, ReplaceObserved, ResampledSampler, Sampler, TwistedSampler
from samplers.grid_sampler import GridSampler
from sde_lib import AdaptiveSolver


@dataclass(frozen=True)
class RestorationMethod:
    """A way to draw from p(x0 | y).

    Attributes:
        name: Its name.
        operator: A.
        noise_std: Standard deviation of the noise.
        sampler: The sampler that draws.
        observe: Makes a model of the posterior, which is told y by ``Condition.measurement``, of a model of p(x0); None
            where hooks alone look at y.
        hooks: Makes the hooks of a batch from its measurements, [B, ...].
    """

    name: str
    operator: LinearOperator
    noise_std: float
    sampler: Sampler
    observe: Callable[[ScoreModel], ScoreModel] | None = None
    hooks: Callable[[Float[Tensor, "batch *observed"]], Sequence[Hook]] = lambda _: ()


def available_methods() -> list[str]:
    """The names of all methods: models of the posterior, which any sampler runs, and those that are more than that."""
    return sorted({*available_posteriors(), *_OTHERS})


def make_method(
    name: str,
    *,
    operator: LinearOperator,
    noise_std: float,
    sampler: Sampler,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> RestorationMethod:
    """Build a method by name.

    Args:
        name: "dps", "pigdm", "tmpd", "mmps" or "ddnm", see ``models.wrappers.posterior``; "dps_published", see
            ``DPSStepScoreModel``; "replacement", see ``ReplaceObserved``, "repaint", which adds ``ResampledSampler`` to
            it, or "twisted", particles (``TwistedSampler``) guided by "pigdm".
        operator: A.
        noise_std: Standard deviation of the noise.
        sampler: The sampler. Of "repaint" it gives the single steps; "twisted" takes its grid, and steps as "ancestral"
            does.
        options: Those of the method, by the names that they have in its classes.

    Raises:
        ValueError: In one line: no such method or option, noise_std 0 where the method divides by it, or a sampler that
            the method cannot use.
    """
    if name not in available_methods():
        raise ValueError(choices_message("method", name, available_methods()))
    known = _options_of(name)
    for option, value in options.items():
        if option not in known:
            raise ValueError(choices_message(f"option of method {name!r}:", option, sorted(known)))
        if known[option] is not None and fitting(value, known[option]) is None:
            kind = type(known[option]).__name__
            raise ValueError(f"{option} of method {name} must be of type {kind}, got {value!r}; set {known[option]}")
    if noise_std == 0 and not _takes_no_noise(name):
        exact = [one for one in available_methods() if _takes_no_noise(one)]
        raise ValueError(f"method {name} needs noise_std above 0, got 0; set it, or take one of {', '.join(exact)}")
    if name in _OTHERS:
        _, build = _OTHERS[name]
        return build(operator, noise_std, sampler, dict(options))

    def observe(model: ScoreModel) -> ScoreModel:
        return make_posterior(name, model=model, operator=operator, noise_std=noise_std, **options)

    return RestorationMethod(name, operator, noise_std, sampler, observe)


def _options_of(name: str) -> dict[str, Any]:
    """The options of a method, which are the parameters with defaults of its classes, with these."""
    factories = _OTHERS[name][0] if name in _OTHERS else (POSTERIORS.get(name),)
    parameters = [one for factory in factories for one in inspect.signature(factory).parameters.values()]
    return {one.name: one.default for one in parameters if one.default is not one.empty and one.name != "inner"}


def _takes_no_noise(name: str) -> bool:
    """True if a method works with noise_std 0."""
    return name != "twisted" if name in _OTHERS else getattr(POSTERIORS.get(name), "noiseless", True)


def _published_dps(
    operator: LinearOperator, noise_std: float, sampler: Sampler, options: dict[str, Any]
) -> RestorationMethod:
    grid = _on_a_grid("dps_published", sampler)

    def observe(model: ScoreModel) -> ScoreModel:
        return DPSStepScoreModel(model, operator, times=grid.times(model.sde), **options)

    return RestorationMethod("dps_published", operator, noise_std, sampler, observe)


def _replacement(
    operator: LinearOperator, noise_std: float, sampler: Sampler, options: dict[str, Any]
) -> RestorationMethod:
    grid = _on_a_grid("replacement", sampler)
    return RestorationMethod("replacement", operator, noise_std, grid, hooks=_replacing(operator, noise_std))


def _repaint(
    operator: LinearOperator, noise_std: float, sampler: Sampler, options: dict[str, Any]
) -> RestorationMethod:
    inner = _on_a_grid("repaint", sampler)
    travelling = ResampledSampler(inner=inner, num_steps=inner.num_steps, grid=inner.grid, **options)
    return RestorationMethod("repaint", operator, noise_std, travelling, hooks=_replacing(operator, noise_std))


def _replacing(operator: LinearOperator, noise_std: float) -> Callable[[Tensor], Sequence[Hook]]:
    return lambda y: (ReplaceObserved(operator, y, noise_std=noise_std),)


def _twisted(
    operator: LinearOperator, noise_std: float, sampler: Sampler, options: dict[str, Any]
) -> RestorationMethod:
    if not isinstance(sampler, AncestralSampler):
        raise ValueError(f"method twisted steps as the sampler ancestral does, got {sampler}; take ancestral")
    of_model = {option: value for option, value in options.items() if option == "data_var"}
    of_sampler = {option: value for option, value in options.items() if option not in of_model}
    particles = TwistedSampler(num_steps=sampler.num_steps, grid=sampler.grid, **of_sampler)

    def observe(model: ScoreModel) -> ScoreModel:
        return make_posterior("pigdm", model=model, operator=operator, noise_std=noise_std, **of_model)

    return RestorationMethod("twisted", operator, noise_std, particles, observe)


def _on_a_grid(name: str, sampler: Sampler) -> GridSampler:
    if not isinstance(sampler, GridSampler) or isinstance(getattr(sampler, "solver", None), AdaptiveSolver):
        raise ValueError(
            f"method {name} needs a sampler that steps along a grid, got {sampler}, which chooses its own steps; take "
            "ancestral or ddim"
        )
    return sampler


_Build = Callable[[LinearOperator, float, Sampler, dict[str, Any]], RestorationMethod]
# the classes whose options each has, and what builds it
_OTHERS: dict[str, tuple[tuple[Callable[..., Any], ...], _Build]] = {
    "dps_published": ((DPSStepScoreModel,), _published_dps),
    "replacement": ((), _replacement),
    "repaint": ((ResampledSampler,), _repaint),
    "twisted": ((TwistedSampler, POSTERIORS.get("pigdm")), _twisted),
}
