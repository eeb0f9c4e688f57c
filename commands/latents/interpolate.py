"""Images between two others, through their latents: ``--mode interpolate``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import ImageKind, LevelSpace, read_given_images
from evaluation.table import without_nan
from experiment.build import pick_device
from experiment.config import Config
from experiment.config.checks import check_config
from experiment.pictures import array_shape, as_array, save_png
from experiment.workdir import check_for_use, save_npz, write_json
from runtime.locks import locked
from runtime.memory import explain_out_of_memory
from runtime.processes.ranks import ALONE
from runtime.terminal import ProgressBar
from samplers import ProbabilityFlowSampler, StepState
from tasks.latents import Interpolation, interpolate_images
from tasks.restoration import restoration_picture

from ..sample import SampledRun, check_folder, load_sampled
from ..subject import load_split, refuse_untold
from .started import grid_sampler_of

_MOST_ROWS = 16  # of a time, in the picture


def interpolate_pairs(config: Config, workdir: Path, *, output: str = "", input: str = "") -> dict[str, Any]:
    """Go from image to image; write ``grid.png``, ``interpolated.npz`` and, last, ``report.json``.

    Pair k is the same whatever the other pairs and the batch size are, up to rounding.

    Args:
        config: The config the work directory was trained with; ``interpolate`` and ``sampling`` may differ.
        workdir: The work directory.
        output: The folder to write in; "" for ``interpolated`` in the work directory.
        input: An image file, a folder or an ``.npz`` file of the images; "" for those of a split.

    Returns:
        The report.

    Raises:
        ValueError: If the config does not fit the work directory, or images, times, weights and sampler each other.
        FloatingPointError: If the sampler's state stops being finite.
        MemoryError: If the memory does not suffice.
        OSError: If the folder cannot be written in.
        RuntimeError: If a solver gave up, or another command writes there.
    """
    check_config(config)
    settings, folder = config.interpolate, Path(output) if output else workdir / "interpolated"
    if settings.latents == "flow":
        config = config.copy_and_resolve_references()
        # with bounds of x0 the flow would be no bijection
        config.sampling.update({"clip_x0": False, "threshold_x0": 0.0})
    with explain_out_of_memory("sampling.batch_size", config.sampling.batch_size):
        check_for_use(workdir, config)
        check_folder(folder)
        run = load_sampled(config, workdir, pick_device(config), ALONE)
        refuse_untold(run.config, run.kind, "interpolate")
        ends = _pairs(run, input)
        cond = _classes_of(run, ends.labels)
        with locked(folder, "interpolate", flag="--output"):
            run.say_notes()
            times = _times(run)
            found = _interpolated(run, ends.x0, cond, times)
            return _write(run, ends, cond, times, found, folder)


def _times(run: SampledRun) -> tuple[float, ...]:
    """The times of the latents, at each of which the sampler can start."""
    sampler = grid_sampler_of(run, "interpolate")
    times = run.config.interpolate.times or (float(sampler.times(run.model.sde)[0]),)
    for t in times:
        sampler.starting_at(run.model.sde, t)
    return times


@dataclass(frozen=True)
class _Ends:
    """Pairs of images.

    Attributes:
        x0: Both ends as networks see them, [2, P, ...].
        labels: Their classes, int64 [2, P], where they are known.
        origin: Where they are from, for the report.
    """

    x0: Tensor
    labels: Tensor | None
    origin: dict[str, Any]


def _pairs(run: SampledRun, given: str) -> _Ends:
    """The images that ``interpolate.images`` names, two by two."""
    settings, kind = run.config.interpolate, run.kind
    if given and not kind.of_pixels:
        raise ValueError("--input of --mode interpolate is of pixels, got a model of vectors or latents; leave it out")
    if given:
        space = LevelSpace(256)
        of_files = ImageKind(kind.image_shape, space.num_levels)  # pyright: ignore[reportArgumentType]
        stored, labels = read_given_images(Path(given), of_files, what="images to interpolate")
        origin = {"input": given}
    else:
        dataset = load_split(run.config, run.workdir, settings.split, ALONE)
        space, stored, labels, origin = kind.space, dataset.stored, dataset.labels, {"split": settings.split}
    chosen = torch.tensor(settings.images, dtype=torch.int64)
    if not len(chosen) or len(chosen) % 2:
        raise ValueError(f"interpolate.images must be pairs, got {len(chosen)} numbers; set two a pair, as in 0,1,4,7")
    if not 0 <= int(chosen.min()) <= int(chosen.max()) < len(stored):
        raise ValueError(
            f"interpolate.images must be in 0 .. {len(stored) - 1}, the images of {given or settings.split}, got "
            f"{','.join(map(str, settings.images))}; choose others"
        )
    chosen = chosen.view(-1, 2).T
    x0 = space.encode(stored[chosen.flatten()]).unflatten(0, chosen.shape)
    return _Ends(x0, None if labels is None else labels[chosen], origin)


def _classes_of(run: SampledRun, labels: Tensor | None) -> Tensor | None:
    """The class that each pair is told as: those of ``sampling.classes`` in turn, else the one that both ends have."""
    if run.classes is None:
        return None
    num_pairs = len(run.config.interpolate.images) // 2
    if run.config.sampling.classes:
        return torch.tensor(run.classes)[torch.arange(num_pairs) % len(run.classes)]
    if labels is None:
        raise ValueError("the model is told classes, which --input does not have; set sampling.classes=3,7")
    if not 0 <= int(labels.min()) <= int(labels.max()) < run.kind.num_classes:
        raise ValueError(
            f"labels must be in 0 .. {run.kind.num_classes - 1}, got {labels.flatten().tolist()}; set sampling.classes"
        )
    mixed = (labels[0] != labels[1]).nonzero()
    if len(mixed):
        k = int(mixed[0])
        raise ValueError(
            f"the model is told one class a pair, got {int(labels[0, k])} and {int(labels[1, k])}; choose two images "
            "of one class, or set sampling.classes=3"
        )
    return labels[0]


def _interpolated(run: SampledRun, x0: Tensor, cond: Tensor | None, times: tuple[float, ...]) -> list[Interpolation]:
    """The interpolations at each time, in batches of whole pairs."""
    settings, sampler = run.config.interpolate, grid_sampler_of(run, "interpolate")
    encoder = None
    if settings.latents == "flow":
        encoder = sampler if isinstance(sampler, ProbabilityFlowSampler) else ProbabilityFlowSampler()
    stops, found = _stops(run.config), []
    size = max(1, run.config.sampling.batch_size // len(stops))
    batches = torch.arange(x0.shape[1]).split(size)
    with ProgressBar(unit="step", desc="interpolate") as bar:

        def progress(state: StepState) -> None:
            bar.total = (bar.total or 0) + (state.num_steps if state.index == 0 else 0)
            bar.update()

        for t in times:
            parts = [
                interpolate_images(
                    run.model,
                    sampler,
                    x0[:, pairs].to(run.device),
                    t,
                    stops,
                    way=_way(run.config),
                    encoder=encoder,
                    cond=None if cond is None else cond[pairs].to(run.device),
                    pairs=pairs.tolist(),
                    seed=run.config.seed,
                    hooks=[progress],
                )
                for pairs in batches
            ]
            x_t, drawn = (torch.cat([getattr(one, name) for one in parts], 1).cpu() for name in ("x_t", "x0"))
            found.append(Interpolation(x_t, drawn, max(one.nfe for one in parts)))
    return found


def _stops(config: Config) -> tuple[float, ...]:
    """The weights, with both ends."""
    return tuple(sorted({0.0, *config.interpolate.weights, 1.0}))


def _way(config: Config) -> str:
    way = config.interpolate.way
    return {"flow": "slerp", "q": "lerp"}[config.interpolate.latents] if way == "auto" else way


def _write(
    run: SampledRun,
    ends: _Ends,
    cond: Tensor | None,
    times: tuple[float, ...],
    found: list[Interpolation],
    folder: Path,
) -> dict[str, Any]:
    """Write arrays, picture and, last, the report; print a line for each time."""
    settings, stops = run.config.interpolate, _stops(run.config)
    x0, x_t = (torch.stack([getattr(one, name) for one in found]).transpose(1, 2) for name in ("x0", "x_t"))
    samples = as_array(x0.flatten(0, 2), run.kind).reshape(*x0.shape[:3], *array_shape(run.kind))
    pairs = as_array(ends.x0.transpose(0, 1).flatten(0, 1), run.kind).reshape(-1, 2, *array_shape(run.kind))
    back = (x0[:, :, [0, -1]].double() - ends.x0.transpose(0, 1).double()).flatten(1).square().mean(1).sqrt()
    squares = x_t.double().flatten(3).square().mean((1, 3))
    alpha, sigma = run.model.sde.alpha_sigma(torch.tensor(times, dtype=torch.float64))
    of_q = (alpha**2 * float(ends.x0.double().square().mean()) + sigma**2).tolist()
    report: dict[str, Any] = {"images": list(settings.images), "latents": settings.latents, "way": _way(run.config)}
    report |= ends.origin | {"stops": list(stops), "times": list(times), "nfe": [one.nfe for one in found]}
    report |= {"units": run.units, "round_trip_rmse": back.tolist()}
    report |= {"latents_mean_square": squares.tolist(), "q_mean_square": of_q}
    report |= run.about(None if cond is None else cond.tolist())
    # a report is of the files beside it: it goes first, and comes last
    (folder / "report.json").unlink(missing_ok=True)
    arrays = {"samples": samples, "ends": pairs, "x0": x0.numpy(), "latents": x_t.numpy()}
    arrays |= {"stops": np.asarray(stops), "times": np.asarray(times)}
    save_npz(folder / "interpolated.npz", arrays)
    if isinstance(run.kind, ImageKind):
        save_png(folder / "grid.png", np.concatenate([_picture(pairs, block, stops) for block in samples]))
    write_json(folder / "report.json", without_nan(report))
    kind_of = f"{settings.latents} latents by {_way(run.config)}"
    print(f"{len(pairs)} pairs of step {run.step}, {kind_of}, {run.config.sampling.sampler}; mean squares of latents")
    print(f"errors in units of {run.units}")
    print("     t   NFE  round trip RMSE   ends  middle  of q")
    for k, t in enumerate(times):
        edge, middle = (squares[k, [0, -1]].mean(), squares[k, len(stops) // 2])
        print(f"{t:6.4g} {found[k].nfe:5d} {back[k]:16.4f} {edge:6.3f}  {middle:6.3f} {of_q[k]:5.3f}")
    sys.stdout.flush()
    print(f"wrote {folder / 'report.json'}", file=sys.stderr)
    return report


def _picture(pairs: np.ndarray, block: np.ndarray, stops: tuple[float, ...]) -> np.ndarray:
    """The images of a time, a row a pair, under the weights of their stops."""
    columns = {"first": pairs[:_MOST_ROWS, 0]}
    columns |= {f"w = {w:.3g}": block[:_MOST_ROWS, k] for k, w in enumerate(stops)}
    return restoration_picture(columns | {"second": pairs[:_MOST_ROWS, 1]})
