"""Conditions other than labels, in train, eval and sample."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import error, last_tensors, tiny_command

import main
from data import LevelSpace, load_dataset
from data.conditions import LowResolution
from experiment.trained_run import load_run
from samplers import make_sampler

CONDITIONS = (
    "--config.data.condition=lowres", "--config.model.class_conditional=True",
    "--config.model.condition_dropout=0.5", "--config.model.condition_noise_t=0.5",
    "--config.model.part_dropout=class=0.2,image=0.3",
)  # fmt: skip


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is told the class and a small image."""
    workdir = tmp_path_factory.mktemp("told") / "run"
    assert main.run(tiny_command("train", workdir, *CONDITIONS)) == 0
    return workdir


def drawn(workdir: Path, folder: Path, *extra: str) -> dict[str, np.ndarray]:
    assert main.run(tiny_command("sample", workdir, *CONDITIONS, f"--output={folder}", *extra)) == 0
    return dict(np.load(folder / "samples.npz"))


def test_an_interrupted_training_ends_in_the_same_bits(told: Path, tmp_path: Path):
    for steps in (3, 6):
        command = tiny_command("train", tmp_path / "run", *CONDITIONS, f"--config.training.num_steps={steps}")
        assert main.run(command) == 0
    whole, parts = last_tensors(told), last_tensors(tmp_path / "run")
    assert whole.keys() == parts.keys() and "model.condition_input.no_image" in whole
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_bits_per_dim_are_of_images_given_their_condition(told: Path):
    assert main.run(tiny_command("eval", told, *CONDITIONS)) == 0
    values = np.load(told / "eval" / "per_image.npz")["vlb"]
    assert main.run(tiny_command("eval", told, *CONDITIONS, "--config.eval.batch_size=7")) == 0
    np.testing.assert_allclose(np.load(told / "eval" / "per_image.npz")["vlb"], values, rtol=1e-6)
    data, run = load_dataset("digits", root="-", split="test"), load_run(told, device="cpu")
    alone = run.bits_per_dim(data.stored[:10], labels=data.labels[:10], progress=False)
    np.testing.assert_allclose(alone.numpy(), values, rtol=1e-6)
    # the small image is that of the image measured: with another one the number is another
    report = json.loads((told / "eval" / "report.json").read_text())
    assert report["condition"] == ["lowres"] and report["class_conditional"]
    assert "class-conditional, given lowres" in report["vlb"]["quote"]


def test_samples_are_of_the_images_of_a_split_or_of_a_file(told: Path, tmp_path: Path):
    samples = drawn(told, tmp_path / "split")
    data = load_dataset("digits", root="-", split="test")
    assert samples["arr_1"].tolist() == data.labels[:5].tolist()
    maker = LowResolution()
    small = maker.observe(data.stored[:5], data.kind)  # pyright: ignore
    space = LevelSpace(65)
    np.savez(tmp_path / "small.npz", space.pixels(space.encode(small)), data.labels[:5].numpy())
    given = f"--input={tmp_path / 'small.npz'}"
    same = drawn(told, tmp_path / "file", given)
    for key in ("arr_0", "arr_1"):
        np.testing.assert_array_equal(same[key], samples[key])
    said = [json.loads((tmp_path / name / "samples.json").read_text()) for name in ("split", "file")]
    # the classes are those of the images, not all in turn
    assert [one["classes"] for one in said] == [None, None] and [one["condition_noise_t"] for one in said] == [0, 0]
    assert said[0]["condition_split"] == "test" and said[1]["input"] == str(tmp_path / "small.npz")
    # image k at any batch size, with noise on its condition too
    noise = ("--config.sampling.condition_noise_t=0.3", given)
    noisy, other = (drawn(told, tmp_path / size, *noise, f"--config.sampling.batch_size={size}") for size in ("2", "5"))
    np.testing.assert_array_equal(noisy["arr_0"], other["arr_0"])
    assert (noisy["arr_0"] != samples["arr_0"]).any()
    # classes of one's own
    chosen = drawn(told, tmp_path / "classes", given, "--config.sampling.classes=3,7")
    assert chosen["arr_1"].tolist() == [3, 7, 3, 7, 3]
    assert json.loads((tmp_path / "classes" / "samples.json").read_text())["classes"] == [3, 7]


def test_a_picture_shows_what_was_told(told: Path, tmp_path: Path):
    drawn(told, tmp_path / "out")
    told_picture, grid = (Image.open(tmp_path / "out" / name) for name in ("conditions.png", "grid.png"))
    assert told_picture.size == grid.size


def test_a_notebook_passes_a_condition(told: Path):
    run, data = load_run(told, device="cpu"), load_dataset("digits", root="-", split="test")
    sampler = make_sampler("ddim", num_steps=3)
    cond = run.conditions.tell(run.conditions.observe(data.stored[:2], data.labels[:2]))
    first, both = (run.sample(k, cond=cond[:k], sampler=sampler) for k in (1, 2))  # pyright: ignore
    assert torch.equal(first[0], both[0])
    with pytest.raises(ValueError, match="told more than a class; pass cond"):
        run.sample(1, label=3)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--input=nothing.npz"], "nothing.npz holds no images; pass an npz file"),
        (["--config.sampling.condition_noise_t=0.6"], "condition_noise_t must be at most model.condition_noise_t=0.5"),
        (["--config.sampling.condition_split=tset"], "unknown condition_split 'tset'; did you mean 'test'?"),
        (["--config.data.condition="], "belongs to another config: data.condition was"),
        (["--config.sampling.classes=10"], "unknown class '10'"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    told: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
):
    assert message in error(capsys, tiny_command("sample", told, *CONDITIONS, *extra))


def test_condition_images_of_another_size_are_refused(told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    np.savez(tmp_path / "large.npz", np.zeros((2, 8, 8, 1), np.uint8))
    message = error(capsys, tiny_command("sample", told, *CONDITIONS, f"--input={tmp_path / 'large.npz'}"))
    assert "condition images must be 1x4x4 (C x H x W), got 1x8x8; resize them" in message
    np.savez(tmp_path / "colour.npz", np.zeros((2, 4, 4, 3), np.uint8))
    message = error(capsys, tiny_command("sample", told, *CONDITIONS, f"--input={tmp_path / 'colour.npz'}"))
    assert "condition images must be 1x4x4 (C x H x W), got 3x4x4; convert them" in message
    (tmp_path / "mixed").mkdir()
    for size in (4, 5):
        Image.new("L", (size, size)).save(tmp_path / "mixed" / f"{size}.png")
    message = error(capsys, tiny_command("sample", told, *CONDITIONS, f"--input={tmp_path / 'mixed'}"))
    assert "condition images must all be 1x4x4 (C x H x W), got 2 sizes: 4x4 (1 images), 5x5 (1 images);" in message


def test_labels_that_are_no_classes_are_refused_before_anything_is_drawn(
    told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    np.savez(tmp_path / "small.npz", images=np.zeros((4, 4, 4, 1), np.uint8), labels=[1, 2, -2, 99])
    message = error(capsys, tiny_command("sample", told, *CONDITIONS, f"--input={tmp_path / 'small.npz'}"))
    assert "given labels must be in 0 .. 9, got -2; change it, or set sampling.classes" in message


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--config.data.condition=gray"], "condition gray is of images of 3 channels, got 1; leave it out"),
        (["--config.data.condition=lowres,lowres"], "each condition is told once, got lowres twice; leave one out"),
        (["--config.data.condition=lowrez"], "unknown condition 'lowrez'; did you mean 'lowres'?"),
        (["--config.data.condition=lowres", "--config.data.condition_options=factor=3"], "have no boxes of 3 pixels"),
        (["--config.model.condition_dropout=1"], "config.model.condition_dropout must be below 1, got 1"),
        (["--config.model.condition_dropout=0.1"], "model.condition_dropout=0.1 needs a condition, got none"),
        (["--config.model.condition_noise_t=0.1"], "model.condition_noise_t=0.1 needs a condition image, got none"),
        (["--config.model.part_dropout=txt=0.5"], "part in config.model.part_dropout: 'txt'; did you mean 'text'?"),
        (["--config.model.part_dropout=text=1"], "part_dropout must be inside (0, 1) for text, got 1; set it so"),
        (["--config.model.part_dropout=text"], "options must look like 'eta=0.5, variance=large', got 'text'"),
        (["--config.model.part_dropout=text=0.5"], "leaves out text, which the model is not told (it is told nothing)"),
        (
            ["--config.data.condition=lowres,ink", "--config.model.part_dropout=image=0.5"],
            "must name all that the model is told (image, values), got image: no sample would be told nothing",
        ),
        (["--config.data.downscale=3"], "images of 8x8 have no boxes of 3 pixels"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
):
    assert message in error(capsys, tiny_command("train", tmp_path / "run", *extra))
    assert not (tmp_path / "run").exists()


def test_a_model_without_such_conditions_takes_no_input(tiny_run: Path, capsys: pytest.CaptureFixture[str]):
    assert "--input is of models that are told an image or values" in error(
        capsys, tiny_command("sample", tiny_run, "--input=some.npz")
    )


@pytest.mark.parametrize("mode", ["edit", "interpolate", "progressive", "restore"])
def test_modes_that_have_no_image_to_tell_refuse_a_model_that_is_told_one(
    mode: str, told: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    message = error(capsys, tiny_command(mode, told, *CONDITIONS, f"--output={tmp_path / 'out'}"))
    assert f"--mode {mode} needs a model that is told a class or nothing, got data.condition=lowres; train" in message
    assert not (tmp_path / "out").exists()


def test_halved_images_are_a_data_set_of_their_own(tmp_path: Path):
    small = ("--config.data.downscale=2", "--config.model.attention_resolutions=")
    for mode in ("train", "eval", "sample"):
        assert main.run(tiny_command(mode, tmp_path / "run", *small)) == 0
    report = json.loads((tmp_path / "run" / "eval" / "report.json").read_text())
    assert report["image_shape"] == [1, 4, 4] and report["num_levels"] == 65
    assert np.load(tmp_path / "run" / "samples" / "samples.npz")["arr_0"].shape == (5, 4, 4, 1)
