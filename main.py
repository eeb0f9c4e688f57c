"""Train, measure, sample, import, export: ``python main.py --config configs/vp/digits.py --mode train``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.terminal import forgiving_streams
from runtime.threads import choose_wait_policy

_MODES = ("train", "eval", "sample", "import", "export")


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
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
    for name, of, kind in (
        ("source", "import", str), ("checkpoint", "import", path), ("format", "export", str), ("output", "export", path)
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default="", help=f"of --mode {of}: see docs/checkpoints.md")
    return parser.parse_known_args(arguments)


def _say(error: BaseException, line: str) -> None:
    """Print a line on standard error; of the processes of torchrun, one does."""
    from training.ranks import speaks

    if speaks(error):
        print(line, file=sys.stderr)


@forgiving_streams()
def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: The arguments; None takes the process's own.

    Returns:
        The exit code: 0 done, 2 it cannot work (one line says why); of a signal that stopped it, 128 more than its
        number (Ctrl-C: 130).
    """
    options, overrides = _parse(arguments)
    if chosen := choose_wait_policy():
        print(chosen, file=sys.stderr)
    try:
        # imported late, so that --help and typos answer at once
        from configs.default import get_default_config
        from evaluation.commands import run_mode
        from training.config import check_flags, import_plugins, load_config
        from training.workdir import default_workdir

        check_flags(options.mode, vars(options))
        config = load_config(options.config, overrides, defaults=get_default_config())
        import_plugins(config.get("plugins", ()))
        workdir = Path(options.workdir) if options.workdir else default_workdir(options.config)
        run_mode(options.mode, config, workdir, vars(options))
    except KeyboardInterrupt as stopped:
        _say(stopped, str(stopped) or "stopped")
        return 128 + getattr(stopped, "signal_number", signal.SIGINT)
    except (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        if os.environ.get("SDE_TRACEBACK"):
            raise
        _say(error, f"error: {' '.join(str(error).split())}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
