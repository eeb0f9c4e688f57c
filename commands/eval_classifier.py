"""Cross-entropy and accuracy of a classifier over t: ``--mode eval`` of a classifier's run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from evaluation.batch_schedule import Schedule
from evaluation.classifier_curve import ClassifierCurve, ClassifierMeasurement, classifier_table, mean_nats
from evaluation.fingerprints import measurement_fingerprints
from evaluation.measurement import EvalSplit
from evaluation.over_ranks import says_what_is_kept
from evaluation.report import describe
from evaluation.table import without_nan
from experiment.config import Config
from experiment.pictures import save_classifier_curve
from experiment.precision import fast_inference
from experiment.workdir import save_npz, write_json
from models import NoisyClassifier
from runtime.messages import say
from runtime.processes.ranks import ALONE, Ranks

from .subject import subject

_NAME = "classifier"
# what a classifier has none of
_OF_SCORES = ("units", "parameterization", "learned_variance", "class_conditional")


def evaluate_classifier(config: Config, workdir: Path, *, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Measure the averaged weights of the newest good checkpoint; print a table, write ``eval/report.json``.

    As ``evaluate`` does for a score model: what is measured is kept, and dealt to the processes of a job. Of ``eval``
    it takes split, num_images, batch_size, precision and compile; what is of likelihoods has no effect.

    Args:
        config: The config the work directory was trained with; ``eval`` may differ.
        workdir: The work directory.
        ranks: The processes of the job.

    Returns:
        The report; an empty one on ranks other than 0.

    Raises:
        ValueError: If the config does not fit the work directory, or there is no good checkpoint.
        FloatingPointError: If a value is not finite.
        RuntimeError: If another command measures there.
        Interrupted: After Ctrl-C.
    """
    with subject(config, workdir, "eval", ranks, calls_per_batch=ClassifierCurve.num_times) as given:
        split, trained, computing = given.split, given.trained, given.computing
        assert isinstance(trained, NoisyClassifier)
        curve = ClassifierCurve(trained.sde)
        network = computing.recorded()
        schedule = Schedule(
            split,
            {_NAME: (curve, fast_inference(trained, computing))},
            folder=workdir / "eval" / "partial",
            fingerprints=measurement_fingerprints(config, trained, given.step, split, {}, network, names=[_NAME]),
            ranks=ranks,
            summarize=ClassifierMeasurement,
            value_of=mean_nats,
            units="nats, the mean over t",
        )
        with says_what_is_kept(lambda: f"stopped with {schedule.kept()} kept; the same command goes on from there"):
            measured = schedule.run()
        if not ranks.first:
            return {}
        head = {key: value for key, value in describe(config, split).items() if key not in _OF_SCORES}
        head |= {"step": given.step, "precision": network["precision"]}
        report = _write(workdir / "eval", head, measured[_NAME], curve, split)
        schedule.forget()
        return report


def _write(
    folder: Path, head: dict[str, Any], measurement: ClassifierMeasurement, curve: ClassifierCurve, split: EvalSplit
) -> dict[str, Any]:
    """Write the answers to the images, the picture and, last, the report; print the table."""
    dataset = split.dataset
    ours = measurement.report(curve.times, dataset.labels[: split.num_images])
    report = head | {_NAME: ours}
    save_classifier_curve(folder / "classifier.png", ours)
    arrays = {"t": curve.times.numpy(), "cross_entropy": measurement.nats, "correct": measurement.correct}
    save_npz(folder / "per_image.npz", arrays)
    write_json(folder / "report.json", without_nan(report))
    title = f"{dataset.name} {dataset.split}, {split.num_images} {dataset.samples_are}, step {head['step']}"
    print(classifier_table(ours, title))
    sys.stdout.flush()
    say(f"wrote {folder / 'report.json'}")
    return report
