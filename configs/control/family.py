"""Common settings of the configs of ControlNets."""

from ml_collections import ConfigDict


def controlled(
    config: ConfigDict, base: str, *, condition: tuple[str, ...] = ("edges",), options: str = ""
) -> ConfigDict:
    """A config of a ControlNet beside the model of another one: its network and SDE are those of the model.

    Args:
        config: The config of the model, whose data and settings of sampling and measuring are kept.
        base: The model's work directory.
        condition: What the model is told, and the hint.
        options: Options of these.
    """
    config.control.base = base
    left_out = {key: config.model[key] for key in ("condition_dropout", "part_dropout")}
    config.model = ConfigDict({"backbone": "control", **left_out})
    config.sde = ConfigDict()
    config.data.update({"condition": condition, "condition_options": options})
    return config
