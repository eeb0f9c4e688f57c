"""The bound in continuous time: entropy plus L_T for an exact denoiser, and what the bound on a grid falls to."""

import math

import pytest
import torch

from likelihood import ContinuousBound, VariationalBound, make_likelihood, prior_kl
from likelihood.step_sampling import draw_points
from models import DiscreteScoreModel
from sde_lib import VE, VP, NoiseStreams, SubVP, Tabulated

SDES = {"vp": VP(), "subvp": SubVP(), "ve": VE(sigma_max=20.0), "ddpm": Tabulated.ddpm()}


def one_pixel(sde, num_levels):
    """Every level, with unequal probabilities, and each as often as it is probable among 400 draws' worth of data."""
    x = torch.linspace(-1, 1, num_levels, dtype=torch.float64)[:, None]
    probs = torch.arange(1.0, num_levels + 1, dtype=torch.float64)
    return DiscreteScoreModel(sde, points=x, probs=(probs / probs.sum()).tolist()), x


def entropy_plus_prior(model, x, t):
    probs = model.probs.double()
    return float(-(probs * probs.log()).sum() + (probs * prior_kl(x, model.sde, t)).sum())


@pytest.mark.parametrize("num_levels", [2, 17])
@pytest.mark.parametrize("name", SDES)
def test_an_exact_denoiser_is_at_entropy_plus_prior(name, num_levels):
    model, x = one_pixel(SDES[name], num_levels)
    bound = ContinuousBound(num_levels=num_levels, steps_per_image=40)
    # level k as often as is its share: a stratified data set, so that what varies is the noise alone
    counts = (model.probs * 3000).round().long()
    data = x.repeat_interleave(counts, 0)
    terms = bound(model, data, noise=NoiseStreams(0, range(len(data))))
    weights = (model.probs.double() / counts).repeat_interleave(counts)
    found = float((weights * terms.total).sum())
    stderr = float((weights.square() * (terms.total - terms.total.mean()).square()).sum().sqrt())
    truth = entropy_plus_prior(model, x, float(bound.ends(model.sde)[1]))
    assert abs(found - truth) < 4 * stderr, (found, truth, stderr)
    assert stderr < 0.03 * truth


def test_the_integral_is_entropy_to_four_digits():
    """By quadrature over noise and lambda: 1e-4 bits."""
    sde, num_levels = VP(), 17
    model, x = one_pixel(sde, num_levels)
    bound = ContinuousBound(num_levels=num_levels)
    ends = bound.ends(sde)
    high, low = sde.log_snr(ends).tolist()
    z = torch.linspace(-9, 9, 721, dtype=torch.float64)
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi) * (z[1] - z[0])
    total = 0.0
    num_points = 1500
    for log_snr in torch.linspace(low, high, num_points, dtype=torch.float64):
        x0 = x.repeat_interleave(len(z), 0)
        # a stand-in for the streams: every noise of the quadrature
        noise = z.repeat(num_levels)[:, None]

        class Fixed(NoiseStreams):
            def normal_like(self, x, noise=noise):
                return noise

        values = bound._integrand(model, x0, log_snr.expand(len(x0)), None, Fixed(0, []))
        expected = (values.reshape(num_levels, -1) * density).sum(1)
        total += float((model.probs.double() * expected).sum()) * (high - low) / (num_points - 1)
    entropy = float(-(model.probs.double() * model.probs.double().log()).sum())
    assert abs(total - entropy) / math.log(2) < 1e-4


def test_the_bound_on_a_grid_falls_towards_it():
    sde, num_levels = VP(), 5
    model, x = one_pixel(sde, num_levels)
    data = x.repeat_interleave(400, 0)
    limit = ContinuousBound(num_levels=num_levels, steps_per_image=200)
    noise = range(len(data))
    continuous = float(limit(model, data, noise=NoiseStreams(1, noise)).total.mean())
    times = [
        float(
            VariationalBound(num_levels=num_levels, num_steps=n, grid="log_snr")(
                model, data, noise=NoiseStreams(1, noise)
            ).total.mean()
        )
        for n in (10, 40, 160)
    ]
    gaps = [value - continuous for value in times]
    assert gaps[0] > gaps[1] > gaps[2] > -0.01
    assert gaps[2] < 0.15 * gaps[0]


def test_no_image_depends_on_its_batch_and_shifts_are_spread():
    model, x = one_pixel(VP(), 5)
    bound = make_likelihood("vlb_continuous", num_levels=5, steps_per_image=3)
    assert isinstance(bound, ContinuousBound)
    whole = bound(model, x, noise=NoiseStreams(4, range(5))).total
    parts = torch.cat([bound(model, x[k : k + 1], noise=NoiseStreams(4, [k])).total for k in range(5)])
    assert torch.equal(whole, parts)
    points = draw_points("low_discrepancy", NoiseStreams(4, range(1000)), 3)
    # the gaps of a golden-ratio sequence: near 1 / 1000 all of them, where those of random points reach ten times that
    assert float((3 * points).sort(0).values.diff(dim=0).max()) < 2.7e-3
    assert torch.equal(points[[7, 2]], draw_points("low_discrepancy", NoiseStreams(4, [7, 2]), 3))
    assert bound(model, x, noise=NoiseStreams(4, range(5))).nfe == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_image": 0}, "steps_per_image must be at least 1, a whole number, got 0"),
        ({"t_end": -0.1}, r"t_end must lie in \[0, 1\), got -0.1"),
        ({"num_levels": 1}, "num_levels must be at least 2, got 1"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        ContinuousBound(**{"num_levels": 5, **options})
    assert "\n" not in str(caught.value)
