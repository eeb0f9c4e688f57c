"""A run whose step 0 is not drawn at random: it has the weights of another run, or of an imported checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data import AnyKind, ImageKind, TextKind, VectorKind
from experiment.checkpoints.folder import step_of
from experiment.checkpoints.store import checkpoint_folders
from experiment.checkpoints.weights import load_weights, named_weights
from experiment.config import Config
from experiment.control.settings import is_controlled
from experiment.distillation.teacher import teacher_of
from experiment.from_checkpoints import said_of_images, trained_space, trained_text
from experiment.network import is_first_stage
from experiment.trained_run import load_run
from experiment.workdir import claim_for_training, config_differences, in_words, read_config, source_of
from runtime.files import one_line
from runtime.messages import say

from .build import build_state
from .state import TrainingState

# what makes a network conditional: where the other run has none of it, new layers that start at zero take it in
_ADDED = (
    *("model.class_conditional", "model.condition_dropout", "model.condition_noise_t", "model.part_dropout"),
    *("model.network.num_classes", "model.network.cond_channels", "model.network.cond_values"),
    *("model.network.null_condition", "data.condition"),
)
# parts of a network that read a text, and that see other frames: new ones, whose last layer or gate is zero
_NEW = ("word_encoder.", ".cross_attention.", "temporal.")
_OWN = "run"  # config.source.name of a run that began with the weights of another one


def save_beginning(
    config: Config,
    workdir: Path,
    state: TrainingState,
    *,
    name: str,
    checkpoint: str,
    said: Mapping[str, Any] | None = None,
) -> None:
    """Write step 0 of a run, and its config with a record of where the weights are from.

    Args:
        config: The config.
        workdir: The work directory, which holds no run.
        state: Step 0.
        name: ``config.source.name``: the project that made the checkpoint, or "run".
        checkpoint: ``config.source.checkpoint``: its path.
        said: What else of the checkpoint is to be kept in ``config.source``.
    """
    whole = config.copy_and_resolve_references()
    with whole.unlocked():
        whole.source.update({"name": name, "checkpoint": checkpoint, **(said or {})})
    # in this order: nobody trains anew, unknowingly, where this was interrupted
    state.save(workdir / "checkpoints", keep=whole.training.keep_checkpoints)
    claim_for_training(workdir, whole, imported=True)


def split_init_from(init_from: str) -> tuple[Path, int | None]:
    """The work directory that --init-from names, and the step, if it names a checkpoint in one."""
    path = Path(init_from).resolve()
    if path.parent.name == "checkpoints" and path in checkpoint_folders(path.parent):
        return path.parent.parent, step_of(path)
    return path, None


def where_the_model_is(workdir: Path, init_from: str) -> Path:
    """The work directory whose model a command is of: the one of --init-from for a run that it is yet to begin."""
    begun = not init_from or checkpoint_folders(workdir / "checkpoints")
    return workdir if begun else split_init_from(init_from)[0]


def has_begun(workdir: Path, init_from: str) -> bool:
    """Tell a work directory with a run that --init-from began, which is then resumed.

    Args:
        workdir: The work directory.
        init_from: Another work directory, or a checkpoint in one.

    Raises:
        ValueError: If it holds a run that began otherwise.
    """
    if not checkpoint_folders(workdir / "checkpoints"):
        return False
    source = source_of(read_config(workdir)) or {}
    began = Path(str(source.get("checkpoint"))) if source.get("name") == _OWN else None
    if began is not None and Path(init_from).resolve() in (began.resolve(), began.parent.parent.resolve()):
        return True
    how = f"began from {began}" if began else "was imported" if source else "began with weights drawn at random"
    raise ValueError(
        f"{workdir} holds a run that {how}, not from --init-from {init_from}; leave --init-from out to go on with it, "
        "or choose another --workdir"
    )


def is_to_begin(config: Config, workdir: Path, init_from: str) -> bool:
    """Tell a run that is to begin with another one's weights; nothing is loaded.

    Args:
        config: The config.
        workdir: The work directory.
        init_from: --init-from: another work directory, or a checkpoint in one; "" is none.

    Returns:
        False without --init-from, and where the run has begun and goes on.

    Raises:
        ValueError: If the other run has another model, naming what differs, or ``has_begun`` refuses.
    """
    if not init_from or has_begun(workdir, init_from):
        return False
    if teacher_of(config):
        raise ValueError(
            f"a student begins with the weights of distillation.teacher={teacher_of(config)}, got --init-from "
            f"{init_from}; leave one of them out"
        )
    source, _ = split_init_from(init_from)
    saved = read_config(source)
    if saved is None or not checkpoint_folders(source / "checkpoints"):
        raise ValueError(
            f"--init-from {init_from} holds no trained run; pass the --workdir of one, or a checkpoints/step_... in it"
        )
    theirs = bool((saved.get("control") or {}).get("base"))
    if is_controlled(config) != theirs:
        kinds = ("a ControlNet", "a model of its own")
        its, ours = kinds if theirs else kinds[::-1]
        raise ValueError(
            f"--init-from {init_from} holds {its}, got {ours}; leave --init-from out: a ControlNet begins as a copy of "
            "control.base"
        )
    different = {
        key: pair for key, pair in config_differences(config, saved).items() if not (key in _ADDED and not pair[1])
    }
    if not saved.get("data", {}).get("condition"):
        different.pop("data.condition_options", None)
    # a reflow begins with the weights of a model of posterior means
    different.pop("model.answers", None)
    if different.get("model.backbone") == ("space_time", "dit"):
        # an image network, which is one of clips whose frames do not see each other
        different.pop("model.backbone")
        different.pop("model.network.temporal_reach", None)
    # what it is told is of the model too
    model, sde = _shown(different, "model.", "data.condition"), _shown(different, "sde.")
    if model:
        raise ValueError(f"--init-from {init_from} has another model: {model}; set it as it is there")
    if sde:
        say(f"--init-from {init_from} was trained on another SDE: {sde}")
    return True


def _shown(different: dict[str, tuple[Any, Any]], *sections: str) -> str:
    # the kind of network, and of SDE, say most
    keys = sorted(different, key=lambda key: not key.endswith((".backbone", ".name")))
    return in_words({key: different[key] for key in keys if key.startswith(sections)}, "{} is {} there, {} here")


def begin_from_run(config: Config, workdir: Path, kind: AnyKind, init_from: str) -> None:
    """Write step 0 of a run: the averaged weights of another one, a fresh average of them and a fresh optimizer.

    Weights that the other one does not have, of conditions that it is not told, are zero, or, of text and of attention
    over frames, new ones of blocks whose last layer or gate is: its outputs stay.

    Args:
        config: The config, which ``is_to_begin`` passed.
        workdir: The work directory, which holds no run.
        kind: The images to train on, as ``fit_kind`` gives them.
        init_from: The other work directory, whose newest good checkpoint is taken, or a checkpoint in one.

    Raises:
        ValueError: If no checkpoint can be used.
    """
    source, step = split_init_from(init_from)
    other = load_run(source, device="cpu", step=step)
    state, step = build_state(config, kind, torch.device("cpu")), other.step
    weights = named_weights(other.model, other.model)
    for one in (state.model, state.ema.model):
        new = {
            # all zero, these would never learn
            f"ema.{name}": value if any(part in name for part in _NEW) else torch.zeros_like(value)
            for name, value in one.backbone.state_dict().items()
        }
        load_weights(one, new | weights, "ema.")
    checkpoint = source / "checkpoints" / f"step_{step:08d}"
    save_beginning(config, workdir, state, name=_OWN, checkpoint=str(checkpoint))
    say(f"begins at step 0 with the averaged weights (EMA) of step {step} of {source}, and a fresh optimizer")


def fit_kind(config: Config, kind: AnyKind, init_from: str) -> AnyKind:
    """The images to train on as the other run's model knows them: classes of its names keep its numbers.

    Args:
        config: The config.
        kind: The images to train on.
        init_from: A work directory, or a checkpoint in one.

    Raises:
        ValueError: If the model is of images of another shape, or of another number of classes.
    """
    source, _ = split_init_from(init_from)
    said, space = said_of_images(source), trained_space(source)
    if space is not None and isinstance(kind, VectorKind):
        # what the model sees of a vector is to mean the same to it
        kind = replace(kind, space=space)
    theirs = (said.get("latents") or {}).get("first_stage")
    if theirs != (kind.latents.first_stage if isinstance(kind, ImageKind) and kind.latents is not None else None):
        raise ValueError(
            f"--init-from {init_from} sees pixels, or other latents than this run does; name a run that sees the same"
        )
    ours: dict[str, Any] = {"image_shape": list(kind.image_shape)}
    if isinstance(kind, ImageKind) and kind.of_clips and len(said.get("image_shape", ())) == len("CHW"):
        ours["image_shape"] = [kind.image_shape[0], *kind.image_shape[2:]]
    if is_first_stage(config) or config.model.get("first_stage"):
        # of which a decoder says the probabilities
        ours["num_levels"] = kind.num_levels
    if config.model.class_conditional:
        ours["num_classes"] = kind.num_classes
    for key, mine in ours.items():
        if said.get(key, mine) != mine:
            raise ValueError(
                f"--init-from {init_from} is of images of {key} {one_line(said[key], 60)}, got {mine} in "
                f"{config.data.dataset}; use such images"
            )
    if isinstance(kind, ImageKind) and "text" in config.data.get("condition", ()):
        kind = _fit_text(kind, trained_text(said), init_from)
    names = tuple(map(str, said.get("class_names") or ()))
    if not config.model.class_conditional or not names or not kind.class_names:
        return kind
    # a class of a name that the model knows stays that class, and new ones take the places of those that are gone
    new = iter([name for name in kind.class_names if name not in names])
    order = tuple(name if name in kind.class_names else next(new) for name in names)
    changed = [f"{k} was {was}, is {now}" for k, (was, now) in enumerate(zip(names, order, strict=True)) if was != now]
    if changed:
        say(f"other classes than those of {init_from}: {one_line('; '.join(changed), 200)}")
    return replace(kind, class_names=order)


def _fit_text(kind: ImageKind, theirs: TextKind | None, init_from: str) -> ImageKind:
    """The images with the vocabulary that the other run's model has, if it is told captions."""
    ours = kind.text
    if theirs is None or ours is None:
        return kind
    if theirs.encoder != ours.encoder:
        raise ValueError(
            f"--init-from {init_from} reads captions by another text encoder; set data.text_encoder as there"
        )
    unknown = sorted(set(ours.vocabulary).difference(theirs.vocabulary))
    if unknown:
        shown = one_line(", ".join(unknown), 120)
        say(f"{len(unknown)} words are in no caption of {init_from}, and are left out: {shown}")
    return replace(kind, text=theirs)
