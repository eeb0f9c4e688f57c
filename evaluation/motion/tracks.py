"""The way of what is lit in a clip, and its distance from uniform motion between walls."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from data.sources.moving_digits import positions


def tracks_of(clips: UInt8[Tensor, "clips frames height width"]) -> Float[Tensor, "clips frames 2"]:
    """Row and column of the centre of mass of each frame, in pixels, float64; NaN of a black frame."""
    total, moments = _moments(clips)
    return moments.double() / total.double()[..., None]


def centred(
    clips: UInt8[Tensor, "clips frames height width"], side: int
) -> UInt8[Tensor, "clips frames {side} {side}"]:
    """The square around the centre of mass of each frame, black beyond its border; a black frame stays black.

    The centre is rounded in whole numbers, so that frames which differ by a shift of whole pixels give the same.

    Args:
        clips: Grey levels.
        side: Of the square.
    """
    total, moments = _moments(clips)
    middle = (2 * moments + total[..., None]) // (2 * total.clamp(min=1)[..., None])
    padded = torch.nn.functional.pad(clips, (side,) * 4)
    along = torch.arange(side) + side - side // 2
    rows, columns = (middle[..., axis, None] + along for axis in (0, 1))
    n, f = torch.meshgrid(*map(torch.arange, clips.shape[:2]), indexing="ij")
    return padded[n[..., None, None], f[..., None, None], rows[..., :, None], columns[..., None, :]]


def path_residual(tracks: Float[Tensor, "clips frames 2"], *, room: int, fastest: int) -> Float[Tensor, " clips"]:
    """Root mean square distance of each track from the nearest way that a moving digit can take, in pixels.

    Ways are those of ``positions``, of every start 0 .. R and velocity -V .. V along each axis, moved by any constant:
    where the centre of mass lies in a digit is not known. 0 for true clips; NaN with a black frame.

    Args:
        tracks: See ``tracks_of``.
        room: R, the side of a frame less that of a digit.
        fastest: V.
    """
    num_frames = tracks.shape[1]
    pairs = np.stack(np.meshgrid(np.arange(room + 1), np.arange(-fastest, fastest + 1), indexing="ij"), -1)
    starts, speeds = pairs.reshape(-1, 2).T
    ways = positions(np.stack([starts] * 2, 1), np.stack([speeds] * 2, 1), num_frames, room)[..., 0]
    away = tracks.mT[:, :, None] - torch.from_numpy(ways).double()
    return away.var(-1, correction=0).amin(-1).sum(1).sqrt()


def _moments(clips: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the grey levels of each frame, int64 [N, F], and their sums times row and column, [N, F, 2]."""
    wide = clips.long()
    total, rows, columns = wide.sum((2, 3)), wide.sum(3), wide.sum(2)
    moments = [(one * torch.arange(one.shape[2])).sum(2) for one in (rows, columns)]
    return total, torch.stack(moments, -1)
