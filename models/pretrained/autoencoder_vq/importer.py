"""Autoencoders with a codebook of latent diffusion, read without diffusers or latent-diffusion."""

from __future__ import annotations

from pathlib import Path

from ...backbones import ImageSize
from ..autoencoder_kl.files import is_single_file, load_autoencoder, read_folder, read_single_file
from ..autoencoder_kl.names import DIFFUSERS, LATENT_DIFFUSION
from ..autoencoder_kl.settings import CODEBOOK, plan_latent_diffusion
from ..diffusers.files import read_weights
from ..shared.plan import PlannedFirstStage
from ..shared.settings import Config
from .settings import plan_vq_model


def from_autoencoder_vq(
    name: Path | str, config: Config | None = None, *, image_size: ImageSize | None = None
) -> PlannedFirstStage:
    """Read an autoencoder of latent diffusion (Rombach et al. 2022) with a codebook, such as VQ-f4.

    Its diffusion is of the encoder's vectors, and the decoder quantizes what it is given, as theirs. The scale of
    pixels is as ``from_autoencoder_kl`` says.

    Args:
        name: Of diffusers the folder of a ``VQModel``, or of a pipeline with one in ``vqvae/``, or the name of either
            on the Hugging Face hub such as ``CompVis/ldm-celebahq-256``, which is fetched by the package
            ``huggingface_hub``. Or a file with the names of latent-diffusion, ``.ckpt`` or ``.safetensors``: of the
            autoencoder, or of a whole model with it in ``first_stage_model``.
        config: Of a file, ``--scale_factor`` and ``--shift_factor`` of the latents where they are not 1 and 0; as
            flags, mapping or JSON file.
        image_size: Size of the images, any that the levels can halve; None is that which the checkpoint says, or 256.

    Returns:
        The autoencoder, in evaluation mode, of images in [-1, 1]; ``notes`` says what was chosen.

    Raises:
        ValueError: In one line: a file is missing or cannot be read, or the network is of another kind.
    """
    if not is_single_file(name):
        folder, said = read_folder(name, "VQModel", "vqvae", config)
        path, tensors = read_weights(folder)
        return load_autoencoder(plan_vq_model(said, image_size=image_size), tensors, DIFFUSERS, path)
    path = Path(name)
    tensors, scale = read_single_file(path)
    if "encoder.conv_in.weight" in tensors and CODEBOOK not in tensors:
        raise ValueError(f"checkpoint {path} is of an autoencoder without {CODEBOOK}; take --source autoencoder_kl")
    planned = plan_latent_diffusion(tensors, config or {}, scale=scale, image_size=image_size, path=path)
    return load_autoencoder(planned, tensors, LATENT_DIFFUSION, path)
