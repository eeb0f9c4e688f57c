"""Batches that do not fit together, networks that answer NaN and options at odds: one clear line, never a number."""

import math

import pytest
import torch
from likelihood_oracles import Pixels, random_pmf
from torch import nn

from likelihood import ContinuousBound, FlowLikelihood, VariationalBound, make_likelihood
from models import Dequantizer, EpsParameterization, NetworkScoreModel
from sde_lib import VP, CosineVP, NoiseStreams


class Half(nn.Module):
    """Half of what it is given, and of its condition."""

    def forward(self, x, c_noise, cond=None):
        return 0.5 * x if cond is None else 0.5 * (x + cond.reshape(-1, *[1] * (x.ndim - 1)))


def half(sde=None, **options):
    return NetworkScoreModel(Half(), sde or VP(), EpsParameterization(), **options)


ESTIMATORS = {
    "vlb": lambda: VariationalBound(num_levels=3, num_steps=4),
    "vlb_continuous": lambda: ContinuousBound(num_levels=3, steps_per_image=2),
    "decoder": lambda: FlowLikelihood(num_levels=3, rtol=1e-3, atol=1e-3),
    "uniform": lambda: FlowLikelihood(num_levels=3, dequantization="uniform", divergence="exact", rtol=1e-3, atol=1e-3),
    "none": lambda: FlowLikelihood(dequantization="none", rtol=1e-3, atol=1e-3),
}
X0 = torch.tensor([-1.0, 0.0, 1.0, 0.0]).reshape(4, 1, 1, 1).expand(4, 1, 2, 3)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(
    ("x0", "options", "message"),
    [
        # levels 0 and 1 of 3 lie on the lattice by accident; noise in their dtype would be whole numbers
        (
            (X0 >= 0).to(torch.uint8),
            {},
            r"must be a tensor of floating-point numbers, got torch.uint8; pass level k as",
        ),
        ((X0 >= 0).long(), {}, "floating-point numbers, got torch.int64"),
        (X0.numpy(), {}, "floating-point numbers, got ndarray"),
        (X0[:0], {}, r"not be empty, got \[0, 1, 2, 3\]"),
        (X0[..., :0], {}, r"not be empty, got \[4, 1, 2, 0\]"),
        (X0[:, 0, 0, 0], {}, r"must have shape \[B, ...\] .*got \[4\]"),
        (torch.tensor(1.0), {}, r"must have shape \[B, ...\] .*got \[\]"),
        (torch.where(X0 == 0, math.nan, X0), {}, "must lie on the 3 levels|must be finite, got 12 numbers"),
        (X0, {"noise": NoiseStreams(0, range(1))}, "noise has 1 streams, got a batch of 4"),
        (X0, {"noise": NoiseStreams(0, range(6))}, "noise has 6 streams, got a batch of 4"),
        (X0, {"cond": torch.zeros(3)}, r"cond must have 4 rows, one a sample of x0, got \[3\]"),
        (X0, {"cond": torch.zeros(1)}, r"4 rows, .*got \[1\]"),
        (X0, {"cond": torch.zeros(6)}, r"4 rows, .*got \[6\]"),
        (X0, {"cond": torch.tensor(1.0)}, r"4 rows, .*got \[\]"),
        (X0, {"cond": [0, 1, 2, 3]}, "4 rows, .*got list"),
    ],
)
def test_batches_that_do_not_fit_together_are_refused_in_one_line(name, x0, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        ESTIMATORS[name]()(half(), x0, **options)
    assert "\n" not in str(caught.value)


class Undefined(nn.Module):
    """NaN for one image, at times below 0.5."""

    def forward(self, x, c_noise, cond=None):
        wrong = (c_noise < 500) & (torch.arange(len(x)) == 1)
        return torch.where(wrong.reshape(-1, 1, 1, 1), math.nan, 0.5 * x)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_network_that_answers_nan_is_named_with_its_time(name):
    model = NetworkScoreModel(Undefined(), VP(), EpsParameterization())
    with pytest.raises(FloatingPointError, match=r"not finite at t = (0\.[0-4]|\de-)") as caught:
        ESTIMATORS[name]()(model, X0, noise=NoiseStreams(0, range(4)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [VariationalBound, ContinuousBound])
def test_pilots_that_say_nothing_are_refused_in_one_line(kind):
    bound = kind(num_levels=3, steps_per_image=2, step_sampling="importance")
    with pytest.raises(ValueError, match="not be empty"):
        bound.fit_steps(half(), X0[:0])
    for num_knots in (0, 1, 2.5):
        with pytest.raises(ValueError, match=f"num_knots must be at least 2, a whole number, got {num_knots}"):
            bound.fit_steps(half(), X0, num_knots=num_knots)
    with pytest.raises(FloatingPointError, match="not finite at t = "):
        bound.fit_steps(NetworkScoreModel(Undefined(), VP(), EpsParameterization()), X0)
    assert bound.step_weights is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: make_likelihood("vlb", num_levels=3, num_steps=2.5),
            "num_steps must be at least 1, a whole number, got 2.5",
        ),
        (
            lambda: make_likelihood("vlb", num_levels=3, steps_per_image=2.5),
            "steps_per_image must .*a whole number, got 2.5",
        ),
        (lambda: make_likelihood("vlb", num_levels=16.5), "num_levels must be at least 2, a whole number, got 16.5"),
        (lambda: make_likelihood("ode", num_levels="3"), "num_levels must be at least 2, a whole number, got '3'"),
        (
            lambda: FlowLikelihood(solver="heun", num_steps=4, t_end=0.3),
            "t_end is for adaptive solvers .*got t_end = 0.3 for 'heun'",
        ),
        (lambda: FlowLikelihood(grid=torch.tensor([1.0, 0.5, 0.1]), t_end=0.3), "t_end is for adaptive solvers"),
        (
            lambda: FlowLikelihood(solver="heun", grid=torch.tensor([1.0, 0.5, 0.1]), num_steps=7),
            "the grid has 2 steps, got num_steps = 7",
        ),
    ],
)
def test_options_at_odds_are_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("grid", [[1.0, 0.5, 0.0], [1.0, 0.0]])
def test_a_grid_from_where_no_signal_is_left_is_refused(grid):
    # without its first time the chain would begin at the second, whose L_T is another
    grid = torch.tensor(grid)
    for likelihood in (VariationalBound(num_levels=3, grid=grid), FlowLikelihood(num_levels=3, grid=grid)):
        with pytest.raises(ValueError, match=r"must begin where signal is left, got t = 1, .*begin at t_max = 0\.999"):
            likelihood(half(CosineVP()), X0)


@pytest.mark.parametrize("x0", [X0[:, 0, 0], X0.expand(4, 3, 2, 3)])
def test_a_dequantizer_of_other_data_is_refused_in_one_line(x0):
    flow = FlowLikelihood(num_levels=3, dequantization="variational")
    with pytest.raises(ValueError, match=r"takes x0 of shape \[B, 1, H, W\], got \[4, .*choose 'uniform'") as caught:
        flow(half(dequantizer=Dequantizer(1)), x0)
    assert "\n" not in str(caught.value)


def test_inference_mode_is_refused_by_the_flow_alone():
    model, x0 = Pixels(VP(), random_pmf(3)), X0[:, 0, 0]
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match=r"needs gradients, got inference mode; call it under torch.no_grad\(\)"):
            FlowLikelihood(num_levels=3)(model, x0)
        total = VariationalBound(num_levels=3, num_steps=4)(model, x0, noise=NoiseStreams(0, range(4))).total
    again = VariationalBound(num_levels=3, num_steps=4)(model, x0, noise=NoiseStreams(0, range(4))).total
    assert torch.equal(total, again)
