"""Dispatch of ``--mode``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiment.config import Config
from experiment.imported_config import complete_config
from experiment.network import is_classifier
from experiment.plugins import say_missing_plugins
from runtime.processes.ranks import Ranks
from training.init_from import where_the_model_is

from .eval import evaluate
from .eval_classifier import evaluate_classifier
from .export import export_model
from .import_checkpoint import import_checkpoint
from .sample import sample
from .train import train


def run_mode(mode: str, config: Config, workdir: Path, flags: Mapping[str, Any], ranks: Ranks) -> None:
    """Do what a mode stands for.

    A config that leaves the model to an imported checkpoint is completed here, once for all modes.

    Args:
        mode: train, eval, sample, import or export.
        config: The config.
        workdir: The work directory.
        flags: ``source`` and ``checkpoint``, ``format`` and ``output``, ``init_from``; "" or None where not given.
        ranks: The processes of the job.

    Raises:
        ValueError: In one line, and the others' errors: see the functions themselves.
    """
    if mode in ("import", "export") and ranks.world > 1:
        raise ValueError(f"--mode {mode} is for one process, got {ranks.world}; run it without torchrun")
    if mode == "import":
        import_checkpoint(config, workdir, source=flags["source"], checkpoint=flags["checkpoint"] or "")
        return
    init_from = flags.get("init_from") or ""
    if ranks.first:
        say_missing_plugins(workdir, config.plugins)
    config = complete_config(config, where_the_model_is(workdir, init_from))
    if mode == "train":
        train(config, workdir, init_from=init_from, ranks=ranks)
        return
    if mode == "export":
        export_model(config, workdir, format=flags["format"], output=flags["output"])
        return
    if mode == "sample":
        sample(config, workdir, Path(flags["output"]) if flags.get("output") else None, ranks=ranks)
        return
    (evaluate_classifier if is_classifier(config) else evaluate)(config, workdir, ranks=ranks)
