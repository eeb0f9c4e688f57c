"""A trained model in another project's format: ``--mode export``."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torch

from experiment.config import Config
from experiment.config.checks import check_config
from experiment.from_checkpoints import as_score_model, load_trained, trained_kind
from experiment.workdir import check_for_use
from models.pretrained import export_diffusers
from runtime.files import make_folder, sync_folder, sync_tree
from runtime.locks import locked
from runtime.messages import say
from runtime.registry import choices_message

_FORMATS = {"diffusers": export_diffusers}
_INDEX = "model_index.json"


def export_model(config: Config, workdir: Path, *, format: str = "", output: str = "") -> Path:
    """Write the averaged weights of the newest good checkpoint in another project's format.

    Args:
        config: The config the work directory was trained or imported with.
        workdir: The work directory.
        format: "diffusers": a folder that ``DDPMPipeline.from_pretrained`` loads.
        output: The folder; "" is ``<workdir>/<format>``. An earlier export there is replaced, anything else is not.

    Returns:
        The folder, complete.

    Raises:
        ValueError: In one line: the format is unknown, it has no such model, or the folder holds something else.
        RuntimeError: If another process exports from there.
    """
    if not format:
        raise ValueError(f"--mode export needs --format; choices: {', '.join(sorted(_FORMATS))}")
    if format not in _FORMATS:
        raise ValueError(choices_message("format", format, sorted(_FORMATS)))
    check_config(config)
    check_for_use(workdir, config)
    folder = Path(output) if output else workdir / format
    loaded, step = load_trained(config, workdir, trained_kind(config, workdir), torch.device("cpu"))
    model = as_score_model(loaded, workdir)
    with locked(workdir, "export"):
        if folder.exists() and not (folder.is_dir() and ((folder / _INDEX).is_file() or not any(folder.iterdir()))):
            raise ValueError(f"{folder} holds something else than an export; choose another --output")
        make_folder(folder.absolute().parent)
        temporary = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
        try:
            new = temporary / "new"
            _FORMATS[format](model, new)
            sync_tree(new)
            if folder.exists():
                folder.rename(temporary / "old")
            new.rename(folder)
            sync_folder(folder.absolute().parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    say(f"wrote the averaged weights of step {step} to {folder}")
    return folder
