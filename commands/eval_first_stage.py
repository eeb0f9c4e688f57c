"""Distortion and rate of an autoencoder: ``--mode eval`` of its run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.batch_schedule import Schedule
from evaluation.fingerprints import measurement_fingerprints
from evaluation.first_stage import FirstStageMeasurement, bound_of, first_stage_table
from evaluation.measurement import EvalSplit
from evaluation.over_ranks import says_what_is_kept
from evaluation.report import describe
from evaluation.table import without_nan
from experiment.config import Config
from experiment.pictures import as_array, image_grid, picture_of, save_png
from experiment.precision import fast_inference
from experiment.workdir import save_npz, write_json
from likelihood import FirstStageBound
from models import FirstStage
from runtime.messages import say
from runtime.processes.ranks import ALONE, Ranks
from sde_lib import NoiseStreams

from .subject import subject

_NAME = "autoencoder"
# what an autoencoder has none of
_OF_SCORES = ("parameterization", "learned_variance", "class_conditional", "condition", "sde")
_SHOWN = 16


def evaluate_first_stage(config: Config, workdir: Path, *, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Measure the averaged weights of the newest good checkpoint; print a table, write ``eval/report.json``.

    As ``evaluate`` does for a score model: what is measured is kept, and dealt to the processes of a job. Of ``eval``
    it takes split, num_images, batch_size, precision and compile; what is of likelihoods has no effect. Beside the
    report lie the figures of each image and ``reconstructions.png``, the first images and E[x | z] below them.

    Args:
        config: The config the work directory was trained with; ``eval`` may differ.
        workdir: The work directory.
        ranks: The processes of the job.

    Returns:
        The report; an empty one on ranks other than 0.

    Raises:
        ValueError: If the config does not fit the work directory, or there is no good checkpoint.
        RuntimeError: If another command measures there.
        Interrupted: After Ctrl-C.
    """
    with subject(config, workdir, "eval", ranks, calls_per_batch=1) as given:
        split, trained, computing = given.split, given.trained, given.computing
        assert isinstance(trained, FirstStage)
        network = computing.recorded()
        schedule = Schedule(
            split,
            {_NAME: (FirstStageBound(num_levels=split.dataset.num_levels), fast_inference(trained, computing))},
            folder=workdir / "eval" / "partial",
            fingerprints=measurement_fingerprints(config, trained, given.step, split, {}, network, names=[_NAME]),
            ranks=ranks,
            summarize=FirstStageMeasurement,
            value_of=bound_of,
        )
        with says_what_is_kept(lambda: f"stopped with {schedule.kept()} kept; the same command goes on from there"):
            measured = schedule.run()
        if not ranks.first:
            return {}
        head = {key: value for key, value in describe(config, split).items() if key not in _OF_SCORES}
        head |= {"step": given.step, "precision": network["precision"], "latent_shape": list(trained.latent_shape)}
        report = _write(workdir / "eval", head, measured[_NAME], split, trained)
        schedule.forget()
        return report


def _write(
    folder: Path, head: dict[str, Any], measurement: FirstStageMeasurement, split: EvalSplit, model: FirstStage
) -> dict[str, Any]:
    """Write the figures of the images, the picture and, last, the report; print the table."""
    dataset = split.dataset
    report = head | {_NAME: measurement.report()}
    arrays = {name: getattr(measurement, name) for name in ("distortion", "rate", "squared_error")}
    save_npz(folder / "per_image.npz", arrays)
    save_png(folder / "reconstructions.png", _reconstructions(split, model))
    write_json(folder / "report.json", without_nan(report))
    print(
        first_stage_table(
            report[_NAME], f"{dataset.name} {dataset.split}, {split.num_images} images, step {head['step']}"
        )
    )
    sys.stdout.flush()
    say(f"wrote {folder / 'report.json'}")
    return report


@torch.no_grad()
def _reconstructions(split: EvalSplit, model: FirstStage) -> Any:
    """The first images, each above E[x | z] of the z that it was measured by; of clips each is a row of frames."""
    dataset = split.dataset
    count = min(_SHOWN, split.num_images)
    x0 = dataset.space.encode(dataset.stored[:count]).to(split.device)
    eps = NoiseStreams(split.seed, range(count)).normal_like(x0.new_empty(count, *model.latent_shape))
    mean = model(x0, eps).pixels.mean
    truth, again = (as_array(one, dataset.kind) for one in (x0, mean.clamp(-1, 1)))
    if model.num_frames:
        return picture_of(np.stack([truth, again], 1).reshape(-1, *truth.shape[1:]))
    return image_grid(np.concatenate([truth, again]), columns=count)
