"""KL autoencoders of Stable Diffusion and its kin, read without diffusers or latent-diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...backbones import ImageSize
from ...first_stage import Autoencoder
from ..diffusers.files import find_folder, read_weights
from ..shared.plan import PlannedFirstStage
from ..shared.renaming import load_renamed
from ..shared.settings import Config, read_json
from ..shared.tensors import as_tensors, notes_on_types, read_checkpoint, strip_prefix
from .names import DIFFUSERS, LATENT_DIFFUSION, Names, autoencoder_sources, in_one_form, named_layers
from .settings import PlannedAutoencoder, plan_autoencoder_kl, plan_latent_diffusion

_FILES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_FIRST_STAGE = "first_stage_model."
# of the losses that it was trained by, and of an average under other names
_LEFT_OUT = ("loss.", "model_ema.")


def from_autoencoder_kl(
    name: Path | str, config: Config | None = None, *, image_size: ImageSize | None = None
) -> PlannedFirstStage:
    """Read an autoencoder of latent diffusion (Rombach et al. 2022) with Gaussian latents.

    These are Stable Diffusion's, of 4 channels, and those of Stable Diffusion 3 and FLUX, of 16 channels and without
    convolutions at the bottleneck. Their decoders give a mean alone, so the scale exp(``pixel_log_std``) of ours is 1
    in units of x0. There the scale of latent-diffusion's loss, ``logvar``, starts, and stays: no optimizer has it.

    Args:
        name: Of diffusers the folder of an ``AutoencoderKL``, or of a pipeline with one in ``vae/``, or the name of
            either on the Hugging Face hub such as ``stabilityai/sd-vae-ft-mse``, which is fetched by the package
            ``huggingface_hub``. Or a file with the names of latent-diffusion, ``.ckpt`` or ``.safetensors``: of the
            autoencoder, or of a whole model with it in ``first_stage_model``.
        config: Of a file, what it does not say: ``--scale_factor 0.18215``, and ``--shift_factor``, as flags, mapping
            or JSON file.
        image_size: Size of the images, any that the levels can halve; None is that which the checkpoint says, or 256.

    Returns:
        The autoencoder, in evaluation mode, of images in [-1, 1]; diffusion sees its latents as
        ``(z - latent_shift) latent_scale``. ``notes`` says what was chosen.

    Raises:
        ValueError: In one line: a file is missing or cannot be read, or the network is of another kind.
    """
    if Path(name).is_file() or Path(name).suffix in _FILES:
        return _from_file(Path(name), {} if config is None else config, image_size)
    folder = find_folder(name, places=("vae/", ""))
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    file = folder / "config.json"
    said = read_json(file, "AutoencoderKL's config")
    kind = said.get("_class_name", "AutoencoderKL")
    if kind != "AutoencoderKL":
        raise ValueError(f"the network of {folder} must be an AutoencoderKL, got {kind}; it is not supported")
    if config is not None:
        raise ValueError(f"config {str(config)!r} is of no use: {file} says all settings; leave it out")
    path, tensors = read_weights(folder)
    return _load(plan_autoencoder_kl(said, image_size=image_size), tensors, DIFFUSERS, path)


def _from_file(path: Path, config: Config, image_size: ImageSize | None) -> PlannedFirstStage:
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
    if any(name.startswith("quantize.") for name in own):
        raise ValueError(f"checkpoint {path} is of an autoencoder with a codebook, VQ; only KL autoencoders are read")
    own = {name: tensor for name, tensor in own.items() if not name.startswith(_LEFT_OUT)}
    planned = plan_latent_diffusion(
        own or tensors, config, scale=None if scale is None else float(scale), image_size=image_size, path=path
    )
    return _load(planned, own, LATENT_DIFFUSION, path)


def _load(planned: PlannedAutoencoder, tensors: Mapping[str, Tensor], names: Names, path: Path) -> PlannedFirstStage:
    model = PlannedFirstStage(planned.plan, latent_scale=planned.latent_scale, latent_shift=planned.latent_shift).eval()
    network = model.backbone
    assert isinstance(network, Autoencoder)
    load_renamed(named_layers(network), in_one_form(tensors), autoencoder_sources(network, names), path=path)
    model.notes = (*planned.notes, *notes_on_types(tensors, path=path))
    return model
