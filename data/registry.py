"""Datasets by name."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from runtime.options import option_names
from runtime.registry import Registry, choices_message

from .base import check_split
from .errors import DataError
from .sizes import ImageSize, height_and_width
from .sources.cifar10 import load_cifar10
from .sources.clips import load_clips
from .sources.digits import load_digits
from .sources.folder import load_folder
from .sources.lesions import load_lesion_masks, load_lesions
from .sources.mnist import load_mnist
from .sources.moons import load_moons
from .sources.moving_digits import load_moving_digits
from .sources.npz import load_npz
from .sources.scenes import load_scenes
from .vectors import AnyDataset, VectorDataset

DATASETS: Registry[AnyDataset] = Registry("dataset")
for _name, _loader in {
    "digits": load_digits,
    "mnist": load_mnist,
    "cifar10": load_cifar10,
    "folder": load_folder,
    "npz": load_npz,
    "moons": load_moons,
    "lesions": load_lesions,
    "lesion_masks": load_lesion_masks,
    "scenes": load_scenes,
    "clips": load_clips,
    "moving_digits": load_moving_digits,
}.items():
    DATASETS.register(_name)(_loader)


register_dataset = DATASETS.register
"""Make a loader available to ``load_dataset`` under a name not yet taken; used as a decorator.

The loader takes any of the keyword arguments ``root``, ``split``, ``image_size``, ``channels`` and ``download``, and is
passed those it names. What else it takes are its own options.
"""
available_datasets = DATASETS.names


def load_dataset(
    name: str,
    *,
    root: str | Path,
    split: str,
    image_size: ImageSize | None = None,
    channels: int | None = None,
    download: bool = True,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> AnyDataset:
    """Load one split of a dataset into memory.

    Processes that run together should let one of them load first, so that only that one downloads.

    Args:
        name: One of ``available_datasets()``.
        root: Where the data lies (``~`` is expanded); ``digits`` and ``moons`` ignore it.
        split: ``"train"`` or ``"test"``.
        image_size: Height and width: one number for squares, or (H, W). ``folder`` and ``clips`` resize; the others
            keep their pixels, and refuse a size that is not theirs. None takes images as they are.
        channels: 1 or 3. ``folder`` and ``clips`` convert to it; the others refuse a number that is not theirs. None
            takes images as they are.
        download: Whether ``cifar10`` may be fetched if it is not there; nothing else is ever downloaded.
        options: The data set's own, such as ``base`` of ``lesions``.

    Returns:
        The split, in its fixed order.

    Raises:
        DataError: If a name, a split or an option is unknown or does not fit, or the data cannot be used.
    """
    try:
        loader = DATASETS.get(name)
    except ValueError as error:
        raise DataError(str(error)) from None
    check_split(split)
    if not str(root):
        raise DataError("data.root is empty; set it to the folder that holds the data")
    offered: dict[str, Any] = {
        "root": _expanded(root),
        "split": split,
        "image_size": image_size,
        "channels": channels,
        "download": download,
    }
    taken = inspect.signature(loader).parameters
    own = sorted(set(option_names(loader)[0]) - set(offered))
    for option in options:
        if option not in own:
            raise DataError(choices_message(f"option of data set {name}:", option, own))
    dataset = loader(**{key: value for key, value in offered.items() if key in taken}, **options)
    _check_shape(dataset, image_size, channels)
    return dataset


def _expanded(root: str | Path) -> Path:
    try:
        return Path(root).expanduser()
    except RuntimeError:
        raise DataError(f"data.root {root} starts with a home folder that is not known; write it in full") from None


def _check_shape(dataset: AnyDataset, image_size: ImageSize | None, channels: int | None) -> None:
    if isinstance(dataset, VectorDataset):
        if image_size is not None or channels is not None:
            raise DataError(f"{dataset.name} holds vectors, which have no image_size or channels; leave them unset")
        return
    found_channels, *_, height, width = dataset.image_shape
    if image_size is not None and (height, width) != height_and_width(image_size):
        raise DataError(
            f"{dataset.name} images are {height}x{width}, got image_size={image_size}; leave image_size unset, "
            "or use the folder dataset, which resizes"
        )
    if channels is not None and channels != found_channels:
        raise DataError(
            f"{dataset.name} images have {found_channels} channels, got channels={channels}; leave it unset"
        )
