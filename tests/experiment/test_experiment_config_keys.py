"""Keys of config files: each is known, there, and of its type, or one line says which is not."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict
from thinning import only
from tiny import ROOT, error

from configs.default import get_default_config
from experiment.config import RENAMED, flatten, load_config, with_new_names

LEAVES = [key for key, _ in flatten(get_default_config())]
SECTIONS = [key for key, value in get_default_config().items() if isinstance(value, ConfigDict)]
DEFAULT = "from configs.default import get_default_config\ndef get_config():\n    config = get_default_config()\n"


def _file(folder: Path, *lines: str) -> str:
    path = folder / "mine.py"
    path.write_text(DEFAULT + "".join(f"    {line}\n" for line in (*lines, "return config")))
    return str(path)


def _error(folder: Path, capsys: pytest.CaptureFixture[str], *lines: str) -> str:
    workdir = folder / "run"
    said = error(capsys, ["--config", _file(folder, *lines), "--mode", "train", "--workdir", str(workdir)])
    assert not workdir.exists()
    return said


def test_the_default_config_has_every_kind_of_key():
    assert len(LEAVES) > 80 and {type(value) for _, value in flatten(get_default_config())} == {
        int, float, str, bool, list
    }  # fmt: skip


KEYS = [*LEAVES, "model.network", *SECTIONS]


@pytest.mark.parametrize("key", only([*KEYS[::5], "model.network"], KEYS))
def test_a_key_that_is_missing_misspelt_or_none_is_named(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    where, _, leaf = key.rpartition(".")
    default = dict(flatten(get_default_config())).get(key)
    shown = repr(tuple(default) if isinstance(default, list) else default)
    section = f"config.{where}" if where else "config"
    said = _error(tmp_path, capsys, f"del {section}['{leaf}']")
    if key in LEAVES:
        assert f"the config has no config.{key}, whose default is {shown};" in said
    else:
        assert f"the config has no section {key};" in said
    said = _error(tmp_path, capsys, f"{section}['{leaf}'] = None")
    if key in LEAVES:
        assert f"config.{key} must be of type " in said and said.endswith(f"got None; its default is {shown}")
    else:
        assert f"config.{key} must be a section, got None" in said
    said = _error(tmp_path, capsys, f"{section}.update({{'{leaf}_': 1}})")
    if where == "sde":
        assert f"unknown option of SDE 'ddpm': '{leaf}_'; choices: num_steps, beta_start, beta_end" in said
    else:
        assert f"unknown key of {section}: '{leaf}_'; did you mean '{leaf}'?" in said


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.optim.lr = 1e-5", "unknown key of config.optim: 'lr'; did you mean 'learning_rate'?"),
        ("config.training.bs = 8", "unknown key of config.training: 'bs'; did you mean 'batch_size'?"),
        ("config.training.learning_rate = 1e-5", "did you mean config.optim.learning_rate?"),
        ("config.ema_decay = 0.9", "did you mean config.training.ema_decay?"),
        ("config.sde.beta_ned = 0.02", "unknown option of SDE 'ddpm': 'beta_ned'; did you mean 'beta_end'?"),
        ("config.sde = {'name': 'vp', 'num_steps': 5}", "unknown option of SDE 'vp': 'num_steps'"),
        ("config.model.network.fir = 1", "unknown key of config.model.network for backbone 'unet': 'fir'"),
        ("config.optim = {'learning_rate': 1.0}", "the config has no config.optim.beta1, whose default is 0.9;"),
        ("config.model = {'backbone': 'unet'}", "the config has no config.model.answers, whose"),
        ("config.training = {**config.training, 'num_steps': 1e5}", "config.training.num_steps must be of type int"),
        ("config.training = {**config.training, 'num_steps': True}", "config.training.num_steps must be of type int"),
        ("config.data = {**config.data, 'random_flip': 1}", "config.data.random_flip must be of type bool, got 1"),
        ("config.eval = {**config.eval, 'likelihoods': 'ode'}", "config.eval.likelihoods must be of type tuple"),
        ("config.eval = {**config.eval, 'likelihoods': ('ode', 1)}", "config.eval.likelihoods must be of type tuple"),
        ("config.model = {**config.model, 'channel_mult': (1, 1.5)}", "config.model.channel_mult must be of type tup"),
        ("config.data.image_size = 8.5", "config.data.image_size must be of type int, got 8.5"),
        ("config.data.image_size = (8, None)", "config.data.image_size must be of type int, got (8, None)"),
        ("config.data.image_size = (8, 8, 8)", "config.data.image_size must be of type int, got (8, 8, 8)"),
        ("config.sde.beta_end = None", "config.sde.beta_end must be of type float, got None; its default is 0.02"),
        ("config.sde.num_steps = 'many'", "config.sde.num_steps must be of type int, got 'many'; its default is 1000"),
        ("config.plugins = (None,)", "config.plugins must be of type tuple, got (None,)"),
    ],
)
def test_wrong_keys_and_values_of_a_file(line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert message in _error(tmp_path, capsys, line)


def test_values_take_the_type_of_the_default(tmp_path: Path):
    lines = (
        "config.optim = {**config.optim, 'learning_rate': 1}",
        "config.model.channel_mult = [1, 2]",
        "config.data.image_size = (32, 48)",
    )
    path = _file(tmp_path, *lines)
    config = load_config(path, ["--config.optim.learning_rate=5e-4"], defaults=get_default_config())
    assert config.optim.learning_rate == 5e-4 and config.model.channel_mult == (1, 2)
    assert config.data.image_size == (32, 48)
    assert type(load_config(path, defaults=get_default_config()).optim.learning_rate) is float


def test_frozen_configs_and_references_between_keys_stay_possible(tmp_path: Path):
    frozen = tmp_path / "frozen.py"
    frozen.write_text(
        DEFAULT + "    from ml_collections import FrozenConfigDict\n    return FrozenConfigDict(config)\n"
    )
    config = load_config(str(frozen), ["--config.seed=3"], defaults=get_default_config())
    assert config.seed == 3
    follows = _file(tmp_path, "config.optim.decay_steps = config.training.get_ref('num_steps')")
    config = load_config(follows, ["--config.training.num_steps=7"], defaults=get_default_config())
    assert config.optim.decay_steps == 7


RENAMED_KEYS = ("model.noise_input", "training.time_sampling", "eval.vlb_samples_per_image")


@pytest.mark.parametrize("old", RENAMED_KEYS)
def test_keys_of_an_earlier_version_are_read_with_a_line(old: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """In a file, on the command line and in a saved config."""
    new = RENAMED[old]
    value = {"model.noise_input": "index", "training.time_sampling": "importance", "eval.vlb_samples_per_image": 7}[old]
    file = _file(tmp_path, f"config.{old} = {value!r}")
    section, leaf = new.split(".")
    digits = str(ROOT / "configs/vp/digits.py")
    for path, overrides in ((file, ()), (digits, [f"--config.{old}={value}"])):
        config = load_config(path, overrides, defaults=get_default_config())
        assert config[section][leaf] == value and old.split(".")[1] not in config[section]
        assert f"config.{old} is called config.{new} now; it is read as that" in capsys.readouterr().err
    assert load_config(_file(tmp_path, f"config.{old} = {value!r}", "config.lock()"))[section][leaf] == value
    other = "edm" if isinstance(value, str) else 9
    both = _file(tmp_path, f"config.{old} = {value!r}", f"config.{new} = {other!r}")
    with pytest.raises(ValueError, match=f"is called config.{new} now, which is set too: {value!r} and {other!r}; "):
        load_config(both, defaults=get_default_config())
    saved = with_new_names({section: {leaf: value, old.split(".")[1]: "other"}})
    assert saved == {section: {leaf: value}}
    saved = with_new_names({section: {old.split(".")[1]: value, "other": 1}, "seed": 0})
    assert saved == {section: {leaf: value, "other": 1}, "seed": 0}
