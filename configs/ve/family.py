"""Common settings of the VE configs."""

from ml_collections import ConfigDict


def ve_family(config: ConfigDict, *, sigma_min: float, sigma_max: float) -> None:
    """A geometric sigma, and a network whose input is scaled to unit variance at every noise level."""
    config.sde.update({"name": "ve", "sigma_min": sigma_min, "sigma_max": sigma_max})
    config.model.update({"parameterization": "edm", "time_input": "t999"})
