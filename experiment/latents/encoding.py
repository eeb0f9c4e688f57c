"""The images of a run as the latents of its autoencoder, and the model of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from data import AnyDataset, ImageDataset, LatentDataset, LatentSpace
from models import LatentDiffusion, ScoreModel
from runtime.messages import say
from runtime.processes.ranks import Ranks

from ..config import Config
from ..from_checkpoints import check_first_stage, load_first_stage, said_of_images
from ..weights import digest_of
from ..workdir import save_npz
from .first_stage import AT_ONCE, FirstStageCodec, LoadedFirstStage


def latent_model(prior: ScoreModel, space: LatentSpace) -> LatentDiffusion:
    """The latent diffusion of a score model of standardized latents and the autoencoder of their space."""
    codec = space.codec
    assert isinstance(codec, FirstStageCodec)
    mean, std = (torch.tensor(values, dtype=torch.float64, device=codec.device) for values in (space.mean, space.std))
    return LatentDiffusion(codec.model, prior, mean=mean, std=std)


def encoded(config: Config, dataset: AnyDataset, device: torch.device, workdir: Path, ranks: Ranks) -> LatentDataset:
    """The latents of a split, kept in ``latents/`` of the work directory.

    They are encoded in batches of one size, and standardized by all of the split: neither depends on the batch size of
    a run nor on its processes. A run that has a checkpoint keeps the mean and standard deviation that it began with,
    whose last digits may differ where latents are encoded anew on another device.

    Args:
        config: The config.
        dataset: The split.
        device: Where the autoencoder computes.
        workdir: The work directory.
        ranks: The processes of the job; rank 0 encodes, the others read.

    Raises:
        ValueError: In one line, if the autoencoder is of other images, or the run was trained on others.
    """
    first = load_first_stage(config, device)
    if not isinstance(dataset, ImageDataset):
        raise ValueError(f"data.first_stage is of images, but {dataset.name} holds vectors; leave it out")
    theirs, ours = ((one.image_shape, one.num_levels) for one in (first.kind, dataset))
    if theirs != ours:
        raise ValueError(
            f"data.first_stage={first.workdir} is of images of {list(theirs[0])} with {theirs[1]} grey levels, got "
            f"{list(ours[0])} with {ours[1]}; train one on {dataset.name}"
        )
    # before anything is written there
    check_first_stage(workdir, first)
    theirs, images = said_of_images(workdir).get("latents"), digest_of(dataset.images)
    _check_images(workdir, theirs, images)
    path = workdir / "latents" / f"{dataset.split}.npz"
    told = {"first_stage": first.digest, "images": images, "device": device.type}
    fingerprint = json.dumps(told | {"torch": torch.__version__}, sort_keys=True)
    found = _kept(path, fingerprint) if ranks.first else None
    if ranks.first and found is None:
        say(f"encodes {len(dataset):,} images by {first.workdir}")
        found = _encode_all(first, dataset)
        arrays = {name: one.numpy() for name, one in zip(("mean", "log_std"), found, strict=True)}
        save_npz(path, arrays | {"fingerprint": np.array(fingerprint)})

    def standardization() -> list[Any]:
        assert found is not None
        return _standardization(*found) if theirs is None else [theirs["mean"], theirs["std"]]

    # those of rank 0, also where the others encode by themselves
    centre, scale = ranks.share("latents", standardization)
    mean, log_std = found or _kept(path, fingerprint) or _encode_all(first, dataset)
    space = LatentSpace(
        tuple(mean.shape[1:]), tuple(centre), tuple(scale), dataset.num_levels, first.digest, images
    ).with_codec(FirstStageCodec(first.model))
    return LatentDataset.of(dataset, mean, log_std.double().exp().float(), space)


def _check_images(workdir: Path, theirs: dict[str, Any] | None, images: str) -> None:
    """Refuse other images than those that a run was trained on the latents of."""
    if theirs is not None and theirs.get("images", images) != images:
        raise ValueError(
            f"{workdir} was trained on the latents of other images; use the data that it was trained on, or choose "
            "another --workdir"
        )


def _standardization(mean: Tensor, log_std: Tensor) -> list[list[float]]:
    """Mean and standard deviation of each channel, over all latents and the draws of z."""
    along = (0, *range(2, mean.ndim))
    variance = mean.double().var(along, correction=0) + log_std.double().exp().square().mean(along)
    return [mean.double().mean(along).tolist(), variance.sqrt().tolist()]


@torch.no_grad()
def latent_spread(model: LatentDiffusion, dataset: ImageDataset, count: int) -> Tensor:
    """The standard deviations of q(z | x), in units of standardized latents, of the first images, [N, c, ...]."""
    device, parts = model.mean.device, []
    for images in dataset.images[:count].split(AT_ONCE):
        parts.append(model.first_stage.encode(dataset.space.encode(images).to(device)).log_std.cpu())
    std = torch.cat(parts).double().exp()
    return std / model.std.double().cpu().view(1, -1, *[1] * (std.ndim - 2))


@torch.no_grad()
def _encode_all(first: LoadedFirstStage, dataset: ImageDataset) -> tuple[Tensor, Tensor]:
    """Mean and log std of all latents, float32."""
    parts = []
    for images in dataset.images.split(AT_ONCE):
        latent = first.model.encode(dataset.space.encode(images).to(FirstStageCodec(first.model).device))
        parts.append((latent.mean.cpu(), latent.log_std.cpu()))
    means, log_stds = zip(*parts, strict=True)
    return torch.cat(means), torch.cat(log_stds)


def _kept(path: Path, fingerprint: str) -> tuple[Tensor, Tensor] | None:
    """Latents of an earlier command with the same fingerprint; None where there are none, or they are damaged."""
    try:
        with np.load(path) as found:
            if str(found["fingerprint"]) != fingerprint:
                return None
            return torch.from_numpy(found["mean"]), torch.from_numpy(found["log_std"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
