"""Common settings of the configs of published checkpoints."""

from ml_collections import ConfigDict

from configs.default import get_default_config


def pretrained(source: str, settings: str = "", *, cifar10: bool = False, image_size: int = 0) -> ConfigDict:
    """A config that leaves network, SDE, parameterization and time input to the checkpoint.

    Args:
        source: Whose checkpoint it is.
        settings: What that project's file does not say: see ``source.config``.
        cifar10: The data are CIFAR-10; else they are a folder of images, resized to ``image_size``, whose first-level
            folders are the classes, in the order of their names, where there are classes.
        image_size: Height and width.
    """
    config = get_default_config()
    config.source.update({"name": source, "config": settings})
    config.model = ConfigDict({"backbone": "checkpoint"})
    config.sde = ConfigDict()
    if cifar10:
        config.data.update({"dataset": "cifar10", "random_flip": True})
    else:
        config.data.update({"dataset": "folder", "image_size": image_size, "channels": 3, "random_flip": True})
        config.sampling.update({"num_samples": 16, "batch_size": 16})
    # the others' cost: of 1000 terms of the bound, 20 drawn by importance
    config.eval.vlb_steps_per_image = 20
    return config


def openai(source: str, flags: str, *, cifar10: bool = False, image_size: int = 0) -> ConfigDict:
    """Networks of OpenAI with a learned variance, sampled in 250 steps.

    Args:
        source: "improved_diffusion" or "guided_diffusion".
        flags: As in the project's README.
        cifar10: See ``pretrained``.
        image_size: See ``pretrained``.
    """
    config = pretrained(source, flags, cifar10=cifar10, image_size=image_size)
    config.data.random_flip = False
    config.sampling.update({"sampler": "ancestral", "num_steps": 250})
    config.training.loss = "hybrid"
    config.optim.learning_rate = 1e-4
    return config


def guided_classifier(flags: str, *, image_size: int) -> ConfigDict:
    """Classifiers of guided-diffusion, trained on as its README's flags for 128x128 pixels say.

    Args:
        flags: Those of the README that are of the classifier and of its noise.
        image_size: See ``pretrained``.
    """
    config = pretrained("guided_diffusion", flags, image_size=image_size)
    config.training.batch_size = 256
    config.optim.update({"name": "adamw", "learning_rate": 3e-4, "weight_decay": 0.05})
    return config


def score_sde(name: str, *, cifar10: bool = False, image_size: int = 0) -> ConfigDict:
    """Networks of score_sde_pytorch, whose samplers leave the predicted x0 as it is.

    Args:
        name: The project's config file, without its ending.
        cifar10: See ``pretrained``.
        image_size: See ``pretrained``.
    """
    config = pretrained("score_sde", name, cifar10=cifar10, image_size=image_size)
    config.sampling.clip_x0 = False
    return config


def predictor_corrector(config: ConfigDict, *, num_steps: int, snr: float) -> None:
    """Sample as Song et al. 2021 do from the VE-SDE: reverse diffusion, and one Langevin step at every noise level."""
    options = f"predictor=reverse_diffusion, corrector=langevin, snr={snr}"
    config.sampling.update({"sampler": "predictor_corrector", "num_steps": num_steps, "options": options})


def edm(flags: str, *, num_steps: int, cifar10: bool = False, image_size: int = 0) -> ConfigDict:
    """EDM's own networks, sampled by Heun's method on their grid.

    Args:
        flags: Arguments of the preconditioner's constructor that the tensors do not say.
        num_steps: As their ``--steps``, which counts the step from sigma_min to 0 that is the final denoising here.
        cifar10: See ``pretrained``.
        image_size: See ``pretrained``.
    """
    config = pretrained("edm", flags, cifar10=cifar10, image_size=image_size)
    config.source.preconditioning = "edm"
    config.sampling.update({"sampler": "heun", "grid": "karras", "num_steps": num_steps - 1, "clip_x0": False})
    return config


def autoencoder(
    checkpoint: str, *, source: str = "autoencoder_kl", cifar10: bool = False, image_size: int = 0
) -> ConfigDict:
    """Autoencoders of latent diffusion.

    Args:
        checkpoint: Its name on the hub.
        source: "autoencoder_kl", or "autoencoder_vq" with a codebook.
        cifar10: See ``pretrained``.
        image_size: See ``pretrained``.
    """
    config = pretrained(source, cifar10=cifar10, image_size=image_size)
    config.source.checkpoint = checkpoint
    if not cifar10:
        config.training.batch_size = 8
        config.eval.batch_size = 8
    return config


def latent_diffusion(source: str, settings: str = "", *, first_stage: str, image_size: int) -> ConfigDict:
    """U-Nets of latent diffusion, sampled by 200 steps of DDIM as its README's figures are.

    Args:
        source: "latent_diffusion" or "diffusers".
        settings: Of the former, arguments of its ``UNetModel`` and ``LatentDiffusion``.
        first_stage: Config in this folder whose work directory has the autoencoder.
        image_size: See ``pretrained``.
    """
    config = pretrained(source, settings, image_size=image_size)
    # latents are encoded once, and cannot be mirrored
    config.data.update({"first_stage": f"runs/pretrained/{first_stage}", "random_flip": False})
    config.sampling.update({"sampler": "ddim", "num_steps": 200})
    # of autoencoders with Gaussian latents; with a codebook there is no likelihood
    config.eval.update({"likelihoods": ("vlb_continuous",), "vlb_step_sampling": "low_discrepancy"})
    return config


def dit(*, image_size: int, first_stage: str) -> ConfigDict:
    """DiT-XL/2 of ImageNet, sampled in 250 steps with the guidance of its project's ``sample.py``.

    Args:
        image_size: See ``pretrained``.
        first_stage: See ``latent_diffusion``.
    """
    config = latent_diffusion("dit", first_stage=first_stage, image_size=image_size)
    config.sampling.update({"sampler": "ancestral", "num_steps": 250, "guidance_weight": 4.0})
    config.training.update({"loss": "hybrid", "batch_size": 256})
    config.optim.update({"name": "adamw", "learning_rate": 1e-4})
    return config


def stable_diffusion(*, image_size: int) -> ConfigDict:
    """The U-Net of a folder of Stable Diffusion 1 or 2, told texts by the text encoder in it, which are not masked.

    Args:
        image_size: See ``pretrained``.
    """
    config = latent_diffusion("diffusers", first_stage="stable_diffusion_vae", image_size=image_size)
    config.data.update(
        {
            "condition": ("text",),
            "text_encoder": "stable-diffusion-v1-5/text_encoder",
            "text_options": "masked=False, pooling=none",
        }
    )
    config.source.checkpoint = "stable-diffusion-v1-5"
    config.sampling.update({"num_steps": 50, "grid": "trailing", "guidance_weight": 7.5, "num_samples": 1})
    return config


def unclip_prior(checkpoint: str) -> ConfigDict:
    """Priors of unCLIP, models of CLIP's embeddings of images, told texts by its text encoder in the same folder.

    Args:
        checkpoint: The folder of the pipeline.
    """
    config = pretrained("diffusers_prior")
    config.data.update({"dataset": "npz", "channels": 0, "random_flip": False})
    config.data.update({"condition": ("text",), "text_encoder": f"{checkpoint}/text_encoder"})
    config.source.checkpoint = checkpoint
    config.sampling.update({"sampler": "ancestral", "num_steps": 25, "grid": "trailing", "guidance_weight": 4.0})
    config.sampling.options = "variance=small"
    config.training.weighting = "x0"
    config.eval.likelihoods = ("ode",)
    return config


def consistency(flags: str, *, image_size: int) -> ConfigDict:
    """Consistency models of Song et al. 2023, sampled in one step.

    Args:
        flags: As in the project's ``launch.sh``.
        image_size: See ``pretrained``.
    """
    config = pretrained("consistency_models", flags, image_size=image_size)
    config.sampling.update({"sampler": "consistency", "num_steps": 1, "grid": "karras"})
    config.training.loss = "consistency_training"
    return config
