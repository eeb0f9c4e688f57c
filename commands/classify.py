"""Classes by likelihood, and the worth of a label: ``--mode classify``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from data import AnyDataset
from evaluation.classification import classification_report, classification_table, label_worth
from evaluation.table import without_nan
from experiment.config import Config
from experiment.config.checks import check_config
from experiment.config.left_out import leaves_out
from experiment.workdir import save_npz, write_json
from likelihood import LikelihoodByClass, LikelihoodEstimator, VariationalBound
from models import NetworkScoreModel
from runtime.processes.ranks import ALONE, Ranks

from .eval import Measured, measured


def classify(config: Config, workdir: Path, *, ranks: Ranks = ALONE) -> dict[str, Any]:
    """Measure the images of a split under every class; print a table, write ``classify/report.json``.

    Interrupted, and under torchrun, it goes on as ``--mode eval`` does. Classes are taken to be equally likely.

    Args:
        config: The config the work directory was trained with; ``eval`` may differ.
        workdir: The work directory.
        ranks: The processes of the job.

    Returns:
        The report; an empty one on ranks other than 0.

    Raises:
        ValueError: If the model knows no classes, and as ``--mode eval``.
        FloatingPointError: If a value is not finite.
        RuntimeError: If a solver gave up, or another command classifies there.
        Interrupted: After Ctrl-C.
    """
    check_config(config)
    if not config.model.class_conditional:
        raise ValueError(
            "--mode classify needs a class-conditional model, got one without classes; train one with "
            "model.class_conditional=True"
        )
    if config.data.condition:
        raise ValueError(
            f"--mode classify needs a model that is told classes alone, got data.condition="
            f"{','.join(config.data.condition)}; train one without"
        )
    settings = config.eval
    if settings.classify_z and settings.classify_rounds == 1:
        raise ValueError(
            f"eval.classify_z={settings.classify_z:g} drops classes between rounds, got eval.classify_rounds=1; set 4, "
            "or leave it at 0"
        )
    if settings.classify_z and (settings.classify_by != "vlb" or settings.vlb_steps_per_image == 1):
        raise ValueError(
            f"eval.classify_z={settings.classify_z:g} drops classes by the spread of the draws of L_t and L_0, got "
            f"eval.classify_by={settings.classify_by} and eval.vlb_steps_per_image={settings.vlb_steps_per_image}; "
            "take vlb with 2 steps or more, or leave it at 0"
        )
    if settings.classify_told_above_t and not leaves_out(config):
        raise ValueError(
            f"eval.classify_told_above_t={settings.classify_told_above_t:g} needs a network that is trained without "
            "its class too, got model.condition_dropout=0; leave it at 0, or train one with model.condition_dropout=0.1"
        )
    config = config.copy_and_resolve_references()
    config.eval.likelihoods = (settings.classify_by,)

    def by_class(estimator: LikelihoodEstimator, dataset: AnyDataset, model: NetworkScoreModel) -> LikelihoodByClass:
        if isinstance(estimator, VariationalBound) and _tells_at_the_end(
            estimator, model, settings.classify_told_above_t
        ):
            # L_0 differs between classes by nats, with as much noise: a single draw would decide which one is best, and
            # classes are dropped by the spread of several
            least = 2 if settings.classify_z else 1
            estimator.decoder_draws = max(least, (estimator.steps_per_image or 0) // 5)
        return LikelihoodByClass(
            estimator,
            num_classes=dataset.num_classes,
            rounds=settings.classify_rounds,
            z=settings.classify_z,
            null=bool(getattr(model.backbone, "null_condition", False)),
        )

    with measured(config, workdir, "classify", ranks, by_class=by_class) as done:
        return {} if done is None else _write(config, workdir / "classify", done)


def _tells_at_the_end(estimator: VariationalBound, model: NetworkScoreModel, told_above_t: float) -> bool:
    """True if the class is told at the time of L_0 too; 0 tells it at every time."""
    return not told_above_t or told_above_t < float(estimator.noisy_times(model.sde)[0])


def _write(config: Config, folder: Path, done: Measured) -> dict[str, Any]:
    """Write the values of the images and, last, the report; print the table."""
    ((name, measurement),) = done.measurements.items()
    split = done.split
    nats, rounds = measurement.values("class_nats"), measurement.values("class_rounds")
    calls, null = measurement.values("class_calls"), measurement.values("null_nats")
    assert nats is not None and rounds is not None and calls is not None
    labels = split.dataset.labels[: len(nats)].numpy()
    worth, per_image = label_worth(nats, labels, split.dataset.num_dims, null)
    saved = 1 - float(rounds.mean()) / config.eval.classify_rounds
    report = done.head | {"likelihood": name, "rounds": config.eval.classify_rounds, "z": config.eval.classify_z}
    report |= {"told_above_t": config.eval.classify_told_above_t}
    report |= {"decoder_draws": getattr(done.estimators[name], "decoder_draws", 1)}
    report |= classification_report(nats, labels) | {
        "bits_per_dim": worth,
        "calls": {"mean": float(calls.mean()), "saved": saved},
        name: {"kind": done.estimators[name].kind} | done.settings[name],
    }
    arrays = {"nats": nats, "rounds": rounds, "labels": labels, **per_image}
    save_npz(folder / "per_image.npz", arrays)
    write_json(folder / "report.json", without_nan(report))
    measured_on = f"{split.dataset.name} {split.dataset.split}, {split.num_images} {split.dataset.samples_are}"
    title = f"{measured_on}, step {report['step']}, {nats.shape[1]} classes by {name}"
    if config.eval.classify_told_above_t:
        title += f", told above t = {config.eval.classify_told_above_t:g}"
    print(classification_table(report, title))
    sys.stdout.flush()
    print(f"wrote {folder / 'report.json'}", file=sys.stderr)
    return report
