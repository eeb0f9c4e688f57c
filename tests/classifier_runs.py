"""Runs of seconds of a classifier: what the tests of them share."""

from pathlib import Path

from tiny import tiny_command

CLASSIFIER = "vp/digits_classifier"


def classifier_command(mode: str, workdir: Path, *extra: str) -> list[str]:
    return tiny_command(mode, workdir, *extra, config=CLASSIFIER)
