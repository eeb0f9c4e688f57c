"""The images of a run as the latents of its autoencoder, and the model of both."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from data import AnyDataset, DataError, ImageDataset, LatentDataset, LatentSpace, LevelSpace
from models import GaussianLatent, LatentDiffusion, ScoreModel
from runtime.messages import say
from runtime.processes.ranks import Ranks

from ..build import build_dataset
from ..checkpoints.weights import digest_of
from ..config import Config
from ..from_checkpoints import check_first_stage, load_first_stage, said_of_images
from ..saved_config import saved_config
from ..workdir import save_npz
from .first_stage import AT_ONCE, FirstStageCodec, LoadedFirstStage

_Arrays = dict[str, np.ndarray]
_OTHER = {"train": "test", "test": "train"}


def latent_model(prior: ScoreModel, space: LatentSpace) -> LatentDiffusion:
    """The latent diffusion of a score model of standardized latents and the autoencoder of their space."""
    codec = space.codec
    assert isinstance(codec, FirstStageCodec)
    mean, std = (torch.tensor(values, dtype=torch.float64, device=codec.device) for values in (space.mean, space.std))
    return LatentDiffusion(codec.model, prior, mean=mean, std=std)


def check_measurable(config: Config) -> None:
    """Refuse to measure a model of vectors that its autoencoder quantizes afterwards, before they are encoded.

    Raises:
        ValueError: In one line.
    """
    if not config.data.get("first_stage"):
        return
    workdir = Path(config.data.first_stage).expanduser()
    if saved_config(workdir).model.network.get("bottleneck") == "vq":
        raise ValueError(
            f"a model of the vectors of data.first_stage={workdir} has no likelihood: they have no noise, and are "
            "quantized after its sampling; sample it, or measure the autoencoder alone"
        )


def encoded(config: Config, dataset: AnyDataset, device: torch.device, workdir: Path, ranks: Ranks) -> LatentDataset:
    """The latents of a split, kept in ``latents/`` of the work directory.

    They are encoded in batches of one size, and standardized by all of the split: neither depends on the batch size of
    a run nor on its processes. A run that has a checkpoint keeps the mean and standard deviation that it began with,
    whose last digits may differ where latents are encoded anew on another device, and so does one that was imported,
    whose project says them. Codes are kept of both splits, as an ``npz`` data set of images.

    Args:
        config: The config.
        dataset: The split.
        device: Where the autoencoder computes.
        workdir: The work directory.
        ranks: The processes of the job; rank 0 encodes, the others read.

    Raises:
        ValueError: In one line, if the autoencoder is of other images, or the run was trained on others.
    """
    if not isinstance(dataset, ImageDataset):
        raise ValueError(f"data.first_stage is of images, but {dataset.name} holds vectors; leave it out")
    first = load_first_stage(config, device, num_frames=dataset.kind.num_frames)
    theirs, ours = ((one.image_shape, one.num_levels) for one in (first.kind, dataset))
    if theirs != ours:
        raise ValueError(
            f"data.first_stage={first.workdir} is of images of {list(theirs[0])} with {theirs[1]} grey levels, got "
            f"{list(ours[0])} with {ours[1]}; train one on {dataset.name}"
        )
    # before anything is written there
    check_first_stage(workdir, first)
    said, images = said_of_images(workdir).get("latents"), digest_of(dataset.images)
    _check_images(workdir, said, images)
    arrays = _kept_or_encoded(first, dataset, workdir / "latents", ranks)
    if first.model.latent_levels is not None:
        # so that the folder is a whole data set, which commands of pixels can read
        with suppress(DataError):
            # there may be one split alone
            other = build_dataset(config, _OTHER[dataset.split], dataset.image_shape[0])
            _kept_or_encoded(first, other, workdir / "latents", ranks)
        return _coded(first, dataset, arrays, images)
    # those of rank 0, also where the others encode by themselves
    mean, std = ranks.share(
        "standardization", lambda: _mean_and_std(arrays) if said is None else [said["mean"], said["std"]]
    )
    spread = torch.from_numpy(arrays["log_std"]).double().exp().float()
    # none of vectors that are quantized later
    spread = spread if bool(spread.any()) else None
    return LatentDataset.of(
        dataset, torch.from_numpy(arrays["mean"]), spread, _space(first, dataset, mean, std, images)
    )


def _check_images(workdir: Path, said: dict[str, Any] | None, images: str) -> None:
    """Refuse other images than those that a run was trained on the latents of."""
    # a published model does not say it
    if said is not None and (said.get("images") or images) != images:
        raise ValueError(
            f"{workdir} was trained on the latents of other images; use the data that it was trained on, or choose "
            "another --workdir"
        )


def _kept_or_encoded(first: LoadedFirstStage, dataset: AnyDataset, folder: Path, ranks: Ranks) -> _Arrays:
    """The latents of a split: those that an earlier command kept, or new ones, which are kept."""
    assert isinstance(dataset, ImageDataset)
    path = folder / f"{dataset.split}.npz"
    told = {
        "first_stage": first.digest,
        "images": digest_of(dataset.images, dataset.labels),
        "device": FirstStageCodec(first.model).device.type,
    }
    fingerprint = json.dumps(told | {"torch": torch.__version__}, sort_keys=True)
    found = _kept(path, fingerprint) if ranks.first else None
    if ranks.first and found is None:
        say(f"encodes {len(dataset):,} {dataset.split} images by {first.workdir}")
        found = _encode_all(first, dataset)
        save_npz(path, found | {"fingerprint": np.array(fingerprint)})
    ranks.share(f"latents of {dataset.split}", lambda: None)
    return found or _kept(path, fingerprint) or _encode_all(first, dataset)


def _mean_and_std(arrays: _Arrays) -> list[list[float]]:
    """Mean and standard deviation of each channel of Gaussian latents, over the split and the draws of z."""
    mean, std = torch.from_numpy(arrays["mean"]).double(), torch.from_numpy(arrays["log_std"]).double().exp()
    along = (0, *range(2, mean.ndim))
    variance = mean.var(along, correction=0) + std.square().mean(along)
    return [mean.mean(along).tolist(), variance.sqrt().tolist()]


def _coded(first: LoadedFirstStage, dataset: ImageDataset, arrays: _Arrays, images: str) -> LatentDataset:
    """Codes of a split, as they are."""
    channels, levels = first.model.latent_shape[0], first.model.latent_levels
    assert levels is not None
    z = LevelSpace(levels).encode(torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).contiguous())
    return LatentDataset.of(dataset, z, None, _space(first, dataset, [0.0] * channels, [1.0] * channels, images))


def _space(
    first: LoadedFirstStage, dataset: ImageDataset, mean: list[float], std: list[float], images: str
) -> LatentSpace:
    space = LatentSpace(
        first.model.latent_shape,
        tuple(mean),
        tuple(std),
        dataset.num_levels,
        first.digest,
        first.model.latent_levels,
        images,
    )
    return space.with_codec(FirstStageCodec(first.model))


@torch.no_grad()
def latent_spread(space: LatentSpace, dataset: ImageDataset, count: int) -> Tensor | None:
    """The standard deviations of q(z | x) of the first images, in units of standardized latents, [N, c, ...].

    None of codes, which have none.
    """
    codec, parts = space.codec, []
    assert isinstance(codec, FirstStageCodec)
    for images in dataset.images[:count].split(AT_ONCE):
        latent = codec.model.encode(dataset.space.encode(images).to(codec.device))
        if not isinstance(latent, GaussianLatent):
            return None
        parts.append(latent.log_std.double().exp().cpu())
    return replace(space, mean=(0.0,) * len(space.mean)).standardize(torch.cat(parts))


@torch.no_grad()
def _encode_all(first: LoadedFirstStage, dataset: ImageDataset) -> _Arrays:
    """Mean and log std of all latents, float32; or codes, as an ``npz`` data set of images."""
    device, levels = FirstStageCodec(first.model).device, first.model.latent_levels
    latents = [first.model.encode(dataset.space.encode(images).to(device)) for images in dataset.images.split(AT_ONCE)]
    mean = torch.cat([latent.mean.cpu() for latent in latents])
    if levels is None:
        none = torch.tensor(-torch.inf)
        log_std = torch.cat([getattr(one, "log_std", none.expand_as(one.mean.cpu())).cpu() for one in latents])
        return {"mean": mean.numpy(), "log_std": log_std.numpy()}
    told = {"labels": dataset.labels.numpy(), "num_classes": np.array(dataset.num_classes)}
    names = {"class_names": np.array(dataset.class_names)} if dataset.class_names else {}
    codes = LevelSpace(levels).decode(mean).permute(0, 2, 3, 1).numpy()
    return {"images": codes, "num_levels": np.array(levels), **told, **names}


def _kept(path: Path, fingerprint: str) -> _Arrays | None:
    """Latents of an earlier command with the same fingerprint; None where there are none, or they are damaged."""
    try:
        with np.load(path) as found:
            return dict(found) if str(found["fingerprint"]) == fingerprint else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
