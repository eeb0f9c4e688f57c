"""Distribution matching distillation: a generator whose samples, with any noise, have its teacher's score."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from models import Cond, Generator, Prediction, ScoreModel, require_posterior_mean
from samplers import DDIMSampler
from sde_lib import SDE, expand_like

from .base import Loss, register_loss, weighted_error
from .critic import Critic
from .progressive import given_teacher

# of t_max, as published: next to the data and to pure noise the two scores say nothing of a difference
_FIRST, _LAST = 0.02, 0.98


def kl_gradient(real: Prediction, fake: Prediction, alpha: Float[Tensor, " batch"]) -> Float[Tensor, "batch *shape"]:
    """alpha_t (s_fake - s_real)(x_t, t): for x_t = alpha_t x + sigma_t eps the gradient in x of KL(fake_t | real_t).

    Its mean over x = G(z), eps and z, times dG / dtheta, is the gradient of KL( p_fake,t | p_real,t ) in the weights of
    the generator, where both scores are exact (Yin et al. 2023, Eq. 7, with w_t = 1).

    Args:
        real: The teacher's prediction at x_t.
        fake: That of the score model of the generator's samples.
        alpha: Signal scales, [B].
    """
    return expand_like(alpha, real.x0) * (fake.score - real.score)


def matching_weight(x: Tensor, real: Prediction, alpha: Float[Tensor, " batch"]) -> Float[Tensor, "batch *ones"]:
    """w_t = (sigma_t^2 / alpha_t) C S / |x0_real(x_t, t) - x|_1 (Yin et al. 2023, Eq. 8).

    It brings gradients at all times to one size. C S is the number of dimensions of x.

    Args:
        x: Samples, [B, ...].
        real: The teacher's prediction at x_t.
        alpha: Signal scales, [B].
    """
    distance = (real.x0 - x).abs().flatten(1).mean(1).double()
    # a sample that its teacher leaves as it is has no direction either
    weight = real.sigma.square() / alpha / distance.clamp_min(1e-8)
    return expand_like(weight, x)


@register_loss("distribution_matching")
class DistributionMatching(Loss):
    """Distribution matching distillation (Yin et al. 2023, DMD; Yin et al. 2024, DMD2).

    A step trains one of two networks: every (ratio + 1)-th step the generator G, by

        E[ w_t alpha_t (s_fake - s_real)(x_t, t) dG/dtheta ],   x_t = alpha_t G(x_T) + sigma_t eps,

    and the steps between the score model of G's samples, s_fake, by denoising score matching. Where the two scores
    agree at all times, G has the teacher's distribution.

    Args:
        teacher: The frozen model, s_real.
        fake: s_fake as it begins; None for a copy of the teacher.
        ratio: Steps of the critic for each one of the generator; 5 in DMD2.
        regression: Weight of mean |G(x_T) - y|^2, where y is the end of the teacher's ODE from x_T (Yin et al. 2023,
            Eq. 9, who take LPIPS for the distance).
        regression_steps: Steps of DDIM of that ODE.
        gan: Weight of the head's loss, that of a GAN without saturation (Yin et al. 2024, Eq. 4).
        **kwargs: See ``Loss``; the weighting is that of the denoising score matching.

    Raises:
        ValueError: If there is no teacher, or it answers no posterior means; an option is out of range; or ``gan`` is
            of a network that can have no head.

    Attributes:
        critic: s_fake and the head, with their optimizer.
    """

    name = "distribution_matching"
    of_distillation = True
    wants_more_noise = True

    def __init__(
        self,
        teacher: ScoreModel | None = None,
        *,
        fake: ScoreModel | None = None,
        ratio: int = 5,
        regression: float = 0.0,
        regression_steps: int = 20,
        gan: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if ratio < 1:
            raise ValueError(f"ratio must be at least 1, got {ratio}; 5 is usual")
        self.teacher = teacher = given_teacher(teacher, self.name)
        require_posterior_mean(teacher, f"loss {self.name!r}")
        self.ratio, self.regression, self.gan = ratio, regression, gan
        fake = copy.deepcopy(teacher).requires_grad_(True) if fake is None else fake
        self.critic = Critic(fake, adversarial=gan > 0)
        self.sampler = DDIMSampler(num_steps=regression_steps)

    def check(self, sde: SDE) -> None:
        """Accept any SDE."""

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """t uniform in [0.02, 0.98] t_max."""
        return sde.t_max * (_FIRST + (_LAST - _FIRST) * u.double())

    def begin_step(self, step: int) -> None:
        """Choose which network a step trains."""
        self.trained_critic = self.critic if step % (self.ratio + 1) > 0 else None
        self.critic.requires_grad_(self.trained_critic is not None)

    def memory(self) -> dict[str, Tensor]:
        """Weights and moments of the critic."""
        return self.critic.memory()

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: Generator,
        x0: Tensor,
        t: Tensor,
        eps: Tensor,
        *,
        cond: Cond | None = None,
        more_noise: Tensor | None = None,
    ) -> Tensor:
        """The loss of each sample, [B].

        Args:
            model: The generator.
            x0: Data, [B, ...], which the head learns from.
            t: Times from the time sampler, [B].
            eps: Standard normal noise, [B, ...], of which x_T is made.
            cond: Condition, or None.
            more_noise: As much again, which is added to samples and data.
        """
        assert more_noise is not None
        x_T = model.sde.prior_std * eps
        if self.trained_critic is not None:
            return self._critic_loss(model, x_T, x0, t, more_noise, cond)
        return self._generator_loss(model, x_T, t, more_noise, cond)

    def _generator_loss(self, model: Generator, x_T: Tensor, t: Tensor, eps: Tensor, cond: Cond | None) -> Tensor:
        sde, x = model.sde, model.generate(x_T, cond=cond)
        x_t = sde.perturb(x, t, eps)
        alpha = sde.alpha(t)
        with torch.set_grad_enabled(self.gan > 0):
            fake, logits = self.critic(x_t, t, cond=cond)
        with torch.no_grad():
            real = self.teacher(x_t, t, cond=cond)
            gradient = matching_weight(x, real, alpha) * kl_gradient(real, fake, alpha)
            towards = x - gradient
        # half the square of the gradient, whose own gradient it is
        loss = 0.5 * (x - towards).square().flatten(1).mean(1)
        if self.regression > 0:
            with torch.no_grad():
                end = self.sampler.sample(self.teacher, x_T, cond=cond).x0
            loss = loss + self.regression * (x - end).square().flatten(1).mean(1)
        if self.gan > 0:
            assert logits is not None
            loss = loss + self.gan * F.softplus(-logits)
        return loss

    def _critic_loss(
        self, model: Generator, x_T: Tensor, x0: Tensor, t: Tensor, eps: Tensor, cond: Cond | None
    ) -> Tensor:
        sde = model.sde
        with torch.no_grad():
            x = model.generate(x_T, cond=cond)
        prediction, logits = self.critic(sde.perturb(x, t, eps), t, cond=cond)
        loss = weighted_error(self.weighting, prediction, x, eps, sde=sde, t=t, data_std=self.data_std)
        if self.gan > 0:
            assert logits is not None
            _, of_data = self.critic(sde.perturb(x0, t, eps), t, cond=cond)
            assert of_data is not None
            loss = loss + self.gan * (F.softplus(logits) + F.softplus(-of_data))
        return loss
