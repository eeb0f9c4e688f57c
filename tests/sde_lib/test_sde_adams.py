"""The Adams method: exact on polynomials, its order, its error, both ways, steps of one's own, kinks and dead ends."""

import math
from itertools import pairwise

import pytest
import torch
from thinning import only

from sde_lib import NoProgressError, solve_adams
from sde_lib.ode.adams import quadrature_weights


class Counted:
    """A slope that keeps where it was asked, for which samples."""

    def __init__(self, slope):
        self.slope, self.asked = slope, []

    def __call__(self, u, y, rows):
        self.asked.append(dict(zip(rows.tolist(), u.tolist(), strict=True)))
        return self.slope(u[:, None], y)

    def of(self, row):
        return [asked[row] for asked in self.asked if row in asked]


def within(tolerance):
    """Each sample's largest error, over the tolerance."""
    return lambda old, new, difference: difference.abs().amax(1) / tolerance


def start():
    return torch.tensor([[1.0], [-0.3]], dtype=torch.float64)


def weights_of(nodes, low, high):
    return quadrature_weights(*(torch.tensor(v, dtype=torch.float64) for v in ([nodes], [low], [high])))[0].tolist()


@pytest.mark.parametrize("nodes", [[2.0], [2.0, 1.7], [2.3, 2.0, 1.1], [-1.0, 2.0, 1.9, 5.0]])
@pytest.mark.parametrize(("low", "high"), [(2.0, 2.3), (1.0, -4.0)])
def test_weights_integrate_polynomials(nodes, low, high):
    weights = weights_of(nodes, low, high)
    for degree in range(len(nodes)):
        truth = (high ** (degree + 1) - low ** (degree + 1)) / (degree + 1)
        assert sum(w * node**degree for w, node in zip(weights, nodes, strict=True)) == pytest.approx(truth, rel=1e-11)


def test_weights_of_equal_steps_are_those_of_the_textbooks():
    # Hairer, Norsett & Wanner 1993, Section III.1: Adams-Bashforth of order 3 and Adams-Moulton of order 4
    assert weights_of([0.0, -1.0, -2.0], 0.0, 1.0) == pytest.approx([23 / 12, -16 / 12, 5 / 12])
    assert weights_of([1.0, 0.0, -1.0, -2.0], 0.0, 1.0) == pytest.approx([9 / 24, 19 / 24, -5 / 24, 1 / 24])
    # each row has its own
    rows = torch.tensor([[0.0, -1.0], [1.0, 0.5]], dtype=torch.float64)
    both = quadrature_weights(rows, torch.tensor([0.0, 1.0]).double(), torch.tensor([1.0, 1.5]).double())
    assert both.tolist() == [pytest.approx([1.5, -0.5]), pytest.approx([0.75, -0.25])]


@pytest.mark.parametrize("ends", only(((3.0, 0.2),), [(0.2, 3.0), (3.0, 0.2)]))
def test_the_error_falls_with_the_tolerance_at_the_price_of_order_three_both_ways(ends):
    # y' = cos(u) y, y = exp(sin u) c
    first, last = ends
    tolerances = (1e-5, 1e-7, 1e-9)
    errors, calls = [], []
    for tolerance in tolerances:
        slope = Counted(lambda u, y: torch.cos(u) * y)
        y = solve_adams(slope, start() * math.exp(math.sin(first)), first, last, step_error=within(tolerance))
        errors.append(float((y / math.exp(math.sin(last)) - start()).abs().max()))
        calls.append(len(slope.asked))
        asked = slope.of(0)
        assert asked[0] == first
        assert min(ends) <= min(asked) and max(asked) <= max(ends)
    # local errors of 1 tolerance add up over the steps
    assert all(error < n * tolerance for error, n, tolerance in zip(errors, calls, tolerances, strict=True))
    # an error of h^4 a step: 10^4 times less for 10 times the steps, and the first ones of lower order
    assert calls[2] < 12 * calls[0]


def test_a_step_is_one_slope():
    slope = Counted(lambda u, y: torch.cos(u) * y)
    accepted = []

    def error(old, new, difference):
        size = difference.abs().amax(1) / 1e-6
        accepted.append(bool((size <= 1).all()))
        return size

    solve_adams(slope, start()[:1], 0.0, 2.0, step_error=error)
    assert len(slope.asked) == len(accepted) + 1
    assert sum(accepted) > 0.8 * len(accepted)


def test_each_sample_has_steps_of_its_own_and_leaves_when_it_is_done():
    # the second one oscillates ten times as fast; the third stands still
    speed = torch.tensor([[1.0], [10.0], [0.0]], dtype=torch.float64)
    y = torch.ones(3, 2, dtype=torch.float64)

    def solve(rows):
        slope = Counted(lambda u, y: torch.empty(0))
        inner = slope.__call__

        def of_these(u, y, among):
            inner(u, y, among)
            return speed[rows][among] * torch.cos(speed[rows][among] * u[:, None]) * y

        return solve_adams(of_these, y[rows], 0.0, 3.0, step_error=within(1e-5)), slope

    together, slope = solve([0, 1, 2])
    truth = torch.exp(torch.sin(3 * speed)).expand(3, 2)
    assert torch.allclose(together, truth, rtol=0, atol=2e-4)
    counts = [len(slope.of(row)) for row in range(3)]
    assert counts[2] < counts[0] / 2 < counts[1] / 4
    assert len(slope.asked) == counts[1]
    for row in range(3):
        alone, single = solve([row])
        # to the bit: what a sample is worth does not depend on its batch mates
        assert torch.equal(alone[0], together[row])
        assert single.of(0) == slope.of(row)


def test_what_oscillates_faster_than_the_steps_averages_out_as_draws_do():
    # 250 to 500 periods, and less than 100 slopes
    errors, calls = [], []
    for frequency in range(250, 500, 10):
        slope = Counted(lambda u, y, w=frequency: 0.01 * torch.sin(w * u) + torch.cos(u) * torch.ones_like(y))
        y = solve_adams(slope, start()[:1], 0.0, 6.0, step_error=within(1e-3))
        errors.append(float((y - start()[:1] - math.sin(6.0)).abs().max()))
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
        asked = slope.of(0)
        steps = [b - a for a, b in pairwise(asked)]
        assert steps[-1] > 0.2 * max(steps) or len(steps) == 1


def test_a_dead_end_is_named():
    with pytest.raises(NoProgressError, match="the steps became too small"):
        solve_adams(lambda u, y, rows: y / y.abs().clamp(max=0), start(), 0.0, 1.0, step_error=within(1e-6))


def test_cubics_are_exact_once_there_are_three_slopes():
    # the corrector is of order four; of the first steps, of lower order, are left 1e-4^3
    found = solve_adams(
        lambda u, y, rows: (4 * u**3 - 6 * u)[:, None].expand_as(y),
        start(),
        0.0,
        2.0,
        # a tenth of a thousandth of what is tolerated: steps grow as fast as they may
        step_error=lambda old, new, difference: torch.full((len(old),), 1e-4, dtype=torch.float64),
        first_step=1e-4,
    )
    torch.testing.assert_close(found, start() + 2.0**4 - 3 * 2.0**2, rtol=0, atol=1e-9)


def test_a_step_whose_error_is_not_a_number_is_taken_again():
    calls = []

    def slope(u, y, rows):
        calls.append(u)
        return torch.where(torch.tensor(len(calls) in (3, 7)), math.nan, -y)

    found = solve_adams(slope, start(), 0.0, 1.0, step_error=within(1e-8))
    torch.testing.assert_close(found, start() * math.exp(-1), rtol=0, atol=1e-6)
    # the same way again, shorter
    assert bool((calls[7] < calls[6]).all())
