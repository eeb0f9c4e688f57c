"""The exact likelihood of the probability flow, by the change of variables along it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from models import CallCounter, Cond, FlowEquation, ScoreModel, count_network_calls, follow_flow, require_flow
from runtime.options import whole_number
from runtime.registry import choices_message
from sde_lib import ADAMS, SDE, Adams, NoiseStreams, ODESolver, make_ode_solver, points_of

from .base import LikelihoodEstimator, LikelihoodTerms, register_likelihood
from .batch_checks import check_batch, noisy_part
from .decoder import levels_of
from .dequantization import Dequantization, check_dequantization, dequantize
from .flow_steps import DivergenceSlope, follow_log_density

Divergence = Literal["rademacher", "gaussian", "exact"]


@register_likelihood("ode")
class FlowLikelihood(LikelihoodEstimator):
    """-log p(x0) by the probability flow from y at r_0, the least noise, to x_T = alpha_T y_T at r_T:

        log p(y) = log prior(x_T) + D log alpha_T + integral over r from r_0 to r_T of div eps    (dy / dr = eps)

    (Chen et al. 2018, Eq. 8; Song et al. 2021, Eq. 39, in the scale of the data). The ODE stops where noise r_0 is
    left, since no network knows less. How data gets there, and what that is worth, is ``dequantization``:

    - "decoder": y = x0 + r_0 z, and log p(x0) >= E[log p(y) + log p(x0 | y) - log q(y | x0)] with a Gaussian of r_0
      around the model's x0, discretized if the data has levels. It accounts for all that lies below r_0, and is tight
      where r_0 is small beside the data's detail.
    - "uniform": y = x0 + u, u uniform on the bin; log P(x0) >= E log p(y) + D log(bin). It measures the ODE's own
      output y at r_0, noise and all: for VE with a large sigma_min that costs bits.
    - "variational": the same with u by the model's own q(u | x0), a ``Dequantizer`` that was trained beside it.
    - "none": the density of the ODE's output at y = x0, for data without levels.

    The terms: ``prior`` is -log prior(x_T), ``diffusion`` the change of volume, ``reconstruction`` the dequantization.

    Args:
        num_levels: Number of grey levels of the data; None is continuous data, whose density is measured.
        dequantization: See above; None is "decoder".
        num_importance_samples: K: -log of the mean over K of exp(-terms), a tighter bound with more (Burda et al.
            2016), if the divergence is exact. Noise in the exponent would make it too good: refused with probes.
        divergence: "rademacher" or "gaussian" probes, or "exact", of as many backward passes as dimensions.
        num_probes: Probes a sample; with two or more their spread says how much they are off.
        solver: The solver with its options. ``Adams()`` counts its error in nats a dimension (``LogDensityFlow``); the
            error of others is that of the state, and their steps may be the whole batch's. A name is built by
            ``make_ode_solver``.
        **options: Of a solver by name: ``rtol``, ``atol``, ``max_nfe``, ``t_end``, ``num_steps``, ``grid``.

    Raises:
        ValueError: If an option is unknown or out of range.
    """

    def __init__(
        self,
        *,
        num_levels: int | None = None,
        dequantization: Dequantization | None = None,
        num_importance_samples: int = 1,
        divergence: Divergence = "rademacher",
        num_probes: int = 1,
        solver: str | ODESolver = ADAMS,
        **options: Any,
    ) -> None:
        if num_levels is not None:
            levels_of(torch.zeros(0), num_levels)
        self.dequantization: Dequantization = "decoder" if dequantization is None else dequantization
        check_dequantization(self.dequantization, num_levels)
        self.kind = "exact" if self.dequantization == "none" else "bound"
        if divergence not in get_args(Divergence):
            raise ValueError(choices_message("divergence", divergence, sorted(get_args(Divergence))))
        for name, value in (("num_importance_samples", num_importance_samples), ("num_probes", num_probes)):
            whole_number(name, value, fix="1 is usual")
        if num_importance_samples > 1 and divergence != "exact":
            raise ValueError(
                f"{num_importance_samples} importance samples need divergence='exact', got {divergence!r}, whose noise "
                "would make the bound too good; take 1"
            )
        self.num_levels, self.num_importance_samples = num_levels, num_importance_samples
        self.divergence, self.num_probes = divergence, num_probes
        self.solver = make_ode_solver(solver, **options) if isinstance(solver, str) else solver

    def noisy_times(self, sde: SDE) -> Float[Tensor, " points"]:
        """Rising times from where the ODE begins to where the prior is; of adaptive solvers, these two.

        Raises:
            ValueError: If the ends do not fit the SDE.
        """
        times = noisy_part(self.solver.times(sde), sde).flip(0)
        if len(times) < 2:
            raise ValueError("the ODE needs 2 times with noise, the grid has 1; take more steps")
        return times

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, cond: Cond | None = None, noise: NoiseStreams | None = None
    ) -> LikelihoodTerms:
        """Measure; see ``LikelihoodEstimator``.

        Raises:
            ValueError: If the data is off its levels, or the ends do not fit the SDE.
            FloatingPointError: If the model's answer is not finite; the message says at which t.
            RuntimeError: If ``max_nfe`` is spent, the tolerance is out of reach, or no gradients can be had since it is
                called in inference mode.
        """
        require_flow(model, type(self).__name__)
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "the divergence needs gradients, got inference mode; call it under torch.no_grad() instead"
            )
        noise = check_batch(x0, cond, noise)
        if self.num_levels is not None:
            levels_of(x0, self.num_levels)
        elif not bool(torch.isfinite(x0).all()):
            raise ValueError(
                f"x0 must be finite, got {int((~torch.isfinite(x0)).sum())} numbers that are not; leave them out"
            )
        times = self.noisy_times(model.sde)
        with torch.no_grad(), count_network_calls(model) as counter:
            draws = [self._draw(model, x0, times, cond, noise, counter) for _ in range(self.num_importance_samples)]
        prior, volumes, reconstruction = (torch.stack(column) for column in zip(*draws, strict=True))
        totals = prior + volumes.mean(2) + reconstruction
        total = math.log(len(draws)) - torch.logsumexp(-totals, 0)
        diffusion = volumes.mean((0, 2))
        return LikelihoodTerms(
            prior=prior.mean(0),
            diffusion=diffusion,
            reconstruction=total - prior.mean(0) - diffusion,
            nfe=counter.calls,
            num_dims=x0[0].numel(),
            probe_nats=None if self.divergence == "exact" else volumes[0],
        )

    def _draw(
        self,
        model: ScoreModel,
        x0: Tensor,
        times: Tensor,
        cond: Cond | None,
        noise: NoiseStreams,
        counter: CallCounter,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-log prior(x_T) [B], the change of volume by each probe [B, P], and dequantization's part [B], in nats."""
        sde = model.sde
        points = points_of(sde, times)
        kind, levels = self.dequantization, self.num_levels
        y, bonus = dequantize(kind, model, x0, points[0], num_levels=levels, cond=cond, noise=noise)
        probes = self._probes(x0, noise)
        num_dims = x0[0].numel()
        num_traces = 1 if probes is None else len(probes)
        state = torch.cat([y.flatten(1), y.new_zeros(len(y), num_traces)], 1)
        for start, end in pairwise(points):
            equation = FlowEquation(
                model, cond, start, end, dtype=x0.dtype, counter=counter, max_nfe=self.solver.max_nfe
            )
            slope = DivergenceSlope(equation, x0.shape[1:], probes)
            if isinstance(self.solver, Adams):
                state = follow_log_density(slope, state, rtol=self.solver.rtol, atol=self.solver.atol)
            else:
                state = follow_flow(equation, slope, state, self.solver)
        alpha = points[-1].alpha
        x_T = alpha * state[:, :num_dims].reshape(x0.shape)
        volumes = -math.sqrt(num_dims) * state[:, num_dims:] - num_dims * math.log(alpha)
        return -sde.prior_log_prob(x_T), volumes, -bonus

    def _probes(self, x0: Tensor, noise: NoiseStreams) -> Tensor | None:
        """[P, B, ...], float64."""
        if self.divergence == "exact":
            return None
        shape = (self.num_probes, *x0.shape[1:])
        if self.divergence == "gaussian":
            drawn = noise.normal(shape).double()
        else:
            drawn = torch.where(noise.uniform(shape) < 0.5, -1.0, 1.0).double()
        return drawn.transpose(0, 1).to(x0.device)
