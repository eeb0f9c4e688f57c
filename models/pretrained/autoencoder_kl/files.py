"""Files of the autoencoders of latent diffusions, whichever their bottleneck: where they are, and their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...first_stage import Autoencoder, CodebookVectors
from ..diffusers.files import find_folder
from ..shared.plan import PlannedFirstStage
from ..shared.renaming import load_renamed
from ..shared.settings import Config, read_json
from ..shared.tensors import as_tensors, check_tensors, notes_on_types, read_checkpoint, strip_prefix
from .names import Names, autoencoder_sources, in_one_form, named_layers
from .settings import CODEBOOK, PlannedAutoencoder

FILES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_FIRST_STAGE = "first_stage_model."
# of the losses that it was trained by, and of an average under other names
_LEFT_OUT = ("loss.", "model_ema.")


def is_single_file(name: Path | str) -> bool:
    """Tell a file with the names of latent-diffusion from a folder of diffusers, or its name on the hub."""
    return Path(name).is_file() or Path(name).suffix in FILES


def read_folder(name: Path | str, kind: str, place: str, config: Config | None) -> tuple[Path, dict[str, Any]]:
    """The folder of an autoencoder of diffusers, and its settings.

    Args:
        name: The folder, or that of a pipeline, or the name of either on the hub.
        kind: The class that it must be of.
        place: Its folder in a pipeline.
        config: What the user says of it, which must be nothing.

    Raises:
        ValueError: In one line: there is none, or it is of another class.
    """
    folder = find_folder(name, places=(f"{place}/", ""))
    folder = folder / place if (folder / place).is_dir() else folder
    file = folder / "config.json"
    said = read_json(file, f"{kind}'s config")
    theirs = said.get("_class_name", kind)
    if theirs != kind:
        sources = {"AutoencoderKL": "autoencoder_kl", "VQModel": "autoencoder_vq"}
        fix = f"take --source {sources[theirs]}" if theirs in sources else "it is not supported"
        raise ValueError(f"the network of {folder} must be {_with_article(kind)}, got {theirs}; {fix}")
    if config is not None:
        raise ValueError(f"config {str(config)!r} is of no use: {file} says all settings; leave it out")
    return folder, said


def _with_article(kind: str) -> str:
    return f"an {kind}" if kind.startswith("A") else f"a {kind}"


def read_single_file(path: Path) -> tuple[dict[str, Tensor], float | None]:
    """The tensors of an autoencoder, of a file of its own or of a whole model, and the scale that a whole model has.

    Raises:
        ValueError: In one line: it cannot be read.
    """
    held: Any = read_checkpoint(path)
    if isinstance(held, Mapping) and "state_dict" in held:
        held = held["state_dict"]
    tensors = strip_prefix(as_tensors(held, path=path))
    scale = tensors.get("scale_factor")
    whole = any(name.startswith(_FIRST_STAGE) for name in tensors)
    own = {
        name.removeprefix(_FIRST_STAGE): tensor
        for name, tensor in tensors.items()
        if name.startswith(_FIRST_STAGE) or not whole
    }
    own = {name: tensor for name, tensor in own.items() if not name.startswith(_LEFT_OUT)}
    return own or tensors, None if scale is None else float(scale)


def load_autoencoder(
    planned: PlannedAutoencoder, tensors: Mapping[str, Tensor], names: Names, path: Path
) -> PlannedFirstStage:
    """Build an autoencoder by its plan, with the tensors of a file.

    Raises:
        ValueError: In one line: these are not those of such a network.
    """
    model = PlannedFirstStage(planned.plan, latent_scale=planned.latent_scale, latent_shift=planned.latent_shift).eval()
    network, bottleneck = model.backbone, model.backbone.bottleneck
    assert isinstance(network, Autoencoder)
    layers = dict(tensors)
    if isinstance(bottleneck, CodebookVectors):
        codebook = layers.pop(CODEBOOK, None)
        found = {} if codebook is None else {CODEBOOK: codebook}
        like = torch.empty(bottleneck.quantizer.codebook.shape, device="meta")
        check_tensors({CODEBOOK: like}, found, path=path)
        bottleneck.quantizer.begin_with(found[CODEBOOK])
    load_renamed(named_layers(network), in_one_form(layers), autoencoder_sources(network, names), path=path)
    model.notes = (*planned.notes, *notes_on_types(tensors, path=path))
    return model
