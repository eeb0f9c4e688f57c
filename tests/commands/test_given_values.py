"""Values that a data set has beside its images or vectors, told to a model in train, eval and sample."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import error, last_tensors, tiny_command
from vector_runs import command

import main
from data import load_dataset, read_given_values
from experiment.trained_run import load_run
from models import Condition
from samplers import DDIMSampler

TOLD = ("--config.data.condition=values", "--config.model.condition_dropout=0.2")
NUM_VALUES = {"images": 2, "vectors": 1}


def commanded(kind: str, mode: str, workdir: Path, data: Path, *extra: str) -> list[str]:
    """A command line on data of a kind."""
    if kind == "vectors":
        small = (
            "--config.model.network.hidden=16",
            "--config.model.network.num_layers=1",
            "--config.eval.num_images=4",
        )
        loose = ("--config.eval.ode_rtol=1e-2", "--config.eval.ode_atol=1e-2", "--config.eval.batch_size=3")
        soon = ("--config.training.num_steps=30", "--config.optim.learning_rate=1e-2", "--config.optim.warmup_steps=2")
        return command(mode, workdir, data, *small, *loose, *soon, *TOLD, *extra)
    npz = ("--config.data.dataset=npz", f"--config.data.root={data}", "--config.eval.num_images=4")
    return tiny_command(mode, workdir, *npz, *TOLD, *extra)


def save(kind: str, path: Path, num_values: int | None = None) -> Path:
    """Data of a kind whose values say much of each sample."""
    random = np.random.RandomState(0)
    samples = random.randint(0, 17, (50, 8, 8, 1)).astype(np.uint8) if kind == "images" else random.randn(50, 2)
    first = samples.reshape(50, -1).repeat(2, axis=1) / (16 if kind == "images" else 1)
    values = first[:, : NUM_VALUES[kind] if num_values is None else num_values]
    levels = {"num_levels": 17} if kind == "images" else {}
    np.savez(path, **{kind: samples, **levels}, **({"values": values} if values.size else {}))
    return path


@pytest.fixture(scope="module", params=["images", "vectors"])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """The kind of data, the data and a run that is told their values."""
    folder = tmp_path_factory.mktemp("told")
    data = save(request.param, folder / "x.npz")
    assert main.run(commanded(request.param, "train", folder / "run", data)) == 0
    return request.param, data, folder / "run"


def test_an_interrupted_training_ends_in_the_same_bits(told: tuple[str, Path, Path], tmp_path: Path):
    kind, data, run = told
    last = json.loads((max((run / "checkpoints").glob("step_*")) / "state.json").read_text())
    assert last["data"]["num_values"] == NUM_VALUES[kind]
    for steps in (2, int(last["step"])):
        assert main.run(commanded(kind, "train", tmp_path / "run", data, f"--config.training.num_steps={steps}")) == 0
    whole, parts = last_tensors(run), last_tensors(tmp_path / "run")
    assert whole.keys() == parts.keys() and any("condition_input" in name for name in whole)
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_samples_are_measured_given_their_values(told: tuple[str, Path, Path]):
    kind, data, run = told
    assert main.run(commanded(kind, "eval", run, data)) == 0
    report = json.loads((run / "eval" / "report.json").read_text())
    name = "vlb" if kind == "images" else "ode"
    assert report["condition"] == ["values"] and ", given values" in report[name]["quote"]
    assert not (run / "eval" / "density.png").exists()  # there is one for every value
    test = load_dataset("npz", root=data, split="test")
    loaded = load_run(run, device="cpu")
    found = loaded.bits_per_dim(test.stored[:4], values=test.values[:4], progress=False)  # pyright: ignore
    np.testing.assert_allclose(found.numpy(), np.load(run / "eval" / "per_image.npz")[name], rtol=1e-6)
    other = loaded.bits_per_dim(test.stored[:4], values=test.values[:4] + 1, progress=False)  # pyright: ignore
    assert (other - found).abs().min() > 0
    with pytest.raises(ValueError, match="the model needs values, floats"):
        loaded.bits_per_dim(test.stored[:4])
    with pytest.raises(ValueError, match="data, labels and values must be as many"):
        loaded.bits_per_dim(test.stored[:4], values=test.values)


def test_samples_are_of_the_values_of_a_split_or_of_a_file(told: tuple[str, Path, Path], tmp_path: Path):
    kind, data, run = told

    def drawn(folder: str, *extra: str) -> np.ndarray:
        assert main.run(commanded(kind, "sample", run, data, f"--output={tmp_path / folder}", *extra)) == 0
        return np.load(tmp_path / folder / "samples.npz")["arr_0"]

    of_split = drawn("split")
    values = load_dataset("npz", root=data, split="test").values
    assert values is not None
    given = tmp_path / "given.npz"
    np.savez(given, values=values.numpy())
    np.testing.assert_array_equal(drawn("file", f"--input={given}"), of_split)
    # image k at any batch size
    np.testing.assert_array_equal(drawn("two", f"--input={given}", "--config.sampling.batch_size=2"), of_split)
    np.savez(given, values=values.numpy() + 1000)
    assert (drawn("other", f"--input={given}") != of_split).any()
    loaded = load_run(run, device="cpu")
    sampler = DDIMSampler(num_steps=3)
    first, both = (loaded.sample(k, cond=Condition(values=values[:k]), sampler=sampler) for k in (1, 2))
    torch.testing.assert_close(first[0], both[0])


def test_other_values_are_refused(told: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    kind, data, run = told
    k, none, more = NUM_VALUES[kind], save(kind, tmp_path / "none.npz", 0), save(kind, tmp_path / "more.npz", 3)
    message = error(capsys, commanded(kind, "train", tmp_path / "new", none))
    assert "data.condition=values needs values of each sample, which the data do not have; save them as" in message
    assert not (tmp_path / "new").exists()
    for path, count in ((none, 0), (more, 3)):
        for mode in ("train", "eval", "sample") if count else ("eval", "sample"):
            assert f"num_values {k}, got {count} in npz" in error(capsys, commanded(kind, mode, run, path))
    np.savez(tmp_path / "given.npz", values=np.ones((5, 3)))
    message = error(capsys, commanded(kind, "sample", run, data, f"--input={tmp_path / 'given.npz'}"))
    assert f"values must be [N, {k}], got [5, 3]; give each sample {k}" in message
    (tmp_path / "y.png").write_bytes(b"\x89PNG")
    message = error(capsys, commanded(kind, "sample", run, data, f"--input={tmp_path / 'y.png'}"))
    assert "y.png is no .npz archive" in message and "save an array 'values', floats [N, K], with numpy" in message
    message = error(capsys, commanded(kind, "sample", run, data, f"--input={data.parent / 'y.npz'}"))
    assert "y.npz not found; put an .npz file with an array 'values', floats [N, K], there" in message


def test_a_file_of_values_may_have_labels(tmp_path: Path):
    np.savez(tmp_path / "given.npz", values=np.ones((3, 2)), labels=[2, 0, 1])
    values, labels = read_given_values(tmp_path / "given.npz", 2)
    assert values.tolist() == [[1, 1]] * 3 and labels is not None and labels.tolist() == [2, 0, 1]


def test_vectors_have_no_conditions_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = save("vectors", tmp_path / "x.npz")
    line = error(capsys, commanded("vectors", "train", tmp_path / "run", data, "--config.data.condition=values,ink"))
    assert "conditions are made of images, got other data; tell values, or leave them out" in line
