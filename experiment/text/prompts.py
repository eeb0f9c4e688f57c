"""Prompts: texts of a user, as a model is told them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data import AnyKind, DataError, Vocabulary, longest
from models import Condition, ScoreModel
from models.wrappers.guidance import lacks_null_condition
from runtime.messages import say

from ..conditions import Conditions, Observed, build_conditions
from ..config import Config
from .frozen import fields_of, load_text_encoder, reads_by_frozen, said_of_tokens


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


def observed_prompts(config: Config, conditions: Conditions, prompts: Sequence[str]) -> tuple[Observed, list[str]]:
    """Prompts as observations of a model that is told captions: what it is told besides is not in them.

    Args:
        config: The config, which names the text encoder.
        conditions: What the model is told.
        prompts: The texts; one that is empty is no text.

    Returns:
        The observations, one a prompt, and lines on what was cut off.

    Raises:
        DataError: In one line: the model is told no captions, or a word is unknown.
    """
    if conditions.text is None:
        raise DataError(
            "a prompt is of models that are told captions, got one that is told none; leave it out, or train one with "
            "data.condition=text"
        )
    kind = conditions.kind
    assert kind is not None and kind.text is not None
    if kind.text.encoder:
        return _read_by_frozen(config, kind.text.encoder, prompts)
    vocabulary, most, notes = Vocabulary(kind.text.vocabulary), conditions.text.max_words, []
    vocabulary.check([prompt for prompt in prompts if prompt])
    longer = sum(longest([prompt]) > most for prompt in prompts)
    if longer:
        notes.append(f"{longer} of {len(prompts)} prompts have more than {most} words, and were cut off there")
    return Observed(texts={"words": vocabulary.numbers(prompts, most)}), notes


def _read_by_frozen(config: Config, trained_with: str, prompts: Sequence[str]) -> tuple[Observed, list[str]]:
    if not config.data.get("text_encoder"):
        raise DataError("the model reads by a frozen text encoder; set data.text_encoder as it was trained")
    encoder = load_text_encoder(config)
    if encoder.fingerprint != trained_with:
        raise DataError(
            f"the model was trained with another text encoder than data.text_encoder={config.data.text_encoder}; name "
            "that one, with the same data.text_options"
        )
    notes = said_of_tokens(encoder, prompts, "prompts")
    return Observed(texts=fields_of(encoder.encode(prompts), encoder)), notes


def negative_prompt(config: Config, kind: AnyKind, model: ScoreModel) -> Condition | None:
    """``sampling.negative_prompt`` as the condition that guidance moves away from; None without.

    A network that reads by a frozen encoder and was never trained without text, as Stable Diffusion's, has the empty
    text for none.

    Raises:
        DataError: In one line, as of other prompts.
    """
    prompt = config.sampling.negative_prompt
    if not prompt and not (reads_by_frozen(config) and lacks_null_condition(model)):
        return None
    conditions = build_conditions(config, kind)
    observed, notes = observed_prompts(config, conditions, [prompt])
    for note in notes:
        say(note)
    assert conditions.text is not None
    return Condition(**conditions.text.tell(observed.texts))
