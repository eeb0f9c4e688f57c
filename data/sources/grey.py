"""Grey images of more than 8 bits a pixel, and whether a folder is grey at all."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import DataError

BIT_DEPTHS = (8, 10, 12, 14, 16)
UNIT_SLACK = 1.05  # filters overshoot: floating point up to here is still of a white of 1


@dataclass(frozen=True)
class GreyRule:
    """A rule that turns wide grey values into 8 bits, for all images of a folder alike.

    Attributes:
        bits: Depth of integers; the upper 8 bits of it are kept.
        float_white: White of floating point, 1 or 255.
        notes: Lines on what was decided.
    """

    bits: int = 16
    float_white: float = 255.0
    notes: tuple[str, ...] = ()

    def to_8_bits(self, image: Image.Image) -> Image.Image:
        """The image, if it is of wide grey values as one of mode L, or LA where one of its values is transparent.

        Raises:
            ValueError: If a value lies outside the range.
        """
        if not is_wide(image):
            return image
        values = np.asarray(image)
        if image.mode == "F":
            _check(values, UNIT_SLACK if self.float_white == 1 else self.float_white)
            scaled = values.clip(0, self.float_white) * (255 / self.float_white)
            return Image.fromarray(scaled.round().astype(np.uint8))
        _check(values, 2**self.bits - 1)
        grey = Image.fromarray((values >> (self.bits - 8)).astype(np.uint8))
        if "transparency" in image.info:  # several wide values become one of 8 bits: only here can it be told apart
            opaque = Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8))
            return Image.merge("LA", (grey, opaque))
        return grey


def is_wide(image: Image.Image) -> bool:
    """Tell grey values of more than 8 bits from others, without decoding."""
    return image.mode == "F" or image.mode.startswith("I")


def look_for_grey(path: Path) -> tuple[bool, tuple[str, float] | None]:
    """Tell grey images from coloured ones, by their headers, and how far grey values of more than 8 bits go.

    Returns:
        Whether it is grey, as a file that cannot be opened is taken to be; and ``"integers"`` or ``"floats"`` with the
        highest of them, or None of images of 8 bits, or that cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            if is_wide(image):
                image.load()
                return True, ("floats" if image.mode == "F" else "integers", float(np.asarray(image).max()))
            if image.mode == "P":
                palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
                return bool((palette == palette[:, :1]).all()), None
            return image.mode in ("1", "L", "LA"), None
    except Exception:  # named with the other broken ones, when it is decoded
        return True, None


def choose_grey_rule(found: Sequence[tuple[str, float] | None]) -> GreyRule:
    """The rule for a folder, of the highest value of each of its images, as ``look_for_grey`` says it."""
    integers = [high for kind, high in filter(None, found) if kind == "integers"]
    floats = [high for kind, high in filter(None, found) if kind == "floats"]
    bits = next((bits for bits in BIT_DEPTHS if max(integers, default=0) < 2**bits), 16)
    float_white = 1.0 if max(floats, default=0) <= UNIT_SLACK else 255.0
    notes = []
    for values, white, kind in ((integers, 2**bits - 1, "more than 8 bits"), (floats, float_white, "floating point")):
        if values:
            reach = f"grey values of {kind} ({len(values):,} images) reach {max(values):,g}"
            cut = ", and what is above is cut off" if max(values) > white else ""
            notes.append(f"{reach}: white is taken to be {white:,g}{cut}")
    return GreyRule(bits, float_white, tuple(notes))


def _check(values: np.ndarray, white: float) -> None:
    # written so that a NaN is refused
    if not (values.min() >= 0 and values.max() <= white):
        raise DataError(
            f"grey values must lie in 0 .. {white:g}, got {values.min():g} .. {values.max():g}: rescale them"
        )
