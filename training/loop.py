"""The training loop."""

from __future__ import annotations

import signal
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch.distributed import is_torchelastic_launched

from data import AnyDataset, TrainBatches
from experiment.build import build_dataset
from experiment.checkpoints.store import checkpoint_folders
from experiment.config import Config
from experiment.first_noise_warning import first_noise_warning
from experiment.from_checkpoints import trained_channels
from experiment.in_turn import as_trained, load_in_turn, pick_together
from experiment.plugins import keep_plugins, say_changed_plugins
from experiment.precision import NetworkMode, pick_mode
from experiment.prior_warning import say_lost_signal
from experiment.workdir import check_for_training, claim_for_training
from runtime.locks import locked
from runtime.messages import say
from runtime.processes.collectives import (
    Communication,
    Share,
)
from runtime.processes.ranks import Ranks
from runtime.signals import Interrupted, StopRequest, stop_on_signals

from .changes import note_changes
from .init_from import (
    begin_from_run,
    fit_kind,
    has_begun,
    is_to_begin,
    where_the_model_is,
)
from .log import TrainingLog
from .preview import log_preview
from .start_lines import data_lines, share_line
from .state import TrainingState
from .step import TrainingStep
from .trained_classes import absent_line, check_null_class, check_trained_classes


def train_as_rank(config: Config, workdir: Path, ranks: Ranks, device: torch.device, init_from: str) -> None:
    """Train as one process of a job; see ``commands.train``.

    Args:
        config: The config, checked.
        workdir: The work directory.
        ranks: The processes of the job.
        device: This process's device.
        init_from: Another run's work directory; "" is none.
    """
    training = config.training
    begins = ranks.first and is_to_begin(config, workdir, init_from)
    share = Share(
        training.batch_size, rank=ranks.rank, world=ranks.world, accumulation_steps=training.accumulation_steps
    )
    communication = Communication(share, device, sharding=training.sharding)
    channels = trained_channels(config, where_the_model_is(workdir, init_from))
    dataset = load_in_turn(ranks, "data", lambda: build_dataset(config, "train", channels))
    is_new = not init_from and not checkpoint_folders(workdir / "checkpoints")
    if is_new:
        check_trained_classes(config, dataset)
    kind = fit_kind(config, dataset.kind, init_from) if begins else dataset.kind
    state = TrainingState.create(config, kind, device, sharded=communication.sharded)
    if is_new:
        check_null_class(config, state.loss)
    state.model.backbone.gradient_checkpointing = training.gradient_checkpointing  # pyright: ignore[reportArgumentType]
    # the first process writes step 0 meanwhile where it has --init-from, so that the others are not to look
    looks = ranks.first or not init_from
    if looks:
        check_for_training(workdir, config)
    with locked(workdir, "train") if ranks.first else nullcontext():
        if looks:
            # another job may have begun in the meantime
            check_for_training(workdir, config)
        if begins and not has_begun(workdir, init_from):
            begin_from_run(config, workdir, kind, init_from)
        _train_there(config, workdir, ranks, device, communication, dataset, state)


def _train_there(
    config: Config,
    workdir: Path,
    ranks: Ranks,
    device: torch.device,
    communication: Communication,
    dataset: AnyDataset,
    state: TrainingState,
) -> None:
    training, share = config.training, communication.share
    dataset = as_trained(ranks, config, workdir, dataset)
    state.kind = dataset.kind
    restored = state.restore(workdir / "checkpoints", rank=ranks.rank, world=ranks.world)
    state.train_files = state.train_files or dataset.train_files
    if restored and ranks.first and state.step:
        say(f"continues from step {state.step}")
    if state.step >= training.num_steps:
        state.guard.check_trained(state.step)
        if ranks.first:
            decays = " and --config.optim.decay_steps" if config.optim.decay_steps else ""
            say(f"already trained to step {state.step}; raise --config.training.num_steps{decays} to train on")
        return
    mode = _pick_mode(config, state, device, ranks)
    if ranks.first:
        note_changes(state.history, config, workdir, state.step)
        if restored:
            say_changed_plugins(workdir, config.plugins)
        else:
            claim_for_training(workdir, config)
        _introduce(config, workdir, state, dataset, device, mode, share)
        say_lost_signal(config, state.model.sde)
    flip = config.data.random_flip
    do_step = TrainingStep(
        state,
        TrainBatches(dataset, batch_size=training.batch_size, seed=config.seed, random_flip=flip),
        seed=config.seed,
        class_conditional=config.model.class_conditional,
        precision=mode.precision,
        learning_rate=config.optim.learning_rate,
        warmup_steps=config.optim.warmup_steps,
        decay_steps=config.optim.decay_steps,
        grad_clip=training.grad_clip,
        communication=communication,
        compiled=mode.compiled,
        ahead=device.type == "cuda",
    )
    with stop_on_signals(launched=is_torchelastic_launched(), called_off=lambda: ranks.called_off) as request:
        try:
            do_step.prepare()
            if not ranks.first:
                _run(config, workdir, state, do_step, None, request, communication)
                return
            start, num_steps = state.step, training.num_steps
            with TrainingLog(workdir, start=start, num_steps=num_steps, batch_size=training.batch_size) as log:
                _run(config, workdir, state, do_step, log, request, communication)
        finally:
            do_step.close()


def _pick_mode(config: Config, state: TrainingState, device: torch.device, ranks: Ranks) -> NetworkMode:
    """Pick precision and compilation; a resumed run keeps those that it began with."""
    training, backbone = config.training, state.model.backbone
    passes = 3 * training.batch_size * training.num_steps  # forward, and backward at twice its price
    work = passes * state.flops

    pick = partial(pick_mode, training.precision, training.compile, device, backbone=backbone, work=work)
    mode = pick_together(ranks, pick, state.how)
    how = mode.recorded() | {"processes": ranks.world, "accumulation_steps": training.accumulation_steps}
    if ranks.first:
        for key, value in how.items():
            if state.how.get(key, value) != value:
                say(f"{key} was {state.how[key]}, is {value}: the run goes on, but not to the same bits")
    state.how = how
    return mode


def _introduce(
    config: Config,
    workdir: Path,
    state: TrainingState,
    dataset: AnyDataset,
    device: torch.device,
    mode: NetworkMode,
    share: Share,
) -> None:
    size = sum(p.numel() for p in state.model.parameters())
    levels = dataset.num_levels
    warning = first_noise_warning(state.model.sde, config.sde.name, levels) if levels else None
    lines = data_lines(dataset, workdir, num_parameters=size, device=str(device))
    for line in [*lines, absent_line(config, dataset), *mode.reasons, warning]:
        if line:
            say(line)
    if share.world > 1 or share.accumulation_steps > 1:
        say(share_line(share, dataset.samples_are))


def _run(
    config: Config,
    workdir: Path,
    state: TrainingState,
    do_step: TrainingStep,
    log: TrainingLog | None,
    request: StopRequest,
    communication: Communication,
) -> None:
    """The steps; ``log`` is None in processes other than the first, which write nothing."""
    training = config.training
    checkpoints = workdir / "checkpoints"
    began, steps_timed, stop = time.perf_counter(), 0, communication.any(bool(request))
    due = claimed = False

    def save() -> None:
        nonlocal claimed
        # only now, so that config.json is of what was trained
        if log is not None and not claimed:
            claim_for_training(workdir, config)
            keep_plugins(workdir, config.plugins)
        claimed = True
        state.save(checkpoints, keep=training.keep_checkpoints, write=log is not None)
        if log is not None:
            log.learning_curve()

    while state.step < training.num_steps and not stop:
        result = do_step(stop=bool(request))
        if state.how.get("compile") and not do_step.compiled:
            # what failed for want of disk, say, may work at the next start, and end in other bits
            state.how["compile"] = False
        stop = result.stop or (communication.share.world == 1 and bool(request))
        if not result.skipped:
            state.losses.append(result.loss)
        steps_timed += 1
        last = state.step == training.num_steps
        if log is not None:
            log.advance()
            if result.skipped:
                say(f"step {state.step} is left out: loss {result.loss:g}, gradient norm {result.grad_norm:g}")
        if last:
            state.guard.check_trained(state.step)
        if last or state.step % training.log_every == 0:
            if log is not None and state.losses:
                log.scalars(
                    state.step,
                    loss=fmean(state.losses),
                    grad_norm=result.grad_norm,
                    learning_rate=state.optimizer.param_groups[0]["lr"],
                    seconds_per_step=(time.perf_counter() - began) / steps_timed,
                    skipped=state.guard.skipped,
                )
            state.losses.clear()
            began, steps_timed = time.perf_counter(), 0
        paused = time.perf_counter()
        due = due or last or state.step % training.checkpoint_every == 0
        # weights at which nothing can be computed would take a good checkpoint's place
        if due and (last or not state.guard.doubtful):
            due = False
            save()
        # of a sharded network all processes are needed for a sample
        if training.sample_every and state.step % training.sample_every == 0 and (log or communication.sharded):
            log_preview(config, state, log, request, communication)
        began += time.perf_counter() - paused
    if stop:
        # a command that did no step changes nothing
        if state.saved_step != state.step:
            save()
        raise Interrupted(
            f"stopped at step {state.step}, which is saved; the same command goes on from there",
            # of a request that another process heard, the signal is not known here
            request.signal_number or signal.SIGTERM,
            together=True,
        )
