"""A run of ours in diffusers and back, through the command line."""

import shutil
from pathlib import Path

import pytest
import torch
from foreign_checkpoints import SECONDS
from importer_references import per_sample_error
from tiny import ROOT, error, last_tensors, snapshot, tiny_command

import main
from experiment.build import build_dataset
from experiment.config import load_config
from experiment.from_checkpoints import load_trained
from models import NetworkScoreModel
from samplers import DDIMSampler
from sde_lib import NoiseStreams

diffusers = pytest.importorskip("diffusers")
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()


def trained(workdir: Path) -> NetworkScoreModel:
    command = tiny_command("eval", workdir)
    config = load_config(str(ROOT / "configs/vp/digits.py"), [word for word in command if word.startswith("--config.")])
    return load_trained(config, workdir, build_dataset(config, "train").kind, torch.device("cpu"))[0]


def back(pipeline: Path, workdir: Path, mode: str, *extra: str) -> list[str]:
    config = f"--config={ROOT / 'configs/pretrained/diffusers_cifar10.py'}"
    flags = ["--source=diffusers", f"--checkpoint={pipeline}"] if mode == "import" else []
    return [config, f"--mode={mode}", f"--workdir={workdir}", *flags, *SECONDS, *extra]


def test_digits_trained_here_are_sampled_there_and_come_back(run_copy: Path, tmp_path: Path):
    assert main.run(tiny_command("export", run_copy, "--format=diffusers")) == 0
    pipeline = diffusers.DDPMPipeline.from_pretrained(run_copy / "diffusers")
    scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(10)
    x = x_T = NoiseStreams(0, range(3)).normal((1, 8, 8))
    model = trained(run_copy)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
        ours = DDIMSampler(num_steps=10, grid="leading").sample(model, x_T).x0
    # float32 tables there
    assert per_sample_error(ours, x.double()) < 1e-4
    assert pipeline(batch_size=2, num_inference_steps=4, output_type="np").images.shape == (2, 8, 8, 1)

    workdir = tmp_path / "back"
    assert main.run(back(run_copy / "diffusers", workdir, "import")) == 0
    averaged = {name: tensor for name, tensor in last_tensors(run_copy).items() if name.startswith("ema.")}
    again = {name: tensor for name, tensor in last_tensors(workdir).items() if name.startswith("ema.")}
    assert averaged.keys() == again.keys()
    assert all(torch.equal(averaged[name], again[name]) for name in averaged)
    # equal outputs, of the whole command
    for folder, command in ((run_copy, tiny_command("sample", run_copy)), (workdir, back(Path(), workdir, "sample"))):
        assert main.run([*command, "--config.sampling.num_steps=5", "--config.sampling.num_samples=5",
                         "--config.sampling.batch_size=3", "--config.sampling.options=",
                         "--config.sampling.precision=fp32"]) == 0  # fmt: skip
        assert (folder / "samples" / "samples.npz").is_file()
    pictures = [(folder / "samples" / "grid.png").read_bytes() for folder in (run_copy, workdir)]
    assert pictures[0] == pictures[1]


def test_a_config_with_the_network_s_own_numbers_imports_it_too(run_copy: Path, tmp_path: Path):
    assert main.run(tiny_command("export", run_copy, "--format=diffusers", f"--output={tmp_path / 'out'}")) == 0
    flags = ["--source=diffusers", f"--checkpoint={tmp_path / 'out'}"]
    workdir = tmp_path / "again"
    assert main.run(tiny_command("import", workdir, *flags)) == 0
    for mode in ("eval", "sample"):
        assert main.run(tiny_command(mode, workdir)) == 0
    assert main.run(tiny_command("train", workdir, "--config.training.num_steps=2")) == 0
    assert [path.name for path in sorted((workdir / "checkpoints").iterdir())] == ["step_00000000", "step_00000002"]


def test_an_export_replaces_an_earlier_one_and_nothing_else(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    export = tiny_command("export", run_copy, "--format=diffusers")
    assert main.run(export) == 0
    before = snapshot(run_copy / "diffusers")
    shutil.rmtree(run_copy / "diffusers" / "unet")
    assert main.run(export) == 0
    assert snapshot(run_copy / "diffusers") == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    said = error(capsys, [*export, f"--output={tmp_path / 'mine'}"])
    assert "holds something else than an export; choose another --output" in said
    assert snapshot(tmp_path / "mine") == {"notes.txt": b"keep"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--mode export needs --format; choices: diffusers"),
        (["--format=difusers"], "unknown format 'difusers'; did you mean 'diffusers'?"),
        (["--format=diffusers", "--source=edm"], "--source is a flag of --mode import, got --mode export"),
        (["--format=diffusers", "--config.model.channels=32"], "belongs to another config: model.channels was 16"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    run_copy: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
):
    before = snapshot(run_copy)
    assert message in error(capsys, tiny_command("export", run_copy, *flags))
    assert snapshot(run_copy) == before


def test_a_model_that_diffusers_cannot_express_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    workdir = tmp_path / "ve"
    assert main.run(tiny_command("train", workdir, "--config.training.num_steps=1", config="ve/digits")) == 0
    said = error(capsys, tiny_command("export", workdir, "--format=diffusers", config="ve/digits"))
    assert "diffusers' schedulers know eps, x0 and v, got parameterization edm; it has no export" in said
    assert not (workdir / "diffusers").exists()
    assert "holds no trained run" in error(capsys, tiny_command("export", tmp_path / "none", "--format=diffusers"))
