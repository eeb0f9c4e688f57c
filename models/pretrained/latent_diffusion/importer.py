"""Score models of latent-diffusion, read without it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..guided.importer import guided_sources
from ..shared.plan import PlannedModel
from ..shared.settings import Config
from ..shared.tensors import as_tensors, check_project, notes_on_types, read_checkpoint, strip_prefix
from .settings import plan_latent_diffusion_unet

_NETWORK, _AVERAGE = "model.diffusion_model.", "model_ema."


def from_latent_diffusion(path: Path | str, config: Config, *, weights: str = "ema") -> PlannedModel:
    """Read the U-Net of a latent diffusion without text (Rombach et al. 2022), of CelebA-HQ, FFHQ or LSUN.

    Args:
        path: The ``model.ckpt`` that the project saved, which holds the autoencoder too; or the same tensors in a file
            of another kind.
        config: The arguments of its ``UNetModel`` and of its ``LatentDiffusion``, as its ``config.yaml`` says them
            (``"--model_channels 224 ... --linear_start 0.0015 --linear_end 0.0195"``); as flags, mapping or JSON file.
        weights: "ema", the average, which the project samples with; or "raw".

    Returns:
        The model of latents, in evaluation mode; ``latent_scale`` where the file has one.

    Raises:
        ValueError: In one line: the file or the config cannot be read, or they contradict each other.
    """
    path = Path(path)
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights of latent-diffusion must be ema or raw, got {weights!r}; correct it")
    held: Any = read_checkpoint(path)
    if isinstance(held, Mapping) and "state_dict" in held:
        held = held["state_dict"]
    tensors = strip_prefix(as_tensors(held, path=path))
    check_project(tensors, f"{_NETWORK}input_blocks.0.0.weight", "latent-diffusion's U-Net", path=path)
    names = [name.removeprefix(_NETWORK) for name in tensors if name.startswith(_NETWORK)]
    own = {name: tensors[f"{_NETWORK}{name}"] for name in names}
    notes: tuple[str, ...] = ()
    if weights == "ema" and any(name.startswith(_AVERAGE) for name in tensors):
        own = {name: _averaged(tensors, name, path) for name in names}
    elif weights == "ema":
        notes = (f"{path} has no averaged weights: the others are read",)
    model = plan_latent_diffusion_unet(config).load(own, guided_sources, path=path)
    scale = tensors.get("scale_factor")
    model.of_latents, model.latent_scale = True, None if scale is None else float(scale)
    model.notes = (*notes, *notes_on_types(own, path=path))
    return model


def _averaged(tensors: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    """The average of a weight, whose name there has no dots."""
    averaged = _AVERAGE + f"{_NETWORK.removeprefix('model.')}{name}".replace(".", "")
    check_project(tensors, averaged, "latent-diffusion's U-Net with averaged weights", path=path)
    return tensors[averaged]
