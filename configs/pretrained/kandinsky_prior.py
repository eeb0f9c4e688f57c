"""The prior of Kandinsky 2.1, from the folder of its pipeline."""

from ml_collections import ConfigDict

from configs.pretrained.family import unclip_prior


def get_config() -> ConfigDict:
    """Embeddings of 768 numbers; --checkpoint and data.text_encoder name another folder, such as that of 2.2."""
    return unclip_prior("kandinsky-2-1-prior")
