"""A run of seconds: what the tests of whole commands share."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

import main

ROOT = Path(__file__).resolve().parent.parent

# The smallest network that still has every kind of layer, trained for a moment.
TINY = [
    "--config.device=cpu",
    "--config.model.channels=16",
    "--config.model.channel_mult=1,1",
    "--config.model.num_res_blocks=1",
    "--config.training.num_steps=6",
    "--config.training.batch_size=8",
    "--config.training.checkpoint_every=3",
    "--config.training.log_every=2",
    "--config.training.sample_every=0",
    "--config.optim.warmup_steps=2",
    "--config.sampling.num_steps=5",
    "--config.sampling.num_samples=5",
    "--config.sampling.batch_size=3",
    "--config.eval.likelihoods=vlb",
    "--config.eval.num_images=10",
    "--config.eval.batch_size=4",
    "--config.eval.vlb_num_steps=4",
]

# of a run that is told the class, and now and then is not
CLASSES = ["--config.model.class_conditional=true", "--config.model.condition_dropout=0.5"]


def tiny_command(mode: str, workdir: Path, *extra: str, config: str = "vp/digits") -> list[str]:
    return [
        f"--config={ROOT / 'configs' / (config + '.py')}",
        f"--mode={mode}",
        f"--workdir={workdir}",
        *TINY,
        *extra,
    ]


def last_tensors(workdir: Path) -> dict[str, Tensor]:
    newest = max((workdir / "checkpoints").glob("step_*"))
    return load_file(newest / "tensors.safetensors")


def error(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run a command that cannot work: exit code 2 and one line."""
    capsys.readouterr()
    assert main.run(arguments) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in said.err + said.out
    return lines[0]


def snapshot(folder: Path) -> dict[str, bytes]:
    """Names and contents of all files but the locks, which stay when they are released."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
