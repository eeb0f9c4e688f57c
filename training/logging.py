"""What a run says while it trains: a progress bar, TensorBoard, a file of numbers and a learning curve."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import TracebackType

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from .images import image_grid, save_learning_curve, save_png
from .workdir import write_atomically


def say(message: str) -> None:
    """Print a line to standard error without breaking a progress bar."""
    tqdm.write(message, file=sys.stderr)


class TrainingLog:
    """Progress bar, TensorBoard scalars and pictures, and ``logs/metrics.jsonl``.

    Args:
        workdir: The work directory.
        start: Steps already done; what an interrupted run logged after them is forgotten.
        num_steps: Steps in all.
        batch_size: Images a step.
    """

    def __init__(self, workdir: Path, *, start: int, num_steps: int, batch_size: int) -> None:
        self._workdir = workdir
        self._metrics_path = workdir / "logs" / "metrics.jsonl"
        self._records = [record for record in self._read_metrics() if record["step"] <= start]
        write_atomically(self._metrics_path, "".join(json.dumps(record) + "\n" for record in self._records).encode())
        self._file = self._metrics_path.open("a")
        self._board = SummaryWriter(str(workdir / "logs"), purge_step=start + 1)
        self._bar = tqdm(total=num_steps, initial=start, unit="step", desc="train", dynamic_ncols=True)
        self._batch_size = batch_size

    def __enter__(self) -> TrainingLog:
        """Start logging."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the bar and the files."""
        self._bar.close()
        self._board.close()
        self._file.close()

    def _read_metrics(self) -> list[dict[str, float]]:
        records = []
        if self._metrics_path.is_file():
            for line in self._metrics_path.read_text(errors="replace").splitlines():
                try:
                    record = json.loads(line)
                    records.append(record | {"step": int(record["step"]), "loss": float(record["loss"])})
                except (ValueError, TypeError, KeyError):
                    # the last line of a killed run may be cut off
                    continue
        return records

    def advance(self) -> None:
        """One step is done."""
        self._bar.update()

    def scalars(
        self, step: int, *, loss: float, grad_norm: float, learning_rate: float, seconds_per_step: float, skipped: int
    ) -> None:
        """Log the numbers of the steps since the last call."""
        images_per_second = self._batch_size / seconds_per_step
        record = {
            "step": step,
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "images_per_second": images_per_second,
            "skipped_steps": skipped,
        }
        self._records.append(record)
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for key, value in record.items():
            if key != "step":
                self._board.add_scalar(f"train/{key}", value, step)
        self._bar.set_postfix_str(f"loss {loss:.4f}, {images_per_second:.0f} images/s")

    def samples(self, step: int, images: np.ndarray) -> None:
        """Log a grid of samples, uint8 [N, H, W, C], to TensorBoard and ``samples/``."""
        grid = image_grid(images)
        self._board.add_image("samples", grid, step, dataformats="HWC")
        save_png(self._workdir / "samples" / f"training_{step:08d}.png", grid)

    def learning_curve(self) -> None:
        """Write ``logs/learning_curve.png``."""
        if self._records:
            steps = [int(record["step"]) for record in self._records]
            losses = [record["loss"] for record in self._records]
            save_learning_curve(self._workdir / "logs" / "learning_curve.png", steps, losses)
