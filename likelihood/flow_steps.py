"""Drift and divergence of the probability flow, and steps whose error is counted in log-likelihood."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from models import FlowEquation
from sde_lib import ADAMS, NoProgressError, expand_like, solve_adams


class DivergenceSlope:
    """d/dr of (y, sum of div eps / sqrt(D)): drift and divergence from one network call.

    With probes v of E v v^T = 1, div eps = E v . d(v . eps)/dy (Hutchinson 1990); the same probes all along the way, so
    that the integral is one of a smooth function (Grathwohl et al. 2019). Over sqrt(D), the error norm of an adaptive
    solver counts an error in nats a dimension as much as one in y.

    Args:
        equation: The ODE.
        shape: Shape of a sample.
        probes: [P, B, ...], or None for the exact divergence, of D backward passes.
    """

    def __init__(self, equation: FlowEquation, shape: torch.Size, probes: Tensor | None) -> None:
        self.equation, self.shape, self.probes = equation, shape, probes
        self.num_dims = math.prod(shape)

    def __call__(
        self, noise_ratio: Tensor, state: Float[Tensor, "batch state"], rows: Tensor | None = None
    ) -> Float[Tensor, "batch state"]:
        """The slope of a state [B, D + P] at r, [] or [B]; or of the samples ``rows``, [A], of the batch alone."""
        equation = self.equation
        y = state[:, : self.num_dims].reshape(-1, *self.shape)
        equation.move_to(noise_ratio, y)
        alpha = equation.model.sde.alpha(equation.t)
        with torch.enable_grad():
            x = (expand_like(alpha, y) * y).to(equation.dtype).detach().requires_grad_()
            eps = equation.ask(x, rows)
            if self.probes is None:
                traces = self._exact(eps, x)
            else:
                traces = self._probed(eps, x, self.probes if rows is None else self.probes[:, rows])
        traces = traces * (alpha / math.sqrt(self.num_dims))[:, None].to(traces)
        return torch.cat([eps.detach().to(state.dtype).flatten(1), traces.to(state.dtype)], 1)

    def _probed(self, eps: Tensor, x: Tensor, probes: Tensor) -> Tensor:
        """v . d(v . eps)/dx for each probe, [B, P]."""
        traces = []
        for number, probe in enumerate(probes):
            (product,) = torch.autograd.grad(eps, x, probe.to(eps), retain_graph=number < len(probes) - 1)
            traces.append((product.double() * probe).flatten(1).sum(1))
        return torch.stack(traces, 1)

    def _exact(self, eps: Tensor, x: Tensor) -> Tensor:
        """sum_i d eps_i / dx_i, [B, 1]."""
        flat, trace = eps.flatten(1), torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for i in range(self.num_dims):
            (row,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=i < self.num_dims - 1)
            trace += row.flatten(1)[:, i].double()
        return trace[:, None]


class LogDensityFlow:
    """The ODE in x = y / g over u = log r, g = sqrt(1 + r^2), and what an error in x does to the log-likelihood:

        dx/du = (r / g) (eps - (r / g) x),   dl/du = r (div eps / D - r / g^2),   l = -log p(x) / D + const,

    so that x has the scale of a variance-preserving SDE at every r, for any SDE, and both stand still on N(0, 1) data.
    The log-likelihood at the beginning is log p(x) + the integral of div dx/du over the way that is left. An error dx
    changes it by score . dx to first order, score = grad log p(x) = -(g / r) eps: eps says at every step what its error
    is worth in nats, no adjoint equation is needed.

    Args:
        slope: Drift and divergence.
        rtol: Tolerated error relative to x and l.
        atol: Tolerated error on top.
    """

    def __init__(self, slope: DivergenceSlope, *, rtol: float, atol: float) -> None:
        self.flow, self.num_dims, self.rtol, self.atol = slope, slope.num_dims, rtol, atol
        self.score = torch.empty(0)

    def slope(
        self, u: Float[Tensor, " batch"], state: Float[Tensor, "batch state"], rows: Tensor
    ) -> Float[Tensor, "batch state"]:
        """d/du of (x, l), [A, D + P], of the samples ``rows``; keeps their score, [A, D], there."""
        r = u.exp()
        for end in (self.flow.equation.start.noise_ratio, self.flow.equation.end.noise_ratio):
            # exp(log(r)) may miss r in the last digit
            r = torch.where(u == math.log(end), end, r)
        of_r = r.to(state.device)[:, None]
        g = (1 + of_r**2).sqrt()
        x = state[:, : self.num_dims]
        rates = self.flow(r, torch.cat([g * x, state[:, self.num_dims :]], 1), rows)
        eps, traces = rates[:, : self.num_dims], rates[:, self.num_dims :]
        self.score = -g / of_r * eps
        sigma = of_r / g
        return torch.cat([sigma * (eps - sigma * x), of_r / math.sqrt(self.num_dims) * traces - sigma**2], 1)

    def step_error(self, old: Tensor, new: Tensor, difference: Float[Tensor, "batch state"]) -> Float[Tensor, " batch"]:
        """Each sample's error in nats a dimension, over what is tolerated, whichever of these is larger:

        - |score . dx / D + dl|, what the error does to the log-likelihood, of the worst probe;
        - the root mean square of dx over sqrt(D): what errors as large, but of random signs, would do.

        Args:
            old: (x, l) before the step, [A, D + P].
            new: After it.
            difference: (dx, dl).
        """
        num_dims = self.num_dims
        tolerated = self.atol + self.rtol * torch.maximum(old.abs(), new.abs())
        scatter = (difference / tolerated)[:, :num_dims].square().sum(1).sqrt() / num_dims
        moved = (self.score * difference[:, :num_dims]).mean(1, keepdim=True)
        nats = (moved + difference[:, num_dims:]).abs() / tolerated[:, num_dims:]
        # the maximum keeps NaN
        return torch.maximum(nats.amax(1), scatter)


def follow_log_density(
    slope: DivergenceSlope, state: Float[Tensor, "batch state"], *, rtol: float, atol: float
) -> Float[Tensor, "batch state"]:
    """``follow_flow`` by ``solve_adams``, its steps as long as ``LogDensityFlow.step_error`` tolerates.

    Args:
        slope: Drift and divergence; its equation says from where to where.
        state: (y, sum of div eps / sqrt(D)) at the start, [B, D + P], float64.
        rtol: Tolerated error in nats a dimension, relative to the divergence so far.
        atol: Tolerated error on top.

    Raises:
        RuntimeError: If the tolerance is out of reach, or the equation's calls are spent.
    """
    equation, num_dims = slope.equation, slope.num_dims
    flow = LogDensityFlow(slope, rtol=rtol, atol=atol)
    start, end = equation.start.noise_ratio, equation.end.noise_ratio
    ends = math.hypot(1.0, start), math.hypot(1.0, end)
    scaled = torch.cat([state[:, :num_dims] / ends[0], state[:, num_dims:] / math.sqrt(num_dims)], 1)
    try:
        scaled = solve_adams(flow.slope, scaled, math.log(start), math.log(end), step_error=flow.step_error)
    except NoProgressError as error:
        raise RuntimeError(
            f"{ADAMS} gave up at t = {equation.where():.6g}: {error}; raise rtol and atol, or choose another solver"
        ) from error
    traces = scaled[:, num_dims:] + math.log(ends[1] / ends[0])
    return torch.cat([scaled[:, :num_dims] * ends[1], traces * math.sqrt(num_dims)], 1)
