"""A diffusion transformer on scikit-learn's digits, 8x8, 17 grey levels, told as configs/vp/digits.py is."""

from ml_collections import ConfigDict

from configs.vp import digits


def get_config() -> ConfigDict:
    """Every pixel is a patch, and a forward pass takes 0.87 of the operations of the U-Net of configs/vp/digits.py.

    With as many more steps both trainings are of equal compute. DiT has no dropout, and 1,437 images are few: at larger
    patches, or at the learning rate of the end of training all along, it learns them by heart before it is good.
    """
    config = digits.get_config()
    dit_network(config, patch_size=1, channels=96, depth=4, num_heads=4)
    # as the output next to the data, where bits are lost, v is eps, and at pure noise, where eps says nothing, -x0
    config.model.parameterization = "v"
    config.training.num_steps = 1_140
    config.optim.decay_steps = 1_140
    return config


def dit_network(config: ConfigDict, *, patch_size: int, channels: int, depth: int, num_heads: int) -> None:
    """A transformer in place of the network of a config, with the embedding of Peebles and Xie 2023."""
    config.model.update({"backbone": "dit", "channels": channels, "num_heads": num_heads, "dropout": 0.0})
    config.model.embedding = "cos_first"
    config.model.network = ConfigDict({"patch_size": patch_size, "depth": depth})
