"""The variational bound with exact denoisers: each term its own integral, their sum above the entropy and near it."""

import math

import numpy as np
import pytest
import torch
from likelihood_oracles import (
    FRACTION,
    SDES,
    Pixels,
    entropy,
    every_level,
    lattice,
    mix,
    quadrature_terms,
    random_pmf,
    rescaled_ddpm,
    reverse_vars,
    weighted,
)
from scipy.special import ndtr
from thinning import only
from torch import nn

from likelihood import VariationalBound, available_likelihoods, make_likelihood, prior_kl
from models import ClippedScoreModel, EpsParameterization, NetworkScoreModel
from sde_lib import VE, VP, NoiseStreams, Tabulated

BITS = 1 / math.log(2)


def bound_terms(bound, sde, pmf, *, copies=4, dims=64, seed=0, dtype=torch.float64):
    x0 = every_level(len(pmf), copies, dims).to(dtype)
    return bound(Pixels(sde, pmf), x0, noise=NoiseStreams(seed, range(len(x0))))


def exact_terms(sde, pmf, variance, num_steps=None):
    """Mean and variance of every term L_0, L_1, ... of one pixel by quadrature, [n, K] each."""
    times = VariationalBound(num_levels=len(pmf), num_steps=num_steps).noisy_times(sde)
    return quadrature_terms(sde.alpha(times).numpy(), sde.sigma(times).numpy(), pmf, variance)


def exact_total(sde, pmf, variance, num_steps=None):
    """The bound in nats per pixel, by quadrature."""
    prior = prior_kl(torch.from_numpy(lattice(len(pmf)))[:, None], sde, sde.t_max).numpy()
    return pmf @ (prior + exact_terms(sde, pmf, variance, num_steps)[0].sum(0))


@pytest.mark.parametrize("name", only(("ve",), SDES))
def test_every_term_is_its_own_integral(name):
    sde, pmf, copies, dims = SDES[name], random_pmf(17), 4, 64
    for variance in FRACTION:
        bound = VariationalBound(num_levels=17, num_steps=50, variance=variance)
        terms = bound_terms(bound, sde, pmf, copies=copies, dims=dims)
        ours = torch.cat([terms.reconstruction[:, None], terms.step_nats], 1)
        means, variances = exact_terms(sde, pmf, variance, num_steps=50)
        assert ours.shape[1] == len(means)
        # the exact variance, as a sample of 256 draws a level may miss the rare eps that a term comes from; 5 standard
        # errors as there are 900 terms in all, and what cancels in the KL of equal Gaussians
        stderr = np.sqrt(variances @ pmf**2 / (copies * dims))
        mean = np.array([weighted(term, pmf, dims)[0] for term in ours.unbind(1)])
        assert (np.abs(mean - means @ pmf) < 5 * stderr + 1e-12).all()
        total = weighted(terms.diffusion, pmf, dims)[0]
        assert abs(total - means[1:].sum(0) @ pmf) < 5 * np.sqrt((stderr[1:] ** 2).sum())


@pytest.mark.parametrize("variance", FRACTION)
@pytest.mark.parametrize("name", SDES)
def test_decoder_is_as_wide_as_the_variance_says(name, variance):
    # a grid that stops at t = 0.3, where much noise is left for the decoder: on the grids above L_0 is next to nothing
    sde, pmf = SDES[name], random_pmf(17)
    bound = VariationalBound(num_levels=17, grid=torch.tensor([1.0, 0.6, 0.3]) * sde.t_max, variance=variance)
    times = bound.noisy_times(sde)
    terms = bound_terms(bound, sde, pmf, copies=2, dims=8)
    # the decoder's draw is the stream's first
    x0, first = every_level(17, 2, 8), times[0].expand(34)
    x_t = sde.perturb(x0, first, NoiseStreams(0, range(34)).normal_like(x0))
    (alpha, sigma), (alpha_t, sigma_t) = ((float(sde.alpha(t)), float(sde.sigma(t))) for t in times[:2])
    # as in the published code, the chain of the large variance is decoded with the small one
    kind = "small" if variance == "large" else variance
    std = math.sqrt(mix(kind, reverse_vars(alpha, sigma, alpha_t, sigma_t)[0], sigma**2))
    offset = (x0 - Pixels(sde, pmf)(x_t, first).x0).numpy()
    low = np.where(x0 == -1, -np.inf, (offset - 1 / 16) / std)
    high = np.where(x0 == 1, np.inf, (offset + 1 / 16) / std)
    expected = -np.log(ndtr(high) - ndtr(low)).sum(1)
    # a difference of Phi near 1 keeps 1e-16 / mass
    np.testing.assert_allclose(terms.reconstruction.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("num_steps", only((50,), [1, 2, 10, 50, 200]))
@pytest.mark.parametrize("variance", FRACTION)
@pytest.mark.parametrize("name", SDES)
def test_bound_is_above_the_entropy(name, variance, num_steps):
    sde = rescaled_ddpm(num_steps) if name == "ddpm" and num_steps > 1 else SDES[name]
    for num_levels in (2, 17):
        pmf = random_pmf(num_levels, seed=1)
        bound = VariationalBound(num_levels=num_levels, num_steps=num_steps, variance=variance, steps_per_image=10)
        mean, stderr = weighted(bound_terms(bound, sde, pmf, dims=16).total, pmf, 16)
        assert mean > entropy(pmf) - 4 * stderr
        if num_steps <= 50:
            # without Monte-Carlo error: up to the truncation of the integrals at 10 sigma
            assert exact_total(sde, pmf, variance, num_steps) > entropy(pmf) - 1e-9


@pytest.mark.parametrize("variance", FRACTION)
@pytest.mark.parametrize("num_steps", only((1,), [1, 2, 10, 50]))
@pytest.mark.parametrize("name", ["subvp", "ve", "ddpm"])
def test_bound_of_256_levels_is_above_the_entropy(name, num_steps, variance):
    sde = rescaled_ddpm(num_steps) if name == "ddpm" and num_steps > 1 else SDES[name]
    pmf = random_pmf(256, seed=2)
    bound = VariationalBound(num_levels=256, num_steps=num_steps, variance=variance, steps_per_image=4)
    mean, stderr = weighted(bound_terms(bound, sde, pmf, copies=2, dims=4).total, pmf, 4)
    assert mean > entropy(pmf) - 4 * stderr


# the chain's steps grow finer, so that its Gaussians come nearer to the true reverse transitions
# and the bound nearer to the entropy; the values are the quadrature's, on record
@pytest.mark.parametrize(
    ("num_steps", "gap"), [(50, 2.5793), (200, 1.2357), pytest.param(1000, 0.2233, marks=pytest.mark.slow)]
)
def test_bound_falls_towards_the_entropy(num_steps, gap):
    pmf, dims, sde = random_pmf(17), 32, rescaled_ddpm(num_steps)
    assert (exact_total(sde, pmf, "small") - entropy(pmf)) * BITS == pytest.approx(gap, abs=1e-4)
    bound = VariationalBound(num_levels=17, steps_per_image=50, variance="small")
    mean, stderr = weighted(bound_terms(bound, sde, pmf, dims=dims).total, pmf, dims)
    assert abs((mean - entropy(pmf)) * BITS - gap) < 4 * stderr * BITS


@pytest.mark.parametrize("steps_per_image", [1, 3, 7, 48])
def test_evaluating_some_steps_is_unbiased(steps_per_image):
    sde, pmf, level, images, dims = SDES["ddpm"], random_pmf(17), 4, 800, 4
    bound = VariationalBound(num_levels=17, steps_per_image=steps_per_image, variance="small")
    x0 = torch.full((images, dims), float(lattice(17)[level]), dtype=torch.float64)
    terms = bound(Pixels(sde, pmf), x0, noise=NoiseStreams(3, range(images)))
    values = terms.diffusion.numpy() / dims
    exact = exact_terms(sde, pmf, "small")[0][1:, level].sum()
    assert abs(values.mean() - exact) < 4 * values.std(ddof=1) / math.sqrt(images)
    # and so is each step's share: the expected count of step i is K / n
    counts = np.bincount(terms.step_index.flatten().numpy(), minlength=49)
    expected = images * steps_per_image / 49
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)
    assert len(counts) == 49
    # stratified: index j lies in the j-th of K equal parts of the chain
    edges = np.arange(steps_per_image + 1) / steps_per_image * 49
    index = terms.step_index.numpy()
    assert (index >= np.floor(edges[:-1])).all()
    assert (index <= edges[1:]).all()


def test_as_many_steps_as_there_are_is_the_full_sum():
    sde, pmf = SDES["ddpm"], random_pmf(17)
    full = bound_terms(VariationalBound(num_levels=17), sde, pmf, copies=1, dims=2)
    assert torch.equal(full.step_index, torch.arange(49).expand(17, -1))
    for steps_per_image in (49, 50, 10_000):
        terms = bound_terms(
            VariationalBound(num_levels=17, steps_per_image=steps_per_image), sde, pmf, copies=1, dims=2
        )
        assert torch.equal(terms.total, full.total)
        assert terms.nfe == full.nfe


@pytest.mark.parametrize("steps_per_image", [None, 5])
@pytest.mark.parametrize("variance", FRACTION)
def test_terms_add_up_and_depend_on_no_batch_mate(variance, steps_per_image):
    sde, pmf = SDES["ddpm"], random_pmf(17)
    bound = VariationalBound(num_levels=17, variance=variance, steps_per_image=steps_per_image)
    model = Pixels(sde, pmf)
    x0 = every_level(17, 1, 6)[[3, 0, 16, 8, 5]]
    together = bound(model, x0, noise=NoiseStreams(4, range(5)))
    scale = 1 if steps_per_image is None else 49 / steps_per_image
    torch.testing.assert_close(together.diffusion, scale * together.step_nats.sum(1), rtol=1e-14, atol=0)
    assert torch.equal(together.total, together.prior + together.diffusion + together.reconstruction)
    torch.testing.assert_close(together.bits_per_dim, together.total / 6 * BITS, rtol=1e-14, atol=0)
    assert torch.equal(together.prior, prior_kl(x0, sde))
    assert together.num_dims == 6
    for order in ([0], [4, 1], [2, 3, 0]):
        part = bound(model, x0[order], noise=NoiseStreams(4, order))
        # matrix products may round differently by batch size
        for name in ("prior", "diffusion", "reconstruction", "step_nats", "step_index"):
            torch.testing.assert_close(getattr(part, name), getattr(together, name)[order], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("fraction", "fixed"), [(0.0, "small"), (1.0, "large")])
@pytest.mark.parametrize("num_steps", [1, 20])
@pytest.mark.parametrize("name", ["vp", "ve", "ncsn"])
def test_learned_variance_ends_at_small_and_large(name, num_steps, fraction, fixed):
    pmf = random_pmf(17)
    x0 = every_level(17, 1, 3)
    learned, same, small = (
        VariationalBound(num_levels=17, num_steps=num_steps, variance=variance)(
            Pixels(SDES[name], pmf, fraction=fraction), x0, noise=NoiseStreams(5, range(17))
        )
        for variance in ("learned", fixed, "small")
    )
    torch.testing.assert_close(learned.step_nats, same.step_nats, rtol=1e-11, atol=1e-11)
    # "large" decodes with the small variance, as the published code does
    torch.testing.assert_close(small.reconstruction, same.reconstruction, rtol=1e-11, atol=1e-11)
    if fixed == "small":
        torch.testing.assert_close(learned.total, same.total, rtol=1e-11, atol=1e-11)


class Count(nn.Module):
    """A network that counts its own calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x, c_noise, cond=None):
        self.calls += 1
        return 0.5 * x


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(
    ("sde", "num_steps", "steps_per_image", "nfe"),
    [
        (VP(), 12, None, 12),
        (VP(), 1, None, 1),
        (VP(), 1, 3, 1),
        (VP(), 12, 4, 5),
        (VP(), 12, 11, 12),
        (Tabulated.ddpm(num_steps=20), None, None, 20),
        (Tabulated.ddpm(num_steps=20), None, 1, 2),
        # t = 0 has noise: one more time to decode from
        (VE(), 12, None, 13),
        (VE(), 12, 4, 5),
    ],
)
def test_nfe_is_what_the_network_counts(sde, num_steps, steps_per_image, nfe, wrap):
    network = Count()
    model = NetworkScoreModel(network, sde, EpsParameterization())
    model = ClippedScoreModel(model) if wrap else model
    bound = VariationalBound(num_levels=2, num_steps=num_steps, steps_per_image=steps_per_image)
    terms = bound(model, torch.ones(3, 1, 2, 2))
    assert terms.nfe == network.calls == nfe
    assert not terms.total.requires_grad


def test_one_step_is_decoded_from_the_prior():
    # t_1 = t_n = 1: no step between, and a decoder as wide as the noise
    pmf = random_pmf(17)
    for sde in (SDES["vp"], Tabulated.ddpm()):
        terms = bound_terms(VariationalBound(num_levels=17, num_steps=1), sde, pmf, copies=2, dims=32)
        assert torch.equal(terms.diffusion, torch.zeros(34, dtype=torch.float64))
        assert terms.step_nats.shape == (34, 0)
        mean, stderr = weighted(terms.total, pmf, 32)
        assert abs(mean - exact_total(sde, pmf, "small", 1)) < 5 * stderr + 1e-9


def test_float32_data_give_the_bound_to_their_rounding():
    sde, pmf = rescaled_ddpm(50), random_pmf(17)
    narrow, wide = (
        bound_terms(VariationalBound(num_levels=17), sde, pmf, copies=1, dims=8, dtype=dtype)
        for dtype in (torch.float32, torch.float64)
    )
    assert narrow.total.dtype == torch.float64
    # x_t rounded at 2^-24 moves the posterior mean by alpha / sigma^2 2^-24 Var[x0 | x_t], and a term by as much of it
    torch.testing.assert_close(narrow.total, wide.total, rtol=1e-4, atol=0)


def test_grids_by_name_and_by_times_agree():
    sde, pmf = SDES["ve"], random_pmf(17)
    named = VariationalBound(num_levels=17, num_steps=8, grid="log_snr")
    times = torch.linspace(1, 0, 9, dtype=torch.float64)
    totals = [
        bound_terms(bound, sde, pmf, copies=1, dims=2).total
        for bound in (named, VariationalBound(num_levels=17, grid=times))
    ]
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: make_likelihood("vbl", num_levels=2), ["'vbl'", "did you mean 'vlb'"]),
        (lambda: make_likelihood("vlb"), ["num_levels"]),
        (lambda: make_likelihood("vlb", num_levels=2, nmu_steps=3), ["'nmu_steps'", "'num_steps'", "steps_per_image"]),
        (lambda: VariationalBound(num_levels=1), ["num_levels", "at least 2"]),
        (lambda: VariationalBound(num_levels=2, num_steps=0), ["num_steps", "got 0"]),
        (lambda: VariationalBound(num_levels=2, steps_per_image=0), ["steps_per_image", "got 0"]),
        (lambda: VariationalBound(num_levels=2, variance="tiny"), ["'tiny'", "large, learned, small"]),
        (
            lambda: VariationalBound(num_levels=2, num_steps=3, grid=torch.tensor([1.0, 0.5, 0.0])),
            ["2 steps", "num_steps = 3"],
        ),
        (lambda: VariationalBound(num_levels=2, grid=torch.tensor([0.0, 1.0])), ["fall"]),
        (
            lambda: VariationalBound(num_levels=256)(Pixels(VP(), random_pmf(2)), torch.zeros(1, 2)),
            ["256 levels"],
        ),
        (
            lambda: VariationalBound(num_levels=2, variance="learned", num_steps=3)(
                NetworkScoreModel(Count(), VP(), EpsParameterization()), torch.ones(1, 2)
            ),
            ["'learned' needs a model"],
        ),
        (
            lambda: VariationalBound(num_levels=2)(
                Pixels(VP(), random_pmf(2)), torch.ones(3, 2), noise=NoiseStreams(0, range(2))
            ),
            ["2 streams", "batch of 3"],
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(build, words):
    with pytest.raises(ValueError) as caught:
        build()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_bound_is_registered():
    assert "vlb" in available_likelihoods()
    assert isinstance(make_likelihood("vlb", num_levels=2), VariationalBound)
