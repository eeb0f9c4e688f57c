"""Samples are written batch by batch, go on after any end to the same bytes, and say what made them."""

import errno
import json
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from thinning import only
from tiny import error, tiny_command

import main
from commands import sample as sampling
from data import ImageKind
from evaluation import (
    kept_batches as partial,
)
from evaluation.samples import (
    sample_batch,
    sample_set,
)
from evaluation.samples.sample_files import open_npz, read_npz
from evaluation.samples.sample_set import SampleSet

NAMES = ("grid.png", "samples.json", "samples.npz")


class Killed(BaseException):
    """In place of a kill -9, of which nothing in the process hears."""


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a set; nothing else may lie beside them."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".lock"}
    return {name: data for name, data in files.items() if not name.startswith("training_")}


def sample_command(workdir: Path, *extra: str) -> list[str]:
    """Ten samples in four batches."""
    return tiny_command("sample", workdir, "--config.sampling.num_samples=10", *extra)


@pytest.fixture(scope="module", autouse=True)
def _network_as_it_is() -> Iterator[None]:
    """Much of the time of so small a command: copying its network."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sampling, "fast_inference", lambda model, mode: model)
        yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first sample of each batch that is drawn: grows as they are."""
    begun: list[int] = []
    whole = sample_batch.draw_batch

    def draw_batch(sampler: Any, model: Any, index: range, **options: Any) -> Any:
        result = whole(sampler, model, index, **options)
        begun.append(index.start)
        return result

    monkeypatch.setattr(sampling, "draw_batch", draw_batch)
    return begun


@pytest.fixture(scope="module")
def undisturbed(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed") / "samples"
    assert main.run(sample_command(tiny_run, f"--output={folder}")) == 0
    assert sorted(contents(folder)) == sorted(NAMES)
    return contents(folder)


def test_the_file_says_what_made_the_samples(run_copy: Path):
    extra = ["--config.sampling.sampler=ddim", "--config.sampling.options=eta=0.5", "--config.sampling.grid=quadratic"]
    assert main.run(sample_command(run_copy, "--config.seed=7", *extra)) == 0
    about = json.loads((run_copy / "samples" / "samples.json").read_text())
    expected = {"sampler": "ddim", "options": {"eta": 0.5}, "grid": "quadratic", "num_steps": 5, "nfe": 5, "seed": 7}
    expected |= {"step": 6, "num_samples": 10, "classes": None, "image_shape": [8, 8, 1], "num_levels": 17}
    assert {key: about[key] for key in expected} == expected
    assert about["versions"]["numpy"] == np.__version__


OTHERS = [
    "--config.sampling.sampler=ddim",
    "--config.seed=1",
    "--config.sampling.num_steps=4",
    "--config.sampling.clip_x0=false",
    "--config.sampling.num_samples=9",
]


def test_other_samples_cost_none_of_those_before(run_copy: Path, undisturbed: dict[str, bytes], drawn: list[int]):
    folder = run_copy / "samples"
    made: list[dict[str, bytes]] = []
    for extra in ([], *([other] for other in OTHERS)):
        assert main.run(sample_command(run_copy, *extra)) == 0
        made.append(contents(folder))
    assert made[0] == undisturbed
    assert len({files["samples.npz"] for files in made}) == len(made)
    aside = [contents(path) for path in folder.iterdir() if path.is_dir()]
    assert len(aside) == len(OTHERS) and all(files in aside for files in made[:-1])
    # and back, without drawing it again
    count = len(drawn)
    assert main.run(sample_command(run_copy)) == 0
    assert contents(folder) == undisturbed and len(drawn) == count
    assert made[-1] in [contents(path) for path in folder.iterdir() if path.is_dir()]


def test_more_training_costs_no_samples(run_copy: Path, undisturbed: dict[str, bytes]):
    assert main.run(sample_command(run_copy)) == 0
    assert main.run(tiny_command("train", run_copy, "--config.training.num_steps=8")) == 0
    assert main.run(sample_command(run_copy)) == 0
    assert json.loads((run_copy / "samples" / "samples.json").read_text())["step"] == 8
    (aside,) = (path for path in (run_copy / "samples").iterdir() if path.is_dir())
    assert "step6" in aside.name and contents(aside) == undisturbed


def test_what_an_older_version_left_is_moved_aside(run_copy: Path):
    folder = run_copy / "samples"
    folder.mkdir(exist_ok=True)
    for number in ("", "-2"):
        (folder / "samples.json").unlink(missing_ok=True)
        for name in ("samples.npz", "grid.png"):
            (folder / name).write_text(f"old{number}")
        assert main.run(sample_command(run_copy)) == 0
        assert (folder / f"earlier{number}" / "samples.npz").read_text() == f"old{number}"


def test_output_takes_the_place_of_the_work_directory(
    tiny_run: Path, tmp_path: Path, undisturbed: dict[str, bytes], capsys: pytest.CaptureFixture[str]
):
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    assert main.run(sample_command(tiny_run, f"--output={tmp_path / 'deep' / 'er'}")) == 0
    assert f"wrote grid.png and samples.npz in {tmp_path / 'deep' / 'er'}" in capsys.readouterr().err
    assert contents(tmp_path / "deep" / "er") == undisturbed
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before
    (tmp_path / "file").write_text("")
    assert "is not a folder" in error(capsys, sample_command(tiny_run, f"--output={tmp_path / 'file'}"))
    assert (
        "--output is a flag of --mode couple, edit, ema, export, interpolate, progressive, restore, sample and segment"
        in error(capsys, tiny_command("eval", tiny_run, f"--output={tmp_path}"))
    )


def _after(calls: int, whole: Callable[..., Any], end: Callable[[], object]) -> Callable[..., Any]:
    """A function that ends all at one call more than that."""
    done: list[int] = []

    def limited(*arguments: Any, **options: Any) -> Any:
        done.append(1)
        if len(done) > calls:
            end()
        return whole(*arguments, **options)

    return limited


def _kill() -> None:
    raise Killed


def _fill_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("batches", [0, 3])
def test_ctrl_c_keeps_the_batches_before(
    run_copy: Path,
    undisturbed: dict[str, bytes],
    drawn: list[int],
    batches: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    with monkeypatch.context() as patched:
        stop = _after(batches, sampling.draw_batch, lambda: signal.raise_signal(signal.SIGINT))
        patched.setattr(sampling, "draw_batch", stop)
        assert main.run(sample_command(run_copy)) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"stopped with {batches} of 4 batches kept; the same command goes on from there"
    assert not contents(run_copy / "samples")
    # what a process leaves that is killed while it writes
    for folder in (run_copy / "samples" / "partial").glob("*"):
        (folder / ".000003.batch.x1").write_bytes(b"half")
    drawn.clear()
    assert main.run(sample_command(run_copy)) == 0
    assert drawn == [0, 3, 6, 9][batches:]
    assert (f"goes on: {batches} of 4 batches were drawn before" in capsys.readouterr().err) == (batches > 0)
    assert contents(run_copy / "samples") == undisturbed and not (run_copy / "samples" / "partial").exists()


def test_a_full_disk_keeps_the_batches_before(
    run_copy: Path,
    undisturbed: dict[str, bytes],
    drawn: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    with monkeypatch.context() as patched:
        patched.setattr(partial, "write_atomically", _after(2, partial.write_atomically, _fill_disk))
        said = error(capsys, sample_command(run_copy))
    assert "No space left on device: stopped with 2 of 4 batches kept; the same command goes on" in said
    # while the files are made of them
    with monkeypatch.context() as patched:
        patched.setattr(sample_set, "save_png", _after(0, sample_set.save_png, _fill_disk))
        assert "4 of 4 batches kept" in error(capsys, sample_command(run_copy))
    assert not contents(run_copy / "samples")
    assert drawn == [0, 3, 6, 6, 9]
    assert main.run(sample_command(run_copy)) == 0
    assert drawn == [0, 3, 6, 6, 9] and contents(run_copy / "samples") == undisturbed


@pytest.mark.parametrize("moves", [1, 3, 5])
def test_a_kill_while_files_take_their_places_costs_nothing(
    run_copy: Path, undisturbed: dict[str, bytes], drawn: list[int], moves: int, monkeypatch: pytest.MonkeyPatch
):
    other = ["--config.sampling.sampler=ddim"]
    assert main.run(sample_command(run_copy, *other)) == 0
    before = contents(run_copy / "samples")
    with monkeypatch.context() as patched:
        patched.setattr(sample_set, "_replace", _after(moves, sample_set._replace, _kill))
        with pytest.raises(Killed):
            main.run(sample_command(run_copy))
    drawn.clear()
    assert main.run(sample_command(run_copy)) == 0
    assert contents(run_copy / "samples") == undisturbed and not drawn
    (aside,) = (path for path in (run_copy / "samples").iterdir() if path.is_dir())
    assert contents(aside) == before
    assert main.run(sample_command(run_copy, *other)) == 0
    assert contents(run_copy / "samples") == before and not drawn


@pytest.fixture
def killed(run_copy: Path, undisturbed: dict[str, bytes], drawn: list[int], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose sampling was killed after some batches."""
    with monkeypatch.context() as patched:
        patched.setattr(sampling, "draw_batch", _after(3, sampling.draw_batch, _kill))
        with pytest.raises(Killed):
            main.run(sample_command(run_copy))
    return run_copy


def test_another_command_does_not_cost_unfinished_samples(
    killed: Path, undisturbed: dict[str, bytes], drawn: list[int], capsys: pytest.CaptureFixture[str]
):
    assert main.run(sample_command(killed, "--config.seed=1")) == 0
    assert "partial keeps unfinished samples of other commands, ancestral-5-seed0-step6" in capsys.readouterr().err
    drawn.clear()
    assert main.run(sample_command(killed)) == 0
    assert drawn == [9] and contents(killed / "samples") == undisturbed


def test_a_damaged_batch_is_drawn_again(
    killed: Path, undisturbed: dict[str, bytes], drawn: list[int], capsys: pytest.CaptureFixture[str]
):
    (path,) = (killed / "samples" / "partial").rglob("000001.batch")
    data = path.read_bytes()
    path.write_bytes(data[:-300] + bytes([data[-300] ^ 1]) + data[-299:])
    drawn.clear()
    assert main.run(sample_command(killed)) == 0
    assert "000001.batch cannot be used; drawn again" in capsys.readouterr().err
    assert drawn == [3, 9] and contents(killed / "samples") == undisturbed


def images_of(folder: Path) -> np.ndarray:
    return np.load(folder / "samples.npz")["arr_0"]


def test_another_number_of_samples_has_the_same_images_and_draws_what_is_missing(
    run_copy: Path, tmp_path: Path, undisturbed: dict[str, bytes], drawn: list[int]
):
    folder, fourteen = tmp_path / "out", np.empty(0)
    for number, expected in ((10, [0, 3, 6, 9]), (4, [3]), (10, []), (14, [9, 12]), (13, [12])):
        drawn.clear()
        extra = [f"--config.sampling.num_samples={number}", f"--output={folder}"]
        assert main.run(tiny_command("sample", run_copy, *extra)) == 0
        assert len(images_of(folder)) == number and drawn == expected, number
        assert json.loads((folder / "samples.json").read_text())["num_samples"] == number
        if number == 10:
            assert contents(folder) == undisturbed
        if number == 14:
            fourteen = images_of(folder)
    assert main.run(tiny_command("sample", run_copy, "--config.sampling.num_samples=14")) == 0
    np.testing.assert_array_equal(images_of(run_copy / "samples"), fourteen)


def test_damaged_samples_are_not_gone_on_with(run_copy: Path, drawn: list[int]):
    command = [*sample_command(run_copy), "--config.sampling.num_samples=12"]
    assert main.run(command) == 0
    expected = images_of(run_copy / "samples")
    assert main.run([*command, f"--output={run_copy / 'two'}", "--config.sampling.num_samples=9"]) == 0
    path = run_copy / "two" / "samples.npz"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    drawn.clear()
    assert main.run([*command, f"--output={run_copy / 'two'}"]) == 0
    assert drawn == [0, 3, 6, 9]
    np.testing.assert_array_equal(images_of(run_copy / "two"), expected)


def test_samples_are_on_disk_before_anything_is_said_of_them(
    run_copy: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    def unwritable(message: str) -> None:
        if "10 samples of step" in message:
            raise OSError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sampling, "say", unwritable)
    main.run(sample_command(run_copy))
    assert contents(run_copy / "samples") == undisturbed


@pytest.mark.parametrize(("shape", "labels"), [((7, 4, 5, 3), None), ((2, 1, 1, 1), np.arange(2))])
def test_an_archive_in_pieces_has_the_bytes_of_a_whole_one(
    tmp_path: Path, shape: tuple[int, ...], labels: np.ndarray | None
):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    with open_npz(tmp_path / "pieces.npz", shape, labels) as append:
        for first in range(0, len(images), 3):
            append(images[first : first + 3])
    np.savez(tmp_path / "whole.npz", *([images] if labels is None else [images, labels]))
    assert (tmp_path / "pieces.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    back = list(read_npz(tmp_path / "whole.npz", 2))
    assert [len(batch) for batch in back] == [2] * (len(images) // 2) + [1] * (len(images) % 2)
    np.testing.assert_array_equal(np.concatenate(back), images)


@pytest.mark.parametrize("pngs", only((False,), [False, True]))
def test_memory_holds_a_batch_not_the_set(tmp_path: Path, pngs: bool):
    size, about = 16, {"sampler": "ddim", "num_steps": 1, "seed": 0, "step": 0}
    batch = np.random.default_rng(0).integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)

    def peak(number: int) -> int:
        """The most bytes at a time while batches are kept, made into files, and taken over into a larger set."""
        folder, most = tmp_path / str(number), 0
        for num_batches in (number - 1, number):
            how: dict[str, Any] = {"kind": ImageKind((3, 32, 32), 256), "pngs": pngs, "labels": None}
            one = SampleSet(folder, {}, about, num_samples=num_batches * size, batch_size=size, **how)
            tracemalloc.start()
            known, _ = one.known()
            assert len(known) == (0 if num_batches < number else number - 1)
            for k in range(len(known), num_batches):
                one.keep(k, one.encode(k, {"images": batch + np.uint8(k), "nfe": np.asarray(3)}))
            one.finish()
            most = max(most, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        found = np.load(folder / "samples.npz")["arr_0"]
        np.testing.assert_array_equal(found[::size], [batch[0] + np.uint8(k) for k in range(number)])
        return most

    # the grid shows 256 images, whatever the number
    assert peak(32) - peak(16) < 2 * batch.nbytes
