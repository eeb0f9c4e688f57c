"""The variational bound in continuous time, T to infinity (Kingma et al. 2021)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, ScoreModel, count_network_calls, require_posterior_mean
from runtime.options import whole_number
from sde_lib import SDE, NoiseStreams, expand_like, last_noisy_time

from .base import LikelihoodTerms, register_likelihood
from .batch_checks import check_batch, check_finite, noisy_part
from .decoder import levels_of
from .dequantization import decoder_log_prob
from .term_sampling import SampledBound, StepSampling, check_step_weights
from .variational import prior_kl


@register_likelihood("vlb_continuous")
class ContinuousBound(SampledBound):
    """-log p(x0) <= L_T + 1/2 integral over lambda of exp(lambda) E |x0 - x0(x_t, t)|^2 + L_0

    (Kingma et al. 2021, Eq. 11 and 17, by log-SNR), from lambda at ``sde.t_max`` to lambda at ``t_end``: what the bound
    of ``VariationalBound`` falls to as T grows, with the small variance and the same for every SDE of the same ends.

    The integral is estimated without bias from ``steps_per_image`` values of lambda an image, drawn as by
    ``VariationalBound``: by default one in each of K equal parts, where image k of a run takes the k-th point of a
    low-discrepancy sequence (Kingma et al. 2021, Appendix I.1, take such points over a batch; here no image depends on
    its batch mates) with a random shift for each part that the seed gives.

    Of data without grey levels it bounds the density: L_0 is then -log N(x0; x0(x_t, t), (sigma / alpha)^2) at t_end.

    Args:
        num_levels: Number of grey levels of the data: sets the bin width. None bounds a density.
        steps_per_image: Values of lambda an image, at least 1.
        t_end: Time of the decoder, with noise there. None is the smallest time that networks know: 0 where
            sigma(0) > 0, else ``sde.t_min``.
        step_sampling: "low_discrepancy", "stratified", "uniform" or "importance": see ``draw_steps``. The last has a
            density of lambda that is constant on each of n cells of equal width, and nearly proportional there to the
            root mean square of the integrand.
        step_weights: For "importance", those of the n cells, that at ``sde.t_max`` first; None has them fitted by
            ``fit_steps`` before the first use.

    Raises:
        ValueError: If a number is out of range or a name unknown.
    """

    def __init__(
        self,
        *,
        num_levels: int | None,
        steps_per_image: int = 10,
        t_end: float | None = None,
        step_sampling: StepSampling = "low_discrepancy",
        step_weights: Tensor | None = None,
    ) -> None:
        steps_per_image = whole_number("steps_per_image", steps_per_image, fix="try 10")
        super().__init__(num_levels, steps_per_image, step_sampling, step_weights)
        if t_end is not None and not 0 <= t_end < 1:
            raise ValueError(f"t_end must lie in [0, 1), got {t_end}; leave it out for the SDE's own")
        self.t_end = t_end

    def ends(self, sde: SDE) -> Float[Tensor, "2"]:
        """The decoder's time and the prior's.

        Raises:
            ValueError: If there is no noise at ``t_end``, or it is not below ``sde.t_max``.
        """
        first = last_noisy_time(sde, self.t_end)
        return noisy_part(torch.tensor([sde.t_max, first], dtype=torch.float64), sde).flip(0)

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, cond: Cond | None = None, noise: NoiseStreams | None = None
    ) -> LikelihoodTerms:
        """Evaluate the bound; see ``LikelihoodEstimator``."""
        require_posterior_mean(model, type(self).__name__)
        noise = check_batch(x0, cond, noise)
        if self.num_levels is not None:
            levels_of(x0, self.num_levels)
        sde, ends = model.sde, self.ends(model.sde)
        high, low = sde.log_snr(ends).tolist()
        with torch.no_grad(), count_network_calls(model) as counter:
            t = ends[:1].to(x0.device).expand(len(x0))
            prediction = model(sde.perturb(x0, t, noise.normal_like(x0)), t, cond=cond)
            noise_ratio = float(sde.sigma(ends[:1]) / sde.alpha(ends[:1]))
            reconstruction = check_finite(-decoder_log_prob(x0, prediction, noise_ratio, self.num_levels), t)
            # without weights one cell is the whole range, and a draw's place in it is all there is
            num_cells = 1 if self.step_weights is None else len(self.step_weights)
            draws = self._draw(noise, num_cells)
            width = (high - low) / num_cells
            log_snr = (low + width * (draws.index + draws.place)).to(x0.device)
            values = [self._integrand(model, x0, column, cond, noise) for column in log_snr.unbind(1)]
            prior = prior_kl(x0, sde, float(ends[1]))
        nats, scale = torch.stack(values, 1), width * draws.scale.to(x0.device)
        shares = scale * nats
        return LikelihoodTerms(
            prior=prior,
            diffusion=shares.sum(1),
            reconstruction=reconstruction,
            nfe=counter.calls,
            num_dims=x0[0].numel(),
            step_nats=nats,
            step_scale=scale,
            sampling_variance=self._variance_of_sum(shares),
        )

    def _pilot_terms(
        self, model: ScoreModel, x0: Tensor, cond: Cond | None, noise: NoiseStreams, num_knots: int
    ) -> Tensor:
        """The integrand in the middle of each of ``num_knots`` cells."""
        high, low = model.sde.log_snr(self.ends(model.sde)).tolist()
        middles = low + (high - low) * (torch.arange(num_knots, dtype=torch.float64) + 0.5) / num_knots
        columns = middles[:, None].expand(-1, len(x0)).to(x0.device)
        return torch.stack([self._integrand(model, x0, column, cond, noise) for column in columns], dim=1)

    def _magnitudes(self, model: ScoreModel, terms: Tensor, num_knots: int) -> Tensor:
        """The root mean square of the integrand in each cell."""
        return check_step_weights(terms.square().mean(0).sqrt())

    def _integrand(
        self, model: ScoreModel, x0: Tensor, log_snr: Tensor, cond: Cond | None, noise: NoiseStreams
    ) -> Tensor:
        """1/2 exp(lambda) |x0 - x0(x_t, t)|^2, [B]."""
        t = model.sde.time_from_log_snr(log_snr)
        prediction = model(model.sde.perturb(x0, t, noise.normal_like(x0)), t, cond=cond)
        error = x0.double() - prediction.x0.double()
        return check_finite(0.5 * (expand_like((0.5 * log_snr).exp(), error) * error).square().flatten(1).sum(1), t)
