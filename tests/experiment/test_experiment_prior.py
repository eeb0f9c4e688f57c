"""A diffusion that ends before its prior is said to, with the key that cures it, and the cure is one."""

import re

import pytest
from ml_collections import ConfigDict
from tiny import tiny_command

import main
from experiment.warnings.prior import say_lost_signal
from sde_lib import MOST_PRIOR_BITS, make_sde


def said(capsys, **options):
    name = options.pop("name")
    sde = make_sde(name, **options)
    say_lost_signal(ConfigDict({"sde": {"name": name} | options}), sde)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "lost", "cure"),
    [
        ({"name": "vp", "beta_max": 2.0}, 0.31, {"beta_max": 20.0}),
        ({"name": "subvp", "beta_max": 2.0}, None, {"beta_max": 20.0}),
        ({"name": "ve", "sigma_max": 1.0}, 0.72, {"sigma_max": 10.0}),
        ({"name": "ncsn", "sigma_max": 1.0}, 0.72, {"sigma_max": 10.0}),
        ({"name": "ddpm", "num_steps": 50}, 0.66, {"beta_end": 0.4019}),
        ({"name": "ddpm", "num_steps": 50}, 0.66, {"num_steps": 1000}),
        ({"name": "ddpm", "num_steps": 15}, None, {"num_steps": 1000}),
        ({"name": "ddpm", "beta_end": 0.003}, None, {"beta_end": 0.02}),
        ({"name": "vp_learned", "log_snr_min": -2.0}, None, {"log_snr_min": -5.0}),
    ],
)
def test_the_line_names_the_loss_and_its_cure(capsys, options, lost, cure):
    line = said(capsys, **options)
    assert line.count("\n") == 1 and "the diffusion ends before its prior: at t = 1 alpha is " in line
    if lost is not None:
        assert float(re.search(r"lack up to (\S+) bits/dim", line)[1]) == pytest.approx(lost, rel=0.1)
    for key, value in cure.items():
        assert f"sde.{key}" in line and f"{value:g}" in line
    assert make_sde(**(options | cure)).prior_bits_per_dim() <= MOST_PRIOR_BITS
    assert said(capsys, **(options | cure)) == ""


def test_train_and_sample_say_it(capsys, tmp_path):
    command = "--config.sde.sigma_max=1.0"
    for mode in ("train", "sample"):
        assert main.run(tiny_command(mode, tmp_path, command, config="ve/digits")) == 0
        err = capsys.readouterr().err
        assert err.count("lack up to 0.72 bits/dim (L_T of pixels at -1 and 1); raise sde.sigma_max to 10 or more") == 1


def test_a_run_of_the_earlier_levels_of_ncsn_is_not_taken_for_one_of_todays(capsys, tmp_path):
    """Earlier runs with sde.name=ncsn alone had 10 levels from 1 to 0.01."""
    config = tmp_path / "ncsn.py"
    config.write_text(
        "from configs.ve.digits import get_config as ve\n"
        "from ml_collections import ConfigDict\n\n"
        "def get_config():\n"
        "    config = ve()\n"
        "    config.sde = ConfigDict({'name': 'ncsn'})\n"
        "    config.model.time_input = 'index'\n"
        "    return config\n"
    )
    command = [f"--config={config}", *tiny_command("train", tmp_path / "run")[1:]]
    assert main.run(command) == 0
    saved = tmp_path / "run" / "config.json"
    assert '"sigma_max": 50.0' in saved.read_text()
    # as an earlier version wrote it
    saved.write_text(re.sub(r'"(num_steps": 232|sigma_max": 50.0|sigma_min": 0.01),?', "", saved.read_text()))
    text = saved.read_text()
    saved.write_text(re.sub(r'"name": "ncsn",\s*}', '"name": "ncsn"}', re.sub(r"\n\s*\n", "\n", text)))
    capsys.readouterr()
    assert main.run([*command[:1], "--mode=sample", *command[2:]]) == 2
    assert "sde.sigma_max was 1.0, is 50.0" in capsys.readouterr().err
