"""EDM, CIFAR-10: edm-cifar10-32x32-{cond,uncond}-{vp,ve}, and baseline/ with source.preconditioning=vp or ve."""

from ml_collections import ConfigDict

from configs.pretrained.family import edm


def get_config() -> ConfigDict:
    """Karras et al. 2022: 18 steps, 35 network calls; classes and architecture are read off the tensors."""
    return edm("--dropout 0.13", num_steps=18, cifar10=True)
