"""EDM, FFHQ 64x64: edm-ffhq-64x64-uncond-{vp,ve}, and baseline/ with source.preconditioning=vp or ve."""

from ml_collections import ConfigDict

from configs.pretrained.family import edm


def get_config() -> ConfigDict:
    """Karras et al. 2022: 40 steps, 79 network calls; the architecture is read off the tensors."""
    return edm("--dropout 0.05", num_steps=40, image_size=64)
