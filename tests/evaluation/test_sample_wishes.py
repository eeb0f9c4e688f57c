"""Chosen classes, a folder of PNGs, and how samples come about."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_one_process import draw
from PIL import Image
from thinning import only
from tiny import ROOT, TINY, error, tiny_command

import main
from commands import sample as sampling
from data import ImageKind, LevelSpace
from evaluation.samples.trajectory import MOST_FRAMES, TrajectoryHook
from experiment.build import build_dataset, build_sampler
from experiment.classes import classes_of
from experiment.config import load_config
from experiment.from_checkpoints import load_trained
from experiment.trained_run import load_run
from models import ClippedScoreModel, DiscreteScoreModel
from samplers import DDIMSampler, make_sampler
from sde_lib import VE, NoiseStreams, Tabulated

CONDITIONAL = "--config.model.class_conditional=true"


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("conditional") / "run"
    assert main.run(tiny_command("train", workdir, CONDITIONAL)) == 0
    return workdir


def made(workdir: Path, folder: Path, *extra: str) -> Any:
    assert main.run(tiny_command("sample", workdir, f"--output={folder}", *extra)) == 0
    return np.load(folder / "samples.npz")


@pytest.mark.parametrize("classes", only(((9, 0, 0),), [(3, 7), (5,), (9, 0, 0)]))
def test_samples_are_of_the_chosen_classes_in_turn(conditional: Path, tmp_path: Path, classes: tuple[int, ...]):
    asked = ",".join(map(str, classes))
    found = made(conditional, tmp_path / "out", CONDITIONAL, f"--config.sampling.classes={asked}")
    assert found["arr_1"].tolist() == [classes[k % len(classes)] for k in range(5)]
    about = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert about["classes"] == list(classes)
    assert about["class_names"] == [str(k) for k in classes]
    # drawn with those labels, and from the streams that any other classes would have
    config = load_config(str(ROOT / "configs/vp/digits.py"), [*TINY, CONDITIONAL])
    dataset = build_dataset(config, "train")
    model, _ = load_trained(config, conditional, dataset.kind, torch.device("cpu"))
    how: dict[str, Any] = {"sample_shape": dataset.image_shape, "num_samples": 5, "batch_size": 3}
    sampler, bounded = build_sampler(config), ClippedScoreModel(model)
    expected, labels, _ = draw(sampler, bounded, classes=classes, **how)
    assert labels.tolist() == found["arr_1"].tolist()
    np.testing.assert_array_equal(found["arr_0"], LevelSpace(dataset.num_levels).pixels(expected))
    all_classes, _, _ = draw(sampler, bounded, classes=range(10), **how)
    assert not torch.equal(all_classes, expected)


def test_a_class_has_a_number_and_a_name(conditional: Path):
    kind = ImageKind((1, 2, 2), 4, 4, ("plane", "car", "bird", "cat, sleeping"))
    for asked, expected in (
        ("bird,plane", (2, 0)),
        ("1,bird", (1, 2)),
        ("car", (1,)),
        ("", (0, 1, 2, 3)),
        ("3", (3,)),
        ("0", (0,)),
    ):
        extra = [CONDITIONAL, f"--config.sampling.classes={asked}"]
        config = load_config(str(ROOT / "configs/vp/digits.py"), [*TINY, *extra])
        assert classes_of(config, kind) == expected
    for asked, message in (
        ("brid", "unknown class 'brid' in sampling.classes; did you mean 'bird'? choices: 0 to 3, or plane, car, bird"),
        (
            "cat, sleeping",
            "unknown class 'cat' in sampling.classes; did you mean 'car'? choices: 0 to 3, or plane, car, bird",
        ),
        ("0,4", "unknown class '4' in sampling.classes; choices: 0 to 3, or plane, car, bird"),
    ):
        extra = [CONDITIONAL, f"--config.sampling.classes={asked}"]
        config = load_config(str(ROOT / "configs/vp/digits.py"), [*TINY, *extra])
        with pytest.raises(ValueError, match=message.replace("?", r"\?")):
            classes_of(config, kind)


def test_a_class_whose_name_is_a_number_is_taken_by_its_number():
    kind = ImageKind((1, 2, 2), 4, 3, ("1", "2", "10"))
    for asked, expected in (("1,2", (1, 2)), ("0", (0,))):
        config = load_config(str(ROOT / "configs/vp/digits.py"), [CONDITIONAL, f"--config.sampling.classes={asked}"])
        assert classes_of(config, kind) == expected
    config = load_config(str(ROOT / "configs/vp/digits.py"), [CONDITIONAL, "--config.sampling.classes=1,2,10"])
    with pytest.raises(ValueError, match=r"class '10' in sampling\.classes is taken by its number, which is 2"):
        classes_of(config, kind)


def test_classes_that_there_are_not_are_refused(
    conditional: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for asked in ("10", "-1", "ten", "3,11"):
        extra = (CONDITIONAL, f"--config.sampling.classes={asked}", f"--output={tmp_path / 'out'}")
        said = error(capsys, tiny_command("sample", conditional, *extra))
        assert f"unknown class '{asked.split(',')[-1]}' in sampling.classes; choices: 0 to 9" in said
    said = error(capsys, tiny_command("sample", tiny_run, "--config.sampling.classes=3"))
    assert "sampling.classes=3 needs a class-conditional model" in said
    assert not (tmp_path / "out").exists()


def test_pngs_are_the_samples(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found = made(tiny_run, tmp_path / "out", "--config.sampling.png_folder=true")["arr_0"]
    paths = sorted((tmp_path / "out" / "png").iterdir())
    assert [path.name for path in paths] == [f"00000{k}.png" for k in range(5)]
    for path, image in zip(paths, found, strict=True):
        with Image.open(path) as picture:
            assert picture.mode == "L" and picture.size == (8, 8)
            np.testing.assert_array_equal(np.asarray(picture)[..., None], image)
    # samples that are there already are written, not drawn
    made(tiny_run, tmp_path / "later")
    monkeypatch.setattr(sampling, "draw_batch", None)
    made(tiny_run, tmp_path / "later", "--config.sampling.png_folder=true")
    for path in paths:
        assert (tmp_path / "later" / "png" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("family", only(("ve",), ["vp", "ve"]))
def test_a_trajectory_leads_from_noise_to_the_samples(tmp_path: Path, family: str):
    """In batches of three as in one of all."""
    workdir = tmp_path / "run"
    assert main.run(tiny_command("train", workdir, config=f"{family}/digits")) == 0
    found = {}
    for size in (18, 7):
        extra = ["--config.sampling.num_samples=18", f"--config.sampling.batch_size={size}"]
        extra += ["--config.sampling.record_trajectory=true", f"--output={tmp_path / str(size)}"]
        assert main.run(tiny_command("sample", workdir, *extra, config=f"{family}/digits")) == 0
        found[size] = dict(np.load(tmp_path / str(size) / "trajectory.npz"))
    images = np.load(tmp_path / "18" / "samples.npz")["arr_0"]
    states, t = found[18]["states"], found[18]["t"]
    # VE ends with noise, and so in one denoising more
    assert states.shape == ((6 if family == "vp" else 7), 16, 1, 8, 8) and states.dtype == np.float32
    assert t[0] == 1 and (np.diff(t) <= 0).all() and t[-1] == 0 and len(t) == len(states)
    np.testing.assert_array_equal(LevelSpace(17).pixels(torch.from_numpy(states[-1])), images[:16])
    config = load_config(str(ROOT / f"configs/{family}/digits.py"), TINY)
    dataset = build_dataset(config, "train")
    model, _ = load_trained(config, workdir, dataset.kind, torch.device("cpu"))
    start = model.sde.prior_sample(dataset.image_shape, NoiseStreams(0, range(16)))
    np.testing.assert_array_equal(states[0], start)
    np.testing.assert_allclose(found[7]["states"], states, rtol=1e-3, atol=1e-3 * float(start.std()))
    with Image.open(tmp_path / "18" / "trajectory.gif") as film:
        assert film.n_frames == len(states)
        shades = []
        for k in range(film.n_frames):
            film.seek(k)
            frame = np.asarray(film.convert("L"))
            shades.append(frame[2:50:6, 2:50:6])
    # the last frame is the first sample; the first one is noise that fills the grey levels, whatever its scale
    np.testing.assert_allclose(shades[-1], images[0, :, :, 0], atol=2)
    assert 60 < shades[0].std() < 110


@pytest.mark.parametrize(("num_steps", "most"), [(1, 60), (5, 5), (7, 4), (1000, 60)])
def test_a_trajectory_has_few_frames_spread_evenly(num_steps: int, most: int):
    model = DiscreteScoreModel(Tabulated.ddpm(), points=torch.tensor([[-1.0], [1.0]]), probs=[0.5, 0.5])
    noise = NoiseStreams(0, range(3))
    x_T = model.sde.prior_sample((1,), noise)
    hook = TrajectoryHook(x_T, 2, most)
    sampler = DDIMSampler(num_steps=num_steps, record_trajectory=True)
    result = sampler.sample(model, x_T, noise=noise, hooks=[hook])
    arrays = hook.arrays()
    count = min(num_steps + 1, most)
    assert arrays["states"].shape == (count, 2, 1) and most <= MOST_FRAMES
    assert result.trajectory is not None
    kept = [0, *(k * num_steps // (count - 1) for k in range(1, count))]
    at = [int(np.abs(sampler.times(model.sde).numpy() - t).argmin()) for t in arrays["t"]]
    assert np.abs(np.array(at) - np.array(kept)).max() <= 1 and at[0] == 0 and at[-1] == num_steps
    np.testing.assert_array_equal(arrays["states"], result.trajectory[at, :2])


def test_scales_bring_states_to_unit_variance():
    sde = VE()
    model = DiscreteScoreModel(sde, points=torch.tensor([[-1.0], [1.0]]), probs=[0.5, 0.5])
    noise = NoiseStreams(0, range(400))
    x_T = sde.prior_sample((1,), noise)
    hook = TrajectoryHook(x_T, 400)
    make_sampler("ddim", num_steps=20).sample(model, x_T, noise=noise, hooks=[hook])
    arrays = hook.arrays()
    spread = arrays["states"].reshape(len(arrays["t"]), -1).std(1) * arrays["scales"]
    np.testing.assert_allclose(spread, 1, atol=0.15)


def test_a_trajectory_asked_for_among_the_options_is_named(tiny_run: Path, capsys: pytest.CaptureFixture[str]):
    said = error(capsys, tiny_command("sample", tiny_run, "--config.sampling.options=record_trajectory=true"))
    assert "set config.sampling.record_trajectory" in said


@pytest.mark.parametrize(("label", "classes"), [(None, ""), (3, "3"), ("3", "3")])
def test_a_loaded_run_draws_the_samples_of_the_command(
    conditional: Path, tmp_path: Path, label: int | str | None, classes: str
):
    run = load_run(conditional, device="cpu")
    found = made(conditional, tmp_path, CONDITIONAL, f"--config.sampling.classes={classes}")
    images, labels = found["arr_0"], found["arr_1"]
    ours = run.sample(len(images), label=label).permute(0, 2, 3, 1)
    difference = np.abs((ours.numpy() * (255 / 16)).round().astype(int) - images.astype(int))
    # another size of batch may round otherwise
    assert difference.max() <= 16 and (difference == 0).mean() > 0.98
    assert labels.tolist() == ([k % 10 for k in range(len(images))] if label is None else [3] * len(images))


def test_a_loaded_run_knows_its_classes(conditional: Path):
    run = load_run(conditional, device="cpu")
    with pytest.raises(ValueError, match="unknown class '10'; choices: 0 to 9"):
        run.sample(1, label=10)
    other = run.sample(2, label=3, sampler=make_sampler("ddim", num_steps=2))
    assert not torch.equal(run.sample(2, label=3), other)
    assert not torch.equal(run.sample(2, label=3), run.sample(2, label=3, seed=1))
