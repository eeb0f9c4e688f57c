"""The prior of DALL-E 2 on scenes: embeddings of images, given those of their captions.

``python examples/embed_scenes.py`` writes the data.
"""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    """A multilayer perceptron that predicts the embedding itself; minutes on one core."""
    config = get_default_config()
    config.sde = ConfigDict({"name": "vp"})
    config.data.update({"dataset": "npz", "root": "downloads/embedded_scenes/prior", "condition": ("values",)})
    config.model.update(
        {"backbone": "mlp", "parameterization": "x0", "time_input": "log_snr", "condition_dropout": 0.1}
    )
    config.model.network = ConfigDict({"hidden": 256, "num_layers": 4})
    config.training.update(
        {"num_steps": 2_000, "batch_size": 128, "ema_decay": 0.999, "checkpoint_every": 500, "weighting": "x0"}
    )
    config.training.sample_every = 0
    config.optim.update({"learning_rate": 1e-3, "warmup_steps": 200, "decay_steps": 2_000})
    config.sampling.update({"sampler": "dpm_solver_pp", "num_steps": 30, "num_samples": 1_000, "batch_size": 500})
    config.eval.update({"likelihoods": ("ode",), "ode_dequantization": "none", "ode_divergence": "exact"})
    config.eval.update({"batch_size": 100, "num_images": 100, "ode_rtol": 1e-3, "ode_atol": 1e-3})
    return config
