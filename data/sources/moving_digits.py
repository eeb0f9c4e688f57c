"""Clips of one digit that moves at a constant velocity between elastic walls."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from runtime.registry import choices_message

from ..base import check_split
from ..errors import DataError
from ..video import VideoDataset
from .digits import load_digits
from .draws import MOVING, uniform_draws
from .mnist import load_mnist

TRAIN_PER_TEST = 20  # training clips for each test clip
SIDES = {"digits": 16, "mnist": 64}  # side of a frame, in pixels
FASTEST = {"digits": 2, "mnist": 4}  # pixels a frame, along each side
_FRAMES = {"digits": 8, "mnist": 20}


def load_moving_digits(
    *,
    root: Path,
    split: str,
    base: str = "digits",
    num_clips: int = 20_000,
    num_frames: int = 0,
    side: int = 0,
) -> VideoDataset:
    """Make clips of a digit on black that moves by whole pixels, and is reflected by the walls.

    A digit of a side of S pixels lies in a frame of a side of L at (row, column) = (r(p_y), r(p_x)), where in frame f
    p = p_0 + f v, p_0 is uniform on 0 .. R = L - S, v on all pairs of whole numbers of -V .. V but (0, 0), and r is the
    reflection by both walls, the even 2 R-periodic continuation of r(p) = p on 0 .. R. The first two frames say all
    others, unless a digit that was reflected between them might have come more slowly without. The digit is an image
    of the base, of the same split, as it is.

    Clip i depends on split and i alone, the same on every machine: a larger data set begins with the smaller one.

    Args:
        root: Folder of MNIST; nothing is read from it for digits.
        split: ``"train"`` or ``"test"``, that of the base.
        base: ``"digits"``, 8x8 in frames of 16x16 with 17 levels, V = 2; or ``"mnist"``, 28x28 in frames of 64x64 with
            256 levels, V = 4.
        num_clips: Clips of the train split, at least 20; the test split has a twentieth.
        num_frames: Frames of a clip, at least 2; 0 for 8 of digits, 20 of MNIST.
        side: Side of a frame, at least V more than that of the digits; 0 for the one above.

    Returns:
        uint8 clips [N, 1, F, L, L] with the labels and levels of the base.

    Raises:
        DataError: If an option is out of range, or the base is not there.
    """
    check_split(split)
    if base not in SIDES:
        raise DataError(choices_message("base", base, list(SIDES)))
    least = {"num_clips": (num_clips, TRAIN_PER_TEST), "num_frames": (num_frames or _FRAMES[base], 2)}
    digits = load_digits(split=split) if base == "digits" else load_mnist(root=root, split=split)
    size = digits.image_shape[1]
    least["side"] = (side or SIDES[base], size + FASTEST[base])
    for name, (value, lowest) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise DataError(f"{name} must be a whole number, at least {lowest}, got {value!r}; raise it")
    num_frames, side = least["num_frames"][0], least["side"][0]
    sizes = {"train": num_clips, "test": num_clips // TRAIN_PER_TEST}
    drawn = uniform_draws(MOVING, split, sizes[split], numbers=4)
    chosen = torch.from_numpy((drawn[:, 0] * len(digits)).astype(np.int64))
    starts = np.floor(drawn[:, 1:3] * (side - size + 1)).astype(np.int64)
    places = positions(starts, velocities(drawn[:, 3], FASTEST[base]), num_frames, side - size)
    return VideoDataset(
        images=_placed(digits.images[chosen, 0], places, side)[:, None],
        labels=digits.labels[chosen],
        num_levels=digits.num_levels,
        num_classes=digits.num_classes,
        name="moving_digits",
        split=split,
        class_names=digits.class_names,
        split_source=f"made of digits of the {split} split: {digits.split_source}",
        other_split_size=sizes["test" if split == "train" else "train"],
    )


def velocities(uniform: np.ndarray, fastest: int) -> np.ndarray:
    """Pairs of whole numbers of -V .. V but (0, 0), all as likely, int64 [N, 2], of uniform draws [N]."""
    number = 2 * fastest + 1
    index = np.floor(uniform * (number**2 - 1)).astype(np.int64)
    index += index >= number**2 // 2  # the middle one is (0, 0)
    return np.stack([index // number, index % number], 1) - fastest


def positions(starts: np.ndarray, speeds: np.ndarray, num_frames: int, room: int) -> np.ndarray:
    """Places of what moves at a constant velocity between elastic walls at 0 and ``room``.

    Args:
        starts: Of frame 0, integers [..., 2] in 0 .. room.
        speeds: Pixels a frame, integers [..., 2].
        num_frames: F.
        room: R, at least 1.

    Returns:
        Integers [..., F, 2].
    """
    free = (starts[..., None, :] + np.arange(num_frames)[:, None] * speeds[..., None, :]) % (2 * room)
    return np.where(free > room, 2 * room - free, free)


def _placed(digits: Tensor, places: np.ndarray, side: int) -> Tensor:
    """Frames [N, F, side, side], black but for the digits [N, S, S] at their places [N, F, 2]."""
    (count, num_frames), size = places.shape[:2], digits.shape[-1]
    clips = torch.zeros(count, num_frames, side, side, dtype=torch.uint8)
    n, f, y, x = np.ix_(range(count), range(num_frames), range(size), range(size))
    clips[n, f, y + places[:, :, :1, None], x + places[:, :, 1:, None]] = digits[:, None]
    return clips
