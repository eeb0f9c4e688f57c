"""The classifier that guides samples: ``sampling.classifier``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data import AnyKind
from models import ClassifierGuidedScoreModel, NoisyClassifier, ScoreModel
from models.wrappers.guidance import EVERYWHERE
from runtime.files import one_line

from ..config import Config
from ..from_checkpoints import load_trained, trained_kind
from ..network import is_classifier
from ..saved_config import saved_config


def classifier_kind(workdir: Path) -> AnyKind:
    """The images, and their classes, that a work directory's classifier is for.

    Raises:
        ValueError: If it holds no classifier.
    """
    try:
        config = saved_config(workdir)
        is_one, kind = is_classifier(config), trained_kind(config, workdir)
    except ValueError as error:
        raise ValueError(f"there is no classifier in {workdir} ({error}); set sampling.classifier to one's") from error
    if not is_one:
        raise ValueError(
            f"there is no classifier in {workdir}, but a score model; set sampling.classifier to the work directory of "
            "a run with model.backbone=classifier"
        )
    return kind


def load_classifier(workdir: Path | str, device: torch.device | str) -> NoisyClassifier:
    """The classifier of a work directory's newest good checkpoint, with its averaged weights, in evaluation mode.

    Args:
        workdir: The work directory.
        device: Where the classifier goes.

    Raises:
        ValueError: If it holds no classifier, or no checkpoint that can be used.
    """
    workdir = Path(workdir).expanduser()
    kind = classifier_kind(workdir)
    model, _ = load_trained(saved_config(workdir), workdir, kind, torch.device(device))
    assert isinstance(model, NoisyClassifier)
    return model


def with_classes_of_classifier(config: Config, kind: AnyKind) -> AnyKind:
    """The data that a model is for, with the classes by which ``sampling.classifier`` guides it.

    Args:
        config: The config of the model.
        kind: The data that the model is for. Without a classifier it is returned as it is.

    Raises:
        ValueError: If there is no classifier in the work directory named, or it is of other images, or of other classes
            than those that the model is told.
    """
    sampling = config.sampling
    if not sampling.classifier:
        if sampling.classifier_scale != 1:
            raise ValueError(
                f"sampling.classifier_scale={sampling.classifier_scale} needs sampling.classifier, the work directory "
                "of a classifier, got none; set it, or leave both out"
            )
        return kind
    theirs = classifier_kind(Path(sampling.classifier).expanduser())
    pairs: dict[str, tuple[Any, Any]] = {"image shape": (theirs.image_shape, kind.image_shape)}
    pairs["shape of samples"] = (theirs.sample_shape, kind.sample_shape)
    pairs["latents"] = (getattr(theirs, "latents", None), getattr(kind, "latents", None))
    if config.model.class_conditional:
        pairs["number of classes"] = (theirs.num_classes, kind.num_classes)
        if kind.class_names and theirs.class_names:
            pairs["names of classes"] = (theirs.class_names, kind.class_names)
    for what, (found, ours) in pairs.items():
        if found != ours:
            raise ValueError(
                f"sampling.classifier={sampling.classifier} and the model differ in {what}: "
                f"{one_line(str(found), 60)} and {one_line(str(ours), 60)}; take one that was trained on the same data"
            )
    return replace(kind, num_classes=theirs.num_classes, class_names=theirs.class_names)


def guide_by_classifier(config: Config, model: ScoreModel) -> ScoreModel:
    """A model guided by ``sampling.classifier``, or as it is where there is none.

    The classifier computes in float32 and is not compiled, since its gradient is what guides.

    Args:
        config: The config of the model.
        model: The model.

    Raises:
        ValueError: If there is no such classifier, or it was trained on another SDE.
    """
    sampling = config.sampling
    if not sampling.classifier:
        return model
    classifier = load_classifier(sampling.classifier, next(model.parameters()).device)
    try:
        return ClassifierGuidedScoreModel(
            model, classifier, scale=sampling.classifier_scale, interval=sampling.guidance_interval or EVERYWHERE
        )
    except ValueError as error:
        raise ValueError(f"sampling.classifier={sampling.classifier} cannot guide the model: {error}") from error
