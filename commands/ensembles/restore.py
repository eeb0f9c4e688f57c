"""Samples of what a measurement of images leaves open: ``--mode restore``."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import AnyKind, ImageKind, LevelSpace, VectorKind, read_given_images, read_given_mask
from evaluation.fingerprints import digest_of, samples_fingerprint
from evaluation.kept_batches import PartialResults
from evaluation.measurement import Values
from evaluation.over_ranks import says_what_is_kept
from evaluation.samples.provenance import about_of, variance_of
from evaluation.table import without_nan
from experiment.build import build_sampler, pick_device
from experiment.classes import classes_of
from experiment.config import Config, parse_options
from experiment.config.checks import check_config
from experiment.from_checkpoints import as_score_model, trained_kind
from experiment.guidance import described, load_reference, sampled_model, with_classes_of_classifier
from experiment.pictures import array_shape, as_array, save_png
from experiment.plugins import say_changed_plugins
from experiment.rank0_first import load_on_rank0_first, load_same_trained
from experiment.warnings.prior import say_lost_signal
from experiment.workdir import check_for_use, save_npz, write_json
from models import Inpainting, LinearOperator, ScoreModel, make_operator
from runtime.locks import locked
from runtime.memory import explain_out_of_memory
from runtime.processes.ranks import ALONE, Ranks
from samplers import Hook
from tasks.restoration import (
    RestorationMethod,
    coverage_of,
    draw_posterior,
    errors_of,
    make_method,
    measure,
    residuals_of,
    restoration_figures,
    restoration_picture,
    restoration_table,
    shown_measurement,
)

from ..sample import check_folder
from ..subject import load_split, refuse_latents, refuse_untold
from .kept import Ensembles, Numbers

_NETWORK = {"precision": "fp32", "compile": False}  # gradients pass through neither bf16 nor compiled code
_MOST_ROWS, _MOST_SAMPLES = 16, 8  # in the picture


def restore(
    config: Config, workdir: Path, *, output: str = "", input: str = "", mask: str = "", ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Draw samples of p(x0 | y) of measured images; write ``restored.npz``, ``grid.png`` and, last, ``report.json``.

    Batches are kept as they come, so that an interrupted command goes on to the same figures. Under torchrun they are
    dealt to its processes.

    Args:
        config: The config the work directory was trained with; ``restore`` and ``sampling`` may differ.
        workdir: The work directory.
        output: The folder to write in; "" for ``restored`` in the work directory.
        input: An image file, a folder or an ``.npz`` file of what was measured; "" to measure images of a split.
        mask: An image file that is white where inpainting sees; "" for the part that ``restore.operator_options`` says.
        ranks: The processes of the job.

    Returns:
        The report; an empty one on ranks other than 0.

    Raises:
        ValueError: If the config does not fit the work directory, or operator, method, sampler and files each other.
        FloatingPointError: If the sampler's state stops being finite.
        MemoryError: If the memory does not suffice.
        OSError: If the folder cannot be written in.
        RuntimeError: If another command restores there.
        Interrupted: After Ctrl-C.
    """
    check_config(config)
    folder = Path(output) if output else workdir / "restored"
    with explain_out_of_memory("sampling.batch_size", config.sampling.batch_size), contextlib.ExitStack() as held:
        check_for_use(workdir, config)
        check_folder(folder)
        job = _load(config, workdir, input, mask, ranks)
        if ranks.first:
            held.enter_context(locked(folder, "restore", flag="--output"))
            say_changed_plugins(workdir, config.plugins)
            say_lost_signal(job.config, job.model.sde)
        kept = PartialResults(folder / "partial", job.fingerprint, done="drawn")
        count, size = config.restore.samples_per_image, config.sampling.batch_size
        ensembles = Ensembles(len(job.measured.y), count, size, kept)
        with says_what_is_kept(ensembles.said):
            ensembles.draw("restore", partial(_draw, job), ranks)
            return _write(job, ensembles, folder) if ranks.first else {}


@dataclass(frozen=True)
class _Measured:
    """Measured images.

    Attributes:
        y: The measurements, [N, ...].
        origin: Where they are from, for the report.
        truth: The images as networks see them, [N, ...]; None of files.
        labels: Their classes, int64 [N], where they are known.
    """

    y: Tensor
    origin: dict[str, Any]
    truth: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class _Job:
    """All that is drawn, and by what.

    Attributes:
        config: The config.
        kind: What is restored.
        method: The method.
        model: What its sampler draws with.
        measured: The measured images.
        classes: The class that each is restored as, int64 [N]; None without classes.
        about: What the report says of model and sampler.
        fingerprint: All that the samples depend on.
        device: Where the model is.
    """

    config: Config
    kind: AnyKind
    method: RestorationMethod
    model: ScoreModel
    measured: _Measured
    classes: Tensor | None
    about: dict[str, Any]
    fingerprint: dict[str, Any]
    device: torch.device


def _load(config: Config, workdir: Path, given: str, mask: str, ranks: Ranks) -> _Job:
    """Load the model and what was measured; refuse what does not fit."""
    settings, device, sampler = config.restore, ranks.device(pick_device(config)), build_sampler(config)
    for key, refused in {"precision": "bf16", "compile": "on"}.items():
        if config.sampling[key] == refused:
            raise ValueError(
                f"--mode restore takes gradients of the network, in float32 and not compiled, got sampling.{key}="
                f"{refused}; leave it at auto"
            )
    kind = with_classes_of_classifier(config, load_on_rank0_first(ranks, "data", lambda: trained_kind(config, workdir)))
    refuse_untold(config, kind, "restore")
    refuse_latents(config, "restore", "measures pixels")
    operator_options = _operator_options(config, kind, mask)
    operator = make_operator(settings.operator, shape=kind.image_shape, **operator_options)
    options = parse_options(settings.method_options)
    method = make_method(
        settings.method, operator=operator, noise_std=settings.noise_std, sampler=sampler, options=options
    )
    measured = _given(config, kind, operator, Path(given)) if given else _of_split(config, workdir, operator, ranks)
    classes = _classes(config, kind, measured)
    loaded, step = load_same_trained(ranks, config, workdir, kind, device)
    trained = as_score_model(loaded, workdir)
    reference = load_reference(config, kind, device, ranks)
    model = sampled_model(config, trained, kind, sampler, reference and reference.model, observe=method.observe)
    variance = variance_of(method.sampler, learned=trained.learned_variance)
    about = about_of(config, step, kind, None, _NETWORK, variance, described(config, reference))
    about["classes"] = None if classes is None else classes.tolist()
    about["operator_options"] = operator_options | ({"mask": mask} if mask else {})
    about["method_options"] = options
    found = samples_fingerprint(config, model, step, kind, None, _NETWORK, device, reference)
    mask_of = operator.mask if isinstance(operator, Inpainting) else None
    known = [one for one in (measured.y, measured.truth, classes, mask_of) if one is not None]
    found |= {"restore": settings.to_dict(), "measured": digest_of(*known)}
    return _Job(config, kind, method, model, measured, classes, about, found, device)


def _operator_options(config: Config, kind: AnyKind, mask: str) -> dict[str, Any]:
    """The operator's options; inpainting hides the right half unless something else is asked for."""
    settings = config.restore
    options = parse_options(settings.operator_options)
    for name, instead in {"shape": "leave it out", "mask": "pass --mask", "kernel": "set std"}.items():
        if name in options:
            raise ValueError(f"{name} is no option in config.restore.operator_options; {instead}")
    if mask and settings.operator != "inpaint":
        raise ValueError(f"--mask is of restore.operator=inpaint, got {settings.operator}; leave it out")
    if mask and not isinstance(kind, ImageKind):
        raise ValueError("--mask is of images, got a model of vectors; leave it out")
    if mask:
        return options | {"mask": read_given_mask(Path(mask), *kind.image_shape[1:])}
    return {"hidden": "right"} | options if settings.operator == "inpaint" else options


def _of_split(config: Config, workdir: Path, operator: LinearOperator, ranks: Ranks) -> _Measured:
    """Measure the first images of a split."""
    settings = config.restore
    dataset = load_split(config, workdir, settings.split, ranks).subset(settings.num_images)
    x0 = dataset.space.encode(dataset.stored)
    y = measure(operator, x0, noise_std=settings.noise_std, seed=config.seed)
    return _Measured(y, {"split": settings.split}, x0, dataset.labels)


def _given(config: Config, kind: AnyKind, operator: LinearOperator, path: Path) -> _Measured:
    """Read what was measured: for inpainting whole images, of which the hidden part is not looked at."""
    if isinstance(kind, VectorKind):
        raise ValueError("--input of --mode restore is of images, got a model of vectors; leave it out")
    name = config.restore.operator
    inpaints, space = name == "inpaint", LevelSpace(256)
    shape: Any = kind.image_shape if inpaints else operator.observed_shape
    what = "images to fill in" if inpaints else f"what {name} measures"
    stored, labels = read_given_images(path, ImageKind(shape, space.num_levels), what=what)
    y = space.encode(stored)
    return _Measured(operator.forward(y) if inpaints else y, {"input": str(path)}, labels=labels)


def _classes(config: Config, kind: AnyKind, measured: _Measured) -> Tensor | None:
    """The class that each image is restored as: those of ``sampling.classes`` in turn, else its own."""
    classes, labels = classes_of(config, kind), measured.labels
    if classes is None:
        return None
    if config.sampling.classes:
        return torch.tensor(classes)[torch.arange(len(measured.y)) % len(classes)]
    if labels is None:
        raise ValueError("the model is told classes, which --input does not have; set sampling.classes=3,7")
    if not 0 <= int(labels.min()) <= int(labels.max()) < kind.num_classes:
        raise ValueError(f"labels must be in 0 .. {kind.num_classes - 1}, got {labels.tolist()}; set sampling.classes")
    return labels


def _draw(job: _Job, numbers: Numbers, progress: Hook) -> Values:
    """Draw a batch."""
    images = torch.tensor([k for k, _ in numbers])
    result = draw_posterior(
        job.method,
        job.model,
        job.measured.y[images].to(job.device),
        numbers,
        cond=None if job.classes is None else job.classes[images].to(job.device),
        seed=job.config.seed,
        hooks=[progress],
    )
    values = {"x0": result.x0.cpu().numpy(), "nfe": np.asarray(result.nfe)}
    evidence = getattr(result, "log_evidence", None)
    return values if evidence is None else values | {"log_evidence": evidence.cpu().numpy()}


def _write(job: _Job, ensembles: Ensembles, folder: Path) -> dict[str, Any]:
    """Write the samples, the picture and, last, the report; print the table."""
    settings, measured, count = job.config.restore, job.measured, job.config.restore.samples_per_image
    drawn = ensembles.read()
    x0 = torch.from_numpy(drawn["x0"])
    per_image = _per_image(job, x0)
    arrays = _arrays(job, x0) | {name: values.numpy() for name, values in per_image.items()}
    if "log_evidence" in drawn:
        arrays["log_evidence"] = drawn["log_evidence"]
    figures = restoration_figures(per_image, num_samples=count, noise_std=settings.noise_std)
    nfe = int(drawn["nfe"])
    report: dict[str, Any] = {key: value for key, value in settings.items() if key != "split"} | measured.origin
    report |= {"num_images": len(x0), "nfe": nfe}
    for name, one in figures.items():
        report |= {name: one and one["value"], f"{name}_stderr": one and one["stderr"]}
    report |= {"coverage_expected": (count - 1) / (count + 1)} | job.about
    # a report is of the files beside it: it goes first, and comes last
    (folder / "report.json").unlink(missing_ok=True)
    save_npz(folder / "restored.npz", arrays)
    if isinstance(job.kind, ImageKind):
        save_png(folder / "grid.png", _picture(job, x0))
    write_json(folder / "report.json", without_nan(report))
    ensembles.kept.drop()
    of = measured.origin.get("input") or f"{job.config.data.dataset} {settings.split}"
    by = f"{settings.method} with {type(job.method.sampler).__name__}"
    title = (
        f"{of}, {len(x0)} images, {count} samples each of step {report['step']} by {by}\n"
        f"{job.method.operator}, noise_std {settings.noise_std:g}; "
        f"x0 {'standardized' if job.kind.num_levels is None else 'in [-1, 1]'}"
    )
    print(restoration_table(figures, title, num_samples=count, calls=str(nfe)))
    sys.stdout.flush()
    print(f"wrote {folder / 'report.json'}", file=sys.stderr)
    return report


def _per_image(job: _Job, x0: Tensor) -> dict[str, Tensor]:
    """All that the figures are of, of each image."""
    found, truth = residuals_of(job.method.operator, x0, job.measured.y), job.measured.truth
    if truth is None:
        return found
    # grey levels are compared with grey levels
    decode = job.kind.space.decode
    drawn, known = (decode(x0), decode(truth)) if isinstance(job.kind, ImageKind) else (x0, truth)
    return found | errors_of(x0, truth) | coverage_of(drawn, known)


def _arrays(job: _Job, x0: Tensor) -> dict[str, np.ndarray]:
    """The samples and what they are samples of, for the file."""
    samples = as_array(x0.flatten(0, 1), job.kind).reshape(*x0.shape[:2], *array_shape(job.kind))
    arrays = {"samples": samples, "x0": x0.numpy(), "y": job.measured.y.numpy()}
    if job.measured.truth is not None:
        arrays["truth"] = as_array(job.measured.truth, job.kind)
    if job.classes is not None:
        arrays["classes"] = job.classes.numpy()
    return arrays


def _picture(job: _Job, x0: Tensor) -> np.ndarray:
    """The first images as they were, as they were measured, and as they are restored."""
    x0, y, operator = x0[:_MOST_ROWS], job.measured.y[:_MOST_ROWS], job.method.operator
    space, columns = LevelSpace(256), {}
    if job.measured.truth is not None:
        columns["truth"] = space.pixels(job.measured.truth[:_MOST_ROWS])
    columns["observed"] = space.pixels(shown_measurement(operator, y))
    columns["mean"] = space.pixels(x0.mean(1))
    spread = x0.std(1, correction=0)
    # white is the largest of all
    columns["std"] = space.pixels(2 * spread / spread.max().clamp(min=1e-12) - 1)
    for j in range(min(x0.shape[1], _MOST_SAMPLES)):
        columns[f"sample {j + 1}"] = space.pixels(x0[:, j])
    return restoration_picture(columns)
