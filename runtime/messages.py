"""Lines on standard error."""

from __future__ import annotations

import contextlib
import sys

from tqdm import tqdm


def say(message: str) -> None:
    """Print a line to standard error without breaking a progress bar; a closed stream is ignored."""
    with contextlib.suppress(OSError, ValueError):
        tqdm.write(message, file=sys.stderr)
