"""The end of a job of several processes: which of them speaks, and that all of them end."""

import signal
import socket
from pathlib import Path

import pytest
from eval_runs import finish, start
from killing import Killer, run_together
from tiny import tiny_command
from torch.distributed import HashStore

import main
from runtime.processes.ranks import ALONE, Ranks

PLUGIN = """
import os
import signal
import time

import commands.train
from runtime.processes import ranks as module


def work(config, workdir, *, ranks):
    module._GRACE, module._WATCH, ranks._silence = {grace}, 0.2, 2
{work}


commands.train.train = work
"""


def _command(folder: Path, work: str, grace: float = 0.5) -> list[str]:
    lines = "\n".join(f"    {line}" for line in work.strip().splitlines())
    (folder / "plugin.py").write_text(PLUGIN.format(work=lines, grace=grace))
    return tiny_command("train", folder / "run", f"--config.plugins={folder / 'plugin.py'}")


def _lines(said: str) -> list[str]:
    """The lines that the processes printed, without those of torchrun."""
    assert "Traceback" not in said
    return [line for line in said.replace("\r", "\n").splitlines() if line.startswith(("error: ", "stopped"))]


ONE_OF_TWO = """
if ranks.rank in (1, 2):
    raise ValueError("no")
time.sleep(100)
"""


def test_of_two_ranks_that_fail_one_speaks_and_all_end(killer: Killer, tmp_path: Path):
    assert run_together(killer, _command(tmp_path, ONE_OF_TWO), 4, limit=60) == [2] * 4
    (line,) = _lines(killer.said())
    assert line in ("error: rank 1: no", "error: rank 2: no")


def test_rank_0_speaks_of_what_fails_alike_everywhere(killer: Killer, tmp_path: Path):
    work = "time.sleep(0.5 if ranks.first else 0)\nraise ValueError('no')"
    assert run_together(killer, _command(tmp_path, work, grace=4), 3, limit=60) == [2] * 3
    assert _lines(killer.said()) == ["error: no"]


def test_ctrl_c_in_one_process_stops_all(killer: Killer, tmp_path: Path):
    work = "if ranks.rank == 1:\n    signal.raise_signal(signal.SIGINT)\ntime.sleep(100)"
    assert run_together(killer, _command(tmp_path, work), 3, limit=60) == [128 + signal.SIGINT] * 3
    assert _lines(killer.said()) == ["stopped"]


def test_a_silent_rank_is_named(killer: Killer, tmp_path: Path):
    work = "if ranks.rank == 1:\n    ranks._sign = lambda sign: None\ntime.sleep(100)"
    assert run_together(killer, _command(tmp_path, work), 2, limit=60) == [2, 2]
    (line,) = _lines(killer.said())
    assert line.startswith("error: rank 0: rank 1 has not been heard of for 2 s; look for what ended that")


def test_a_rank_at_a_long_batch_is_not_taken_for_lost(killer: Killer, tmp_path: Path):
    work = """
if ranks.rank == 1:
    time.sleep(3)
    ranks.post("result", b"done")
else:
    while ranks.take("result") != b"done":
        time.sleep(0.1)
"""
    assert run_together(killer, _command(tmp_path, work), 2, limit=60) == [0, 0]
    assert _lines(killer.said()) == []


def test_the_others_end_when_the_store_is_gone(killer: Killer, tmp_path: Path):
    work = "if ranks.first:\n    os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(100)"
    assert run_together(killer, _command(tmp_path, work), 2, limit=60) == [-signal.SIGKILL, 2]
    (line,) = _lines(killer.said())
    assert line.startswith("error: rank 1: the other processes are gone (")


@pytest.mark.parametrize(("port", "reason"), [("", "expected, but not set"), ("abc", "'abc'"), ("99999", "9")])
def test_without_a_rendezvous_a_line_says_what_to_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: str, reason: str
):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    assert main.run(["--config", "no-such.py", "--mode", "train"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the processes did not find each other (") and said.count("\n") == 1
    assert reason in said and "check MASTER_ADDR and MASTER_PORT" in said


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_under_torchrun_one_line_says_why(tmp_path: Path, rank: int):
    work = f"if ranks.rank == {rank}:\n    raise ValueError('no')\ntime.sleep(100)"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master-port", port, "main.py")
    code, _, err = finish(start(*launcher, *_command(tmp_path, work)))
    assert code != 0
    said = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert said == ["error: no" if rank == 0 else "error: rank 1: no"]


def test_a_rank_that_comes_late_to_the_collectives_is_waited_for(killer: Killer, tmp_path: Path):
    work = """
import torch
from runtime.processes.collectives import process_group
time.sleep(3.5 if ranks.rank == 1 else 0)
with process_group(ranks, torch.device("cpu")):
    pass
"""
    assert run_together(killer, _command(tmp_path, work), 2, limit=60) == [0, 0]
    assert _lines(killer.said()) == []


def test_a_rank_that_leaves_by_an_exception_of_its_own_ends_the_others(killer: Killer, tmp_path: Path):
    work = "if ranks.rank == 1:\n    raise SystemExit(3)\ntime.sleep(100)"
    assert run_together(killer, _command(tmp_path, work), 2, limit=60) == [2, 1]


def test_parts_of_a_job_share_values_under_the_same_names():
    store = HashStore()
    first, second = (Ranks(rank, 2, store) for rank in range(2))
    for name, step in (("small", 6), ("large", 9)):
        assert first.part(name).share("checkpoint", lambda step=step: step) == step
    assert [second.part(name).share("checkpoint", lambda: None) for name in ("small", "large")] == [6, 9]
    assert second.part("small").rank == 1 and ALONE.part("small") is ALONE
