"""The decoder of DALL-E 2 on scenes: images, given the embedding that a contrastive pair has of them.

``python examples/embed_scenes.py`` writes the data. With ``--input`` samples of the prior are decoded.
"""

from ml_collections import ConfigDict

from configs.text.scenes import get_config as told_words


def get_config() -> ConfigDict:
    """The U-Net of configs/text/scenes.py, which is told an embedding in place of words."""
    config = told_words()
    config.data.update(
        {
            "dataset": "npz",
            "root": "downloads/embedded_scenes/decoder",
            "condition": ("values",),
            "condition_options": "",
        }
    )
    return config
