"""The cost of training in bfloat16: final losses over seeds, in both precisions.

Run ``python -m benchmarks.precision``. A U-Net learns scikit-learn's digits from the same initial weights, images,
times, noise and dropout in float32 and under bfloat16 autocast over float32 weights, once a seed. What is compared is
the loss L_simple of the averaged weights, in float32, over all test digits at the same times and noise, the spread
between seeds being the measure.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import options
from data.sources.digits import load_digits
from experiment.precision import PrecisionBackbone
from experiment.workdir import write_json
from models import EpsParameterization, NetworkScoreModel
from models.backbones import UNet
from sde_lib import Tabulated, derive_seed
from training.batches import TrainBatches
from training.ema import ExponentialMovingAverage
from training.losses import DDPMLoss

RESULT = Path(__file__).parent / "results" / "precision.json"
NAMES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def train(seed: int, precision: torch.dtype, *, num_steps: int, channels: int, batch_size: int) -> NetworkScoreModel:
    """The averaged model after so many steps; everything random is a function of the seed and the step."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,)}
    net = UNet(image_size=8, in_channels=1, channels=channels, norm_groups=8, dropout=0.1, **settings)
    sde = Tabulated.ddpm(beta_start=2e-3)
    model = NetworkScoreModel(net, sde, EpsParameterization())
    wrapped = NetworkScoreModel(PrecisionBackbone(net, precision, compiled=False), sde, EpsParameterization())
    ema = ExponentialMovingAverage(model, 0.99)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    loss_of, dataset = DDPMLoss(), load_digits(split="train")
    batches = TrainBatches(dataset, batch_size=batch_size, seed=seed, random_flip=False)
    for step in range(num_steps):
        torch.manual_seed(derive_seed(seed, step))
        x0 = dataset.space.encode(batches.batch(step)[0])
        t = loss_of.times(sde, torch.rand(batch_size, dtype=torch.float64))
        loss = loss_of(wrapped, x0, t, torch.randn_like(x0)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50)
        optimizer.step()
        ema.update(model)
    assert isinstance(ema.model, NetworkScoreModel)
    return ema.model


@torch.no_grad()
def test_loss(model: NetworkScoreModel) -> float:
    """L_simple over the test digits, at times spread evenly and noise that is always the same."""
    dataset, generator = load_digits(split="test"), torch.Generator().manual_seed(0)
    x0 = dataset.space.encode(dataset.images)
    losses: list[Tensor] = []
    for _ in range(4):
        u = (torch.randperm(len(x0), generator=generator) + 0.5) / len(x0)
        loss_of = DDPMLoss()
        t = loss_of.times(model.sde, u.double())
        losses.append(loss_of(model, x0, t, torch.randn(x0.shape, generator=generator)))
    return float(torch.cat(losses).mean())


def compare(seeds: int, **options: Any) -> dict[str, Any]:
    """Final losses by precision and seed, their spreads, and the mean of the differences within a seed."""
    losses = {
        name: [test_loss(train(seed, dtype, **options)) for seed in range(seeds)] for name, dtype in NAMES.items()
    }
    differences = [bf16 - fp32 for fp32, bf16 in zip(losses["fp32"], losses["bf16"], strict=True)]
    return {
        "losses": losses,
        "means": {name: statistics.mean(values) for name, values in losses.items()},
        "stds": {name: statistics.stdev(values) for name, values in losses.items()},
        "difference_mean": statistics.mean(differences),
        "difference_std": statistics.stdev(differences),
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="bfloat16 beside float32, over seeds.", allow_abbrev=False)
    parser.add_argument("--seeds", type=options.whole(2), default=6, help="at least 2, for their spread")
    parser.add_argument("--steps", type=options.whole(1), default=400)
    parser.add_argument("--channels", type=options.whole(8), default=32)
    parser.add_argument("--batch-size", type=options.whole(1), default=64)
    parser.add_argument("--output", type=options.output, default=RESULT)
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print, write."""
    args = parse()
    settings = {"num_steps": args.steps, "channels": args.channels, "batch_size": args.batch_size}
    found = compare(args.seeds, **settings)
    for name, mean in found["means"].items():
        listed = " ".join(f"{loss:.5f}" for loss in found["losses"][name])
        print(f"{name}: {mean:.5f}, standard deviation over seeds {found['stds'][name]:.5f} ({listed})")
    print(
        f"bf16 - fp32 within a seed: {found['difference_mean']:+.5f}, standard deviation {found['difference_std']:.5f}"
    )
    write_json(args.output, {"seeds": args.seeds, **settings, **found})


if __name__ == "__main__":
    main()
