"""The files of a set of samples, each written batch by batch, so that memory holds one batch at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data import LatentSpace, LevelSpace
from experiment.pictures import picture_of, save_film

_BYTES = np.dtype(np.uint8)
_FRAME = 80  # milliseconds of a GIF's frame; the last one stays for a while
_LAST_FRAME = 1500


@contextmanager
def open_npz(
    path: Path, shape: tuple[int, ...], labels: np.ndarray | None = None, *, dtype: np.dtype = _BYTES
) -> Iterator[Callable[[np.ndarray], object]]:
    """Write ``np.savez(path, samples, labels)``, the samples a batch at a time.

    Args:
        path: Where to.
        shape: Shape of all samples together.
        labels: Their classes, [N].
        dtype: Of the samples.

    Yields:
        A function that appends a batch of samples.
    """
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]
            yield lambda images: member.write(np.ascontiguousarray(images).data)
        if labels is not None:
            with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, labels)


def read_npz(path: Path, batch_size: int) -> Iterator[np.ndarray]:
    """The samples of such a file, a batch at a time.

    Args:
        path: The file.
        batch_size: Samples a batch; the last one may be short.

    Raises:
        ValueError: If it holds something else.
        zipfile.BadZipFile: If it is damaged; damage within the samples shows at the last batch.
        OSError: If it cannot be read.
    """
    with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"{path} is of another version of NumPy's format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(member)
        if (dtype, len(shape)) not in ((_BYTES, 4), (_BYTES, 5), (np.float32, 2)):
            raise ValueError(f"{path} holds no samples")
        for first in range(0, shape[0], batch_size):
            size = (min(batch_size, shape[0] - first), *shape[1:])
            yield np.frombuffer(member.read(int(np.prod(size)) * dtype.itemsize), dtype=dtype).reshape(size)
        # the checksum is compared at the end of the file
        member.read(1)


def save_pngs(folder: Path, images: np.ndarray, first: int) -> None:
    """Write images as ``000000.png`` and so on, grey ones as grey.

    Args:
        folder: Where to.
        images: uint8 [B, H, W, C], C of 1 or 3.
        first: Number of the first one.
    """
    for k, image in enumerate(images, first):
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(folder / f"{k:06d}.png")


def save_trajectory_gif(
    path: Path, states: np.ndarray, scales: Sequence[float], space: LevelSpace | LatentSpace
) -> None:
    """Show states x_t as a film of image grids, each x_t divided by sqrt(alpha^2 + sigma^2).

    Args:
        path: Where to.
        states: float32 [frames, B, C, H, W], of clips [frames, B, C, F, H, W].
        scales: What each frame is multiplied by, so that noise fills the grey levels whatever the SDE.
        space: The grey levels of the data.
    """
    frames = [
        picture_of(space.pixels(torch.from_numpy(x * np.float32(scale))))
        for x, scale in zip(states, scales, strict=True)
    ]
    save_film(path, frames, [_FRAME] * (len(frames) - 1) + [_LAST_FRAME])
