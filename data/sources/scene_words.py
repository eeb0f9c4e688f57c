"""Scenes of two digits in words: their captions, how often each scene is drawn, and what a picture can tell of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from runtime.registry import choices_message

from ..base import check_split
from ..errors import DataError
from .draws import SCENES, WRONG_CAPTIONS, uniform_draws

SIZES = ("small", "big")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = ("above", "below", "left of", "right of")
HELD_OUT = (("red", 0), ("green", 2), ("blue", 4), ("yellow", 6), ("purple", 8), ("white", 7))
PAIRS = ("seen", "held_out")
_OPPOSITE = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}


@dataclass(frozen=True)
class SceneObject:
    """One coloured digit.

    Attributes:
        size: "small" or "big".
        colour: One of ``COLOURS``.
        digit: 0 .. 9.
    """

    size: str
    colour: str
    digit: int

    def in_words(self, *, say_big: bool = False) -> str:
        """Its words, such as "a small red three"; a big one has no word of size unless ``say_big``."""
        size = f"{self.size} " if self.size == "small" or say_big else ""
        return f"a {size}{self.colour} {DIGIT_WORDS[self.digit]}"


@dataclass(frozen=True)
class Scene:
    """Two coloured digits, and where the first is from the second.

    Attributes:
        first: The object that is named first.
        second: The other one.
        relation: One of ``RELATIONS``.
    """

    first: SceneObject
    second: SceneObject
    relation: str

    @property
    def caption(self) -> str:
        """Its caption that never says "big", such as "a small red three above a blue seven"."""
        return self.in_words()

    def in_words(self, *, say_big: tuple[bool, bool] = (False, False)) -> str:
        """A caption of it, in which "big" is said of those objects that are."""
        first, second = (one.in_words(say_big=say) for one, say in zip((self.first, self.second), say_big, strict=True))
        return f"{first} {self.relation} {second}"

    @cached_property
    def in_place(self) -> Scene:
        """The same picture with its upper or left object named first: a relation "above" or "left of"."""
        if self.relation in ("above", "left of"):
            return self
        return Scene(self.second, self.first, _OPPOSITE[self.relation])


def parse_caption(text: str) -> Scene:
    """The scene that a caption tells: "a [small|big] COLOUR DIGIT RELATION a [small|big] COLOUR DIGIT".

    No word of size is big. Capitals and spaces do not matter.

    Raises:
        ValueError: If it is no such caption, naming the word.
    """
    words = text.lower().split()
    whole = len(words)

    def take(choices: tuple[str, ...], *, default: str | None = None) -> str:
        for choice in choices:
            parts = choice.split()
            if words[: len(parts)] == parts:
                del words[: len(parts)]
                return choice
        if default is not None:
            return default
        got = f"{words[0]!r} as word {whole - len(words) + 1}" if words else "its end"
        raise ValueError(
            f"caption {text!r} must go on with {' or '.join(choices)}, got {got}; "
            "write one such as 'a small red three above a blue seven'"
        )

    def take_object() -> SceneObject:
        take(("a",))
        size = take(SIZES, default="big")
        return SceneObject(size, take(COLOURS), DIGIT_WORDS.index(take(DIGIT_WORDS)))

    first, relation, second = take_object(), take(RELATIONS), take_object()
    if words:
        raise ValueError(f"caption {text!r} must end after two objects, got {words[0]!r} beyond; leave it out")
    return Scene(first, second, relation)


def objects_of(pairs: str = "seen") -> tuple[SceneObject, ...]:
    """All objects that scenes are drawn from, each as likely as any other.

    Args:
        pairs: "seen", all of 2 sizes, 6 colours and 10 digits but those of the pairs ``HELD_OUT``: 108 objects;
            "held_out", those of these pairs: 12.

    Raises:
        DataError: If it is neither.
    """
    if pairs not in PAIRS:
        raise DataError(choices_message("pairs", pairs, list(PAIRS)))
    every = product(COLOURS, range(10))
    chosen = [pair for pair in every if (pair in HELD_OUT) == (pairs == "held_out")]
    return tuple(SceneObject(size, colour, digit) for size in SIZES for colour, digit in chosen)


def entropy_bits(pairs: str = "seen") -> float:
    """Entropy of a scene in bits: 2 log2(M) + 2, for two of M equally likely objects and one of four relations.

    M = 108 for seen pairs, 15.51 bits; 12 for held-out ones, 9.17 bits. The words of a caption have 1 bit more, on
    average, as "big" is said of half of the big objects, of which half are; no picture has that in it.
    """
    return 2 * math.log2(len(objects_of(pairs))) + 2


def information_bits(pairs: str = "seen", *, wrong_captions: float = 0.0) -> float:
    """The most that a picture can say of its caption, I(x; c) in bits.

    A picture says at best which two objects are at which places. That fits two captions, one for either object named
    first, "A above B" and "B below A", which differ in their relation and are equally likely. So of the H bits of
    ``entropy_bits`` a picture has at most H - 1: 14.51 for seen pairs. If a share rho of the captions is drawn anew
    from all K = 2^H, each of the two that fit has probability q = (1 - rho) / 2 + rho / K, each other one
    r = rho / K, and

        I(x; c) <= log2 K + 2 q log2 q + (K - 2) r log2 r.

    Args:
        pairs: See ``objects_of``.
        wrong_captions: rho, 0 .. 1.

    Raises:
        DataError: If an argument is out of range.
    """
    _check_rate(wrong_captions)
    scenes = 4 * len(objects_of(pairs)) ** 2
    fits, other = (1 - wrong_captions) / 2 + wrong_captions / scenes, wrong_captions / scenes
    known = 2 * fits * math.log2(fits) + ((scenes - 2) * other * math.log2(other) if other else 0.0)
    return math.log2(scenes) + known


def scenes_of(split: str, count: int, *, pairs: str = "seen") -> tuple[Scene, ...]:
    """The true scenes of the first images of the data set ``scenes``, also where their captions are wrong.

    Args:
        split: ``"train"`` or ``"test"``.
        count: Number of scenes.
        pairs: See ``objects_of``.
    """
    return _scenes(scene_draws(split, count, pairs), pairs)


def captions_of(split: str, count: int, *, pairs: str = "seen", wrong_captions: float = 0.0) -> tuple[str, ...]:
    """The captions of these images; also prompts to draw from, as many as are asked for.

    Args:
        split: See ``scenes_of``; so is pairs.
        count: Number of captions.
        pairs: See ``objects_of``.
        wrong_captions: Probability of a caption to be that of another scene, drawn by itself; see ``load_scenes``.

    Raises:
        DataError: If an argument is out of range.
    """
    _check_rate(wrong_captions)
    drawn = scene_draws(split, count, pairs)[:, :_OF_CAPTION]
    if wrong_captions:
        other = uniform_draws(WRONG_CAPTIONS, split, count, PAIRS.index(pairs), numbers=1 + _OF_CAPTION)
        drawn = np.where(other[:, :1] < wrong_captions, other[:, 1:], drawn)
    say_big = (drawn[:, 5:7] < 0.5).tolist()
    return tuple(
        scene.in_words(say_big=(first, second))
        for scene, (first, second) in zip(_scenes(drawn, pairs), say_big, strict=True)
    )


def scene_draws(split: str, count: int, pairs: str) -> np.ndarray:
    """The draws of images 0 .. count - 1, [count, 13]: relation, objects, is "big" said of each, and their places.

    Columns: relation; size and pair of either object; "big" of either; base image, place along the relation and across
    it of either.
    """
    check_split(split)
    objects_of(pairs)
    return uniform_draws(SCENES, split, count, PAIRS.index(pairs), numbers=13)


_OF_CAPTION = 7  # draws that a caption depends on


def _scenes(drawn: np.ndarray, pairs: str) -> tuple[Scene, ...]:
    objects = objects_of(pairs)
    chosen = (drawn[:, 1:5:2] >= 0.5) * (len(objects) // 2) + (drawn[:, 2:5:2] * (len(objects) // 2)).astype(int)
    relations = (drawn[:, 0] * len(RELATIONS)).astype(int).tolist()
    return tuple(
        Scene(objects[first], objects[second], RELATIONS[relation])
        for (first, second), relation in zip(chosen.tolist(), relations, strict=True)
    )


def _check_rate(wrong_captions: float) -> None:
    if isinstance(wrong_captions, bool) or not isinstance(wrong_captions, (int, float)) or not 0 <= wrong_captions <= 1:
        raise DataError(f"wrong_captions must be a probability, 0 .. 1, got {wrong_captions!r}; try wrong_captions=0.2")
