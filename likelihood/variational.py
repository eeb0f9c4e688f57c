"""The variational bound of a diffusion: L_T, every L_t and L_0 (Ho et al. 2020, Eq. 5)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from models import (
    Cond,
    Prediction,
    ReverseVariance,
    ScoreModel,
    check_variance,
    count_network_calls,
    interpolate_log_var,
    require_posterior_mean,
    reverse_log_var,
)
from runtime.options import whole_number
from sde_lib import SDE, NoiseStreams, check_grid_choice, expand_like, make_grid

from .base import LikelihoodTerms, register_likelihood
from .batch_checks import check_batch, check_finite, noisy_part
from .decoder import discretized_gaussian_log_prob, levels_of
from .term_sampling import SampledBound, StepDraws, StepSampling, interpolate_step_weights, pilot_steps


def prior_kl(x0: Float[Tensor, "batch *shape"], sde: SDE, t: float = 1.0) -> Float[Tensor, " batch"]:
    """L_T = KL( q(x_T | x0) || N(0, prior_std^2 I) ), in nats per image (Ho et al. 2020, Eq. 5).

    Args:
        x0: Data, [B, ...].
        sde: The SDE.
        t: The first time of the grid.

    Returns:
        float64 [B].
    """
    time = torch.full((1,), t, dtype=torch.float64, device=x0.device)
    log_ratio = 2 * (sde.log_sigma(time) - math.log(sde.prior_std))
    x = x0.double().flatten(1)
    mean_sq = x.square() * sde.alpha(time).square() / sde.prior_std**2
    # expm1(r) - r is sigma^2/p^2 - 1 - log(sigma^2/p^2) without the cancellation
    return 0.5 * (mean_sq + (torch.expm1(log_ratio) - log_ratio)).sum(1)


def step_kl(
    kind: ReverseVariance, prediction: Prediction, x0: Float[Tensor, "batch *shape"], sde: SDE, s: Tensor, t: Tensor
) -> Float[Tensor, " batch"]:
    """L_t = KL( q(x_s | x_t, x0) || p(x_s | x_t) ), in nats per image, for 0 < s < t (Ho et al. 2020, Eq. 5-8).

    Both are Gaussian; their means differ by alpha_s expm1(lambda_t - lambda_s) times the error of the predicted x0.

    Args:
        kind: Reverse variance.
        prediction: The model's answer at t.
        x0: Data, [B, ...].
        sde: The SDE.
        s: Earlier times, with noise left, [B].
        t: Later times, [B].

    Returns:
        float64 [B].
    """
    x0_weight, _, small_var = sde.posterior_coefficients(s, t)
    log_small = small_var.log()
    log_var = reverse_log_var(kind, prediction, sde, s, t)
    error = expand_like(x0_weight, x0.double()) * (x0.double() - prediction.x0.double())
    log_ratio = expand_like(log_small, error) - log_var
    kl = 0.5 * (torch.expm1(log_ratio) - log_ratio + error.square() * torch.exp(-log_var))
    return kl.expand_as(error).flatten(1).sum(1)


def decoder_nats(
    kind: ReverseVariance,
    prediction: Prediction,
    x0: Float[Tensor, "batch *shape"],
    sde: SDE,
    t: Tensor,
    following: Tensor | None,
    *,
    num_levels: int | None,
) -> Float[Tensor, " batch"]:
    """L_0 = -log p(x0 | x_t) at the last time with noise, in nats per image (Ho et al. 2020, Eq. 13).

    Of data without levels p is the Gaussian's density, not its mass on a bin, which such data do not have.

    The small variance would be zero there, so that of the step before is taken (beta_tilde_2 for DDPM), for "large"
    too, as Ho et al.'s code does; "learned" lies between it and sigma(t)^2.

    Args:
        kind: Reverse variance.
        prediction: The model's answer at t.
        x0: Data on its levels, [B, ...].
        sde: The SDE.
        t: The last times with noise, [B].
        following: The times one step further from the data, [B]; None where there are none: all take sigma(t)^2.
        num_levels: Number of grey levels of the data; None without.

    Returns:
        float64 [B].
    """
    log_small = log_large = 2 * sde.log_sigma(t)
    if following is not None:
        log_small = sde.posterior_coefficients(t, following)[2].log()
    log_var = interpolate_log_var("small" if kind == "large" else kind, prediction, log_small, log_large)
    if num_levels is None:
        squared = (x0.double() - prediction.x0.double()).square() * (-log_var).exp()
        return 0.5 * (squared + log_var + math.log(2 * math.pi)).flatten(1).sum(1)
    log_prob = discretized_gaussian_log_prob(x0, prediction.x0, 0.5 * log_var, num_levels=num_levels)
    return -log_prob.flatten(1).sum(1)


@register_likelihood("vlb")
class VariationalBound(SampledBound):
    """-log p(x0) <= L_T + sum_t L_t + L_0, for the reverse chain on a time grid t_n > ... > t_1 (> 0).

    The chain steps from t_n down to the last time with noise, t_1, and is decoded from there: L_0 is the mass that a
    Gaussian around the predicted x0 has on the bin of the data (Ho et al. 2020, Eq. 13). For DDPM's own table this is
    Ho et al.'s bound with n = T. The decoder's variance is that of Ho et al.'s and Nichol & Dhariwal's code: the small
    one would be zero there, so that of the step before is taken (beta_tilde_2 for DDPM), for "large" too, since it
    gives the better L_0; "learned" lies between it and sigma(t_1)^2 (beta_1). With a single step there is none before,
    and all take sigma(t_1)^2. For VE, whose noise at t = 0 is sigma_min, t_1 is 0, and no step is left that a shorter
    one could stand for: all take sigma_min^2, whatever n.

    Args:
        num_levels: Number of grey levels of the data: sets the bin width.
        num_steps: Number of steps n; None takes the SDE's table, or 1000.
        variance: "small", "large", "learned", or "auto": the learned one of a model that has it, else the small one,
            as ``AncestralPredictor`` samples.
        grid: Name of a time grid, or a falling tensor of times.
        steps_per_image: None evaluates every L_t. K evaluates K of them per image and returns an unbiased estimate of
            the sum; L_0 and L_T are always evaluated. With K no less than the number of steps, all are.
        step_sampling: How the K are drawn; no image's depend on its batch mates. "stratified": one in each of K equal
            parts of the chain, from the image's own stream. "uniform": independently. "low_discrepancy": one in each
            part, spread evenly over the images of a run by their numbers and the seed. "importance": so too, but with
            probabilities p_t nearly proportional to sqrt(E[L_t^2]), and each L_t divided by K p_t (Nichol & Dhariwal
            2021, Section 3.3): the best by far, as a few steps near the data are most of the sum. See ``draw_steps``.
        step_weights: For "importance", what p_t is to be proportional to, one a step, that nearest to the data first;
            None has them fitted by ``fit_steps`` before the first use.
        decoder_draws: Draws of the noise of L_0, whose mean is taken.

    Raises:
        ValueError: If a number is out of range or a name unknown.
    """

    num_levels: int  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        *,
        num_levels: int,
        num_steps: int | None = None,
        variance: ReverseVariance = "auto",
        grid: str | Tensor = "uniform",
        steps_per_image: int | None = None,
        step_sampling: StepSampling = "stratified",
        step_weights: Tensor | None = None,
        decoder_draws: int = 1,
    ) -> None:
        super().__init__(num_levels, steps_per_image, step_sampling, step_weights)
        self.decoder_draws = whole_number("decoder_draws", decoder_draws, fix="1 is usual")
        for name, value in (("num_steps", num_steps), ("steps_per_image", steps_per_image)):
            if value is not None:
                whole_number(name, value, fix="leave it out for all steps")
        self.num_steps = num_steps
        self.variance: ReverseVariance = check_variance(variance)
        self.grid = check_grid_choice(grid, num_steps)[0] if isinstance(grid, Tensor) else grid

    def noisy_times(self, sde: SDE) -> Float[Tensor, " points"]:
        """Rising times t_1 < ... < t_n at which noise is left: decode from the first, prior at the last."""
        return noisy_part(make_grid(self.grid, sde, self.num_steps or sde.table_size or 1000), sde).flip(0)

    def __call__(
        self, model: ScoreModel, x0: Tensor, *, cond: Cond | None = None, noise: NoiseStreams | None = None
    ) -> LikelihoodTerms:
        """Evaluate the bound; see ``LikelihoodEstimator``."""
        require_posterior_mean(model, type(self).__name__)
        noise = check_batch(x0, cond, noise)
        levels_of(x0, self.num_levels)
        sde = model.sde
        times = self.noisy_times(sde).to(x0.device)
        with torch.no_grad(), count_network_calls(model) as counter:
            draws_of_decoder = [self._reconstruction(model, x0, times, cond, noise) for _ in range(self.decoder_draws)]
            decoder_nats = torch.stack(draws_of_decoder, 1)
            draws = self._choose_steps(len(times) - 1, noise)
            index, scale = draws.index.to(x0.device), draws.scale.to(x0.device)
            nats = self._step_nats(model, x0, times, index, cond, noise)
            prior = prior_kl(x0, sde, float(times[-1]))
        # with every step evaluated there is nothing that more draws would take away
        drawn = 0 < index.shape[1] < len(times) - 1
        return LikelihoodTerms(
            prior=prior,
            diffusion=(scale * nats).sum(1),
            reconstruction=decoder_nats.mean(1),
            nfe=counter.calls,
            num_dims=x0[0].numel(),
            step_index=index,
            step_nats=nats,
            step_scale=scale,
            decoder_nats=decoder_nats,
            sampling_variance=self._variance_of_sum(scale * nats) if drawn else None,
        )

    def _pilot_terms(
        self, model: ScoreModel, x0: Tensor, cond: Cond | None, noise: NoiseStreams, num_knots: int
    ) -> Tensor:
        """L_t at ``num_knots`` steps."""
        times = self.noisy_times(model.sde).to(x0.device)
        num_steps = len(times) - 1
        if num_steps < 2:
            return torch.ones(len(x0), num_steps, dtype=torch.float64)
        knots = pilot_steps(num_steps, num_knots).to(x0.device)
        return self._step_nats(model, x0, times, knots.expand(len(x0), -1), cond, noise)

    def _magnitudes(self, model: ScoreModel, terms: Tensor, num_knots: int) -> Tensor:
        """sqrt(E[L_t^2]), whose logarithm is interpolated between the steps."""
        num_steps = len(self.noisy_times(model.sde)) - 1
        if num_steps < 2:
            return torch.ones(num_steps, dtype=torch.float64)
        return interpolate_step_weights(pilot_steps(num_steps, num_knots), terms, num_steps)

    def _choose_steps(self, num_steps: int, noise: NoiseStreams) -> StepDraws:
        """The steps to evaluate, [B, K]."""
        if self.steps_per_image is None or self.steps_per_image >= num_steps:
            index = torch.arange(num_steps).expand(len(noise), -1)
            ones = torch.ones(index.shape, dtype=torch.float64)
            return StepDraws(index=index, place=0 * ones, scale=ones)
        return self._draw(noise, num_steps)

    def _step_nats(
        self, model: ScoreModel, x0: Tensor, times: Tensor, index: Tensor, cond: Cond | None, noise: NoiseStreams
    ) -> Tensor:
        """L_t of the steps [B, K] of each image, [B, K]."""
        columns = []
        for k in index.unbind(1):
            s, t = times[k], times[k + 1]
            x_t = model.sde.perturb(x0, t, noise.normal_like(x0))
            columns.append(check_finite(step_kl(self.variance, model(x_t, t, cond=cond), x0, model.sde, s, t), t))
        return torch.stack(columns, 1) if columns else x0.new_zeros(x0.shape[0], 0, dtype=torch.float64)

    def _reconstruction(
        self, model: ScoreModel, x0: Tensor, times: Tensor, cond: Cond | None, noise: NoiseStreams
    ) -> Tensor:
        """L_0 = -log p(x0 | x_{t_1}), [B]."""
        first = times[0].expand(x0.shape[0])
        prediction = model(model.sde.perturb(x0, first, noise.normal_like(x0)), first, cond=cond)
        # at t = 0 no step is left, and the variance of the one before vanishes with its length
        following = times[1].expand(x0.shape[0]) if len(times) > 1 and float(times[0]) > 0 else None
        nats = decoder_nats(self.variance, prediction, x0, model.sde, first, following, num_levels=self.num_levels)
        return check_finite(nats, first)
