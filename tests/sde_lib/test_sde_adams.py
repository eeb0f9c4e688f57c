"""The Adams method: exact on polynomials, its order, its error, both ways, kinks and dead ends."""

import math

import pytest
import torch

from sde_lib import NoProgressError, solve_adams
from sde_lib.adams import quadrature_weights


class Counted:
    """A slope that counts, and keeps where it was asked."""

    def __init__(self, slope):
        self.slope, self.asked = slope, []

    def __call__(self, u, y):
        self.asked.append(float(u))
        return self.slope(u, y)


def within(tolerance):
    """The largest error, over the tolerance."""
    return lambda old, new, difference: float(difference.abs().max()) / tolerance


def start():
    return torch.tensor([[1.0], [-0.3]], dtype=torch.float64)


@pytest.mark.parametrize("nodes", [[2.0], [2.0, 1.7], [2.3, 2.0, 1.1], [-1.0, 2.0, 1.9, 5.0]])
@pytest.mark.parametrize(("low", "high"), [(2.0, 2.3), (1.0, -4.0)])
def test_weights_integrate_polynomials(nodes, low, high):
    weights = quadrature_weights(nodes, low, high)
    for degree in range(len(nodes)):
        truth = (high ** (degree + 1) - low ** (degree + 1)) / (degree + 1)
        assert sum(w * node**degree for w, node in zip(weights, nodes, strict=True)) == pytest.approx(truth, rel=1e-11)


def test_weights_of_equal_steps_are_those_of_the_textbooks():
    # Hairer, Norsett & Wanner 1993, Section III.1: Adams-Bashforth of order 3 and Adams-Moulton of order 4
    assert quadrature_weights([0, -1, -2], 0, 1) == pytest.approx([23 / 12, -16 / 12, 5 / 12])
    assert quadrature_weights([1, 0, -1, -2], 0, 1) == pytest.approx([9 / 24, 19 / 24, -5 / 24, 1 / 24])


@pytest.mark.parametrize("ends", [(0.2, 3.0), (3.0, 0.2)])
def test_the_error_falls_as_that_of_order_three_to_four_both_ways(ends):
    # y' = cos(u) y, y = exp(sin u) c
    first, last = ends
    errors, calls = [], []
    for tolerance in (1e-5, 1e-7, 1e-9):
        slope = Counted(lambda u, y: torch.cos(u) * y)
        y = solve_adams(slope, start() * math.exp(math.sin(first)), first, last, step_error=within(tolerance))
        errors.append(float((y / math.exp(math.sin(last)) - start()).abs().max()))
        calls.append(len(slope.asked))
        assert slope.asked[0] == first
        assert min(ends) <= min(slope.asked) and max(slope.asked) <= max(ends)
    # local errors of 1 tolerance add up over the steps
    for error, count, tolerance in zip(errors, calls, (1e-5, 1e-7, 1e-9), strict=True):
        assert error < count * tolerance
    orders = [
        math.log(a / b) / math.log(m / n) for a, b, n, m in zip(errors, errors[1:], calls, calls[1:], strict=False)
    ]
    assert 3 < orders[-1] < 5, orders


def test_a_step_is_one_slope():
    slope = Counted(lambda u, y: torch.cos(u) * y)
    accepted = []

    def error(old, new, difference):
        size = float(difference.abs().max()) / 1e-6
        accepted.append(size <= 1)
        return size

    solve_adams(slope, start(), 0.0, 2.0, step_error=error)
    assert len(slope.asked) == len(accepted) + 1
    assert sum(accepted) > 0.8 * len(accepted)


def test_what_oscillates_faster_than_the_steps_averages_out_as_draws_do():
    # 250 to 500 periods, and 70 slopes
    errors, calls = [], []
    for frequency in range(250, 500, 10):
        slope = Counted(lambda u, y, w=frequency: 0.01 * torch.sin(w * u) + torch.cos(u) * torch.ones_like(y))
        y = solve_adams(slope, start(), 0.0, 6.0, step_error=within(1e-3))
        errors.append(float((y - start() - math.sin(6.0)).abs().max()))
        calls.append(len(slope.asked))
    # independent draws of variance 0.01^2 / 2 would leave this
    assert sum(e**2 for e in errors) / len(errors) < 2 * (6.0 * 0.01) ** 2 / 2 / (sum(calls) / len(calls))
    assert max(calls) < 100


def test_a_kink_is_passed_and_costs_steps_there_only():
    # y' = |u| has a kink at 0
    slope = Counted(lambda u, y: u.abs() * torch.ones_like(y))
    y = solve_adams(slope, start(), -1.0, 1.0, step_error=within(1e-8))
    assert float((y - start() - 1.0).abs().max()) < 1e-6
    assert len(slope.asked) < 150


def test_no_step_is_a_sliver():
    for end in (0.5, 1.0, 1.001, 1.003):
        slope = Counted(lambda u, y: torch.ones_like(y))
        y = solve_adams(slope, start(), 0.0, end, step_error=within(1e-6), first_step=1e-2)
        assert torch.allclose(y, start() + end, rtol=0, atol=1e-12)
        steps = [b - a for a, b in zip(slope.asked, slope.asked[1:], strict=False)]
        assert steps[-1] > 0.2 * max(steps) or len(steps) == 1


def test_a_dead_end_is_named():
    with pytest.raises(NoProgressError, match="the steps became too small"):
        solve_adams(lambda u, y: y / y.abs().clamp(max=0), start(), 0.0, 1.0, step_error=within(1e-6))
