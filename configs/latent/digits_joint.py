"""An autoencoder of scikit-learn's digits and the diffusion of its latents, trained together on one bound."""

import math

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.vp import digits

# log 1 / r^2 of the noise r of the latents
LOG_SNR = 4.0


def get_config() -> ConfigDict:
    """The networks of digits_autoencoder.py and digits.py, on an SDE that begins with the noise of the latents."""
    config = get_default_config()
    config.sde = ConfigDict({"name": "ve", "sigma_min": math.exp(-LOG_SNR / 2), "sigma_max": 20.0})
    digits.digits_network(config)
    config.model.update(
        {
            "channel_mult": (1, 1),
            "parameterization": "edm",
            "data_std": 1.0,
            "first_stage": {
                "channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4, "dropout": 0.1,
                "latent_channels": 4, "bottleneck": "fixed", "log_snr": LOG_SNR, "pixels": "levels",
            },
        }
    )  # fmt: skip
    config.training.update({"num_steps": 2_500, "step_sampling": "low_discrepancy"})
    config.optim.update({"learning_rate": 2e-3, "decay_steps": 2_500})
    # z is the state at the SDE's first time, with its noise
    config.sampling.update(
        {"num_steps": 100, "sampler": "ancestral", "grid": "log_snr", "options": "denoise_final=False"}
    )
    config.eval.update(
        {
            "likelihoods": ("vlb_continuous", "ode"),
            "vlb_step_sampling": "low_discrepancy",
            "vlb_steps_per_image": 40,
            "ode_dequantization": "none",
        }
    )
    return config
