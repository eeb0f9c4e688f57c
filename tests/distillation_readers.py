"""Reads the settings of distillations from the losses that are built of them."""

from collections.abc import Callable
from typing import Any

from training_runs import digits_like

from experiment.build import build_model
from experiment.config import Config
from models import NetworkScoreModel
from training.build import build_loss

STAGED = ("training.loss=progressive_distillation", "model.answers=steps", "distillation.stages=4,2")
MATCHED = ("training.loss=distribution_matching", "model.answers=generator")


def of_loss(read: Callable[[Any], Any]) -> Callable[[Any, Config], Any]:
    """Read the loss, whose teacher is a new network."""

    def found(_: Any, config: Config) -> Any:
        kind = digits_like(1).kind
        model = build_model(config, kind)
        teacher = model if isinstance(model, NetworkScoreModel) else model.network  # pyright: ignore
        teacher.answers = "posterior_mean"
        return read(build_loss(config, model.sde, kind, teacher))

    return found
