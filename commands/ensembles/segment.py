"""Ensembles of masks of images: ``--mode segment``."""

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

from data import AnyDataset, ImageDataset, ImageKind
from evaluation.kept_batches import PartialResults
from evaluation.measurement import Values
from evaluation.over_ranks import says_what_is_kept
from evaluation.samples.sample_conditions import SampleConditions
from evaluation.table import without_nan
from experiment.build import pick_device
from experiment.conditions import Observed, build_conditions
from experiment.config import Config
from experiment.config.checks import check_config
from experiment.pictures import save_png
from experiment.workdir import check_for_use, save_npz, write_json
from runtime.locks import locked
from runtime.memory import explain_out_of_memory
from runtime.processes.ranks import ALONE, Ranks
from samplers import Hook
from tasks.ensembles import draw_ensemble
from tasks.restoration import restoration_picture
from tasks.segmentation import segmentation_figures, segmentation_table

from ..sample import SampledRun, check_folder, conditions_of, load_sampled
from .kept import Ensembles, Numbers

_MOST_ROWS, _MOST_SAMPLES = 16, 8  # in the picture


def segment(
    config: Config, workdir: Path, *, output: str = "", input: str = "", ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Draw masks of each image; write ``segmented.npz``, ``grid.png`` and, last, ``report.json``.

    Batches are kept as they come, so that an interrupted command goes on to the same figures. Under torchrun they are
    dealt to its processes.

    Args:
        config: The config the work directory was trained with; ``segment`` and ``sampling`` may differ.
        workdir: The work directory.
        output: The folder to write in; "" for ``segmented`` in the work directory.
        input: An image file, a folder or an ``.npz`` file of what is segmented; "" for the images of a split, whose
            masks are known.
        ranks: The processes of the job.

    Returns:
        The report; an empty one on ranks other than 0.

    Raises:
        ValueError: If the config does not fit the work directory, the model draws no masks of images, or files do not
            fit it.
        FloatingPointError: If the sampler's state stops being finite.
        MemoryError: If the memory does not suffice.
        OSError: If the folder cannot be written in.
        RuntimeError: If another command segments there.
        Interrupted: After Ctrl-C.
    """
    check_config(config)
    folder = Path(output) if output else workdir / "segmented"
    with explain_out_of_memory("sampling.batch_size", config.sampling.batch_size), contextlib.ExitStack() as held:
        check_for_use(workdir, config)
        check_folder(folder)
        job = _load(config, workdir, input, ranks)
        if ranks.first:
            held.enter_context(locked(folder, "segment", flag="--output"))
            job.run.say_notes()
        found = job.run.fingerprint() | {"segment": config.segment.to_dict(), "conditions": job.conditions.digest}
        kept = PartialResults(folder / "partial", found, done="drawn")
        ensembles = Ensembles(job.count, config.segment.samples_per_image, config.sampling.batch_size, kept)
        with says_what_is_kept(ensembles.said):
            ensembles.draw("segment", partial(_draw, job), ranks)
            return _write(job, ensembles, folder) if ranks.first else {}


@dataclass(frozen=True)
class _Job:
    """Images, and what draws their masks.

    Attributes:
        run: The run that draws.
        conditions: What it is told of each image.
        count: The number of images.
        origin: Where they are from, for the report.
        truth: Masks by all annotators, bool [N, A, H, W]; None of files.
    """

    run: SampledRun
    conditions: SampleConditions
    count: int
    origin: dict[str, Any]
    truth: Tensor | None = None


def _load(config: Config, workdir: Path, given: str, ranks: Ranks) -> _Job:
    """Load the model and the images; refuse what does not fit."""
    settings = config.segment
    run = load_sampled(config, workdir, ranks.device(pick_device(config)), ranks)
    kind, told = run.kind, build_conditions(config, run.kind)
    if not isinstance(kind, ImageKind) or kind.num_levels != 2 or kind.image_shape[0] != 1:
        got = "x".join(map(str, kind.image_shape)) + ("" if kind.num_levels is None else f" of {kind.num_levels}")
        raise ValueError(
            f"--mode segment needs a model of masks, images of one channel and 2 grey levels, got {got}; train one, as "
            "configs/vp/digits_segment.py does"
        )
    if not told.images:
        raise ValueError(
            "--mode segment needs a model that is told an image, got data.condition="
            f"{','.join(config.data.condition) or '()'}; train one with data.condition=paired"
        )
    conditions = conditions_of(
        config, workdir, kind, run.classes, (given,) if given else (), ranks, split=settings.split
    )
    source = conditions.source
    if isinstance(source, Observed):
        return _Job(run, conditions, len(source), {"input": given})
    assert source is not None
    truth = _truth(source.subset(settings.num_images))
    return _Job(run, conditions, settings.num_images, {"split": settings.split}, truth)


def _truth(dataset: AnyDataset) -> Tensor:
    """The masks of all annotators; a data set that has no others beside has its images."""
    assert isinstance(dataset, ImageDataset)
    return dataset.images.bool() if dataset.masks is None else dataset.masks


def _draw(job: _Job, numbers: Numbers, progress: Hook) -> Values:
    """Draw a batch of masks."""
    run = job.run
    result = draw_ensemble(
        run.sampler,
        run.model,
        numbers,
        sample_shape=run.kind.sample_shape,
        cond=job.conditions.of([k for k, _ in numbers], run.model.sde),
        seed=run.config.seed,
        hooks=[progress],
        device=run.device,
    )
    masks = run.kind.space.decode(result.x0.cpu())[:, 0].bool()
    return {"masks": masks.numpy(), "nfe": np.asarray(result.nfe)}


def _write(job: _Job, ensembles: Ensembles, folder: Path) -> dict[str, Any]:
    """Write masks, picture and, last, the report; print the table."""
    run, drawn = job.run, ensembles.read()
    samples, nfe = torch.from_numpy(drawn["masks"]), int(drawn["nfe"])
    images = job.conditions.pictures(range(job.count), run.model.sde)
    assert images is not None
    count = samples.shape[1]
    mean = samples.double().mean(1)
    variance = count / (count - 1) * mean * (1 - mean)
    arrays = {"samples": samples.byte().numpy(), "images": images}
    arrays |= {"mean": mean.float().numpy(), "variance": variance.float().numpy()}
    figures, report = {}, {"samples_per_image": count, "num_images": job.count, "nfe": nfe} | job.origin
    if job.truth is not None:
        figures, per_image = segmentation_figures(samples, job.truth)
        arrays |= {"truth": job.truth.byte().numpy()} | {name: one.numpy() for name, one in per_image.items()}
        report |= {"annotators": job.truth.shape[1], "empty": int((per_image["present"] == 0).sum())}
    for name, one in figures.items():
        report |= {name: one and one["value"], f"{name}_stderr": one and one["stderr"]}
    report |= run.about(job.conditions.classes)
    # a report is of the files beside it: it goes first, and comes last
    (folder / "report.json").unlink(missing_ok=True)
    save_npz(folder / "segmented.npz", arrays)
    save_png(folder / "grid.png", _picture(images, samples, mean, job.truth))
    write_json(folder / "report.json", without_nan(report))
    ensembles.kept.drop()
    of = job.origin.get("input") or f"{run.config.data.dataset} {job.origin['split']}"
    title = f"{of}, {job.count} images, {count} masks each of step {run.step} by {run.config.sampling.sampler}"
    if job.truth is not None:
        by = f"{job.truth.shape[1]} annotator{'s' if job.truth.shape[1] > 1 else ''}"
        title += f"\n{by}, {report['empty']} truths empty: an empty mask of these has Dice and IoU 1, any other 0"
    print(segmentation_table(figures, title, calls=str(nfe)))
    sys.stdout.flush()
    print(f"wrote {folder / 'report.json'}", file=sys.stderr)
    return report


def _picture(images: np.ndarray, samples: Tensor, mean: Tensor, truth: Tensor | None) -> np.ndarray:
    """The first images, their masks, and what was drawn; of several annotators the mean."""

    def grey(masks: Tensor) -> np.ndarray:
        return (255 * masks[:_MOST_ROWS].double()).round().byte().numpy()[..., None]

    columns = {"image": images[:_MOST_ROWS]}
    if truth is not None:
        columns["truth"] = grey(truth.double().mean(1))
    columns["mean"] = grey(mean)
    # white is one half, where the samples are of two minds
    columns["std"] = grey((4 * mean * (1 - mean)).sqrt())
    for j in range(min(samples.shape[1], _MOST_SAMPLES)):
        columns[f"sample {j + 1}"] = grey(samples[:, j])
    return restoration_picture(columns)
