"""Representations that a reader can build again."""

import pytest

from likelihood import VariationalBound
from models import EDMParameterization
from runtime.options import ShowsOptions
from samplers import make_sampler
from sde_lib import VP, LearnedVP, NoiseStreams, Tabulated


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (VP(beta_max=5.0), "VP(beta_min=0.1, beta_max=5.0)"),
        (Tabulated.ddpm(num_steps=1000), "Tabulated(family='vp', table_size=1000)"),
        (LearnedVP(), "LearnedVP()"),
        (NoiseStreams(seed=3, indices=range(2)), "NoiseStreams(seed=3, indices=[0, 1])"),
        (EDMParameterization(), "EDMParameterization(data_std=0.5, time_input='edm')"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_options_are_shown(made: object, text: str):
    assert repr(made) == text


def test_options_of_bases_are_shown_too():
    assert repr(make_sampler("ddim", num_steps=10, eta=0.5)).startswith(
        "DDIMSampler(eta=0.5, num_steps=10, grid='uniform'"
    )
    assert repr(VariationalBound(num_levels=17)).startswith("VariationalBound(num_levels=17, ")


def test_long_and_nameless_values_are_left_out():
    class Line(ShowsOptions):
        def __init__(self, slope: float, points: list[int], call: object) -> None:
            self.slope, self.points, self.call = slope, points, call

    assert repr(Line(2.0, list(range(100)), lambda: 0)) == "Line(slope=2.0)"
