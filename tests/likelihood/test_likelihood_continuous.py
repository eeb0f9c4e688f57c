"""The bound in continuous time: entropy plus L_T for an exact denoiser, and what the bound on a grid falls to."""

import math

import numpy as np
import pytest
import torch
from thinning import one_each

from likelihood import ContinuousBound, VariationalBound, make_likelihood, prior_kl
from likelihood.dequantization import decoder_log_prob
from likelihood.term_sampling import draw_points
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


@pytest.mark.parametrize(
    ("name", "num_levels"), [*one_each(list(SDES)[:2], [2, 17]), *one_each(list(SDES)[2:], [], slow=[2, 17])]
)
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


class Given(NoiseStreams):
    """Streams that hand out the noise of a quadrature."""

    def __init__(self, noise):
        super().__init__(0, [])
        self.noise = noise

    def normal_like(self, x):
        return self.noise


def over_noise(function, x, probs, log_snr):
    """sum_k p_k E over eps of function(x0, eps, lambda), as a trapezoidal sum.

    In eps a denoiser turns within sigma / (alpha gap), so that sums half of that apart are exact to rounding.
    """
    ratio = math.exp(-0.5 * log_snr) / float(x[1, 0] - x[0, 0])
    half = math.ceil(9 / min(0.4, max(0.5 * ratio, 0.06)))
    eps = torch.linspace(-9, 9, 2 * half + 1, dtype=torch.float64)
    weight = torch.exp(-0.5 * eps**2) / torch.exp(-0.5 * eps**2).sum()
    total = 0.0
    # a few levels at a time, for the memory's sake
    for levels, shares in zip(x.split(17), probs.split(17), strict=True):
        x0 = levels.repeat_interleave(len(eps), 0)
        times = torch.full((len(x0),), log_snr, dtype=torch.float64)
        values = function(x0, eps.repeat(len(levels))[:, None], times)
        total += float(shares @ (values.reshape(len(levels), -1) @ weight))
    return total


def uncertainty(x, probs, log_snr):
    """H(x0 | x_t) in nats, by Bayes' rule."""
    ratio = math.exp(-0.5 * log_snr)

    def surprise(x0, eps, _):
        log_joint = probs.log() - 0.5 * ((x0 + ratio * eps - x[:, 0]) / ratio) ** 2
        return torch.logsumexp(log_joint, 1) - log_joint.gather(1, (x0 == x[:, 0]).long().argmax(1, keepdim=True))[:, 0]

    return over_noise(surprise, x, probs, log_snr)


EXACT_CASES = [
    *((name, sde, num_levels, None) for name, sde in SDES.items() for num_levels in (2, 17)),
    # at t_min the noise is an eighth of the distance between 256 levels, which leaves the decoder 1e-3 bits
    pytest.param("vp", VP(), 256, 1e-6, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "sde", "num_levels", "t_end"), EXACT_CASES)
def test_the_bound_is_entropy_plus_prior_to_four_digits(name, sde, num_levels, t_end):
    """By quadrature over noise and lambda of the estimator's own integrand and decoder."""
    model, x = one_pixel(sde, num_levels)
    probs, bound = model.probs.double(), ContinuousBound(num_levels=num_levels, t_end=t_end)
    ends = bound.ends(sde)
    high, low = sde.log_snr(ends).tolist()
    nodes, weights = np.polynomial.legendre.leggauss(100)
    integral = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        value = over_noise(
            lambda x0, eps, log_snr: bound._integrand(model, x0, log_snr, None, Given(eps)),
            x,
            probs,
            low + 0.5 * (high - low) * (node + 1),
        )
        integral += 0.5 * (high - low) * weight * value
    # what is learned of x0 from x_T to x at t_end (Guo et al. 2005): exact for every SDE
    assert integral == pytest.approx(uncertainty(x, probs, low) - uncertainty(x, probs, high), abs=1e-6)

    def decode(x0, eps, _):
        t = ends[:1].expand(len(x0))
        ratio = float(sde.sigma(ends[:1]) / sde.alpha(ends[:1]))
        return -decoder_log_prob(x0, model(sde.perturb(x0, t, eps), t), ratio, num_levels)

    entropy = float(-(probs * probs.log()).sum())
    prior = float(probs @ prior_kl(x, sde, float(ends[1])))
    total = prior + integral + over_noise(decode, x, probs, high)
    # what x_T tells of x0 is in L_T and not in the integral: 1e-5 bits, but for a VE whose sigma_max is 20 alone
    told = entropy - uncertainty(x, probs, low)
    assert told / math.log(2) < (2e-3 if name == "ve" else 3e-5)
    assert abs(total + told - entropy - prior) / math.log(2) < 1e-4
    if name != "ve":
        assert abs(total - entropy - prior) / math.log(2) < 1e-4


@pytest.mark.slow
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
        ({"num_levels": 1}, "num_levels must be at least 2, a whole number, got 1"),
    ],
)
def test_bad_options_are_refused_in_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        ContinuousBound(**{"num_levels": 5, **options})
    assert "\n" not in str(caught.value)
