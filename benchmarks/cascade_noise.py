"""Quality of a cascade's samples against the noise that its later stages are told: one table.

python -m benchmarks.cascade_noise --workdir runs/cascade/digits_2_4_8 --stages digits_2,digits_4_sr,digits_sr
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from evaluation.quality import Estimate
from experiment import load_run
from samplers import make_sampler
from tasks import Cascade, Stage

from .options import run_benchmark, whole
from .quality import Quality
from .super_resolution import error_of
from .trained import load_images

LEVELS = (0.0, 0.02, 0.05, 0.1)


def draw(cascade: Cascade, num_samples: int, batch_size: int) -> tuple[list[Tensor], int]:
    """Images of all stages, [N, C, H, W] each, and network calls of a sample."""
    index = [range(k, min(k + batch_size, num_samples)) for k in range(0, num_samples, batch_size)]
    batches = [cascade.sample(some) for some in index]
    return [torch.cat(parts) for parts in zip(*(batch.x0 for batch in batches), strict=True)], batches[0].nfe


def disagreement(small: Tensor, large: Tensor, stages: Sequence[Stage]) -> Estimate:
    """Root mean square of A x - y, of images that are decoded, in model space, whose range is 2."""
    before, last = (stage.kind for stage in stages[-2:])
    seen = stages[-1].conditions.images[0].observe(last.space.decode(large), last)
    return error_of(before.space.encode(seen), before.space.encode(before.space.decode(small)))


def cascades(stages: Sequence[Stage]) -> list[tuple[float, Cascade]]:
    """The cascades that are compared, with their noise, as far as the stages were trained with it."""
    most = min(stage.most_noise_t for stage in stages[1:])
    return [
        (s, Cascade(stages, noise_t=[s] * (len(stages) - 1), truncated=truncated))
        for truncated in (False, True)
        for s in (LEVELS[1:] if truncated else LEVELS)
        if s <= most
    ]


def rows(
    compared: Sequence[tuple[float, Cascade]], quality: Quality, num_samples: int, batch_size: int
) -> Iterator[str]:
    """The table, a row at a time; both distances are squared, sliced Wasserstein's times 1000."""
    yield "| `noise_t` | truncated | NFE | Fréchet | sliced Wasserstein | rms of A x - y |\n|---|---|---|---|---|---|"
    frechet, sliced = quality.floor
    yield f"| held-out images | | | {_cell(frechet, 1, 2)} | {_cell(sliced, 1000, 1)} | 0 |"
    for s, cascade in compared:
        images, nfe = draw(cascade, num_samples, batch_size)
        frechet, sliced = quality(images[-1])
        off = "" if cascade.truncated else _cell(disagreement(images[-2], images[-1], cascade.stages), 1, 3)
        said = "yes" if cascade.truncated else "no"
        yield f"| {s:g} | {said} | {nfe} | {_cell(frechet, 1, 2)} | {_cell(sliced, 1000, 1)} | {off} |"


def _cell(estimate: Estimate, scale: int, digits: int) -> str:
    return f"{scale * estimate.value:.{digits}f} ± {scale * estimate.stderr:.{digits}f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample, measure, print."""
    parser = argparse.ArgumentParser(description="Quality of a cascade against its noise.", allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, required=True, help="the cascade's")
    parser.add_argument("--stages", required=True, help="names of its folders, from the smallest images on")
    parser.add_argument("--num-steps", type=whole(1), default=50, help="of DDIM, in each stage")
    parser.add_argument("--num-images", type=whole(0), default=0, help="of each split; 0: all")
    parser.add_argument("--num-samples", type=whole(1), default=360, help="a multiple of the held-out images")
    parser.add_argument("--batch-size", type=whole(1), default=120)
    args = parser.parse_args(arguments)
    names = args.stages.split(",")
    runs = [load_run(args.workdir / name, device="cpu") for name in names]
    sampler = make_sampler("ddim", num_steps=args.num_steps)
    compared = cascades([Stage.of(run, sampler, name=name) for name, run in zip(names, runs, strict=True)])
    train, held_out = (load_images(runs[-1].config, split) for split in ("train", "test"))
    if args.num_images:
        train, held_out = (split.subset(min(args.num_images, len(split))) for split in (train, held_out))
    if args.num_samples % len(held_out):
        raise SystemExit(
            f"--num-samples must be a multiple of {len(held_out)}, the held-out images; got {args.num_samples}"
        )
    for row in rows(compared, Quality(train, held_out), args.num_samples, args.batch_size):
        print(row, flush=True)


if __name__ == "__main__":
    run_benchmark(main)
