"""Captions as numbers of words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Int64
from torch import Tensor

from .errors import DataError

NO_WORD = 0  # fills the rest of a row; words count from 1
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def split_words(caption: str) -> list[str]:
    """The words of a caption, in lower case and without punctuation."""
    return _WORD.findall(caption.casefold())


@dataclass(frozen=True)
class Vocabulary:
    """Words by number, from 1 on.

    Args:
        words: Different words, as ``split_words`` gives them.
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, captions: Iterable[str]) -> Vocabulary:
        """All words of captions, sorted."""
        return cls(tuple(sorted({word for caption in captions for word in split_words(caption)})))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, 1)}

    def unknown(self, captions: Iterable[str]) -> list[str]:
        """The words of captions that are not among these, sorted."""
        return sorted({word for caption in captions for word in split_words(caption)}.difference(self._numbers))

    def numbers(self, captions: Sequence[str], max_words: int) -> Int64[Tensor, "captions words"]:
        """The words of captions, int64 [N, max_words], 0 after the last; unknown ones are left out.

        A caption of more words is cut off.
        """
        found = torch.full((len(captions), max_words), NO_WORD, dtype=torch.int64)
        for row, caption in zip(found, captions, strict=True):
            known = [self._numbers[word] for word in split_words(caption) if word in self._numbers][:max_words]
            row[: len(known)] = torch.tensor(known, dtype=torch.int64)
        return found

    def count_longer(self, captions: Iterable[str], max_words: int) -> int:
        """The number of captions that have more than ``max_words`` of these words."""
        return sum(sum(word in self._numbers for word in split_words(caption)) > max_words for caption in captions)

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse prompts with words that are not among these, or without any.

        Raises:
            DataError: In one line, with the words that are most like the first of them.
        """
        for prompt in prompts:
            if not split_words(prompt):
                raise DataError(f"a prompt must have a word, got {prompt!r}; write what is to be drawn")
        unknown = self.unknown(prompts)
        if unknown:
            like = difflib.get_close_matches(unknown[0], self.words, n=3)
            meant = f"did you mean {' or '.join(like)}?" if like else f"known are {_listed(self.words)}"
            raise DataError(f"unknown word {unknown[0]!r}: it is in no caption that the model was trained on; {meant}")


@dataclass(frozen=True)
class TextKind:
    """Captions without their words: all that a network and its checkpoints need to know of them.

    Args:
        vocabulary: The words that a network learns itself, by number from 1 on; empty where a frozen encoder reads.
        encoder: Digest of the frozen encoder; "" of none.
        features: Features of its tokens; 0 of none.
        pooled_features: Features of its vector of a whole text; 0 of none.
    """

    vocabulary: tuple[str, ...] = ()
    encoder: str = ""
    features: int = 0
    pooled_features: int = 0


def _listed(words: Sequence[str], most: int = 12) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def longest(captions: Iterable[str]) -> int:
    """Words of the longest caption."""
    return max((len(split_words(caption)) for caption in captions), default=0)
