"""The subject of a measurement: a split of the data, and the newest good checkpoint of a work directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data import AnyDataset, AnyKind, refuse_clips
from evaluation.measurement import EvalSplit
from evaluation.over_ranks import says_what_is_kept
from experiment.build import build_dataset, pick_device
from experiment.conditions import build_conditions
from experiment.config import Config
from experiment.config.checks import check_config
from experiment.from_checkpoints import trained_channels, trained_kind
from experiment.latents.first_stage import sees_latents
from experiment.plugins import say_changed_plugins
from experiment.precision import NetworkMode, pick_mode
from experiment.rank0_first import as_trained, load_on_rank0_first, load_same_trained, pick_together
from experiment.workdir import check_for_use
from models import NetworkModel
from runtime.locks import locked
from runtime.memory import explain_out_of_memory
from runtime.messages import say
from runtime.processes.ranks import Ranks


@dataclass(frozen=True)
class Subject:
    """A model and the data that it is measured on.

    Attributes:
        split: The data.
        kind: The data as the model knows them.
        trained: The model, with its averaged weights.
        step: The training step of them.
        computing: How its network shall compute.
    """

    split: EvalSplit
    kind: AnyKind
    trained: NetworkModel
    step: int
    computing: NetworkMode


@contextlib.contextmanager
def subject(config: Config, workdir: Path, mode: str, ranks: Ranks, *, calls_per_batch: int) -> Iterator[Subject]:
    """Load what ``config.eval`` says, and hold the lock of the mode's folder within the ``with`` block.

    Args:
        config: The config the work directory was trained with; ``eval`` may differ.
        workdir: The work directory.
        mode: The mode, whose name its lock and its folder have.
        ranks: The processes of the job.
        calls_per_batch: Calls of the network for a batch, about, to judge whether compiling it is worth while.

    Raises:
        ValueError: If the config does not fit the work directory, or there is no good checkpoint.
        RuntimeError: If another command measures there.
        Interrupted: After Ctrl-C.
    """
    check_config(config)
    settings = config.eval
    with explain_out_of_memory("eval.batch_size", settings.batch_size), contextlib.ExitStack() as held:
        check_for_use(workdir, config)
        device = ranks.device(pick_device(config))
        with says_before_the_first_batch():
            dataset = load_split(config, workdir, settings.split, ranks)
            split = EvalSplit(
                dataset,
                batch_size=settings.batch_size,
                num_images=settings.num_images,
                seed=config.seed,
                conditions=build_conditions(config, dataset.kind),
                device=device,
            )
            kind = trained_kind(config, workdir, device) if sees_latents(config) else dataset.kind
            trained, step = load_same_trained(ranks, config, workdir, kind, device)
            pick = partial(pick_mode, settings.precision, settings.compile, device, backbone=trained.backbone)
            computing = pick_together(ranks, partial(pick, num_calls=calls_per_batch * len(split)))
            if ranks.first:
                held.enter_context(locked(workdir, mode))
                for reason in computing.reasons:
                    say(reason)
                say_changed_plugins(workdir, config.plugins)
        yield Subject(split, kind, trained, step, computing)


def load_split(config: Config, workdir: Path, split: str, ranks: Ranks) -> AnyDataset:
    """A split of the data that a run was trained on, as its model knows channels and classes."""
    channels = trained_channels(config, workdir)
    dataset = load_on_rank0_first(ranks, "images", lambda: build_dataset(config, split, channels))
    return as_trained(ranks, config, workdir, dataset)


def refuse_untold(config: Config, kind: AnyKind, mode: str) -> None:
    """Refuse models of clips, and those that are told an image or values, which there are none of.

    Raises:
        ValueError: If the model is.
    """
    refuse_clips(kind, f"--mode {mode}")
    if not build_conditions(config, kind).only_labels:
        told, needed = ",".join(config.data.condition), "a model that is told a class or nothing"
        raise ValueError(f"--mode {mode} needs {needed}, got data.condition={told}; train one without")


def refuse_latents(config: Config, mode: str, why: str) -> None:
    """Refuse models of latents where a mode is of pixels.

    Raises:
        ValueError: If the model is of latents.
    """
    if sees_latents(config):
        whose = config.data.first_stage or "its own autoencoder"
        raise ValueError(f"--mode {mode} {why}, got a model of the latents of {whose}; use one of pixels")


def says_before_the_first_batch() -> contextlib.AbstractContextManager[None]:
    """Say, if it is stopped within, that nothing is measured yet."""
    return says_what_is_kept(lambda: "stopped before the first batch; the same command begins again")
