"""A checkpoint of another project as a work directory: ``--mode import``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from data import ImageKind, ImageSize, VectorKind, height_and_width, image_kind, one_or_pair
from experiment.build import build_dataset, build_sampler
from experiment.config import Config
from experiment.config.checks import check_config, check_eval_names
from experiment.config.imported import config_of_checkpoint
from experiment.from_checkpoints import load_first_stage
from experiment.latents.published import with_published_latents
from experiment.text.frozen import load_text_encoder, reads_by_frozen, text_kind_of
from experiment.workdir import check_for_training
from models import pretrained
from models.pretrained import PlannedClassifier, PlannedConsistencyModel, PlannedFirstStage, PlannedModel
from runtime.files import one_line
from runtime.locks import locked
from runtime.memory import explain_out_of_memory
from runtime.messages import say
from runtime.registry import choices_message
from training.build import state_of_weights
from training.init_from import save_beginning

Planned = PlannedModel | PlannedConsistencyModel | PlannedClassifier | PlannedFirstStage
_SOURCES: dict[str, Callable[..., Planned]] = {
    "autoencoder_kl": pretrained.from_autoencoder_kl,
    "autoencoder_vq": pretrained.from_autoencoder_vq,
    "consistency_models": pretrained.from_consistency,
    "ddpm": pretrained.from_ddpm,
    "diffusers": pretrained.from_diffusers,
    "diffusers_dit": pretrained.from_diffusers_dit,
    "diffusers_prior": pretrained.from_diffusers_prior,
    "dit": pretrained.from_dit,
    "edm": pretrained.from_edm,
    "guided_diffusion": pretrained.from_guided_file,
    "improved_diffusion": pretrained.from_improved_diffusion,
    "latent_diffusion": pretrained.from_latent_diffusion,
    "score_sde": pretrained.from_score_sde,
    "sit": pretrained.from_sit,
}
# those that may be asked without settings, which they then know or read
_NEED_NONE = (
    "autoencoder_kl", "autoencoder_vq", "ddpm", "diffusers", "diffusers_dit", "diffusers_prior", "dit", "edm", "sit",
)  # fmt: skip
# those whose files have averaged weights beside the others
_WITH_AVERAGE = ("latent_diffusion", "score_sde")


def _one_of(flag: str, given: str, key: str, said: str) -> str:
    """The value of a flag or of a config key, which must agree where both are given."""
    if given and said and given != said:
        raise ValueError(f"--{flag}={given} contradicts config.source.{key}={said}; leave one of them out")
    return given or said


def read_source(config: Config, *, source: str = "", checkpoint: str = "") -> Planned:
    """Read the checkpoint that ``config.source`` and the flags name.

    Args:
        config: The config.
        source: --source, or "".
        checkpoint: --checkpoint, or "": a file, or of diffusers a folder or a name on the hub. It may be another than
            the config's.

    Returns:
        The model.

    Raises:
        ValueError: In one line: the source is unknown, or the checkpoint cannot be read, is of another project, or
            contradicts its project's settings.
    """
    settings = config.source
    source = _one_of("source", source, "name", settings.name)
    if not source:
        raise ValueError(f"--mode import needs --source; choices: {', '.join(sorted(_SOURCES))}")
    if source not in _SOURCES:
        raise ValueError(choices_message("source", source, sorted(_SOURCES)))
    checkpoint = os.path.expanduser(checkpoint or settings.checkpoint)
    if not checkpoint:
        raise ValueError("--mode import needs --checkpoint, the file (of diffusers the folder, or its name on the hub)")
    for key, default, owners in (("weights", "ema", _WITH_AVERAGE), ("preconditioning", "", ("edm",))):
        if source not in owners and settings[key] != default:
            owner = " and ".join(owners)
            raise ValueError(f"config.source.{key}={settings[key]} is for {owner} alone, got {source}; leave it out")
    said = _settings_of(settings.config, checkpoint)
    options: dict[str, Any] = {} if not said and source in _NEED_NONE else {"config": said}
    if source == "edm":
        # whoever says neither has a checkpoint of EDM's own
        foreign = "class_name" in said or said.endswith(".json")
        options["preconditioning"] = settings.preconditioning or (None if foreign else "edm")
    elif source in _WITH_AVERAGE:
        options["weights"] = settings.weights
    elif source.startswith("autoencoder_"):
        # its layers are convolutions: it takes images of the size of the data
        options["image_size"] = _size_of_images(config)
    return _SOURCES[source](checkpoint, **options)


def _size_of_images(config: Config) -> ImageSize | None:
    """Height and width of the images of ``config.data``; None of vectors, which ``check_images`` refuses."""
    data = config.data
    if data.dataset == "folder" and data.image_size:
        return one_or_pair(*height_and_width(data.image_size))
    kind = image_kind(data.dataset) or build_dataset(config, "train").kind
    return None if isinstance(kind, VectorKind) else one_or_pair(*kind.image_shape[1:])


def _settings_of(text: str, checkpoint: str) -> str:
    """``config.source.config``; a path that is not there, but beside the checkpoint, is that one."""
    if not text or text.lstrip().startswith("--"):
        return text
    path = Path(text).expanduser()
    beside = Path(checkpoint).parent / path
    return str(beside if beside.is_file() and not path.exists() else path)


def check_latents(config: Config, model: Planned, checkpoint: str) -> ImageKind:
    """See that a model and the autoencoder of ``data.first_stage`` are of the same latents; see ``check_images``.

    Raises:
        ValueError: If they are of others, or one of them is of pixels.
    """
    if not isinstance(model, PlannedModel):
        raise ValueError(f"checkpoint {checkpoint} is of pixels, got data.first_stage; leave it out")
    first, network = load_first_stage(config, torch.device("cpu")), model.plan.network
    theirs = (network["in_channels"], *height_and_width(network["image_size"]))
    if theirs != first.model.latent_shape:
        shown = ["x".join(map(str, shape)) for shape in (theirs, first.model.latent_shape)]
        raise ValueError(
            f"checkpoint {checkpoint} is of latents of {shown[0]}, but those of data.first_stage={first.workdir} are "
            f"of {shown[1]}; import the autoencoder that it was trained with, at the size of its images"
        )
    channels, *size = first.kind.image_shape
    of_pixels = {**network, "in_channels": channels, "image_size": one_or_pair(*size)}
    images = check_images(config, of_pixels, str(first.workdir))
    return with_published_latents(images, first, scale=model.latent_scale, checkpoint=checkpoint)


def check_images(config: Config, network: Mapping[str, Any], checkpoint: str) -> ImageKind:
    """See that the images of ``config.data`` are such as a checkpoint's, without loading them if that can be.

    Args:
        config: The config.
        network: The options of the imported network.
        checkpoint: Its name, for the message.

    Returns:
        The images that the model is for.

    Raises:
        ValueError: If they have another size, or other numbers of channels or classes.
    """
    data = config.data
    channels, size, classes = network["in_channels"], network["image_size"], network.get("num_classes")
    if data.dataset == "folder":
        # what its files are made to be; its classes are counted on disk, later
        asked = height_and_width(data.image_size or size)
        kind = ImageKind((data.channels or channels, *asked), 256, classes or 1)
    else:
        kind = image_kind(data.dataset) or build_dataset(config, "train").kind
        if isinstance(kind, VectorKind):
            raise ValueError(
                f"checkpoint {checkpoint} is of images, but {data.dataset} holds vectors; set data.dataset"
            )
    ours = {
        "channels": kind.image_shape[0],
        "image_size": one_or_pair(*kind.image_shape[1:]),
        "classes": kind.num_classes,
    }
    theirs = {"channels": channels, "image_size": size, "classes": classes}
    for name, value in ours.items():
        if theirs[name] not in (None, value):
            raise ValueError(
                f"checkpoint {checkpoint} is of images with {name} {theirs[name]}, got {value} by "
                f"config.data.dataset={data.dataset}; set data.dataset, and of a folder data.image_size and channels"
            )
    return kind


def _check_finite(model: Planned, checkpoint: str) -> None:
    for name, tensor in model.backbone.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"checkpoint {checkpoint} has weights that are not finite ({name}); fetch it again")


def import_checkpoint(config: Config, workdir: Path, *, source: str = "", checkpoint: str = "") -> None:
    """Write a work directory that begins with the weights of a published checkpoint.

    The weights are step 0, as weights and as their average, with a fresh optimizer and average: ``--mode eval`` and
    ``sample`` use them as they are, and ``--mode train`` goes on from them, with other settings if asked to, but for
    the loss and the optimizer's, which step 0 holds. The data set is not read, unless only reading it says what images
    it holds. The config's "checkpoint" is replaced by what the checkpoint is, so that
    ``config.json`` describes the model in full; of an autoencoder, its ``source`` holds ``latent_scale`` and
    ``latent_shift`` of its project too. By these a model of its latents sees them, which ``data.first_stage`` says.

    Args:
        config: The config; ``source`` in it says what the checkpoint's file does not.
        workdir: The work directory, which must hold no run.
        source: One of autoencoder_kl, autoencoder_vq, consistency_models, ddpm, diffusers, diffusers_dit,
            diffusers_prior, dit, edm, guided_diffusion, improved_diffusion, latent_diffusion, score_sde and sit; "" is
            the config's.
        checkpoint: The file; "" is the config's.

    Raises:
        ValueError: In one line, before anything is written.
        RuntimeError: If another process trains, or imports, there.
    """
    if "source" not in config:
        raise ValueError("the config has no section source; start from configs.default.get_default_config()")
    _refuse_used(workdir)
    model = read_source(config, source=source, checkpoint=checkpoint)
    for note in model.notes:
        say(one_line(note))
    checkpoint = os.path.expanduser(checkpoint or config.source.checkpoint)
    _check_finite(model, checkpoint)
    whole = config_of_checkpoint(config, model.plan, checkpoint)
    check_config(whole)
    check_eval_names(whole)
    build_sampler(whole)
    if isinstance(model, PlannedModel) and model.space is not None:
        kind = VectorKind((len(model.space.mean),), model.space)
    elif whole.data.get("first_stage"):
        kind = check_latents(whole, model, checkpoint)
    elif isinstance(model, PlannedModel) and model.of_latents:
        raise ValueError(
            f"checkpoint {checkpoint} is of an autoencoder's latents; import that too, and set data.first_stage to its "
            "work directory"
        )
    else:
        kind = check_images(whole, model.plan.network, checkpoint)
    if reads_by_frozen(whole):
        kind = replace(kind, text=text_kind_of(load_text_encoder(whole)))
    plan, weights = model.plan, model.backbone.state_dict()
    size = sum(parameter.numel() for parameter in model.backbone.parameters())
    said, whose = {}, f"SDE {plan.sde['name']}"
    if isinstance(model, PlannedFirstStage):
        said = {"latent_scale": model.latent_scale, "latent_shift": model.latent_shift}
        whose = f"latents of {'x'.join(map(str, model.latent_shape))}"
    with explain_out_of_memory("model.channels", whole.model.get("channels", 0)):
        state = state_of_weights(whole, kind, weights)
    check_for_training(workdir, whole)
    with locked(workdir, "train"):
        # another process may have begun in the meantime
        _refuse_used(workdir)
        save_beginning(whole, workdir, state, name=source or whole.source.name, checkpoint=checkpoint, said=said)
    say(
        f"imported {one_line(checkpoint, 120)}: {plan.backbone} of {size:,} parameters, {whose}, as step 0 of {workdir}"
    )


def _refuse_used(workdir: Path) -> None:
    found = [path.name for path in (workdir / "checkpoints").glob("step_*")]
    if found == ["step_00000000"] and not (workdir / "config.json").exists():
        raise ValueError(f"{workdir} holds an import that was interrupted; delete it, or choose another --workdir")
    if found:
        raise ValueError(f"{workdir} holds a run already; choose another --workdir for what is imported")
