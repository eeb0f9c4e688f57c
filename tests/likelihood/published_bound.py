"""The bound as the papers write it, by betas, alpha_bar and beta_tilde, in numpy and in 50 digits of mpmath.

Ho et al. 2020, Eq. 5-8, 11 and 13; Nichol & Dhariwal 2021, Eq. 15 and 17. Nothing here knows of log-SNR, of predicted
x0 or of torch. Steps are numbered t = 1..T as in the papers.
"""

import mpmath
import numpy as np
from scipy.special import log_ndtr

NUM_PIXELS, NUM_HIDDEN = 12, 16


def linear_betas(num_steps):
    """Ho et al. 2020, Section 4."""
    return np.linspace(1e-4, 0.02, num_steps)


def cosine_betas(num_steps):
    """Nichol & Dhariwal 2021, Eq. 17, with s = 0.008 and beta at most 0.999."""
    f = np.cos((np.arange(num_steps + 1) / num_steps + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], 0.999)


def mp_betas(name, num_steps):
    """The same in mpmath, at the precision that is set."""
    mp = mpmath.mp
    if name == "linear":
        low, high = mp.mpf(1) / 10000, mp.mpf(2) / 100
        return [low + (high - low) * i / (num_steps - 1) for i in range(num_steps)]
    f = [
        mp.cos((mp.mpf(i) / num_steps + mp.mpf("0.008")) / mp.mpf("1.008") * mp.pi / 2) ** 2
        for i in range(num_steps + 1)
    ]
    return [min(1 - f[i + 1] / f[i], mp.mpf("0.999")) for i in range(num_steps)]


class Network:
    """A fixed random network from pixels and t to eps and to the variance's output v in [-1, 1], [B, 12] each."""

    def __init__(self, num_steps, seed=0):
        rng = np.random.default_rng(seed)
        self.num_steps = num_steps
        shapes = {
            "pixels": (NUM_PIXELS, NUM_HIDDEN),
            "time": (2, NUM_HIDDEN),
            "eps": (NUM_HIDDEN, NUM_PIXELS),
            "fraction": (NUM_HIDDEN, NUM_PIXELS),
        }
        # float32 values, so that a float32 network has the same weights
        self.weights = {
            k: (0.4 * rng.standard_normal(s)).astype(np.float32).astype(np.float64) for k, s in shapes.items()
        }

    def __call__(self, x, t):
        """x [B, 12], t [B] in 1..T."""
        phase = (t - 1) / self.num_steps
        time = np.stack([np.cos(3 * phase), np.sin(5 * phase)], 1)
        hidden = np.tanh(x @ self.weights["pixels"] + time @ self.weights["time"])
        return 0.6 * x + hidden @ self.weights["eps"], np.tanh(hidden @ self.weights["fraction"])


class PublishedBound:
    """Terms of the bound for a table of betas, in float64."""

    def __init__(self, betas):
        self.beta = np.concatenate([[np.nan], betas])
        self.alpha = 1 - self.beta
        self.alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
        with np.errstate(invalid="ignore"):
            # Ho et al. 2020, Eq. 7
            self.beta_tilde = np.concatenate([[np.nan], (1 - self.alpha_bar[:-1]) / (1 - self.alpha_bar[1:]) * betas])

    def noisy(self, x0, t, eps):
        """A draw of q(x_t | x_0), Ho et al. 2020, Eq. 4."""
        alpha_bar = self.alpha_bar[t][:, None]
        return np.sqrt(alpha_bar) * x0 + np.sqrt(1 - alpha_bar) * eps

    def posterior_mean(self, x0, x_t, t):
        """Ho et al. 2020, Eq. 7."""
        beta, alpha, bar, bar_before = (
            v[:, None] for v in (self.beta[t], self.alpha[t], self.alpha_bar[t], self.alpha_bar[t - 1])
        )
        return np.sqrt(bar_before) * beta / (1 - bar) * x0 + np.sqrt(alpha) * (1 - bar_before) / (1 - bar) * x_t

    def model_mean(self, x_t, t, eps):
        """Ho et al. 2020, Eq. 11."""
        beta, alpha, bar = (v[:, None] for v in (self.beta[t], self.alpha[t], self.alpha_bar[t]))
        return (x_t - beta / np.sqrt(1 - bar) * eps) / np.sqrt(alpha)

    def model_log_var(self, kind, t, v):
        """Nichol & Dhariwal 2021, Eq. 15 with v = (output + 1) / 2; at t = 1 beta_tilde_2, as their code has it."""
        log_large = np.log(self.beta[t])[:, None]
        log_small = np.log(self.beta_tilde[np.maximum(t, 2)])[:, None]
        if kind == "small":
            return log_small
        if kind == "large":
            return np.where(t[:, None] == 1, log_small, log_large)
        return (v + 1) / 2 * log_large + (1 - (v + 1) / 2) * log_small

    def prior(self, x0):
        """L_T, [B]."""
        bar = self.alpha_bar[-1]
        return 0.5 * (bar * x0**2 + (1 - bar) - 1 - np.log(1 - bar)).sum(1)

    def step(self, kind, x0, x_t, t, eps, v):
        """L_{t-1} for t > 1, the divergence of two Gaussians, [B]."""
        log_var1, log_var2 = np.log(self.beta_tilde[t])[:, None], self.model_log_var(kind, t, v)
        offset = self.posterior_mean(x0, x_t, t) - self.model_mean(x_t, t, eps)
        kl = 0.5 * (log_var2 - log_var1 - 1 + np.exp(log_var1 - log_var2) + offset**2 * np.exp(-log_var2))
        return np.broadcast_to(kl, x0.shape).sum(1)

    def decoder(self, kind, x0, x_1, eps, v, num_levels):
        """L_0, Ho et al. 2020, Eq. 13, [B, pixels]."""
        t = np.ones(len(x0), dtype=int)
        std = np.exp(0.5 * self.model_log_var(kind, t, v))
        return -log_bin(x0, self.model_mean(x_1, t, eps), std, num_levels)


def log_bin(x, mean, std, num_levels):
    """log of the integral of N(mean, std^2) over the bin of x, by the tail that does not cancel."""
    half = 1 / (num_levels - 1)
    low = np.where(x <= -1 + half, -np.inf, (x - half - mean) / std)
    high = np.where(x >= 1 - half, np.inf, (x + half - mean) / std)
    mirror = low + high > 0
    low, high = np.where(mirror, -high, low), np.where(mirror, -low, high)
    return log_ndtr(high) + np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high)))


def tanh_log_bin(x, mean, std, num_levels):
    """The same as published: 1/2 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))) for Phi, and masses of at least 1e-12."""

    def cdf(z):
        return 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    half = 1 / (num_levels - 1)
    high, low = cdf((x + half - mean) / std), cdf((x - half - mean) / std)
    mass = np.where(x < -0.999, high, np.where(x > 0.999, 1 - low, high - low))
    return np.log(np.maximum(mass, 1e-12))


class ExactBound:
    """The same formulas for one pixel, in mpmath at the precision that is set."""

    def __init__(self, betas):
        self.beta = [mpmath.mpf(0), *betas]
        self.alpha_bar = [mpmath.mpf(1)]
        for beta in betas:
            self.alpha_bar.append(self.alpha_bar[-1] * (1 - beta))

    def beta_tilde(self, t):
        return (1 - self.alpha_bar[t - 1]) / (1 - self.alpha_bar[t]) * self.beta[t]

    def var(self, kind, t, v):
        small, large = self.beta_tilde(max(t, 2)), self.beta[t]
        if kind == "small" or (kind == "large" and t == 1):
            return small
        if kind == "large":
            return large
        fraction = (mpmath.mpf(v) + 1) / 2
        return mpmath.exp(fraction * mpmath.log(large) + (1 - fraction) * mpmath.log(small))

    def model_mean(self, x_t, t, eps):
        return (x_t - self.beta[t] / mpmath.sqrt(1 - self.alpha_bar[t]) * eps) / mpmath.sqrt(1 - self.beta[t])

    def prior(self, x0):
        bar = self.alpha_bar[-1]
        return (bar * x0**2 - bar - mpmath.log(1 - bar)) / 2

    def step(self, kind, x0, x_t, t, eps, v):
        x0, x_t, eps = (mpmath.mpf(float(value)) for value in (x0, x_t, eps))
        bar, before = self.alpha_bar[t], self.alpha_bar[t - 1]
        mean = mpmath.sqrt(before) * self.beta[t] / (1 - bar) * x0
        mean += mpmath.sqrt(1 - self.beta[t]) * (1 - before) / (1 - bar) * x_t
        ratio = self.beta_tilde(t) / self.var(kind, t, v)
        offset = mean - self.model_mean(x_t, t, eps)
        return (ratio - 1 - mpmath.log(ratio) + offset**2 / self.var(kind, t, v)) / 2

    def decoder(self, kind, level, x_1, eps, v, num_levels):
        std = mpmath.sqrt(self.var(kind, 1, v))
        mean = self.model_mean(mpmath.mpf(float(x_1)), 1, mpmath.mpf(float(eps)))
        center, half = mpmath.mpf(2 * level) / (num_levels - 1) - 1, mpmath.mpf(1) / (num_levels - 1)

        def upper(z):
            return mpmath.erfc(z / mpmath.sqrt(2)) / 2

        low, high = (center - half - mean) / std, (center + half - mean) / std
        if level == 0:
            mass = upper(-high)
        elif level == num_levels - 1:
            mass = upper(low)
        else:
            mass = upper(low) - upper(high) if low + high > 0 else upper(-high) - upper(-low)
        return -mpmath.log(mass)
