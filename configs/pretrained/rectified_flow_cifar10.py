"""Liu et al. 2023 (RectifiedFlow), CIFAR-10: the first rectified flow, of DDPM++ and Gaussian noise."""

from ml_collections import ConfigDict

from configs.pretrained.family import score_sde


def get_config() -> ConfigDict:
    """The ODE to the tolerance of the project's RK45, 1e-5."""
    config = score_sde("rectified_flow/cifar10_rf_gaussian_ddpmpp", cifar10=True)
    config.sampling.update({"sampler": "probability_flow", "options": "solver=dopri5"})
    config.training.weighting = "velocity"
    return config
