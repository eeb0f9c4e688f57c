"""Dispatch of ``--mode``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiment.config import Config
from experiment.config.imported import complete_config
from experiment.control.base_config import config_of_base
from experiment.distillation.teacher import config_of_teacher
from experiment.plugins import say_missing_plugins
from runtime.processes.ranks import Ranks
from training.init_from import where_the_model_is

from .modes import MODES


def run_mode(
    name: str,
    config: Config,
    workdir: Path,
    flags: Mapping[str, Any],
    ranks: Ranks,
    *,
    stages: Mapping[str, Config] | None = None,
) -> None:
    """Do what a mode stands for.

    A config that leaves the model to an imported checkpoint, to the base of a ControlNet, or to a teacher, is completed
    here, once for all modes.

    Args:
        name: One of ``MODES``.
        config: The config.
        workdir: The work directory.
        flags: The command line's flags, "" or None where not given.
        ranks: The processes of the job.
        stages: The configs of a cascade's stages by name; of a config without stages none.

    Raises:
        ValueError: In one line, and the others' errors: see the functions themselves.
    """
    mode = MODES[name]
    if stages:
        # imported here, since it runs modes itself
        from .cascade import run_cascade

        run_cascade(name, config, stages, workdir, flags, ranks)
        return
    if mode.one_process and ranks.world > 1:
        raise ValueError(f"--mode {name} is for one process, got {ranks.world}; run it without torchrun")
    if name != "import":  # which completes the config itself
        if ranks.first:
            say_missing_plugins(workdir, config.plugins)
        config = complete_config(config, where_the_model_is(workdir, flags.get("init_from") or ""))
        config = config_of_teacher(config_of_base(config), workdir)
    given = {flag: flags[flag] for flag in mode.flags if flags.get(flag)}
    mode.function(config, workdir, **given, **({} if mode.one_process else {"ranks": ranks}))
