"""Bounds from few terms: no scheme of drawing them is biased, and each knows its own error."""

import math

import numpy as np
import pytest
import torch
from likelihood_oracles import SDES, Pixels, coverage, entropy, lattice, random_pmf, rescaled_ddpm, terms_over_x_t
from thinning import one_each, only

from likelihood import ContinuousBound, VariationalBound, draw_steps, prior_kl
from likelihood.term_sampling import (
    UNIFORM_SHARE,
    draw_points,
    interpolate_step_weights,
    low_discrepancy_place,
    pilot_steps,
    sampling_variance,
)
from sde_lib import VP, NoiseStreams

SCHEMES = ["uniform", "stratified", "low_discrepancy", "importance"]
# the others share out the steps among a run's images
INDEPENDENT = ["all", "uniform", "stratified"]
BITS = 1 / math.log(2)


def exact_terms(sde, pmf, variance="small", num_steps=None):
    """Mean and variance over eps of L_0, L_1, ..., of one pixel, [n, K] each."""
    times = VariationalBound(num_levels=len(pmf), num_steps=num_steps).noisy_times(sde)
    return terms_over_x_t(sde.alpha(times).numpy(), sde.sigma(times).numpy(), pmf)[variance]


def exact_total(sde, pmf, num_steps):
    """The bound in nats per pixel."""
    prior = prior_kl(torch.from_numpy(lattice(len(pmf)))[:, None], sde, sde.t_max).numpy()
    return pmf @ (prior + exact_terms(sde, pmf, num_steps=num_steps)[0].sum(0))


def bound_with(scheme, draws, weights=None, *, variance="small", **options):
    weights = weights if scheme == "importance" else None
    return VariationalBound(
        num_levels=17,
        steps_per_image=draws,
        step_sampling=scheme,
        step_weights=weights,
        variance=variance,
        **options,
    )


def probabilities(scheme, weights):
    n = len(weights)
    if scheme != "importance":
        return np.full(n, 1 / n)
    return (1 - UNIFORM_SHARE) * weights / weights.sum() + UNIFORM_SHARE / n


WEIGHTS = np.geomspace(1, 1e-4, 49)


@pytest.mark.parametrize("num_draws", only((2,), [1, 2, 5, 30]))
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_step_is_drawn_as_often_as_its_probability_says(scheme, num_draws):
    images, probs = 4000, probabilities(scheme, WEIGHTS)
    weights = torch.from_numpy(WEIGHTS) if scheme == "importance" else None
    draws = draw_steps(scheme, NoiseStreams(1, range(images)), num_steps=49, num_draws=num_draws, step_weights=weights)
    counts, expected = np.bincount(draws.index.flatten().numpy(), minlength=49), images * num_draws * probs
    assert len(counts) == 49
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected) + 1).all()
    torch.testing.assert_close(draws.scale, 1 / (num_draws * torch.from_numpy(probs)[draws.index]))
    # the sum over all steps of any function, 1 among them, is estimated without bias
    for function in (np.ones(49), WEIGHTS, np.arange(49.0) ** 2):
        values = (draws.scale.numpy() * function[draws.index.numpy()]).sum(1)
        stderr = values.std(ddof=1) / math.sqrt(images)
        assert abs(values.mean() - function.sum()) < 4 * stderr + 1e-9 * function.sum()
    # places fill the cells evenly
    assert float(draws.place.min()) >= 0
    assert float(draws.place.max()) < 1
    assert float(draws.place.mean()) == pytest.approx(0.5, abs=4 / math.sqrt(12 * images))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_point_lies_in_every_part_but_for_uniform_draws(scheme):
    points = draw_points(scheme, NoiseStreams(2, range(500)), 7)
    assert points.dtype == torch.float64
    parts = (7 * points).floor().long()
    assert torch.equal(parts, torch.arange(7).expand(500, -1)) == (scheme != "uniform")
    inside = 7 * points - parts
    # of points in one part the discrepancy is 1 / n for the sequence, 1 / sqrt(n) for independent ones
    gaps = inside.sort(0).values - (torch.arange(500) + 0.5)[:, None] / 500
    assert bool((gaps.abs().amax(0) < 0.01).all()) == (scheme not in INDEPENDENT)
    # an image's parts are independent: Fisher's bound for 21 correlations
    shift = torch.stack([draw_points(scheme, NoiseStreams(s, [3]), 7)[0] * 7 % 1 for s in range(400)])
    correlation = torch.corrcoef(shift.T) - torch.eye(7)
    assert float(correlation.abs().max()) < 4.5 / math.sqrt(400)


@pytest.mark.parametrize(("scheme", "variance"), one_each(SCHEMES, ["small", "large", "learned"]))
def test_sum_curve_and_variance_are_right(scheme, variance):
    sde, pmf, level, images, dims, draws = SDES["ddpm"], random_pmf(17), 4, 2000, 4, 6
    means, spreads = (v[1:, level] * dims for v in exact_terms(sde, pmf, variance))
    weights = torch.from_numpy(np.sqrt(means**2 + spreads))
    x0 = torch.full((images, dims), float(lattice(17)[level]), dtype=torch.float64)
    bound = bound_with(scheme, draws, weights, variance=variance)
    if scheme in INDEPENDENT:
        terms = bound(Pixels(sde, pmf), x0, noise=NoiseStreams(3, range(images)))
        values, index, nats = terms.diffusion.numpy(), terms.step_index.numpy(), terms.step_nats.numpy()
        reported = terms.sampling_variance.numpy()
    else:
        # images of one run share its shifts: runs of 100 images, each with a seed of its own
        runs = [bound(Pixels(sde, pmf), x0[:100], noise=NoiseStreams(seed, range(100))) for seed in range(20)]
        values, index, nats, reported = (
            torch.cat([getattr(terms, name) for terms in runs]).numpy()
            for name in ("diffusion", "step_index", "step_nats", "sampling_variance")
        )
    assert abs(values.mean() - means.sum()) < 4 * values.std(ddof=1) / math.sqrt(images)
    # each L_t by the mean over whatever images drew it, without weights
    for step in range(49):
        drawn = nats[index == step]
        assert abs(drawn.mean() - means[step]) < 5 * math.sqrt(spreads[step] / len(drawn)) + 1e-12
    # the variance in closed form: of independent draws, K times that of one; of parts, the sum of theirs
    probs = probabilities(scheme, weights.numpy())
    cells = np.concatenate([[0], probs.cumsum()])
    edges = np.linspace(0, 1, draws + 1)
    if scheme == "uniform":
        share = np.tile(probs, (draws, 1))
    else:
        share = draws * np.maximum(np.minimum(cells[1:], edges[1:, None]) - np.maximum(cells[:-1], edges[:-1, None]), 0)
    part_mean = share @ (means / probs) / draws
    part_var = share @ ((spreads + means**2) / probs**2) / draws**2 - part_mean**2
    spread_of_square = ((values - values.mean()) ** 2).std(ddof=1) / math.sqrt(images)
    assert abs(values.var(ddof=1) - part_var.sum()) < 5 * spread_of_square
    too_large = 0 if scheme == "uniform" else ((part_mean[::2] - part_mean[1::2]) ** 2).sum()
    stderr = reported.std(ddof=1) / math.sqrt(images)
    assert abs(reported.mean() - part_var.sum() - too_large) < 5 * stderr


def test_sampling_variance_of_odd_and_single_draws():
    shares = torch.tensor([[1.0, 3.0, 2.0, 4.0, 9.0]], dtype=torch.float64)
    # (1 - 3)^2, and 3 s^2 of 2, 4, 9, whose s^2 is 13
    torch.testing.assert_close(sampling_variance(shares, independent=False), torch.tensor([43.0]).double())
    torch.testing.assert_close(sampling_variance(shares[:, 2:], independent=False), torch.tensor([39.0]).double())
    torch.testing.assert_close(sampling_variance(shares[:, 2:], independent=True), torch.tensor([39.0]).double())
    assert sampling_variance(shares[:, :1], independent=True) is None


REPETITIONS = 200


def stderr_of_neighbours(values):
    """Standard error of the mean by the differences of neighbours in the sequence (Wolter 2007, Section 8.2).

    Neighbours have nearly the same steps: what is left is the images' own spread.
    """
    order = torch.tensor([low_discrepancy_place(k) for k in range(len(values))]).argsort()
    return math.sqrt(float(values[order].diff().square().mean()) / (2 * len(values)))


def repeat(bound, model, x0, scheme):
    """Totals of 200 runs [200, images], and the standard error of each where s / sqrt(n) is too large."""
    images = len(x0) // REPETITIONS
    if scheme in INDEPENDENT:
        terms = bound(model, x0, noise=NoiseStreams(5, range(len(x0))))
        return terms.total.reshape(REPETITIONS, images).numpy(), None
    totals = torch.stack(
        [bound(model, x, noise=NoiseStreams(seed, range(images))).total for seed, x in enumerate(x0.split(images))]
    )
    return totals.numpy(), np.array([stderr_of_neighbours(total) for total in totals])


def draw_pictures(pmf, images, dims, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).choice(lattice(len(pmf)), (images, dims), p=pmf))


def covered(sde, num_levels, scheme, images, dims):
    """Shares of 200 runs within 1.96 standard errors of the truth: the scheme's own, and s / sqrt(n)."""
    pmf = random_pmf(num_levels)
    model, x0 = Pixels(sde, pmf), draw_pictures(pmf, REPETITIONS * images, dims)
    options = {} if scheme == "all" else {"steps_per_image": 6, "step_sampling": scheme}
    bound = VariationalBound(num_levels=num_levels, num_steps=50, variance="small", **options)
    if scheme == "importance":
        bound.fit_steps(model, draw_pictures(pmf, 16, dims, seed=1), noise=NoiseStreams(6, range(16)))
    totals, stderrs = repeat(bound, model, x0, scheme)
    truth = dims * exact_total(sde, pmf, 50)
    return coverage(totals, truth, stderrs), coverage(totals, truth)


@pytest.mark.parametrize("scheme", only(("all",), ["all", *SCHEMES]))
def test_standard_errors_cover_the_truth(scheme):
    share, plain = covered(SDES["cosine"], 17, scheme, images=20 if scheme == "all" else 80, dims=8)
    assert 0.91 <= share <= 0.99
    # s / sqrt(n) counts what cancels in low-discrepancy draws: too large, but never too small
    assert plain >= 0.91


@pytest.mark.slow
@pytest.mark.parametrize("num_levels", [2, 17, 256])
@pytest.mark.parametrize("scheme", ["all", *SCHEMES])
def test_standard_errors_cover_the_truth_on_a_table(scheme, num_levels):
    # on a linear table the first of 49 steps is most of the sum: drawn for few images, it makes their values so skewed
    # that the mean of fewer than hundreds is not normal
    images = 20 if scheme == "all" else 400
    share, plain = covered(SDES["ddpm"], num_levels, scheme, images, dims=4 if num_levels == 256 else 16)
    assert 0.91 <= share <= 0.99
    assert plain >= 0.91


@pytest.mark.parametrize("scheme", only((), SCHEMES))
def test_standard_errors_cover_the_truth_in_continuous_time(scheme):
    sde, pmf, dims = VP(), random_pmf(17), 8
    model, x0 = Pixels(sde, pmf), draw_pictures(pmf, REPETITIONS * 80, dims)
    bound = ContinuousBound(num_levels=17, steps_per_image=6, step_sampling=scheme)
    if scheme == "importance":
        bound.fit_steps(model, draw_pictures(pmf, 16, dims, seed=1), noise=NoiseStreams(6, range(16)))
    totals, stderrs = repeat(bound, model, x0, scheme)
    prior = prior_kl(torch.from_numpy(lattice(17))[:, None], sde, sde.t_max).numpy()
    # an exact denoiser's bound is the entropy and L_T, to 1e-4 bits
    assert 0.91 <= coverage(totals, dims * (entropy(pmf) + pmf @ prior), stderrs) <= 0.99


def test_importance_sampling_saves_most_of_the_network_calls():
    sde, pmf, dims, images = rescaled_ddpm(1000), random_pmf(17), 64, 400
    model, x0 = Pixels(sde, pmf), draw_pictures(pmf, images, dims)
    pilot = draw_pictures(pmf, 8, dims, seed=1)
    stderr = {}
    for scheme in SCHEMES:
        bound = bound_with(scheme, 9)
        if scheme == "importance":
            bound.fit_steps(model, pilot, noise=NoiseStreams(6, range(8)), num_knots=15)
        terms = bound(model, x0, noise=NoiseStreams(7, range(images)))
        assert terms.nfe == 10
        stderr[scheme] = math.sqrt(float(terms.sampling_variance.mean()) / images) / dims * BITS
        exact = exact_terms(sde, pmf)[0][1:].sum(0) @ pmf
        assert abs(float(terms.diffusion.mean()) / dims - exact) * BITS < 5 * max(stderr[scheme], 0.005)
    # a seventh of their standard error, so that they would need fifty times the calls
    assert stderr["importance"] < 0.2 * min(stderr[scheme] for scheme in SCHEMES[:3])


@pytest.mark.parametrize("num_steps", [2, 5, 49, 999])
def test_fitted_weights_are_the_terms_magnitudes(num_steps):
    knots = pilot_steps(num_steps, 24)
    assert torch.equal(knots, knots.unique())
    assert len(knots) <= 24
    assert int(knots[0]) == 0
    assert int(knots[-1]) == num_steps - 1
    # a power law is a straight line of logarithms
    law = 3 / (1 + torch.arange(num_steps, dtype=torch.float64))
    nats = law[knots] * torch.tensor([[0.6], [0.8], [1.0], [2.0]], dtype=torch.float64)
    fitted = interpolate_step_weights(knots, nats, num_steps)
    torch.testing.assert_close(fitted, law * math.sqrt((0.36 + 0.64 + 1 + 4) / 4), rtol=1e-9, atol=0)
    # no term at all in the pilot
    assert bool((interpolate_step_weights(knots, 0 * nats, num_steps) > 0).all())


@pytest.mark.parametrize("kind", [VariationalBound, ContinuousBound])
def test_fitting_is_of_the_terms_and_needs_no_batch_mates(kind):
    sde, pmf, dims = SDES["ddpm"], random_pmf(17), 16
    model, pilot = Pixels(sde, pmf), draw_pictures(pmf, 200, dims, seed=1)
    options = {"variance": "small"} if kind is VariationalBound else {}
    bound = kind(num_levels=17, steps_per_image=4, step_sampling="importance", **options)
    weights = bound.fit_steps(model, pilot, noise=NoiseStreams(8, range(200)))
    assert bound.step_weights is weights
    if kind is VariationalBound:
        means, spreads = exact_terms(sde, pmf)
        # of a sum over pixels, mean^2 + variance, the variance over levels and noise
        mean = dims * (means[1:] @ pmf)
        spread = dims * ((spreads + means**2)[1:] @ pmf - (means[1:] @ pmf) ** 2)
        expected = np.sqrt(mean**2 + spread)
        np.testing.assert_allclose(weights.numpy(), expected, rtol=0.2)
    x0 = draw_pictures(pmf, 5, dims)
    whole = bound(model, x0, noise=NoiseStreams(4, range(5)))
    for order in ([0], [4, 1]):
        part = bound(model, x0[order], noise=NoiseStreams(4, order))
        torch.testing.assert_close(part.total, whole.total[order], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(part.sampling_variance, whole.sampling_variance[order], rtol=1e-9, atol=1e-11)


def test_a_chain_too_short_to_choose_from_needs_no_fitting():
    sde, pmf = SDES["vp"], random_pmf(17)
    model, x0 = Pixels(sde, pmf), draw_pictures(pmf, 3, 4)
    for num_steps in (1, 2):
        bound = bound_with("importance", 3, num_steps=num_steps)
        weights = bound.fit_steps(model, x0, noise=NoiseStreams(0, range(3)))
        assert len(weights) == num_steps - 1
        full = VariationalBound(num_levels=17, num_steps=num_steps, variance="small")
        total = bound(model, x0, noise=NoiseStreams(1, range(3))).total
        assert torch.equal(total, full(model, x0, noise=NoiseStreams(1, range(3))).total)


@pytest.mark.parametrize("kind", [VariationalBound, ContinuousBound])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_sampling": "antithetic"}, "'antithetic'.*importance, low_discrepancy, stratified, uniform"),
        ({"step_sampling": "uniform", "step_weights": torch.ones(3)}, "step_weights are for .*got 'uniform'"),
        ({"step_sampling": "importance", "step_weights": torch.ones(3, 1)}, r"must be a vector .*\[3, 1\]"),
        ({"step_sampling": "importance", "step_weights": torch.tensor([1.0, -1.0])}, "none below 0"),
        ({"step_sampling": "importance", "step_weights": torch.zeros(3)}, "some above"),
        ({"step_sampling": "importance", "step_weights": torch.tensor([1.0, math.nan])}, "finite"),
        ({"step_sampling": "importance"}, "needs step_weights; call fit_steps"),
    ],
)
def test_bad_options_are_refused_in_one_line(kind, options, message):
    model, x0 = Pixels(SDES["ddpm"], random_pmf(17)), torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=message) as caught:
        kind(num_levels=17, steps_per_image=2, **options)(model, x0)
    assert "\n" not in str(caught.value)


def test_weights_of_another_chain_and_needless_fitting_are_refused():
    model, x0 = Pixels(SDES["ddpm"], random_pmf(17)), torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match="must have 49 entries, got 12; fit them on this grid"):
        bound_with("importance", 2, torch.ones(12))(model, x0)
    for bound in (bound_with("uniform", 2), ContinuousBound(num_levels=17)):
        with pytest.raises(ValueError, match="fit_steps is for step_sampling = 'importance'"):
            bound.fit_steps(model, x0)
