"""``--mode ema``: the average of another width, of snapshots that a training left."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from killing import Killer, check_whole, run_together
from thinning import only
from tiny import TINY, error, last_tensors, snapshot, tiny_command
from torch import Tensor

import main
from experiment import load_run
from training.ema.snapshots import profiles_of

TWO = "--config.training.ema_profiles=0.05,0.1"
THREE = "--config.training.ema_profiles=0.05,0.1,0.13"
STAGES = ["--config.model.answers=steps", "--config.distillation.stages=8,4"]
STEPS = [
    "--config.training.num_steps=24",
    "--config.training.checkpoint_every=9",
    "--config.training.ema_snapshot_every=2",
    "--config.optim.warmup_steps=0",
]


def _train(workdir: Path, *extra: str, config: str = "vp/digits") -> list[str]:
    return tiny_command("train", workdir, *STEPS, *extra, config=config)


def _make(workdir: Path, *extra: str, config: str = "vp/digits") -> list[str]:
    return tiny_command("ema", workdir, *STEPS, TWO, *extra, config=config)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two profiles."""
    workdir = tmp_path_factory.mktemp("ema") / "two"
    assert main.run(_train(workdir, TWO)) == 0
    return workdir


def _flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def _made(workdir: Path) -> dict[str, Tensor]:
    return dict(load_run(workdir, device="cpu").model.named_parameters())


def test_a_width_made_afterwards_is_the_one_that_a_training_tracks(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main.run(_train(tmp_path / "three", THREE)) == 0
    whole = last_tensors(tmp_path / "three")
    for name, tensor in last_tensors(trained).items():
        assert torch.equal(tensor, whole[name]), name
    capsys.readouterr()
    assert main.run(_make(trained, "--sigma-rel=0.13", f"--output={tmp_path / 'made'}")) == 0
    assert "wrote the average of sigma_rel 0.13 at step 24, of 13 snapshots" in capsys.readouterr().err
    ours, tracked, nearest = (
        _flat(one) for one in (_made(tmp_path / "made"), profiles_of(whole, 0.13), profiles_of(whole, 0.1))
    )
    missed = torch.linalg.vector_norm(ours - tracked)
    assert missed < 1e-3 * torch.linalg.vector_norm(tracked)
    assert missed < 0.05 * torch.linalg.vector_norm(nearest - tracked)


def test_the_result_is_a_run_like_any_other(trained: Path, tmp_path: Path):
    assert main.run(_make(trained, "--sigma-rel=0.1")) == 0
    made = trained / "ema_0.1"
    run, tracked = load_run(made, device="cpu"), profiles_of(last_tensors(trained), 0.1)
    for name, parameter in run.model.named_parameters():
        # a width that was tracked is itself
        torch.testing.assert_close(parameter, tracked[name], rtol=1e-6, atol=1e-7)
    raw = load_run(made, device="cpu", weights="raw").model
    assert all(torch.equal(a, b) for a, b in zip(raw.parameters(), run.model.parameters(), strict=True))
    assert run.step == 0 and run.config.source.name == "ema" and run.config.source.sigma_rel == 0.1
    assert Path(run.config.source.checkpoint) == (trained / "checkpoints/step_00000024").resolve()
    assert main.run(tiny_command("sample", made, *STEPS)) == 0 and (made / "samples/samples.npz").is_file()
    # made again it is the same, and a run that was trained on is not written over
    before = snapshot(made / "checkpoints")
    assert main.run(_make(trained, "--sigma-rel=0.1")) == 0 and snapshot(made / "checkpoints") == before
    on = tmp_path / "on"
    shutil.copytree(made, on)
    assert main.run(_train(on, TWO, "--config.training.num_steps=2")) == 0


def test_killed_runs_leave_the_same_snapshots(killer: Killer, trained: Path, tmp_path: Path):
    killer.output = tmp_path / "said"
    part = tmp_path / "part"
    for die_at in (70, 160, 45):
        assert killer.run(_train(part, TWO), die_at=die_at) == -signal.SIGKILL, killer.said()
    assert killer.run(_train(part, TWO)) == 0, killer.said()
    ours, theirs = last_tensors(part), last_tensors(trained)
    assert sum(name.startswith("profiles.") for name in ours) > 2 and ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert check_whole(part / "ema_snapshots") == list(range(2, 25, 2))
    assert snapshot(part / "ema_snapshots") == snapshot(trained / "ema_snapshots")


@pytest.mark.parametrize("sharding", only(("none",), ["none", "fsdp"]))
def test_processes_average_what_one_does(killer: Killer, tmp_path: Path, sharding: str):
    brief = [TWO, "--config.model.dropout=0.0", "--config.training.num_steps=4"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert killer.run(_train(one, *brief)) == 0
    assert run_together(killer, _train(two, *brief, f"--config.training.sharding={sharding}"), 2) == [0, 0]
    assert check_whole(two / "ema_snapshots") == [2, 4]
    ours, theirs = last_tensors(one), last_tensors(two)
    names = [name for name in ours if name.startswith("profiles.")]
    assert names == [name for name in theirs if name.startswith("profiles.")]
    for name in names:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("config", only(("vp/moons",), ["vp/moons", "vp/digits_classifier", "vp/mnist_vdm"]))
def test_all_that_a_run_learns_is_averaged(tmp_path: Path, config: str):
    brief = ["--config.training.num_steps=8", "--config.data.dataset=digits", "--config.model.attention_resolutions=4"]
    extra = [TWO, *(brief[:1] if config == "vp/moons" else brief)]
    assert main.run(_train(tmp_path / "run", *extra, config=config)) == 0
    assert main.run(_make(tmp_path / "run", "--sigma-rel=0.12", *extra, config=config)) == 0
    made, checkpoint = last_tensors(tmp_path / "run/ema_0.12"), last_tensors(tmp_path / "run")
    learned = [name for name in made if name.startswith(("model.", "ema.", "sde.", "dequantizer."))]
    assert sorted(learned) == sorted(made.keys() - {name for name in made if name.startswith("loss.")})
    assert any(not torch.equal(made[name], checkpoint[name]) for name in learned)
    assert config != "vp/mnist_vdm" or any(name.startswith("sde.ema.") for name in learned)


def test_a_run_that_begins_with_anothers_weights_may_have_profiles(trained: Path, tmp_path: Path):
    brief = ["--config.training.num_steps=4", f"--init-from={trained}"]
    assert main.run(_train(tmp_path / "run", TWO, *brief)) == 0
    assert main.run(_make(tmp_path / "run", "--sigma-rel=0.1", "--config.training.num_steps=4")) == 0


def test_snapshots_of_a_run_that_was_never_saved_are_forgotten(trained: Path, tmp_path: Path):
    workdir = tmp_path / "run"
    shutil.copytree(trained / "ema_snapshots", workdir / "ema_snapshots")
    other = ["--config.seed=5", "--config.training.num_steps=5", "--config.training.ema_snapshot_every=3"]
    assert main.run(_train(workdir, TWO, *other)) == 0
    assert check_whole(workdir / "ema_snapshots") == [3]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "--mode ema needs --sigma-rel, the relative width of the average, such as 0.13"),
        (["--sigma-rel=0.5"], "sigma_rel must lie in (0, 0.2887], where the widest is the uniform average, got 0.5"),
        (["--sigma-rel=nan"], "sigma_rel must lie in (0, 0.2887]"),
        (["--sigma-rel=0.004"], "the profile of --sigma-rel=0.004 is missed by"),
        (["--sigma-rel=0.1", TWO.replace("0.1", "0.5")], "config.training.ema_profiles must lie in (0, 0.2886]"),
        (["--sigma-rel=0.1", *STAGES], "config.training.ema_profiles is of one average, got model.answers=steps"),
        (["--sigma-rel=0.1", TWO.replace("0.1", "0.05")], "and differ, got (0.05, 0.05)"),
    ],
)
def test_bad_input(trained: Path, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    before = snapshot(trained)
    assert message in error(capsys, _make(trained, *extra))
    assert snapshot(trained) == before


def test_runs_of_which_nothing_can_be_made(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = [*TINY, "--config.training.num_steps=2"]
    assert main.run(tiny_command("train", tmp_path / "none", *few)) == 0
    without = error(capsys, tiny_command("ema", tmp_path / "none", *few, "--sigma-rel=0.1"))
    assert "was trained without training.ema_profiles, of which other averages are made" in without
    assert "belongs to another config: training.ema_profiles was [], is [0.05, 0.1]" in error(
        capsys, tiny_command("train", tmp_path / "none", *few, TWO)
    )
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    damaged = copy / "ema_snapshots/step_00000012/tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    said = error(capsys, _make(copy, "--sigma-rel=0.1"))
    assert "ema_snapshots/step_00000012 is damaged (tensors.safetensors does not match its checksum" in said
    assert f"{copy} holds another run; choose another --output" in error(
        capsys, _make(trained, "--sigma-rel=0.1", f"--output={copy}")
    )
    shutil.rmtree(copy / "ema_snapshots")
    assert "has no snapshots in ema_snapshots up to step 24" in error(capsys, _make(copy, "--sigma-rel=0.1"))
