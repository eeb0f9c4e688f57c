"""Bits/dim of a split, with standard errors: ``--mode eval``."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data import AnyDataset, AnyKind, ImageDataset, VectorDataset
from evaluation.batch_schedule import Schedule
from evaluation.density_picture import draw_density
from evaluation.fingerprints import measurement_fingerprints
from evaluation.measurement import EvalSplit, Measurement
from evaluation.over_ranks import says_what_is_kept
from evaluation.quote import quote
from evaluation.report import describe
from evaluation.report_warnings import warnings_of
from evaluation.step_weights import fit_step_weights
from evaluation.table import (
    gap_of,
    gap_sentence,
    table,
    without_nan,
)
from experiment.build import build_sampler
from experiment.config import Config
from experiment.estimators import build_estimators, model_for, settings_of
from experiment.from_checkpoints import as_score_model
from experiment.guidance import check_unguided
from experiment.latents.encoding import check_measurable, latent_model, latent_spread
from experiment.latents.first_stage import sees_latents
from experiment.network import is_classifier, is_first_stage
from experiment.pictures import save_bound_curve
from experiment.precision import fast_inference
from experiment.workdir import save_npz, write_json
from likelihood import LatentBound, LikelihoodEstimator, VariationalBound, mean_and_stderr
from models import NetworkScoreModel, ScoreModel, ToldAboveScoreModel
from runtime.messages import say
from runtime.processes.ranks import ALONE, Ranks

from .eval_classifier import evaluate_classifier
from .eval_first_stage import evaluate_first_stage
from .subject import says_before_the_first_batch, subject

_CALLS_PER_BATCH = 100  # of the network, about


@dataclass(frozen=True)
class Measured:
    """A split, measured.

    Attributes:
        measurements: The values of each likelihood.
        estimators: The likelihoods.
        settings: What the report says of their settings.
        model: The model.
        split: The images.
        kind: The data as the model knows them.
        head: What the report says of model and data.
    """

    measurements: dict[str, Measurement]
    estimators: dict[str, LikelihoodEstimator]
    settings: dict[str, dict[str, Any]]
    model: ScoreModel
    split: EvalSplit
    kind: AnyKind
    head: dict[str, Any]


@contextlib.contextmanager
def measured(
    config: Config,
    workdir: Path,
    mode: str,
    ranks: Ranks,
    *,
    by_class: Callable[[LikelihoodEstimator, AnyDataset, NetworkScoreModel], LikelihoodEstimator] | None = None,
) -> Iterator[Measured | None]:
    """Measure the averaged weights of the newest good checkpoint by all of ``config.eval.likelihoods``.

    What is measured is kept in the mode's folder batch by batch until the ``with`` block has written its report.

    Args:
        config: The config the work directory was trained with; ``eval`` may differ.
        workdir: The work directory.
        mode: The mode, whose name its lock and its folder have.
        ranks: The processes of the job.
        by_class: Makes an estimator of every class out of one, the data and the model.

    Yields:
        The measurements on rank 0; None on the others.

    Raises:
        ValueError: And the others' errors: see ``evaluate``.
    """
    check_unguided(config)
    check_measurable(config)
    with subject(config, workdir, mode, ranks, calls_per_batch=_CALLS_PER_BATCH) as given:
        split, computing, dataset = given.split, given.computing, given.split.dataset
        with says_before_the_first_batch():
            estimators = build_estimators(config, given.kind)
            trained = as_score_model(given.trained, workdir)
            model: Any = fast_inference(trained, computing)
            if by_class is not None and config.eval.classify_told_above_t:
                model = ToldAboveScoreModel(model, t_min=config.eval.classify_told_above_t)
            # now, since a grid or an end of it that does not fit the SDE is found here
            settings = {name: settings_of(one, model, config) for name, one in estimators.items()}
            seen = {
                name: (one, _in_pixels(model_for(one, model, config), given.kind)) for name, one in estimators.items()
            }
            num_classes = dataset.num_classes if by_class is not None else 0
            step_weights = fit_step_weights(config, seen, dataset, split.device, ranks, num_classes=num_classes)
            if by_class is not None:
                seen = {name: (by_class(one, dataset, trained), of) for name, (one, of) in seen.items()}
        schedule = Schedule(
            split,
            seen,
            folder=workdir / mode / "partial",
            fingerprints=measurement_fingerprints(
                config,
                _in_pixels(trained, given.kind),
                given.step,
                split,
                step_weights,
                computing.recorded(),
                by_class=by_class is not None,
            ),
            ranks=ranks,
        )
        with says_what_is_kept(lambda: f"stopped with {schedule.kept()} kept; the same command goes on from there"):
            measurements = schedule.run()
        if not ranks.first:
            yield None
            return
        head = describe(config, split) | {"step": given.step, "precision": computing.recorded()["precision"]}
        if sees_latents(config):
            head["latents"] = asdict(given.kind)["latents"]
        yield Measured(measurements, estimators, settings, model, split, given.kind, head)
        schedule.forget()


def _in_pixels(model: ScoreModel, kind: AnyKind) -> Any:
    """The model of pixels that a model of latents is with its autoencoder; other models as they are."""
    latents = getattr(kind, "latents", None)
    return model if latents is None else latent_model(model, latents)


def evaluate(config: Config, workdir: Path, *, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Measure the averaged weights of the newest good checkpoint; print a table, write ``eval/report.json``.

    What is measured is kept in ``eval/partial`` batch by batch, so that an interrupted command goes on to the same
    bits; once the report is written it is deleted, and the next command measures anew. Under torchrun the batches are
    dealt to its processes, with the same report to the bit.

    Args:
        config: The config the work directory was trained with; ``eval`` may differ.
        workdir: The work directory.
        ranks: The processes of the job.

    Returns:
        The report; an empty one on ranks other than 0.

    Raises:
        ValueError: If the config does not fit the work directory, or there is no good checkpoint.
        FloatingPointError: If a value is not finite.
        RuntimeError: If a solver gave up, or another command measures there.
        Interrupted: After Ctrl-C.
    """
    if is_first_stage(config):
        return evaluate_first_stage(config, workdir, ranks=ranks)
    if is_classifier(config):
        return evaluate_classifier(config, workdir, ranks=ranks)
    with measured(config, workdir, "eval", ranks) as done:
        if done is None:
            return {}
        report, dataset = _write(workdir, done), done.split.dataset
        conditions = done.split.conditions
        # of a model that is told more than classes there is a density for every value
        if isinstance(dataset, VectorDataset) and dataset.num_dims == 2 and conditions and conditions.only_labels:
            with says_what_is_kept(lambda: "stopped at the picture of the density; the report is written"):
                num_classes = dataset.num_classes if config.model.class_conditional else None
                path, sampler = workdir / "eval" / "density.png", build_sampler(config)
                draw_density(path, done.model, dataset, sampler, seed=config.seed, num_classes=num_classes)
                say(f"wrote {path}")
        return report


def _write(workdir: Path, done: Measured) -> dict[str, Any]:
    """Write the values of the images, the curve of L_t and, last, the report; print table, quotes and warnings."""
    measurements, estimators, model, split = done.measurements, done.estimators, done.model, done.split
    dataset, folder = split.dataset, workdir / "eval"
    report: dict[str, Any] = dict(done.head)
    arrays: dict[str, np.ndarray] = {}
    for name, measurement in measurements.items():
        estimator = estimators[name]
        report[name] = {"kind": estimator.kind} | measurement.report() | done.settings[name]
        if dataset.num_levels is None:
            a_dimension = dataset.num_dims * math.log(2)
            report[name]["nats"] = measurement.total.mean * a_dimension
            report[name]["nats_stderr"] = measurement.total.stderr * a_dimension
        arrays[name] = measurement.per_image
        parts = measurement.per_image_terms | measurement.per_image_steps
        arrays |= {f"{name}_{part}": values for part, values in parts.items()}
        if isinstance(estimator, VariationalBound):
            curve = _bound_curve(estimator, model, measurement)
            report[name]["terms"] = curve
            save_bound_curve(folder / "bound_terms.png", curve["t"], curve["bits_per_dim"], curve["stderr"])
        if isinstance(estimator, LatentBound):
            report[name] |= _distortion_and_rate(measurement)
        report[name]["quote"] = quote(report, name)
    gap = gap_of(measurements)
    if gap is not None:
        report["gap"] = gap
    latents, spread = getattr(done.kind, "latents", None), None
    own_state = latents is not None and latent_model(model, latents).is_own_state
    if latents is not None and isinstance(dataset, ImageDataset) and not own_state:
        spread = latent_spread(latents, dataset, split.num_images)
    report["warnings"] = warnings_of(report, estimators, model.sde, spread)
    if not any(isinstance(estimator, VariationalBound) for estimator in estimators.values()):
        # another measurement's
        (folder / "bound_terms.png").unlink(missing_ok=True)
    save_npz(folder / "per_image.npz", arrays)
    write_json(folder / "report.json", without_nan(report))
    measured = f"{dataset.name} {dataset.split}, {split.num_images} {dataset.samples_are}"
    title = f"{measured}, step {report['step']}, {report['units']}"
    print(table(measurements, title))
    for name in measurements:
        print(f"{name} {report[name]['quote']}")
    if gap is not None:
        print(gap_sentence(gap))
    sys.stdout.flush()
    for line in report["warnings"]:
        say(f"warning: {line}")
    print(f"wrote {folder / 'report.json'}", file=sys.stderr)
    return report


def _distortion_and_rate(measurement: Measurement) -> dict[str, float]:
    """The two parts of a latent bound, in bits/dim of the pixels, with standard errors over images."""
    parts = measurement.per_image_terms
    each = {"distortion": parts["reconstruction"], "rate": parts["prior"] + parts["diffusion"]}
    means = {name: mean_and_stderr(torch.from_numpy(values)) for name, values in each.items()}
    return {name: mean for name, (mean, _) in means.items()} | {
        f"{name}_stderr": stderr for name, (_, stderr) in means.items()
    }


def _bound_curve(estimator: VariationalBound, model: ScoreModel, measurement: Measurement) -> dict[str, list[float]]:
    """Mean and standard error of each L_t that was evaluated, over t."""
    times = estimator.noisy_times(model.sde)
    steps = sorted(measurement.steps.items())
    return {
        "t": [float(times[index + 1]) for index, _ in steps],
        "bits_per_dim": [mean.mean for _, mean in steps],
        "stderr": [mean.stderr for _, mean in steps],
    }
