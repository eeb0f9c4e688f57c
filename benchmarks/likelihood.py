"""The cost of the likelihood of the probability-flow ODE beside the textbook's way.

Both take the same network, images, dequantization and probes.

Run ``python -m benchmarks.likelihood``. The textbook's way (Song et al. 2021, Appendix D.2, as commonly written) is
SciPy's RK45 over t, through NumPy, the whole batch as one vector, drift and divergence in a network call each. Both
sides are timed in turn within one run, at each tolerance; the figure to read is the ratio. What each is off by is told
by a third solver, SciPy's DOP853, at a much smaller tolerance, on the same network in float64.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import integrate
from torch import Tensor

from benchmarks.options import listed, output, whole
from benchmarks.timing import in_turn, seconds, table
from benchmarks.trained import add_run, load_images, load_named_run
from experiment.workdir import write_json
from likelihood import FlowLikelihood
from models import EpsParameterization, NetworkScoreModel, ScoreModel
from sde_lib import SDE, VP, NoiseStreams, Tabulated, expand_like

RESULTS = Path(__file__).parent / "results"
T_END = 1e-3
SIDES = ("ours", "textbook")


class RowOfTable(EpsParameterization):
    """The network of a table under a continuous SDE: told the row whose log-SNR is that of t."""

    def __init__(self, table: Tabulated) -> None:
        super().__init__()
        self.table = table

    def c_noise(self, sde: SDE, t: Tensor) -> Tensor:
        """N t' - 1 where t' on the table has the log-SNR of t."""
        assert self.table.table_size is not None
        return self.table.table_size * self.table.time_from_log_snr(sde.log_snr(t)) - 1


def textbook(model: ScoreModel, y: Tensor, probe: Tensor, *, tolerance: float) -> tuple[Tensor, int]:
    """-log p(y) in nats, [B], and network calls."""
    sde, shape, calls = model.sde, y.shape, 0

    def drift(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        score = model(x, t).score
        return expand_like(sde.drift_coeff(t), x) * x - 0.5 * expand_like(sde.diffusion_sq(t), x) * score

    def divergence(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.requires_grad_()
            (product,) = torch.autograd.grad((drift(x, t) * probe).sum(), x)
        return (product * probe).flatten(1).sum(1)

    def slope(t: float, flat: Any) -> Any:
        x = torch.from_numpy(flat[: y.numel()].reshape(shape)).float()
        times = torch.full((len(x),), t, dtype=torch.float64)
        with torch.no_grad():
            dx = drift(x, times).numpy().reshape(-1)
        return np.concatenate([dx, divergence(x, times).numpy()]).astype(np.float64)

    first = torch.tensor([T_END], dtype=torch.float64)
    alpha = float(sde.alpha(first))
    start = np.concatenate([(alpha * y).double().numpy().reshape(-1), np.zeros(len(y))])
    solution = integrate.solve_ivp(slope, (T_END, sde.t_max), start, rtol=tolerance, atol=tolerance, method="RK45")
    x_T = torch.from_numpy(solution.y[: y.numel(), -1].reshape(shape))
    change = torch.from_numpy(solution.y[y.numel() :, -1])
    # log p(y) = log p(x) + D log alpha
    return -(sde.prior_log_prob(x_T) + change + y[0].numel() * math.log(alpha)), calls


@dataclass(frozen=True)
class Measured:
    """One side at one tolerance: bits/dim [B], network calls, and processor seconds."""

    bits: Tensor
    calls: int
    seconds: float = math.nan


class Pair:
    """Both sides on the same model, images, uniform noise and probes."""

    def __init__(self, model: NetworkScoreModel, x0: Tensor, num_levels: int) -> None:
        self.model, self.x0, self.num_levels = model, x0, num_levels
        noise = NoiseStreams(0, range(len(x0)))
        # the streams are read in the order in which ``FlowLikelihood`` reads them
        self.y = x0.double() + 2 / (num_levels - 1) * (noise.uniform(x0.shape[1:]).double() - 0.5)
        self.probe = torch.where(noise.uniform((1, *x0.shape[1:])) < 0.5, -1.0, 1.0)[:, 0]

    def ours(self, tolerance: float) -> Measured:
        """The default solver of ``FlowLikelihood``."""
        return self._flow(self.model, self.x0, rtol=tolerance, atol=tolerance)

    def textbook(self, tolerance: float) -> Measured:
        """See ``textbook``."""
        nats, calls = textbook(self.model, self.y, self.probe, tolerance=tolerance)
        num_dims = self.x0[0].numel()
        return Measured((nats / num_dims - math.log(2 / (self.num_levels - 1))) / math.log(2), calls)

    def reference(self, tolerance: float, num_images: int) -> Tensor:
        """Bits/dim of the first images by another solver, in float64, [num_images]."""
        model, x0 = copy.deepcopy(self.model).double(), self.x0[:num_images].double()
        return self._flow(model, x0, solver="scipy_dop853", rtol=tolerance, atol=tolerance, max_nfe=None).bits

    def timed(self, side: str, tolerance: float) -> Measured:
        """Measure a side with its processor time, since the machine may be busy with other work."""
        found: list[Measured] = []
        taken = seconds(lambda: found.append(getattr(self, side)(tolerance)), processor=True)
        return replace(found[0], seconds=taken)

    def _flow(self, model: ScoreModel, x0: Tensor, **options: Any) -> Measured:
        flow = FlowLikelihood(num_levels=self.num_levels, dequantization="uniform", t_end=T_END, **options)
        terms = flow(model, x0, noise=NoiseStreams(0, range(len(x0))))
        return Measured(terms.bits_per_dim, terms.nfe)


def load_pair(arguments: argparse.Namespace) -> tuple[Pair, int]:
    """The trained network as a VP-SDE's, on the first test images; and the step it was trained to."""
    run = load_named_run(arguments)
    if not isinstance(run.sde, Tabulated):
        raise SystemExit(
            f"the benchmark needs a config on DDPM's table, got {arguments.config}; try configs/vp/digits.py"
        )
    dataset = load_images(run.config, "test")
    model = NetworkScoreModel(run.model.backbone, VP(), RowOfTable(run.sde)).eval()
    model.requires_grad_(requires_grad=False)
    x0 = dataset.space.encode(dataset.images[: arguments.num_images])
    return Pair(model, x0, dataset.num_levels), run.step


def row(found: list[Measured], truth: Tensor) -> dict[str, float]:
    """The report's row for one side's repeats; errors over the images that have a reference."""
    bits = found[0].bits
    error = bits[: len(truth)] - truth
    return {
        "network_calls": found[0].calls,
        "seconds": statistics.median(one.seconds for one in found),
        "bits_per_dim": float(bits.mean()),
        "error_mean": float(error.mean()),
        "error_rms": float(error.square().mean().sqrt()),
        "error_largest": float(error.abs().max()),
    }


def compare(ours: list[Measured], theirs: list[Measured], truth: Tensor) -> dict[str, Any]:
    """Both sides at one tolerance: their rows, how many times faster ours is, and how far apart they are."""
    difference = ours[0].bits - theirs[0].bits
    return {
        "ours": row(ours, truth),
        "textbook": row(theirs, truth),
        "ratio": statistics.median(b.seconds / a.seconds for a, b in zip(ours, theirs, strict=True)),
        "difference_mean": float(difference.mean()),
        "difference_largest": float(difference.abs().max()),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="The ODE's likelihood beside the textbook's way.", allow_abbrev=False)
    add_run(parser)
    parser.add_argument("--num-images", type=whole(1), default=20)
    parser.add_argument("--tolerances", type=listed(float), default=[1e-4, 1e-5])
    parser.add_argument("--repeats", type=whole(1), default=2)
    parser.add_argument("--reference-tolerance", type=float, default=1e-7)
    parser.add_argument("--reference-images", type=whole(1), default=6)
    parser.add_argument("--threads", type=whole(1), default=1)
    parser.add_argument("--output", type=output, default=RESULTS / "likelihood.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pair, step = load_pair(args)
    sides = {(side, tolerance): partial(pair.timed, side, tolerance) for tolerance in args.tolerances for side in SIDES}
    found = in_turn(sides, args.repeats)
    truth = pair.reference(args.reference_tolerance, min(args.reference_images, args.num_images))
    entries = {f"{t:g}": compare(found["ours", t], found["textbook", t], truth) for t in args.tolerances}
    report = {
        "config": args.config,
        "step": step,
        "num_images": len(pair.x0),
        "reference_images": len(truth),
        "reference_tolerance": args.reference_tolerance,
        "num_threads": args.threads,
        "torch": torch.__version__,
        "tolerances": entries,
    }
    rows = [{"tolerance": name, "side": side} | entry[side] for name, entry in entries.items() for side in SIDES]
    print(table(rows))
    for name, entry in entries.items():
        print(
            f"{name}: {entry['ratio']:.2f} times faster; they differ by {entry['difference_mean']:+.1e} in the mean, "
            f"{entry['difference_largest']:.1e} at most"
        )
    write_json(args.output, report)


if __name__ == "__main__":
    main()
