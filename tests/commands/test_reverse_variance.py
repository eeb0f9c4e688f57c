"""One rule for the reverse variance of samplers and of the bound: learned where the model has it, else small."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ROOT, tiny_command

import main
from evaluation.samples.provenance import variance_of
from experiment.build import build_sampler
from experiment.config import load_config
from likelihood import VariationalBound
from models import DiscreteScoreModel, pick_variance
from samplers import make_sampler
from sde_lib import NoiseStreams, Tabulated

LEVELS = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None].expand(5, 4)


def model_of(fraction):
    return DiscreteScoreModel(
        Tabulated.ddpm(num_steps=20), points=LEVELS, probs=torch.full((5,), 0.2), variance_fraction=fraction
    )


def drawn(fraction, name="ancestral", **options):
    model = model_of(fraction)
    x_T = model.sde.prior_sample((4,), NoiseStreams(0, range(6))).double()
    sampler = make_sampler(name, num_steps=8, record_trajectory=True, **options)
    # before the step onto a level
    return sampler.sample(model, x_T, noise=NoiseStreams(1, range(6))).trajectory[-2]


def measured(fraction, **options):
    bound = VariationalBound(num_levels=5, num_steps=8, **options)
    return bound(model_of(fraction), LEVELS, noise=NoiseStreams(2, range(5))).total


@pytest.mark.parametrize(("fraction", "chosen"), [(0.7, "learned"), (None, "small")])
def test_samplers_and_the_bound_take_what_the_model_has(fraction, chosen):
    for name, how in (("ancestral", {}), ("predictor_corrector", {"predictor": "ancestral", "corrector": "none"})):
        found = drawn(fraction, name, **how)
        assert torch.equal(found, drawn(fraction, variance=chosen))
        assert not torch.allclose(found, drawn(fraction, variance="large"))
    assert torch.equal(measured(fraction), measured(fraction, variance=chosen))
    assert not torch.allclose(measured(fraction), measured(fraction, variance="large"), rtol=1e-3)
    # where the learned one is neither of the fixed ones, it is told from both
    if chosen == "learned":
        assert not torch.allclose(drawn(fraction), drawn(fraction, variance="small"))
        assert not torch.allclose(measured(fraction), measured(fraction, variance="small"), rtol=1e-3)


def test_what_is_asked_for_is_taken():
    assert [pick_variance(kind, learned=True) for kind in ("small", "large", "learned")] == [
        "small",
        "large",
        "learned",
    ]
    with pytest.raises(ValueError, match="variance 'learned' needs a model that learns its variance"):
        drawn(None, variance="learned")


CONFIGS = sorted(path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").glob("v*/*.py"))


@pytest.mark.parametrize("name", [name for name in CONFIGS if "family" not in name and "__init__" not in name])
def test_a_config_samples_with_the_variance_that_it_measures_with(name):
    config = load_config(str(ROOT / "configs" / name))
    learned = config.model.learned_variance
    assert pick_variance(config.eval.vlb_variance, learned=learned) == ("learned" if learned else "small")
    assert variance_of(build_sampler(config), learned=learned) in (None, "learned" if learned else "small")


@pytest.mark.parametrize(
    ("config", "chosen"),
    [("vp/digits_hybrid", "learned"), pytest.param("vp/digits", "small", marks=pytest.mark.slow)],
)
def test_a_run_says_which_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str], config: str, chosen: str):
    def run(mode: str, *extra: str) -> str:
        command = tiny_command(mode, tmp_path / "run", "--config.sde.num_steps=20", *extra, config=config)
        capsys.readouterr()
        assert main.run(command) == 0
        return "".join(capsys.readouterr())

    def sampled(*extra: str) -> np.ndarray:
        said = run("sample", *extra)
        about = json.loads((tmp_path / "run" / "samples" / "samples.json").read_text())
        assert f"by ancestral with the {about['variance']} variance" in said
        kinds.append(about["variance"])
        return np.load(tmp_path / "run" / "samples" / "samples.npz")["arr_0"]

    kinds: list[str] = []
    run("train")
    by_default = sampled()
    np.testing.assert_array_equal(by_default, sampled(f"--config.sampling.options=variance={chosen}"))
    assert (by_default != sampled("--config.sampling.options=variance=large")).any()
    assert kinds == [chosen, chosen, "large"]
    table = run("eval")
    assert json.loads((tmp_path / "run" / "eval" / "report.json").read_text())["vlb"]["variance"] == chosen
    assert f"{chosen} variance" in table
    run("sample", "--config.sampling.sampler=ddim")
    assert json.loads((tmp_path / "run" / "samples" / "samples.json").read_text())["variance"] is None
