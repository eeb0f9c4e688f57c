"""The log of a training: a progress bar, TensorBoard, a file of numbers and a learning curve."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import image, scalar

from experiment.pictures import save_learning_curve, save_png
from runtime.files import append_whole, make_folder, one_line, read_regular, write_atomically
from runtime.messages import say
from runtime.terminal import ProgressBar


class _Board:
    """TensorBoard's file of events, each written in full or not at all, at once.

    (PyTorch's own writer has a thread for it, which can only fail with a traceback.)

    Args:
        folder: Where to.
        start: What other files there say of this step and later ones is forgotten.
    """

    def __init__(self, folder: Path, start: int) -> None:
        make_folder(folder)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{time.time_ns()}"
        self._file: FileIO = (folder / name).open("xb", buffering=0)
        self._write(Event(file_version="brain.Event:2", step=start))
        self._write(Event(session_log=SessionLog(status=SessionLog.START), step=start))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        append_whole(self._file, record.getvalue())

    def add(self, summary: Summary, step: int) -> None:
        """Write a summary of a step."""
        self._write(Event(summary=summary, step=step))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TrainingLog:
    """Progress bar, TensorBoard scalars and pictures, and ``logs/metrics.jsonl``.

    What cannot be written is said once and does not end the run; numbers that were missed are written when it can be.

    Args:
        workdir: The work directory; None shows the progress bar alone.
        start: Steps already done; what an interrupted run logged after them is forgotten.
        num_steps: Steps in all.
    """

    def __init__(self, workdir: Path | None, *, start: int, num_steps: int) -> None:
        self._workdir = workdir
        self._records: list[dict[str, float]] = []
        self._said: set[str] = set()
        self._file: FileIO | None = None
        self._board: _Board | None = None
        if workdir is not None:
            self._metrics_path = workdir / "logs" / "metrics.jsonl"
            self._records = [record for record in self._read_metrics() if record["step"] <= start]
            self._write_metrics()
            with self._or_say("TensorBoard's events"):
                self._board = _Board(workdir / "logs", start + 1)
        self._bar = ProgressBar(total=num_steps, initial=start, unit="step", desc="train")

    def close(self) -> None:
        """Close the bar and the files."""
        with contextlib.suppress(OSError):
            self._bar.close()
        for file in (self._board, self._file):
            if file is not None:
                with self._or_say("the logs"):
                    file.close()

    @contextlib.contextmanager
    def _or_say(self, what: str) -> Iterator[None]:
        """Do without what cannot be written, and say so once."""
        try:
            yield
        except OSError as error:
            if what not in self._said:
                self._said.add(what)
                reason = one_line(error.strerror or error)
                say(f"{what} cannot be written in {self._workdir} ({reason}); the training goes on without")

    def _read_metrics(self) -> list[dict[str, float]]:
        try:
            lines = read_regular(self._metrics_path).decode(errors="replace").splitlines()
        except (OSError, ValueError):
            return []
        records = []
        for line in lines:
            try:
                record = json.loads(line)
                records.append(record | {"step": int(record["step"]), "loss": float(record["loss"])})
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                # the last line of a killed run may be cut off
                continue
        return records

    def _write_metrics(self, *added: dict[str, float]) -> None:
        """Append records; all of them are written anew where an earlier try failed."""
        self._records += added
        if self._workdir is None:
            return
        with self._or_say("metrics.jsonl"):
            try:
                lines = "".join(json.dumps(record) + "\n" for record in (added if self._file else self._records))
                if self._file is None:
                    write_atomically(self._metrics_path, lines.encode())
                    self._file = self._metrics_path.open("ab", buffering=0)
                else:
                    append_whole(self._file, lines.encode())
            except OSError:
                self._file = None
                raise

    def advance(self) -> None:
        """One step is done."""
        with contextlib.suppress(OSError):
            self._bar.update()

    def scalars(self, record: dict[str, float]) -> None:
        """Log the numbers of the steps since the last call: "step", "loss", "images_per_second" and others."""
        self._write_metrics(record)
        with self._or_say("TensorBoard's events"):
            for key, value in record.items():
                if key != "step" and self._board is not None:
                    self._board.add(scalar(f"train/{key}", value), int(record["step"]))
        with contextlib.suppress(OSError):
            self._bar.set_postfix_str(f"loss {record['loss']:.4f}, {record['images_per_second']:.0f} samples/s")

    def samples(self, step: int, picture: np.ndarray) -> None:
        """Log a picture of samples, uint8 [H, W, 3], to TensorBoard and ``samples/``."""
        with self._or_say("TensorBoard's events"):
            if self._board is not None:
                self._board.add(image("samples", picture, dataformats="HWC"), step)
        if self._workdir is None:
            return
        with self._or_say("pictures"):
            save_png(self._workdir / "samples" / f"training_{step:08d}.png", picture)

    def learning_curve(self) -> None:
        """Write ``logs/learning_curve.png``."""
        if self._records and self._workdir is not None:
            steps = [int(record["step"]) for record in self._records]
            losses = [record["loss"] for record in self._records]
            with self._or_say("pictures"):
                save_learning_curve(self._workdir / "logs" / "learning_curve.png", steps, losses)
