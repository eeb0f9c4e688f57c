"""Every term of the bound beside the papers' formulas in betas, in float64, float32 and, at the extremes, 50 digits."""

import mpmath
import numpy as np
import pytest
import torch
from published_bound import (
    NUM_PIXELS,
    ExactBound,
    Network,
    PublishedBound,
    cosine_betas,
    linear_betas,
    log_bin,
    mp_betas,
    tanh_log_bin,
)
from torch import nn

from likelihood import VariationalBound, decoder_nats, discretized_gaussian_log_prob, prior_kl, step_kl
from models import EpsParameterization, NetworkScoreModel
from sde_lib import NoiseStreams, Tabulated

LEVELS = 256
TABLES = {
    "linear": (1000, linear_betas, Tabulated.ddpm),
    "cosine": (4000, cosine_betas, Tabulated.improved_ddpm),
}
VARIANCES = ["small", "large", "learned"]
# the papers' sum of numbers near 1, for each pixel
PRIOR_ROUNDING = 4e-16 * NUM_PIXELS


class Backbone(nn.Module):
    """The oracle's network in torch, for images [B, 3, 2, 2]."""

    def __init__(self, network, dtype):
        super().__init__()
        self.num_steps = network.num_steps
        self.weights = {k: torch.from_numpy(v).to(dtype) for k, v in network.weights.items()}

    def forward(self, x, row):
        phase = row / self.num_steps
        time = torch.stack([torch.cos(3 * phase), torch.sin(5 * phase)], 1).to(x.dtype)
        hidden = torch.tanh(x.flatten(1) @ self.weights["pixels"] + time @ self.weights["time"])
        eps, v = 0.6 * x.flatten(1) + hidden @ self.weights["eps"], torch.tanh(hidden @ self.weights["fraction"])
        return torch.cat([eps.reshape(x.shape), v.reshape(x.shape)], 1)


def setting(name, dtype=torch.float64):
    num_steps, betas, table = TABLES[name]
    network = Network(num_steps)
    model = NetworkScoreModel(
        Backbone(network, dtype), table(num_steps=num_steps), EpsParameterization(), learned_variance=True
    )
    return num_steps, PublishedBound(betas(num_steps)), network, model


def pictures(count, seed=1):
    """Levels [B, 12] with both edges in every picture."""
    level = np.random.default_rng(seed).integers(0, LEVELS, (count, NUM_PIXELS))
    level[:, 0], level[:, 1] = 0, LEVELS - 1
    return level, 2 * level / (LEVELS - 1) - 1


def as_images(x, dtype=torch.float64):
    return torch.from_numpy(np.ascontiguousarray(x)).reshape(-1, 3, 2, 2).to(dtype)


# float64: 1 - alpha_bar keeps 11 digits near the data, where the papers' formulas cancel. float32: x_t and eps are
# rounded at 2^-24 and the predicted x0 with them, beside an error of it of about sigma, 3e-3 at least.
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-9), (torch.float32, 3e-4)])
@pytest.mark.parametrize("name", TABLES)
def test_every_term_is_the_papers(name, dtype, rtol):
    num_steps, published, network, model = setting(name, dtype)
    t = np.arange(2, num_steps + 1)
    _, x0 = pictures(len(t))
    eps = np.random.default_rng(2).standard_normal(x0.shape)
    x_t = published.noisy(x0, t, eps)
    output, v = network(x_t, t)
    images = as_images(x0, dtype)
    times = torch.from_numpy(t).double() / num_steps
    with torch.no_grad():
        prediction = model(model.sde.perturb(images, times, as_images(eps, dtype)), times)
    for variance in VARIANCES:
        ours = step_kl(variance, prediction, images, model.sde, times - 1 / num_steps, times).numpy()
        np.testing.assert_allclose(ours, published.step(variance, x0, x_t, t, output, v), rtol=rtol, err_msg=variance)
    np.testing.assert_allclose(prior_kl(images, model.sde).numpy(), published.prior(x0), rtol=rtol, atol=PRIOR_ROUNDING)

    one = np.ones_like(t)
    x_1 = published.noisy(x0, one, eps)
    output, v = network(x_1, one)
    first = torch.full((len(t),), 1 / num_steps, dtype=torch.float64)
    with torch.no_grad():
        prediction = model(model.sde.perturb(images, first, as_images(eps, dtype)), first)
    for variance in VARIANCES:
        ours = decoder_nats(variance, prediction, images, model.sde, first, 2 * first, num_levels=LEVELS).numpy()
        expected = published.decoder(variance, x0, x_1, output, v, LEVELS).sum(1)
        np.testing.assert_allclose(ours, expected, rtol=rtol, err_msg=variance)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("name", TABLES)
def test_the_estimator_gives_these_terms(name, variance):
    num_steps, published, network, model = setting(name)
    count, draws = 64, 40
    _, x0 = pictures(count)
    bound = VariationalBound(num_levels=LEVELS, variance=variance, steps_per_image=draws)
    terms = bound(model, as_images(x0), noise=NoiseStreams(3, range(count)))
    # the streams' draws in the order of the bound's: the decoder's, the steps', then each step's
    noise = NoiseStreams(3, range(count))
    eps = noise.normal((3, 2, 2)).double().numpy().reshape(count, -1)
    one = np.ones(count, dtype=int)
    x_1 = published.noisy(x0, one, eps)
    expected = published.decoder(variance, x0, x_1, *network(x_1, one), LEVELS).sum(1)
    np.testing.assert_allclose(terms.reconstruction.numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(terms.prior.numpy(), published.prior(x0), rtol=1e-9, atol=PRIOR_ROUNDING)
    noise.uniform((draws,))
    for k in range(draws):
        # index 0 is the step from t = 2 to t = 1
        t = terms.step_index[:, k].numpy() + 2
        x_t = published.noisy(x0, t, noise.normal((3, 2, 2)).double().numpy().reshape(count, -1))
        expected = published.step(variance, x0, x_t, t, *network(x_t, t))
        np.testing.assert_allclose(terms.step_nats[:, k].numpy(), expected, rtol=1e-9)
    assert len(terms.step_index.unique()) > 0.4 * min(num_steps, count * draws)


@pytest.mark.parametrize("name", TABLES)
def test_the_extremes_have_ten_digits(name):
    num_steps, published, network, model = setting(name)
    level, x0 = pictures(1)
    eps = np.random.default_rng(4).standard_normal(x0.shape)
    images = as_images(x0)
    pixels = [0, 1, 2, 3]  # the first two are -1 and 1
    with mpmath.workdps(50), torch.no_grad():
        exact = ExactBound(mp_betas(name, num_steps))
        truth = sum(float(exact.prior(mpmath.mpf(float(x)))) for x in x0[0])
        # alpha_bar_T^2 / 4 is what is left of log sigma, 1e-16 beside roundings in 1
        assert float(prior_kl(images, model.sde)) == pytest.approx(truth, rel=1e-10, abs=1e-15 * NUM_PIXELS)
        for t in (1, 2, 3, 10, num_steps // 2, num_steps - 1, num_steps):
            step, time = np.array([t]), torch.tensor([t / num_steps], dtype=torch.float64)
            x_t = published.noisy(x0, step, eps)
            # a network that is far off, so that the decoder's tails are met
            for scale in (1.0, 30.0):
                output, v = network(x_t, step)
                raw = torch.cat([as_images(scale * output), as_images(v)], 1)
                told = NetworkScoreModel(Constant(raw), model.sde, EpsParameterization(), learned_variance=True)
                prediction = told(as_images(x_t), time)
                for variance in VARIANCES:
                    if t == 1:
                        ours = decoder_nats(variance, prediction, images, model.sde, time, 2 * time, num_levels=LEVELS)
                        values = [
                            exact.decoder(variance, int(level[0, p]), x_t[0, p], scale * output[0, p], v[0, p], LEVELS)
                            for p in range(NUM_PIXELS)
                        ]
                    else:
                        ours = step_kl(variance, prediction, images, model.sde, time - 1 / num_steps, time)
                        values = [
                            exact.step(variance, x0[0, p], x_t[0, p], t, scale * output[0, p], v[0, p])
                            for p in range(NUM_PIXELS)
                        ]
                    truth = float(sum(values))
                    assert float(ours) == pytest.approx(truth, rel=1e-10), (t, scale, variance)
    assert x0[0, pixels[0]] == -1
    assert x0[0, pixels[1]] == 1


class Constant(nn.Module):
    """A network that has been told its answer."""

    def __init__(self, raw):
        super().__init__()
        self.raw = raw

    def forward(self, x, row):
        return self.raw


@pytest.mark.parametrize("first_beta", [1e-4, 1e-7, 1e-10])
def test_tiny_variances_have_ten_digits(first_beta):
    num_steps = 20
    betas = np.geomspace(first_beta, 0.3, num_steps)
    sde = Tabulated.from_betas(betas)
    level, x0 = pictures(1)
    images, rng = as_images(x0), np.random.default_rng(5)
    output, v, eps = rng.standard_normal(x0.shape), rng.uniform(-1, 1, x0.shape), rng.standard_normal(x0.shape)
    raw = torch.cat([as_images(output), as_images(v)], 1)
    told = NetworkScoreModel(Constant(raw), sde, EpsParameterization(), learned_variance=True)
    with mpmath.workdps(50), torch.no_grad():
        exact = ExactBound([mpmath.mpf(float(beta)) for beta in betas])
        for t in (1, 2, 3):
            time = torch.tensor([t / num_steps], dtype=torch.float64)
            x_t = sde.perturb(images, time, as_images(eps))
            prediction, noisy = told(x_t, time), x_t.flatten().numpy()
            for variance in VARIANCES:
                if t == 1:
                    ours = decoder_nats(variance, prediction, images, sde, time, 2 * time, num_levels=LEVELS)
                    values = [
                        exact.decoder(variance, int(level[0, p]), noisy[p], output[0, p], v[0, p], LEVELS)
                        for p in range(NUM_PIXELS)
                    ]
                else:
                    ours = step_kl(variance, prediction, images, sde, time - 1 / num_steps, time)
                    values = [
                        exact.step(variance, x0[0, p], noisy[p], t, output[0, p], v[0, p]) for p in range(NUM_PIXELS)
                    ]
                # x_t itself is a float64 number near 1, so that its noise, sigma eps, keeps 1e-16 / sigma
                limit = max(1e-10, 1e-15 / np.sqrt(first_beta))
                assert float(ours) == pytest.approx(float(sum(values)), rel=limit, abs=1e-300), (t, variance)


def errors_of_the_tanh(widths, offsets):
    """Error of the published approximation in nats: bins of so many standard deviations, means so many of them off."""
    width, offset = np.meshgrid(widths, offsets)
    std = 2 / (LEVELS - 1) / width
    x = np.full_like(std, 2 * 100 / (LEVELS - 1) - 1)
    mean = x + offset * std
    exact = log_bin(x, mean, std, LEVELS)
    ours = discretized_gaussian_log_prob(
        torch.from_numpy(x), torch.from_numpy(mean), torch.from_numpy(np.log(std)), num_levels=LEVELS
    )
    np.testing.assert_allclose(ours.numpy(), exact, rtol=1e-9, atol=1e-12)
    return tanh_log_bin(x, mean, std, LEVELS) - exact


def test_the_size_of_the_published_approximations_error():
    """DDPM's decoder on 256 levels: bins are 2/255 wide, 1.062 times sqrt(beta_tilde_2)."""
    width = 2 / 255 / np.sqrt(PublishedBound(linear_betas(1000)).beta_tilde[2])
    assert width == pytest.approx(1.0621, abs=1e-4)
    # within so many standard deviations of the pixel, it is wrong by up to so many nats a pixel
    for reach, largest in ((1, 5.6e-4), (2, 5.05e-3), (3, 0.0186), (4, 0.258), (5, 1.05)):
        errors = errors_of_the_tanh([width], np.linspace(-reach, reach, 2001))
        assert np.abs(errors).max() == pytest.approx(largest, rel=0.01), reach
    # bins far narrower than that: 1.9e-3 at 1.5 standard deviations
    assert np.abs(errors_of_the_tanh([0.3], np.linspace(-1.5, 1.5, 2001))).max() == pytest.approx(1.9e-3, rel=0.02)
    # a decoder whose mean is off by its own standard deviation on average: the errors cancel, all but 3e-5
    offsets = np.linspace(-9, 9, 3601)
    density = np.exp(-0.5 * offsets**2) / np.exp(-0.5 * offsets**2).sum()
    assert density @ errors_of_the_tanh([width], offsets)[:, 0] == pytest.approx(2.6e-5, rel=0.05)
    # the clamp: no pixel costs more than 27.6 nats, however wrong the network is
    clamped = errors_of_the_tanh([width], [8, 10, 20, 40])[:, 0]
    np.testing.assert_allclose(clamped, [3.0, 20.2, 165.7, 755.7], rtol=0.1)
    x, mean = np.array([0.0]), np.array([1.0])
    assert -tanh_log_bin(x, mean, 0.0074, LEVELS) == pytest.approx(-np.log(1e-12))
    assert -log_bin(x, mean, 0.0074, LEVELS) == pytest.approx(0.5 * ((1 - 1 / 255) / 0.0074) ** 2, rel=1e-3)
