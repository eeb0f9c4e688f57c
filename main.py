"""Train, measure, sample, import, export: ``python main.py --config configs/vp/digits.py --mode train``."""

from __future__ import annotations

import os
import signal
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from commands.flags import check_flags, parse_flags
from runtime.terminal import forgiving_streams
from runtime.threads import choose_wait_policy

if TYPE_CHECKING:
    from runtime.processes.ranks import Ranks


@forgiving_streams()
def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: The arguments; None takes the process's own.

    Returns:
        The exit code: 0 done, 2 it cannot work (one line says why), 128 + n stopped by signal n (Ctrl-C: 130).
    """
    options, overrides = parse_flags(arguments)
    choose_wait_policy()
    # imported late, so that --help and typos answer at once
    from runtime.processes.ranks import Ranks

    try:
        ranks = Ranks.from_environment()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with ranks:
        return _run(options, overrides, ranks)


def _run(options: Namespace, overrides: list[str], ranks: Ranks) -> int:
    """Do what the flags say, as one of the processes of a job; of its errors one process prints one line."""
    try:
        from commands.run_mode import run_mode
        from configs.default import get_default_config
        from experiment.config import import_plugins, load_config, load_stages
        from experiment.workdir import default_workdir

        check_flags(options.mode, vars(options))
        config = load_config(options.config, overrides, defaults=get_default_config())
        import_plugins(config.get("plugins", ()))
        workdir = Path(options.workdir) if options.workdir else default_workdir(options.config)
        stages = load_stages(config, options.config, overrides, defaults=get_default_config())
        run_mode(options.mode, config, workdir, vars(options), ranks, stages=stages)
    except KeyboardInterrupt as stopped:
        code = 128 + getattr(stopped, "signal_number", signal.SIGINT)
        if ranks.speaks(stopped, code):
            print(str(stopped) or "stopped", file=sys.stderr)
        return code
    except Exception as error:
        expected = isinstance(error, (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError))
        if os.environ.get("SDE_TRACEBACK") or (ranks.world == 1 and not expected):
            raise
        if ranks.speaks(error, 2):
            head = "error: " if ranks.first else f"\nerror: rank {ranks.rank}: "  # off rank 0's progress bar
            kind = "" if expected else f"{type(error).__name__}: "
            print(f"{head}{kind}{' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(run())
