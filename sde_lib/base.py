"""A linear SDE is a pair of scalar functions, log alpha(t) and log sigma(t); everything else follows from them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from runtime.options import ShowsOptions

from .inverse import invert_falling
from .noise import NoiseStreams
from .shapes import expand_like

PerSample = Float[Tensor, " *batch"]
# what a start from pure noise may lose: from here on it shows in samples, and in the third digit of bits/dim
MOST_PRIOR_BITS = 0.01


def _value_and_rate(function: Callable[[Tensor], Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    """A function of t and its derivative by automatic differentiation, elementwise."""
    with torch.enable_grad():
        t = t.detach().double().requires_grad_(True)
        value = function(t)
        if not value.requires_grad:
            return value, torch.zeros_like(value)
        return value.detach(), torch.autograd.grad(value.sum(), t)[0]


def _invert(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """The t in [0, 1] at which a falling function of time is ``value``."""
    return invert_falling(lambda t: _value_and_rate(function, t), value, torch.full_like(value, 0.5))


class SDE(ShowsOptions, ABC):
    """dx = f(t) x dt + g(t) dw on t in [0, 1]; t = 0 is data, and x_t = alpha(t) x0 + sigma(t) eps.

    A subclass gives ``log_alpha``, ``log_sigma`` and ``prior_std``. What is derived from them here is right for every
    such pair; a subclass overrides a derived quantity only where a closed form is faster or keeps more digits. Every
    function of t computes and returns float64, whatever the dtype of t; coefficients are cast where they are
    multiplied.

    Attributes:
        t_min: Smallest time a network is trained at in continuous time.
        t_max: Largest time, where sampling starts.
        prior_std: Standard deviation of the prior p(x at t_max).
        table_size: Number of steps of the table behind the SDE, or None if it has none.
    """

    t_min: float = 1e-5
    t_max: float = 1.0
    prior_std: float
    table_size: int | None = None

    @abstractmethod
    def log_alpha(self, t: PerSample) -> PerSample:
        """Natural logarithm of the signal scale alpha(t)."""

    @abstractmethod
    def log_sigma(self, t: PerSample) -> PerSample:
        """Natural logarithm of the noise standard deviation sigma(t)."""

    def alpha(self, t: PerSample) -> PerSample:
        """Signal scale: E[x_t | x0] = alpha(t) x0. Ho et al.'s alpha_bar is its square."""
        return self.log_alpha(t).exp()

    def sigma(self, t: PerSample) -> PerSample:
        """Noise standard deviation: Var[x_t | x0] = sigma(t)^2."""
        return self.log_sigma(t).exp()

    def alpha_sigma(self, t: PerSample) -> tuple[PerSample, PerSample]:
        """alpha(t) and sigma(t), for those who need both."""
        return self.alpha(t), self.sigma(t)

    def log_snr(self, t: PerSample) -> PerSample:
        """lambda(t) = log(alpha^2 / sigma^2), falling in t."""
        return 2 * (self.log_alpha(t) - self.log_sigma(t))

    def drift_coeff(self, t: PerSample) -> PerSample:
        """f(t) = d log alpha / dt."""
        return _value_and_rate(self.log_alpha, t)[1]

    def diffusion_sq(self, t: PerSample) -> PerSample:
        """g(t)^2 = -sigma^2 d lambda / dt (Kingma et al. 2021, Appendix D, Eq. 36, solved for g^2)."""
        return -(2 * self.log_sigma(t)).exp() * _value_and_rate(self.log_snr, t)[1]

    def rates(self, t: PerSample) -> tuple[PerSample, PerSample]:
        """alpha' = f alpha and sigma' = f sigma + g^2 / (2 sigma), by t: of them a velocity is made.

        u = alpha' x0 + sigma' eps is dx_t / dt at fixed x0 and eps; sigma' is infinite where VP has no noise, at t = 0.
        """
        drift = self.drift_coeff(t)
        alpha, sigma = self.alpha_sigma(t)
        return drift * alpha, drift * sigma + 0.5 * self.diffusion_sq(t) / sigma

    def perturb(
        self, x0: Float[Tensor, "batch *shape"], t: Float[Tensor, " batch"], eps: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch *shape"]:
        """x_t = alpha(t) x0 + sigma(t) eps.

        Args:
            x0: Data, [B, ...].
            t: Times in [0, 1], [B].
            eps: Standard normal noise, [B, ...].

        Returns:
            A draw of q(x_t | x0), [B, ...], in the dtype of ``x0``.

        Raises:
            ValueError: If t is not of shape [B].
        """
        return expand_like(self.alpha(t), x0) * x0 + expand_like(self.sigma(t), x0) * eps

    def transition_var(self, s: PerSample, t: PerSample) -> PerSample:
        """Var[x_t | x_s] = -sigma_t^2 expm1(lambda_t - lambda_s) for s < t."""
        return -(2 * self.log_sigma(t)).exp() * torch.expm1(self.log_snr(t) - self.log_snr(s))

    def posterior_coefficients(self, s: PerSample, t: PerSample) -> tuple[PerSample, PerSample, PerSample]:
        """q(x_s | x_t, x0) = N(a x0 + b x_t, var) with, for s < t and lambda = log-SNR,

            a = -alpha_s expm1(lambda_t - lambda_s),
            b = (alpha_s / alpha_t) exp(lambda_t - lambda_s),
            var = -sigma_s^2 expm1(lambda_t - lambda_s).

        With s one step of the DDPM table below t this is Ho et al. 2020, Eq. 7.

        Args:
            s: Earlier times, [B].
            t: Later times, [B], each above its s.

        Returns:
            a, b and var in float64, each [B].

        Raises:
            ValueError: If some s >= t.
        """
        wrong = s >= t
        if bool(wrong.any()):
            first_s, first_t = (float(v.expand_as(wrong)[wrong][0]) for v in (s, t))
            raise ValueError(f"s must be below t, got s = {first_s:.6g}, t = {first_t:.6g}; swap them")
        log_alpha_s, log_alpha_t = self.log_alpha(s), self.log_alpha(t)
        log_sigma_s, log_sigma_t = self.log_sigma(s), self.log_sigma(t)
        one_minus_ratio = -torch.expm1(2 * (log_alpha_t - log_sigma_t) - 2 * (log_alpha_s - log_sigma_s))
        # alpha_t / alpha_s * sigma_s^2 / sigma_t^2: finite where alpha_t = 0 (cosine, t = 1) and where sigma_s = 0
        b = (log_alpha_t - log_alpha_s + 2 * (log_sigma_s - log_sigma_t)).exp()
        return log_alpha_s.exp() * one_minus_ratio, b, (2 * log_sigma_s).exp() * one_minus_ratio

    def posterior(
        self,
        x0: Float[Tensor, "batch *shape"],
        x_t: Float[Tensor, "batch *shape"],
        s: Float[Tensor, " batch"],
        t: Float[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, " batch"]]:
        """Mean and variance of q(x_s | x_t, x0) for any s < t (Ho et al. 2020, Eq. 6-7).

        Args:
            x0: Data or a prediction of it, [B, ...].
            x_t: Noisy data at t, [B, ...].
            s: Earlier times, [B].
            t: Later times, [B].

        Returns:
            The mean, [B, ...], and the variance, [B], float64.

        Raises:
            ValueError: If some s >= t, or a shape is wrong.
        """
        a, b, var = self.posterior_coefficients(s, t)
        return expand_like(a, x0) * x0 + expand_like(b, x_t) * x_t, var

    def prior_std_at(self, t: float) -> float:
        """Standard deviation of the noise that stands for x_t where hardly any signal is left, at and below ``t_max``.

        It is prior_std at t_max, and moves with t as the standard deviation of x_t does for data of variance 1,
        sqrt(alpha^2 + sigma^2): 1 for VP at any t, about sigma(t) for VE.
        """
        alpha, sigma = self.alpha_sigma(torch.tensor([t, self.t_max], dtype=torch.float64))
        var, last_var = (alpha**2 + sigma**2).tolist()
        return self.prior_std * math.sqrt(var / last_var)

    def prior_bits_per_dim(self, t: float | None = None, *, mean_square: float = 1.0) -> float:
        """L_T: what data lose where pure noise takes the place of x_t, in bits/dim (Ho et al. 2020, Eq. 5):

            KL( q(x_t | x0) || N(0, p^2) ) = 1/2 (alpha^2 E[x0^2] / p^2 + sigma^2 / p^2 - 1 - log(sigma^2 / p^2)) nats

        with p = ``prior_std_at(t)``.

        Args:
            t: Time; None is ``t_max``.
            mean_square: E[x0^2]. The default is the most that data in [-1, 1] can have.

        Returns:
            L_T / log 2 of one dimension.
        """
        t = self.t_max if t is None else t
        time, std = torch.tensor([t], dtype=torch.float64), self.prior_std_at(t)
        (alpha,), (log_sigma,) = self.alpha(time).tolist(), self.log_sigma(time).tolist()
        log_ratio = 2 * (log_sigma - math.log(std))
        # expm1(r) - r is sigma^2 / p^2 - 1 - log(sigma^2 / p^2) without the cancellation
        nats = 0.5 * ((alpha / std) ** 2 * mean_square + math.expm1(log_ratio) - log_ratio)
        return nats / math.log(2)

    def prior_sample(
        self,
        sample_shape: Sequence[int],
        noise: NoiseStreams,
        *,
        t: float | None = None,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "batch *shape"]:
        """Draw x_t ~ N(0, prior_std_at(t)^2 I), one stream a sample.

        Args:
            sample_shape: Shape of one sample, such as (3, 32, 32).
            noise: The streams; as many samples are drawn as there are.
            t: Where sampling begins; None is ``t_max``. It must be a time with hardly any signal, where
                ``prior_bits_per_dim(t)`` is small. A sampler's own ``prior_sample`` draws at the time where its grid
                begins, and sees to that.
            device: Where the result goes.

        Returns:
            float32 [B, *sample_shape].
        """
        std = self.prior_std if t is None else self.prior_std_at(t)
        return (std * noise.normal(sample_shape)).to(device)

    def prior_log_prob(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """log N(x; 0, prior_std^2 I), summed over the dimensions of each sample, in nats, float64 [B]."""
        z = x.double().unsqueeze(1).flatten(1) / self.prior_std
        return -0.5 * z.square().sum(1) - z.shape[1] * (math.log(self.prior_std) + 0.5 * math.log(2 * math.pi))

    def time_from_log_snr(self, log_snr: PerSample) -> PerSample:
        """The t in [0, 1] at which lambda(t) is ``log_snr``; out of reach, the nearer end."""
        return _invert(self.log_snr, log_snr.double())

    def time_from_sigma(self, sigma: PerSample) -> PerSample:
        """The t in [0, 1] at which sigma(t) is ``sigma``; out of reach, the nearer end."""
        return _invert(lambda t: -self.log_sigma(t), -sigma.double().log())
