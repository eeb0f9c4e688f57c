"""Images that are not square, through whole commands: data, training, measuring, sampling, pictures, export."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from thinning import only
from tiny import error, last_tensors, tiny_command

import main
from data import load_dataset
from experiment.config import load_config
from experiment.pictures import image_grid

SIZE = (8, 12)
ROOT = Path(__file__).resolve().parent.parent.parent


def _write_npz(path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (24, *SIZE, 3), dtype=np.uint8)
    np.savez(path, images=images)


def _write_folder(folder: Path) -> None:
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        for k in range(12):
            pixels = np.random.default_rng(k).integers(0, 256, (20, 26, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{k}.png")


@pytest.mark.parametrize("kind", only(("folder",), ["npz", "folder"]))
def test_a_run_of_every_command(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = tmp_path / "data.sources.npz" if kind == "npz" else tmp_path / "data"
    (_write_npz if kind == "npz" else _write_folder)(root)
    data = [f"--config.data.dataset={kind}", f"--config.data.root={root}", "--config.model.attention_resolutions=4,"]
    data += ["--config.data.image_size=8,12"] if kind == "folder" else []
    data += ["--config.eval.num_images=2", "--config.sde.beta_start=1e-4"]
    data += ["--config.training.gradient_checkpointing=true", "--config.training.sample_every=6"]
    run = tmp_path / "run"
    for mode in ("train", "eval", "sample"):
        assert main.run(tiny_command(mode, run, *data)) == 0, mode
    said = capsys.readouterr()
    assert "images of 3x8x12, 256 grey levels" in said.err
    state = json.loads((max((run / "checkpoints").glob("step_*")) / "state.json").read_text())
    assert state["data"]["image_shape"] == [3, 8, 12]
    samples = np.load(run / "samples" / "samples.npz")["arr_0"]
    assert samples.shape == (5, 8, 12, 3) and samples.dtype == np.uint8
    # the picture shows these samples, enlarged, in their order
    picture = np.asarray(Image.open(run / "samples" / "grid.png"))
    assert np.array_equal(picture, image_grid(samples))
    # L_T knows nothing of the network: KL of N(alpha x0, sigma^2) from N(0, 1), a dimension
    size = SIZE if kind == "folder" else None
    images = load_dataset(kind, root=root, split="test", image_size=size).images[:2]
    variance = 1 - float(torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)[-1])
    squares = (images.double() / 127.5 - 1).square()
    nats = 0.5 * ((1 - variance) * squares + variance - 1 - math.log(variance))
    report = json.loads((run / "eval" / "report.json").read_text())
    assert report["vlb"]["prior"] == pytest.approx(float(nats.mean()) / math.log(2), rel=1e-3)
    turned = "12,8" if kind == "folder" else "8"
    line = error(capsys, tiny_command("sample", run, *data, f"--config.data.image_size={turned}"))
    assert "data.image_size was" in line
    assert main.run(tiny_command("export", run, *data, "--format=diffusers")) == 0
    assert json.loads((run / "diffusers" / "unet" / "config.json").read_text())["sample_size"] == [8, 12]
    if kind == "folder":
        _import_again(run, root, tmp_path / "imported", capsys)


def _import_again(run: Path, root: Path, imported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Import an exported network again: it is the same."""
    command = [f"--config={ROOT / 'configs' / 'pretrained' / 'diffusers_256.py'}", f"--workdir={imported}"]
    command += ["--config.device=cpu", "--config.optim.name=adam"]
    source = ["--mode=import", f"--checkpoint={run / 'diffusers'}"]
    assert "is of images with image_size (8, 12), got (12, 8)" in error(
        capsys, [*command, *source, "--config.data.image_size=12,8"]
    )
    assert main.run([*command, *source, "--config.data.image_size=8,12"]) == 0
    network = json.loads((imported / "config.json").read_text())["model"]["network"]
    assert network["image_size"] == [8, 12]
    ours, theirs = last_tensors(run), last_tensors(imported)
    names = [name for name in ours if name.startswith("ema.")]
    assert names and all(torch.equal(ours[name], theirs[name]) for name in names)
    sampling = ["--config.sampling.num_steps=3", "--config.sampling.num_samples=2"]
    size = ["--config.data.image_size=8,12", f"--config.data.root={root}"]
    assert main.run([*command, "--mode=sample", *size, *sampling]) == 0
    assert np.load(imported / "samples" / "samples.npz")["arr_0"].shape == (2, 8, 12, 3)


@pytest.mark.parametrize("size", [(8, 12), (12, 8), (8, 8)])
def test_a_folder_is_resized_to_cover_and_cropped_to_the_centre(size: tuple[int, int], tmp_path: Path):
    height, width = size
    (tmp_path / "train").mkdir()
    wide, tall = (np.zeros((16, 48), np.uint8), np.zeros((48, 16), np.uint8))
    # a bright stripe in the middle stays in the middle, however much is cropped beside it
    wide[:, 20:28], tall[20:28] = 200, 200
    for name, pixels in (("0", wide), ("1", tall)):
        Image.fromarray(pixels).save(tmp_path / "train" / f"{name}.png")
    found = load_dataset("folder", root=tmp_path, split="train", image_size=size, channels=1).images
    assert found.shape == (2, 1, height, width)
    assert torch.equal(found, found.flip(-1)) and torch.equal(found, found.flip(-2))
    assert found[0, 0, :, 0].max() < 100 and found[1, 0, 0].max() < 100
    assert (found[:, 0, height // 2, width // 2] > 150).all()
    # images of that size keep their pixels
    exact = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(exact).save(tmp_path / "train" / "2.png")
    found = load_dataset("folder", root=tmp_path, split="train", image_size=size, channels=1).images
    assert np.array_equal(found[2, 0], exact)


@pytest.mark.parametrize(
    ("text", "value"), [("64", 64), ("32,48", (32, 48)), ("(32, 48)", (32, 48)), ("32,32", 32), ("0", 0)]
)
def test_image_size_on_the_command_line_is_one_number_or_a_pair(text: str, value: object):
    for config in ("vp/digits", "pretrained/diffusers_256"):
        path = str(ROOT / "configs" / f"{config}.py")
        assert load_config(path, [f"--config.data.image_size={text}"]).data.image_size == value


@pytest.mark.parametrize("text", ["", "8,12,16", "8x12", "eight", "8.5", "8,a"])
def test_other_sizes_are_one_line(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = error(capsys, tiny_command("train", tmp_path, f"--config.data.image_size={text}"))
    assert "config.data.image_size must be one number, or height and width as in 32,48, got" in line


def test_pictures_of_grids_are_about_square():
    for height, width in ((8, 24), (24, 8), (16, 20)):
        rows, columns, _ = image_grid(np.zeros((48, height, width, 3), np.uint8)).shape
        assert 0.6 < rows / columns < 1.6
