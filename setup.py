"""Packaging: the top-level packages under the names the project gives them. Metadata lives in pyproject.toml."""

from setuptools import setup

setup(
    packages=[
        "runtime",
        "runtime.processes",
        "sde_lib",
        "sde_lib.ode",
        "data",
        "data.sources",
        "models",
        "models.backbones",
        "models.backbones.blocks",
        "models.pretrained",
        "models.pretrained.diffusers",
        "models.pretrained.edm",
        "models.pretrained.guided",
        "models.pretrained.score_sde",
        "models.pretrained.shared",
        "models.wrappers",
        "samplers",
        "likelihood",
        "experiment",
        "experiment.checkpoints",
        "experiment.config",
        "training",
        "training.losses",
        "evaluation",
        "proofs",
        "commands",
        "configs",
        "configs.pretrained",
        "configs.subvp",
        "configs.ve",
        "configs.vp",
    ]
)
