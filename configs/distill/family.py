"""Common settings of the configs of consistency models."""

from ml_collections import ConfigDict


def consistency(config: ConfigDict, loss: str, teacher: str = "") -> ConfigDict:
    """A config of a consistency model whose network, SDE and data are those of another config.

    Args:
        config: The config of the teacher.
        loss: One of the losses of consistency models.
        teacher: The teacher's work directory; "" for none.
    """
    config.model.answers = "consistency"
    config.training.loss = loss
    config.distillation.teacher = teacher
    config.sampling.update({"sampler": "consistency", "num_steps": 2})
    return config


def distilled(config: ConfigDict, loss: str, teacher: str) -> ConfigDict:
    """A config of a student of few steps, or of a generator, whose network, SDE and data are those of another config.

    Args:
        config: The config of the teacher.
        loss: "progressive_distillation" or "distribution_matching".
        teacher: The teacher's work directory.
    """
    answers, sampler, num_steps = {
        "progressive_distillation": ("steps", "ddim", 4),
        "distribution_matching": ("generator", "consistency", 1),
    }[loss]
    # x0 of eps loses its digits where hardly any signal is left
    config.model.update({"answers": answers, "parameterization": "v", "dropout": 0.0})
    config.training.update({"loss": loss, "sample_every": 0})
    config.distillation.teacher = teacher
    config.sampling.update({"sampler": sampler, "num_steps": num_steps})
    return config
