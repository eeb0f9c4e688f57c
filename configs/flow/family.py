"""Common settings of the rectified flows."""

from ml_collections import ConfigDict


def flow_family(config: ConfigDict) -> None:
    """Flow matching at times of logit-normal (Esser et al. 2024), and Euler's method on the velocity."""
    config.sde = ConfigDict({"name": "rectified_flow", "shift": 1.0})
    config.model.parameterization = "velocity"
    config.training.step_sampling = "logit_normal"
    config.sampling.update({"sampler": "ddim", "num_steps": 50})
    # in equal steps of t the bound has few at the least noise
    config.eval.vlb_grid = "log_snr"
