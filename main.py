"""Train, measure, sample, import, export: ``python main.py --config configs/vp/digits.py --mode train``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from commands.flags import parse_flags
from runtime.terminal import forgiving_streams
from runtime.threads import choose_wait_policy


def _say(error: BaseException, line: str) -> None:
    """Print a line on standard error; of the processes of torchrun, one does."""
    from runtime.processes.ranks import prints_error

    if prints_error(error):
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
    options, overrides = parse_flags(arguments)
    choose_wait_policy()
    try:
        # imported late, so that --help and typos answer at once
        from commands.run_mode import run_mode
        from configs.default import get_default_config
        from experiment.config import check_flags, import_plugins, load_config
        from experiment.workdir import default_workdir

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
