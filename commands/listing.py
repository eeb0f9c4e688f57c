"""``--list KIND``: the names that a config may use, one line each."""

from __future__ import annotations

import importlib

# The module and the name of each registry, which is imported when it is asked for, so that --help answers at once.
REGISTRIES = {
    "conditions": ("data.conditions", "CONDITIONS"),
    "correctors": ("samplers.correctors", "CORRECTORS"),
    "datasets": ("data.registry", "DATASETS"),
    "edit_methods": ("tasks.editing.methods", "EDIT_METHODS"),
    "grids": ("sde_lib.grids", "GRIDS"),
    "likelihoods": ("likelihood.base", "LIKELIHOODS"),
    "losses": ("training.losses", "LOSSES"),
    "operators": ("models.operators", "OPERATORS"),
    "parameterizations": ("models.parameterization", "PARAMETERIZATIONS"),
    "posteriors": ("models.wrappers.posterior", "POSTERIORS"),
    "predictors": ("samplers.predictors", "PREDICTORS"),
    "samplers": ("samplers.registry", "SAMPLERS"),
    "sdes": ("sde_lib.catalog", "SDES"),
}


def list_names(kind: str) -> str:
    """List the registered names of a kind, with the first line of each docstring.

    Args:
        kind: A key of ``REGISTRIES``.

    Returns:
        A line for each name.
    """
    module, name = REGISTRIES[kind]
    described = getattr(importlib.import_module(module), name).described()
    width = max(map(len, described))
    return "\n".join(f"{name:{width}}  {line.rstrip('.:').replace('``', '')}" for name, line in described.items())
