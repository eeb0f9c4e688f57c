"""The configs of a cascade's stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .files import Config, flatten, import_plugins, load_config

_OURS = "--config.cascade."


def load_stages(config: Config, path: str, overrides: Sequence[str] = (), *, defaults: Config) -> dict[str, Config]:
    """Read the configs of a cascade's stages, and import their plugins.

    Args:
        config: The cascade's own config, whose section ``cascade`` names them: "vp/digits_2" of
            ``configs/cascade/digits_2_4_8.py`` is ``configs/vp/digits_2.py``.
        path: The file that it was read from.
        overrides: Settings of the command line, which each stage is given too, but for the cascade's own.
        defaults: See ``load_config``.

    Returns:
        The configs by the last parts of their names, in order; {} of a config without stages.

    Raises:
        ValueError: In one line: a stage cannot be read, two have one name, or the file sets what is the stages'.
    """
    names = [Path(name).name for name in config.cascade.stages]
    if len(set(names)) < len(names):
        raise ValueError(f"config.cascade.stages must have different names, got {', '.join(names)}; rename a config")
    if not names:
        return {}
    usual = dict(flatten(defaults))
    for key, value in flatten(load_config(path, defaults=defaults)):
        if not key.startswith("cascade.") and value != usual.get(key):
            raise ValueError(f"{path} sets {key}, but a cascade's settings are its stages'; set it in their configs")
    ours = [one for one in overrides if not one.startswith(_OURS)]
    folder = Path(path).resolve().parent.parent
    stages = {
        name: load_config(str(folder / f"{stage}.py"), ours, defaults=defaults)
        for name, stage in zip(names, config.cascade.stages, strict=True)
    }
    # those of the command line are imported already
    mine = (plugin for stage in stages.values() for plugin in stage.plugins if plugin not in config.plugins)
    import_plugins(list(dict.fromkeys(mine)))
    return stages
