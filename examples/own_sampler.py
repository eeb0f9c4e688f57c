"""Write a sampler, register it, and compare it with DDIM on data whose exact answer is known.

    python examples/own_sampler.py

takes seconds. The sampler integrates the probability-flow ODE dx/dt = f x - g^2 score / 2 (Song et al. 2021, Eq. 13) by
the midpoint rule: two network calls a step, and an error that falls by four when the number of steps doubles.
"""

import torch
from torch import Tensor

from models import GaussianMixtureScoreModel
from samplers import Denoiser, GridSampler, make_sampler, register_sampler
from sde_lib import VP, NoiseStreams, Point, points_of


def slope(denoise: Denoiser, x: Tensor, t: Point) -> Tensor:
    """dx/dt at x and t."""
    return t.drift_coeff * x - 0.5 * t.diffusion_sq * denoise(x, t).score


@register_sampler("midpoint_flow")
class MidpointFlow(GridSampler):
    """The midpoint rule in t."""

    # also the step onto t = 0; otherwise that one returns the predicted x0, which has order 1
    own_last_step = True

    def step(self, denoise: Denoiser, x: Tensor, t: Point, s: Point, noise: NoiseStreams) -> Tensor:
        """One step from t to s, where s.t < t.t; x is [B, ...]."""
        (middle,) = points_of(denoise.sde, torch.tensor([(t.t + s.t) / 2], dtype=torch.float64))
        halfway = x + (middle.t - t.t) * slope(denoise, x, t)
        return x + (s.t - t.t) * slope(denoise, halfway, middle)


def main(numbers_of_steps: tuple[int, ...] = (50, 100, 200, 400)) -> dict[str, list[float]]:
    """Compare; returns the errors of each sampler at these numbers of steps."""
    # a Gaussian of standard deviation 0.5: the ODE's exact solution keeps x_t / std(x_t)
    sde = VP()
    model = GaussianMixtureScoreModel(sde, means=torch.zeros(1, 1), covs=0.25 * torch.ones(1, 1, 1))
    x_T = torch.ones(1, 1, dtype=torch.float64)
    t = torch.ones(1, dtype=torch.float64)
    exact = 0.5 / (0.25 * sde.alpha(t) ** 2 + sde.sigma(t) ** 2).sqrt()

    errors = {}
    for name in ("ddim", "midpoint_flow"):
        found = [make_sampler(name, num_steps=steps).sample(model, x_T).x0 for steps in numbers_of_steps]
        errors[name] = [float((x0 - exact).abs().max()) for x0 in found]
        print(
            name, *(f"{steps} steps: {error:.1e}" for steps, error in zip(numbers_of_steps, errors[name], strict=True))
        )
    return errors


if __name__ == "__main__":
    main()
