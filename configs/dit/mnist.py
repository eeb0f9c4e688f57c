"""A diffusion transformer on MNIST, 28x28, 256 grey levels, beside the U-Net of configs/vp/mnist.py."""

from ml_collections import ConfigDict

from configs.dit.family import as_long, dit_network
from configs.vp import mnist


def get_config() -> ConfigDict:
    """14x14 patches. A step takes 1.02 of the operations of the U-Net's, whose 10,000 steps are 9,800 here."""
    config = mnist.get_config()
    dit_network(config, patch_size=2, channels=128, depth=4, num_heads=4)
    as_long(config, 9_800)
    return config
