"""DiT and SiT from import to samples, likelihoods and further training, with the autoencoder of their latents."""

import json
from pathlib import Path

import numpy as np
import pytest
from foreign_checkpoints import Foreign, write_dit
from in_one_process import draw
from tiny import error

import main
from experiment import load_run
from models import GuidedScoreModel
from models.pretrained import from_dit, from_sit
from samplers import AncestralSampler, make_sampler


def imported(folder: Path, source: str) -> tuple[Foreign, Path, str]:
    """The command of the transformer, its work directory, and the flag of the autoencoder's."""
    first, network = write_dit(folder / source, source)
    workdir, at = folder / f"{source}_run", f"--config.data.first_stage={folder / 'first_stage'}"
    if not (folder / "first_stage").exists():
        assert main.run(first.command("import", folder / "first_stage")) == 0
    assert main.run(network.command("import", workdir, at)) == 0
    return network, workdir, at


def test_samples_are_those_of_the_published_parts_with_guidance(tmp_path: Path):
    for source, read in (("dit", from_dit), ("sit", from_sit)):
        network, workdir, at = imported(tmp_path, source)
        assert main.run(network.command("sample", workdir, at, "--config.sampling.num_samples=3")) == 0
        found = np.load(workdir / "samples" / "samples.npz")["arr_0"]
        run, model = load_run(workdir, device="cpu"), read(network.checkpoint, "--num_heads 2")
        options = {"solver": "dopri5", "rtol": 1e-3, "atol": 1e-6}
        sampler = AncestralSampler(num_steps=3) if source == "dit" else make_sampler("probability_flow", **options)
        guided = GuidedScoreModel(model, weight=4.0)
        shape = {"sample_shape": (3, 4, 4), "num_samples": 3, "batch_size": 3, "classes": range(10)}
        z, _, _ = draw(sampler, guided, **shape)
        # Stable Diffusion's number, and the shift of this autoencoder
        images = run.decode(z)
        assert run.kind.latents is not None and run.kind.latents.std == pytest.approx((1 / 0.18215,) * 3)
        levels = np.asarray(images, dtype=np.float64)[:, 0] * (255 / 16)
        assert found.shape == (3, 8, 8, 1) and found.std() > 0
        assert (np.abs(found[..., 0] - levels) <= 16).mean() > 0.98


def test_it_is_measured_and_trained_with_its_variance(tmp_path: Path):
    network, workdir, at = imported(tmp_path, "dit")
    few = ["--config.eval.likelihoods=vlb_continuous", "--config.eval.vlb_steps_per_image=2"]
    # what is guided has none
    few += [at, "--config.sampling.guidance_weight=1"]
    assert main.run(network.command("eval", workdir, *few)) == 0
    report = json.loads((workdir / "eval" / "report.json").read_text())
    assert np.isfinite(report["vlb_continuous"]["bits_per_dim"])
    before = load_run(workdir, device="cpu").model.backbone.state_dict()
    assert main.run(network.command("train", workdir, at)) == 0
    run = load_run(workdir, device="cpu")
    assert run.step == 2 and run.config.training.loss == "hybrid"
    after = run.model.backbone.state_dict()
    # rows of the last layer: [row, column, channel], of which the last three are the variance's
    moved = (after["last.linear.weight"] - before["last.linear.weight"]).abs().sum(1).unflatten(0, (4, 6))
    assert bool((moved > 0).all())


def test_latents_of_another_scale_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first, network = write_dit(tmp_path, "dit", scale=1.5)
    assert main.run(first.command("import", tmp_path / "first_stage")) == 0
    at = f"--config.data.first_stage={tmp_path / 'first_stage'}"
    said = error(capsys, network.command("import", tmp_path / "run", at))
    assert "is of latents times 0.18215, but data.first_stage" in said and "was imported with 1.5" in said
    assert "import that too" in error(capsys, network.command("import", tmp_path / "run", "--config.data.first_stage="))
