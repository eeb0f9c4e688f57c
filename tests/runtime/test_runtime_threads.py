"""Threads wait in a loop on an idle machine alone, and the choice is made before PyTorch reads it."""

import os
import subprocess
import sys

import psutil
import pytest
from thinning import one_in
from tiny import ROOT

from runtime.threads import choose_wait_policy, idle_cores


@pytest.fixture(autouse=True)
def _before_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")


@pytest.mark.parametrize(
    ("threads", "idle", "sleeps"),
    [("2", 2.0, False), ("2", 1.9, False), ("2", 1.0, True), ("2", 0.0, True), ("1", 0.0, False), ("4", 3.0, True)],
)
def test_threads_sleep_where_they_are_more_than_idle_cores(
    threads: str, idle: float, sleeps: bool, capsys: pytest.CaptureFixture[str]
):
    environment = {"OMP_NUM_THREADS": threads}
    choose_wait_policy(environment, idle=lambda: idle)
    assert (environment.get("OMP_WAIT_POLICY") == "PASSIVE") is sleeps
    assert ("those that wait sleep" in capsys.readouterr().err) is sleeps


def test_without_a_number_there_is_a_thread_a_core(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("runtime.threads._cores", lambda: {0, 1, 2})
    for idle, sleeps in ((3.0, False), (2.0, True)):
        environment: dict[str, str] = {}
        choose_wait_policy(environment, idle=lambda idle=idle: idle)
        assert ("OMP_WAIT_POLICY" in environment) is sleeps


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY"])
def test_the_users_own_setting_comes_first(name: str):
    environment = {"OMP_NUM_THREADS": "2", name: "x"}
    choose_wait_policy(environment, idle=lambda: 0.0)
    assert environment == {"OMP_NUM_THREADS": "2", name: "x"}


def test_only_cores_of_this_process_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(psutil, "cpu_percent", lambda *_, **__: [100.0, 25.0, 0.0, 0.0])
    monkeypatch.setattr("runtime.threads._cores", lambda: {0, 1, 2})
    assert idle_cores() == 1.75


@pytest.mark.parametrize(
    "start",
    one_in(
        3,
        [
            ("main.run(['--config', 'no-such.py', '--mode', 'train'])",),
            ("import benchmarks",),
            ("import sys; sys.path.insert(0, 'tests'); import conftest",),
        ],
    ),
)
def test_the_setting_is_made_before_torch_is_there(start: str):
    script = f"""
import os, sys, psutil
import runtime.threads, main
def busy(*_, **__):
    assert "torch" not in sys.modules
    return [100.0] * 64
psutil.cpu_percent = busy
{start}
print(os.environ["OMP_WAIT_POLICY"])
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "PASSIVE", done.stderr
