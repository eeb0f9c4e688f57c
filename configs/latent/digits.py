"""Diffusion of the latents of configs/latent/digits_autoencoder.py, which is to be trained before."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.vp import digits


def get_config() -> ConfigDict:
    """The network of configs/vp/digits.py on 4x4 latents, trained on their likelihood in continuous time."""
    config = get_default_config()
    config.sde = ConfigDict({"name": "vp"})
    digits.digits_network(config)
    config.data.first_stage = "runs/latent/digits_autoencoder"
    config.model.update({"channel_mult": (1, 1), "parameterization": "v", "time_input": "log_snr"})
    config.sampling.update({"num_steps": 100, "sampler": "ddim"})
    config.eval.update(
        {
            "likelihoods": ("vlb_continuous", "ode"),
            "vlb_step_sampling": "low_discrepancy",
            "vlb_steps_per_image": 40,
            "ode_dequantization": "none",
            "ode_rtol": 1e-4,
            "ode_atol": 1e-4,
        }
    )
    return config
