"""The flags of ``main.py``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .listing import REGISTRIES, list_names
from .modes import MODES


class _List(argparse.Action):
    """Print the names of a kind and exit, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        print(list_names(values))
        parser.exit()


def _given_path(text: str) -> str:
    """A path that an unset variable of a shell has not left empty."""
    if not text:
        raise argparse.ArgumentTypeError("needs a path, got none")
    return os.path.expanduser(text)


def _given_text(text: str) -> str:
    """A text that an unset variable of a shell has not left empty."""
    if not text.strip():
        raise argparse.ArgumentTypeError("needs a text, got none")
    return text


_path = os.path.expanduser  # shells leave the ~ of --workdir=~/runs to us

# flags that belong to a mode: how their value is read, and what they say
_FLAGS = {
    "source": (str, "see docs/pretrained.md"),
    "format": (str, "see docs/pretrained.md"),
    "checkpoint": (_given_path, "see docs/pretrained.md"),
    "init_from": (_given_path, "see docs/pretrained.md"),
    "output": (_path, "the folder to write in"),
    "input": (_given_path, "condition images or values, or what was measured, in place of those of a split"),
    "hint": (
        _given_path,
        "an image or a folder of them for a ControlNet, in place of those made of a split; once each",
    ),
    "prompt": (_given_text, "a text to draw samples of, in place of the captions of a split"),
    "prompts": (_given_path, "a file of such texts, one a line, in turn"),
    "sigma_rel": (float, "the width of the average, as a share of the training: docs/ema.md"),
    "mask": (_given_path, "an image that is white where restore.operator=inpaint sees, black where it fills in"),
}

# flags that may be given several times
_REPEATED = ("hint",)


def _modes_of(flag: str) -> str:
    """The modes that have a flag, in words."""
    *others, last = sorted(name for name, mode in MODES.items() if flag in mode.flags)
    return f"{', '.join(others)} and {last}" if others else last


def parse_flags(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line's own flags.

    Args:
        arguments: The arguments; None takes the process's own.

    Returns:
        The flags, and the arguments that are left: overrides of the config.

    Raises:
        SystemExit: After a usage message, if a flag is wrong or missing.
    """
    modes = "".join(f"  {name:10}{mode.does}\n{'':12}main.py {mode.example}\n" for name, mode in MODES.items())
    parser = argparse.ArgumentParser(
        description="Train, measure and sample score-based diffusion models.",
        epilog=f"modes:\n{modes}\nAny key of the config can be set, as in --config.training.batch_size=64.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=_path, required=True, help="a config file, such as configs/vp/digits.py")
    parser.add_argument("--mode", required=True, choices=MODES, help="what to do: see below")
    where = "where the run lives; default: runs/<family>/<config name>"
    parser.add_argument("--workdir", type=_path, default="", help=where)
    for name, (kind, said) in _FLAGS.items():
        action = "append" if name in _REPEATED else "store"
        text = f"of --mode {_modes_of(name)}: {said}"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, action=action, help=text)
    names = f"list the names that a config may use, of {', '.join(REGISTRIES)}"
    parser.add_argument("--list", action=_List, choices=list(REGISTRIES), metavar="KIND", help=names)
    return parser.parse_known_args(arguments)


def check_flags(mode: str, flags: Mapping[str, Any]) -> None:
    """Refuse flags of another mode.

    Args:
        mode: The mode.
        flags: Flags and their values, "" or None where not given.

    Raises:
        ValueError: Naming the first of them.
    """
    for name in _FLAGS:
        if flags.get(name) and name not in MODES[mode].flags:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} is a flag of --mode {_modes_of(name)}, got --mode {mode}; leave it out")
