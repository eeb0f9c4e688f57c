"""Deterministic samplers converge with the order they promise, on a mixture whose score is exact."""

import functools

import numpy as np
import pytest
import torch
from sampler_oracles import SDES, mixture
from thinning import one_each

from samplers import make_sampler
from samplers.probability_flow import ProbabilityFlowSampler

# (name, options, promised order, numbers of steps); the ends of the grid are in log-SNR
MIDDLE = (-1.0, 5.0)
SOLVERS = {
    "ddim": ("ddim", {}, 1),
    "heun": ("heun", {}, 2),
    "1": ("dpm_solver_pp", {"variant": "1"}, 1),
    "2M": ("dpm_solver_pp", {"variant": "2M"}, 2),
    "2M exact": ("dpm_solver_pp", {"variant": "2M", "correction": "exact"}, 2),
    "2S": ("dpm_solver_pp", {"variant": "2S"}, 2),
    "3M warm": ("dpm_solver_pp", {"variant": "3M", "warm_start": True}, 3),
    # its first step is of order 1, which is seen on a grid that starts in the middle
    "3M": ("dpm_solver_pp", {"variant": "3M"}, 2),
    # the published weights halve the square term
    "3M published": ("dpm_solver_pp", {"variant": "3M", "correction": "published"}, 2),
    "unipc 1": ("unipc", {"order": 1}, 2),
    "unipc 2": ("unipc", {"order": 2}, 3),
    "unipc 2 bh1": ("unipc", {"order": 2, "b_function": "bh1"}, 3),
}


# the others have their orders on uneven grids below, or are of one step under two names
FAST = ["3M"]


def grid(sde, num_steps, ends):
    return sde.time_from_log_snr(torch.linspace(*ends, num_steps + 1, dtype=torch.float64))


def start(sde, ends):
    """Four points a standard deviation or two from the middle of x_T."""
    t = grid(sde, 1, ends)[:1]
    scale = float((0.4 * sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt())
    return scale * torch.tensor([[1.0, 0.2], [-0.7, 1.1], [0.3, -1.6], [-1.2, -0.4]], dtype=torch.float64)


def run(sde, name, options, num_steps, ends):
    sampler = make_sampler(name, grid=grid(sde, num_steps, ends), denoise_final=False, **options)
    return sampler.sample(mixture(sde), start(sde, ends)).x0


@functools.cache
def reference(sde_name, ends):
    """Two methods that agree far below the errors measured: a library's, and steps of order 4."""
    sde = SDES[sde_name]
    library = ProbabilityFlowSampler(
        solver="scipy_dop853", rtol=1e-11, atol=1e-11, grid=grid(sde, 1, ends), denoise_final=False
    )
    exact = library.sample(mixture(sde), start(sde, ends)).x0
    assert float((run(sde, "unipc", {"order": 3}, 500, ends) - exact).norm()) < 2e-8
    return exact


def orders(sde_name, name, options, counts, ends):
    sde, exact = SDES[sde_name], reference(sde_name, ends)
    errors = np.array([float((run(sde, name, options, n, ends) - exact).norm()) for n in counts])
    return np.log2(errors[:-1] / errors[1:])


@pytest.mark.parametrize(
    ("solver", "sde_name"),
    [
        pytest.param(solver, sde, marks=() if solver in FAST and sde == "vp" else pytest.mark.slow)
        for solver in SOLVERS
        for sde in ("vp", "ve", "subvp", "ddpm")
    ],
)
def test_measured_order_is_the_promised_one(solver, sde_name):
    name, options, promised = SOLVERS[solver]
    measured = orders(sde_name, name, options, (80, 160, 320), MIDDLE)
    assert abs(measured[0] - promised) < 0.2, measured
    assert abs(measured[1] - promised) < 0.15, measured


@pytest.mark.parametrize(
    ("solver", "promised"),
    [
        (("dpm_solver_pp", {"variant": "3M"}), 3),
        (("unipc", {"order": 3}), 4),
    ],
)
@pytest.mark.slow
def test_from_pure_noise_the_first_steps_cost_no_order(solver, promised):
    # where a grid usually starts, x0 hardly depends on x_t, so that a first step of low order is as good as any
    measured = orders("vp", *solver, (160, 320), (-9.0, 6.0))
    assert abs(measured[-1] - promised) < 0.15, measured


@pytest.mark.slow
def test_published_3m_falls_an_order_short_from_pure_noise_too():
    measured = orders("ve", "dpm_solver_pp", {"variant": "3M", "correction": "published"}, (160, 320), (-5.8, 6.0))
    assert abs(measured[-1] - 2) < 0.15, measured


def uneven(sde, num_steps):
    """Steps of 1 and 3 in turn."""
    steps = torch.tensor([1.0, 3.0], dtype=torch.float64).repeat(num_steps // 2)
    place = torch.cat([torch.zeros(1, dtype=torch.float64), steps.cumsum(0) / steps.sum()])
    return sde.time_from_log_snr(MIDDLE[0] + (MIDDLE[1] - MIDDLE[0]) * place)


def even_in_time(sde, num_steps):
    first, last = sde.time_from_log_snr(torch.tensor(MIDDLE, dtype=torch.float64)).tolist()
    return torch.linspace(first, last, num_steps + 1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("solver", "make"),
    one_each(["ddim", "heun", "2M", "2S", "3M warm", "unipc 1", "unipc 2"], [uneven, even_in_time]),
)
def test_orders_hold_on_other_grids(solver, make):
    name, options, promised = SOLVERS[solver]
    sde = SDES["vp"]
    exact, errors = reference("vp", MIDDLE), []
    for num_steps in (160, 320):
        sampler = make_sampler(name, grid=make(sde, num_steps), denoise_final=False, **options)
        errors.append(float((sampler.sample(mixture(sde), start(sde, MIDDLE)).x0 - exact).norm()))
    assert abs(np.log2(errors[0] / errors[1]) - promised) < 0.15
