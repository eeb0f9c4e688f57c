"""Common settings of the clips of moving digits."""

from ml_collections import ConfigDict


def moving_digits(config: ConfigDict) -> None:
    """A small network on patches of 2x2, that says how probable each grey level of a pixel is.

    Most pixels are black for certain, which a distribution over levels says at once, and a mean only after long
    training. The error of v has weight 1, also where x_t is almost noise: there the digit and its way are decided.
    Attention over time is along columns and rows, since what moves is at other places in other frames. docs/video.md
    has what else was tried.
    """
    config.data.dataset = "moving_digits"
    config.sde.update({"num_steps": 1000, "beta_start": 2e-3, "beta_end": 0.02})
    config.model.update({"backbone": "space_time", "parameterization": "levels", "channels": 64, "num_heads": 4})
    config.model.network = ConfigDict(
        {"patch_size": 2, "depth": 4, "embedding_dim": 64, "qk_norm": True, "temporal_reach": "planes"}
    )
    config.training.update(
        {
            "weighting": "v",
            "step_sampling": "low_discrepancy",
            "num_steps": 20_000,
            "batch_size": 4,
            "precision": "fp32",
            "ema_decay": 0.999,
            "checkpoint_every": 1_000,
            "log_every": 50,
            "sample_every": 0,
        }
    )
    config.optim.update(
        {"name": "muon", "learning_rate": 5e-3, "beta2": 0.99, "warmup_steps": 200, "decay_steps": 20_000}
    )
    config.sampling.update({"sampler": "ancestral", "num_steps": 100, "precision": "fp32"})
    config.eval.update({"likelihoods": ("vlb",), "batch_size": 50, "num_images": 500, "vlb_steps_per_image": 20})
