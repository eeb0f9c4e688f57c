"""Diffusion of the latents of configs/latent/mnist_autoencoder.py, which is to be trained before, told the class."""

from ml_collections import ConfigDict

from configs.latent import digits


def get_config() -> ConfigDict:
    """The settings of configs/latent/digits.py with a U-Net of one level on 7x7x4 latents."""
    config = digits.get_config()
    config.data.update({"dataset": "mnist", "first_stage": "runs/latent/mnist_autoencoder"})
    config.model.update(
        {
            "channels": 64,
            "channel_mult": (1,),
            "num_res_blocks": 2,
            "attention_resolutions": (7,),
            "dropout": 0.0,
            "class_conditional": True,
            "condition_dropout": 0.1,
        }
    )
    config.training.update({"num_steps": 4_000, "sample_every": 0})
    config.optim.decay_steps = 4_000
    config.eval.update({"batch_size": 200, "vlb_steps_per_image": 20})
    return config
