"""The cost of the flow's likelihood beside the textbook's way, on the same network, images, dequantization and probes.

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
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import integrate
from torch import Tensor, nn

from benchmarks.images import load_images
from configs.default import get_default_config
from experiment.build import pick_device
from experiment.config import load_config
from experiment.from_checkpoints import load_trained
from experiment.workdir import default_workdir, write_json
from likelihood import FlowLikelihood
from models import EpsParameterization, NetworkScoreModel, ScoreModel
from sde_lib import SDE, VP, NoiseStreams, Tabulated, expand_like

RESULTS = Path(__file__).parent / "results"
T_END = 1e-3


class RowOfTable(EpsParameterization):
    """The network of a table under a continuous SDE: told the row whose log-SNR is that of t."""

    def __init__(self, table: Tabulated) -> None:
        super().__init__()
        self.table = table

    def c_noise(self, sde: SDE, t: Tensor) -> Tensor:
        """N t' - 1 where t' on the table has the log-SNR of t."""
        assert self.table.table_size is not None
        return self.table.table_size * self.table.time_from_log_snr(sde.log_snr(t)) - 1


class InFloat64(nn.Module):
    """A copy of a network, in float64."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).double()

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """The network's answer."""
        return self.network(x, c_noise)


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


@dataclass
class Measured:
    """One side at one tolerance: bits/dim [B], network calls, and processor seconds of each repeat."""

    bits: Tensor
    calls: int
    seconds: list[float] = field(default_factory=list[float])


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
        model = NetworkScoreModel(InFloat64(self.model.backbone), self.model.sde, self.model.parameterization).eval()
        model.requires_grad_(requires_grad=False)
        x0 = self.x0[:num_images].double()
        return self._flow(model, x0, solver="scipy_dop853", rtol=tolerance, atol=tolerance, max_nfe=None).bits

    def _flow(self, model: ScoreModel, x0: Tensor, **options: Any) -> Measured:
        flow = FlowLikelihood(num_levels=self.num_levels, dequantization="uniform", t_end=T_END, **options)
        terms = flow(model, x0, noise=NoiseStreams(0, range(len(x0))))
        return Measured(terms.bits_per_dim, terms.nfe)


def timed(measure: Callable[[float], Measured], tolerance: float, before: Measured | None) -> Measured:
    """Measure once more. Processor time: the machine may be busy with other work."""
    began = time.process_time()
    found = measure(tolerance)
    found.seconds = [*(before.seconds if before else []), time.process_time() - began]
    return found


def load_pair(arguments: argparse.Namespace) -> tuple[Pair, int]:
    """The trained network as a VP-SDE's, on the first test images; and the step it was trained to."""
    config = load_config(arguments.config, defaults=get_default_config())
    dataset = load_images(config, "test")
    workdir = Path(arguments.workdir) if arguments.workdir else default_workdir(arguments.config)
    trained, step = load_trained(config, workdir, dataset.kind, pick_device(config))
    if not isinstance(trained, NetworkScoreModel) or not isinstance(trained.sde, Tabulated):
        raise SystemExit(
            f"the benchmark needs a config on DDPM's table, got {arguments.config}; try configs/vp/digits.py"
        )
    model = NetworkScoreModel(trained.backbone, VP(), RowOfTable(trained.sde)).eval()
    model.requires_grad_(requires_grad=False)
    x0 = dataset.space.encode(dataset.images[: arguments.num_images])
    return Pair(model, x0, dataset.num_levels), step


def row(found: Measured, truth: Tensor) -> dict[str, float]:
    """The report's row for one side; errors over the images that have a reference."""
    error = found.bits[: len(truth)] - truth
    return {
        "network_calls": found.calls,
        "seconds": statistics.median(found.seconds),
        "bits_per_dim": float(found.bits.mean()),
        "error_mean": float(error.mean()),
        "error_rms": float(error.square().mean().sqrt()),
        "error_largest": float(error.abs().max()),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="The flow's likelihood beside the textbook's way.", allow_abbrev=False)
    parser.add_argument("--config", default="configs/vp/digits.py", help="a config on DDPM's table")
    parser.add_argument("--workdir", default="", help="its trained work directory; default: runs/<family>/<name>")
    parser.add_argument("--num-images", type=int, default=20)
    parser.add_argument("--tolerances", default="1e-4,1e-5")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--reference-tolerance", type=float, default=1e-7)
    parser.add_argument("--reference-images", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default=str(RESULTS / "likelihood.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pair, step = load_pair(arguments)
    found: dict[tuple[str, float], Measured] = {}
    tolerances = [float(word) for word in arguments.tolerances.split(",")]
    for _ in range(arguments.repeats):
        for tolerance in tolerances:
            for name, measure in (("ours", pair.ours), ("textbook", pair.textbook)):
                found[name, tolerance] = timed(measure, tolerance, found.get((name, tolerance)))
    truth = pair.reference(arguments.reference_tolerance, min(arguments.reference_images, arguments.num_images))
    report: dict[str, Any] = {
        "config": arguments.config,
        "step": step,
        "num_images": len(pair.x0),
        "reference_images": len(truth),
        "reference_tolerance": arguments.reference_tolerance,
        "num_threads": arguments.threads,
        "torch": torch.__version__,
        "tolerances": {},
    }
    print(f"{'tolerance':21} {'calls':>6} {'seconds':>8} {'bits/dim':>9} {'mean error':>11} {'rms':>8} {'largest':>8}")
    for tolerance in tolerances:
        ours, theirs = found["ours", tolerance], found["textbook", tolerance]
        entry: dict[str, Any] = {"ours": row(ours, truth), "textbook": row(theirs, truth)}
        entry["ratio"] = statistics.median(b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True))
        difference = ours.bits - theirs.bits
        entry["difference_mean"] = float(difference.mean())
        entry["difference_largest"] = float(difference.abs().max())
        report["tolerances"][f"{tolerance:g}"] = entry
        for name in ("ours", "textbook"):
            of = entry[name]
            print(
                f"{tolerance:<10g} {name:10} {of['network_calls']:6} {of['seconds']:8.1f} {of['bits_per_dim']:9.4f} "
                f"{of['error_mean']:+11.1e} {of['error_rms']:8.1e} {of['error_largest']:8.1e}"
            )
        print(
            f"{'':10} {entry['ratio']:.2f} times faster; they differ by {entry['difference_mean']:+.1e} in the mean, "
            f"{entry['difference_largest']:.1e} at most"
        )
    write_json(Path(arguments.output), report)


if __name__ == "__main__":
    main()
