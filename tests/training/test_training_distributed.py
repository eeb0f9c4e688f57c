"""Processes of a job train what one process trains; when one dies all end, and the same command goes on."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_runs import finish, start
from killing import Killer, check_whole, places, run_together, start_together
from thinning import only
from tiny import last_tensors, tiny_command

import main

NO_DROPOUT = "--config.model.dropout=0.0"


def _curve(workdir: Path) -> list[tuple[int, float, float]]:
    records = map(json.loads, (workdir / "logs" / "metrics.jsonl").read_text().splitlines())
    return [(record["step"], record["loss"], record["grad_norm"]) for record in records]


def _assert_same_curve(one: Path, other: Path) -> None:
    for (step, loss, norm), (their_step, their_loss, their_norm) in zip(_curve(one), _curve(other), strict=True):
        assert step == their_step
        assert loss == pytest.approx(their_loss, rel=2e-5) and norm == pytest.approx(their_norm, rel=2e-4)


def _assert_same_bits(one: Path, other: Path) -> None:
    ours, theirs = last_tensors(one), last_tensors(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert _curve(one) == _curve(other)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process, without dropout, whose masks are a process's own."""
    workdir = tmp_path_factory.mktemp("alone")
    assert main.run(tiny_command("train", workdir, NO_DROPOUT)) == 0
    return workdir


@pytest.mark.parametrize("world", only((2,), [2, 3]))
def test_processes_have_the_loss_curve_of_one_with_the_same_global_batch(
    killer: Killer, alone: Path, tmp_path: Path, world: int
):
    assert run_together(killer, tiny_command("train", tmp_path, NO_DROPOUT), world) == [0] * world
    _assert_same_curve(tmp_path, alone)
    assert check_whole(tmp_path / "checkpoints") == [3, 6]


@pytest.mark.parametrize("setting", only(("vdm",), ["importance", "vdm"]))
def test_what_is_learned_beside_the_network_is_averaged_too(killer: Killer, tmp_path: Path, setting: str):
    """The history of losses sees the whole batch, and the noise schedule's gradient is that of all of it."""
    extra, config = {
        "importance": (
            ("--config.sde.num_steps=4", "--config.training.loss=vlb", "--config.training.step_sampling=importance",
             "--config.training.batch_size=25"),
            "vp/digits",
        ),
        "vdm": (("--config.data.dataset=digits", "--config.model.attention_resolutions=4"), "vp/mnist_vdm"),
    }[setting]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    assert killer.run(tiny_command("train", one, NO_DROPOUT, *extra, config=config)) == 0
    assert run_together(killer, tiny_command("train", two, NO_DROPOUT, *extra, config=config), 2) == [0, 0]
    _assert_same_curve(one, two)
    ours, theirs = last_tensors(one), last_tensors(two)
    names = [name for name in ours if name.startswith(("loss.", "sde.model."))]
    assert len(names) == {"importance": 2, "vdm": 5}[setting]
    for name in names:
        torch.testing.assert_close(ours[name].double(), theirs[name].double(), rtol=1e-3, atol=1e-5)


def test_two_processes_are_one_with_two_parts_dropout_included(killer: Killer, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert killer.run(tiny_command("train", one, "--config.training.accumulation_steps=2")) == 0
    assert run_together(killer, tiny_command("train", two), 2) == [0, 0]
    _assert_same_curve(one, two)


def _said_since(killer: Killer, length: int) -> str:
    return killer.said()[length:].replace("\r", "\n")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_job_and_the_restart_gives_the_same_bits(
    killer: Killer, tmp_path: Path, victim: int
):
    command = tiny_command("train", tmp_path / "killed", "--config.training.num_steps=30")
    undisturbed = tiny_command("train", tmp_path / "whole", "--config.training.num_steps=30")
    assert run_together(killer, undisturbed, 2) == [0, 0]
    before = len(killer.said())
    pids = start_together(killer, command, 2)
    assert killer.began(pids[0])
    os.kill(pids[victim], signal.SIGKILL)
    codes = [killer.wait(pid) for pid in pids]
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 2
    said = _said_since(killer, before)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in said
    assert ("another process of the job is gone" in errors[0]) or ("the other processes are gone" in errors[0])
    assert errors[0].startswith("error: rank 1: ") == (victim == 0)
    assert "the same command goes on" in errors[0]
    check_whole(tmp_path / "killed" / "checkpoints")
    assert run_together(killer, command, 2) == [0, 0]
    _assert_same_bits(tmp_path / "killed", tmp_path / "whole")
    # and the rest of the work, by two processes too
    evaluate = tiny_command("eval", tmp_path / "killed", "--config.eval.likelihoods=vlb,ode")
    assert run_together(killer, evaluate, 2) == [0, 0]
    report = json.loads((tmp_path / "killed" / "eval" / "report.json").read_text())
    assert report["step"] == 30 and report["num_images"] == 10 and report["precision"] == "fp32"


@pytest.mark.slow
def test_the_first_process_may_die_while_it_writes(killer: Killer, tmp_path: Path):
    command = tiny_command("train", tmp_path / "killed", "--config.training.num_steps=9")
    assert run_together(killer, tiny_command("train", tmp_path / "whole", "--config.training.num_steps=9"), 2) == [0, 0]
    codes = [killer.wait(pid) for pid in start_together(killer, command, 2, die_at=12, inside=True)]
    assert codes == [-signal.SIGKILL, 2]
    check_whole(tmp_path / "killed" / "checkpoints")
    assert run_together(killer, command, 2) == [0, 0]
    _assert_same_bits(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.parametrize("number", only((signal.SIGTERM,), [signal.SIGTERM, signal.SIGINT]))
def test_a_signal_to_one_process_stops_all_after_the_same_step(killer: Killer, tmp_path: Path, number: signal.Signals):
    many = ("--config.training.num_steps=100000", "--config.training.checkpoint_every=90000")
    before = len(killer.said())
    pids = start_together(killer, tiny_command("train", tmp_path, *many), 2)
    assert killer.began(pids[0])
    os.kill(pids[1], number)
    codes = [killer.wait(pid) for pid in pids]
    assert codes[1] == 128 + number and codes[0] in (128 + signal.SIGTERM, 128 + signal.SIGINT)
    (step,) = check_whole(tmp_path / "checkpoints")
    assert f"stopped at step {step}, which is saved" in _said_since(killer, before)


@pytest.mark.slow
def test_three_processes_go_on_to_the_same_bits(killer: Killer, tmp_path: Path):
    """Sums of three depend on their order, which the library chooses by what the first backward pass did."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run_together(killer, tiny_command("train", whole), 3) == [0, 0, 0]
    assert run_together(killer, tiny_command("train", part, "--config.training.num_steps=3"), 3) == [0, 0, 0]
    assert run_together(killer, tiny_command("train", part), 3) == [0, 0, 0]
    ours, theirs = last_tensors(whole), last_tensors(part)
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.slow
def test_sharded_training_is_the_same_training(killer: Killer, alone: Path, tmp_path: Path):
    """In one go, and in two, to the same bits."""
    sharded = "--config.training.sharding=fsdp"
    preview = "--config.training.sample_every=2"
    command = tiny_command("train", tmp_path / "whole", NO_DROPOUT, sharded, preview)
    before = len(killer.said())
    assert run_together(killer, command, 2) == [0, 0], _said_since(killer, before)
    _assert_same_curve(tmp_path / "whole", alone)
    half = ("--config.training.num_steps=4",)
    part = tiny_command("train", tmp_path / "part", NO_DROPOUT, sharded)
    assert run_together(killer, [*part, *half], 2) == [0, 0]
    tensors = last_tensors(tmp_path / "part")
    reference = last_tensors(alone)
    assert {name: value.shape for name, value in tensors.items()} == {n: v.shape for n, v in reference.items()}
    assert run_together(killer, part, 2) == [0, 0]
    ours, theirs = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "part")
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert (tmp_path / "whole" / "samples" / "training_00000006.png").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("config", ["dit/digits", "video/moving_digits_predict"])
def test_a_sharded_transformer_trains_as_one_process_does(killer: Killer, tmp_path: Path, config: str):
    extra = ("--config.model.network.depth=2", "--config.model.num_heads=2", "--config.optim.name=adam")
    one, two = (tiny_command("train", tmp_path / name, *extra, config=config) for name in ("one", "two"))
    assert killer.run(one) == 0
    assert run_together(killer, [*two, "--config.training.sharding=fsdp"], 2) == [0, 0], killer.said()
    _assert_same_curve(tmp_path / "one", tmp_path / "two")
    ours, theirs = last_tensors(tmp_path / "one"), last_tensors(tmp_path / "two")
    assert {name: value.shape for name, value in ours.items()} == {n: v.shape for n, v in theirs.items()}


@pytest.mark.slow
def test_muon_of_sharded_matrices_is_refused(killer: Killer, tmp_path: Path):
    command = tiny_command("train", tmp_path, "--config.model.network.depth=1", config="video/moving_digits_predict")
    before = len(killer.said())
    assert run_together(killer, [*command, "--config.training.sharding=fsdp"], 2) == [2, 2]
    assert "set training.sharding=none or optim.name=adamw" in _said_since(killer, before)


def test_shards_go_on_from_a_checkpoint_of_one_process(killer: Killer, alone: Path, tmp_path: Path):
    half = "--config.training.num_steps=4"
    other = tiny_command("train", tmp_path / "other", NO_DROPOUT)
    assert killer.run([*other, half]) == 0
    assert run_together(killer, [*other, "--config.training.sharding=fsdp"], 2) == [0, 0]
    _assert_same_curve(tmp_path / "other", alone)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["vp/mnist_vdm", "vp/digits_dequantized"])
def test_what_is_learned_beside_a_sharded_network_is_learned_too(killer: Killer, tmp_path: Path, config: str):
    """A noise schedule and a dequantizer are not sharded."""
    extra = (NO_DROPOUT, "--config.data.dataset=digits", "--config.model.attention_resolutions=4")
    one, two = (tiny_command("train", tmp_path / name, *extra, config=config) for name in ("one", "two"))
    # in two parts, since each process draws by itself where grey levels go on their bins
    assert killer.run([*one, "--config.training.accumulation_steps=2"]) == 0
    for steps in (4, 6):
        sharded = ("--config.training.sharding=fsdp", f"--config.training.num_steps={steps}")
        assert run_together(killer, [*two, *sharded], 2) == [0, 0], killer.said()
    _assert_same_curve(tmp_path / "one", tmp_path / "two")
    ours, theirs = last_tensors(tmp_path / "one"), last_tensors(tmp_path / "two")
    names = [name for name in ours if name.startswith(("sde.", "dequantizer."))]
    assert names and ours.keys() == theirs.keys()
    for name in names:
        torch.testing.assert_close(ours[name].double(), theirs[name].double(), rtol=1e-3, atol=1e-5)


def test_samples_do_not_depend_on_the_number_of_processes(killer: Killer, run_copy: Path):
    command = tiny_command("sample", run_copy, "--config.sampling.num_samples=11")
    assert killer.run(command) == 0
    alone = (run_copy / "samples" / "samples.npz").read_bytes()
    (run_copy / "samples" / "samples.npz").unlink()
    # four batches for three processes
    assert run_together(killer, command, 3) == [0, 0, 0]
    assert (run_copy / "samples" / "samples.npz").read_bytes() == alone


@pytest.mark.slow
def test_all_processes_sample_from_the_checkpoint_that_the_first_one_found(
    killer: Killer, run_copy: Path, tmp_path: Path
):
    """A trainer writes another one between the looks of two processes."""
    (tmp_path / "late.py").write_text(
        """
import os, experiment.checkpoints.store
whole = experiment.checkpoints.store.checkpoint_folders
def checkpoint_folders(root):
    return [folder for folder in whole(root) if os.environ["RANK"] != "0" or folder.name != "step_00000006"]
experiment.checkpoints.store.checkpoint_folders = checkpoint_folders
"""
    )
    command = tiny_command("sample", run_copy, "--config.sampling.num_samples=6")
    assert run_together(killer, [*command, f"--config.plugins={tmp_path / 'late.py'}"], 2) == [0, 0], killer.said()
    assert "6 samples of step 3 by" in killer.said()
    together = (run_copy / "samples" / "samples.npz").read_bytes()
    (run_copy / "checkpoints" / "step_00000006").rename(tmp_path / "later")
    assert killer.run(command) == 0
    assert (run_copy / "samples" / "samples.npz").read_bytes() == together


def test_what_all_processes_find_wrong_is_said_once(killer: Killer, tmp_path: Path):
    before = len(killer.said())
    command = tiny_command("train", tmp_path, "--config.training.batch_size=1")
    assert run_together(killer, command, 2) == [2, 2]
    said = _said_since(killer, before)
    assert said.count("error: ") == 1 and "a batch of 1 cannot be cut into 2 micro-batches" in said
    assert not (tmp_path / "checkpoints").exists()


def test_another_number_of_processes_goes_on_and_says_that_bits_differ(killer: Killer, tmp_path: Path):
    assert killer.run(tiny_command("train", tmp_path, "--config.training.num_steps=3")) == 0
    before = len(killer.said())
    assert run_together(killer, tiny_command("train", tmp_path), 2) == [0, 0]
    said = _said_since(killer, before)
    assert said.count("processes was 1, is 2: the run goes on, but not to the same bits") == 1


@pytest.mark.slow
def test_torchrun_ends_a_job_whose_process_dies_and_its_restart_resumes(tmp_path: Path):
    """The launcher itself: it starts the processes anew, and the run ends as one that nothing happened to."""

    def torchrun(workdir: Path, *launcher: str) -> Any:
        command = tiny_command("train", workdir, "--config.training.num_steps=60")
        flags = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master-port", places(2)[0]["MASTER_PORT"])
        return start(*flags, *launcher, str(plugin_main), *command)

    plugin_main = tmp_path / "dies_once.py"
    plugin_main.write_text(
        f"""
import os, signal, sys
sys.path.insert(0, {str(Path(main.__file__).parent)!r})
import main
from training.trainer import Trainer
whole = Trainer.step
def step(self, **options):
    if os.environ["RANK"] == "1" and self.state.step == 20 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if "killed" in " ".join(sys.argv):
            os.kill(os.getpid(), signal.SIGKILL)
    return whole(self, **options)
Trainer.step = step
sys.exit(main.run())
"""
    )
    code, _, err = finish(torchrun(tmp_path / "whole"))
    assert code == 0, err
    code, _, err = finish(torchrun(tmp_path / "killed", "--max-restarts=1"))
    assert code == 0, err
    assert "continues from step 18" in err
    _assert_same_bits(tmp_path / "killed", tmp_path / "whole")
    code, _, err = finish(torchrun(tmp_path / "killed_for_good"))
    assert code != 0 and "exitcode: -9" in err
    assert sys.executable
