"""An image that lies beside each sample, told to a model in train, eval and sample."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import error, last_tensors, tiny_command

import main
from data import ImageDataset, load_dataset, make_conditions
from experiment.conditions import Conditions
from experiment.trained_run import load_run
from models import Condition, EpsParameterization, NetworkScoreModel
from models.backbones import UNet
from sde_lib import Tabulated
from training.batches import TrainBatches
from training.fit import fit

TOLD = ("--config.data.dataset=npz", "--config.data.condition=paired", "--config.model.condition_dropout=0.2")


def commanded(mode: str, workdir: Path, data: Path, *extra: str) -> list[str]:
    return tiny_command(mode, workdir, *TOLD, f"--config.data.root={data}", "--config.eval.num_images=4", *extra)


def save(path: Path, *, channels: int = 1, **more: np.ndarray) -> Path:
    """Images of 256 levels beside images of five, which are no function of them."""
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (50, 8, 8, 1)).astype(np.uint8)
    paired = random.randint(0, 5, (50, 8, 8, channels)).astype(np.uint8)
    np.savez(path, **{"images": images, "paired": paired, "paired_levels": 5, **more})
    return path


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Data, and a run that is told the image beside each mask."""
    folder = tmp_path_factory.mktemp("told")
    data = save(folder / "x.npz")
    assert main.run(commanded("train", folder / "run", data, "--config.data.random_flip=True")) == 0
    return data, folder / "run"


def test_an_interrupted_training_ends_in_the_same_bits(told: tuple[Path, Path], tmp_path: Path):
    data, run = told
    last = json.loads((max((run / "checkpoints").glob("step_*")) / "state.json").read_text())
    assert last["data"]["paired_channels"] == 1 and last["data"]["paired_levels"] == 5
    for steps in (2, int(last["step"])):
        flags = ("--config.data.random_flip=True", f"--config.training.num_steps={steps}")
        assert main.run(commanded("train", tmp_path / "run", data, *flags)) == 0
    whole, parts = last_tensors(run), last_tensors(tmp_path / "run")
    assert any("condition_input" in name for name in whole)
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_a_flip_mirrors_both_images():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(2, (20, 1, 4, 6), generator=generator, dtype=torch.uint8)
    dataset = ImageDataset(images, torch.zeros(20).long(), 2, 1, "x", "train", paired=1 - images, paired_levels=2)
    batches = TrainBatches(dataset, batch_size=7, seed=1, random_flip=True)
    for step in range(5):
        samples, _ = batches.batch(step)
        paired = batches.beside(step).paired
        assert paired is not None and torch.equal(paired, 1 - samples)
    assert not all(torch.equal(batches.batch(step)[0], images[batches.indices(step)]) for step in range(5))


def test_masks_are_measured_given_their_images(told: tuple[Path, Path]):
    data, run = told
    assert main.run(commanded("eval", run, data)) == 0
    report = json.loads((run / "eval" / "report.json").read_text())
    assert report["condition"] == ["paired"] and ", given paired" in report["vlb"]["quote"]
    test = load_dataset("npz", root=data, split="test")
    assert isinstance(test, ImageDataset) and test.paired is not None
    loaded = load_run(run, device="cpu")
    found = loaded.bits_per_dim(test.images[:4], paired=test.paired[:4], progress=False)
    np.testing.assert_allclose(found.numpy(), np.load(run / "eval" / "per_image.npz")["vlb"], rtol=1e-6)
    other = loaded.bits_per_dim(test.images[:4], paired=4 - test.paired[:4], progress=False)
    assert (other - found).abs().min() > 0
    with pytest.raises(ValueError, match="the model needs paired, uint8"):
        loaded.bits_per_dim(test.images[:4])
    with pytest.raises(ValueError, match=r"told paired images, uint8 \[4, 1, 8, 8\], got torch.uint8 \[4, 2, 8, 8\]"):
        loaded.bits_per_dim(test.images[:4], paired=test.paired[:4].repeat(1, 2, 1, 1), progress=False)


def test_samples_are_of_the_images_of_a_split_or_of_files(told: tuple[Path, Path], tmp_path: Path):
    data, run = told

    def drawn(folder: str, *extra: str) -> np.ndarray:
        assert main.run(commanded("sample", run, data, f"--output={tmp_path / folder}", *extra)) == 0
        return np.load(tmp_path / folder / "samples.npz")["arr_0"]

    of_split = drawn("split")
    test = load_dataset("npz", root=data, split="test")
    assert test.paired is not None
    pixels = test.paired[:, 0].numpy() * 51  # of five levels 255 / 4 apart, the nearest
    (tmp_path / "png").mkdir()
    for k, one in enumerate((test.paired[:, 0].double() * 255 / 4).round().byte().numpy()):
        Image.fromarray(one).save(tmp_path / "png" / f"{k}.png")
    np.testing.assert_array_equal(drawn("files", f"--input={tmp_path / 'png'}"), of_split)
    given = tmp_path / "given.npz"
    np.savez(given, images=test.paired.permute(0, 2, 3, 1).numpy(), num_levels=5)
    np.testing.assert_array_equal(drawn("two", f"--input={given}", "--config.sampling.batch_size=2"), of_split)
    np.savez(given, images=255 - pixels[..., None])
    assert (drawn("other", f"--input={given}") != of_split).any()


def test_what_does_not_fit_is_refused(told: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data, run = told
    message = error(capsys, tiny_command("train", tmp_path / "new", "--config.data.condition=paired"))
    assert "data.condition=paired needs an image beside each sample, which the data do not have; save them" in message
    assert not (tmp_path / "new").exists()
    two = save(tmp_path / "two.npz", channels=2)
    assert "paired_channels 1, got 2 in npz" in error(capsys, commanded("eval", run, two))
    Image.new("L", (5, 5)).save(tmp_path / "small.png")
    message = error(capsys, commanded("sample", run, data, f"--input={tmp_path / 'small.png'}"))
    assert "condition images must be 1x8x8 (C x H x W), got 1x5x5; resize them" in message
    few = save(tmp_path / "few.npz", paired=np.zeros((3, 8, 8), np.uint8))
    message = error(capsys, commanded("train", tmp_path / "new", few))
    assert "few.npz has 3 rows of paired, expected 50; save one row a sample" in message
    floats = save(tmp_path / "floats.npz", paired=np.zeros((50, 8, 8)))
    assert "paired must be uint8 [N, H, W, C]" in error(capsys, commanded("train", tmp_path / "new", floats))


def test_the_other_split_of_a_file_keeps_its_images(tmp_path: Path):
    path = save(tmp_path / "x.npz")
    whole = np.load(path)
    train, test = (load_dataset("npz", root=path, split=split) for split in ("train", "test"))
    assert train.paired is not None and test.paired is not None and (len(train), len(test)) == (45, 5)
    pairs = {one.tobytes(): other.tobytes() for one, other in zip(whole["images"], whole["paired"], strict=True)}
    for images, paired in zip(train.stored, train.paired, strict=True):
        assert pairs[images.numpy().tobytes()] == paired.numpy().tobytes()


def test_a_notebook_trains_on_a_data_set_with_paired_images():
    images = torch.randint(2, (8, 1, 8, 8), dtype=torch.uint8)
    dataset = ImageDataset(images, torch.zeros(8).long(), 2, 1, "x", "train", paired=images, paired_levels=2)
    small = {"channels": 8, "channel_mult": (1,), "num_res_blocks": 1, "norm_groups": 4, "attention_resolutions": ()}
    network = UNet(image_size=8, in_channels=1, cond_channels=1, **small)
    model = NetworkScoreModel(network, Tabulated.ddpm(), EpsParameterization())
    trained = fit(model, dataset, steps=3, conditions=make_conditions(("paired",)), batch_size=4, device="cpu")
    x_t, t = torch.zeros(1, 1, 8, 8), torch.full((1,), 0.5, dtype=torch.float64)
    seen = [trained(x_t, t, cond=Condition(image=torch.full_like(x_t, grey))).x0 for grey in (-1.0, 1.0)]
    assert not torch.equal(*seen)


def test_conditions_of_a_notebook_name_what_is_missing():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    dataset = ImageDataset(images, torch.zeros(2).long(), 2, 1, "x", "train", paired=images, paired_levels=2)
    conditions = Conditions(dataset.kind, makers=make_conditions(("paired",)))
    with pytest.raises(ValueError, match=r"told paired images, uint8 \[2, 1, 4, 4\], got none; give each sample one"):
        conditions.observe(images, dataset.labels)
