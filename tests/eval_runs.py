"""A measurement of seconds that has several batches: what the tests of ``--mode eval`` share."""

import os
import subprocess
import sys
from pathlib import Path

from tiny import ROOT, tiny_command

# Both numbers of six digits in three batches, as coarsely as they go; of the four steps two are drawn, by importance.
BOTH = [
    "--config.eval.likelihoods=vlb,ode",
    "--config.eval.num_images=6",
    "--config.eval.batch_size=2",
    "--config.eval.vlb_steps_per_image=2",
    "--config.eval.ode_rtol=0.5",
    "--config.eval.ode_atol=0.5",
]


def eval_command(workdir: Path, *extra: str) -> list[str]:
    return tiny_command("eval", workdir, *BOTH, *extra)


def results(workdir: Path) -> dict[str, bytes]:
    """The files of an evaluation."""
    folder = workdir / "eval"
    assert sorted(path.name for path in folder.iterdir()) == ["bound_terms.png", "per_image.npz", "report.json"]
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def start(*command: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, output and errors; a process that hangs is not left behind."""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        # torchrun ends its own processes when it is told to
        process.terminate()
    return process.returncode, out, err
