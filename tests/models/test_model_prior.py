"""A prior of jointly Gaussian embeddings: exact by the oracle, drawn from by samplers, and learned."""

import pytest
import torch
from torch import Tensor

from models import Condition, LinearGaussianScoreModel, NetworkScoreModel, X0Parameterization
from models.backbones import MLP
from samplers import make_sampler
from sde_lib import VP, make_sde
from training import fit, make_loss

SIZE = 3  # numbers of either embedding


def joint(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and covariance of (z_i, z_t), embeddings of an image and of its caption, float64."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(2 * SIZE, 2 * SIZE, generator=generator, dtype=torch.float64)
    cov = root @ root.mT / SIZE + 0.1 * torch.eye(2 * SIZE)
    scale = cov.diagonal().sqrt()
    return 0.3 * torch.randn(2 * SIZE, generator=generator, dtype=torch.float64), cov / scale / scale[:, None]


def conditional(mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W, b and C of z_i | z_t ~ N(W z_t + b, C)."""
    of_image, both, of_text = cov[:SIZE, :SIZE], cov[:SIZE, SIZE:], cov[SIZE:, SIZE:]
    weight = torch.linalg.solve(of_text, both.mT).mT
    return weight, mean[:SIZE] - weight @ mean[SIZE:], of_image - weight @ both.mT


def oracle(sde, mean: Tensor, cov: Tensor) -> LinearGaussianScoreModel:
    weight, bias, left = conditional(mean, cov)
    return LinearGaussianScoreModel(
        sde, weight=weight, bias=bias, cov=left, cond_mean=mean[SIZE:], cond_cov=cov[SIZE:, SIZE:]
    )


@pytest.mark.parametrize("sde_name", ["vp", "ve", "subvp"])
def test_the_posterior_mean_is_that_of_the_joint_gaussian(sde_name: str):
    sde, (mean, cov) = make_sde(sde_name), joint()
    z_t = torch.randn(5, SIZE, generator=torch.Generator().manual_seed(1)).double()
    x_t = torch.randn(5, SIZE, generator=torch.Generator().manual_seed(2)).double()
    t = torch.tensor([0.01, 0.2, 0.5, 0.8, 1.0], dtype=torch.float64)
    found = oracle(sde, mean, cov)(x_t, t, cond=Condition(values=z_t)).x0
    alone = oracle(sde, mean, cov)(x_t, t).x0
    for k in range(5):
        # (z_i, x_t, z_t) is jointly Gaussian, of which two parts are given
        alpha, sigma = float(sde.alpha(t[k])), float(sde.sigma(t[k]))
        eye, zero = torch.eye(SIZE).double(), torch.zeros(SIZE, SIZE).double()
        seen = torch.cat([torch.cat([alpha * eye, zero], 1), torch.cat([zero, eye], 1)])
        noise = torch.block_diag(sigma**2 * eye, zero)
        given = torch.cat([x_t[k], z_t[k]])
        for rows, answer in ((slice(None), found), (slice(SIZE), alone)):
            part, power = seen[rows], (seen @ cov @ seen.mT + noise)[rows, rows]
            textbook = mean[:SIZE] + cov[:SIZE] @ part.mT @ torch.linalg.solve(power, given[rows] - part @ mean)
            torch.testing.assert_close(answer[k], textbook, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["dpm_solver_pp", "heun"])
def test_a_sampler_draws_the_conditional_mean_and_covariance(name: str):
    mean, cov = joint()
    weight, bias, left = conditional(mean, cov)
    z_t = torch.tensor([[0.7, -1.2, 0.4]]).double()
    expected, sde = weight @ z_t[0] + bias, VP()
    # of a Gaussian a sampler without noise is affine, x0 = A x_T + c, so that four samples say its law; a start around
    # 0 in place of alpha(1) E[z_i | z_t] would move the mean by alpha(1) = 0.7 %
    start = torch.cat([torch.zeros(1, SIZE), torch.eye(SIZE)]).double()
    x_T = start + float(sde.alpha(torch.ones(()).double())) * expected
    sampler = make_sampler(name, num_steps=100, grid="log_snr")
    x0 = sampler.sample(oracle(sde, mean, cov), x_T, cond=Condition(values=z_t.expand(4, SIZE))).x0
    moved = x0[1:] - x0[0]
    torch.testing.assert_close(x0[0], expected, rtol=0, atol=5e-3)
    torch.testing.assert_close(moved.mT @ moved, left, rtol=0, atol=5e-3)


@pytest.mark.slow
def test_a_trained_network_comes_near_the_exact_prior():
    sde, (mean, cov) = VP(), joint()
    generator = torch.Generator().manual_seed(1)
    root = torch.linalg.cholesky(cov)
    z = (torch.randn(8000, 2 * SIZE, generator=generator, dtype=torch.float64) @ root.mT + mean).float()
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        network = MLP(SIZE, hidden=48, num_layers=2, cond_values=SIZE, null_condition=True)
        model = NetworkScoreModel(network, sde, X0Parameterization(time_input="log_snr"))
    model = fit(
        model, z[:, :SIZE], values=z[:, SIZE:], steps=300, batch_size=256, learning_rate=5e-3, condition_dropout=0.1,
        loss=make_loss("dsm", sde=sde, parameterization="x0", weighting="x0"), device="cpu",
    )  # fmt: skip
    new = (torch.randn(2000, 2 * SIZE, generator=generator, dtype=torch.float64) @ root.mT + mean).float()
    cond, exact = Condition(values=new[:, SIZE:]), oracle(sde, mean, cov)
    t = torch.rand(2000, generator=generator, dtype=torch.float64).clamp(0.01)
    x_t = sde.perturb(new[:, :SIZE], t, torch.randn(2000, SIZE, generator=generator))
    # the mean square that an answer is off the exact one, over that of an answer without any information: the mean
    for told, most in ((cond, 0.05), (cond.without(), 0.1)):
        answer = exact(x_t, t, cond=told).x0
        error = (model(x_t, t, cond=told).x0 - answer).square().mean()
        assert float(error) < most * float((answer - mean[:SIZE].float()).square().mean())
    # and without its condition the error is larger by far
    deaf = (model(x_t, t, cond=cond.without()).x0 - exact(x_t, t, cond=cond).x0).square().mean()
    assert float(deaf) > 10 * float((model(x_t, t, cond=cond).x0 - exact(x_t, t, cond=cond).x0).square().mean())
