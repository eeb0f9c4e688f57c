"""Networks and pipelines of Hugging Face's diffusers, read without it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from ..shared.plan import PlannedModel
from ..shared.settings import Config, Settings, read_json
from ..shared.tensors import notes_on_types
from .conditional import CONDITIONAL
from .files import find_files, find_folder, read_weights
from .names import diffusers_sources, with_new_names
from .settings import halves_are_swapped, plan_diffusers


def from_diffusers(name: Path | str, config: Config | None = None) -> PlannedModel:
    """Read a ``UNet2DModel`` with a scheduler of betas, such as DDPM's or DDIM's, or of the VE-SDE.

    Or a ``UNet2DConditionModel`` with a scheduler of betas, as those of Stable Diffusion 1 and 2, which is told the
    ``tokens`` of a text. These networks were trained without a mask: they attend to all tokens, padding too.

    The JSON files and the tensors are read here: diffusers need not be installed. The table is that of the scheduler's
    settings in float64, which diffusers rounds to float32. Weights may be in one file or in shards; a variant such as
    ``fp16`` is read where there is no other, as float32.

    Args:
        name: A folder, or a name on the Hugging Face hub such as ``google/ddpm-cifar10-32``, which is fetched by the
            package ``huggingface_hub``. A pipeline has ``model_index.json``, and the network in ``unet/`` and the
            scheduler in ``scheduler/``, or both beside ``model_index.json``, as in old pipelines; one of latents has an
            autoencoder in ``vqvae/`` or ``vae/``, and one of texts their encoder, which are not read. Of a training
            script's ``checkpoint-N``, ``unet_ema`` is read, or ``unet`` where there is none; and a bare network's
            folder is read too.
        config: The scheduler's settings where no file says them, which is so of the last two unless they lie in their
            pipeline: a mapping, the path of a JSON file, or flags such as ``--beta_schedule squaredcos_cap_v2
            --prediction_type v_prediction``. Without, they are DDPM's: linear betas, predicting eps.

    Returns:
        The model, in evaluation mode, of data in [-1, 1]; ``notes`` says what was chosen.

    Raises:
        ValueError: In one line: a file is missing, cannot be read or contradicts another, or the pipeline is of
            another kind.
    """
    folder = find_folder(name)
    unet_folder, file, notes = find_files(folder)
    unet = read_json(unet_folder / "config.json", "UNet2DModel's config")
    kind = unet.get("_class_name", "UNet2DModel")
    if kind not in ("UNet2DModel", CONDITIONAL):
        sources = {
            "AutoencoderKL": "autoencoder_kl",
            "VQModel": "autoencoder_vq",
            "DiTTransformer2DModel": "diffusers_dit",
            "PriorTransformer": "diffusers_prior",
        }
        fix = f"take --source {sources[kind]}" if kind in sources else "it is not supported"
        raise ValueError(f"the network of {folder} must be a UNet2DModel or {CONDITIONAL}, got {kind}; {fix}")
    if file is not None and config is not None:
        raise ValueError(f"config {str(config)!r} is of no use: {file} says all settings; leave it out")
    scheduler: Config | None = config if file is None else read_json(file, "scheduler's config")
    path, tensors = read_weights(unet_folder)
    if scheduler is None:
        if kind == CONDITIONAL:
            raise ValueError(
                f"no file says the scheduler of {folder}, whose network is told a text; of Stable Diffusion 1 set "
                "config.source.config='--beta_schedule scaled_linear --beta_start 0.00085 --beta_end 0.012', of 2.1 "
                "add --prediction_type v_prediction"
            )
        if unet.get("time_embedding_type", "positional") != "positional":
            raise ValueError(
                f"no file says the scheduler of {folder}, whose network is of the VE-SDE; set "
                "config.source.config='--_class_name ScoreSdeVeScheduler --sigma_min ... --sigma_max ...'"
            )
        # that of diffusers' training scripts; DDIM's class has the same table, and no say in the variance
        scheduler = {"_class_name": "DDIMScheduler"}
        notes += (
            f"no file says the scheduler of {folder}: DDPM's is assumed, 1000 linear betas from 0.0001 to 0.02, "
            "predicting eps; config.source.config='--beta_schedule ... --prediction_type ...' says otherwise",
        )
    notes += notes_on_types(tensors, path=path)
    if unet.get("upcast_attention"):
        notes += ("the checkpoint says upcast_attention: float16 overflows in this network, float32 does not",)
    convolutions = not unet.get("use_linear_projection", False)
    sources_of = partial(diffusers_sources, halves_swapped=halves_are_swapped(unet), convolutions=convolutions)
    model = plan_diffusers(unet, scheduler).load(with_new_names(tensors), sources_of, path=path)
    model.notes = notes
    beside = unet_folder.resolve().parent
    model.of_latents = (beside / "vqvae").is_dir() or (beside / "vae").is_dir()
    if (beside / "vae").is_dir():
        vae = Settings(read_json(beside / "vae" / "config.json", "AutoencoderKL's config"))
        model.latent_scale = vae.number("scaling_factor", 0.18215)
    return model
