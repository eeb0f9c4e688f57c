"""Cross-entropy and accuracy of a classifier over t: ``--mode eval`` of a classifier's run."""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.batch_schedule import Schedule
from evaluation.classifier_curve import ClassifierCurve, ClassifierMeasurement, classifier_table, mean_nats
from evaluation.fingerprints import measurement_fingerprints
from evaluation.measurement import EvalSplit
from evaluation.over_ranks import says_what_is_kept
from evaluation.report import describe
from evaluation.table import without_nan
from experiment.build import build_dataset, pick_device
from experiment.checks import check_config
from experiment.conditions import Conditions
from experiment.config import Config
from experiment.from_checkpoints import trained_channels
from experiment.pictures import save_classifier_curve
from experiment.plugins import say_changed_plugins
from experiment.precision import fast_inference, pick_mode
from experiment.rank0_first import as_trained, load_on_rank0_first, load_same_trained, pick_together
from experiment.workdir import check_for_use, save_npz, write_json
from models import NoisyClassifier
from runtime.locks import locked
from runtime.memory import explain_out_of_memory
from runtime.messages import say
from runtime.processes.ranks import ALONE, Ranks

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
    check_config(config)
    settings = config.eval
    with explain_out_of_memory("eval.batch_size", settings.batch_size), contextlib.ExitStack() as held:
        check_for_use(workdir, config)
        device = ranks.device(pick_device(config))
        with says_what_is_kept(lambda: "stopped before the first batch; the same command begins again"):
            channels = trained_channels(config, workdir)
            dataset = load_on_rank0_first(ranks, "data", lambda: build_dataset(config, settings.split, channels))
            dataset = as_trained(ranks, config, workdir, dataset)
            split = EvalSplit(
                dataset,
                batch_size=settings.batch_size,
                num_images=settings.num_images,
                seed=config.seed,
                conditions=Conditions(None, labels=True),
                device=device,
            )
            trained, step = load_same_trained(ranks, config, workdir, dataset.kind, device)
            assert isinstance(trained, NoisyClassifier)
            curve = ClassifierCurve(trained.sde)
            pick = partial(pick_mode, settings.precision, settings.compile, device, backbone=trained.backbone)
            mode = pick_together(ranks, partial(pick, num_calls=len(curve.times) * len(split)))
            if ranks.first:
                held.enter_context(locked(workdir, "eval"))
                for reason in mode.reasons:
                    say(reason)
                say_changed_plugins(workdir, config.plugins)
        schedule = Schedule(
            split,
            {_NAME: (curve, fast_inference(trained, mode))},
            folder=workdir / "eval" / "partial",
            fingerprints=measurement_fingerprints(config, trained, step, split, {}, mode.recorded(), names=[_NAME]),
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
        head |= {"step": step, "precision": mode.recorded()["precision"]}
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
