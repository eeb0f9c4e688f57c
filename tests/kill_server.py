"""Starts runs of ``main.py`` by fork, from a process that has imported everything, which die as they are told.

A request is a line of JSON on standard input, an answer one on standard output. A run that is told to ``die_at`` n
kills itself with SIGKILL at its n-th operation on files, counted from the first step, or while checkpoints are written
only (``inside``): each opening, renaming, making and deleting, before and after each fsync, in the middle of each
write.
"""

import json
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")


class _Countdown:
    """Ends the process at the n-th tick."""

    def __init__(self, left: int, inside: bool) -> None:
        self._left, self._inside, self.running = left, inside, False

    def tick(self) -> None:
        if self.running:
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def install(self) -> None:
        import experiment.checkpoints.folder
        import training.log
        import training.state
        from runtime.files import write_atomically

        sync, save, write_whole = os.fsync, training.state.save_checkpoint, experiment.checkpoints.folder.write_synced

        def counted_sync(descriptor: int) -> None:
            self.tick()
            sync(descriptor)
            self.tick()

        def torn_write(path: Path, chunks: Iterable[bytes]) -> None:
            data = b"".join(chunks)
            path.write_bytes(data[: len(data) // 2])
            self.tick()
            write_whole(path, [data])

        def save_inside(*args: Any, **kwargs: Any) -> Path:
            self.running = True
            try:
                return save(*args, **kwargs)
            finally:
                self.running = not self._inside

        os.fsync = counted_sync
        experiment.checkpoints.folder.write_synced = torn_write
        training.state.save_checkpoint = save_inside
        # a picture takes longer than all the rest
        training.log.save_learning_curve = lambda path, *_: write_atomically(path, b"a picture")
        sys.addaudithook(lambda event, _: self.tick() if event in OPERATIONS else None)


def _run(request: dict[str, Any], began: int) -> int:
    """The work of a forked process; it says on ``began`` that the first step is done."""
    import main
    from training.log import TrainingLog

    os.environ |= request["environment"]
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    countdown = _Countdown(request["die_at"] or sys.maxsize, request["inside"])
    countdown.install()
    advance = TrainingLog.advance

    def first(log: TrainingLog) -> None:
        TrainingLog.advance = advance
        os.write(began, b"!")
        countdown.running = not request["inside"]
        advance(log)

    TrainingLog.advance = first
    return main.run(request["arguments"])


def _serve() -> None:
    import pytest
    import sklearn.datasets  # noqa: F401
    import torch._dynamo  # noqa: F401
    from shortcuts import take_shortcuts

    import commands.run_mode  # noqa: F401
    from commands.modes import MODES

    assert all(callable(mode.function) for mode in MODES.values())
    take_shortcuts(pytest.MonkeyPatch())

    ready: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any = None
        if request["do"] == "start":
            ours, theirs = os.pipe()
            answer = os.fork()
            if answer == 0:
                code = 1
                try:
                    code = _run(request, theirs)
                finally:
                    os._exit(code)
            os.close(theirs)
            ready[answer] = ours
        elif request["do"] == "began":
            answer = os.read(ready[request["pid"]], 1) == b"!"
        elif request["do"] == "wait":
            answer = os.waitstatus_to_exitcode(os.waitpid(request["pid"], 0)[1])
            os.close(ready.pop(request["pid"]))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()
