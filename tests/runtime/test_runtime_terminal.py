"""A terminal that takes nothing ends no command, and a log file is not filled with progress bars."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT, tiny_command
from tqdm import tqdm

import main
from runtime import terminal
from runtime.terminal import ProgressBar, forgiving_streams


def _full() -> io.TextIOWrapper:
    return open("/dev/full", "w", buffering=1)


def _without_reader() -> io.TextIOWrapper:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w", buffering=1)


def _closed() -> io.TextIOWrapper:
    with open(os.devnull, "w") as stream:
        return stream


STREAMS = {"full": _full, "without a reader": _without_reader, "closed": _closed, "none": lambda: None}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_nothing_that_is_said_raises(kind: str, name: str, monkeypatch: pytest.MonkeyPatch):
    stream = STREAMS[kind]()
    monkeypatch.setattr(sys, name, stream)
    with forgiving_streams():
        print("said", file=getattr(sys, name), flush=True)
        with ProgressBar(total=2, desc="some") as bar:
            bar.update()
            tqdm.write("a line", file=getattr(sys, name))
            bar.set_postfix_str("x")
    assert getattr(sys, name) is stream
    if stream is not None and not stream.closed:
        # as Python does at its end, where a failure changes the exit code
        stream.flush()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_every_mode_does_its_work_where_nothing_can_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    workdir = tmp_path / "run"
    for kind, mode, result in (
        ("full", "train", "checkpoints/step_00000006/state.json"),
        ("without a reader", "eval", "eval/report.json"),
        ("none", "sample", "samples/samples.npz"),
    ):
        with monkeypatch.context() as patched:
            for name in ("stdout", "stderr"):
                patched.setattr(sys, name, STREAMS[kind]())
            assert main.run(tiny_command(mode, workdir)) == 0, mode
        assert (workdir / result).is_file(), mode


def test_descriptors_that_the_shell_closed_are_not_given_to_files(tmp_path: Path):
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from runtime.terminal import forgiving_streams\n"
        "with forgiving_streams():\n"
        "    file = open(sys.argv[1], 'w')\n"
        "    print('not in the file', flush=True); print('nor this', file=sys.stderr)\n"
        "    file.write(str(file.fileno())); file.close()\n"
    )
    path = tmp_path / "file"
    command = f"'{sys.executable}' -c \"$SCRIPT\" '{path}' <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", command], env={**os.environ, "SCRIPT": script}, check=False)
    assert done.returncode == 0
    assert int(path.read_text()) > 2


def test_a_character_that_the_terminal_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with forgiving_streams():
        print("≤ 3.61 ± 0.07 bits/dim")
    assert raw.getvalue() == b"\\u2264 3.61 \\xb1 0.07 bits/dim\n"


def _lines_of_bar(monkeypatch: pytest.MonkeyPatch, steps: int, seconds_a_step: float) -> list[str]:
    """Run a bar into a log file, by a clock of ours."""
    log, now = io.StringIO(), [0.0]
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with ProgressBar(total=steps, desc="train", unit="step", mininterval=0) as bar:
        for step in range(steps):
            now[0] += seconds_a_step
            bar.update()
            bar.set_postfix_str(f"loss {step}")
    assert "\r" not in log.getvalue()
    return log.getvalue().splitlines()


def test_a_log_file_has_a_line_of_progress_a_minute(monkeypatch: pytest.MonkeyPatch):
    lines = _lines_of_bar(monkeypatch, steps=1000, seconds_a_step=0.6)
    assert len(lines) in (10, 11)
    assert "1000/1000" in lines[-1] and "loss 999" in lines[-1]
    assert all(line.startswith("train:") for line in lines)


def test_a_short_run_leaves_one_line_in_a_log_file(monkeypatch: pytest.MonkeyPatch):
    (line,) = _lines_of_bar(monkeypatch, steps=5, seconds_a_step=0.1)
    assert "5/5" in line


def test_a_line_that_is_said_draws_no_bar_into_a_log_file(monkeypatch: pytest.MonkeyPatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with ProgressBar(total=3, desc="train") as bar:
        tqdm.write("said", file=sys.stderr)
        bar.update(3)
    assert log.getvalue().splitlines()[0] == "said" and len(log.getvalue().splitlines()) == 2


def test_a_terminal_has_a_bar_that_moves(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    with ProgressBar(total=3, desc="train", mininterval=0) as bar:
        for _ in range(3):
            bar.update()
    drawn = [line.split("|") for line in screen.getvalue().split("\r") if line.strip()]
    # the last one stays
    counts = [f"{k}/3" for k in (0, 1, 2, 3, 3)]
    assert [(bar.split()[0], count.split()[0]) for bar, _, count in drawn] == [("train:", k) for k in counts]
