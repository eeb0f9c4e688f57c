"""Diffusion transformers beside the U-Nets of equal training, and beside ``diffusers``' class of the same weights.

Run ``python -m benchmarks.transformer``. For each config of ``configs/dit/`` and the U-Net's that it stands beside:
parameters, operations of one image forward, and seconds of a forward pass and of one forward and backward. Then DiT-S/2
beside ``DiTTransformer2DModel``, which is first shown to be the same function. All sides of a comparison are timed in
turn, round by round, so that what else the machine does falls on all of them: the figures to read are the ratios. On
the CPU, seconds are those of the processor, which other programs do not take.
Needs ``pip install -e '.[test]'``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from benchmarks.options import device as named_device
from benchmarks.options import output, run_benchmark, whole
from benchmarks.speed import forward_flops, machine
from benchmarks.timing import Work, in_turn, seconds, spread, table
from data import ImageKind, LatentSpace
from experiment.config import load_config
from experiment.network import build_backbone
from experiment.workdir import write_json
from models.backbones import Backbone, DiT
from models.pretrained.dit.diffusers import diffusers_dit_sources
from models.pretrained.shared.renaming import renamed

# its classes are found when they are first asked for, which type checkers do not see
theirs_library: Any = diffusers

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "transformer.json"
CIFAR10 = LatentSpace((4, 8, 8), (0.0,) * 4, (1.0,) * 4, 256, "")
# a transformer, the U-Net beside it, and what both are of
PAIRS = {
    "digits": ("dit/digits", "vp/digits", ImageKind((1, 8, 8), 17, 10)),
    "mnist": ("dit/mnist", "vp/mnist", ImageKind((1, 28, 28), 256, 10)),
    "latent_cifar10": (
        "dit/latent_cifar10", "latent/cifar10", ImageKind((3, 32, 32), 256, 10, latents=CIFAR10),
    ),
}  # fmt: skip
# diffusers' class has other frequencies of time, and another epsilon, than the released code
AS_DIFFUSERS: dict[str, Any] = {"embedding": "sin_first", "mlp_norm_eps": 1e-5, "num_classes": 1000}
AS_DIFFUSERS |= {"null_condition": True, "learned_variance": True, "in_channels": 4, "image_size": 32}
SIZES: dict[str, dict[str, Any]] = {
    "S/2": {"channels": 384, "depth": 12, "num_heads": 6},
    "B/2": {"channels": 768, "depth": 12, "num_heads": 12},
    "XL/2": {"channels": 1152, "depth": 28, "num_heads": 16},
    "tiny": {"channels": 32, "depth": 2, "num_heads": 2},
}


def drawn(network: Backbone) -> Backbone:
    """The network with no weight at zero, since one that returns zeros proves nothing equal."""
    generator = torch.Generator().manual_seed(0)
    for weights in network.parameters():
        if not weights.any():
            nn.init.normal_(weights, std=0.02, generator=generator)
    return network


def their_network(ours: DiT) -> nn.Module:
    """diffusers' class with our weights, in each of its blocks the embedders once more."""
    options, channels = ours.options, ours.options["channels"]
    network = theirs_library.DiTTransformer2DModel(
        num_attention_heads=options["num_heads"],
        attention_head_dim=channels // options["num_heads"],
        in_channels=options["in_channels"],
        out_channels=ours.out_channels,
        num_layers=options["depth"],
        sample_size=options["image_size"],
        patch_size=options["patch_size"],
        num_embeds_ada_norm=options["num_classes"],
    )
    first, tensors = "transformer_blocks.0.norm1.emb.", renamed(ours, diffusers_dit_sources(ours))
    for name in [name for name in tensors if name.startswith(first)]:
        for i in range(1, options["depth"]):
            tensors[name.replace(first, f"transformer_blocks.{i}.norm1.emb.")] = tensors[name]
    network.load_state_dict(tensors)
    return network.eval()


def forward_and_backward(network: nn.Module, call: Work) -> None:
    """The gradients of all weights."""
    call().square().mean().backward()
    network.zero_grad()


def compare_networks(names: Sequence[str], batch_size: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Operations and seconds of the transformers and of the U-Nets, and ratios within a round."""
    rows = []
    for name in names:
        *paths, kind = PAIRS[name]
        configs = [load_config(str(ROOT / "configs" / f"{path}.py")) for path in paths]
        # on a GPU too, the time of the networks alone is asked for
        networks = [drawn(build_backbone(config, kind, outputs_per_channel=1)).to(device) for config in configs]
        x = torch.randn(batch_size, *kind.sample_shape, device=device)
        t = torch.linspace(0, 999, batch_size, device=device)
        found = _time(dict(zip(paths, networks, strict=True)), (x, t), rounds)
        for path, network, config in zip(paths, networks, configs, strict=True):
            rows.append(
                {
                    "config": path,
                    "parameters": sum(weights.numel() for weights in network.parameters()),
                    "mflop_per_image": forward_flops(network, kind.sample_shape) / 1e6,
                    "steps": config.training.num_steps,
                    **_row(found, path, paths[1], "unet"),
                }
            )
    return rows


def compare_with_diffusers(size: str, batch_size: int, rounds: int, device: torch.device) -> dict[str, Any]:
    """Seconds of ours and of theirs, of the same weights, and ratios within a round.

    Raises:
        AssertionError: They are not the same function.
    """
    ours = DiT(**SIZES[size] | AS_DIFFUSERS)
    drawn(ours).to(device).eval()
    theirs = their_network(ours).to(device)
    x = torch.randn(batch_size, 4, 32, 32, generator=torch.Generator().manual_seed(1)).to(device)
    t, labels = torch.linspace(0, 999, batch_size, device=device).round(), torch.arange(batch_size, device=device)

    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = theirs

        def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            return self.inner(x, timestep=t, class_labels=labels).sample

    networks = {"ours": ours, "diffusers": Theirs().eval()}
    with torch.no_grad():
        answers = [network(x, t, labels) for network in networks.values()]
    distance = float((answers[0] - answers[1]).norm() / answers[1].norm())
    assert distance < 1e-4, f"ours is another function than diffusers': {distance:.1e} off"
    found = _time(networks, (x, t, labels), rounds)
    return {
        "size": size,
        "distance": distance,
        "parameters": {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()},
        **_row(found, "ours", "diffusers", "diffusers"),
    }


def _time(
    networks: Mapping[str, nn.Module], inputs: tuple[Tensor, ...], rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Seconds of each network's work, in turn, by network and kind of work."""
    works: dict[tuple[str, str], Work] = {}
    for name, network in networks.items():
        call = partial(network, *inputs)
        works[name, "forward"] = torch.no_grad()(call)
        works[name, "forward_backward"] = partial(forward_and_backward, network, call)
    for work in works.values():
        work()
    on_cpu = inputs[0].device.type == "cpu"
    return in_turn({key: partial(seconds, work, processor=on_cpu) for key, work in works.items()}, rounds)


def _row(found: Mapping[tuple[str, str], Sequence[float]], name: str, base: str, label: str) -> dict[str, Any]:
    """Seconds of a side, and how many times faster than the base it is, by round."""
    row: dict[str, Any] = {}
    for kind in ("forward", "forward_backward"):
        taken = found[name, kind]
        row[f"{kind}_seconds"] = statistics.median(taken)
        if name != base:
            row[f"{kind}_over_{label}"] = spread([b / a for a, b in zip(taken, found[base, kind], strict=True)])
    return row


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Transformers beside U-Nets and diffusers'.", allow_abbrev=False)
    parser.add_argument("--configs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--size", choices=SIZES, default="S/2", help="of the network beside diffusers'")
    parser.add_argument("--batch-size", type=whole(1), default=16)
    parser.add_argument("--rounds", type=whole(1), default=7)
    parser.add_argument("--device", type=named_device, default="auto")
    parser.add_argument("--threads", type=whole(1, 4096), default=torch.get_num_threads())
    parser.add_argument("--output", type=output, default=RESULT)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    report = {
        "machine": machine(device),
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "networks": compare_networks(args.configs, args.batch_size, args.rounds, device),
        "diffusers": compare_with_diffusers(args.size, args.batch_size, args.rounds, device),
    }
    print(table([_shown(row) for row in report["networks"]]))
    print(table([_shown({k: v for k, v in report["diffusers"].items() if k != "parameters"})]), flush=True)
    write_json(args.output, report)


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: f"{value['median']:.2f} ({value['least']:.2f}-{value['most']:.2f})" if isinstance(value, dict) else value
        for key, value in row.items()
    }


if __name__ == "__main__":
    run_benchmark(main)
