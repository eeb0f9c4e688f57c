"""Liu et al. 2023 (RectifiedFlow), CIFAR-10: the second rectified flow, trained on pairs of the first."""

from ml_collections import ConfigDict

from configs.pretrained.family import score_sde


def get_config() -> ConfigDict:
    """One step of Euler's method, which is DDIM's."""
    config = score_sde("rectified_flow/cifar10_rf_gaussian_reflow_train", cifar10=True)
    config.sampling.update({"sampler": "ddim", "num_steps": 1})
    config.training.loss = "reflow"
    config.eval.likelihoods = ("ode",)
    return config
