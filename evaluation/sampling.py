"""Samples as a picture and as numbers: ``--mode sample``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data import ImageDataset
from models import ScoreModel
from samplers import Sampler, StepState
from sde_lib import NoiseStreams
from training.build import bound_x0, build_dataset, build_sampler, check_config, pick_device
from training.config import Config
from training.images import image_grid, save_png, to_uint8
from training.lock import locked
from training.state import load_trained
from training.workdir import check_for_use, save_npz


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
    """Draw samples; sample k comes from stream (seed, k), at any batch size.

    Args:
        sampler: The sampler.
        model: The model.
        sample_shape: Shape of one sample.
        num_samples: How many.
        batch_size: How many at a time.
        seed: Seed of the run.
        num_classes: Of a conditional model: sample k is of class k modulo num_classes.
        device: Where the model is.

    Returns:
        Samples [N, ...] on the CPU, their classes [N] (zeros if unconditional), and network calls a batch.
    """
    parts, nfe = [], 0
    labels = torch.arange(num_samples) % num_classes if num_classes else torch.zeros(num_samples, dtype=torch.int64)
    batches = -(-num_samples // batch_size)
    with tqdm(total=None, unit="step", desc="sample", dynamic_ncols=True) as bar:

        def progress(state: StepState) -> None:
            bar.total = batches * state.num_steps
            bar.update()

        for first in range(0, num_samples, batch_size):
            index = range(first, min(first + batch_size, num_samples))
            noise = NoiseStreams(seed, index)
            x_T = model.sde.prior_sample(sample_shape, noise, device=device)
            cond = labels[index.start : index.stop].to(device) if num_classes else None
            result = sampler.sample(model, x_T, cond=cond, noise=noise, hooks=[progress])
            parts.append(result.x0.cpu())
            nfe = max(nfe, result.nfe)
    return torch.cat(parts), labels, nfe


def sample(config: Config, workdir: Path) -> None:
    """Sample from the newest good checkpoint; write ``samples/grid.png`` and ``samples/samples.npz``.

    Args:
        config: The config the work directory was trained with; ``sampling`` may differ.
        workdir: The work directory.

    Raises:
        ValueError: If the config does not fit the work directory, or there is no good checkpoint.
        FloatingPointError: If the sampler's state stops being finite.
        RuntimeError: If another command samples there.
    """
    check_config(config)
    check_for_use(workdir, config)
    device = pick_device(config)
    sampler = build_sampler(config)
    dataset = build_dataset(config, "train")
    model, step = load_trained(config, workdir, dataset, device)
    with locked(workdir, "sample"):
        _sample(config, workdir, sampler, dataset, model, step, device)


def _sample(
    config: Config,
    workdir: Path,
    sampler: Sampler,
    dataset: ImageDataset,
    model: ScoreModel,
    step: int,
    device: torch.device,
) -> None:
    settings = config.sampling
    x0, labels, nfe = draw(
        sampler,
        bound_x0(config, model),
        sample_shape=dataset.image_shape,
        num_samples=settings.num_samples,
        batch_size=settings.batch_size,
        seed=config.seed,
        num_classes=dataset.num_classes if config.model.class_conditional else None,
        device=device,
    )
    images = to_uint8(x0, dataset.num_levels)
    arrays = {"arr_0": images} | ({"arr_1": labels.numpy()} if config.model.class_conditional else {})
    save_npz(workdir / "samples" / "samples.npz", arrays)
    save_png(workdir / "samples" / "grid.png", image_grid(images[:256]))
    print(
        f"{len(images)} samples of step {step} by {settings.sampler}, {nfe} network calls each; "
        f"wrote {workdir / 'samples' / 'grid.png'} and samples.npz",
        file=sys.stderr,
    )
