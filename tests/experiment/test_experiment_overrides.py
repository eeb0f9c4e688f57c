"""Options of an SDE and paths on the command line."""

import json
from pathlib import Path

import pytest
from tiny import ROOT, error, tiny_command

import main
from commands.flags import parse_flags
from commands.import_checkpoint import _settings_of, read_source
from configs.default import get_default_config
from experiment.config import data_root, import_plugins, load_config
from experiment.config.overrides import parse_as


def _load(*overrides: str, config: str = "vp/digits"):
    return load_config(str(ROOT / f"configs/{config}.py"), overrides, defaults=get_default_config())


@pytest.mark.parametrize(
    ("config", "overrides", "expected"),
    [
        ("vp/digits", ("sde.name=ve",), {"name": "ve"}),
        ("vp/digits", ("sde.sigma_max=20", "sde.name=ve"), {"name": "ve", "sigma_max": 20.0}),
        ("vp/digits", ("sde.name=ddpm",), {"name": "ddpm", "num_steps": 1000, "beta_start": 2e-3, "beta_end": 0.02}),
        ("vp/digits", ("sde.name=ve", "sde.name=vp", "sde.beta_max=9"), {"name": "vp", "beta_max": 9.0}),
        ("ve/digits", ("sde.name=ddpm", "sde.num_steps=50"), {"name": "ddpm", "num_steps": 50}),
        ("ve/digits", ("sde.sigma_max=3",), {"name": "ve", "sigma_min": 0.01, "sigma_max": 3.0}),
        # options that the file does not give, some of which no default says the type of
        ("vp/digits_hybrid", ("sde.max_beta=0.5",), {"name": "improved_ddpm", "num_steps": 500, "s": 0.2,
                                                     "max_beta": 0.5}),
        ("vp/digits", ("sde.name=betas", "sde.betas=(0.1, 0.2)"), {"name": "betas", "betas": (0.1, 0.2)}),
        ("vp/digits", ("sde.name=mine", "sde.level=7", "sde.kind=fast"), {"name": "mine", "level": 7, "kind": "fast"}),
    ],
)  # fmt: skip
def test_another_sde_leaves_the_options_of_the_former(config: str, overrides: tuple[str, ...], expected: dict):
    got = _load(*(f"--config.{override}" for override in overrides), config=config).sde.to_dict()
    assert got == expected and {key: type(value) for key, value in got.items()} == {
        key: type(value) for key, value in expected.items()
    }


def test_another_sde_is_said_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    command = tiny_command("train", tmp_path / "run", "--config.sde.name=ve", "--config.training.num_steps=2")
    assert main.run(command) == 0
    assert "config.sde.name is ve instead of ddpm, whose beta_end, beta_start, num_steps are left out" in (
        capsys.readouterr().err
    )
    assert json.loads((tmp_path / "run/config.json").read_text())["sde"] == {
        "name": "ve", "sigma_min": 0.01, "sigma_max": 50.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("sde.name=ve", "sde.beta_end=0.02"), "unknown option of SDE 've': 'beta_end'; choices: sigma_min, sigma_max"),
        (("sde.beta_ned=0.02",), "unknown option of SDE 'ddpm': 'beta_ned'; did you mean 'beta_end'?"),
        (
            ("sde.name=ve", "sde.sigma_max=high"),
            "config.sde.sigma_max must be of type float, got 'high'; write one such as 50",
        ),
        (("sde.name=betas",), "SDE 'betas' needs betas"),
        (("model.network.fir=1",), "unknown key of config.model.network for backbone 'unet': 'fir'"),
    ],
)
def test_options_that_nothing_has(
    overrides: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = tiny_command("train", tmp_path / "run", *(f"--config.{override}" for override in overrides))
    assert message in error(capsys, command)
    assert not (tmp_path / "run").exists()


def test_a_backbones_own_option_is_read_as_what_it_looks_like():
    overrides = ("--config.model.network.resblock_updown=true", "--config.model.network.depth=3")
    assert _load(*overrides).model.network.to_dict() == {"resblock_updown": True, "depth": 3}


def test_the_home_folder_is_meant_by_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options, _ = parse_flags(["--mode=train", "--config=~/a.py"])
    names = vars(options).keys() - {"mode", "source", "format", "list", "prompt", "sigma_rel"}
    assert {"config", "workdir", "checkpoint", "output"} <= names
    options, _ = parse_flags(["--mode=train", *(f"--{name.replace('_', '-')}=~/some/where" for name in names)])
    # which may be given several times
    assert options.hint == [f"{tmp_path}/some/where"]
    names -= {"hint"}
    assert {name: getattr(options, name) for name in names} == {name: f"{tmp_path}/some/where" for name in names}

    config = _load("--config.data.root=~/data")
    assert data_root(config) == f"{tmp_path}/data"
    config.data.root = ""
    monkeypatch.setenv("SDE_DATA", "~/other")
    assert data_root(config) == f"{tmp_path}/other"
    (tmp_path / "plugin.py").write_text("import pathlib\npathlib.Path.home().joinpath('imported').touch()\n")
    import_plugins(["~/plugin.py"])
    assert (tmp_path / "imported").exists()
    source = ("--config.source.name=score_sde", "--config.source.checkpoint=~/weights.pth")
    with pytest.raises(ValueError, match=f"{tmp_path}/weights.pth"):
        read_source(_load(*source, "--config.source.config=vp/cifar10_ddpmpp"))
    assert _settings_of("~/settings.json", "weights.pth") == f"{tmp_path}/settings.json"


def test_names_may_be_numbers_and_numbers_negative():
    assert parse_as("data.names", "1,2", ("a",)) == ("1", "2")
    assert parse_as("data.shifts", "-1,2", (0,)) == (-1, 2)
    assert parse_as("sampling.classes", "1,2", ()) == (1, 2)
    for text in ("(a", "(1,2)"):
        with pytest.raises(ValueError, match=r"data\.names must be of type tuple, got "):
            parse_as("data.names", text, ("a",))
