"""Packaging: the top-level packages under the names the project gives them. Metadata lives in pyproject.toml."""

from setuptools import setup

setup(
    packages=[
        "runtime",
        "sde_lib",
        "models",
        "models.backbones",
        "models.importers",
        "samplers",
        "likelihood",
        "data",
        "training",
        "evaluation",
        "commands",
        "configs",
        "configs.pretrained",
        "configs.vp",
        "configs.ve",
        "configs.subvp",
    ]
)
