"""Runs of seconds of a ControlNet: what the tests of it share."""

from pathlib import Path

from tiny import tiny_command

HINT = ["--config.data.condition=edges", "--config.data.condition_options=threshold=0.75"]


def control_command(mode: str, workdir: Path, base: Path, *extra: str) -> list[str]:
    widths = "--config.control.hint_widths=4,8"
    return tiny_command(mode, workdir, f"--config.control.base={base}", widths, *HINT, *extra)
