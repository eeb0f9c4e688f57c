"""The images of ``--mode edit``, and the classes that they have and are edited towards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import ImageKind, LevelSpace, read_given_images
from models.wrappers.guidance import lacks_null_condition
from runtime.processes.ranks import ALONE
from tasks.editing import EditMethod

from ..sample import SampledRun
from ..subject import load_split


@dataclass(frozen=True)
class Subjects:
    """Images to edit.

    Attributes:
        x0: The images as networks see them, [N, ...].
        labels: Their classes, int64 [N], where they are known.
        masks: True where the data set says that a lesion is, bool [N, H, W], where it does.
        origin: Where they are from, for the report.
    """

    x0: Tensor
    labels: Tensor | None
    masks: Tensor | None
    origin: dict[str, Any]


def load_subjects(run: SampledRun, given: str) -> Subjects:
    """The images of ``--input``, or the first ones of a split.

    Raises:
        ValueError: If there are none, or not as many, or they are of another shape.
    """
    settings, kind = run.config.edit, run.kind
    if not given:
        dataset = load_split(run.config, run.workdir, settings.split, ALONE).subset(settings.num_images)
        masks = getattr(dataset, "masks", None)
        # of several annotators, where any of them sees one
        masks = None if masks is None else masks.any(1)
        x0 = kind.space.encode(dataset.stored)
        return Subjects(x0, dataset.labels, masks, {"split": settings.split})
    if not kind.of_pixels:
        raise ValueError("--input of --mode edit is of pixels, got a model of vectors or latents; leave it out")
    space = LevelSpace(256)
    stored, labels = read_given_images(
        Path(given),
        ImageKind(kind.image_shape, space.num_levels),  # pyright: ignore[reportArgumentType]
        what="images to edit",
    )
    return Subjects(space.encode(stored), labels, None, {"input": given})


@dataclass(frozen=True)
class Told:
    """The classes of each image, int64 [N]; None of models that are told none.

    Attributes:
        source: Those that images are taken up as; -1 is none.
        target: Those that they are edited towards.
    """

    source: Tensor | None
    target: Tensor | None


def classes_told(run: SampledRun, method: EditMethod, subjects: Subjects) -> Told:
    """The classes that images have and are edited towards: those of ``sampling.classes`` in turn.

    Raises:
        ValueError: If a class is missing, unknown, or cannot be left out.
    """
    config, name, asked = run.config, run.config.edit.method, bool(run.config.sampling.classes)
    if method.needs_target and not asked:
        if run.classes is None:
            raise ValueError(
                f"edit.method={name} needs a model that is told classes, or sampling.classifier, got neither; train "
                "one with model.class_conditional=True"
            )
        raise ValueError(f"edit.method={name} needs the class to edit towards, got none; set sampling.classes")
    target = None
    if run.classes is not None and asked:
        target = torch.tensor(run.classes)[torch.arange(len(subjects.x0)) % len(run.classes)]
    elif run.classes is not None:
        target = _known_labels(run, subjects, "set sampling.classes")
    source = None
    if method.follows_flow and config.model.class_conditional:
        if getattr(method, "own_class", True):
            can_do_without = hasattr(method, "own_class")
            fix = "set edit.method_options=own_class=False" if can_do_without else "leave --input out"
            source = _known_labels(run, subjects, fix)
        elif lacks_null_condition(run.trained):
            raise ValueError(
                f"edit.method={name} tells no class on the way up, which needs a model that is trained without now and "
                "then, got one that never was; set edit.method_options=own_class=True, or train one with "
                "model.condition_dropout=0.1"
            )
        else:
            source = torch.full((len(subjects.x0),), -1)
    return Told(source, target)


def _known_labels(run: SampledRun, subjects: Subjects, fix: str) -> Tensor:
    labels = subjects.labels
    if labels is None:
        raise ValueError(f"the model is told classes, which --input does not have; {fix}")
    if not 0 <= int(labels.min()) <= int(labels.max()) < run.kind.num_classes:
        raise ValueError(f"labels must be in 0 .. {run.kind.num_classes - 1}, got {labels.tolist()}; {fix}")
    return labels
