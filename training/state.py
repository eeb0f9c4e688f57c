"""Training state, and saving and restoring it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import AnyKind
from experiment.checkpoints.optimizer import flatten_optimizer, optimizer_mismatch, restore_optimizer
from experiment.checkpoints.sharding import from_first, split_like, whole
from experiment.checkpoints.store import Checkpoint, load_newest, mismatch, save_checkpoint
from experiment.checkpoints.weights import load_weights, named_weights
from models import NetworkModel, NetworkScoreModel
from runtime.messages import say

from .bad_steps import BadSteps, bad_steps_mismatch
from .changes import SettingsHistory, history_mismatch
from .ema import ExponentialMovingAverage, PowerFunctionEMA
from .losses import Loss, TimeSampler


@dataclass
class TrainingState:
    """Everything that changes while training.

    Attributes:
        model: The model being trained.
        ema: The average of its weights.
        optimizer: The optimizer of its weights.
        loss: The loss.
        times: The sampler of training times, with what it remembers.
        kind: The data that the model is for; None of plain tensors, which a checkpoint says nothing of.
        bad_steps: The test of steps, which skips bad ones, with its counts.
        history: The settings that it is trained with, and what was changed of them.
        step: Number of steps done.
        saved_step: That of the newest checkpoint known; None without one.
        losses: Those since the last logged one, so that a resumed run logs the same means.
        how: How the run computes, as JSON: precision, compilation and number of processes, on which the last digits
            depend.
        train_files: ``Dataset.train_files`` as training began.
        captions: ``Dataset.captions_digest`` as training began, of a model that is told them.
        base: Digest of the frozen model of a ControlNet.
        teacher: Digest of the teacher of a distillation.
        profiles: More averages of its weights, of which others are made after the training.
    """

    model: NetworkModel
    ema: ExponentialMovingAverage
    optimizer: torch.optim.Optimizer
    loss: Loss
    times: TimeSampler
    kind: AnyKind | None = None
    bad_steps: BadSteps = field(default_factory=BadSteps)
    history: SettingsHistory = field(default_factory=SettingsHistory)
    step: int = 0
    saved_step: int | None = None
    losses: list[float] = field(default_factory=list)
    how: dict[str, Any] = field(default_factory=dict)
    train_files: str = ""
    captions: str = ""
    base: str = ""
    teacher: str = ""
    profiles: tuple[PowerFunctionEMA, ...] = ()

    def begin_step(self) -> None:
        """Let the loss know of the step that comes; where it restarts, the average is the model and its teacher."""
        self.loss.begin_step(self.step)
        model, average = self.model, self.ema.model
        if not isinstance(model, NetworkScoreModel) or not isinstance(average, NetworkScoreModel):
            return
        model.own_steps = average.own_steps = self.loss.own_steps
        if self.loss.restarts(self.step):
            self.loss.take_teacher(average)
            model.backbone.load_state_dict(average.backbone.state_dict())
            self.ema.num_updates = 0

    def _memory(self) -> dict[str, Tensor]:
        """Tensors that the loss and its times remember, and change in place."""
        return self.times.memory() | self.loss.memory()

    def _expected(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint besides the optimizer's state."""
        memory = {f"loss.{name}": tensor for name, tensor in self._memory().items()}
        return named_weights(self.model, self.ema.model) | memory

    def _profiles(self, updates: int) -> dict[str, Tensor]:
        """The averages of ``profiles``, of which there is nothing before the first update."""
        profiles = self.profiles if updates else ()
        return {name: tensor for profile in profiles for name, tensor in profile.state().items()}

    def _profiles_mismatch(self, checkpoint: Checkpoint, updates: int) -> str | None:
        found = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith("profiles.")}
        problem = mismatch(self._profiles(updates), found)
        bad = next((name for name, tensor in found.items() if not bool(torch.isfinite(tensor).all())), None)
        return f"{bad} is not finite" if bad is not None and problem is None else problem

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
        counts = checkpoint.state.get("guard")
        problem = bad_steps_mismatch(counts) or history_mismatch(checkpoint.state)
        if problem is not None:
            return problem
        done = checkpoint.step - (counts["skipped"] if counts else 0)
        if updates > done:
            return f"its average was updated {updates} times in {done} steps"
        return self._profiles_mismatch(checkpoint, updates) or optimizer_mismatch(
            self.optimizer, checkpoint, updates=done
        )

    def check_finite(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, whole.

        Raises:
            FloatingPointError: If one is not finite.
        """
        expected = {
            name: whole(tensor) for name, tensor in (self._expected() | self._profiles(self.ema.num_updates)).items()
        }
        if not all(bool(torch.isfinite(tensor).all()) for tensor in expected.values()):
            raise FloatingPointError(
                f"a weight is not finite at step {self.step}, which is not saved; lower optim.learning_rate or "
                "training.grad_clip, and go on from the last checkpoint if there is one"
            )
        return expected

    def save(self, root: Path, *, keep: int, write: bool = True) -> None:
        """Write a checkpoint of this moment.

        Args:
            root: The folder of checkpoints.
            keep: How many to keep.
            write: Whether this is the process that writes; where tensors are split, the others help to collect them.

        Raises:
            FloatingPointError: If a weight is not finite; nothing is written then, so that good checkpoints stay.
        """
        expected = self.check_finite()
        tensors, state = flatten_optimizer(self.optimizer)
        tensors = {name: whole(tensor) for name, tensor in tensors.items()} | expected
        self.saved_step = self.step
        if not write:
            return
        state["ema_updates"] = self.ema.num_updates
        state["losses"] = self.losses
        data = {} if self.kind is None else asdict(self.kind)
        # what is absent of pixels without captions, and of images, as always
        absent = {"latents": None, "text": None, "paired_frames": 0}
        data = {key: value for key, value in data.items() if key not in absent or value != absent[key]}
        digests = {"train_files": self.train_files, "captions": self.captions}
        digests |= {"base": self.base, "teacher": self.teacher}
        state["data"] = data | {name: digest for name, digest in digests.items() if digest}
        state["guard"] = self.bad_steps.state()
        state["how"] = self.how
        state |= self.history.state()
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
        checkpoint = None
        if rank == 0:
            checkpoint = load_newest(root, self._expected(), self._mismatch, ignored=("profiles.",))
        if world > 1:
            checkpoint = from_first(checkpoint)
        if checkpoint is None:
            return False
        for note in checkpoint.notes:
            say(note)
        load_weights(self.model, checkpoint.tensors, "model.")
        load_weights(self.ema.model, checkpoint.tensors, "ema.")
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        tensors = dict(checkpoint.tensors)
        for name in [name for name in tensors if name.startswith("optim.") and not name.endswith(".step")]:
            tensors[name] = split_like(tensors[name], parameters[int(name.split(".")[1])])
        restore_optimizer(self.optimizer, tensors, checkpoint.state)
        for name, tensor in self._memory().items():
            tensor.copy_(checkpoint.tensors[f"loss.{name}"])
        self.ema.num_updates = int(checkpoint.state["ema_updates"])
        for profile in self.profiles if self.ema.num_updates else ():
            profile.restore(checkpoint.tensors, self.ema.num_updates)
        self.step = self.saved_step = checkpoint.step
        self.losses = list(checkpoint.state.get("losses", []))
        if checkpoint.state.get("guard") is not None:
            self.bad_steps.restore(checkpoint.state["guard"])
        self.how = checkpoint.state.get("how") or {}
        said = checkpoint.state.get("data") or {}
        self.train_files, self.captions = said.get("train_files", ""), said.get("captions", "")
        for key, what, ours in (("base", "control.base", self.base), ("teacher", "distillation.teacher", self.teacher)):
            if said.get(key, ours) != ours:
                raise ValueError(
                    f"{root.parent} was trained beside another model than that of {what}, whose weights have another "
                    "fingerprint; name the one that it was trained beside, such as an earlier checkpoint by "
                    f"{what}=RUN@STEP, or choose another --workdir"
                )
        self.history.restore(checkpoint.state)
        return True
