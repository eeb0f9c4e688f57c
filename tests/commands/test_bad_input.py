"""Bad input: one line, exit code 2, nothing overwritten."""

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny import error, snapshot, tiny_command

import main

BAD_INPUT = [
    (["--config.sampling.sampler=ancestrl"], "train", "unknown sampler 'ancestrl'; did you mean 'ancestral'?"),
    (["--config.sampling.options=etaa=1", "--config.sampling.sampler=ddim"], "sample", "did you mean 'eta'?"),
    (["--config.data.dataset=digit"], "train", "unknown dataset 'digit'"),
    (["--config.sde.name=ddmp"], "train", "unknown SDE 'ddmp'; did you mean 'ddpm'?"),
    (["--config.trainin.num_steps=3"], "train", "unknown key of config: 'trainin'; did you mean 'training'?"),
    (["--config.training.num_step=3"], "train", "did you mean 'num_steps'?"),
    (["--config.training.batch_size=0"], "train", "config.training.batch_size must be at least 1, got 0"),
    (["--config.training.batch_size=many"], "train", "must be of type int, got 'many'"),
    (["--config.eval.batch_size=0"], "eval", "config.eval.batch_size must be at least 1, got 0"),
    (["--config.eval.split=valid"], "eval", "valid"),
    (["--config.eval.vlb_grid=leadin"], "train", "unknown grid 'leadin'; did you mean 'leading'?"),
    (["--config.eval.vlb_grid=leadin"], "eval", "unknown grid 'leadin'; did you mean 'leading'?"),
    (["--config.eval.likelihoods=elbo"], "eval", "unknown likelihood 'elbo'"),
    (["--config.eval.num_images=361"], "eval", "360"),
    (["--config.eval.vlb_variance=tiny"], "eval", "unknown variance 'tiny'"),
    (["--config.eval.vlb_variance=learned"], "eval", "eval.vlb_variance=learned needs a network with"),
    (["--config.model.channel_mult=1,1,1,1,1"], "train", "cannot be halved"),
    (["--config.model.parameterization=epsilon"], "train", "unknown parameterization 'epsilon'"),
    (["--config.training.precision=fp16"], "train", "unknown precision 'fp16'"),
    (["--config.optim.name=sgd"], "train", "unknown optimizer 'sgd'"),
    (["--config.device=cuda:9"], "train", "device 'cuda:9' cannot be used"),
    (["--config.plugins=nothing.py"], "train", "plugin nothing.py does not exist"),
    (["--config.data.dataset=mnist", "--config.data.root=nowhere"], "train", "train-images-idx3-ubyte"),
    (["--config.sampling.options=num_steps=3"], "sample", "set config.sampling.num_steps"),
    (["--config.sampling.options=variance=3"], "sample", "unknown variance 3"),
    (["--config.sampling.options=eta=x", "--config.sampling.sampler=ddim"], "sample", "cannot be built"),
    (["--config.sampling.options=denoise_final=maybe"], "sample", "denoise_final must be None, True or False"),
    (["--config.sampling.num_steps=10000000000000"], "sample", "must be at most 1000000"),
    (["--config.sampling.threshold_x0=1.5"], "sample", "config.sampling.threshold_x0 must be at most 1, got 1.5"),
    (["--config.sampling.threshold_x0=nan"], "sample", "config.sampling.threshold_x0 must be at least 0, got nan"),
    (["--config.sampling.grid=foo"], "train", "unknown grid 'foo'"),
    (["--config.eval.likelihoods=(1,2)"], "eval", "config.eval.likelihoods must be of type tuple"),
    (["--config.eval.likelihoods="], "eval", "eval.likelihoods is empty"),
    (["--config.eval.split=foo"], "train", "unknown split 'foo'"),
    (["--config.eval.vlb_variance=foo"], "train", "unknown variance 'foo'"),
    (["--config.eval.likelihoods=elbo"], "train", "unknown likelihood 'elbo'"),
    (["--config.sde.num_steps=-5"], "train", "num_steps of a table must be at least 2, a whole number, got -5"),
    (["--config.sde.num_steps=50000"], "train", "leave it at 1000, or lower sde.beta_start and sde.beta_end"),
    (["--config.sampling.classes=,"], "sample", "config.sampling.classes must be of type tuple, got ','"),
    (
        ["--config.sampling.sampler=ddim", "--config.sampling.options=eta=nan"],
        "sample",
        "eta must lie in [0, 1], got nan",
    ),
    (["--config.sde.beta_end=nan"], "train", "config.sde.beta_end must be finite, got nan; set a number"),
    (["--config.model.channel_mult=[[1,2],3]"], "train", "config.model.channel_mult must be of type tuple"),
    (["--config.model.channel_mult=(1.5,2)"], "train", "config.model.channel_mult must be of type tuple"),
    (["--config.model.learned_variance=true"], "train", "model.learned_variance needs a loss that trains it"),
    (["--config.training.loss=hybrid"], "train", "loss 'hybrid' needs model.learned_variance"),
    (["--config.eval.vlb_variance=learned"], "train", "eval.vlb_variance=learned needs a network with"),
    (
        ["--config.model.parameterization=levels", "--config.training.loss=dequantized"],
        "train",
        "loss 'dequantized' needs a model of what lies between levels",
    ),
    (
        [
            "--config.model.parameterization=levels",
            "--config.eval.ode_dequantization=uniform",
            "--config.eval.likelihoods=ode",
        ],
        "train",
        "eval.ode_dequantization=uniform needs a model of what lies between levels",
    ),
    (["--config.training.step_sampling=best"], "train", "unknown step sampling 'best'"),
    (["--config.training.weighting=likelihood"], "train", "weighting 'likelihood' is one of continuous time"),
    (["--config.model.data_std=0"], "train", "data_std must be above 0"),
    (["--config.model.dropout=1"], "train", "config.model.dropout must be at most 0.999"),
    (
        ["--config.training.explosion_factor=0.5"],
        "train",
        "config.training.explosion_factor must be 0 or above 1, got 0.5",
    ),
    (["--config.training.grad_clip=nan"], "train", "grad_clip must be at least 0, got nan; set a number"),
    (["--config.optim.learning_rate=inf"], "train", "config.optim.learning_rate must be at most"),
    (["--config.optim.beta1=2"], "train", "config.optim.beta1 must be below 1, got 2.0"),
    (["--config.seed=99999999999999999999"], "train", "config.seed must lie in"),
    (["--config.device=meta"], "train", "device 'meta' cannot be used"),
    (["--config.sampling.grid=unifrom"], "sample", "unknown grid 'unifrom'; did you mean 'uniform'?"),
]


@pytest.mark.parametrize(("extra", "mode", "message"), BAD_INPUT, ids=[row[2][:40] for row in BAD_INPUT])
def test_bad_input_is_one_line_and_writes_nothing(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], mode: str, message: str
):
    workdir = tmp_path / "new" if mode == "train" else tiny_run
    before = snapshot(workdir)
    assert message in error(capsys, tiny_command(mode, workdir, *extra))
    assert snapshot(workdir) == before and (mode != "train" or not workdir.exists())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("model.time_input=auto", "moves t: the network must be told the noise level, got model.time_input=auto"),
        ("model.time_input=t999", "moves t: the network must be told the noise level, got model.time_input=t999"),
        ("training.loss=dsm", "a learned noise schedule needs loss 'vlb_continuous', which trains it, got 'dsm'"),
        ("training.step_sampling=importance", "a learned schedule takes the place of step sampling 'importance'"),
        ("model.dequantizer=true", "model.dequantizer needs loss 'dequantized', which trains it, got 'vlb_continuous'"),
    ],
)
def test_what_a_learned_schedule_cannot_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: str, message: str
):
    digits = ("--config.data.dataset=digits", "--config.model.attention_resolutions=4")
    command = tiny_command("train", tmp_path / "new", *digits, f"--config.{extra}", config="vp/mnist_vdm")
    assert message in error(capsys, command)
    assert not (tmp_path / "new").exists()


def test_unknown_config_file_and_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "configs/vp/none.py does not exist; there are" in error(
        capsys, ["--config", "configs/vp/none.py", "--mode", "train", "--workdir", str(tmp_path / "w")]
    )
    with pytest.raises(SystemExit) as stopped:
        main.run(["--config", "configs/vp/digits.py", "--mode", "trian"])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_eval_and_sample_need_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for mode in ("eval", "sample"):
        assert "holds no trained run" in error(capsys, tiny_command(mode, tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()


def test_a_workdir_of_another_config_is_refused(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    before = snapshot(run_copy)
    for mode in ("train", "eval", "sample"):
        said = error(capsys, tiny_command(mode, run_copy, "--config.model.channels=32"))
        assert "belongs to another config: model.channels was 16, is 32" in said
    assert "training.batch_size was 8, is 9" in error(
        capsys, tiny_command("train", run_copy, "--config.training.batch_size=9")
    )
    assert snapshot(run_copy) == before


def test_no_good_checkpoint_is_refused(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    for folder in (run_copy / "checkpoints").iterdir():
        (folder / "state.json").write_text("{}")
    for mode in ("train", "eval", "sample"):
        assert "no checkpoint in" in error(capsys, tiny_command(mode, run_copy))


def test_an_unreadable_image_in_a_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for split in ("train", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        Image.new("L", (9, 9)).save(tmp_path / "images" / split / "good.png")
    (tmp_path / "images" / "train" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    extra = [
        "--config.data.dataset=folder",
        f"--config.data.root={tmp_path / 'images'}",
        "--config.data.image_size=8",
        "--config.data.channels=1",
    ]
    assert "torn.png" in error(capsys, tiny_command("train", tmp_path / "run", *extra))
    assert not (tmp_path / "run").exists()


def test_train_that_cannot_restore_leaves_the_config_alone(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    for folder in (run_copy / "checkpoints").iterdir():
        (folder / "manifest.json").write_text("{}")
    before = snapshot(run_copy)
    assert "no checkpoint in" in error(capsys, tiny_command("train", run_copy, "--config.training.num_steps=77"))
    assert snapshot(run_copy) == before


def test_damaged_metrics_do_not_stop_a_run(run_copy: Path):
    path = run_copy / "logs" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'3\n{"step": 2}\n{"step": 6, "lo\xff')
    assert main.run(tiny_command("train", run_copy, "--config.training.num_steps=8")) == 0
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4, 6, 8]


PLUGINS = {
    "raises": ("raise RuntimeError('no')", "RuntimeError: no"),
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "abstract": (
        "from samplers import *\n@register_sampler('p1')\nclass P1(GridSampler): pass",
        "sampler 'p1' cannot be built",
    ),
    "foreign": (
        "from samplers import *\n@register_sampler('p2')\nclass P2:\n  def __init__(self, **k): pass",
        "is a P2",
    ),
    "shape": (
        "from samplers import *\n@register_sampler('p3')\nclass P3(GridSampler):\n"
        "  def step(self, denoise, x, t, s, noise): return x[..., :4]",
        "P3.step must return shape [3, 1, 8, 8], got [3, 1, 8, 4]",
    ),
}


@pytest.mark.parametrize("kind", sorted(PLUGINS))
def test_bad_plugins_are_one_line(run_copy: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]):
    code, message = PLUGINS[kind]
    (tmp_path / "plugin.py").write_text(code)
    name = {"abstract": "p1", "foreign": "p2", "shape": "p3"}.get(kind, "ddim")
    extra = [f"--config.plugins={tmp_path / 'plugin.py'}", f"--config.sampling.sampler={name}"]
    before = snapshot(run_copy)
    assert message in error(capsys, tiny_command("sample", run_copy, *extra))
    assert snapshot(run_copy) == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('x')", "failed: KeyError"),
        ("from ml_collections import ConfigDict; return ConfigDict()", "the config has no"),
        ("return None", "must return a ConfigDict, got NoneType"),
        ("import sys; sys.exit(0)", "failed: SystemExit"),
    ],
)
def test_bad_config_files_are_one_line(tmp_path: Path, body: str, message: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "c.py").write_text(f"def get_config():\n    {body}\n")
    assert message in error(capsys, ["--config", str(tmp_path / "c.py"), "--mode", "train"])


@pytest.mark.parametrize(
    ("dataset", "name", "content", "message"),
    [
        (
            "npz",
            "train.npz",
            b"PK\x03\x04 and no more",
            "train.npz is no .npz archive, or truncated, corrupt or pickled",
        ),
        ("mnist", "train-images-idx3-ubyte", b"\x00\x00\x08\x03\x00", "train-images-idx3-ubyte"),
        ("cifar10", "cifar-10-batches-bin/data_batch_1.bin", b"\x00" * 3072, "expected 30730000 bytes, got 3072"),
    ],
)
def test_damaged_data_is_one_line_and_writes_nothing(
    tmp_path: Path, dataset: str, name: str, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "data"
    (root / name).parent.mkdir(parents=True)
    for k in range(1, 6):
        (root / name.replace("batch_1", f"batch_{k}")).write_bytes(content)
    (root / "train-labels-idx1-ubyte").write_bytes(b"\x00\x00\x08\x01\x00\x00\x00\x00")
    extra = [f"--config.data.dataset={dataset}", f"--config.data.root={root}"]
    said = error(capsys, tiny_command("train", tmp_path / "run", *extra))
    assert message in said and "; " in said
    assert not (tmp_path / "run").exists()
