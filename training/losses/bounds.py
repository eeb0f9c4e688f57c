"""Losses that are the bound on the data's likelihood, or hold it: L_vlb, L_hybrid, and the bound in continuous time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from likelihood import decoder_nats, discretized_gaussian_log_prob, levels_of, prior_kl, step_kl
from models import (
    Cond,
    ConsistencyModel,
    FirstStage,
    Generator,
    LevelsParameterization,
    NetworkModel,
    NetworkScoreModel,
    NoisyClassifier,
    Prediction,
    ReverseVariance,
    ScoreModel,
    place_on_bin,
)
from sde_lib import SDE, LearnedVP, expand_like

from .autoencoder import AutoencoderLoss
from .base import Loss, register_loss
from .classification import CrossEntropyLoss
from .consistency import ConsistencyLoss
from .denoising import DenoisingScoreMatching, ReflowLoss, TableLoss
from .joint import JointLoss
from .matching import DistributionMatching
from .progressive import ProgressiveLoss
from .step_sampling import TimeSampler

_OF_KINDS = (
    "a classifier's is 'cross_entropy', an autoencoder's 'autoencoder', those of model.answers=consistency begin with "
    "'consistency_', that of model.answers=generator is 'distribution_matching'"
)


def timestep_bits(
    kind: ReverseVariance, prediction: Prediction, x0: Tensor, sde: SDE, steps: Tensor, *, num_levels: int | None
) -> Tensor:
    """L_0 at timestep 0 of the SDE's table, L_t at the others, in bits/dim, float64 [B] (Ho et al. 2020, Eq. 5).

    Args:
        kind: Reverse variance.
        prediction: The model's answer at the timesteps' times, [B, ...].
        x0: Data on its levels, [B, ...].
        sde: An SDE with a table.
        steps: Timesteps, from 0, [B].
        num_levels: Number of grey levels of the data; of data without, None, L_0 is that of a density.
    """
    assert sde.table_size is not None
    nats = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    t = (steps.double() + 1) / sde.table_size
    for first in (True, False):
        chosen = ((steps == 0) == first).nonzero().squeeze(1)
        if not len(chosen):
            continue
        here, answer, data = t[chosen], _select(prediction, chosen), x0[chosen]
        if first:
            following = here + 1 / sde.table_size
            values = decoder_nats(kind, answer, data, sde, here, following, num_levels=num_levels)
        else:
            values = step_kl(kind, answer, data, sde, steps[chosen].double() / sde.table_size, here)
        nats = nats.index_put((chosen,), values)
    return nats / (x0[0].numel() * math.log(2))


def _select(prediction: Prediction, index: Tensor) -> Prediction:
    fraction = prediction.variance_fraction
    return Prediction(
        prediction.x0[index],
        prediction.eps[index],
        prediction.sigma[index],
        None if fraction is None else fraction[index],
    )


class _TableBound(TableLoss):
    # of the error in eps, where a bound has one: L_simple's
    own_weighting = "eps"

    @property
    def trains_variance(self) -> bool:
        """True."""
        return True

    def check(self, sde: SDE) -> None:
        """Refuse an SDE without a table, and data without levels."""
        super().check(sde)
        levels_of(torch.zeros(0), self.levels)

    def _ask(
        self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, cond: Cond | None
    ) -> tuple[Prediction, Tensor]:
        return model(model.sde.perturb(x0, t, eps), t, cond=cond), self.timesteps(model.sde, t)


@register_loss("vlb")
class VariationalLoss(_TableBound):
    """L_vlb: N L_t of a random timestep t of N, L_0 at the first, in bits/dim (Nichol & Dhariwal 2021, Eq. 4).

    Its mean over uniform timesteps is the bound less L_T, which no network changes. Where the network learns its
    reverse variance, that variance; else the small one. The terms differ by orders of magnitude: with step sampling
    "importance" the gradient has much less noise (Section 3.3).
    """

    name = "vlb"

    def __call__(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Cond | None = None) -> Tensor:
        """The loss of each sample, [B]; see ``Loss``."""
        prediction, steps = self._ask(model, x0, t, eps, cond)
        bits = timestep_bits("auto", prediction, x0, model.sde, steps, num_levels=self.levels)
        return bits * (model.sde.table_size or 1)


@register_loss("hybrid")
class HybridLoss(_TableBound):
    """L_hybrid = L_simple + w L_vlb, where L_vlb reaches the variance alone (Nichol & Dhariwal 2021, Eq. 16).

    The gradient of L_vlb stops at the predicted mean, which L_simple trains. w = 0.001 for L_vlb in bits/dim, as in
    their code. The network must learn its variance. Data may be without levels, as latents are: L_0 is then the
    Gaussian's density, where DiT's code has the decoder of 8-bit images.

    Attributes:
        vlb_weight: w.
    """

    name = "hybrid"
    vlb_weight = 1e-3

    def check(self, sde: SDE) -> None:
        """Refuse an SDE without a table, and an impossible number of levels."""
        if self.num_levels is None:
            TableLoss.check(self, sde)
        else:
            super().check(sde)

    def __call__(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Cond | None = None) -> Tensor:
        """The loss of each sample, [B]; see ``Loss``.

        Raises:
            ValueError: If the model does not learn its variance.
        """
        prediction, steps = self._ask(model, x0, t, eps, cond)
        if prediction.variance_fraction is None:
            raise ValueError("loss 'hybrid' needs model.learned_variance; set it to True, or use loss 'ddpm'")
        simple = (prediction.eps - eps).square().flatten(1).mean(1)
        fixed_mean = Prediction(
            prediction.x0.detach(), prediction.eps.detach(), prediction.sigma, prediction.variance_fraction
        )
        bits = timestep_bits("learned", fixed_mean, x0, model.sde, steps, num_levels=self.num_levels)
        return simple + self.vlb_weight * (model.sde.table_size or 1) * bits


@register_loss("vlb_continuous")
class ContinuousBoundLoss(DenoisingScoreMatching):
    """The bound in continuous time, L_T + diffusion + L_0, in bits/dim (Kingma et al. 2021, Eq. 11-17):

        diffusion = 1/2 (t_max - t_min) (-d lambda / dt) |eps error|^2 at a random t,
        L_0 = -log of the mass that N(x_t / alpha, (sigma / alpha)^2) has on the bins of x0, at t_min,
        L_T = KL(q(x_T | x0) || N(0, I)).

    On an SDE that is fixed this is "dsm" with weighting "likelihood", and two terms that no network changes. On
    ``LearnedVP`` the ends of the noise schedule are trained by it too, and the inside by the gradient of its square,
    which, since its mean does not depend on the inside, is that of its variance (Appendix I.2).
    """

    name = "vlb_continuous"
    own_weighting = "likelihood"

    def check(self, sde: SDE) -> None:
        """Refuse data without levels."""
        levels_of(torch.zeros(0), self.levels)

    def important_times(self, sde: SDE) -> TimeSampler:
        """Times uniform in log-SNR; a learned schedule is itself the importance sampler.

        Raises:
            ValueError: If the schedule is learned.
        """
        if isinstance(sde, LearnedVP):
            raise ValueError("a learned schedule takes the place of step sampling 'importance'; use 'low_discrepancy'")
        return super().important_times(sde)

    def __call__(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Cond | None = None) -> Tensor:
        """The loss of each sample, [B]; see ``Loss``."""
        sde = model.sde
        if not isinstance(sde, LearnedVP):
            diffusion = super().__call__(model, x0, t, eps, cond=cond)
            return diffusion + self._ends(sde, x0, eps)
        with sde.split_gradients() as split:
            error = model(sde.perturb(x0, t, eps), t, cond=cond).eps - eps
            rate = -sde.log_snr_and_rate(t)[1]
            scale = 0.5 * (sde.t_max - sde.t_min) / math.log(2) * rate
            diffusion = scale * error.square().flatten(1).mean(1).double()
            split.loss = diffusion
        return diffusion + self._ends(sde, x0, eps)

    def _ends(self, sde: SDE, x0: Tensor, eps: Tensor) -> Tensor:
        """L_0 + L_T, bits/dim, [B]."""
        t_min = torch.tensor([sde.t_min], dtype=torch.float64, device=x0.device)
        log_noise_ratio = expand_like(-0.5 * sde.log_snr(t_min).expand(len(x0)), x0.double())
        mean = x0.double() + log_noise_ratio.exp() * eps.double()
        log_prob = discretized_gaussian_log_prob(x0, mean, log_noise_ratio, num_levels=self.levels)
        nats = prior_kl(x0, sde, sde.t_max) - log_prob.flatten(1).sum(1)
        return nats / (x0[0].numel() * math.log(2))


@register_loss("dequantized")
class DequantizedLoss(DenoisingScoreMatching):
    """A bound on -log P(x0) by way of the density of y = x0 + u on its bins, in bits/dim:

        -log P(x0) <= E[ L_T(y) + 1/2 integral of |eps error|^2 over lambda + L_0(y) + log q(u | x0) ] - D log width,

    where x_t = alpha y + sigma eps, and L_0 is that of the Gaussian decoder N(x_t / alpha, (sigma / alpha)^2) at t_min
    (Song et al. 2021b, Section 5; Ho et al. 2019). The score of y and the model's ``Dequantizer`` are trained together;
    without one, u is uniform.
    """

    name = "dequantized"
    own_weighting = "likelihood"
    wants_more_noise = True

    def check(self, sde: SDE) -> None:
        """Refuse data without levels."""
        levels_of(torch.zeros(0), self.levels)

    def __call__(
        self,
        model: ScoreModel,
        x0: Tensor,
        t: Tensor,
        eps: Tensor,
        *,
        cond: Cond | None = None,
        more_noise: Tensor | None = None,
    ) -> Tensor:
        """The loss of each sample, [B]; see ``Loss``. u is made of ``more_noise``, or drawn where there is none."""
        sde = model.sde
        dequantizer = model.dequantizer if isinstance(model, NetworkScoreModel) else None
        z = torch.randn_like(x0) if more_noise is None else more_noise
        u, log_q = dequantizer(x0, z) if dequantizer is not None else (torch.special.ndtr(z.double()), 0.0)
        y, log_width = place_on_bin(x0, u, self.levels)
        diffusion = super().__call__(model, y.to(x0.dtype), t, eps, cond=cond)
        log_noise_ratio = -0.5 * float(sde.log_snr(torch.tensor([sde.t_min], dtype=torch.float64)))
        decoder = 0.5 * eps.double().square().flatten(1).sum(1)
        decoder = decoder + x0[0].numel() * (log_noise_ratio + 0.5 * math.log(2 * math.pi))
        nats = prior_kl(y, sde, sde.t_max) + decoder + log_q - log_width
        return diffusion + nats / (x0[0].numel() * math.log(2))


def check_trains(loss: Loss, model: NetworkModel) -> None:
    """Refuse a loss that cannot train all that a model learns, or a model that lacks what a loss trains.

    Args:
        loss: The loss.
        model: The model.

    Raises:
        ValueError: In one line, with the cure.
    """
    of_kinds: tuple[tuple[type, type[Loss] | tuple[type[Loss], ...], str], ...] = (
        (NoisyClassifier, CrossEntropyLoss, "a classifier"),
        (FirstStage, AutoencoderLoss, "an autoencoder"),
        (Generator, DistributionMatching, "a one-step generator"),
        (ConsistencyModel, (ConsistencyLoss, DistributionMatching), "a consistency model"),
    )
    kind = next((name for one, _, name in of_kinds if isinstance(model, one)), "a score model")
    if any(isinstance(model, one) != isinstance(loss, its_loss) for one, its_loss, _ in of_kinds):
        raise ValueError(f"loss {loss.name!r} does not train {kind}; {_OF_KINDS}, or leave it at auto")
    if not isinstance(model, NetworkScoreModel):
        return
    for answer, of_answer in (("flow", ReflowLoss), ("steps", ProgressiveLoss)):
        if (model.answers == answer) != isinstance(loss, of_answer):
            raise ValueError(
                f"loss {of_answer.name!r} and model.answers={answer} go together, got {loss.name!r} and "
                f"{model.answers}; set both"
            )
    if (model.first_stage is not None) != isinstance(loss, JointLoss):
        raise ValueError(f"model.first_stage is trained by loss 'joint', which trains nothing else, got {loss.name!r}")
    if model.learned_variance and not loss.trains_variance:
        raise ValueError(f"model.learned_variance needs a loss that trains it, got {loss.name!r}; use hybrid or vlb")
    if isinstance(loss, HybridLoss) and not model.learned_variance:
        raise ValueError("loss 'hybrid' needs model.learned_variance; set it to True, or use loss 'ddpm'")
    if model.dequantizer is not None and not isinstance(loss, DequantizedLoss):
        raise ValueError(f"model.dequantizer needs loss 'dequantized', which trains it, got {loss.name!r}; use that")
    if isinstance(loss, DequantizedLoss) and isinstance(model.parameterization, LevelsParameterization):
        raise ValueError(
            "loss 'dequantized' needs a model of what lies between levels, got model.parameterization=levels; use eps, "
            "v or edm, or loss 'vlb_continuous'"
        )
    if not isinstance(model.sde, LearnedVP):
        return
    if not isinstance(loss, ContinuousBoundLoss):
        raise ValueError(f"a learned noise schedule needs loss 'vlb_continuous', which trains it, got {loss.name!r}")
    if model.parameterization.time_input in ("auto", "index", "t999"):
        raise ValueError(
            "a learned noise schedule moves t: the network must be told the noise level, "
            f"got model.time_input={model.parameterization.time_input}; set log_snr"
        )
