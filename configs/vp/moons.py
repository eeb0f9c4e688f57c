"""scikit-learn's two moons, points in the plane: trains in about a minute on two cores."""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    """A continuous VP-SDE and a multilayer perceptron; the exact density, and pictures of it."""
    config = get_default_config()
    config.data.dataset = "moons"
    config.sde = ConfigDict({"name": "vp"})
    config.model.update({"backbone": "mlp", "parameterization": "v", "time_input": "log_snr"})
    config.model.network = ConfigDict({"hidden": 128, "num_layers": 3})
    config.training.update({"num_steps": 4_000, "batch_size": 256, "ema_decay": 0.999, "checkpoint_every": 2_000})
    config.training.sample_every = 2_000
    config.optim.update({"learning_rate": 1e-3, "warmup_steps": 200, "decay_steps": 4_000})
    config.sampling.update({"sampler": "dpm_solver_pp", "num_steps": 30, "num_samples": 2_000, "batch_size": 1_000})
    config.eval.update({"likelihoods": ("ode",), "ode_dequantization": "none", "ode_divergence": "exact"})
    config.eval.update({"batch_size": 500, "ode_rtol": 1e-4, "ode_atol": 1e-4})
    return config
