"""Write a sampler, register it, and compare it with DDIM on data whose exact answer is known.

    python examples/own_sampler.py

takes seconds. The sampler integrates the probability-flow ODE dx/dt = f x - g^2 score / 2 (Song et al. 2021, Eq. 13) by
the midpoint rule: two network calls a step, and an error that falls by four when the number of steps doubles.
"""

import torch

from models import GaussianMixtureScoreModel
from samplers import StepSampler, make_sampler, register_sampler
from sde_lib import VP, expand_like


@register_sampler("midpoint_flow")
class MidpointFlow(StepSampler):
    """The midpoint rule in t."""

    def step(self, model, x_t, t, s, *, cond, noise):  # noqa: ANN001, ANN201
        """One step from t to s < t; x_t is [B, ...], t and s are [B]."""

        def slope(x, time):  # noqa: ANN001, ANN202
            score = model(x, time, cond=cond).score
            f, g_sq = model.sde.drift_coeff(time), model.sde.diffusion_sq(time)
            return expand_like(f, x) * x - expand_like(0.5 * g_sq, x) * score

        middle = x_t + expand_like((s - t) / 2, x_t) * slope(x_t, t)
        return x_t + expand_like(s - t, x_t) * slope(middle, (t + s) / 2)


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
