"""Common parts of the comparisons with published samplers: a fixed network, float64 in their code, and exact flows."""

import math
from importlib import metadata

import numpy as np
import pytest
import torch
from sampler_oracles import GaussianModel
from torch import nn

from models import EpsParameterization, NetworkScoreModel, Prediction, ScoreModel
from sde_lib import VP, NoiseStreams, Tabulated, expand_like

BATCH, SHAPE = 2, (2, 3, 3)
# measured: at most 1.4e-13 and 2.5e-6
FLOAT64, FLOAT32 = 1e-11, 1e-5


# what docs/published_differences.md notes of them holds for these versions; another may have been mended
NOTED = {"diffusers": "0.42.1", "azula": "0.11.1"}


def as_noted(package):
    """Marks what is true of one version of a package only."""
    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        installed = None
    return pytest.mark.skipif(installed != NOTED[package], reason=f"noted of {package} {NOTED[package]}")


class Wave(nn.Module):
    """A fixed network that is linear neither in x nor in the row."""

    def forward(self, x, row):
        time = (row / 300).reshape(-1, 1, 1, 1).to(x.dtype)
        return 0.9 * x * torch.sigmoid(time) + 0.4 * torch.sin(2 * x + time)


class _ReadAsFloat64:
    """A module in whose place float32 means float64."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        return getattr(self._module, "float64" if name == "float32" else name)


def read_as_float64(monkeypatch, *modules):
    """Let modules of schedulers, which cast tables and states to float32, compute in float64; nothing else changes."""
    for module in modules:
        for name, library in (("torch", torch), ("np", np)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, _ReadAsFloat64(library))


def sde_of(scheduler):
    """The SDE of a scheduler's own table, in whatever precision it keeps that."""
    alphas_cumprod = scheduler.alphas_cumprod.double()
    return Tabulated(torch.log(alphas_cumprod) - torch.log1p(-alphas_cumprod), family="vp")


def grid_of(scheduler, *, rows=True):
    """A scheduler's grid as times: those of its rows, or those at which there is as much noise as its sigmas say."""
    # a second-order scheduler lists what it visits twice
    sigmas = scheduler.sigmas.double().unique().flip(0)
    if rows:
        times = (scheduler.timesteps.double().unique().flip(0) + 1) / 1000
    else:
        times = sde_of(scheduler).time_from_log_snr(-2 * sigmas[:-1].log())
    return torch.cat([times, times.new_tensor([0.0 if sigmas[-1] == 0 else 1e-3])])


def start(dtype=torch.float64):
    return NoiseStreams(0, range(BATCH)).normal(SHAPE).to(dtype)


def step_noise():
    """The noise of the steps: the same draws each time this is called."""
    return NoiseStreams(1, range(BATCH))


def our_states(sampler, sde, *, dtype=torch.float64):
    """Every state of ours, [n + 1, B, ...]."""
    model = NetworkScoreModel(Wave(), sde, EpsParameterization())
    states = sampler.sample(model, start(dtype), noise=step_noise()).trajectory
    assert states.dtype == dtype
    return states


def published_step(scheduler, index, x, t, **options):
    """Their next state; ``options`` are functions of x."""
    eps = Wave()(x, torch.full((len(x),), 1000 * float(t) - 1, dtype=torch.float64))
    extra = {name: value(x) for name, value in options.items()}
    return scheduler.step(eps, scheduler.timesteps[index], x, **extra).prev_sample


def published_states(scheduler, ours, grid, **options):
    """Their states: in float64 from our first one on, in float32 each from ours before it: no rounding is fed back."""
    theirs = [ours[0]]
    for i, t in enumerate(grid[:-1]):
        x = theirs[-1] if ours.dtype == torch.float64 else ours[i]
        theirs.append(published_step(scheduler, i, x, t, **options))
    return theirs


def assert_states_agree(ours, theirs):
    """Relative to the largest number of each state."""
    assert len(ours) == len(theirs)
    for i in range(1, len(ours)):
        assert ours[i].dtype == theirs[i].dtype
        tolerance = FLOAT64 if ours[i].dtype == torch.float64 else FLOAT32
        error = float((ours[i] - theirs[i]).abs().max())
        assert error <= tolerance * float(theirs[i].abs().max()), f"state {i} of {len(ours) - 1}: {error}"


def graded_grid(num_steps, *, sde=None, first=-0.5, last=2.5):
    """lambda = log(alpha / sigma) from ``first`` to ``last``, in steps that grow from h^2 to h.

    The first step of a multistep method is of order 1: so short, its error is O(h^4), and does not show.
    """
    share = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64) ** 2
    return (sde or VP()).time_from_log_snr(2 * (first + (last - first) * share))


class Line:
    """The exact flow of a Gaussian from one point."""

    def __init__(self, sde=None):
        self.model = GaussianModel(sde or VP())
        self.sde = self.model.sde
        self.x = torch.tensor([[[1.3, -0.4]]], dtype=torch.float64)

    def moments(self, t):
        """alpha, mean and variance of x_t."""
        alpha, sigma = float(self.sde.alpha(t[None])), float(self.sde.sigma(t[None]))
        return alpha, alpha * self.model.mean, alpha**2 * self.model.var + sigma**2

    def at(self, grid):
        """The end of the ODE from the first time of a grid to the last."""
        (_, mean_t, var_t), (_, mean_s, var_s) = self.moments(grid[0]), self.moments(grid[-1])
        return mean_s + math.sqrt(var_s / var_t) * (self.x - mean_t)


class Clock(ScoreModel):
    """x0 = sin(2 lambda) whatever x is: then the reverse SDE's mean is an integral.

    With the exact x0 of a Gaussian no SDE solver of data prediction makes an error in the mean: x0 is a martingale.
    """

    def forward(self, x_t, t, *, cond=None):
        x0 = expand_like(torch.sin(self.sde.log_snr(t)), x_t).expand_as(x_t)
        return Prediction.from_x0(x_t, x0, alpha=self.sde.alpha(t), sigma=self.sde.sigma(t))

    def mean_at(self, x, grid):
        """E x_s given x_t = x, from the first time of a grid to the last."""
        ends = torch.stack([grid[0], grid[-1]])
        (_, alpha), (sigma_t, sigma_s) = self.sde.alpha(ends).tolist(), self.sde.sigma(ends).tolist()
        now, then = (0.5 * self.sde.log_snr(ends)).tolist()
        nodes, shares = np.polynomial.legendre.leggauss(60)
        until = 0.5 * (then - now) * (1 - nodes)
        integral = 0.5 * (then - now) * shares @ (2 * np.exp(-2 * until) * np.sin(2 * (then - until)))
        return sigma_s / sigma_t * math.exp(now - then) * x + alpha * integral


def order_of(error, *, num_steps=80):
    """The order at which error(num_steps) falls when the steps are halved."""
    return math.log2(error(num_steps) / error(2 * num_steps))


def integral_weights(h, past_steps, rate):
    """Weights of values now and ``past_steps`` before in  integral_0^h rate exp(-rate (h - u)) p(u) du,  by quadrature.

    p is the polynomial through the values; negative rates are those of noise prediction.
    """
    points = -np.concatenate([[0.0], np.cumsum(past_steps)])
    nodes, shares = np.polynomial.legendre.leggauss(40)
    u = 0.5 * h * (nodes + 1)
    kernel = 0.5 * h * shares * abs(rate) * np.exp(-rate * (h - u))
    weights = []
    for k, point in enumerate(points):
        others = np.delete(points, k)
        weights.append(kernel @ np.prod([(u - other) / (point - other) for other in others] or [np.ones_like(u)], 0))
    return np.array(weights)


def second_difference(past_steps):
    """Weights of the second divided difference f[0, -h0, -h0 - h1]: half the second derivative."""
    h0, h1 = past_steps
    return np.array([1 / (h0 * (h0 + h1)), -1 / (h0 * h1), 1 / (h1 * (h0 + h1))])
