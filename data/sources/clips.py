"""A folder of clips, GIFs or folders of frames, decoded once into memory."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from ..base import ONE_IN_TEN, SPLITS, check_split, fixed_split
from ..errors import DataError
from ..sizes import ImageSize, height_and_width
from ..video import VideoDataset
from .decoding import in_threads, pixels_of
from .folder_layout import EXTENSIONS, natural_order
from .grey import GreyRule

FILMS = (".gif", ".webp", ".apng")  # files that are a clip each


def load_clips(
    *,
    root: Path,
    split: str,
    image_size: ImageSize | None = None,
    channels: int | None = None,
    num_frames: int = 0,
) -> VideoDataset:
    """Load a folder of clips, ``root/{train,test}/...``, or ``root/...``, of which one in ten is held out for test.

    A clip is an animated file, ``a.gif``, ``a.webp`` or ``a.apng``; or a folder of image files, its frames in the order
    of their names, where 2 comes before 10. Times between frames are not looked at. Frames are shown on white where
    they are transparent, converted, and resized and cropped as those of the data set ``folder``.

    Args:
        root: Folder to look in.
        split: ``"train"`` or ``"test"``.
        image_size: Height and width of the frames; None for frames as they are, all of one size.
        channels: 3 for RGB or 1 for grey; None for grey if all frames of the split are grey, else RGB.
        num_frames: The first so many frames of each clip are taken; 0 for all, where all clips have as many.

    Returns:
        uint8 clips [N, channels, F, H, W] with 256 levels, in the order of their names, and labels that are all zero.

    Raises:
        DataError: If there are no clips, or they cannot be read, or differ in size or length.
    """
    check_split(split)
    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 (grey) or 3 (RGB), got {channels}; choose one of them")
    if isinstance(num_frames, bool) or not isinstance(num_frames, int) or num_frames < 0:
        raise DataError(f"num_frames must be a whole number, 0 for all frames, got {num_frames!r}; set num_frames=8")
    size = None if image_size is None else height_and_width(image_size)
    paths, other, source = _split(root, split)
    mode = "L" if channels == 1 else "RGB"
    clips = _decoded(paths, mode, size, num_frames)
    images = np.stack(clips)
    if channels is None and bool((images == images[:, :1]).all()):
        images = images[:, :1]
    return VideoDataset(
        images=torch.from_numpy(np.ascontiguousarray(images)),
        labels=torch.zeros(len(images), dtype=torch.int64),
        num_levels=256,
        num_classes=1,
        name="clips",
        split=split,
        split_source=source,
        other_split_size=other,
        sample_names=tuple(path.relative_to(root).as_posix() for path in paths),
    )


def decode_clip(path: Path, mode: str, size: tuple[int, int] | None, num_frames: int = 0) -> np.ndarray:
    """The frames of a clip, uint8 [C, F, H, W].

    Args:
        path: An animated file, or a folder of frames.
        mode: ``"L"`` for grey or ``"RGB"``.
        size: Height and width to resize and crop to; None for frames as they are.
        num_frames: How many are wanted; 0 for all.

    Raises:
        DataError: If it has no frame, fewer than are wanted, or frames of several sizes.
    """
    frames = []
    if path.is_dir():
        for one in _frames_in(path)[: num_frames or None]:
            with Image.open(one) as opened:
                frames.append(pixels_of(ImageOps.exif_transpose(opened), mode, GreyRule(), size)[0])
    else:
        with Image.open(path) as opened:
            for frame in ImageSequence.Iterator(opened):
                if len(frames) == num_frames > 0:
                    break
                frames.append(pixels_of(frame, mode, GreyRule(), size)[0])
    if len(frames) < max(1, num_frames):
        raise DataError(f"{len(frames)} frames of {num_frames}")
    sizes = {frame.shape[1:] for frame in frames}
    if len(sizes) > 1:
        raise DataError(f"frames of {' and '.join(f'{h}x{w}' for h, w in sorted(sizes))}")
    return np.stack(frames, 1)


def read_clips(path: Path, mode: str, num_frames: int) -> np.ndarray:
    """Read a clip, or a folder of clips: uint8 [N, C, F, H, W], the first frames of each; see ``decode_clip``.

    Raises:
        DataError: If there is none, or one cannot be read, is too short, or of another size.
    """
    clips = _clips_in(path) or [path]
    if not path.exists() or (path.is_dir() and clips == [path] and not _frames_in(path)):
        raise DataError(f"{path} holds no clips; pass an npz file, a GIF, a folder of frames, or a folder of those")
    return np.stack(_decoded(clips, mode, None, num_frames))


def _split(root: Path, split: str) -> tuple[list[Path], int, str]:
    """The clips of a split, the number of those of the other one, and where the splits are from."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; set data.root to a folder of clips")
    other = SPLITS[1 - SPLITS.index(split)]
    if any((root / name).is_dir() for name in SPLITS):
        found = {name: _clips_in(root / name) for name in SPLITS}
        chosen, rest, source, at = found[split], len(found[other]), "folders train/ and test/", root / split
    else:
        clips, at = _clips_in(root), root
        chosen = [clips[i] for i in fixed_split(len(clips), split)] if clips else []
        rest, source = len(clips) - len(chosen), ONE_IN_TEN
    if not chosen:
        raise DataError(f"no clips in {at}; put {', '.join(FILMS)} files there, or folders of frames")
    return chosen, rest, source


def _clips_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    clips = [path for path in found if path.suffix.lower() in FILMS or (path.is_dir() and _frames_in(path))]
    return sorted(clips, key=lambda path: natural_order(path.name))


def _frames_in(folder: Path) -> list[Path]:
    frames = [path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")]
    return sorted(frames, key=lambda path: natural_order(path.name))


def _decoded(paths: Sequence[Path], mode: str, size: tuple[int, int] | None, num_frames: int) -> list[np.ndarray]:
    """The clips, if all can be read and are of one size and length."""

    def decode(path: Path) -> np.ndarray | str:
        try:
            return decode_clip(path, mode, size, num_frames)
        except UnidentifiedImageError:  # its message would repeat the path
            return "not an image"
        except DataError as error:
            return str(error)
        except Exception as error:  # the decoders raise nearly anything on broken bytes
            return f"{type(error).__name__}: {error}"

    done = in_threads(decode, paths, "decoding")
    broken = [f"{path} ({found})" for path, found in zip(paths, done, strict=True) if isinstance(found, str)]
    if broken:
        count = f"{len(broken):,} of {len(paths):,} clips cannot be used"
        raise DataError(f"{count}: {', '.join(broken)}; replace or remove what is named")
    clips = [found for found in done if not isinstance(found, str)]
    for what, axes, fix in (
        ("length", (1,), "set data.options=num_frames=N, of which the first N are taken"),
        ("size", (2, 3), "set data.image_size, to which they are resized and cropped"),
    ):
        counts = Counter(tuple(clip.shape[axis] for axis in axes) for clip in clips)
        if len(counts) > 1:
            shown = ", ".join(f"{'x'.join(map(str, one))} ({n:,} clips)" for one, n in counts.most_common(10))
            raise DataError(f"clips must all be of one {what}, got {len(counts)}: {shown}; {fix}")
    return clips
