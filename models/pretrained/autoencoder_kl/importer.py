"""KL autoencoders of Stable Diffusion and its kin, read without diffusers or latent-diffusion."""

from __future__ import annotations

from pathlib import Path

from ...backbones import ImageSize
from ..diffusers.files import read_weights
from ..shared.plan import PlannedFirstStage
from ..shared.settings import Config
from .files import is_single_file, load_autoencoder, read_folder, read_single_file
from .names import DIFFUSERS, LATENT_DIFFUSION
from .settings import plan_autoencoder_kl, plan_latent_diffusion


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
    if not is_single_file(name):
        folder, said = read_folder(name, "AutoencoderKL", "vae", config)
        path, tensors = read_weights(folder)
        return load_autoencoder(plan_autoencoder_kl(said, image_size=image_size), tensors, DIFFUSERS, path)
    path = Path(name)
    tensors, scale = read_single_file(path)
    if any(name.startswith("quantize.") for name in tensors):
        raise ValueError(f"checkpoint {path} is of an autoencoder with a codebook, VQ; take --source autoencoder_vq")
    planned = plan_latent_diffusion(tensors, config or {}, scale=scale, image_size=image_size, path=path)
    return load_autoencoder(planned, tensors, LATENT_DIFFUSION, path)
