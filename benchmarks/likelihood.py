"""What the flow's likelihood costs beside the textbook's way, on the same network, images, dequantization and probes.

Run ``python -m benchmarks.likelihood``. The textbook's way (Song et al. 2021, Appendix D.2, as commonly written) is
SciPy's RK45 over t, through NumPy, the whole batch as one vector, drift and divergence in a network call each. Both
sides are timed in turn within one run; the figure to read is the ratio.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import integrate
from torch import Tensor

from data import to_model_space
from likelihood import FlowLikelihood
from models import EpsParameterization, NetworkScoreModel, ScoreModel
from sde_lib import SDE, VP, NoiseStreams, Tabulated, expand_like
from training.build import build_dataset, pick_device
from training.config import load_config
from training.state import load_trained
from training.workdir import default_workdir, write_json

RESULT = Path(__file__).parent / "results" / "likelihood.json"
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


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="The flow's likelihood beside the textbook's way.", allow_abbrev=False)
    parser.add_argument("--config", default="configs/vp/digits.py", help="a config on DDPM's table")
    parser.add_argument("--workdir", default="", help="its trained work directory; default: runs/<family>/<name>")
    parser.add_argument("--num-images", type=int, default=60)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", default=str(RESULT))
    arguments = parser.parse_args()
    config = load_config(arguments.config, [])
    dataset = build_dataset(config, "test")
    device = pick_device(config)
    workdir = Path(arguments.workdir) if arguments.workdir else default_workdir(arguments.config)
    trained, step = load_trained(config, workdir, dataset, device)
    assert isinstance(trained, NetworkScoreModel) and isinstance(trained.sde, Tabulated)
    model = (
        NetworkScoreModel(trained.backbone, VP(), RowOfTable(trained.sde)).eval().requires_grad_(requires_grad=False)
    )
    x0 = to_model_space(dataset.images[: arguments.num_images], dataset.num_levels)
    indices = range(len(x0))
    flow = FlowLikelihood(
        num_levels=dataset.num_levels,
        dequantization="uniform",
        t_end=T_END,
        rtol=arguments.tolerance,
        atol=arguments.tolerance,
    )
    log_width = math.log(2 / (dataset.num_levels - 1)) * x0[0].numel()
    found: dict[str, list[float]] = {"ours": [], "textbook": []}
    bits: dict[str, Tensor] = {}
    calls: dict[str, int] = {}
    for _ in range(arguments.repeats):
        began = time.perf_counter()
        terms = flow(model, x0, noise=NoiseStreams(0, indices))
        found["ours"].append(time.perf_counter() - began)
        bits["ours"], calls["ours"] = terms.bits_per_dim, terms.nfe
        # the same uniform noise and the same probes: the streams are read in the same order
        noise = NoiseStreams(0, indices)
        y = x0.double() + 2 / (dataset.num_levels - 1) * (noise.uniform(x0.shape[1:]).double() - 0.5)
        probe = torch.where(noise.uniform((1, *x0.shape[1:])) < 0.5, -1.0, 1.0)[:, 0]
        began = time.perf_counter()
        nats, calls["textbook"] = textbook(model, y, probe, tolerance=arguments.tolerance)
        found["textbook"].append(time.perf_counter() - began)
        bits["textbook"] = (nats - log_width) / (x0[0].numel() * math.log(2))
    difference = bits["ours"] - bits["textbook"]
    report = {
        "step": step,
        "num_images": len(x0),
        "tolerance": arguments.tolerance,
        "seconds": {name: min(values) for name, values in found.items()},
        "network_calls": calls,
        "ratio": min(found["textbook"]) / min(found["ours"]),
        "bits_per_dim": {name: float(values.mean()) for name, values in bits.items()},
        "difference_mean": float(difference.mean()),
        "difference_largest": float(difference.abs().max()),
        "num_threads": torch.get_num_threads(),
    }
    for key, value in report.items():
        print(f"{key:20} {value}")
    write_json(Path(arguments.output), report)


if __name__ == "__main__":
    main()
