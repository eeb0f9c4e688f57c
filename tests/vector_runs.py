"""Runs on vectors: exact networks of Gaussians in place of the MLP, and the command lines."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import ROOT
from torch import Tensor, nn

from sde_lib import make_sde

MEANS = {1: np.array([40.0]), 2: np.array([100.0, -3.0]), 3: np.array([0.0, 1.0, -7.0])}
FACTORS = {
    1: np.array([[0.02]]),
    2: np.array([[5.0, 0.0], [0.03, 0.01]]),
    3: np.array([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [-30.0, 5.0, 10.0]]),
}


def gaussian_vectors(num_dims: int, count: int, seed: int = 0) -> np.ndarray:
    """Vectors of N(MEANS, FACTORS FACTORS^T)."""
    normal = np.random.RandomState(seed).randn(count, num_dims)
    return normal @ FACTORS[num_dims].T + MEANS[num_dims]


def log_density(vectors: np.ndarray) -> np.ndarray:
    num_dims = vectors.shape[1]
    covariance = FACTORS[num_dims] @ FACTORS[num_dims].T
    offset = vectors - MEANS[num_dims]
    squares = np.einsum("ni,ij,nj->n", offset, np.linalg.inv(covariance), offset)
    return -0.5 * (squares + num_dims * np.log(2 * np.pi) + np.linalg.slogdet(covariance)[1])


class ExactGaussian(nn.Module):
    """eps of vectors of N(MEANS, FACTORS FACTORS^T), as the data set standardizes them, in place of the MLP."""

    mean: Tensor
    covariance: Tensor

    def __init__(self, num_dims: int, space: Any, num_classes: int | None = None) -> None:
        super().__init__()
        std = np.array(space.std)
        covariance = FACTORS[num_dims] @ FACTORS[num_dims].T / np.outer(std, std)
        mean = (MEANS[num_dims] - np.array(space.mean)) / std
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("covariance", torch.from_numpy(covariance))
        self.weight = nn.Parameter(torch.zeros(1))  # something to train
        self.sde = make_sde("vp")
        self.num_classes = num_classes

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """The exact eps at time c_noise / 999."""
        t = c_noise.double() / 999
        alpha, sigma = self.sde.alpha(t)[:, None], self.sde.sigma(t)[:, None]
        unit = torch.eye(len(self.mean), device=x.device)
        total = alpha[..., None] ** 2 * self.covariance + sigma[..., None] ** 2 * unit
        offset = (x.double() - alpha * self.mean)[..., None]
        return (sigma * torch.linalg.solve(total, offset)[..., 0]).to(x.dtype) + 0 * self.weight


def command(mode: str, workdir: Path, data: Path, *extra: str) -> list[str]:
    """A command line on vectors of an npz file."""
    return [
        f"--config={ROOT / 'configs' / 'vp' / 'moons.py'}",
        f"--mode={mode}",
        f"--workdir={workdir}",
        "--config.device=cpu",
        "--config.data.dataset=npz",
        f"--config.data.root={data}",
        "--config.training.num_steps=4",
        "--config.training.batch_size=8",
        "--config.training.sample_every=0",
        "--config.optim.decay_steps=0",
        "--config.sampling.num_steps=8",
        "--config.sampling.num_samples=6",
        "--config.sampling.batch_size=4",
        *extra,
    ]
