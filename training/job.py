"""One rank of a training job: its data, its state, and the lines it begins with."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch.distributed import is_torchelastic_launched

from data import AnyDataset, CoupleDataset, read_couples
from experiment.build import build_dataset
from experiment.checkpoints.store import checkpoint_folders
from experiment.conditions import build_conditions
from experiment.config import Config
from experiment.from_checkpoints import said_of_images, trained_channels
from experiment.latents.encoding import encoded
from experiment.latents.joint import as_its_latents, decode_by_own, own_noise_warning
from experiment.plugins import keep_plugins, say_changed_plugins
from experiment.precision import NetworkMode, pick_mode
from experiment.rank0_first import as_trained, load_on_rank0_first, pick_together
from experiment.text.frozen import told_by_frozen
from experiment.warnings.first_noise import first_noise_warning, latent_noise_warning
from experiment.warnings.prior import say_lost_signal
from experiment.workdir import check_for_training, claim_for_training
from runtime.locks import locked
from runtime.messages import say
from runtime.processes.collectives import Communication
from runtime.processes.rank_slice import RankSlice
from runtime.processes.ranks import Ranks
from runtime.signals import stop_on_signals

from .build import build_options, build_state
from .changes import check_captions, note_changes
from .init_from import begin_from_run, fit_kind, has_begun, is_to_begin, where_the_model_is
from .start_lines import data_lines, frozen_line, slice_line
from .state import TrainingState
from .trained_classes import absent_line, check_null_condition, check_trained_classes
from .trainer import Trainer


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
    rank_slice = RankSlice(
        training.batch_size, rank=ranks.rank, world=ranks.world, accumulation_steps=training.accumulation_steps
    )
    communication = Communication(rank_slice, device, sharding=training.sharding)
    channels = trained_channels(config, where_the_model_is(workdir, init_from))
    dataset = load_on_rank0_first(ranks, "data", lambda: build_dataset(config, "train", channels))
    dataset = told_by_frozen(config, dataset, workdir, ranks)
    if config.data.get("first_stage"):
        if ranks.first:
            # before anything is written there
            check_for_training(workdir, config)
        dataset = encoded(config, dataset, device, workdir, ranks)
    if not init_from and not checkpoint_folders(workdir / "checkpoints"):
        check_trained_classes(config, dataset)
        check_null_condition(config)
    kind = as_its_latents(config, dataset.kind)
    kind = fit_kind(config, kind, init_from) if begins else kind
    state = build_state(config, kind, device, sharded=communication.sharded)
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
        dataset = as_trained(ranks, config, workdir, dataset)
        samples = _samples(config, dataset)
        state.kind = as_its_latents(config, dataset.kind)
        decode_by_own(state.kind, state.ema.model)
        restored = _restore(config, state, dataset, workdir, ranks)
        if state.step >= training.num_steps:
            _say_trained(config, state, ranks)
            return
        mode = _pick_mode(config, state, device, ranks)
        if ranks.first:
            _begin(config, workdir, state, dataset, mode, rank_slice, restored=restored)
        trainer = Trainer(
            state,
            samples,
            build_options(config),
            workdir=workdir,
            mode=mode,
            # control.also is of sampling and measuring
            conditions=build_conditions(config, dataset.kind, added=False),
            communication=communication,
            # only then, so that config.json is of what was trained
            before_saving=partial(_claim, config, workdir),
        )
        with stop_on_signals(launched=is_torchelastic_launched()) as request:
            trainer.run(request)


def _samples(config: Config, dataset: AnyDataset) -> AnyDataset | CoupleDataset:
    """The samples to train on: those of the data, or of the couples that are to be learned."""
    couples = config.data.get("couples")
    return read_couples(Path(couples), dataset) if couples else dataset


def _restore(config: Config, state: TrainingState, dataset: AnyDataset, workdir: Path, ranks: Ranks) -> bool:
    """Go to the newest checkpoint, if there is one, and keep digests of files and captions for those that follow.

    Raises:
        ValueError: If it was trained on other captions.
    """
    captions = ""
    if "text" in config.data.get("condition", ()):
        # before the weights, whose shapes other words change
        captions = check_captions(said_of_images(workdir).get("captions", ""), dataset, workdir)
    restored = state.restore(workdir / "checkpoints", rank=ranks.rank, world=ranks.world)
    state.train_files = state.train_files or dataset.train_files
    state.captions = captions
    if restored and ranks.first and state.step:
        say(f"continues from step {state.step}")
    return restored


def _say_trained(config: Config, state: TrainingState, ranks: Ranks) -> None:
    state.bad_steps.check_trained(state.step)
    if ranks.first:
        decays = " and --config.optim.decay_steps" if config.optim.decay_steps else ""
        say(f"already trained to step {state.step}; raise --config.training.num_steps{decays} to train on")


def _pick_mode(config: Config, state: TrainingState, device: torch.device, ranks: Ranks) -> NetworkMode:
    """Pick precision and compilation; a resumed run keeps those that it began with."""
    training, backbone = config.training, state.model.backbone
    # derivatives along the flow, of which autocast knows nothing
    precision = "fp32" if training.loss == "scm" else training.precision
    pick = partial(pick_mode, precision, training.compile, device, backbone=backbone, num_calls=training.num_steps)
    mode = pick_together(ranks, pick, state.how)
    how = mode.recorded() | {"processes": ranks.world, "accumulation_steps": training.accumulation_steps}
    if ranks.first:
        for key, value in how.items():
            if state.how.get(key, value) != value:
                say(f"{key} was {state.how[key]}, is {value}: the run goes on, but not to the same bits")
    state.how = how
    return mode


def _claim(config: Config, workdir: Path) -> None:
    claim_for_training(workdir, config)
    keep_plugins(workdir, config.plugins)


def _begin(
    config: Config,
    workdir: Path,
    state: TrainingState,
    dataset: AnyDataset,
    mode: NetworkMode,
    rank_slice: RankSlice,
    *,
    restored: bool,
) -> None:
    """Note what changed of the settings, and say what is trained, on what and how."""
    note_changes(state.history, config, workdir, state.step)
    if restored:
        say_changed_plugins(workdir, config.plugins)
    else:
        claim_for_training(workdir, config)
    size = sum(p.numel() for p in state.model.parameters())
    device = next(state.model.parameters()).device
    sde, name = state.model.sde, config.sde.name
    levels = state.kind and state.kind.seen_levels
    warnings = [first_noise_warning(sde, name, levels), latent_noise_warning(sde, name, dataset)]
    warnings += [own_noise_warning(state.model), frozen_line(state.model.backbone)]
    lines = data_lines(dataset, workdir, num_parameters=size, device=str(device))
    for line in [*lines, absent_line(config, dataset), *mode.reasons, *warnings]:
        if line:
            say(line)
    if rank_slice.world > 1 or rank_slice.accumulation_steps > 1:
        say(slice_line(rank_slice, dataset.samples_are))
    say_lost_signal(config, sde)
