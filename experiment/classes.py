"""Classes by number or name, as a config or a reader asks for them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from data import AnyKind

from .config import Config

_MOST_NAMES = 20  # that an error lists


def classes_of(config: Config, kind: AnyKind) -> tuple[int, ...] | None:
    """The classes that samples are drawn of, in turn: those of ``sampling.classes``, or all.

    Args:
        config: The config.
        kind: The images that the model is for, as ``with_classes_of_classifier`` gives them.

    Returns:
        Numbers of classes; None of an unconditional model that no classifier guides.

    Raises:
        ValueError: If there is no such class, or the model knows no classes.
    """
    asked = tuple(config.sampling.classes)
    if not (config.model.class_conditional or config.sampling.classifier):
        if asked:
            raise ValueError(
                f"sampling.classes={','.join(map(str, asked))} needs a class-conditional model, got one without "
                "classes; leave it out, train one with model.class_conditional=True, or set sampling.classifier"
            )
        return None
    names = kind.class_names
    numbers = tuple(class_number(one, kind.num_classes, names, where=" in sampling.classes") for one in asked)
    return numbers or tuple(range(kind.num_classes))


def class_number(asked: int | str, num_classes: int, names: Sequence[str], *, where: str = "") -> int:
    """Find the class of a number or of a name.

    Args:
        asked: The number, from 0 on, or the name. A name that is a whole number is taken for the number.
        num_classes: The number of classes.
        names: Their names, if they have names.
        where: The origin of the wish, for the message, such as " in sampling.classes".

    Raises:
        ValueError: If there is no such class; the message lists the choices.
    """
    text = str(asked).strip()
    if text.isdecimal() and int(text) < num_classes:
        return int(text)
    # whole numbers are numbers of classes, also where names are numbers, and a command line takes a comma for the next
    named = [name for name in names if not name.isdecimal() and "," not in name]
    if text in named:
        return names.index(text)
    if text in names:
        raise ValueError(
            f"class {text!r}{where} is taken by its number, which is {names.index(text)}; choices: 0 to "
            f"{num_classes - 1}"
        )
    close = difflib.get_close_matches(text, named, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listed = ", ".join(named[:_MOST_NAMES]) + (", ..." if len(named) > _MOST_NAMES else "")
    raise ValueError(
        f"unknown class {text!r}{where}; {hint}choices: 0 to {num_classes - 1}" + (f", or {listed}" if listed else "")
    )
