"""A trained model from its work directory, without its training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data import (
    AnyDataset,
    AnyKind,
    DataError,
    ImageDataset,
    ImageKind,
    LatentSpace,
    RealSpace,
    TextKind,
    VectorKind,
    image_kind,
)
from models import ConsistencyModel, FirstStage, NetworkModel, NetworkScoreModel, NoisyClassifier
from models.backbones import ControlledBackbone
from runtime.files import one_line
from runtime.messages import say

from .build import build_dataset, build_model, pick_device
from .checkpoints.folder import checkpoint_folders, peek_state, step_of
from .checkpoints.store import load_newest
from .checkpoints.weights import load_weights, named_weights
from .config import Config
from .control.base_config import base_config
from .control.settings import added_controls, is_controlled
from .distillation.stages import stages_of
from .frozen.named import place_of
from .frozen.run import FrozenRun
from .latents.first_stage import FirstStageCodec, LoadedFirstStage, first_stage_digest, sees_latents
from .latents.joint import decode_by_own
from .network import is_first_stage
from .saved_config import saved_config


def _said(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose state can be read and says what images it is for, and what it says."""
    for folder in checkpoint_folders(root):
        said = (peek_state(folder) or {}).get("data")
        if isinstance(said, dict):
            return folder, said
    return None


def said_of_images(workdir: Path) -> dict[str, Any]:
    """The entry on images of a work directory's checkpoints, unchecked; {} where there is none."""
    found = _said(workdir / "checkpoints")
    return {} if found is None else found[1]


def trained_kind(config: Config, workdir: Path, device: torch.device | None = None) -> AnyKind:
    """The data that a work directory's model is for, as its checkpoints say; the data set is not touched.

    Args:
        config: The config that it was trained with.
        workdir: The work directory.
        device: Where the autoencoder of latents goes; None for the config's.

    Returns:
        The kind of data. Of checkpoints of an earlier version, which do not say it in full, what is missing is that
        of the data set, which is loaded where only loading says it.

    Raises:
        ValueError: If there is no checkpoint.
    """
    root = workdir / "checkpoints"
    if not checkpoint_folders(root):
        raise ValueError(f"{workdir} has no checkpoint yet; run --mode train first")
    said = said_of_images(workdir)
    shape: Any = said.get("image_shape")
    levels: Any = said.get("num_levels")
    classes: Any = said.get("num_classes")
    if classes is None:
        # an imported network says it itself, and one without labels needs none
        classes = config.model.get("network", {}).get("num_classes") or (None if config.model.class_conditional else 1)
    names, space = tuple(said.get("class_names") or ()), _space_of(said)
    values, text = said.get("num_values") or 0, trained_text(said)
    if space is not None and classes is not None:
        return VectorKind((len(space.mean),), space, classes, names, values, text)
    if shape is None or levels is None or classes is None:
        return image_kind(config.data.dataset) or build_dataset(config, "train").kind
    paired = (said.get(f"paired_{one}") or 0 for one in ("channels", "levels"))
    latents = said.get("latents")
    _check_sees_the_same(config, workdir, of_latents=latents is not None)
    space = None if latents is None else _latent_space(latents)
    of_clips = {"paired_frames": said.get("paired_frames") or 0}
    kind = ImageKind(tuple(shape), levels, classes, names, values, *paired, latents=space, text=text, **of_clips)
    return kind if space is None else with_codec(config, kind, workdir, device or pick_device(config))


def trained_text(said: Mapping[str, Any]) -> TextKind | None:
    """The captions that a checkpoint's entry on data says; None without."""
    text = said.get("text")
    return None if text is None else TextKind(**text | {"vocabulary": tuple(text["vocabulary"])})


def _latent_space(said: dict[str, Any]) -> LatentSpace:
    """The space that a checkpoint says, without its autoencoder."""
    shape, mean, std = (tuple(said[key]) for key in ("latent_shape", "mean", "std"))
    levels, images = said.get("num_levels"), said.get("images", "")
    return LatentSpace(shape, mean, std, said["num_pixel_levels"], said["first_stage"], levels, images)


def _check_sees_the_same(config: Config, workdir: Path, *, of_latents: bool) -> None:
    """Refuse a config of latents for a run of pixels, or the other way round."""
    if sees_latents(config) != of_latents:
        theirs, ours = ("latents", "pixels") if of_latents else ("pixels", "latents")
        fix = f"{'set' if of_latents else 'leave out'} data.first_stage, or model.first_stage"
        raise ValueError(
            f"{workdir} holds a model of {theirs}, got a config of {ours}; {fix} as it was, or choose another --workdir"
        )


def trained_space(workdir: Path) -> RealSpace | None:
    """The space of a work directory's vectors, as its checkpoints say; None of images, or without checkpoints."""
    _, said = _said(workdir / "checkpoints") or (None, {})
    return _space_of(said)


def _space_of(said: dict[str, Any]) -> RealSpace | None:
    try:
        return RealSpace(tuple(said["space"]["mean"]), tuple(said["space"]["std"]))
    except (KeyError, TypeError, DataError):
        return None


def trained_channels(config: Config, workdir: Path) -> int | None:
    """Channels of a folder's images if a work directory's model is of colours: an earlier version took all for that."""
    _, said = _said(workdir / "checkpoints") or (None, {})
    return 3 if config.data.dataset == "folder" and (said.get("image_shape") or [0])[0] == 3 else None


def check_step(workdir: Path, step: int | None) -> None:
    """Refuse the step of a checkpoint that a work directory does not have; None is the newest.

    Raises:
        ValueError: With the steps that there are.
    """
    steps = [step_of(folder) for folder in checkpoint_folders(workdir / "checkpoints")]
    if step is not None and step not in steps:
        raise ValueError(
            f"{workdir} has no checkpoint of step {step}; choose one of: {', '.join(map(str, steps)) or 'none'}"
        )


def check_data(config: Config, workdir: Path, dataset: AnyDataset) -> tuple[str, ...]:
    """Refuse data that a work directory's model is not for, as far as its checkpoints say.

    Args:
        config: The config. Classes must agree where its model is told them.
        workdir: The work directory.
        dataset: The data.

    Returns:
        The names of the classes in the order that the model knows them by, for ``dataset.with_class_order``; those of
        the data set where the checkpoints say none.

    Raises:
        ValueError: Naming what differs.
    """
    found = _said(workdir / "checkpoints")
    if found is None:
        # there is none, or it is damaged, which is for load_newest to say, or an old one
        return dataset.class_names
    (folder, said), source = found, f"{dataset.name} {dataset.split}"
    _check_sees_the_same(config, workdir, of_latents=said.get("latents") is not None)
    ours: dict[str, Any] = {"image_shape": list(dataset.image_shape)}
    if dataset.num_levels is not None:
        ours["num_levels"] = dataset.num_levels
    if "values" in config.data.get("condition", ()):
        ours["num_values"] = dataset.num_values
    if "paired" in config.data.get("condition", ()) and isinstance(dataset, ImageDataset):
        ours |= {f"paired_{one}": getattr(dataset.kind, f"paired_{one}") for one in ("channels", "levels", "frames")}
    labelled = config.model.class_conditional
    names = tuple(map(str, said.get("class_names") or ())) if labelled else ()
    if names and dataset.class_names:
        _check_names(folder, names, dataset.class_names, source)
    elif labelled:
        ours["num_classes"] = dataset.num_classes
    different = [
        f"{key} {one_line(said[key], 60)}, got {mine}" for key, mine in ours.items() if said.get(key, mine) != mine
    ]
    if different:
        raise ValueError(
            f"{folder} was trained on {'images' if 'num_levels' in said else 'vectors'} of {'; '.join(different)} in "
            f"{source}; give both splits one shape and number of levels, classes and values, or choose another "
            "--workdir"
        )
    if labelled and "class_names" not in said:
        return _order_before(folder, dataset)
    return names if dataset.class_names and names else dataset.class_names


def say_other_files(config: Config, workdir: Path, dataset: AnyDataset) -> None:
    """Say it if a folder's images were divided otherwise when training began."""
    theirs = said_of_images(workdir).get("train_files")
    if theirs and dataset.train_files != theirs:
        say(
            f"the images under {config.data.root} are not those that were trained on: those measured may have been "
            "trained on; put back what was added or removed, or train anew"
        )


def _order_before(folder: Path, dataset: AnyDataset) -> tuple[str, ...]:
    """The classes as numbered when checkpoints named none: those of a folder by characters, 10 before 2."""
    if dataset.name != "folder":
        return dataset.class_names
    names = tuple(sorted(dataset.class_names, key=lambda name: (name != ".", name)))
    if names != dataset.class_names:
        shown = one_line(", ".join(names), 120)
        say(f"{folder} names no classes: they are numbered as when it was begun, by characters: {shown}")
    return names


def _check_names(folder: Path, theirs: tuple[str, ...], ours: tuple[str, ...], source: str) -> None:
    gone, new = ([name for name in one if name not in other] for one, other in ((theirs, ours), (ours, theirs)))
    if gone or new:
        changes = [
            f"{what} {one_line(', '.join(names), 120)}" for what, names in (("without", gone), ("with", new)) if names
        ]
        raise ValueError(
            f"{folder} was trained on other classes than those of {source}, which is {' and '.join(changes)}; name the "
            "classes as they were, or choose another --workdir"
        )


def load_trained(
    config: Config,
    workdir: Path,
    kind: AnyKind,
    device: torch.device,
    *,
    weights: str = "ema",
    step: int | None = None,
) -> tuple[NetworkModel, int]:
    """The model of a work directory's newest good checkpoint.

    Args:
        config: The config it was trained with.
        workdir: The work directory.
        kind: The data, as ``trained_kind`` says, or a data set that ``check_data`` passed.
        device: Where the model goes.
        weights: "ema", the average of the weights, or "raw", the last ones.
        step: The step of the checkpoint; None for the newest good one.

    Returns:
        The model in evaluation mode, and the step of the checkpoint.

    Raises:
        ValueError: If there is no checkpoint, or none can be used.
    """
    base = load_base(config, device)
    model = build_model(config, kind, base=base).to(device).eval().requires_grad_(False)
    checkpoint = load_newest(
        workdir / "checkpoints", named_weights(model, model), ignored=("loss.", "profiles."), step=step
    )
    if checkpoint is None and step is not None:
        raise ValueError(
            f"{workdir} has no checkpoint of step {step}, which rank 0 has loaded; give all processes the same "
            "work directory, and if a trainer has deleted it, run this again"
        )
    if checkpoint is None:
        raise ValueError(f"{workdir} has no checkpoint yet; run --mode train first")
    for note in checkpoint.notes:
        say(note)
    load_weights(model, checkpoint.tensors, "ema." if weights == "ema" else "model.")
    decode_by_own(kind, model)
    if isinstance(model, NetworkScoreModel) and model.answers == "steps":
        model.own_steps = stages_of(config).student_steps(checkpoint.step)
    if base is not None:
        check_base(workdir, base)
        model = _as_controlled(config, as_score_model(model, workdir), base, device)
    return model, checkpoint.step


def load_base(config: Config, device: torch.device) -> FrozenRun | None:
    """The frozen model of a ControlNet, ``control.base``; None of a model of its own.

    Raises:
        ValueError: In one line: there is no run, no good checkpoint, or it has no score.
    """
    if not is_controlled(config):
        return None
    return load_frozen(config.control.base, base_config(config), device)


def load_frozen(named: str, theirs: Config, device: torch.device) -> FrozenRun:
    """Load the model of a run that a key names, to stay as it is.

    Args:
        named: Its work directory, or a checkpoint in it as in "runs/x@1000".
        theirs: Its config.
        device: Where it goes.

    Raises:
        ValueError: In one line: there is no good checkpoint, or it has no score.
    """
    workdir, step = place_of(named)
    check_step(workdir, step)
    kind = trained_kind(theirs, workdir, device)
    model, _ = load_trained(theirs, workdir, kind, device, step=step)
    return FrozenRun(as_score_model(model, workdir), kind, theirs, workdir)


def check_base(workdir: Path, base: FrozenRun) -> None:
    """Refuse another frozen model than the one that a run was trained beside, if it was.

    Raises:
        ValueError: If its weights are others.
    """
    theirs = said_of_images(workdir).get("base")
    if theirs is not None and theirs != base.digest:
        raise ValueError(
            f"{workdir} was trained beside another model than control.base={base.workdir}, whose weights have another "
            "fingerprint; name the one that it was trained beside, such as an earlier checkpoint by control.base="
            f"{base.workdir}@STEP, or choose another --workdir"
        )


def _as_controlled(
    config: Config, model: NetworkScoreModel, base: FrozenRun, device: torch.device
) -> NetworkScoreModel:
    """The model as ``config.control`` says: with its scale, and with other ControlNets added."""
    control, own = config.control, model.backbone
    assert isinstance(own, ControlledBackbone)
    controls, scales = own.networks, [control.scale]
    for workdir, scale in added_controls(config):
        theirs = saved_config(workdir)
        if not is_controlled(theirs):
            raise ValueError(f"control.also={workdir} holds no ControlNet; name the work directory of one")
        kind = trained_kind(theirs, workdir, device)
        check_base(workdir, base)
        with theirs.unlocked():
            theirs.control.update({"base": config.control.base, "also": (), "scale": 1.0, "decay": 1.0})
        other, _ = load_trained(theirs, workdir, kind, device)
        network = as_score_model(other, workdir).backbone
        assert isinstance(network, ControlledBackbone)
        controls += network.networks
        scales.append(scale)
    network = ControlledBackbone(own.base, controls, scales=scales, decay=control.decay)
    return model.with_backbone(network.eval().requires_grad_(False))


def as_score_model(model: NetworkModel, workdir: Path) -> NetworkScoreModel:
    """The model, if it is one of scores.

    Raises:
        ValueError: If it is a consistency model, a classifier or an autoencoder.
    """
    if isinstance(model, ConsistencyModel):
        raise ValueError(
            f"{workdir} holds a consistency model, which is not a density: it has no score and no likelihood; take "
            "--mode sample with sampling.sampler=consistency, or the --workdir of a score model"
        )
    if isinstance(model, FirstStage):
        raise ValueError(
            f"{workdir} holds an autoencoder, which has no score; pass the --workdir of a score model, or take --mode "
            "eval, which measures it"
        )
    if isinstance(model, NoisyClassifier):
        raise ValueError(
            f"{workdir} holds a classifier, which has no score of its own; pass the --workdir of a score model, which "
            f"sampling.classifier={workdir} guides"
        )
    return model


def as_sampled_model(model: NetworkModel, workdir: Path) -> NetworkScoreModel | ConsistencyModel:
    """The model, if samples can be drawn of it.

    Raises:
        ValueError: If it is a classifier or an autoencoder.
    """
    return model if isinstance(model, ConsistencyModel) else as_score_model(model, workdir)


def load_first_stage(config: Config, device: torch.device, *, num_frames: int = 0) -> LoadedFirstStage:
    """Load the autoencoder that ``data.first_stage`` names.

    Args:
        config: The config.
        device: Where it goes.
        num_frames: Frames of the clips that it is to encode, each by itself, whatever it was trained on; 0 for images.

    Raises:
        ValueError: In one line: there is no run, no good checkpoint, or it is of no autoencoder.
    """
    workdir = Path(config.data.first_stage).expanduser()
    theirs = saved_config(workdir)
    if not is_first_stage(theirs):
        if theirs.model.get("first_stage"):
            raise ValueError(
                f"data.first_stage={workdir} holds an autoencoder that is a part of its own diffusion; train one alone"
            )
        raise ValueError(
            f"data.first_stage={workdir} holds no autoencoder but a {theirs.model.get('backbone', 'unet')}; train "
            "one first, such as configs/latent/digits_autoencoder.py"
        )
    kind = trained_kind(theirs, workdir)
    model, _ = load_trained(theirs, workdir, kind, device)
    assert isinstance(model, FirstStage) and isinstance(kind, ImageKind)
    if num_frames != kind.num_frames:
        channels, *_, height, width = kind.image_shape
        frames = (num_frames,) if num_frames else ()
        kind = replace(kind, image_shape=(channels, *frames, height, width))
        model = FirstStage(model.backbone, model.sde, num_frames=num_frames).eval()
    return LoadedFirstStage(model, kind, workdir, first_stage_digest(model))


def check_first_stage(workdir: Path, first: LoadedFirstStage) -> None:
    """Refuse another autoencoder than the one that a run was trained with, if it was.

    Raises:
        ValueError: If its weights or options are others.
    """
    theirs = said_of_images(workdir).get("latents")
    if theirs is not None and theirs["first_stage"] != first.digest:
        raise ValueError(
            f"{workdir} was trained on latents of another autoencoder than that of data.first_stage={first.workdir}; "
            "name the one that it was trained with, or choose another --workdir"
        )


def with_codec(config: Config, kind: ImageKind, workdir: Path, device: torch.device) -> ImageKind:
    """The kind of a trained model's latents with its autoencoder, which must be the one that it was trained with.

    Raises:
        ValueError: In one line: there is no such autoencoder, or it is another one.
    """
    if not config.data.get("first_stage"):
        # the model's own, which comes with its weights
        return kind
    loaded = load_first_stage(config, device, num_frames=kind.num_frames)
    check_first_stage(workdir, loaded)
    assert kind.latents is not None
    return replace(kind, latents=kind.latents.with_codec(FirstStageCodec(loaded.model)))
