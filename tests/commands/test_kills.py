"""kill -9 at any moment, and the same command again: the same bits as if nothing had happened."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from killing import Killer, check_whole
from tiny import ROOT, TINY, last_tensors, tiny_command

from experiment.config import load_config
from experiment.from_checkpoints import load_trained, trained_kind

# All that a run remembers matters here: dropout, the history of losses that times are drawn by, the average of weights,
# Adam's moments, and windows of logged losses that checkpoints cut in two.
SETTINGS = [
    "--config.model.dropout=0.3",
    "--config.sde.num_steps=4",
    "--config.training.loss=vlb",
    "--config.training.step_sampling=importance",
    "--config.training.log_every=3",
]
FAR = "--config.training.num_steps=1000000"


def _losses(workdir: Path) -> list[tuple[int, float]]:
    lines = (workdir / "logs" / "metrics.jsonl").read_text().splitlines()
    return [(record["step"], record["loss"]) for record in map(json.loads, lines)]


def _check_directory(workdir: Path, config_name: str, settings: list[str]) -> tuple[int, bool]:
    """Assert that a killed run's directory is whole; its newest step, and whether a checkpoint was being written."""
    config = load_config(str(ROOT / f"configs/{config_name}.py"), [o for o in [*TINY, *settings] if "config." in o])
    steps = check_whole(workdir / "checkpoints")
    before = sorted(path.name for path in (workdir / "checkpoints").iterdir()) if steps else []
    if steps:
        # as --mode eval reads it, which must leave alone what a writer may be at
        assert load_trained(config, workdir, trained_kind(config, workdir), torch.device("cpu"))[1] == steps[-1]
        assert before == sorted(path.name for path in (workdir / "checkpoints").iterdir())
    leftover = list((workdir / "checkpoints").glob(".writing_*"))
    return steps[-1] if steps else 0, bool(leftover)


def _kill_and_compare(
    killer: Killer,
    tmp_path: Path,
    kills: int,
    torn: int,
    seed: int,
    *,
    config: str = "vp/digits",
    settings: list[str] = SETTINGS,
) -> None:
    part, whole, rng = tmp_path / "part", tmp_path / "whole", random.Random(seed)
    in_writing, newest, reached = 0, 0, []
    for k in range(kills):
        every = f"--config.training.checkpoint_every={rng.choice([1, 2, 3])}"
        command = tiny_command("train", part, *settings, FAR, every, config=config)
        if k % 5 == 0:
            pid = killer.start(command)
            assert killer.began(pid)
            time.sleep(rng.uniform(0, 0.5))
            os.kill(pid, signal.SIGKILL)
        else:
            pid = killer.start(command, die_at=rng.randint(1, 90), inside=k % 5 > 1)
        assert killer.wait(pid) == -signal.SIGKILL, killer.said()
        step, writing = _check_directory(part, config, settings)
        assert step >= newest
        newest, in_writing = step, in_writing + writing
        reached.append(step)
    assert in_writing >= torn and len(set(reached)) > kills // 4
    last = [f"--config.training.num_steps={newest + 4}", "--config.training.checkpoint_every=1000"]
    assert killer.run(tiny_command("train", part, *settings, *last, config=config)) == 0, killer.said()
    assert killer.run(tiny_command("train", whole, *settings, *last, config=config)) == 0
    one, two = last_tensors(whole), last_tensors(part)
    assert one.keys() == two.keys() and "optim.0.exp_avg" in one and any(name.startswith("ema.") for name in one)
    assert "loss.values" in one or settings is not SETTINGS
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    states = [
        json.loads((folder / "checkpoints" / f"step_{newest + 4:08d}" / "state.json").read_bytes())
        for folder in (part, whole)
    ]
    # how often a run is saved, and how long it is, was changed with every kill
    assert states[1].pop("changes") == [] and states[0].pop("changes")
    assert states[0] == states[1] and _losses(part) == _losses(whole) and len(_losses(part)) >= newest // 3
    assert "passed over" not in killer.said() and "Traceback" not in killer.said()
    # the next writer swept away what killed ones left
    assert not list((part / "checkpoints").glob(".*"))


def test_killed_runs_go_on_to_the_same_bits(killer: Killer, tmp_path: Path):
    _kill_and_compare(killer, tmp_path, kills=5, torn=2, seed=0)


@pytest.mark.slow
def test_killed_autoencoders_go_on_to_the_same_bits(killer: Killer, tmp_path: Path):
    settings = ["--config.training.log_every=3", "--config.optim.decay_steps=0"]
    _kill_and_compare(killer, tmp_path, 5, 1, 2, config="latent/digits_autoencoder", settings=settings)


@pytest.mark.slow
def test_killed_runs_on_latents_go_on_to_the_same_bits(killer: Killer, autoencoder_run: Path, tmp_path: Path):
    settings = ["--config.training.log_every=3", f"--config.data.first_stage={autoencoder_run}"]
    settings += ["--config.model.attention_resolutions=()", "--config.model.dropout=0.3"]
    # while it encodes, or before
    pid = killer.start(tiny_command("train", tmp_path / "part", *settings, FAR, config="latent/digits"))
    time.sleep(0.3)
    os.kill(pid, signal.SIGKILL)
    assert killer.wait(pid) == -signal.SIGKILL
    _kill_and_compare(killer, tmp_path, 5, 2, 3, config="latent/digits", settings=settings)
    latents = [(tmp_path / name / "latents" / "train.npz").read_bytes() for name in ("part", "whole")]
    assert latents[0] == latents[1]


@pytest.mark.slow
def test_a_hundred_kills(killer: Killer, tmp_path: Path):
    _kill_and_compare(killer, tmp_path, kills=100, torn=25, seed=1)
