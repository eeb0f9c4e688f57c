"""Prediction: eps, x0, v and score are four names for one answer."""

import pytest
import torch

from models import Prediction


def triple(seed=0, *, preserving=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 6, 3, 4, 4, generator=generator, dtype=torch.float64)
    alpha = 0.05 + 0.95 * torch.rand(6, generator=generator, dtype=torch.float64)
    sigma = (1 - alpha**2).sqrt() if preserving else 5 * torch.rand(6, generator=generator, dtype=torch.float64) + 0.01
    x_t = alpha.reshape(-1, 1, 1, 1) * x0 + sigma.reshape(-1, 1, 1, 1) * eps
    return x0.to(dtype), eps.to(dtype), x_t.to(dtype), alpha, sigma


def column(value):
    return value.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("preserving", [True, False])
def test_every_constructor_gives_the_same_answer(preserving):
    x0, eps, x_t, alpha, sigma = triple(preserving=preserving)
    targets = {
        "from_eps": eps,
        "from_x0": x0,
        "from_v": column(alpha) * eps - column(sigma) * x0,
        "from_score": -eps / column(sigma),
    }
    fraction = torch.rand(x0.shape, dtype=torch.float64)
    for name, target in targets.items():
        prediction = getattr(Prediction, name)(x_t, target, alpha=alpha, sigma=sigma, variance_fraction=fraction)
        torch.testing.assert_close(prediction.x0, x0, rtol=1e-12, atol=1e-11)
        torch.testing.assert_close(prediction.eps, eps, rtol=1e-12, atol=1e-11)
        torch.testing.assert_close(prediction.score, -eps / column(sigma), rtol=1e-12, atol=1e-9)
        assert torch.equal(prediction.sigma, sigma)
        assert torch.equal(prediction.variance_fraction, fraction)


@pytest.mark.parametrize("name", ["from_eps", "from_x0", "from_v", "from_score"])
def test_any_answer_adds_up_to_x_t(name):
    """Also a wrong network's: x_t = alpha x0 + sigma eps is what samplers rely on."""
    _, _, x_t, alpha, sigma = triple(1)
    target = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    prediction = getattr(Prediction, name)(x_t, target, alpha=alpha, sigma=sigma)
    torch.testing.assert_close(column(alpha) * prediction.x0 + column(sigma) * prediction.eps, x_t)
    assert prediction.variance_fraction is None


def test_v_is_the_rotated_pair_of_salimans_and_ho():
    """With alpha = cos phi and sigma = sin phi: x0 = cos(phi) x_t - sin(phi) v (2022, Appendix D)."""
    _, _, x_t, alpha, sigma = triple(3, preserving=True)
    v = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    phi = column(torch.atan2(sigma, alpha))
    prediction = Prediction.from_v(x_t, v, alpha=alpha, sigma=sigma)
    torch.testing.assert_close(prediction.x0, phi.cos() * x_t - phi.sin() * v)
    torch.testing.assert_close(prediction.eps, phi.sin() * x_t + phi.cos() * v)


def test_v_needs_neither_signal_nor_noise():
    x_t, v = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    prediction = Prediction.from_v(x_t, v, alpha=ends, sigma=1 - ends)
    assert torch.equal(prediction.x0, torch.stack([-v[0], x_t[1]]))
    assert torch.equal(prediction.eps, torch.stack([x_t[0], v[1]]))


def test_the_answer_has_the_dtype_of_x_t():
    x0, eps, x_t, alpha, sigma = triple(6, dtype=torch.float32)
    for name, target in [("from_eps", eps), ("from_x0", x0), ("from_v", eps), ("from_score", eps)]:
        prediction = getattr(Prediction, name)(x_t, target, alpha=alpha, sigma=sigma)
        assert prediction.x0.dtype == prediction.eps.dtype == prediction.score.dtype == torch.float32
        assert prediction.sigma.dtype == torch.float64
