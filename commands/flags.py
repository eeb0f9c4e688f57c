"""The flags of ``main.py``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from .listing import REGISTRIES, list_names

_MODES = ("train", "eval", "sample", "import", "export")


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


def parse_flags(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line's own flags.

    Args:
        arguments: The arguments; None takes the process's own.

    Returns:
        The flags, and the arguments that are left: overrides of the config.

    Raises:
        SystemExit: After a usage message, if a flag is wrong or missing.
    """
    parser = argparse.ArgumentParser(
        description="Train, measure and sample score-based diffusion models.",
        epilog="Any key of the config can be set, as in --config.training.batch_size=64.",
        allow_abbrev=False,
    )
    path = os.path.expanduser  # shells leave the ~ of --workdir=~/runs to us
    parser.add_argument("--config", type=path, required=True, help="a config file, such as configs/vp/digits.py")
    parser.add_argument("--mode", required=True, choices=_MODES, help="what to do")
    where = "where the run lives; default: runs/<family>/<config name>"
    parser.add_argument("--workdir", type=path, default="", help=where)
    for name, of in (("source", "import"), ("format", "export")):
        parser.add_argument(f"--{name}", default="", help=f"of --mode {of}: see docs/pretrained.md")
    for name, of in (("checkpoint", "import"), ("init-from", "train")):
        parser.add_argument(f"--{name}", type=_given_path, help=f"of --mode {of}: see docs/pretrained.md")
    names = f"list the names that a config may use, of {', '.join(REGISTRIES)}"
    parser.add_argument("--list", action=_List, choices=list(REGISTRIES), metavar="KIND", help=names)
    parser.add_argument("--output", type=path, default="", help="of --mode export and sample: the folder to write in")
    return parser.parse_known_args(arguments)
