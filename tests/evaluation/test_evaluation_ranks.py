"""Several processes give the report of one, to the bit; when one fails all end, with one line."""

import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_runs import eval_command, finish, results, start
from killing import Killer, run_together
from thinning import only
from torch.distributed import HashStore, TCPStore

import main
from data import ImageDataset, LevelSpace
from evaluation.batch_schedule import Schedule
from evaluation.measurement import EvalSplit, Measurement
from likelihood import VariationalBound
from models import DiscreteScoreModel
from runtime.processes.ranks import Ranks
from sde_lib import Tabulated


def _free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def _torchrun(processes: int, *command: str, **environment: str) -> Any:
    launcher = ("-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master-port", _free_port())
    return start(*launcher, "main.py", *command, **environment)


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
def test_two_processes_of_torchrun_give_the_report_of_one(run_copy: Path):
    assert main.run(eval_command(run_copy)) == 0
    alone = results(run_copy)
    process = _torchrun(2, *eval_command(run_copy))
    code, out, err = finish(process)
    assert code == 0, err
    assert out.count("digits test, 6 images, step 6, bits/dim") == 1 and out.count("gap ") == 1
    assert err.count("wrote ") == 1
    assert results(run_copy) == alone


def test_two_processes_give_the_report_of_one(killer: Killer, run_copy: Path, undisturbed: dict[str, bytes]):
    assert run_together(killer, eval_command(run_copy), 2) == [0, 0], killer.said()
    said = killer.said()
    assert said.count("digits test, 6 images, step 6, bits/dim") == 1 and said.count("gap ") == 1
    assert said.count("wrote ") == 1
    assert results(run_copy) == undisturbed


@pytest.mark.slow
def test_three_processes_go_on_where_one_was_stopped_with_fewer_batches_than_processes(
    killer: Killer, run_copy: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    whole, calls = EvalSplit.measure, []

    def measure(self: EvalSplit, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            signal.raise_signal(signal.SIGINT)
        return whole(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(EvalSplit, "measure", measure)
        assert main.run(eval_command(run_copy)) == 130
    assert run_together(killer, eval_command(run_copy), 3) == [0, 0, 0]
    # two batches are left for three processes
    assert killer.said().count("goes on: 2 of 3 batches of vlb and 1 of 3 batches of ode were measured before") == 1
    assert results(run_copy) == undisturbed


FAILING = """
import os
from likelihood import VariationalBound, register_likelihood

@register_likelihood("failing")
class Failing(VariationalBound):
    def __call__(self, model, x0, **others):
        if os.environ["RANK"] == "{rank}":
            raise ValueError("it cannot")
        return super().__call__(model, x0, **others)
"""


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_on_one_rank_ends_all_with_one_line(killer: Killer, run_copy: Path, tmp_path: Path, failing: int):
    (tmp_path / "plugin.py").write_text(FAILING.format(rank=failing))
    command = eval_command(
        run_copy,
        f"--config.plugins={tmp_path / 'plugin.py'}",
        "--config.eval.likelihoods=failing",
        "--config.eval.batch_size=1",
        "--config.eval.num_images=360",
    )
    # without torchrun, which would kill the other: it must find out by itself
    assert run_together(killer, command, 2) == [2, 2]
    said = killer.said().replace("\r", "\n")
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert lines == ["error: it cannot" if failing == 0 else "error: rank 1: it cannot"]
    assert "Traceback" not in said
    assert not (run_copy / "eval" / "report.json").exists()


@pytest.mark.slow
def test_what_all_processes_find_wrong_is_said_once(killer: Killer, run_copy: Path):
    assert run_together(killer, eval_command(run_copy, "--config.eval.vlb_variance=tiny"), 2) == [2, 2]
    (line,) = (line for line in killer.said().splitlines() if line.startswith("error: "))
    assert line.startswith("error: unknown variance 'tiny'")


class _Together:
    """Ranks as threads of this process, on one store."""

    def __init__(self, world: int) -> None:
        store = HashStore()
        self.ranks = [Ranks(rank, world, store) for rank in range(world)]
        self.ended: dict[int, Any] = {}

    def run(self, work: Any) -> dict[int, Any]:
        def one(ranks: Ranks) -> None:
            try:
                with ranks:
                    self.ended[ranks.rank] = work(ranks)
            except BaseException as error:
                self.ended[ranks.rank] = error

        threads = [threading.Thread(target=one, args=(ranks,)) for ranks in self.ranks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
            assert not thread.is_alive()
        return self.ended


def _toy() -> tuple[DiscreteScoreModel, ImageDataset]:
    patterns = torch.tensor([[0, 4], [1, 1], [3, 2]])
    sde = Tabulated.ddpm(num_steps=20, beta_start=1e-3, beta_end=0.2)
    points = LevelSpace(5).encode(patterns.to(torch.uint8)[:, None, None])
    model = DiscreteScoreModel(sde, points=points, probs=[0.5, 0.3, 0.2])
    images = patterns[torch.arange(50) % 3][:, None, None].to(torch.uint8)
    return model, ImageDataset(images, torch.zeros(50, dtype=torch.int64), 5, 1, "toy", "test")


def _schedule(ranks: Ranks, folder: Path, steps_per_image: int = 7, mark: int = 0) -> Schedule:
    # a model each: network calls are counted on it
    model, dataset = _toy()
    split = EvalSplit(dataset, batch_size=8, seed=3)
    bound = VariationalBound(num_levels=5, steps_per_image=steps_per_image)
    return Schedule(split, {"vlb": (bound, model)}, folder=folder, fingerprints={"vlb": {"mark": mark}}, ranks=ranks)


@pytest.mark.parametrize("world", only((3, 10), [2, 3, 7, 10]))
def test_any_number_of_processes_gives_the_same_values(tmp_path: Path, world: int):
    (alone,) = _schedule(Ranks(), tmp_path / "alone").run().values()
    # also where no process sees the files of another
    ended = _Together(world).run(lambda ranks: _schedule(ranks, tmp_path / str(ranks.rank)).run())
    assert all(ended[rank] == {} for rank in range(1, world))
    together: Measurement = ended[0]["vlb"]
    assert (together.per_image == alone.per_image).all()
    assert together.report() == alone.report()
    assert together.steps == alone.steps
    # rank 0 keeps what the others measured, for its next run
    kept = sorted(path.name for path in (tmp_path / "0" / "vlb").glob("*.batch"))
    assert kept == [f"{k:06d}.batch" for k in range(7)]


def test_processes_with_other_checkpoints_are_refused(tmp_path: Path):
    store = HashStore()
    zero = _schedule(Ranks(0, 2, store), tmp_path / "0", mark=0)
    Ranks(0, 2, store).share("plan", zero._plan)
    with pytest.raises(RuntimeError, match="settings of vlb differ from those of rank 0"):
        _schedule(Ranks(1, 2, store), tmp_path / "1", mark=1).run()


def test_bytes_of_any_length_arrive():
    port = int(_free_port())
    server = TCPStore("127.0.0.1", port, 2, is_master=True, wait_for_workers=False)
    client = TCPStore("127.0.0.1", port, 2, is_master=False)
    one, two = Ranks(1, 2, client), Ranks(0, 2, server)
    for data in (b"", b"\x00\xff" * 5, os.urandom(9 * 2**20 + 1)):
        assert two.take("x") is None
        one.post("x", data)
        # nothing says when a value has been sent
        while (arrived := two.take("x")) is None:
            time.sleep(0.01)
        assert arrived == data
    assert two.take("x") is None


@pytest.mark.parametrize(("groups", "kept"), [("1", False), ("2", True)])
def test_processes_started_anew_do_not_meet_what_others_left_in_the_launchers_store(
    monkeypatch: pytest.MonkeyPatch, groups: str, kept: bool
):
    port = _free_port()
    launcher = TCPStore("127.0.0.1", int(port), is_master=True, wait_for_workers=False)
    place = {"RANK": "0", "WORLD_SIZE": "2", "GROUP_WORLD_SIZE": groups, "MASTER_ADDR": "127.0.0.1"}
    for name, value in (place | {"MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    for attempt, expected in (("0", None), ("1", b"old" if kept else None)):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        ranks = Ranks.from_environment()
        assert ranks.find("said") == expected
        ranks.post("said", b"old")
        assert ranks.find("said") == b"old"
    assert launcher.num_keys() > 0


def test_one_process_needs_no_store(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    ranks = Ranks.from_environment()
    assert ranks.first and ranks.world == 1
    with ranks:
        assert ranks.share("x", lambda: {"y": 1}) == {"y": 1}
        assert ranks.speaks(ValueError("no"), 2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Ranks.from_environment().world == 1
