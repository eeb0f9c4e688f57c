"""Clips of moving digits that a run drew, read from their pixels, and the bits of clips with and without given frames.

    python main.py --config configs/video/moving_digits_predict.py --mode sample
    python -m benchmarks.motion --config configs/video/moving_digits_predict.py

Prints a table: of drawn clips, and of as many of the test split, the share that shows one digit throughout, and the
distance from the nearest way that a moving digit can take; frames that were given count as the first ones. Of a run
that is told frames, also the bound of the others in bits/dim, given them and by the null condition.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.options import run_benchmark, whole
from benchmarks.paired_bits import image_bits
from benchmarks.trained import add_run, load_images, load_named_run
from data import ImageDataset, VideoDataset, load_dataset
from data.sources.moving_digits import FASTEST
from evaluation.motion import DigitReader, path_residual, tracks_of, train_digit_reader
from experiment import TrainedRun
from experiment.config import data_root, parse_options
from experiment.workdir import default_workdir
from models import Condition


def motion_figures(clips: Tensor, reader: DigitReader, *, fastest: int) -> dict[str, float]:
    """Figures of clips, uint8 [N, F, H, W]: means over those without a black frame, but for "identity".

    Returns:
        "identity", the share of clips that show one digit; "black", that of clips with a black frame; "residual", see
        ``path_residual``, in pixels, its mean, and "half_pixel", the share of clips below half a pixel.
    """
    residual = path_residual(tracks_of(clips), room=clips.shape[-1] - reader.side, fastest=fastest)
    black = residual.isnan()
    return {
        "identity": float(reader.keeps_identity(clips).double().mean()),
        "black": float(black.double().mean()),
        "residual": float(residual[~black].mean()),
        "half_pixel": float((residual < 0.5).double().mean()),
    }


def drawn_clips(folder: Path, held_out: VideoDataset, num_levels: int) -> Tensor:
    """The clips of ``samples.npz``, sample k after the frames of test clip k that it was given; uint8 [N, F, H, W].

    Raises:
        ValueError: If there are none.
    """
    path = folder / "samples.npz"
    if not path.is_file():
        raise ValueError(f"{path} is not there; run --mode sample first")
    pixels = torch.from_numpy(np.load(path)["arr_0"][..., 0])
    drawn = (pixels.double() * ((num_levels - 1) / 255)).round().to(torch.uint8)
    if held_out.paired is None:
        return drawn
    given = held_out.paired[torch.arange(len(drawn)) % len(held_out), 0]
    return torch.cat((given, drawn), 1)


def bits_table(
    run: TrainedRun, held_out: VideoDataset, *, steps: int, batch_size: int
) -> dict[str, tuple[float, float]]:
    """Bits/dim of the frames that are not given, with given ones and by the null condition: means and their errors."""

    def without(cond: Condition | Tensor | None) -> Condition:
        assert isinstance(cond, Condition)
        return cond.without()

    found = {}
    for name, told in (("given", lambda cond: cond), ("not given", without)):
        bits = image_bits(run, held_out, told=told, steps_per_image=steps, batch_size=batch_size) / held_out.num_dims
        found[name] = float(bits.mean()), float(bits.std() / len(bits) ** 0.5)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, measure, print."""
    parser = argparse.ArgumentParser(description="Motion and identity of drawn clips.", allow_abbrev=False)
    add_run(parser)
    parser.add_argument("--clips", type=whole(2), default=100, help="test clips whose bits are measured")
    parser.add_argument("--steps", type=whole(1), default=20, help="terms of the bound of each")
    args = parser.parse_args(arguments)
    run = load_named_run(args)
    held_out = load_images(run.config, "test")
    if not isinstance(held_out, VideoDataset) or held_out.name != "moving_digits":
        raise ValueError(f"the benchmark is of moving_digits, got {held_out.name}; name a run of configs/video")
    base = parse_options(run.config.data.options).get("base", "digits")
    root = data_root(run.config)
    digits = [load_dataset(base, root=root, split=split) for split in ("train", "test")]
    reader = train_digit_reader(*[one for one in digits if isinstance(one, ImageDataset)])
    workdir = Path(args.workdir or default_workdir(args.config))
    drawn = drawn_clips(workdir / "samples", held_out, reader.num_levels)
    true = held_out.images[: len(drawn), 0]
    if held_out.paired is not None:
        true = torch.cat((held_out.paired[: len(drawn), 0], true), 1)
    print(f"step {run.step}, {len(drawn)} clips; reader {reader.accuracy:.1%} right on still test digits\n")
    print("| clips | one digit | black frame | residual, pixels | below 0.5 |\n|---|---|---|---|---|")
    half = true.shape[1] // 2
    cut = torch.cat((true[:, :half], true.roll(1, 0)[:, half:]), 1)
    for name, clips in (("drawn", drawn), ("test", true), ("halves of two test clips", cut)):
        one = motion_figures(clips, reader, fastest=FASTEST[base])
        print(
            f"| {name} | {one['identity']:.1%} | {one['black']:.1%} | {one['residual']:.2f} | {one['half_pixel']:.1%} |"
        )
    if held_out.paired is not None:
        few = held_out.subset(min(args.clips, len(held_out)))
        bits = bits_table(run, few, steps=args.steps, batch_size=run.config.eval.batch_size)
        print("\n| frames | bits/dim of the others |\n|---|---|")
        for name, (mean, error) in bits.items():
            print(f"| {name} | {mean:.4f} ± {error:.4f} |")
        print(f"\ngiven frames save {1 - bits['given'][0] / bits['not given'][0]:.1%} of the bits")


if __name__ == "__main__":
    run_benchmark(main)
