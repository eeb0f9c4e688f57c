"""Ma et al. 2024 (SiT), ImageNet 256x256: SiT-XL-2-256x256.pt, of the latents of sd_vae.py."""

from ml_collections import ConfigDict

from configs.pretrained.family import dit


def get_config() -> ConfigDict:
    """The ODE to the tolerances of the project's dopri5, with the guidance of its sample.py."""
    config = dit(image_size=256, first_stage="sd_vae")
    config.source.name = "sit"
    config.sampling.update({"sampler": "probability_flow", "options": "solver=dopri5, rtol=1e-3, atol=1e-6"})
    config.training.update({"loss": "auto", "weighting": "velocity"})
    config.eval.update({"likelihoods": ("ode",), "ode_dequantization": "none"})
    return config
