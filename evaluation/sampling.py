"""Samples as a picture and as numbers: ``--mode sample``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from models import ScoreModel
from samplers import Sampler, StepState
from sde_lib import NoiseStreams
from training.build import bound_x0, build_sampler, pick_device
from training.checks import check_config
from training.config import Config
from training.images import image_grid, save_png, to_uint8
from training.in_turn import load_in_turn, load_same_trained, pick_together
from training.lock import locked
from training.logging import say
from training.memory import says_which_knobs
from training.plugins import say_changed_plugins
from training.precision import fast_inference, forward_flops, pick_mode
from training.prior import say_lost_signal
from training.ranks import Ranks
from training.trained import trained_kind
from training.workdir import check_for_use, save_npz


def draw_batches(
    sampler: Sampler,
    model: ScoreModel,
    *,
    sample_shape: tuple[int, ...],
    num_samples: int,
    batch_size: int,
    seed: int = 0,
    num_classes: int | None = None,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[int, Tensor, int]]:
    """Draw samples; sample k comes from stream (seed, k), at any batch size, whichever process draws it.

    Args:
        sampler: The sampler.
        model: The model.
        sample_shape: Shape of one sample.
        num_samples: How many.
        batch_size: How many at a time.
        seed: Seed of the run.
        num_classes: Of a conditional model: sample k is of class k modulo num_classes.
        device: Where the model is.
        rank: Which of the processes this is: it draws batches rank, rank + world, ...
        world: Number of processes.

    Yields:
        The number of a batch, its samples [b, ...] on the CPU, and the network calls it took.
    """
    mine = range(rank, -(-num_samples // batch_size), world)
    with tqdm(total=None, unit="step", desc="sample", dynamic_ncols=True, disable=rank != 0) as bar:

        def progress(state: StepState) -> None:
            bar.total = len(mine) * state.num_steps
            bar.update()

        for k in mine:
            index = range(k * batch_size, min((k + 1) * batch_size, num_samples))
            noise = NoiseStreams(seed, index)
            x_T = sampler.prior_sample(model.sde, sample_shape, noise, device=device)
            cond = labels_of(index, num_classes).to(device) if num_classes else None
            result = sampler.sample(model, x_T, cond=cond, noise=noise, hooks=[progress])
            yield k, result.x0.cpu(), result.nfe


def labels_of(index: range, num_classes: int | None) -> Tensor:
    """Classes of samples, int64 [n]: k modulo num_classes, or zeros without classes."""
    samples = torch.arange(index.start, index.stop)
    return samples % num_classes if num_classes else torch.zeros_like(samples)


def draw(
    sampler: Sampler,
    model: ScoreModel,
    *,
    sample_shape: tuple[int, ...],
    num_samples: int,
    batch_size: int,
    seed: int = 0,
    num_classes: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor, int]:
    """Draw samples in this process; see ``draw_batches``.

    Returns:
        Samples [N, ...] on the CPU, their classes [N] (zeros if unconditional), and network calls a batch.
    """
    batches = draw_batches(
        sampler,
        model,
        sample_shape=sample_shape,
        num_samples=num_samples,
        batch_size=batch_size,
        seed=seed,
        num_classes=num_classes,
        device=device,
    )
    found = list(batches)
    x0 = torch.cat([samples for _, samples, _ in found])
    return x0, labels_of(range(num_samples), num_classes), max(nfe for _, _, nfe in found)


def sample(config: Config, workdir: Path) -> None:
    """Sample from the newest good checkpoint; write ``samples/grid.png`` and ``samples/samples.npz``.

    Under torchrun the batches are dealt to its processes; the samples are the same, but for rounding where processes
    compute on other devices.

    Args:
        config: The config the work directory was trained with; ``sampling`` may differ.
        workdir: The work directory.

    Raises:
        ValueError: If the config does not fit the work directory, or there is no good checkpoint.
        FloatingPointError: If the sampler's state stops being finite.
        MemoryError: If the memory does not suffice.
        RuntimeError: If another process of the job failed, or another command samples there.
    """
    check_config(config)
    with (
        Ranks.from_environment() as ranks,
        says_which_knobs("sampling.batch_size", config.sampling.batch_size),
        contextlib.ExitStack() as held,
    ):
        check_for_use(workdir, config)
        device = ranks.device(pick_device(config))
        sampler = build_sampler(config)
        kind = load_in_turn(ranks, "data", lambda: trained_kind(config, workdir))
        trained, step = load_same_trained(ranks, config, workdir, kind, device)
        settings = config.sampling
        work = settings.num_samples * settings.num_steps * forward_flops(trained.backbone, kind.image_shape)
        precision, compiled = settings.precision, settings.compile
        mode = pick_together(
            ranks, partial(pick_mode, precision, compiled, device, backbone=trained.backbone, work=work)
        )
        if ranks.first:
            held.enter_context(locked(workdir, "sample"))
            for reason in mode.reasons:
                say(reason)
            say_changed_plugins(workdir, config.plugins)
            say_lost_signal(config, trained.sde)
        num_classes = kind.num_classes if config.model.class_conditional else None
        batches = draw_batches(
            sampler,
            bound_x0(config, fast_inference(trained, mode)),
            sample_shape=kind.image_shape,
            num_samples=settings.num_samples,
            batch_size=settings.batch_size,
            seed=config.seed,
            num_classes=num_classes,
            device=device,
            rank=ranks.rank,
            world=ranks.world,
        )
        drawn = ((k, to_uint8(x0, kind.num_levels), nfe) for k, x0, nfe in batches)
        images, nfe = _gather(ranks, drawn, -(-settings.num_samples // settings.batch_size))
        if not ranks.first:
            return
        labels = labels_of(range(settings.num_samples), num_classes)
        save_npz(
            workdir / "samples" / "samples.npz", {"arr_0": images} | ({"arr_1": labels.numpy()} if num_classes else {})
        )
        save_png(workdir / "samples" / "grid.png", image_grid(images[:256]))
        print(
            f"{len(images)} samples of step {step} by {settings.sampler}, {nfe} network calls each; "
            f"wrote {workdir / 'samples' / 'grid.png'} and samples.npz",
            file=sys.stderr,
        )


def _gather(ranks: Ranks, drawn: Iterator[tuple[int, np.ndarray, int]], num_batches: int) -> tuple[np.ndarray, int]:
    """The images of all processes in order, uint8 [N, H, W, C], and network calls a batch, on rank 0."""
    mine: dict[int, tuple[np.ndarray, int]] = {}
    for k, images, nfe in drawn:
        mine[k] = images, nfe
        if not ranks.first:
            head = json.dumps({"shape": images.shape, "nfe": nfe}).encode()
            ranks.post(f"samples/{k}", head + b"\n" + images.tobytes())
        ranks.check()
    if not ranks.first:
        return np.empty(0, dtype=np.uint8), 0

    def complete() -> bool:
        for k in range(num_batches):
            data = None if k in mine else ranks.collect(f"samples/{k}")
            if data is not None:
                head, pixels = data.split(b"\n", 1)
                said = json.loads(head)
                mine[k] = np.frombuffer(pixels, dtype=np.uint8).reshape(said["shape"]), said["nfe"]
        return len(mine) == num_batches

    ranks.wait_until(complete)
    parts = [mine[k] for k in range(num_batches)]
    return np.concatenate([images for images, _ in parts]), max(nfe for _, nfe in parts)
