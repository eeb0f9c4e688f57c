"""A frozen model beside one that is trained, and checks that they are of the same data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from data import AnyKind, ImageKind
from models import NetworkScoreModel

from ..checkpoints.weights import digest_of
from ..config import Config


@dataclass(frozen=True)
class FrozenRun:
    """The base of a ControlNet, or the teacher of a distillation, from its work directory.

    Attributes:
        model: The model with its averaged weights, in evaluation mode and without gradients.
        kind: The data that it is of.
        config: Its config.
        workdir: Its work directory.
    """

    model: NetworkScoreModel
    kind: AnyKind
    config: Config
    workdir: Path

    @property
    def digest(self) -> str:
        """Digest of its weights, by which checkpoints of the other model know it."""
        state = self.model.backbone.state_dict()
        return digest_of(*(state[name] for name in sorted(state)))


def check_same_data(config: Config, kind: AnyKind, run: FrozenRun, named: str) -> None:
    """Refuse a frozen model of other data, or one that is told other classes or words.

    Args:
        config: The config of the model that is trained.
        kind: Its data.
        run: The frozen model.
        named: What messages call it, such as "control.base=runs/x".

    Raises:
        ValueError: In one line.
    """
    if (kind.sample_shape, kind.space) != (run.kind.sample_shape, run.kind.space):
        raise ValueError(
            f"{named} is of other data, {list(run.kind.sample_shape)} in {run.kind.space}, got "
            f"{list(kind.sample_shape)} in {kind.space}; take a model of the same data"
        )
    if config.model.class_conditional and kind.num_classes != run.kind.num_classes:
        raise ValueError(
            f"{named} is told {run.kind.num_classes} classes, got data with {kind.num_classes}; take the same data"
        )
    told_text = "text" in run.config.data.get("condition", ())
    if told_text and isinstance(kind, ImageKind) and isinstance(run.kind, ImageKind) and kind.text != run.kind.text:
        raise ValueError(f"{named} reads captions in other words; take a model of the same data")


def check_fixed_besides(run: FrozenRun, named: str) -> None:
    """Refuse a frozen model that learned more than its network.

    Raises:
        ValueError: In one line, with what it learned.
    """
    parts = ("sde", "dequantizer", "first_stage")
    learned = [name for name in parts if isinstance(getattr(run.model, name, None), nn.Module)]
    if learned:
        raise ValueError(
            f"{named} learned its {' and '.join(learned)} too, which would be trained on; take another model"
        )
