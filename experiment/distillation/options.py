"""The settings of a distillation as options of its loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models import ScoreModel
from runtime.options import option_names

from ..config import Config


def distillation_options(
    config: Config, name: str, factory: Callable[..., Any] | None, teacher: ScoreModel | None, *, has_range: bool
) -> dict[str, Any]:
    """The keys of ``config.distillation`` that a loss has as options, and the teacher if it asks one.

    Args:
        config: The config.
        name: The name of the loss.
        factory: Its class; None of "auto", which is no distillation.
        teacher: The teacher; None without.
        has_range: Whether the data has one, [-1, 1], as images have, but vectors and latents have not.

    Raises:
        ValueError: If there is a teacher, and the loss is no distillation.
    """
    if factory is None or not getattr(factory, "of_distillation", False):
        if teacher is not None:
            raise ValueError(
                f"distillation.teacher is of a distillation, got training.loss={name}; leave it out, or set the loss, "
                "such as consistency_distillation"
            )
        return {}
    known, _ = option_names(factory)
    options = {key: value for key, value in config.distillation.items() if key in known and key != "teacher"}
    if "clip_x0" in options:
        options["clip_x0"] = options["clip_x0"] and has_range
    return options | ({"teacher": teacher} if "teacher" in known else {})
