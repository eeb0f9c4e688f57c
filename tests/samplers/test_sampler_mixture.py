"""With exact scores the samplers reproduce a Gaussian mixture: its mean, its covariance and its skewness."""

import pytest
import torch
from sampler_oracles import SDES, Stacked, WithFraction, mixture
from thinning import one_each

from samplers import AncestralSampler, DDIMSampler
from sde_lib import NoiseStreams

KINDS = ["small", "large", "learned", "ddim_0", "ddim_half", "ddim_1"]
ETA = {"ddim_0": 0.0, "ddim_half": 0.5, "ddim_1": 1.0}


def statistics(name, kind, num_steps, points, seed):
    """Estimates of mean, covariance and third moment, minus the truth, and their standard errors."""
    sde = SDES[name]
    exact = mixture(sde)
    model = Stacked(exact, 2)
    if kind in ETA:
        sampler = DDIMSampler(eta=ETA[kind], num_steps=num_steps, grid="log_snr")
    else:
        sampler = AncestralSampler(variance=kind, num_steps=num_steps, grid="log_snr")
        model = WithFraction(model, 0.5) if kind == "learned" else model
    noise = NoiseStreams(seed, range(2))
    x0 = sampler.sample(model, sde.prior_sample((points,), noise).double(), noise=noise).x0.reshape(-1, 2)
    mean, cov = exact.mean_and_cov()
    offset = x0 - mean
    # the third moment tells unequal modes from equal ones
    third = third_moment(exact)
    values = torch.cat(
        [
            offset,
            offset[:, :1] * offset - cov[0],
            offset[:, 1:].square() - cov[1, 1],
            offset[:, :1] ** 3 - third,
        ],
        1,
    )
    return values.mean(0), values.std(0) / len(values) ** 0.5


def third_moment(exact):
    """E[(x - mean)^3] of the first coordinate of the mixture."""
    mean, _ = exact.mean_and_cov()
    shift = exact.means[:, 0] - mean[0]
    var = torch.einsum("kde,ke,kfe->kdf", exact.eigenvectors, exact.eigenvalues, exact.eigenvectors)[:, 0, 0]
    return (exact.log_weights.exp() * (shift**3 + 3 * shift * var)).sum()


def check(name, kind, num_steps, points):
    coarse, coarse_stderr = statistics(name, kind, num_steps, points, seed=0)
    fine, fine_stderr = statistics(name, kind, 2 * num_steps, points, seed=1)
    # All are first-order samplers, so that halving the steps halves the bias, and coarse - fine measures what is left
    # of it at fine. 1.5 times that leaves room for the next order; the rest is Monte-Carlo error, at 5 standard errors.
    noise = 5 * ((2.5 * fine_stderr) ** 2 + (1.5 * coarse_stderr) ** 2).sqrt()
    assert bool((fine.abs() <= 1.5 * (coarse - fine).abs() + noise).all()), (fine, coarse, noise)


@pytest.mark.parametrize(("kind", "name"), one_each(KINDS, list(SDES)))
def test_mixture_is_reproduced(name, kind):
    check(name, kind, num_steps=25, points=12_000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SDES)
def test_mixture_is_reproduced_closely(name, kind):
    check(name, kind, num_steps=80, points=60_000)
