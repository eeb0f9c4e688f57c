"""Samples as they come about, and what a state x_t holds of an image: ``--mode progressive``."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import AnyKind, ImageKind
from evaluation.fingerprints import digest_of
from evaluation.kept_batches import PartialResults
from evaluation.measurement import Values
from evaluation.over_ranks import deal, says_what_is_kept
from evaluation.quality import Estimate, Moments, block_jackknife, frechet_of_moments, moments_of
from evaluation.table import plus_minus, without_nan
from experiment.build import pick_device
from experiment.config import Config
from experiment.config.checks import check_config
from experiment.pictures import as_array, save_png, save_progress
from experiment.workdir import check_for_use, save_npz, write_json
from runtime.locks import locked
from runtime.memory import explain_out_of_memory
from runtime.processes.ranks import ALONE, Ranks
from runtime.terminal import ProgressBar
from samplers import AnnealedLangevinSampler, GridSampler, NoCorrector, PredictorCorrectorSampler, Sampler, StepState
from tasks.latents import (
    common_variance,
    draw_progressively,
    draw_shared,
    gaussian_correlation,
    noised,
    prediction_times,
    predictions_along,
    variances_of,
)
from tasks.restoration import restoration_picture
from tasks.restoration.metrics import ratio_of_means, root_of_mean

from ..ensembles.kept import plan_kept
from ..sample import SampledRun, check_folder, load_sampled
from ..subject import load_split, refuse_untold
from .started import grid_sampler_of

_MOST_ROWS, _MOST_SHARED = 16, 8  # samples in the picture; of each state in the other one
_BLOCKS = 8  # of the jackknife, each of which is a Frechet distance at every time


def progressive(config: Config, workdir: Path, *, output: str = "", ranks: Ranks = ALONE) -> dict[str, Any]:
    """Predict samples on their way, noised images and samples that share a state; write pictures and ``report.json``.

    Batches are kept as they come, so that an interrupted command goes on to the same figures. Under torchrun they are
    dealt to its processes.

    Args:
        config: The config the work directory was trained with; ``progressive`` and ``sampling`` may differ.
        workdir: The work directory.
        output: The folder to write in; "" for ``progressive`` in the work directory.
        ranks: The processes of the job.

    Returns:
        The report; an empty one on ranks other than 0.

    Raises:
        ValueError: If the config does not fit the work directory, times and sampler each other, or a number of images
            the split.
        FloatingPointError: If the sampler's state stops being finite.
        MemoryError: If the memory does not suffice.
        OSError: If the folder cannot be written in.
        RuntimeError: If another command writes there.
        Interrupted: After Ctrl-C.
    """
    check_config(config)
    if config.sampling.num_samples < 2:
        raise ValueError(
            "config.sampling.num_samples must be at least 2, of which a Frechet distance can be made, got "
            f"{config.sampling.num_samples}; raise it"
        )
    folder = Path(output) if output else workdir / "progressive"
    with explain_out_of_memory("sampling.batch_size", config.sampling.batch_size), contextlib.ExitStack() as held:
        check_for_use(workdir, config)
        check_folder(folder)
        job = _load(config, workdir, ranks)
        if ranks.first:
            held.enter_context(locked(folder, "progressive", flag="--output"))
            job.run.say_notes()
        kept = PartialResults(folder / "partial", job.fingerprint, done="drawn")
        with says_what_is_kept(
            lambda: (
                f"stopped with {kept.count()} of {len(job.batches)} batches kept; the same command goes on from there"
            )
        ):
            _draw(job, kept, ranks)
            return _write(job, kept, folder) if ranks.first else {}


@dataclass(frozen=True)
class _Job:
    """All that is drawn and predicted, and by what.

    Attributes:
        run: The run.
        sampler: Its sampler.
        times: Where samples and images are predicted.
        x0: The split as networks have it, [N, ...].
        labels: Its classes, int64 [N]; None of a model without classes.
    """

    run: SampledRun
    sampler: GridSampler
    times: tuple[float, ...]
    x0: Tensor
    labels: Tensor | None

    @property
    def batches(self) -> list[tuple[str, float, list[int]]]:
        """Batches: the task ("sample", "noise" or "share"), its time if it has one, and numbers of images."""
        config, size = self.run.config, self.run.config.sampling.batch_size
        settings = config.progressive
        found = [("sample", 0.0, range(config.sampling.num_samples), size)]
        found += [("noise", 0.0, range(settings.num_images), size)]
        whole = max(1, size // settings.shared_samples)
        found += [("share", t, range(settings.shared_images), whole) for t in dict.fromkeys(settings.share_at)]
        return [
            (what, t, list(numbers[first : first + step]))
            for what, t, numbers, step in found
            for first in range(0, len(numbers), step)
        ]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """All that the results of a batch depend on, as JSON gives it back."""
        settings, known = self.run.config.progressive, [self.x0] + ([] if self.labels is None else [self.labels])
        found = {"progressive": settings.to_dict(), "split": digest_of(*known)}
        found |= {"num_samples": self.run.config.sampling.num_samples}
        return self.run.fingerprint() | json.loads(json.dumps(found))

    def of(self, kept: PartialResults, what: str, t: float = 0.0) -> list[Values]:
        """The kept results of one kind."""
        return [kept.read(k) for k, batch in enumerate(self.batches) if batch[:2] == (what, t)]


def _load(config: Config, workdir: Path, ranks: Ranks) -> _Job:
    """Load model and data; refuse samplers, times and numbers of images that cannot be."""
    run, settings = load_sampled(config, workdir, ranks.device(pick_device(config)), ranks), config.progressive
    refuse_untold(config, run.kind, "progressive")
    sampler, sde = grid_sampler_of(run, "progressive"), run.model.sde
    if _forgets(sampler):
        raise ValueError(
            "--mode progressive measures what x_t tells of the sample, which Langevin steps forget, got "
            f"sampling.sampler={config.sampling.sampler}; take ancestral"
        )
    times = prediction_times(sampler, sde, settings.times, num_times=settings.num_times)
    for t in settings.share_at:
        sampler.starting_at(sde, t)
    dataset = load_split(config, workdir, settings.split, ranks)
    for key in ("num_images", "shared_images") if settings.share_at else ("num_images",):
        if settings[key] > len(dataset):
            raise ValueError(
                f"config.progressive.{key} must be 1 .. {len(dataset)}, the size of the {dataset.name} {dataset.split} "
                f"split, got {settings[key]}; ask for fewer images"
            )
    labels = None if run.classes is None else dataset.labels
    return _Job(run, sampler, times, run.kind.space.encode(dataset.stored), labels)


def _forgets(sampler: Sampler) -> bool:
    """True of samplers with Langevin steps at a level, which leave little of the state that they begin at."""
    corrects = isinstance(sampler, PredictorCorrectorSampler) and not isinstance(sampler.corrector, NoCorrector)
    return corrects or isinstance(sampler, AnnealedLangevinSampler)


def _draw(job: _Job, kept: PartialResults, ranks: Ranks) -> None:
    """Do what is not kept from before, each batch on its process."""
    todo = plan_kept(kept, len(job.batches), ranks)
    with ProgressBar(unit="step", desc="progressive", disable=not ranks.first) as bar:

        def progress(state: StepState) -> None:
            bar.total = (bar.total or 0) + (state.num_steps if state.index == 0 else 0)
            bar.update()

        deal(
            ranks,
            todo,
            lambda unit: kept.encode(int(unit), _done(job, *job.batches[int(unit)], progress)),
            lambda unit, data: kept.keep(int(unit), data),
        )


def _done(job: _Job, what: str, t: float, numbers: list[int], progress: Any) -> Values:
    """The results of a batch: "x0", "x0_hat" and "nfe" of samples; "mse" [images, T] of noised images."""
    run, seed, settings = job.run, job.run.config.seed, job.run.config.progressive
    model, device = run.model, run.device
    if what == "sample":
        classes = None if run.classes is None else torch.tensor(run.classes)
        drawn = draw_progressively(
            model,
            job.sampler,
            run.kind.sample_shape,
            job.times,
            numbers=numbers,
            cond=None if classes is None else classes[torch.tensor(numbers) % len(classes)].to(device),
            seed=seed,
            device=device,
            hooks=[progress],
        )
        return _arrays(x0=drawn.x0, x0_hat=drawn.x0_hat.transpose(0, 1), nfe=torch.tensor(drawn.nfe))
    x0 = job.x0[numbers].to(device)
    cond = None if job.labels is None else job.labels[numbers].to(device)
    if what == "noise":
        states = torch.stack([noised(model.sde, x0, t, numbers=numbers, seed=seed) for t in job.times])
        x0_hat = predictions_along(model, states, job.times, cond=cond)
        return _arrays(mse=_mse(x0_hat, x0).T)
    x_t = noised(model.sde, x0, t, numbers=numbers, seed=seed)
    (x0_hat,) = predictions_along(model, x_t[None], [t], cond=cond)
    shared = draw_shared(
        model,
        job.sampler,
        x_t,
        t,
        num_samples=settings.shared_samples,
        numbers=numbers,
        cond=cond,
        seed=seed,
        hooks=[progress],
    )
    return _arrays(x0=shared.x0, x0_hat=x0_hat, nfe=torch.tensor(shared.nfe))


def _arrays(**tensors: Tensor) -> Values:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def _mse(x0_hat: Tensor, x0: Tensor) -> Tensor:
    """Mean squared errors over the numbers of each image, float64 [T, B]."""
    return (x0_hat.double() - x0.double()).flatten(2).square().mean(2)


def _joined(results: list[Values], name: str) -> Tensor:
    return torch.from_numpy(np.concatenate([one[name] for one in results]))


def _write(job: _Job, kept: PartialResults, folder: Path) -> dict[str, Any]:
    """Write arrays, pictures and, last, the report; print the tables."""
    run, settings = job.run, job.run.config.progressive
    samples = job.of(kept, "sample")
    x0, x0_hat = _joined(samples, "x0"), _joined(samples, "x0_hat").transpose(0, 1)
    shared = {t: job.of(kept, "share", t) for t in settings.share_at}
    report: dict[str, Any] = {"split": settings.split, "num_samples": len(x0), "frechet_of": _numbers(run.kind)}
    report["units"] = run.units
    report |= _curves(job, x0, x0_hat, _joined(job.of(kept, "noise"), "mse")) | _in_common(job, shared)
    report |= {"nfe": max(int(one["nfe"]) for one in samples)} | run.about(run.classes)
    # a report is of the files beside it: it goes first, and comes last
    (folder / "report.json").unlink(missing_ok=True)
    arrays = {"samples": as_array(x0, run.kind), "x0_hat": x0_hat[:, :_MOST_ROWS].numpy()}
    arrays |= {"times": np.asarray(job.times), "share_at": np.asarray(list(shared))}
    if shared:
        arrays |= {
            f"shared_{name}": np.stack([_joined(one, name) for one in shared.values()]) for name in ("x0", "x0_hat")
        }
    save_npz(folder / "progressive.npz", arrays)
    if isinstance(run.kind, ImageKind):
        save_png(folder / "grid.png", _grid(job, x0, x0_hat))
    (folder / "shared.png").unlink(missing_ok=True)
    if shared and isinstance(run.kind, ImageKind):
        save_png(folder / "shared.png", np.concatenate([_block(job, t, one) for t, one in shared.items()]))
    save_progress(folder / "curve.png", report)
    write_json(folder / "report.json", without_nan(report))
    kept.drop()
    print(_table(job, report))
    sys.stdout.flush()
    print(f"wrote {folder / 'report.json'}", file=sys.stderr)
    return report


def _curves(job: _Job, x0: Tensor, x0_hat: Tensor, mse_of_images: Tensor) -> dict[str, Any]:
    """The figures at each time: of samples as they were predicted, and of noised images."""
    sde, variances, data = job.run.model.sde, variances_of(job.x0), moments_of(job.x0.flatten(1))
    left_open = [1 - gaussian_correlation(sde, t, variances=variances) for t in job.times]
    per_number = float(variances.sum()) / job.x0[0].numel()
    found: dict[str, Any] = {"num_images": len(mse_of_images), "times": list(job.times)}
    for name, per_image in {"rmse_to_sample": _mse(x0_hat, x0), "rmse_to_image": mse_of_images.T}.items():
        figures = [root_of_mean(one) for one in per_image]
        found |= {name: [one["value"] for one in figures], f"{name}_stderr": [one["stderr"] for one in figures]}
    found["gaussian_rmse"] = [math.sqrt(share * per_number) for share in left_open]
    distances = [_frechet(one, data) for one in (*x0_hat, x0)]
    values, errors = [one.value for one in distances], [one.stderr for one in distances]
    found |= {"frechet": values[:-1], "frechet_stderr": errors[:-1]}
    return found | {"frechet_of_samples": values[-1], "frechet_of_samples_stderr": errors[-1]}


def _numbers(kind: AnyKind) -> str:
    """The numbers of a sample, in a word."""
    if not isinstance(kind, ImageKind):
        return "vectors"
    return "pixels" if kind.latents is None else "latents"


def _frechet(points: Tensor, data: Moments) -> Estimate:
    """The Frechet distance of images to the data, pixel by pixel; its error is that of the images alone."""
    flat = points.double().flatten(1)

    def distance(some: Tensor) -> float:
        return frechet_of_moments(moments_of(some), data)

    # without a block two must be left
    return (
        block_jackknife(distance, flat, num_blocks=min(_BLOCKS, len(flat)))
        if len(flat) > 2
        else Estimate(distance(flat), math.nan)
    )


def _in_common(job: _Job, shared: dict[float, list[Values]]) -> dict[str, Any]:
    """The share of variance that samples have in common, at each time."""
    settings, mean, variances = job.run.config.progressive, job.x0.double().mean(0), variances_of(job.x0)
    figures = [ratio_of_means(*common_variance(_joined(one, "x0"), mean).values()) for one in shared.values()]
    of_gaussian = [gaussian_correlation(job.run.model.sde, t, variances=variances) for t in shared]
    return {
        "share_at": list(shared),
        "shared_images": settings.shared_images,
        "shared_samples": settings.shared_samples,
        "shared_variance": [one["value"] if one else math.nan for one in figures],
        "shared_variance_stderr": [one["stderr"] if one else math.nan for one in figures],
        "gaussian_shared_variance": of_gaussian,
        "shared_nfe": [max(int(batch["nfe"]) for batch in one) for one in shared.values()],
    }


def _shown(job: _Job) -> Callable[[Tensor], np.ndarray]:
    """Pixels of x0."""
    kind = job.run.kind
    assert isinstance(kind, ImageKind)
    return kind.picture_space.pixels


def _grid(job: _Job, x0: Tensor, x0_hat: Tensor) -> np.ndarray:
    """The first samples, a row each, as they are predicted at each time, and at last."""
    pixels = _shown(job)
    columns = {f"t = {t:.3g}": pixels(one[:_MOST_ROWS]) for t, one in zip(job.times, x0_hat, strict=True)}
    return restoration_picture(columns | {"sample": pixels(x0[:_MOST_ROWS])})


def _block(job: _Job, t: float, shared: list[Values]) -> np.ndarray:
    """Images, what is predicted of their states at a time, and samples that share these, a row an image."""
    pixels, x0 = _shown(job), _joined(shared, "x0")[:_MOST_ROWS]
    columns = {f"t = {t:.3g}": pixels(job.x0[: len(x0)]), "predicted": pixels(_joined(shared, "x0_hat")[: len(x0)])}
    return restoration_picture(
        columns | {f"sample {j + 1}": pixels(x0[:, j]) for j in range(min(x0.shape[1], _MOST_SHARED))}
    )


def _table(job: _Job, report: dict[str, Any]) -> str:
    """The figures in lines."""
    run, config = job.run, job.run.config
    lines = [
        f"{report['num_samples']} samples of step {run.step} by {config.sampling.sampler}, {report['nfe']} network "
        f"calls each; {report['num_images']} images of {config.data.dataset} {report['split']}",
        f"errors in units of {run.units}; Frechet distance of "
        f"{report['frechet_of']}, not of Inception features, from {report['num_samples']} samples to all "
        f"{len(job.x0)} {'images' if isinstance(run.kind, ImageKind) else 'vectors'}",
        "       t    RMSE to sample     RMSE to image  Gaussian             Frechet",
    ]

    def cell(name: str, k: int) -> str:
        return plus_minus(report[name][k], report[f"{name}_stderr"][k])

    for k, t in enumerate(job.times):
        to_sample, to_image, distance = (cell(name, k) for name in ("rmse_to_sample", "rmse_to_image", "frechet"))
        lines.append(f"{t:8.4g} {to_sample:>17} {to_image:>17} {report['gaussian_rmse'][k]:9.4f} {distance:>19}")
    of_samples = plus_minus(report["frechet_of_samples"], report["frechet_of_samples_stderr"])
    lines.append(f"  sample {'':17} {'':17} {'':9} {of_samples:>19}")
    if report["share_at"]:
        count, images = report["shared_samples"], report["shared_images"]
        lines += [
            f"{count} samples that share x_t, of each of {images} images",
            "       t  variance in common  Gaussian",
        ]
    for k, t in enumerate(report["share_at"]):
        lines.append(f"{t:8.4g} {cell('shared_variance', k):>19} {report['gaussian_shared_variance'][k]:9.4f}")
    return "\n".join(lines)
