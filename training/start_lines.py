"""The first lines of a training."""

from __future__ import annotations

from pathlib import Path

from data import AnyDataset, LatentDataset
from models.backbones import ControlledBackbone
from runtime.files import one_line
from runtime.processes.rank_slice import RankSlice

_MOST_CLASSES = 5  # that are named


def data_lines(dataset: AnyDataset, workdir: Path, *, num_parameters: int, device: str) -> list[str]:
    """The images that are trained on, and where to, such as

        180 train + 20 test, 3 classes: 0 circle, 1 square, 2 triangle → runs/vp/folder
        folder: images of 3x32x32, 256 grey levels; one in ten held out, by a fixed permutation; 2,387,283 ...

    Args:
        dataset: The images.
        workdir: The work directory.
        num_parameters: Of the model.
        device: Where the model is.
    """
    count = f"{len(dataset):,} {dataset.split}"
    if dataset.other_split_size is not None:
        count += f" + {dataset.other_split_size:,} {'train' if dataset.split == 'test' else 'test'}"
    parts = [
        f"{dataset.name}: {_samples(dataset)}",
        dataset.split_source,
        f"{num_parameters:,} parameters on {device}",
    ]
    return [f"{count}, {_classes(dataset)} → {workdir}", "; ".join(filter(None, parts))]


def frozen_line(backbone: object) -> str | None:
    """The frozen network that a ControlNet is trained beside; None of another network."""
    if not isinstance(backbone, ControlledBackbone):
        return None
    size = sum(parameter.numel() for parameter in backbone.base.parameters())
    return f"trained beside a frozen model of {size:,} parameters, whose way down is copied"


def slice_line(rank_slice: RankSlice, samples: str) -> str:
    """Micro-batches of a batch of ``samples``: "2 processes, 1 accumulation step: 3 or 4 images at a time"."""
    processes = f"{rank_slice.world} process{'es' if rank_slice.world > 1 else ''}"
    steps = f"{rank_slice.accumulation_steps} accumulation step{'s' if rank_slice.accumulation_steps > 1 else ''}"
    # they differ by one at most
    sizes = sorted(set(rank_slice.micro_batch_sizes()))
    unit = samples if sizes[-1] > 1 else samples[:-1]
    return f"{processes}, {steps}: {' or '.join(map(str, sizes))} {unit} at a time"


def _samples(dataset: AnyDataset) -> str:
    values = f", {dataset.num_values} value{'s' if dataset.num_values > 1 else ''} each" if dataset.num_values else ""
    if dataset.num_levels is None:
        return f"vectors of {dataset.num_dims} number{'s' if dataset.num_dims > 1 else ''}{values}"
    paired = "" if dataset.paired is None else f", each beside one of {'x'.join(map(str, dataset.paired.shape[1:]))}"
    size = "x".join(map(str, dataset.image_shape))
    seen = (
        f", as latents of {'x'.join(map(str, dataset.stored.shape[1:]))}" if isinstance(dataset, LatentDataset) else ""
    )
    what = "clips" if len(dataset.image_shape) == len("CFHW") else "images"
    return f"{what} of {size}, {dataset.num_levels} grey levels{values}{paired}{seen}"


def _classes(dataset: AnyDataset) -> str:
    """The classes by number and name, the first few of many."""
    if dataset.num_classes == 1:
        return "no classes"
    count = f"{dataset.num_classes} classes"
    if not dataset.class_names:
        return f"{count} without names"
    shown = list(enumerate(dataset.class_names[:_MOST_CLASSES]))
    if dataset.num_classes == _MOST_CLASSES + 1:
        # a name takes no more room than "and 1 more"
        shown = list(enumerate(dataset.class_names))
    names = [str(k) if name == str(k) else f"{k} {one_line(name, 30)}" for k, name in shown]
    more = dataset.num_classes - len(shown)
    return f"{count}: {', '.join(names)}" + (f" and {more} more" if more else "")
