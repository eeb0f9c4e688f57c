from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from eval_runs import eval_command, results

import main
from evaluation.measurement import EvalSplit


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As the processes that the tests start: bits are the same at the same number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def undisturbed(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The results of an evaluation that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    workdir.mkdir()
    for name in ("checkpoints", "config.json"):
        (workdir / name).symlink_to(tiny_run / name)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main.run(eval_command(workdir)) == 0
    torch.set_num_threads(threads)
    return results(workdir)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    """The batches that were measured, with the likelihood; grows as they are."""
    done: list[tuple[int, str]] = []
    whole = EvalSplit.measure

    def measure(self: EvalSplit, k: int, estimator: object, model: object) -> object:
        values = whole(self, k, estimator, model)  # type: ignore[arg-type]
        done.append((k, "ode" if type(estimator).__name__ == "FlowLikelihood" else "vlb"))
        return values

    monkeypatch.setattr(EvalSplit, "measure", measure)
    return done
