"""Vectors through whole commands: trained, measured as a density, sampled."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from thinning import only
from tiny import error, last_tensors
from vector_runs import FACTORS, MEANS, ExactGaussian, command, gaussian_vectors, log_density

import main
from data import VectorDataset, load_dataset
from evaluation import density_picture
from evaluation.density_picture import flow_density
from experiment.pictures import scatter
from experiment.trained_run import load_run
from models import NetworkScoreModel, make_parameterization
from models.pretrained import BACKBONES


def _exact(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[str]:
    """Let the exact network stand for the MLP; what it needs in the config."""
    space = load_dataset("npz", root=path, split="train").space

    class Exact(ExactGaussian):
        def __init__(
            self, *, num_dims: int, num_classes: int | None = None, hidden: int = 0, num_layers: int = 0
        ) -> None:
            super().__init__(num_dims, space, num_classes)

    monkeypatch.setitem(BACKBONES, "mlp", Exact)
    return ["--config.model.parameterization=eps", "--config.model.time_input=t999"]


@pytest.mark.parametrize("num_dims", only((2,), [1, 2, 3]))
def test_the_density_of_a_gaussian_is_its_own_whatever_its_scale(
    num_dims: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "x.npz"
    np.savez(path, vectors=gaussian_vectors(num_dims, 400))
    exact = [*_exact(monkeypatch, path), "--config.eval.ode_rtol=1e-5", "--config.eval.ode_atol=1e-5"]
    monkeypatch.setattr("commands.eval.draw_density", lambda *_, **__: None)
    for mode in ("train", "eval"):
        assert main.run(command(mode, tmp_path / "run", path, *exact)) == 0
    said = capsys.readouterr()
    assert f"npz: vectors of {num_dims} number" in said.err
    report = json.loads((tmp_path / "run" / "eval" / "report.json").read_text())
    test = load_dataset("npz", root=path, split="test").stored.numpy()
    truth = -log_density(test)
    # every vector's own density, in bits per dimension, but for the least noise, of which VP knows sigma^2 = 1e-4 or so
    per_image = np.load(tmp_path / "run" / "eval" / "per_image.npz")["ode"] * num_dims * math.log(2)
    np.testing.assert_allclose(per_image, truth, atol=0.02)
    stored = load_dataset("npz", root=path, split="test").stored
    from_python = load_run(tmp_path / "run").bits_per_dim(stored, progress=False) * num_dims * math.log(2)
    np.testing.assert_allclose(from_python.numpy(), per_image, rtol=1e-6)
    ours = report["ode"]
    assert ours["nats"] == pytest.approx(per_image.mean(), rel=1e-9)
    assert ours["bits_per_dim"] * num_dims * math.log(2) == pytest.approx(ours["nats"], rel=1e-12)
    # and so its mean is the entropy, to within its standard error
    covariance = np.cov(gaussian_vectors(num_dims, 100_000, seed=1).T).reshape(num_dims, num_dims)
    entropy = 0.5 * np.linalg.slogdet(2 * math.pi * math.e * covariance)[1]
    assert abs(ours["nats"] - entropy) < 3 * ours["nats_stderr"] + 0.02
    assert f"({ours['nats']:.4f} ± {ours['nats_stderr']:.4f} nats a vector)" in ours["quote"]
    assert f"{len(test)} test vectors of npz" in ours["quote"] and report["units"] == "bits/dim of the density"
    assert report["num_levels"] is None and len(report["std"]) == num_dims


@pytest.mark.parametrize("num_dims", only((2,), [1, 2]))
def test_samples_have_the_moments_of_the_data_and_a_picture_in_the_plane(
    num_dims: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path, samples = tmp_path / "x.npz", tmp_path / "run" / "samples"
    np.savez(path, vectors=gaussian_vectors(num_dims, 400))
    # the range of images, which clips, is none of vectors
    options = [*_exact(monkeypatch, path), "--config.sampling.clip_x0=true", "--config.sampling.num_steps=60"]
    options += [
        "--config.sampling.num_samples=1500",
        "--config.sampling.batch_size=1000",
        "--config.sampling.grid=log_snr",
    ]
    assert main.run([*command("train", tmp_path / "run", path, *options), "--config.training.sample_every=4"]) == 0
    assert (samples / "training_00000004.png").exists() == (num_dims == 2)
    assert main.run(command("sample", tmp_path / "run", path, *options)) == 0
    found = np.load(samples / "samples.npz")["arr_0"]
    assert found.dtype == np.float32 and found.shape == (1500, num_dims)
    # in the coordinates in which the data is N(0, 1)
    normal = np.linalg.solve(FACTORS[num_dims], (found - MEANS[num_dims]).T)
    assert np.abs(normal.mean(1)).max() < 4 / math.sqrt(1500)
    assert np.abs(np.cov(normal) - np.eye(num_dims)).max() < 4 * math.sqrt(2 / 1500) + 0.02
    assert (samples / "grid.png").exists() == (num_dims == 2)
    if num_dims == 2:
        assert np.array_equal(np.asarray(Image.open(samples / "grid.png")), scatter(found))
    assert json.loads((samples / "samples.json").read_text())["image_shape"] == [num_dims]
    # a smaller number is part of these
    few = ["--config.sampling.num_samples=1000", "--config.sampling.record_trajectory=true"]
    assert main.run([*command("sample", tmp_path / "run", path, *options, *few), f"--output={tmp_path / 'few'}"]) == 0
    assert np.array_equal(np.load(tmp_path / "few" / "samples.npz")["arr_0"], found[:1000])
    states = np.load(tmp_path / "few" / "trajectory.npz")["states"]
    assert states.shape[1:] == (16, num_dims) and not (tmp_path / "few" / "trajectory.gif").exists()
    line = error(capsys, command("sample", tmp_path / "run", path, *options, "--config.sampling.png_folder=true"))
    assert "sampling.png_folder is for images of 1 or 3 channels, got vectors" in line


def test_another_file_is_measured_in_the_space_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Vectors are standardized by the model's checkpoint; data of another scale have their own density."""
    first, other = tmp_path / "x.npz", tmp_path / "y.npz"
    vectors = gaussian_vectors(2, 400)
    np.savez(first, vectors=vectors)
    np.savez(other, train_vectors=vectors[:40] * 0.5 + 50, test_vectors=vectors[40:60])
    exact = _exact(monkeypatch, first)
    monkeypatch.setattr("commands.eval.draw_density", lambda *_, **__: None)
    assert main.run(command("train", tmp_path / "run", first, *exact)) == 0
    assert main.run(command("eval", tmp_path / "run", other, *exact)) == 0
    per_image = np.load(tmp_path / "run" / "eval" / "per_image.npz")["ode"] * 2 * math.log(2)
    np.testing.assert_allclose(per_image, -log_density(vectors[40:60]), atol=0.02)
    # and a run that goes on does so in its own space too
    assert main.run(command("train", tmp_path / "run", other, *exact, "--config.training.num_steps=5")) == 0
    states = [
        json.loads((path / "state.json").read_text()) for path in (tmp_path / "run" / "checkpoints").glob("step_*")
    ]
    assert len({json.dumps(state["data"]["space"]) for state in states}) == 1


def test_a_resumed_run_on_vectors_ends_in_the_same_bits(tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez(path, vectors=gaussian_vectors(3, 50), labels=np.arange(50) % 2)
    conditional = ["--config.model.class_conditional=true", "--config.training.checkpoint_every=2"]
    for workdir, steps in (("one", (6,)), ("two", (3, 6))):
        for count in steps:
            options = [*conditional, f"--config.training.num_steps={count}"]
            assert main.run(command("train", tmp_path / workdir, path, *options)) == 0
    one, two = last_tensors(tmp_path / "one"), last_tensors(tmp_path / "two")
    assert any(name.startswith("model.") for name in one)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("num_dims", only((1,), [1, 2]))
def test_the_density_that_is_drawn_is_the_gaussian_s(num_dims: int, tmp_path: Path):
    path = tmp_path / "x.npz"
    np.savez(path, vectors=gaussian_vectors(num_dims, 400))
    dataset = load_dataset("npz", root=path, split="train")
    assert isinstance(dataset, VectorDataset)
    network = ExactGaussian(num_dims, dataset.space)
    model = NetworkScoreModel(network, network.sde, make_parameterization("eps", time_input="t999"))
    points = dataset.vectors[:20]
    found = flow_density(model, dataset, points, num_steps=200)
    np.testing.assert_allclose(found.numpy(), np.exp(log_density(points.numpy())), rtol=0.02)


@pytest.mark.usefixtures("drawn")
def test_points_in_the_plane_are_drawn_beside_their_density(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, drawn = tmp_path / "x.npz", {}
    np.savez(path, vectors=gaussian_vectors(2, 400))
    small = {"_POINTS_A_SIDE": 12, "_NUM_STEPS": 20, "_NUM_SAMPLES": 30}
    for name, value in small.items():
        monkeypatch.setattr(density_picture, name, value)
    save = density_picture.save_density

    def keep(path: Path, points: np.ndarray, x: np.ndarray, y: np.ndarray, density: np.ndarray) -> None:
        drawn.update(points=points, x=x, y=y, density=density)
        save(path, points, x, y, density)

    monkeypatch.setattr(density_picture, "save_density", keep)
    exact = [*_exact(monkeypatch, path), "--config.eval.num_images=2", "--config.sampling.num_steps=20"]
    exact += ["--config.eval.ode_rtol=1e-2", "--config.eval.ode_atol=1e-2"]
    for mode in ("train", "eval"):
        assert main.run(command(mode, tmp_path / "run", path, *exact)) == 0
    # rows are y, columns x, as in a plot: the strip along which the density lies rises with slope 0.03 / 5
    assert drawn["density"].shape == (12, 12) and drawn["points"].shape == (30, 2)
    grid = np.stack(np.meshgrid(drawn["x"], drawn["y"]), -1)
    truth = np.exp(log_density(grid.reshape(-1, 2))).reshape(12, 12)
    assert np.corrcoef(truth.ravel(), drawn["density"].ravel())[0, 1] > 0.98
    inside = (drawn["points"] > grid[0, 0]).all(1) & (drawn["points"] < grid[-1, -1]).all(1)
    assert inside.mean() > 0.9
    picture = np.asarray(Image.open(tmp_path / "run" / "eval" / "density.png"))
    assert picture.shape[0] < picture.shape[1] and picture.std() > 10


BAD = [
    (["--config.model.backbone=unet"], "train", "backbone unet is of images, got vectors of 2 numbers"),
    (["--config.data.random_flip=true"], "train", "random_flip mirrors images, but npz holds vectors"),
    (["--config.data.image_size=8"], "train", "npz holds vectors, which have no image_size or channels"),
    (["--config.training.loss=vlb_continuous"], "train", "training.loss=vlb_continuous is of data with grey levels"),
    (["--config.model.parameterization=levels"], "train", "model.parameterization=levels is of data with grey levels"),
    (["--config.sampling.threshold_x0=0.9"], "train", "sampling.threshold_x0=True is of data with grey levels"),
    (["--config.eval.likelihoods=vlb,ode"], "eval", "eval.likelihoods=vlb ends in the probability of a grey level"),
    (["--config.eval.ode_dequantization=uniform"], "eval", "ode_dequantization=uniform is of data with grey levels"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "mode", "message"), BAD)
def test_what_is_of_images_alone_is_one_line(
    options: list[str], mode: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "x.npz"
    np.savez(path, vectors=gaussian_vectors(2, 50))
    if mode == "eval":
        assert main.run(command("train", tmp_path / "run", path)) == 0
    assert message in error(capsys, command(mode, tmp_path / "run", path, *options))
    assert not (tmp_path / "run" / "eval").exists()


def test_images_are_not_of_an_mlp_and_other_vectors_not_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "x.npz"
    np.savez(path, vectors=gaussian_vectors(2, 50))
    assert "backbone mlp is of vectors, got images of 1x8x8" in error(
        capsys, [*command("train", tmp_path / "run", path), "--config.data.dataset=digits"]
    )
    assert main.run(command("train", tmp_path / "run", path)) == 0
    np.savez(path, vectors=gaussian_vectors(3, 50))
    line = error(capsys, command("eval", tmp_path / "run", path))
    assert "was trained on vectors of image_shape [2], got [3] in npz test" in line
