"""The model that samples are drawn with: the network, guided, told what was measured, x0 in range, in this order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from data import AnyKind, ImageKind
from models import CFGPlusPlusWeight, ConsistencyModel, GuidedScoreModel, NetworkScoreModel, ScoreModel
from models.wrappers.guidance import EVERYWHERE
from runtime.processes.ranks import ALONE, Ranks
from samplers import Sampler
from samplers.grid_sampler import GridSampler
from sde_lib import AdaptiveSolver

from ..build import bound_x0
from ..conditions import build_conditions
from ..config import Config
from ..control.settings import is_controlled
from ..from_checkpoints import as_score_model, check_step, trained_kind
from ..frozen.named import place_of
from ..rank0_first import load_on_rank0_first, load_same_trained
from ..saved_config import saved_config
from ..text.prompts import negative_prompt
from .classifier import guide_by_classifier


@dataclass(frozen=True)
class Reference:
    """The model of another run, away from which autoguidance moves.

    Attributes:
        model: The model.
        step: The training step of its weights.
        config: The config of its run.
    """

    model: NetworkScoreModel
    step: int
    config: Config


def is_guided(config: Config) -> bool:
    """True if ``config.sampling`` asks for guidance: a weight other than 1, or weights by a schedule."""
    return config.sampling.guidance_weight != 1 or config.sampling.guidance_schedule != "constant"


def check_unguided(config: Config) -> None:
    """Refuse to measure a guided model.

    Raises:
        ValueError: If the config asks for guidance.
    """
    if is_guided(config) or config.sampling.classifier:
        raise ValueError(
            "a guided model has no likelihood, since what guidance gives is no density's score; measure with "
            "--config.sampling.guidance_weight=1 --config.sampling.guidance_schedule=constant, and without "
            "sampling.classifier"
        )


def load_reference(config: Config, kind: AnyKind, device: torch.device, ranks: Ranks = ALONE) -> Reference | None:
    """The model of ``config.sampling.guidance_reference``; None if none is named.

    Args:
        config: The config.
        kind: The data of the model that is guided.
        device: Where the reference goes.
        ranks: The processes of the job.

    Raises:
        ValueError: In one line: there is no such run or checkpoint, it is of other data or is told other things, or
            there is no guidance that it could be for.
    """
    settings = config.sampling
    _check_has_effect(config)
    if not settings.guidance_reference:
        return None
    workdir, step = place_of(settings.guidance_reference)
    theirs = saved_config(workdir)
    check_step(workdir, step)
    their_kind = load_on_rank0_first(ranks, "data of the reference", lambda: trained_kind(theirs, workdir, device))
    if (their_kind.sample_shape, their_kind.space) != (kind.sample_shape, kind.space):
        raise ValueError(
            f"sampling.guidance_reference={workdir} is of other data, {list(their_kind.sample_shape)} in "
            f"{their_kind.space}, got a model of {list(kind.sample_shape)} in {kind.space}; take one of the same data"
        )
    told, ours = _told_of_samples(theirs, their_kind), _told_of_samples(config, kind)
    if told != ours:
        raise ValueError(
            f"sampling.guidance_reference={workdir} is told {told}, got a model that is told {ours}; take one that is "
            "told the same"
        )
    if isinstance(kind, ImageKind) and isinstance(their_kind, ImageKind) and kind.text != their_kind.text:
        raise ValueError(
            f"sampling.guidance_reference={workdir} reads captions in other words or by another text encoder; take one "
            "of the same data"
        )
    most_t = theirs.model.get("condition_noise_t", 0.0)
    if settings.condition_noise_t > most_t:
        raise ValueError(
            f"sampling.condition_noise_t must be at most {most_t:g}, which sampling.guidance_reference={workdir} was "
            f"told in training, got {settings.condition_noise_t:g}; lower it, or take another reference"
        )
    if theirs.model.class_conditional:
        known = (kind.num_classes, kind.class_names) if config.model.class_conditional else (0, ())
        if (their_kind.num_classes, their_kind.class_names) != known:
            raise ValueError(
                f"sampling.guidance_reference={workdir} is told {their_kind.num_classes} classes, got a model of "
                f"{known[0] or 'none'} or with other names; take one of the same classes"
            )
    weights = settings.guidance_reference_weights
    model, step = load_same_trained(
        ranks, theirs, workdir, their_kind, device, key="reference", weights=weights, step=step
    )
    return Reference(as_score_model(model, workdir), step, theirs)


def _check_has_effect(config: Config) -> None:
    """Refuse settings of guidance where there is none."""
    if is_guided(config):
        return
    for key in ("guidance_reference", "guidance_interval", "guidance_rescale", "negative_prompt"):
        by_classifier = key == "guidance_interval" and config.sampling.classifier
        if config.sampling[key] and not by_classifier:
            raise ValueError(
                f"sampling.{key} needs guidance, got sampling.guidance_weight=1, which is none; set a weight such as 2"
            )


def _told_of_samples(config: Config, kind: AnyKind) -> str:
    """The conditions besides the class, as a message names them."""
    conditions = build_conditions(config, kind)
    of_text = () if conditions.text is None else (conditions.text,)
    return ", ".join(map(repr, (*conditions.images, *conditions.values, *of_text))) or "no condition"


def sampled_consistency_model(config: Config, model: ConsistencyModel, kind: AnyKind) -> ConsistencyModel:
    """The consistency model with the bounds of its x0, where it ends in data.

    Raises:
        ValueError: In one line: guidance, which is of score models.
    """
    if is_guided(config) or config.sampling.classifier:
        raise ValueError(
            "guidance is of score models, got a consistency model; leave sampling.guidance_weight at 1, and out "
            "sampling.classifier"
        )
    bounded = bound_x0(config, model.network, kind)
    return type(model)(bounded, t_end=model.t_end, data_std=model.data_std).eval()


def sampled_model(
    config: Config,
    model: ScoreModel,
    kind: AnyKind,
    sampler: Sampler,
    reference: ScoreModel | None = None,
    *,
    observe: Callable[[ScoreModel], ScoreModel] | None = None,
) -> ScoreModel:
    """The network with all that ``config.sampling`` puts around it: guidance first, bounds of x0 last.

    Args:
        config: The config.
        model: The network.
        kind: The data that it is for.
        sampler: The sampler, whose grid CFG++ needs.
        reference: What ``load_reference`` gives, if anything.
        observe: Makes a model of the posterior of the guided one: its gradient must not pass through bounds of x0.

    Raises:
        ValueError: In one line: guidance of a network without a null condition, a reference of another SDE, or CFG++
            with a sampler that chooses its own steps.
    """
    settings = config.sampling
    if is_guided(config):
        weight = settings.guidance_weight
        if settings.guidance_schedule == "cfg++":
            weight = CFGPlusPlusWeight(weight, _times(sampler, model))
        options: dict[str, Any] = {"interval": settings.guidance_interval or EVERYWHERE}
        options["rescale"] = settings.guidance_rescale
        if is_controlled(config):
            options["keeps_image"] = _hint_on_both_sides(config, kind)
        negative = negative_prompt(config, kind, model)
        try:
            model = GuidedScoreModel(model, weight=weight, reference=reference, negative=negative, **options)
        except ValueError as error:
            if reference is None:
                raise
            named = f"sampling.guidance_reference={settings.guidance_reference}"
            raise ValueError(f"{named} cannot guide the model: {error}") from error
    guided = guide_by_classifier(config, model)
    return bound_x0(config, guided if observe is None else observe(guided), kind)


def _hint_on_both_sides(config: Config, kind: AnyKind) -> bool:
    """True if a hint controls what guidance moves away from too.

    Raises:
        ValueError: If nothing else is told, so that both sides would be the same.
    """
    conditions, both = build_conditions(config, kind), config.control.guided == "both"
    if (
        both
        and not config.sampling.guidance_reference
        and not (conditions.labels or conditions.values or conditions.text)
    ):
        raise ValueError(
            "guidance with a hint on both sides is none, since the model is told nothing else; set control.guided="
            "conditional"
        )
    return both


def _times(sampler: Sampler, model: ScoreModel) -> torch.Tensor:
    if not isinstance(sampler, GridSampler) or isinstance(getattr(sampler, "solver", None), AdaptiveSolver):
        raise ValueError(
            "sampling.guidance_schedule=cfg++ needs a sampler that steps along sampling.grid, got one that chooses its "
            "own steps; take ddim"
        )
    return sampler.times(model.sde)


def described(config: Config, reference: Reference | None) -> dict[str, Any] | None:
    """The guidance of samples, for ``samples.json``; None without."""
    settings = config.sampling
    if not is_guided(config) and not settings.classifier:
        return None
    away_from = None if reference is None else {
        "workdir": settings.guidance_reference, "step": reference.step, "weights": settings.guidance_reference_weights,
    }  # fmt: skip
    return {
        "weight": settings.guidance_weight,
        "schedule": settings.guidance_schedule,
        "interval": list(settings.guidance_interval) or None,
        "rescale": settings.guidance_rescale,
        "reference": away_from,
    } | ({"negative_prompt": settings.negative_prompt} if settings.negative_prompt else {})


def guidance_in_words(config: Config) -> str:
    """The guidance of samples, for the last line of a command, such as "guided by 3"; "" without."""
    settings, said = config.sampling, []
    if is_guided(config):
        weight = f"{settings.guidance_weight:g}"
        said.append(f"lambda = {weight} of CFG++" if settings.guidance_schedule == "cfg++" else weight)
    if settings.classifier:
        said.append(f"the classifier of {settings.classifier}, scale {settings.classifier_scale:g}")
    return "guided by " + " and ".join(said) if said else ""
