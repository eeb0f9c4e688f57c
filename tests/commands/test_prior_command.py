"""A prior and a decoder of scenes, from the pair's embeddings to images, by the command line."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ROOT, error, tiny_command

import main
from benchmarks import prior
from data import DataError, ImageDataset, load_dataset
from tasks.embeddings import load_pair, write_embeddings

PROMPTS = ["a red three above a small blue seven", "a white zero left of a green one"]
MLP = ("--config.model.network.hidden=16", "--config.model.network.num_layers=1", "--config.optim.decay_steps=0")
SMALL = {
    "prior": (*MLP, "--config.eval.likelihoods=ode", "--config.eval.num_images=2", "--config.sampling.num_samples=2"),
    "decoder": (
        "--config.model.attention_resolutions=8", "--config.optim.decay_steps=0", "--config.eval.num_images=2",
        "--config.sampling.num_samples=2",
    ),
}  # fmt: skip


def embed(folder: Path, *prompts: str) -> None:
    runpy.run_path(str(ROOT / "examples" / "embed_scenes.py"))["main"](prompts, folder, num_images=200, steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of scenes, and small runs of a prior and a decoder."""
    folder = tmp_path_factory.mktemp("embedded")
    embed(folder)
    for name in SMALL:
        assert main.run(command(name, "train", folder)) == 0
    return folder


def command(name: str, mode: str, folder: Path, *extra: str) -> list[str]:
    config, data = f"text/scenes_{name}", f"--config.data.root={folder / name}"
    return tiny_command(mode, folder / f"run_{name}", data, *SMALL[name], *extra, config=config)


def test_prompts_become_embeddings_and_these_become_images(folder: Path):
    embed(folder, *PROMPTS)
    pair = load_pair(folder)
    told = np.load(folder / "prompts.npz")["values"]
    np.testing.assert_array_equal(told, pair.embed_captions(PROMPTS).numpy())
    assert main.run(command("prior", "sample", folder, f"--input={folder / 'prompts.npz'}")) == 0
    drawn = folder / "run_prior" / "samples" / "samples.npz"
    embeddings = np.load(drawn)["arr_0"]
    assert embeddings.shape == (2, 64) and embeddings.dtype == np.float32
    assert main.run(command("decoder", "sample", folder, f"--input={drawn}")) == 0
    images = np.load(folder / "run_decoder" / "samples" / "samples.npz")["arr_0"]
    assert images.shape == (2, 16, 16, 3)
    # the same as from a file of values
    np.savez(folder / "values.npz", values=embeddings)
    given = (f"--input={folder / 'values.npz'}", f"--output={folder / 'again'}")
    assert main.run(command("decoder", "sample", folder, *given)) == 0
    np.testing.assert_array_equal(np.load(folder / "again" / "samples.npz")["arr_0"], images)


def test_the_data_are_the_scenes_and_their_embeddings(folder: Path):
    test = load_dataset("scenes", root=".", split="test", options={"num_images": 200})
    assert isinstance(test, ImageDataset) and test.captions is not None
    pair = load_pair(folder)
    z, c = pair.embed_images(test.space.encode(test.images)), pair.embed_captions(test.captions)
    vectors, images = (load_dataset("npz", root=folder / name, split="test") for name in SMALL)
    assert torch.equal(vectors.stored, z.double()) and torch.equal(images.stored, test.images)
    assert images.values is not None and torch.equal(images.values, z)
    assert vectors.values is not None and torch.equal(vectors.values, c)
    assert isinstance(images, ImageDataset) and images.num_levels == 17


def test_the_benchmark_reports_retrieval_and_grades(folder: Path, monkeypatch, tmp_path: Path, capsys):
    monkeypatch.setattr(prior, "scene_reader", _Reader)
    result = tmp_path / "prior.json"
    prior.main(
        [
            f"--workdir={folder / 'run_prior'}", f"--decoder={folder / 'run_decoder'}", "--group=5", "--weights=1,2",
            "--num-decoded=2", f"--output={result}",
        ]
    )  # fmt: skip
    report = json.loads(result.read_text())
    assert report["captions"] == 10 and set(report["guidance"]) == {"1", "2"}
    assert set(report["decoder"]) == {"image", "caption", "draw at 1", "draw at 2"}
    assert 1 <= report["guidance"]["1"]["retrieval"]["draw -> images"]["rank"]["value"] <= 5
    said = capsys.readouterr().out
    assert "| guidance | query -> gallery |" in said and "| embedding | size, % |" in said
    with pytest.raises(SystemExit, match="--group must be at most 10, the number of captions, got 11; lower it"):
        prior.main([f"--workdir={folder / 'run_prior'}", "--group=11", f"--output={result}"])
    with pytest.raises(SystemExit, match=r"vectors that are told values; train configs/text/scenes_prior.py"):
        prior.main([f"--workdir={folder / 'run_decoder'}", f"--output={result}"])


class _Reader:
    def read(self, images: torch.Tensor) -> tuple[None, ...]:
        """Nothing of any image."""
        return (None,) * len(images)


def test_bad_input_is_refused_in_one_line(folder: Path, tmp_path: Path, capsys):
    with pytest.raises(DataError, match=r"holds no contrastive pair, pair.safetensors is missing; run python examples"):
        load_pair(tmp_path)
    digits = load_dataset("digits", root=".", split="train")
    assert isinstance(digits, ImageDataset)
    with pytest.raises(DataError, match="digits has no captions, which a prior is told; take scenes"):
        write_embeddings(tmp_path, load_pair(folder), digits)
    nowhere = error(capsys, command("prior", "train", tmp_path))
    assert f"{tmp_path / 'prior'} not found; put an .npz file" in nowhere
    np.savez(tmp_path / "few.npz", arr_0=np.zeros((2, 3), np.float32))
    assert "[N, 64], got [2, 3]" in error(
        capsys, command("decoder", "sample", folder, f"--input={tmp_path / 'few.npz'}", f"--output={tmp_path / 'o'}")
    )
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 16, 16, 3), np.uint8))
    assert "arr_0 must be finite floats [N, K] or [N], got uint8" in error(
        capsys, command("decoder", "sample", folder, f"--input={tmp_path / 'images.npz'}", f"--output={tmp_path / 'o'}")
    )
