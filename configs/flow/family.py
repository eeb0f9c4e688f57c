"""Common settings of the rectified flows."""

from ml_collections import ConfigDict


def flow_family(config: ConfigDict, *, t_end: float) -> None:
    """Flow matching at times of logit-normal (Esser et al. 2024), and Euler's method on the velocity.

    Args:
        config: The config.
        t_end: The noise at which the likelihood begins, small beside a grey level. Below it no network of so few steps
            tells noise from data, which would cost bits for every level of noise.
    """
    config.sde = ConfigDict({"name": "rectified_flow", "shift": 1.0})
    config.model.parameterization = "velocity"
    config.training.step_sampling = "logit_normal"
    config.sampling.update({"sampler": "ddim", "num_steps": 50})
    # the chain of the bound has no such end
    config.eval.update({"likelihoods": ("ode",), "ode_t_end": t_end})
