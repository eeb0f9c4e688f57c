"""Checkpoints of every source, from import to samples, through the command line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from foreign_checkpoints import WRITERS, Foreign
from in_one_process import draw, measure
from safetensors.torch import load_file, save_file
from thinning import only
from tiny import ROOT, snapshot

import main
from commands.import_checkpoint import read_source
from data import LevelSpace
from experiment.build import bound_x0, build_dataset, build_sampler
from experiment.config import Config, load_config
from experiment.config.imported import complete_config
from experiment.estimators import build_estimators, model_for
from models.pretrained import PlannedModel, from_diffusers
from models.pretrained.guided.importer import guided_sources
from models.pretrained.guided.settings import plan_guided
from models.pretrained.shared.renaming import renamed
from samplers import available_samplers, registry

CONDITIONAL = ("edm", "guided_diffusion")
# not those that other tests have registered
SAMPLERS = [name for name in available_samplers() if registry.SAMPLERS.get(name).__module__.startswith("samplers.")]
EXPORTABLE = ("ddpm", "diffusers", "guided_diffusion")


@dataclass(frozen=True)
class Imported:
    """An imported checkpoint: its command, its work directory, and the model as its importer gives it."""

    foreign: Foreign
    workdir: Path
    model: PlannedModel
    config: Config

    def run(self, mode: str, *extra: str, workdir: Path | None = None) -> int:
        return main.run(self.foreign.command(mode, workdir or self.workdir, *extra))


# a network that is told time and one that is told noise; those of the other sources are read in tests/models/pretrained
@pytest.fixture(scope="module", params=only(("diffusers", "edm"), WRITERS))
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    return begin(request.param, tmp_path_factory.mktemp(request.param))


def begin(name: str, folder: Path) -> Imported:
    foreign = WRITERS[name](folder)
    workdir = folder / "run"
    command = foreign.command("import", workdir)
    assert main.run(command) == 0
    overrides = [word for word in command if word.startswith("--config.")]
    config = load_config(str(ROOT / "configs" / "pretrained" / f"{foreign.config}.py"), overrides)
    model = read_source(config, source=foreign.source, checkpoint=str(foreign.checkpoint))
    return Imported(foreign, workdir, model, complete_config(config, workdir))


def tensors_of(workdir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(workdir / "checkpoints" / f"step_{step:08d}" / "tensors.safetensors")


def test_the_work_directory_holds_the_weights_twice_and_the_model_s_description(imported: Imported):
    assert [path.name for path in (imported.workdir / "checkpoints").iterdir()] == ["step_00000000"]
    tensors, weights = tensors_of(imported.workdir, 0), imported.model.backbone.state_dict()
    for prefix in ("model.", "ema."):
        found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert not any(name.startswith("optim.") for name in tensors)
    saved = json.loads((imported.workdir / "config.json").read_text())
    plan = imported.model.plan
    assert saved["model"]["backbone"] == plan.backbone and saved["sde"]["name"] == plan.sde["name"]
    assert saved["source"]["checkpoint"] == str(imported.foreign.checkpoint)
    assert saved["model"]["class_conditional"] == (plan.network.get("num_classes") is not None)


def test_bits_per_dim_both_ways_are_those_of_the_model(imported: Imported):
    assert imported.run("eval") == 0
    report = json.loads((imported.workdir / "eval" / "report.json").read_text())
    config = imported.config
    dataset = build_dataset(config, "test")
    assert (report["num_images"], report["step"], report["weights"]) == (2, 0, "ema")
    for name, estimator in build_estimators(config, dataset.kind).items():
        expected = measure(
            estimator,
            model_for(estimator, imported.model, config),
            dataset,
            batch_size=2,
            num_images=2,
            seed=config.seed,
            class_conditional=config.model.class_conditional,
        )
        assert report[name]["bits_per_dim"] == pytest.approx(expected.total.mean, rel=1e-3)
    learned = imported.model.learned_variance
    assert report["vlb"]["variance"] == "learned" if learned else report["vlb"]["variance"] in ("small", "large")


def test_samples_are_those_of_the_model_with_classes_where_it_has_them(imported: Imported):
    assert imported.run("sample") == 0
    found = np.load(imported.workdir / "samples" / "samples.npz")
    config, model = imported.config, imported.model
    classes = model.plan.network.get("num_classes")
    assert (imported.foreign.source in CONDITIONAL) == (classes == 10)
    if classes:
        assert found["arr_1"].tolist() == [*range(10), 0]
    else:
        assert found.files == ["arr_0"]
    how: dict[str, Any] = {"sample_shape": (1, 8, 8), "num_samples": 11, "batch_size": 11, "seed": config.seed}
    model = bound_x0(config, model, build_dataset(config, "test").kind)
    expected = LevelSpace(17).pixels(draw(build_sampler(config), model, classes=range(classes or 0), **how)[0])
    # another layout in memory may round otherwise, which moves a pixel by a level at most
    difference = np.abs(found["arr_0"].astype(int) - expected.astype(int))
    assert difference.max() <= 16 and (difference == 0).mean() > 0.98
    assert found["arr_0"].std() > 0


def test_no_data_set_is_needed_to_sample(tmp_path: Path):
    """The images that a network is of stand in its config: of a data set that is not there, samples can be drawn."""
    imported = begin("edm", tmp_path)
    assert imported.run("sample") == 0
    work, data = tmp_path / "other", ["--config.data.dataset=folder", f"--config.data.root={tmp_path / 'nowhere'}"]
    data += ["--config.data.image_size=8", "--config.data.channels=1"]
    assert main.run(imported.foreign.command("import", work, *data)) == 0
    assert main.run(imported.foreign.command("sample", work, *data)) == 0
    one, other = (np.load(folder / "samples" / "samples.npz")["arr_1"] for folder in (work, imported.workdir))
    np.testing.assert_array_equal(one, other)
    assert main.run(imported.foreign.command("eval", work, *data)) == 2


# the others are such models too, once they are imported, and each sampler takes any model
@pytest.mark.parametrize(
    ("name", "samplers"),
    [
        ("edm", ("ancestral", "ddim", "probability_flow")),
        *(pytest.param(name, SAMPLERS, marks=pytest.mark.slow) for name in WRITERS),
    ],
)
def test_every_sampler_runs_on_it(name: str, samplers: Sequence[str], tmp_path: Path):
    imported = begin(name, tmp_path)
    images = {}
    extra = ["--config.sampling.options=", "--config.sampling.clip_x0=true", "--config.sampling.grid=uniform"]
    extra += ["--config.sampling.num_samples=2", "--config.sampling.num_steps=2"]
    options = {"probability_flow": "rtol=0.1,atol=0.1", "annealed_langevin": "steps_per_level=2"}
    for name in samplers:
        extra[0] = f"--config.sampling.options={options.get(name, '')}"
        assert imported.run("sample", *extra, f"--config.sampling.sampler={name}") == 0
        images[name] = np.load(imported.workdir / "samples" / "samples.npz")["arr_0"]
        assert images[name].shape == (2, 8, 8, 1)
    assert (images["ancestral"] != images["ddim"]).any()


def test_training_goes_on_from_the_weights(imported: Imported, tmp_path: Path):
    workdir = Path(shutil.copytree(imported.workdir, tmp_path / "run"))
    before = tensors_of(workdir, 0)
    assert imported.run("train", workdir=workdir) == 0
    after = tensors_of(workdir, 2)
    assert {after[name].item() for name in after if name.endswith(".step")} == {2.0}
    moved = {
        prefix: max(float((after[name] - before[name]).abs().max()) for name in before if name.startswith(prefix))
        for prefix in ("model.", "ema.")
    }
    # two steps of Adam, which moves no weight by more than about its learning rate
    assert all(0 < distance < 0.01 for distance in moved.values()), moved
    assert imported.run("eval", "--config.eval.likelihoods=vlb", workdir=workdir) == 0
    assert json.loads((workdir / "eval" / "report.json").read_text())["step"] == 2
    # dropout is the checkpoint's
    dropout = imported.config.model.dropout
    assert dropout == imported.model.plan.network["dropout"] > 0


def test_how_it_is_trained_is_free_until_the_first_step_but_for_what_step_0_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    imported = begin("ddpm", tmp_path)
    workdir = imported.workdir
    saved = json.loads((workdir / "config.json").read_text())
    for key, value, was in (
        ("training.loss", "vlb", "'auto'"),
        ("training.step_sampling", "low_discrepancy", "'uniform'"),
        ("optim.name", "adamw", "'adam'"),
        ("optim.beta1", "0.5", "0.9"),
        ("optim.beta2", "0.5", "0.999"),
        ("optim.eps", "0.5", "1e-08"),
        ("optim.weight_decay", "0.5", "0.0"),
    ):
        assert imported.run("train", f"--config.{key}={value}") == 2
        assert f"belongs to another config: {key} was {was}" in capsys.readouterr().err
    assert json.loads((workdir / "config.json").read_text()) == saved
    free = ["--config.training.batch_size=5", "--config.optim.learning_rate=1e-5", "--config.training.ema_decay=0.5"]
    assert imported.run("train", *free) == 0
    now = json.loads((workdir / "config.json").read_text())
    assert now["training"]["batch_size"] == 5 and now["source"] == saved["source"]
    before, after = (tensors_of(workdir, step) for step in (0, 2))
    moved = max(float((after[name] - before[name]).abs().max()) for name in before if name.startswith("model."))
    assert 0 < moved < 4e-5  # two steps at the new rate
    # and then it is a run as any
    capsys.readouterr()
    assert imported.run("train", *free[1:], "--config.training.num_steps=3") == 2
    assert "training.batch_size was 5, is 4" in capsys.readouterr().err


def test_export_where_diffusers_has_such_a_model(
    imported: Imported, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
):
    folder = tmp_path / "exported"
    before = snapshot(imported.workdir)
    code = imported.run("export", "--format=diffusers", f"--output={folder}")
    assert snapshot(imported.workdir) == before
    if imported.foreign.source not in EXPORTABLE:
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert code == 2 and len(lines) == 1 and "export" in lines[0]
        assert not folder.exists() and not list(tmp_path.glob(".exported*"))
        return
    assert code == 0
    again, model = from_diffusers(folder), imported.model
    weights = model.backbone.state_dict()
    found = again.backbone.state_dict()
    assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)
    assert again.learned_variance == model.learned_variance
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 1.0], dtype=torch.float64)
    cond = torch.tensor([3, 7]) if imported.foreign.source in CONDITIONAL else None
    torch.testing.assert_close(again(x, t, cond=cond).x0, model(x, t, cond=cond).x0, rtol=1e-6, atol=1e-6)


def wrapped(value: Any, prefix: str) -> Any:
    """A checkpoint whose network was wrapped: its tensors have a prefix, and so have those in part "model"."""
    if "model" in value:
        bare = {name.removeprefix("module."): tensor for name, tensor in value["model"].items()}
        return value | {"model": wrapped(bare, prefix)}
    return {f"{prefix}{name}": tensor for name, tensor in value.items()}


@pytest.mark.parametrize("name", only(("edm", "guided_diffusion"), [name for name in WRITERS if name != "diffusers"]))
def test_what_wrappers_put_before_names_is_dropped(name: str, tmp_path: Path):
    foreign = WRITERS[name](tmp_path)
    whole = torch.load(foreign.checkpoint, weights_only=False)
    config = load_config(str(ROOT / "configs" / "pretrained" / f"{foreign.config}.py"), list(foreign.extra))
    weights = []
    for prefix in ("", "_orig_mod.", "module.", "module._orig_mod."):
        torch.save(wrapped(whole, prefix), foreign.checkpoint)
        model = read_source(config, source=foreign.source, checkpoint=str(foreign.checkpoint))
        weights.append(model.backbone.state_dict())
    for other in weights[1:]:
        assert other.keys() == weights[0].keys() and all(torch.equal(other[key], weights[0][key]) for key in other)


def test_of_a_bare_network_the_scheduler_is_said_or_assumed_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    foreign = WRITERS["diffusers"](tmp_path)
    expected = from_diffusers(foreign.checkpoint)
    bare = replace(foreign, checkpoint=Path(shutil.copytree(foreign.checkpoint / "unet", tmp_path / "bare")))
    assert main.run(bare.command("import", tmp_path / "assumed")) == 0
    assert f"no file says the scheduler of {bare.checkpoint}: DDPM's is assumed" in capsys.readouterr().err
    assert json.loads((tmp_path / "assumed" / "config.json").read_text())["sde"]["num_steps"] == 1000
    said = "--config.source.config=--num_train_timesteps 40 --beta_start 1e-3 --beta_end 0.3"
    assert main.run(bare.command("import", tmp_path / "said", said)) == 0
    assert "assumed" not in capsys.readouterr().err
    saved = json.loads((tmp_path / "said" / "config.json").read_text())["sde"]
    assert saved == {**expected.plan.sde, "name": "ddpm"}
    weights, found = expected.backbone.state_dict(), tensors_of(tmp_path / "said", 0)
    assert all(torch.equal(found[f"ema.{name}"], weights[name]) for name in weights)


LARGE = (
    "--image_size 32 --in_channels 1 --num_channels 96 --channel_mult 1,2,3 --num_res_blocks 2 --attention_resolutions "
    "16,8 --learn_sigma True --dropout 0.3 --diffusion_steps 40 --noise_schedule cosine"
)
PEAK = """
import resource, sys
import experiment.estimators, main, commands.import_checkpoint
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
assert main.run(sys.argv[1:]) == 0
print("peak", peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch", "legacy", "safetensors"])
def test_importing_takes_at_most_three_times_the_file_s_memory(tmp_path: Path, form: str):
    network = plan_guided(LARGE, project="improved").build_backbone()
    tensors = renamed(network, guided_sources(network))
    path = tmp_path / ("large.safetensors" if form == "safetensors" else "large.pt")
    if form == "safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path, _use_new_zipfile_serialization=form == "torch")
    kind = ("--config.data.dataset=folder", "--config.data.image_size=32", "--config.data.channels=1")
    extra = (f"--config.source.config={LARGE}", *kind)
    command = Foreign("improved_diffusion", "improved_cifar10", path, extra).command("import", tmp_path / "run")
    done = subprocess.run([sys.executable, "-c", PEAK, *command], cwd=ROOT, capture_output=True, text=True, check=True)
    kilobytes = int(done.stdout.split()[-1])
    size = path.stat().st_size
    assert size > 80e6 and kilobytes * 1024 < 3 * size, kilobytes * 1024 / size
