"""What a run is made of, and how it goes to a checkpoint and comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data import ImageDataset
from models import NetworkScoreModel

from .build import build_loss, build_model, build_optimizer
from .checkpoint import Checkpoint, checkpoint_folders, load_newest, peek_state, save_checkpoint
from .config import Config
from .ema import ExponentialMovingAverage
from .logging import say
from .losses import Loss
from .optimizer_state import flatten_optimizer, optimizer_mismatch, restore_optimizer


def _weights(model: NetworkScoreModel, ema: ExponentialMovingAverage) -> dict[str, Tensor]:
    """Names and tensors of both sets of weights, as checkpoints hold them."""
    both = (("model.", model), ("ema.", ema.model))
    tensors = {f"{prefix}{name}": value for prefix, m in both for name, value in m.backbone.state_dict().items()}
    for prefix, m in both:
        for part, module in _learned_parts(m):
            tensors |= {f"{part}.{prefix}{name}": value for name, value in module.state_dict().items()}
    return tensors


def describe(dataset: ImageDataset) -> dict[str, Any]:
    """What a model was made for, as its checkpoints say: shape [C, H, W] and number of grey levels of the images."""
    return {"image_shape": list(dataset.image_shape), "num_levels": dataset.num_levels}


def _check_data(root: Path, dataset: ImageDataset) -> None:
    """Refuse images that the newest checkpoint was not made for; it says so itself, unless it is an old one."""
    ours, folders = describe(dataset), checkpoint_folders(root)
    # one that is damaged is for load_newest to say
    theirs = ((peek_state(folders[0]) if folders else None) or {}).get("data")
    if isinstance(theirs, dict) and theirs != ours:
        shown = (f"{key} {theirs.get(key)}, got {value}" for key, value in ours.items() if theirs.get(key) != value)
        raise ValueError(
            f"{folders[0]} was trained on images of {'; '.join(shown)} in {dataset.name} {dataset.split}; "
            "give both splits one shape and number of levels, or choose another --workdir"
        )


def _learned_parts(model: NetworkScoreModel) -> list[tuple[str, nn.Module]]:
    """What a model learns besides its backbone, which most have nothing of."""
    parts = (("sde", model.sde), ("dequantizer", model.dequantizer))
    return [(name, part) for name, part in parts if isinstance(part, nn.Module)]


@dataclass
class TrainingState:
    """Everything that changes while training.

    Attributes:
        model: The model being trained.
        ema: The average of its weights.
        optimizer: The optimizer of its weights.
        loss: The loss, with what it remembers.
        step: Number of steps done.
        losses: Those since the last logged one, so that a resumed run logs the same means.
        data: What the model is made for, see ``describe``.
    """

    model: NetworkScoreModel
    ema: ExponentialMovingAverage
    optimizer: torch.optim.Optimizer
    loss: Loss
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def create(cls, config: Config, dataset: ImageDataset, device: torch.device) -> TrainingState:
        """A fresh state on a device."""
        model = build_model(config, dataset).to(device)
        optimizer = build_optimizer(config, model)
        loss = build_loss(config, model.sde, dataset)
        ema = ExponentialMovingAverage(model, config.training.ema_decay)
        return cls(model, ema, optimizer, loss, data=describe(dataset))

    def _expected(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides the optimizer's state."""
        memory = {f"loss.{name}": tensor for name, tensor in self.loss.memory().items()}
        return _weights(self.model, self.ema) | memory

    def _mismatch(self, checkpoint: Checkpoint) -> str | None:
        updates = checkpoint.state.get("ema_updates")
        if not isinstance(updates, int) or updates < 0:
            return f"its ema_updates is {updates!r}, not a count"
        losses = checkpoint.state.get("losses", [])
        if not isinstance(losses, list) or not all(isinstance(loss, float) for loss in losses):
            return "its losses are not a list of numbers"
        return optimizer_mismatch(self.optimizer, checkpoint)

    def save(self, root: Path, *, keep: int) -> Path:
        """Write a checkpoint of this moment.

        Raises:
            FloatingPointError: If a weight is not finite; nothing is written then, so that good checkpoints stay.
        """
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise FloatingPointError(
                f"a weight is not finite at step {self.step}, which is not saved; lower optim.learning_rate or "
                "training.grad_clip, and go on from the last checkpoint if there is one"
            )
        tensors, state = flatten_optimizer(self.optimizer)
        state["ema_updates"] = self.ema.num_updates
        state["losses"] = [float(loss) for loss in self.losses]
        state["data"] = self.data
        tensors |= self._expected()
        return save_checkpoint(root, step=self.step, tensors=tensors, state=state, keep=keep)

    def restore(self, root: Path) -> bool:
        """Go to the newest good checkpoint, if there is any.

        Returns:
            Whether there was one.

        Raises:
            ValueError: If there are checkpoints but none can be used.
        """
        checkpoint = load_newest(root, self._expected(), self._mismatch)
        if checkpoint is None:
            return False
        for note in checkpoint.notes:
            say(note)
        _load_weights(self.model, checkpoint.tensors, "model.")
        _load_weights(self.ema.model, checkpoint.tensors, "ema.")
        restore_optimizer(self.optimizer, checkpoint.tensors, checkpoint.state)
        for name, tensor in self.loss.memory().items():
            tensor.copy_(checkpoint.tensors[f"loss.{name}"])
        self.ema.num_updates = int(checkpoint.state["ema_updates"])
        self.step = checkpoint.step
        self.losses = [torch.tensor(loss, dtype=torch.float64) for loss in checkpoint.state.get("losses", [])]
        return True


def _load_weights(model: NetworkScoreModel, tensors: dict[str, Tensor], prefix: str) -> None:
    state: dict[str, Any] = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    model.backbone.load_state_dict(state)
    for part, module in _learned_parts(model):
        start = f"{part}.{prefix}"
        module.load_state_dict({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})


def load_trained(
    config: Config, workdir: Path, dataset: ImageDataset, device: torch.device
) -> tuple[NetworkScoreModel, int]:
    """The averaged model of a work directory's newest good checkpoint.

    Args:
        config: The config it was trained with.
        workdir: The work directory.
        dataset: Any split of its data, for the shapes.
        device: Where the model goes.

    Returns:
        The model in evaluation mode, and the step of the checkpoint.

    Raises:
        ValueError: If there is no checkpoint, or none can be used, or the images are of another shape or have other
            levels.
    """
    _check_data(workdir / "checkpoints", dataset)
    model = build_model(config, dataset).to(device)
    ema = ExponentialMovingAverage(model, config.training.ema_decay)
    checkpoint = load_newest(workdir / "checkpoints", _weights(model, ema), ignored=("loss.",))
    if checkpoint is None:
        raise ValueError(f"{workdir} has no checkpoint yet; run --mode train first")
    for note in checkpoint.notes:
        say(note)
    _load_weights(ema.model, checkpoint.tensors, "ema.")
    return ema.model, checkpoint.step
