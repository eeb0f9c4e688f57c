"""The variational bound in continuous time, T to infinity (Kingma et al. 2021)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from models import ScoreModel, count_network_calls
from sde_lib import SDE, NoiseStreams, derive_seed, expand_like

from .base import LikelihoodEstimator, LikelihoodTerms, register_likelihood
from .decoder import levels_of
from .dequantization import decoder_log_prob
from .variational import prior_kl

_GOLDEN = 0.6180339887498949


@register_likelihood("vlb_continuous")
class ContinuousBound(LikelihoodEstimator):
    """-log p(x0) <= L_T + 1/2 integral over lambda of exp(lambda) E |x0 - x0(x_t, t)|^2 + L_0

    (Kingma et al. 2021, Eq. 11 and 17, by log-SNR), from lambda at ``sde.t_max`` to lambda at ``t_end``: what the bound
    of ``VariationalBound`` falls to as T grows, with the small variance and the same for every SDE of the same ends.

    The integral is estimated without bias from ``steps_per_image`` values of lambda an image, one a stratum. Within a
    stratum, image k of a run takes the k-th point of a low-discrepancy sequence (Kingma et al. 2021, Appendix I.1, take
    such points over a batch; here no image depends on its batch mates) with a random shift that the seed gives.

    Args:
        num_levels: Number of grey levels of the data: sets the bin width.
        steps_per_image: Values of lambda an image, at least 1.
        t_end: Time of the decoder, with noise there. None is the smallest time that networks know: 0 where
            sigma(0) > 0, else ``sde.t_min``.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, *, num_levels: int, steps_per_image: int = 10, t_end: float | None = None) -> None:
        levels_of(torch.zeros(0), num_levels)
        if isinstance(steps_per_image, bool) or not isinstance(steps_per_image, int) or steps_per_image < 1:
            raise ValueError(f"steps_per_image must be at least 1, a whole number, got {steps_per_image}; try 10")
        if t_end is not None and not 0 <= t_end < 1:
            raise ValueError(f"t_end must lie in [0, 1), got {t_end}; leave it out for the SDE's own")
        self.num_levels, self.steps_per_image, self.t_end = num_levels, steps_per_image, t_end

    def ends(self, sde: SDE) -> Float[Tensor, "2"]:
        """The decoder's time and the prior's.

        Raises:
            ValueError: If there is no noise at ``t_end``, or it is not below ``sde.t_max``.
        """
        noise_at_zero = float(sde.sigma(torch.zeros(1, dtype=torch.float64))) > 0
        first = (0.0 if noise_at_zero else sde.t_min) if self.t_end is None else self.t_end
        if first >= sde.t_max or (first == 0 and not noise_at_zero):
            raise ValueError(
                f"t_end must be below t_max = {sde.t_max:.6g} and leave noise, got {first:.6g}; try {sde.t_min:.6g}"
            )
        return torch.tensor([first, sde.t_max], dtype=torch.float64)

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, cond: Tensor | None = None, noise: NoiseStreams | None = None
    ) -> LikelihoodTerms:
        """Evaluate the bound; see ``LikelihoodEstimator``."""
        noise = NoiseStreams.fresh(x0.shape[0]) if noise is None else noise
        levels_of(x0, self.num_levels)
        sde, ends = model.sde, self.ends(model.sde)
        high, low = sde.log_snr(ends).tolist()
        columns = []
        with torch.no_grad(), count_network_calls(model) as counter:
            t = ends[:1].to(x0.device).expand(len(x0))
            prediction = model(sde.perturb(x0, t, noise.normal_like(x0)), t, cond=cond)
            noise_ratio = float(sde.sigma(ends[:1]) / sde.alpha(ends[:1]))
            reconstruction = -decoder_log_prob(x0, prediction, noise_ratio, self.num_levels)
            place = self._places(noise).to(x0.device)
            for k in range(self.steps_per_image):
                log_snr = low + (high - low) * (k + place) / self.steps_per_image
                columns.append(self._integrand(model, x0, log_snr, cond, noise))
        nats = (high - low) * torch.stack(columns, 1)
        return LikelihoodTerms(
            prior=prior_kl(x0, sde, float(ends[1])),
            diffusion=nats.mean(1),
            reconstruction=reconstruction,
            nfe=counter.calls,
            num_dims=x0[0].numel(),
        )

    def _places(self, noise: NoiseStreams) -> Tensor:
        """Where in its stratum each image looks, float64 [B]."""
        shift = derive_seed(noise.seed, 0x6C616D62) / 2**63
        index = torch.tensor([k % 2**52 for k in noise.indices], dtype=torch.float64)
        return (shift + index * _GOLDEN) % 1.0

    def _integrand(
        self, model: ScoreModel, x0: Tensor, log_snr: Tensor, cond: Tensor | None, noise: NoiseStreams
    ) -> Tensor:
        """1/2 exp(lambda) |x0 - x0(x_t, t)|^2, [B]."""
        t = model.sde.time_from_log_snr(log_snr)
        prediction = model(model.sde.perturb(x0, t, noise.normal_like(x0)), t, cond=cond)
        error = x0.double() - prediction.x0.double()
        return 0.5 * (expand_like((0.5 * log_snr).exp(), error) * error).square().flatten(1).sum(1)
