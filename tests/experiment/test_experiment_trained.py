"""A run is sampled and exported from its checkpoints alone, which say what images and classes it is for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import error, tiny_command

import main
from experiment import build
from experiment.checkpoints.folder import read_folder
from experiment.checkpoints.store import save_checkpoint

CLASSES = ("ant", "bee", "cat")
LABELLED = ["--config.model.class_conditional=true", "--config.training.num_steps=2"]


def folder_of(root: Path, names: tuple[str, ...] = CLASSES) -> list[str]:
    """A tree of 8x8 images, four of each class, and the flags that train on it."""
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((8, 8), 60 * k + i, dtype=np.uint8)).save(root / name / f"{i}.png")
    flags = {"dataset": "folder", "root": root, "image_size": 8, "channels": 1}
    return [*LABELLED, *(f"--config.data.{key}={value}" for key, value in flags.items())]


@pytest.fixture(scope="module")
def labelled_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional run on a folder of images; the images lie beside it."""
    workdir = tmp_path_factory.mktemp("labelled") / "run"
    assert main.run(tiny_command("train", workdir, *folder_of(workdir.parent / "images"))) == 0
    return workdir


@pytest.fixture
def labelled(labelled_run: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A copy of that run and of its images, and its flags."""
    shutil.copytree(labelled_run.parent, tmp_path / "copy")
    root = tmp_path / "copy" / "images"
    flags = {"dataset": "folder", "root": root, "image_size": 8, "channels": 1}
    return tmp_path / "copy" / "run", [*LABELLED, *(f"--config.data.{key}={value}" for key, value in flags.items())]


def state_of(workdir: Path) -> dict:
    newest = max((workdir / "checkpoints").glob("step_*"))
    return json.loads((newest / "state.json").read_text())


def rewrite(workdir: Path, change: Callable[[dict], object]) -> None:
    """Change what the newest checkpoint says, with checksums that are right."""
    root = workdir / "checkpoints"
    newest = max(root.glob("step_*"))
    tensors, state = read_folder(newest)
    change(state)
    save_checkpoint(root, step=state.pop("step"), tensors=tensors, state=state, keep=3)


def samples(workdir: Path, *extra: str) -> dict[str, np.ndarray]:
    assert main.run(tiny_command("sample", workdir, *extra)) == 0
    return dict(np.load(workdir / "samples" / "samples.npz"))


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Make any look at a data set fail."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the data was touched")

    return lambda: monkeypatch.setattr(build, "load_dataset", refuse)


def test_checkpoints_say_shape_levels_and_classes(run_copy: Path, labelled: tuple[Path, list[str]]):
    digits = {"image_shape": [1, 8, 8], "num_levels": 17, "num_classes": 10, "class_names": list("0123456789")}
    beside = {"num_values": 0, "paired_channels": 0, "paired_levels": 0}
    digits |= beside
    assert state_of(run_copy)["data"] == digits
    folder = {"image_shape": [1, 8, 8], "num_levels": 256, "num_classes": 3, "class_names": list(CLASSES)}
    folder |= beside
    said = state_of(labelled[0])["data"]
    assert said == folder | {"train_files": said["train_files"]} and len(said["train_files"]) == 64


def test_samples_need_no_data_and_are_the_same(run_copy: Path, no_data: Callable[[], None]):
    before = samples(run_copy)
    no_data()
    after = samples(run_copy, "--config.data.root=/nowhere")
    np.testing.assert_array_equal(after["arr_0"], before["arr_0"])


def test_a_conditional_run_whose_data_is_gone_is_sampled_by_class(labelled: tuple[Path, list[str]]):
    workdir, flags = labelled
    before = samples(workdir, *flags)
    shutil.rmtree(workdir.parent / "images")
    after = samples(workdir, *flags)
    np.testing.assert_array_equal(after["arr_0"], before["arr_0"])
    assert after["arr_1"].tolist() == [0, 1, 2, 0, 1]


def test_an_export_needs_no_data(run_copy: Path, no_data: Callable[[], None]):
    pytest.importorskip("diffusers")
    no_data()
    assert main.run(tiny_command("export", run_copy, "--format=diffusers")) == 0


@pytest.mark.parametrize(
    "keys", [("num_classes", "class_names"), ("num_classes", "class_names", "image_shape", "num_levels")]
)
def test_checkpoints_of_earlier_versions_are_sampled(
    labelled: tuple[Path, list[str]], run_copy: Path, no_data: Callable[[], None], keys: tuple[str, ...]
):
    """Those say no classes, or nothing: the data set does, which is read where nothing else says it."""
    workdir, flags = labelled
    expected = {folder: samples(folder, *extra)["arr_0"] for folder, extra in ((workdir, flags), (run_copy, []))}
    for folder in (workdir, run_copy):
        rewrite(folder, lambda state: [state["data"].pop(key) for key in keys])
    np.testing.assert_array_equal(samples(workdir, *flags)["arr_0"], expected[workdir])
    no_data()
    np.testing.assert_array_equal(samples(run_copy)["arr_0"], expected[run_copy])


def test_a_damaged_newest_checkpoint_does_not_send_for_the_data(
    run_copy: Path, no_data: Callable[[], None], capsys: pytest.CaptureFixture[str]
):
    path = run_copy / "checkpoints" / "step_00000006" / "state.json"
    path.write_text(path.read_text().replace('"num_levels": 17', '"num_levels": 99'))
    no_data()
    samples(run_copy)
    assert "step_00000006 is passed over: state.json does not match its checksum" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["sample", "export"])
def test_a_run_without_a_checkpoint_says_so_before_any_data_is_loaded(
    run_copy: Path, no_data: Callable[[], None], capsys: pytest.CaptureFixture[str], mode: str
):
    shutil.rmtree(run_copy / "checkpoints")
    no_data()
    flags = ["--format=diffusers"] if mode == "export" else []
    assert "has no checkpoint yet; run --mode train first" in error(capsys, tiny_command(mode, run_copy, *flags))


def test_a_renamed_class_is_named(labelled: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]):
    """Sorted, "zant" comes last: every label would be another class's."""
    workdir, flags = labelled
    (workdir.parent / "images" / "ant").rename(workdir.parent / "images" / "zant")
    for mode in ("train", "eval"):
        said = error(capsys, tiny_command(mode, workdir, *flags, "--config.training.num_steps=3"))
        assert "step_00000002 was trained on other classes than those of folder t" in said
        assert "which is without ant and with zant; name the classes as they were" in said
    assert state_of(workdir)["step"] == 2


@pytest.mark.parametrize(("change", "said"), [("more", "with dog"), ("fewer", "without cat")])
def test_another_number_of_classes_is_named(
    labelled: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], change: str, said: str
):
    workdir, flags = labelled
    images = workdir.parent / "images"
    if change == "more":
        shutil.copytree(images / "cat", images / "dog")
    else:
        shutil.rmtree(images / "cat")
    assert f"which is {said}; name" in error(capsys, tiny_command("eval", workdir, *flags))


def test_classes_that_are_numbered_otherwise_keep_the_numbers_of_the_run(
    tmp_path: Path, labelled: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
):
    """As the run had them, to the same bits: an npz may list its classes in any order."""
    states = []
    for name, order in (("one", [0, 1, 2]), ("other", [2, 0, 1])):
        labels = np.arange(24) % 3
        images = (80 * labels[:, None, None, None] + np.arange(8)).astype(np.uint8).repeat(8, 1)[..., None]
        arrays = {"class_names": np.array(CLASSES)[order], "labels": np.argsort(order)[labels]}
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            np.savez(tmp_path / name / f"{split}.npz", images=images.reshape(24, 8, 8, 1), **arrays)
        workdir = tmp_path / "run"
        data = [*LABELLED, "--config.data.dataset=npz"]
        if not states:
            assert main.run(tiny_command("train", workdir, *data, f"--config.data.root={tmp_path / name}")) == 0
            shutil.copytree(workdir, tmp_path / "again")
        more = ["--config.training.num_steps=4", f"--config.data.root={tmp_path / name}"]
        workdir = workdir if not states else tmp_path / "again"
        assert main.run(tiny_command("train", workdir, *data, *more)) == 0
        states.append(read_folder(workdir / "checkpoints" / "step_00000004"))
    (one, said), (other, said_again) = states
    assert said["data"]["class_names"] == said_again["data"]["class_names"] == list(CLASSES)
    assert all((one[name] == other[name]).all() for name in one)


def test_a_run_without_labels_does_not_care_for_names(tmp_path: Path):
    flags = [*folder_of(tmp_path / "images"), "--config.model.class_conditional=false"]
    assert main.run(tiny_command("train", tmp_path / "run", *flags)) == 0
    (tmp_path / "images" / "ant").rename(tmp_path / "images" / "zant")
    assert main.run(tiny_command("train", tmp_path / "run", *flags, "--config.training.num_steps=3")) == 0
    assert state_of(tmp_path / "run")["data"]["class_names"] == ["bee", "cat", "zant"]


def test_an_imported_run_takes_the_names_of_its_first_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A checkpoint without names is trained on by the names that are there; from then on these are its names."""
    flags = folder_of(tmp_path / "images")
    workdir = tmp_path / "run"
    assert main.run(tiny_command("train", workdir, *flags)) == 0
    assert "3 classes: 0 ant, 1 bee, 2 cat" in capsys.readouterr().err
    rewrite(workdir, lambda state: state["data"].update(class_names=[]))
    assert main.run(tiny_command("train", workdir, *flags, "--config.training.num_steps=3")) == 0
    assert state_of(workdir)["data"]["class_names"] == list(CLASSES)
    (tmp_path / "images" / "bee").rename(tmp_path / "images" / "wasp")
    said = error(capsys, tiny_command("train", workdir, *flags, "--config.training.num_steps=4"))
    assert "without bee and with wasp" in said
