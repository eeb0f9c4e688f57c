"""Prompts: texts of a user, as a model is told them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data import DataError, ImageKind, Vocabulary, longest

from ..conditions import Conditions, Observed


def read_prompts(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        DataError: In one line, if it cannot be read, or has none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--prompts {path} cannot be read ({error}); give a text file with one prompt a line") from None
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"--prompts {path} has no prompt; write one a line")
    return prompts


def observed_prompts(conditions: Conditions, prompts: Sequence[str]) -> tuple[Observed, list[str]]:
    """Prompts as observations of a model that is told captions and no image or values.

    Args:
        conditions: What the model is told.
        prompts: The texts; one that is empty is no text.

    Returns:
        The observations, one a prompt, and lines on what was cut off.

    Raises:
        DataError: In one line: the model is told no captions, or more, or a word is unknown.
    """
    if conditions.text is None:
        raise DataError(
            "a prompt is of models that are told captions, got one that is told none; leave it out, or train one with "
            "data.condition=text"
        )
    if conditions.images or conditions.values:
        raise DataError("a prompt is of models that are told nothing besides it, got one that is told more")
    kind = conditions.kind
    assert isinstance(kind, ImageKind) and kind.text is not None
    vocabulary, most, notes = Vocabulary(kind.text.vocabulary), conditions.text.max_words, []
    vocabulary.check([prompt for prompt in prompts if prompt])
    longer = sum(longest([prompt]) > most for prompt in prompts)
    if longer:
        notes.append(f"{longer} of {len(prompts)} prompts have more than {most} words, and were cut off there")
    return Observed(texts={"words": vocabulary.numbers(prompts, most)}), notes
