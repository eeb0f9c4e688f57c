"""Super-resolution against the truth: ``python -m benchmarks.super_resolution``.

Draws several images of each held-out image's small one, with growing noise on that, and measures: does the draw agree
with the small image; is the mean of the draws near to the truth; and is their spread as large as the mean's error. All
are in units of the grey range.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.options import listed, output, run_benchmark, whole
from benchmarks.timing import table
from benchmarks.trained import add_run, load_images, load_named_run, unguided
from data import ImageDataset
from evaluation.quality import Estimate
from evaluation.samples.sample_batch import draw_batch
from evaluation.samples.sample_conditions import SampleConditions
from experiment import TrainedRun
from experiment.build import build_sampler
from experiment.config import Config
from experiment.pictures import image_grid, save_png
from experiment.workdir import write_json
from tasks.restoration.metrics import ensemble_figures, errors_of, root_of_mean

RESULT = Path(__file__).parent / "results" / "super_resolution.json"
SHOWN_IMAGES, SHOWN_DRAWS = 8, 4


@dataclass(frozen=True)
class Ensemble:
    """Measures of several draws x_1 .. x_m of each image's law given what was observed of it.

    Attributes:
        mean_error: Root mean square of the draws' mean minus the truth.
        single_error: Root mean square of one draw minus the truth.
        spread_skill: sqrt((m + 1) / m * mean variance of the draws) / ``mean_error``. Where draws and truth have one
            law, E var = s^2 and E (mean - truth)^2 = s^2 (1 + 1 / m), so that it is 1; below 1 the draws are too sure.
    """

    mean_error: Estimate
    single_error: Estimate
    spread_skill: Estimate


def ensemble(draws: Float[Tensor, "images draws *shape"], truth: Float[Tensor, "images *shape"]) -> Ensemble:
    """Measure draws [N, m, ...], m at least 2, against the truth [N, ...].

    Standard errors are over images, by the delta method, of means over images of squares.
    """
    figures = ensemble_figures(errors_of(draws, truth), num_samples=draws.shape[1])
    names = {"mean_error": "rmse_of_mean", "single_error": "rmse", "spread_skill": "spread_skill"}
    return Ensemble(**{ours: Estimate(**(figures[name] or {})) for ours, name in names.items()})


def error_of(guess: Float[Tensor, "images *shape"], truth: Float[Tensor, "images *shape"]) -> Estimate:
    """Root mean square of guess minus truth, with the standard error over images."""
    return Estimate(**root_of_mean((guess - truth).double().square().flatten(1).mean(1)))


class Scenes:
    """Held-out images and what is observed of them, in [0, 1].

    Args:
        run: A run that is told ``lowres``, and may be told the class.
        held_out: The images.

    Raises:
        SystemExit: If it is told anything else.
    """

    def __init__(self, run: TrainedRun, held_out: ImageDataset) -> None:
        self.run, self.held_out, self.conditions = run, held_out, run.conditions
        if tuple(run.config.data.get("condition", ())) != ("lowres",):
            raise SystemExit("the benchmark needs a run that is told lowres; try --config configs/vp/digits_sr.py")
        self.truth, self.small = self._grey(held_out.images), self.observe(held_out.images)

    def observe(self, images: Tensor) -> Tensor:
        """The small image of each of some images of grey levels, in [0, 1]."""
        (maker,) = self.conditions.images
        small = maker.observe(images, self.held_out.kind)
        return small.float() / (self.conditions.observed_kind.num_levels - 1)

    def upsampled(self, mode: str) -> Tensor:
        """The small images in the truth's size, by "nearest" or "bicubic", within [0, 1]."""
        size = self.truth.shape[2:]
        options = {} if mode == "nearest" else {"align_corners": False}
        return F.interpolate(self.small, size=size, mode=mode, **options).clamp(0, 1)

    def measure_upsampled(self, mode: str) -> dict[str, Any]:
        """Measures of upsampling by "nearest" or "bicubic"; rounded to grey levels where it is observed."""
        guess = self.upsampled(mode)
        observed = self.observe((guess * (self.held_out.num_levels - 1)).round().to(torch.uint8))
        found = {"consistency": error_of(observed, self.small), "mean_error": error_of(guess, self.truth)}
        return {name: asdict(one) for name, one in found.items()}

    def _grey(self, images: Tensor) -> Tensor:
        return images.float() / (self.held_out.num_levels - 1)

    def measure(self, levels: Tensor) -> dict[str, Estimate]:
        """Measures of draws of grey levels, [N, m, ...]."""
        observed = self.observe(levels.flatten(0, 1)).unflatten(0, levels.shape[:2])
        return {
            "consistency": error_of(observed, self.small[:, None].expand_as(observed)),
            **vars(ensemble(self._grey(levels), self.truth)),
        }

    def picture(self, levels: Tensor) -> Any:
        """A row of each of the first images: observed, truth, bicubic, mean of the draws, draws."""
        draws = self._grey(levels)
        columns = [self.upsampled("nearest"), self.truth, self.upsampled("bicubic"), draws.mean(1)]
        columns += list(draws[:, :SHOWN_DRAWS].unbind(1))
        shown = (torch.stack(columns, dim=1)[:SHOWN_IMAGES] * 255).round().byte()
        return image_grid(shown.flatten(0, 1).permute(0, 2, 3, 1).numpy(), columns=len(columns))


def draw(scenes: Scenes, config: Config, *, num_draws: int, batch_size: int) -> Tensor:
    """Grey levels of m draws of each of N images, [N, m, ...].

    Draw j of image i is sample i + N j: it has the same noise whatever the config asks for.
    """
    run, device, sampler = scenes.run, next(scenes.run.model.parameters()).device, build_sampler(config)
    model = run.sampled_model(sampler, config)
    told = SampleConditions(scenes.conditions, source=scenes.held_out, noise_t=config.sampling.condition_noise_t)
    total, parts = len(scenes.held_out) * num_draws, []
    for first in range(0, total, batch_size):
        index = range(first, min(first + batch_size, total))
        cond = told.of(index, model.sde)
        result, _ = draw_batch(sampler, model, index, sample_shape=run.sample_shape, cond=cond, device=device)
        parts.append(run.decode(result.x0.cpu()))
    return torch.cat(parts).unflatten(0, (num_draws, -1)).transpose(0, 1)


def rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """The lines of the table: upsampling without a network, then every level of noise on the small image."""

    def written(one: dict[str, float]) -> str:
        return f"{one['value']:.4f} ± {one['stderr']:.4f}"

    plain = [
        {"": name, "consistency": written(one["consistency"]), "RMSE of the mean": written(one["mean_error"])}
        for name, one in report["upsampled"].items()
    ]
    drawn = [
        {
            "": f"draws, noise of t = {point['noise_t']:g}",
            "consistency": written(point["consistency"]),
            "RMSE of the mean": written(point["mean_error"]),
            "RMSE of a draw": written(point["single_error"]),
            "spread / skill": written(point["spread_skill"]),
        }
        for point in report["points"]
    ]
    return drawn + plain


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Super-resolution against the truth.", allow_abbrev=False)
    add_run(parser)
    parser.set_defaults(config="configs/vp/digits_sr.py")
    parser.add_argument("--noise-times", type=listed(float), default=[0, 0.025, 0.05, 0.1], help="t of the noise")
    parser.add_argument("--num-images", type=whole(0), default=0, help="of the test split; 0: all")
    parser.add_argument("--num-draws", type=whole(2), default=4, help="of each image")
    parser.add_argument("--sampler", default="ddim")
    parser.add_argument("--num-steps", type=whole(1), default=50)
    parser.add_argument("--batch-size", type=whole(1), default=120)
    parser.add_argument(
        "--picture", type=Path, help="PNG of the first images, drawn with the first noise; default: none"
    )
    parser.add_argument("--output", type=output, default=RESULT)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, measure, print, write."""
    args = _parse(arguments)
    run = load_named_run(args)
    held_out = load_images(run.config, "test")
    if args.num_images == 1:
        raise SystemExit("standard errors need two images or more, got --num-images=1; raise it")
    scenes = Scenes(run, held_out.subset(args.num_images) if args.num_images else held_out)
    most = run.config.model.condition_noise_t
    if not 0 <= min(args.noise_times) <= max(args.noise_times) <= most:
        raise SystemExit(f"the run was trained with noise of t from 0 to {most:g}, got {args.noise_times}; change it")
    points: list[dict[str, Any]] = []
    for noise_t in tqdm(args.noise_times, unit="noise", dynamic_ncols=True):
        config = unguided(run, sampler=args.sampler, num_steps=args.num_steps, condition_noise_t=noise_t)
        levels = draw(scenes, config, num_draws=args.num_draws, batch_size=args.batch_size)
        points.append({"noise_t": noise_t} | {name: asdict(one) for name, one in scenes.measure(levels).items()})
        if args.picture and len(points) == 1:
            save_png(args.picture, scenes.picture(levels))
    report = {
        "dataset": held_out.name,
        "config": args.config,
        "step": run.step,
        "sampler": args.sampler,
        "num_steps": args.num_steps,
        "num_images": len(scenes.truth),
        "num_draws": args.num_draws,
        "points": points,
        "upsampled": {mode: scenes.measure_upsampled(mode) for mode in ("nearest", "bicubic")},
    }
    print(table(rows(report)))
    write_json(args.output, report)


if __name__ == "__main__":
    run_benchmark(main)
