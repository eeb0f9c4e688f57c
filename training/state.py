"""What a run is made of, and how it goes to a checkpoint and comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data import ImageDataset, blank_dataset
from models import NetworkScoreModel

from .build import build_dataset, build_loss, build_model, build_optimizer
from .checkpoint import Checkpoint, checkpoint_folders, load_newest, peek_state, save_checkpoint
from .config import Config
from .distributed import shard
from .ema import ExponentialMovingAverage
from .guard import StepGuard, guard_mismatch
from .logging import say
from .losses import Loss
from .optimizer_state import flatten_optimizer, optimizer_mismatch, restore_optimizer
from .precision import forward_flops
from .sharding import from_first, split_like, whole


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


def images_like_trained(config: Config, workdir: Path) -> ImageDataset:
    """Images of the shape that a work directory's model is of, for what needs no more of them.

    Args:
        config: The config.
        workdir: The work directory.

    Returns:
        One black image, where config and checkpoint say what images there are, as of an imported model; else the data
        set's train split, which is always there.
    """
    network = config.model.get("network", {})
    folders = checkpoint_folders(workdir / "checkpoints")
    said = ((peek_state(folders[0]) if folders else None) or {}).get("data")
    num_levels = said.get("num_levels") if isinstance(said, dict) else None
    if "image_size" not in network or not isinstance(num_levels, int) or not 2 <= num_levels <= 256:
        return build_dataset(config, "train")
    return blank_dataset(
        config.data.dataset,
        channels=network.in_channels,
        image_size=network.image_size,
        num_levels=num_levels,
        num_classes=network.num_classes,
    )


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
        guard: What keeps bad steps out, with what it remembers.
        step: Number of steps done.
        losses: Those since the last logged one, so that a resumed run logs the same means.
        data: What the model is made for, see ``describe``.
        how: How the run computes, as JSON: precision, compilation and number of processes, on which the last digits
            depend.
        flops: Floating-point operations of a forward pass over one image.
    """

    model: NetworkScoreModel
    ema: ExponentialMovingAverage
    optimizer: torch.optim.Optimizer
    loss: Loss
    guard: StepGuard = field(default_factory=StepGuard)
    step: int = 0
    losses: list[float] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    how: dict[str, Any] = field(default_factory=dict)
    flops: float = 0.0

    @classmethod
    def create(
        cls, config: Config, dataset: ImageDataset, device: torch.device, *, sharded: bool = False
    ) -> TrainingState:
        """A fresh state on a device.

        Args:
            config: The config.
            dataset: Images, for their shape and levels.
            device: Where the model goes.
            sharded: Split the network, its average and the optimizer's state over the processes.
        """
        model = build_model(config, dataset).to(device)
        if not sharded:
            # here, since the optimizer's moments are laid out as the weights are; FSDP takes contiguous ones only
            model.backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        ema = ExponentialMovingAverage(model, config.training.ema_decay)
        flops = forward_flops(model.backbone, dataset.image_shape)
        if sharded:
            for one in (model, ema.model):
                shard(one.backbone, getattr(one.backbone, "stages", []))
        optimizer = build_optimizer(config, model)
        loss = build_loss(config, model.sde, dataset)
        training = config.training
        guard = StepGuard(explosion_factor=training.explosion_factor, max_bad_steps=training.max_bad_steps)
        return cls(model, ema, optimizer, loss, guard, data=describe(dataset), flops=flops)

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
        how = checkpoint.state.get("how", {})
        if not isinstance(how, dict) or not all(isinstance(value, (str, bool, int)) for value in how.values()):
            return "it does not say how it computes"
        guard = checkpoint.state.get("guard")
        problem = guard_mismatch(guard)
        if problem is not None:
            return problem
        done = checkpoint.step - (guard["skipped"] if guard else 0)
        if updates > done:
            return f"its average was updated {updates} times in {done} steps"
        return optimizer_mismatch(self.optimizer, checkpoint, updates=done)

    def save(self, root: Path, *, keep: int, write: bool = True) -> None:
        """Write a checkpoint of this moment.

        Args:
            root: The folder of checkpoints.
            keep: How many to keep.
            write: Whether this is the process that writes; where tensors are split, the others help to collect them.

        Raises:
            FloatingPointError: If a weight is not finite; nothing is written then, so that good checkpoints stay.
        """
        expected = {name: whole(tensor) for name, tensor in self._expected().items()}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in expected.values()):
            raise FloatingPointError(
                f"a weight is not finite at step {self.step}, which is not saved; lower optim.learning_rate or "
                "training.grad_clip, and go on from the last checkpoint if there is one"
            )
        tensors, state = flatten_optimizer(self.optimizer)
        tensors = {name: whole(tensor) for name, tensor in tensors.items()} | expected
        if not write:
            return
        state["ema_updates"] = self.ema.num_updates
        state["losses"] = self.losses
        state["data"] = self.data
        state["guard"] = self.guard.state()
        state["how"] = self.how
        save_checkpoint(root, step=self.step, tensors=tensors, state=state, keep=keep)

    def restore(self, root: Path, *, rank: int = 0, world: int = 1) -> bool:
        """Go to the newest good checkpoint, if there is any; one process reads it, for all.

        Args:
            root: The folder of checkpoints.
            rank: Number of this process.
            world: Number of processes.

        Returns:
            Whether there was one.

        Raises:
            ValueError: If there are checkpoints but none can be used.
        """
        checkpoint = load_newest(root, self._expected(), self._mismatch) if rank == 0 else None
        if world > 1:
            checkpoint = from_first(checkpoint)
        if checkpoint is None:
            return False
        for note in checkpoint.notes:
            say(note)
        _load_weights(self.model, checkpoint.tensors, "model.")
        _load_weights(self.ema.model, checkpoint.tensors, "ema.")
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        tensors = dict(checkpoint.tensors)
        for name in [name for name in tensors if name.startswith("optim.") and not name.endswith(".step")]:
            tensors[name] = split_like(tensors[name], parameters[int(name.split(".")[1])])
        restore_optimizer(self.optimizer, tensors, checkpoint.state)
        for name, tensor in self.loss.memory().items():
            tensor.copy_(checkpoint.tensors[f"loss.{name}"])
        self.ema.num_updates = int(checkpoint.state["ema_updates"])
        self.step = checkpoint.step
        self.losses = list(checkpoint.state.get("losses", []))
        if checkpoint.state.get("guard") is not None:
            self.guard.restore(checkpoint.state["guard"])
        self.how = checkpoint.state.get("how") or {}
        return True


@torch.no_grad()
def _load_weights(model: NetworkScoreModel, tensors: dict[str, Tensor], prefix: str) -> None:
    modules = [(prefix, model.backbone), *((f"{part}.{prefix}", module) for part, module in _learned_parts(model))]
    for start, module in modules:
        for name, target in module.state_dict().items():
            target.copy_(split_like(tensors[f"{start}{name}"], target))


def load_trained(
    config: Config, workdir: Path, dataset: ImageDataset, device: torch.device, *, step: int | None = None
) -> tuple[NetworkScoreModel, int]:
    """The averaged model of a work directory's newest good checkpoint.

    Args:
        config: The config it was trained with.
        workdir: The work directory.
        dataset: Any split of its data, for the shapes.
        device: Where the model goes.
        step: The step of the checkpoint; None for the newest good one.

    Returns:
        The model in evaluation mode, and the step of the checkpoint.

    Raises:
        ValueError: If there is no checkpoint, or none can be used, or the images are of another shape or have other
            levels.
    """
    _check_data(workdir / "checkpoints", dataset)
    model = build_model(config, dataset).to(device)
    ema = ExponentialMovingAverage(model, config.training.ema_decay)
    checkpoint = load_newest(workdir / "checkpoints", _weights(model, ema), ignored=("loss.",), step=step)
    if checkpoint is None and step is not None:
        raise ValueError(
            f"{workdir} has no checkpoint of step {step}, which rank 0 has loaded; give all processes the same "
            "work directory, and if a trainer has deleted it, run this again"
        )
    if checkpoint is None:
        raise ValueError(f"{workdir} has no checkpoint yet; run --mode train first")
    for note in checkpoint.notes:
        say(note)
    _load_weights(ema.model, checkpoint.tensors, "ema.")
    return ema.model, checkpoint.step
