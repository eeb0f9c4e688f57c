"""Common settings of the configs of diffusion transformers."""

from ml_collections import ConfigDict


def dit_network(config: ConfigDict, *, patch_size: int, channels: int, depth: int, num_heads: int) -> None:
    """A transformer in place of a config's network, with the embedding of time of Peebles and Xie 2023.

    DiT has no dropout: small data are guarded by few steps and a learning rate that falls to 0; see ``as_long``.
    """
    config.model.update({"backbone": "dit", "channels": channels, "num_heads": num_heads, "dropout": 0.0})
    config.model.embedding = "cos_first"
    config.model.network = ConfigDict({"patch_size": patch_size, "depth": depth})


def as_long(config: ConfigDict, num_steps: int) -> None:
    """Train for ``num_steps``, in which the learning rate falls to 0, and predict v.

    v is eps, as the output is weighted, next to the data, where bits are lost, and -x0 at pure noise, where eps says
    nothing.
    """
    config.model.parameterization = "v"
    config.training.num_steps = num_steps
    config.optim.decay_steps = num_steps
