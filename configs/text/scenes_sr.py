"""Super-resolution of captioned scenes, 16x16 to 32x32, the second stage of configs/text/scenes_cascade.py."""

from ml_collections import ConfigDict

from configs.text import scenes_32


def get_config() -> ConfigDict:
    """A U-Net that is told the caption, and the small image with noise on it, up to sigma / alpha = 0.5."""
    config = scenes_32.get_config()
    config.data.update({"condition": ("lowres", "text"), "condition_options": "factor=2,max_words=12"})
    config.model.update({"channel_mult": (1, 2, 4), "attention_resolutions": (8,), "condition_noise_t": 0.3})
    return config
