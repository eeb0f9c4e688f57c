"""Common parts of tests of killed runs: a process that starts runs fast, and an independent reader of checkpoints."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from tiny import ROOT


class Killer:
    """Starts runs of ``main.py`` without waiting for imports; see ``kill_server``."""

    def __init__(self) -> None:
        self.output = Path(os.devnull)
        self._server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "kill_server.py")],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _ask(self, do: str, **request: Any) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps({"do": do, **request}) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(
        self, arguments: list[str], *, die_at: int | None = None, inside: bool = False, environment: dict | None = None
    ) -> int:
        """Start a run; its process number."""
        environment = environment or {}
        output = str(self.output)
        return self._ask(
            "start", arguments=arguments, die_at=die_at, inside=inside, environment=environment, output=output
        )

    def began(self, pid: int) -> bool:
        """Wait for the first step of a run; whether it came to it."""
        return self._ask("began", pid=pid)

    def wait(self, pid: int) -> int:
        """Wait for the end of a run: its exit code, or minus the signal."""
        return self._ask("wait", pid=pid)

    def run(self, arguments: list[str], **options: Any) -> int:
        """Start a run and wait for its end."""
        return self.wait(self.start(arguments, **options))

    def said(self) -> str:
        """All that the runs printed."""
        return self.output.read_text()

    def close(self) -> None:
        """End the server, which ends with its input."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)
        self._server.stdout.close()


def places(world: int) -> list[dict[str, str]]:
    """The environment that torchrun gives each process."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def start_together(killer: Killer, command: list[str], world: int, **of_first: Any) -> list[int]:
    """Start the processes of a job; their process numbers."""
    return [
        killer.start(command, environment=place, **(of_first if place["RANK"] == "0" else {}))
        for place in places(world)
    ]


def run_together(killer: Killer, command: list[str], world: int, *, limit: float = 120.0) -> list[int]:
    """Start a job and wait for its end; processes that wait for each other for so many seconds are killed."""
    pids = start_together(killer, command, world)
    left = set(pids)

    def kill() -> None:
        for pid in left:
            os.kill(pid, signal.SIGKILL)

    timer = threading.Timer(limit, kill)
    timer.start()
    codes = []
    for pid in pids:
        codes.append(killer.wait(pid))
        left.discard(pid)
    timer.cancel()
    return codes


def check_whole(root: Path) -> list[int]:
    """Assert that each checkpoint is complete, by its manifest alone; their steps."""
    steps = []
    for folder in sorted(root.glob("step_*")):
        manifest = json.loads((folder / "manifest.json").read_bytes())
        assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "state.json", "tensors.safetensors"]
        assert sorted(manifest) == ["state.json", "tensors.safetensors"]
        for name, entry in manifest.items():
            data = (folder / name).read_bytes()
            assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}, folder / name
        steps.append(json.loads((folder / "state.json").read_bytes())["step"])
        assert folder.name == f"step_{steps[-1]:08d}"
    return steps
