import math
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from experiment.config import (
    data_root,
    import_plugins,
    load_config,
    parse_options,
)
from experiment.workdir import (
    check_for_training,
    check_for_use,
    claim_for_training,
    default_workdir,
    write_atomically,
)

CONFIG = """
from ml_collections import ConfigDict
def get_config():
    return ConfigDict({"a": 1, "b": {"x": 0.5, "names": ("vlb",), "empty": (), "sizes": (1, 2), "on": True, "s": ""}})
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "family" / "thing.py"
    file.parent.mkdir()
    file.write_text(CONFIG)
    return str(file)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("a=3_000", "a", 3000),
        ("b.x=1e-3", "x", 1e-3),
        ("b.x=2", "x", 2.0),
        ("b.names=vlb,ode", "names", ("vlb", "ode")),
        ("b.names=('ode',)", "names", ("ode",)),
        ("b.names=", "names", ()),
        ("b.empty=mine.py", "empty", ("mine.py",)),
        ("b.empty=7,8", "empty", (7, 8)),
        ("b.empty=(7, 8)", "empty", (7, 8)),
        ("b.empty=()", "empty", ()),
        ("b.sizes=4,5,6", "sizes", (4, 5, 6)),
        ("b.sizes=(7,)", "sizes", (7,)),
        ("b.on=false", "on", False),
        ("b.s=eta=0.5, k=v", "s", "eta=0.5, k=v"),
    ],
)
def test_overrides_take_the_type_of_the_default(path: str, override: str, key: str, value: object):
    config = load_config(path, [f"--config.{override}"])
    got = config[key] if key in config else config.b[key]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.a=1.5", "config.a must be of type int, got '1.5'; write one such as 1"),
        ("--config.b.on=maybe", "config.b.on must be of type bool"),
        ("--config.b.sizes=a,b", "config.b.sizes must be of type tuple"),
        ("--config.b.y=1", "unknown key of config.b: 'y'"),
        ("--config.bb.x=1", "unknown key of config: 'bb'; did you mean 'b'?"),
        ("--config.a.x=1", "unknown key of config.a: 'x'"),
        ("--config.b=1", "config.b is a section"),
        ("--confg.a=1", "unknown argument '--confg.a=1'"),
        ("--config.a", "unknown argument '--config.a'"),
    ],
)
def test_wrong_overrides_are_refused_in_one_line(path: str, override: str, message: str):
    with pytest.raises(ValueError, match=r"config|unknown") as caught:
        load_config(path, [override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_config_files_are_refused(tmp_path: Path, path: str):
    with pytest.raises(ValueError, match=r"absent\.py does not exist; there are .*thing\.py"):
        load_config(str(Path(path).parent / "absent.py"))
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match=r"no get_config"):
        load_config(str(tmp_path / "empty.py"))
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    with pytest.raises(ValueError, match="cannot be imported: SyntaxError"):
        load_config(str(tmp_path / "broken.py"))


def test_options_and_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert parse_options("eta=0.5, variance=large,flag=True") == {"eta": 0.5, "variance": "large", "flag": True}
    assert parse_options("a=inf,b=-inf") == {"a": math.inf, "b": -math.inf} and math.isnan(parse_options("a=nan")["a"])
    assert parse_options("") == {}
    with pytest.raises(ValueError, match="must look like"):
        parse_options("eta")
    with pytest.raises(ValueError, match=r"plugin absent\.py does not exist"):
        import_plugins(["absent.py"])
    with pytest.raises(ValueError, match="plugin no_such_module cannot be imported: ModuleNotFoundError"):
        import_plugins(["no_such_module"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beside_me.py").write_text("import pathlib\npathlib.Path('imported').touch()\n")
    import_plugins(["beside_me"])
    assert (tmp_path / "imported").exists()


def test_workdir_defaults_and_data_root(path: str, monkeypatch: pytest.MonkeyPatch):
    assert default_workdir(path).as_posix() == "runs/family/thing"
    monkeypatch.setenv("SDE_DATA", "/there")
    config = ConfigDict({"data": {"root": ""}})
    assert data_root(config) == "/there"
    monkeypatch.delenv("SDE_DATA")
    assert data_root(config) == "downloads"
    config.data.root = "here"
    assert data_root(config) == "here"


def test_a_workdir_belongs_to_its_config(tmp_path: Path):
    config = ConfigDict({"seed": 0, "model": {"channels": 8}, "training": {"num_steps": 5, "batch_size": 2}})
    with pytest.raises(ValueError, match="holds no trained run"):
        check_for_use(tmp_path, config)
    check_for_training(tmp_path, config)
    assert not (tmp_path / "config.json").exists()
    claim_for_training(tmp_path, config)
    check_for_use(tmp_path, config)

    other = ConfigDict(config.to_dict())
    other.training.batch_size = 4
    # nothing is saved yet: a corrected command may have the folder
    check_for_training(tmp_path, other)
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    check_for_training(tmp_path, config)
    longer = ConfigDict(config.to_dict())
    longer.training.num_steps = 9
    check_for_training(tmp_path, longer)
    check_for_use(tmp_path, other)
    with pytest.raises(ValueError, match=r"belongs to another config: training\.batch_size was 2, is 4"):
        check_for_training(tmp_path, other)
    other.model.channels = 16
    with pytest.raises(ValueError, match=r"model\.channels was 8, is 16"):
        check_for_use(tmp_path, other)

    # an SDE's option that was not there is another SDE
    with_sde = ConfigDict(config.to_dict() | {"sde": {"beta_start": 2e-3}})
    with pytest.raises(ValueError, match=r"sde\.beta_start was None, is 0\.002"):
        check_for_use(tmp_path, with_sde)
    newer = ConfigDict(config.to_dict())
    newer.model.added_by_a_later_version = 1
    check_for_training(tmp_path, newer)
    with pytest.raises(ValueError, match=r"model\.channels was 8, is None"):
        check_for_use(tmp_path, ConfigDict({"seed": 0, "model": {}, "training": {}}))

    for damage in ("{", "[]", "3", "null", "\xff"):
        (tmp_path / "config.json").write_bytes(damage.encode("latin1"))
        for check in (check_for_training, check_for_use):
            with pytest.raises(ValueError, match="is damaged"):
                check(tmp_path, config)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has checkpoints but no config\.json"):
        check_for_training(tmp_path, config)
    (tmp_path / "file").touch()
    for check in (check_for_training, check_for_use):
        with pytest.raises(ValueError, match="is not a folder"):
            check(tmp_path / "file", config)


def test_atomic_write_leaves_the_old_file_on_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "file"
    write_atomically(target, b"old")

    def fail(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr("runtime.files.os.replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]
