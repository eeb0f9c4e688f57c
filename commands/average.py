"""An average of weights of another width, made after the training: ``--mode ema``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from experiment.checkpoints.folder import checkpoint_folders
from experiment.checkpoints.store import Checkpoint, load_newest
from experiment.checkpoints.weights import load_weights, named_weights
from experiment.config import Config
from experiment.config.checks import check_config
from experiment.from_checkpoints import said_of_images, trained_kind
from experiment.workdir import check_for_use, read_config, source_of
from runtime.locks import locked
from runtime.messages import say
from training.build import build_state
from training.ema import Profile, coefficients, profile_error, reconstruct
from training.ema.snapshots import FOLDER, profiles_of, read_snapshot, snapshot_profiles
from training.init_from import save_beginning
from training.state import TrainingState

_SOURCE = "ema"  # config.source.name of what this command writes
_MOST_MISSED = 0.1  # of a profile; the weights are then off by a few per cent of what widths differ by


def average_weights(config: Config, workdir: Path, *, sigma_rel: float = 0.0, output: str = "") -> Path:
    """Make an average of the weights of another width, and write it as a run of its own.

    It is the sum of those averages of ``training.ema_profiles`` in the snapshots and the newest good checkpoint whose
    profile comes next to the wanted one; see ``training.ema``.

    Args:
        config: The config that the work directory was trained with.
        workdir: The work directory.
        sigma_rel: The relative width, in (0, 0.2887].
        output: The work directory of the result; "" for ``ema_<sigma_rel>`` in this one. An earlier result there is
            replaced, any other run is not.

    Returns:
        That work directory, in which the average is step 0 of a run, weights and averaged weights alike.

    Raises:
        ValueError: In one line: no width or one out of range, a run without profiles or snapshots, or a profile that
            these cannot make.
        RuntimeError: If another process trains in that work directory.
    """
    if not sigma_rel:
        raise ValueError("--mode ema needs --sigma-rel, the relative width of the average, such as 0.13")
    check_config(config)
    check_for_use(workdir, config)
    folder = Path(output) if output else workdir / f"ema_{sigma_rel:g}"
    _check_free(folder)
    state = build_state(config, trained_kind(config, workdir, torch.device("cpu")), torch.device("cpu"))
    expected = named_weights(state.model, state.ema.model)
    checkpoint = load_newest(workdir / "checkpoints", expected, ignored=("loss.", "profiles."))
    assert checkpoint is not None
    for note in checkpoint.notes:
        say(note)
    places = _places(config, workdir, checkpoint)
    wanted = Profile(sigma_rel, checkpoint.state["ema_updates"])
    tracked = [profile for profiles in places.values() for profile in profiles]
    x = coefficients(tracked, wanted)
    missed = profile_error(tracked, wanted, x)
    if missed > _MOST_MISSED:
        widths = ", ".join(f"{one:g}" for one in config.training.ema_profiles)
        raise ValueError(
            f"the profile of --sigma-rel={sigma_rel:g} is missed by {missed:.0%} with {len(places)} snapshots of "
            f"widths {widths}; choose a width nearer to these, or train with a smaller training.ema_snapshot_every"
        )
    _set_weights(state, checkpoint, reconstruct(_averages(places, checkpoint), x))
    said = said_of_images(workdir)
    for key in ("train_files", "captions", "base", "teacher"):
        setattr(state, key, said.get(key, ""))
    with locked(folder, "train", flag="--output"):
        _check_free(folder)
        source = (workdir / "checkpoints" / f"step_{checkpoint.step:08d}").resolve()
        save_beginning(config, folder, state, name=_SOURCE, checkpoint=str(source), said={"sigma_rel": sigma_rel})
    say(
        f"wrote the average of sigma_rel {sigma_rel:g} at step {checkpoint.step}, of {len(places)} snapshots, whose "
        f"profile is met to {missed:.2%}, as step 0 of a run: --workdir {folder}"
    )
    return folder


def _check_free(folder: Path) -> None:
    """Refuse a work directory with a run that this command did not write, or that was trained on."""
    found = [path.name for path in checkpoint_folders(folder / "checkpoints")]
    source = source_of(read_config(folder)) or {}
    if found and not (found == ["step_00000000"] and source.get("name") == _SOURCE):
        raise ValueError(f"{folder} holds another run; choose another --output")


def _places(config: Config, workdir: Path, checkpoint: Checkpoint) -> dict[Path | None, list[Profile]]:
    """The folders of snapshots, and None for the checkpoint itself, with the profiles of the averages in each."""
    widths = tuple(config.training.ema_profiles)
    here = [
        Profile(width, checkpoint.state["ema_updates"]) for width in widths if profiles_of(checkpoint.tensors, width)
    ]
    if not here:
        raise ValueError(
            f"{workdir} was trained without training.ema_profiles, of which other averages are made; train with "
            "--config.training.ema_profiles=0.05,0.1"
        )
    snapshots = snapshot_profiles(workdir, checkpoint.step)
    if not snapshots:
        raise ValueError(
            f"{workdir} has no snapshots in {FOLDER} up to step {checkpoint.step}; train with a smaller "
            "training.ema_snapshot_every"
        )
    places: dict[Path | None, list[Profile]] = {None: here}
    known = set(here)
    for folder, profiles in snapshots.items():
        # where steps were skipped, two may be the same
        places[folder] = [profile for profile in profiles if profile not in known]
        known.update(profiles)
    return places


def _averages(places: dict[Path | None, list[Profile]], checkpoint: Checkpoint) -> Iterator[dict[str, Tensor]]:
    """The tensors of each average, one snapshot after the other."""
    for folder, profiles in places.items():
        tensors = checkpoint.tensors if folder is None else read_snapshot(folder)
        for profile in profiles:
            yield profiles_of(tensors, profile.sigma_rel)


def _set_weights(state: TrainingState, checkpoint: Checkpoint, average: dict[str, Tensor]) -> None:
    """Put an average in the place of both sets of weights; what is no parameter is the checkpoint's."""
    load_weights(state.model, checkpoint.tensors, "ema.")
    with torch.no_grad():
        for name, parameter in state.model.named_parameters():
            parameter.copy_(average[name])
    load_weights(state.ema.model, named_weights(state.model, state.model), "ema.")
