"""The share of samples whose condition, or a part of it, is left out in training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.condition import PARTS
from runtime.registry import choices_message

from .files import Config, parse_options

if TYPE_CHECKING:
    from ..conditions import Conditions


def part_rates(config: Config) -> dict[str, float]:
    """``model.part_dropout``, such as "text=0.5, image=0.1", as numbers by part.

    Raises:
        ValueError: In one line: a part is unknown, or its share is not inside (0, 1).
    """
    rates = parse_options(config.model.get("part_dropout", ""))
    for part, rate in rates.items():
        if part not in PARTS:
            raise ValueError(choices_message("part in config.model.part_dropout:", part, sorted(PARTS)))
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate < 1:
            raise ValueError(f"config.model.part_dropout must be inside (0, 1) for {part}, got {rate}; set it so")
    return rates


def leaves_out(config: Config) -> bool:
    """True if the network is trained without its condition now and then."""
    return bool(config.model.get("condition_dropout", 0.0) or config.model.get("part_dropout", ""))


def check_parts(config: Config, conditions: Conditions) -> None:
    """Refuse to leave out what a model is not told, or to train no sample that is told nothing.

    Args:
        config: The config.
        conditions: What the model is told.

    Raises:
        ValueError: In one line.
    """
    by_part = {
        "class": conditions.labels, "image": conditions.images, "values": conditions.values,
        "text": conditions.text is not None,
    }  # fmt: skip
    told = [part for part, given in by_part.items() if given]
    rates, told_in_words = part_rates(config), ", ".join(told) or "nothing"
    for part in rates:
        if part not in told:
            raise ValueError(
                f"config.model.part_dropout leaves out {part}, which the model is not told (it is told "
                f"{told_in_words}); leave it out of the key, or set data.condition"
            )
    if rates and not config.model.get("condition_dropout", 0.0) and len(rates) < len(told):
        raise ValueError(
            f"config.model.part_dropout must name all that the model is told ({told_in_words}), got "
            f"{', '.join(rates)}: no sample would be told nothing, which guidance asks for; or set "
            "model.condition_dropout too"
        )
