"""An SDE of a plugin: refused before anything is written, and mentioned where its file has changed."""

import pytest
from tiny import error, tiny_command

import main
from sde_lib.catalog import SDES

PLUGIN = """
import torch
from sde_lib import SDE, register_sde


@register_sde("{name}")
class RectifiedFlow(SDE):
    prior_std = 1.0
    t_max = {t_max}

    def log_alpha(self, t):
        return torch.log1p(-t.double())

    def log_sigma(self, t):
        return t.double().log()
"""


@pytest.fixture(autouse=True)
def names_of_one_test(monkeypatch):
    monkeypatch.setattr(SDES, "_factories", dict(SDES._factories))


CHANGED = "has changed since this run was trained with it"


def command(mode, tmp_path, name, *extra):
    config = tmp_path / "flow.py"
    config.write_text(
        "from configs.vp.digits import get_config as vp\n"
        "from ml_collections import ConfigDict\n\n"
        "def get_config():\n"
        "    config = vp()\n"
        f"    config.sde = ConfigDict({{'name': '{name}'}})\n"
        f"    config.plugins = ('{tmp_path}/{name}.py',)\n"
        "    return config\n"
    )
    options = ["--config.eval.likelihoods=vlb_continuous", "--config.eval.vlb_steps_per_image=1"]
    return [f"--config={config}", *tiny_command(mode, tmp_path / "run", *options, *extra)[1:]]


def test_a_flow_up_to_pure_noise_is_refused_before_it_is_trained(capsys, tmp_path):
    (tmp_path / "flow_to_1.py").write_text(PLUGIN.format(name="flow_to_1", t_max=1.0))
    line = error(capsys, command("train", tmp_path, "flow_to_1"))
    assert "RectifiedFlow has alpha = 0 at its t_max = 1" in line and "such as t_max = 0.999" in line
    assert not (tmp_path / "run").exists()


def test_a_changed_plugin_is_mentioned_in_every_mode(capsys, tmp_path):
    name = "flow_below_1"
    plugin = tmp_path / f"{name}.py"
    plugin.write_text(PLUGIN.format(name=name, t_max=0.999))

    def said(mode, *extra):
        capsys.readouterr()
        assert main.run(command(mode, tmp_path, name, *extra)) == 0
        return capsys.readouterr().err.count(f"plugin {name}.py {CHANGED}")

    assert said("train") == 0
    plugin.write_text(plugin.read_text() + "\n# another\n")
    assert said("sample") == said("eval") == 1
    # what it is trained with from here on is what it is compared with
    assert said("train", "--config.training.num_steps=8") == 1
    assert said("sample") == 0
    capsys.readouterr()
    # in this process the SDE is registered
    assert main.run(command("sample", tmp_path, name, "--config.plugins=()")) == 0
    missing = f"this run was trained with plugins that config.plugins does not name: {name}.py"
    assert missing in capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"flow_below_2.py": 3}'])
def test_a_record_of_plugins_that_cannot_be_read_stops_nothing(capsys, tmp_path, text):
    from experiment.plugins import keep_plugins, say_changed_plugins

    plugin = tmp_path / "some.py"
    plugin.write_text("")
    (tmp_path / "plugins.json").write_text(text)
    say_changed_plugins(tmp_path, [str(plugin)])
    assert CHANGED not in capsys.readouterr().err
    keep_plugins(tmp_path, [str(plugin)])
    plugin.write_text("# changed")
    say_changed_plugins(tmp_path, [str(plugin)])
    assert CHANGED in capsys.readouterr().err
