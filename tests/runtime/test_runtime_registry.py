"""Names: unique, and an unknown one lists the choices with the nearest."""

import functools

import pytest
import torch

from runtime.registry import Registry, choices_message
from sde_lib import (
    SDE,
    VE,
    VP,
    CosineVP,
    LearnedVP,
    RectifiedFlow,
    SubVP,
    Tabulated,
    available_sdes,
    make_sde,
    sde_defaults,
)

NAMES = ["betas", "ddpm", "improved_ddpm", "ncsn", "rectified_flow", "subvp", "ve", "vp", "vp_cosine", "vp_learned"]


def test_each_name_builds_its_sde():
    assert available_sdes() == NAMES
    kinds = {
        "rectified_flow": RectifiedFlow,
        "subvp": SubVP,
        "ve": VE,
        "vp": VP,
        "vp_cosine": CosineVP,
        "vp_learned": LearnedVP,
    }
    for name in NAMES:
        options = {"betas": [0.1, 0.2]} if name == "betas" else {}
        assert type(make_sde(name, **options)) is kinds.get(name, Tabulated)
        assert isinstance(make_sde(name, **options), SDE)


def test_the_defaults_of_an_sde_are_what_it_is_without_options():
    t = torch.tensor([0.01, 0.3, 1.0], dtype=torch.float64)
    for name in NAMES:
        defaults = sde_defaults(name)
        if name == "betas":
            assert defaults == {}
            continue
        assert defaults
        torch.testing.assert_close(make_sde(name, **defaults).log_snr(t), make_sde(name).log_snr(t), rtol=0, atol=0)
    assert sde_defaults("ddpm") == {"num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    with pytest.raises(ValueError, match="unknown SDE 'ddmp'"):
        sde_defaults("ddmp")


def test_options_reach_the_sde():
    t = torch.tensor([1.0], dtype=torch.float64)
    assert make_sde("ve", sigma_max=80.0).sigma(t).item() == pytest.approx(80)
    assert make_sde("vp", beta_min=1.0, beta_max=3.0).log_alpha(t).item() == pytest.approx(-1)
    assert make_sde("ddpm", num_steps=50).table_size == 50
    assert make_sde("ncsn", num_steps=7, sigma_max=9.0).prior_std == pytest.approx(9)
    assert make_sde("betas", betas=[0.1, 0.2]).alpha(t).item() == pytest.approx((0.9 * 0.8) ** 0.5)


def test_an_unknown_name_lists_the_choices():
    with pytest.raises(ValueError) as error:
        make_sde("vp_cosin")
    assert str(error.value) == f"unknown SDE 'vp_cosin'; did you mean 'vp_cosine'? choices: {', '.join(NAMES)}"
    with pytest.raises(ValueError) as error:
        make_sde("qqqq")
    assert str(error.value) == f"unknown SDE 'qqqq'; choices: {', '.join(NAMES)}"
    assert choices_message("thing", "a", []) == "unknown thing 'a'; choices: none"


def test_an_unknown_option_lists_the_options():
    with pytest.raises(ValueError, match="unknown option of SDE 'vp': 'beta_mx'; did you mean 'beta_max'") as error:
        make_sde("vp", beta_mx=3.0)
    assert "choices: beta_min, beta_max" in str(error.value)
    with pytest.raises(ValueError, match="choices: num_steps, beta_start, beta_end"):
        make_sde("ddpm", sigma_max=3.0)


def test_a_missing_option_is_named():
    registry = Registry[str]("thing")

    @registry.register("pair")
    def make_pair(*, first: str, second: str) -> str:
        return first + second

    with pytest.raises(ValueError, match="thing 'pair' needs first, second; pass first="):
        registry.make("pair")
    with pytest.raises(ValueError, match="thing 'pair' needs second; pass second="):
        registry.make("pair", first="a")
    assert registry.make("pair", first="a", second="b") == "ab"


def test_any_option_goes_to_a_factory_that_takes_them_all():
    registry = Registry[dict]("thing")
    registry.register("any")(lambda **kwargs: kwargs)
    assert registry.make("any", colour="red") == {"colour": "red"}


def test_a_taken_name_is_refused():
    registry = Registry[object]("thing")
    registry.register("a")(VP)
    with pytest.raises(ValueError, match=r"thing 'a' is already registered by sde_lib\.vp\.VP; choose another name"):
        registry.register("a")(VE)
    registry.register("a")(VP)  # a module that is imported again
    assert registry.names() == ["a"]
    assert registry.get("a") is VP


def test_taken_names_are_refused_to_nameless_factories_too():
    registry = Registry[object]("thing")
    registry.register("lambda")(lambda: 1)
    with pytest.raises(ValueError, match="already registered"):
        registry.register("lambda")(lambda: 2)
    registry.register("partial")(functools.partial(VP, beta_min=1.0))
    with pytest.raises(ValueError, match="already registered"):
        registry.register("partial")(functools.partial(VP, beta_min=2.0))
    assert registry.make("lambda") == 1
