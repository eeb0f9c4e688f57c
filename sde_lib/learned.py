"""The variance-preserving SDE whose noise schedule is trained with the network (Kingma et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.options import whole_number

from .base import SDE, PerSample
from .inverse import invert_falling

_MARGIN = 0.25  # how far the units reach beyond [0, 1], so that its ends are as its middle
_SHARPEST = 40.0  # largest slope that a unit starts with: a tenth of the schedule from its low to its high end
_UNIT_SHARE = 4.0  # the units' part of the slope over that of t itself, at the start


class GradientSplit:
    """The per-sample losses that ``LearnedVP.split_gradients`` waits for.

    Kept without its graph: that would hold this object by its hooks, and none of the two were ever freed.
    """

    def __init__(self) -> None:
        self._loss: Tensor | None = None

    @property
    def loss(self) -> Tensor | None:
        """The loss of each sample, [B], to be set before ``backward``; without a gradient when read."""
        return self._loss

    @loss.setter
    def loss(self, loss: Tensor) -> None:
        self._loss = loss.detach()

    def scale(self, grad: Tensor) -> Tensor:
        """d mean(loss) turned into d mean(loss^2), for a gradient with respect to something of each sample, [B].

        Raises:
            RuntimeError: If the loss is not set, or is not of the shape of the times.
        """
        if self.loss is None:
            raise RuntimeError("the loss of each sample must be set before backward; assign it to split.loss")
        if self.loss.shape != grad.shape:
            raise RuntimeError(
                f"split.loss must have the shape of the times, {list(grad.shape)}, got {list(self.loss.shape)}; "
                "pass one loss and one time a sample"
            )
        return 2 * self.loss.to(grad) * grad


class LearnedVP(SDE, nn.Module):
    """VP-SDE with a learned log-SNR (Kingma et al. 2021, Section 3.2 and Appendix H):

        alpha^2 = sigmoid(-gamma), sigma^2 = sigmoid(gamma), gamma = -lambda, with
        gamma(t) = gamma_min + (gamma_max - gamma_min) (g(t) - g(0)) / (g(1) - g(0)),
        g(t) = t + sum_j h_j sigmoid(k_j t + b_j), all k_j and h_j above 0.

    g is the paper's l1(t) + l3(sigmoid(l2(l1(t)))): scaled to its ends it loses its own scale and offset, so that l1
    can be t itself and l3 needs no bias, whatever their weights were. The k and h are the exponentials of parameters.
    A new schedule takes no random numbers and is linear in t to 4 digits, its units spread over t.

    At t = 0 there is noise, as for VE: the decoder, or a denoising step, ends at gamma_min.

    It is a module: a model that holds it trains, averages, moves and saves its parameters. They are float64, as is all
    that is computed from them, also in a model that is cast to another type, and under autocast. Where gradients are
    recorded, they reach the parameters through everything but ``time_from_log_snr`` and ``time_from_sigma``.

    Training it: the continuous-time bound depends on the ends alone (Kingma et al. 2021, Section 5.1), so that they
    follow its gradient. What lies between only sets the variance of the estimate

        loss_i = -1/2 lambda'(t_i) |eps_i - eps_hat(x_{t_i}, t_i)|^2,   t_i ~ U[0, 1],

    whose mean over t, x0 and eps does not depend on it: it follows the gradient of mean(loss_i^2), then that of the
    variance (Appendix I.2). ``split_gradients`` gives both in one backward pass. The mean is invariant only if
    the network is told the noise level and not t: let its time input be a function of log-SNR or sigma.

    Args:
        log_snr_max: lambda(0) = -gamma_min at the start of training.
        log_snr_min: lambda(1) = -gamma_max at the start of training, below ``log_snr_max``.
        hidden_size: Number of units. The paper's network has 1024. Fitted to the linear and to the cosine schedule from
            t = 0.001 on, 64 come as close as 1024 (0.05 and 0.6 at worst, where these bend next to their ends).

    Raises:
        ValueError: If the ends are not in order, or there is no unit.
    """

    t_min = 0.0
    prior_std = 1.0

    def __init__(self, *, log_snr_max: float = 13.3, log_snr_min: float = -5.0, hidden_size: int = 64) -> None:
        super().__init__()
        if not -700 < log_snr_min < log_snr_max < 700:
            raise ValueError(
                f"LearnedVP needs -700 < log_snr_min < log_snr_max < 700, got {log_snr_min} and {log_snr_max}; "
                "try -5 and 13.3"
            )
        hidden_size = whole_number("hidden_size", hidden_size, fix="try 64")
        spacing = (1 + 2 * _MARGIN) / hidden_size
        centers = (torch.arange(hidden_size, dtype=torch.float64) + 0.5) * spacing - _MARGIN
        slopes = torch.full_like(centers, min(1 / spacing, _SHARPEST))
        self.gamma_min = nn.Parameter(torch.tensor(-log_snr_max, dtype=torch.float64))
        self.gamma_max = nn.Parameter(torch.tensor(-log_snr_min, dtype=torch.float64))
        self.log_slope = nn.Parameter(slopes.log())
        self.bias = nn.Parameter(-slopes * centers)
        self.log_height = nn.Parameter(torch.full_like(centers, _UNIT_SHARE * spacing).log())
        self._split: GradientSplit | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LearnedVP:
        """Move to another device, but stay in float64: at lambda = 13 a float32 alpha^2 has lost its distance to 1."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    def inner_parameters(self) -> list[nn.Parameter]:
        """The parameters between the ends, which only the variance of an estimate of the bound depends on."""
        return [self.log_slope, self.bias, self.log_height]

    @contextmanager
    def split_gradients(self) -> Iterator[GradientSplit]:
        """Let the inner parameters follow mean(loss^2), while all others follow mean(loss), in one backward pass.

        The loss of a sample depends on the inner parameters through its own gamma(t_i) and gamma'(t_i) alone, where the
        gradient is multiplied by 2 loss_i on its way back (Kingma et al. 2021, Appendix I.2). What is not a term of the
        sum over t, as L_0 and L_T, adds nothing there, since the ends are not theirs. The gradient of the square is
        10 to 100 times as large as the others also in bits per dimension: a limit on gradient norms needs to be apart.

        Yields:
            Where to put the losses, [B], once they are known; the times that the schedule is asked for must be [B] too.

        Example:
            >>> with sde.split_gradients() as split:
            ...     log_snr, rate = sde.log_snr_and_rate(t)
            ...     eps_hat = model(sde.perturb(x0, t, eps), t).eps
            ...     loss = -0.5 * rate * (eps - eps_hat).square().flatten(1).sum(1)
            ...     split.loss = loss
            >>> loss.mean().backward()
        """
        split = GradientSplit()
        self._split = split
        try:
            yield split
        finally:
            self._split = None

    def _share_and_rate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(g(t) - g(0)) / (g(1) - g(0)) in [0, 1], and its derivative."""
        t = t.double().to(self.bias.device)
        # with t = 1 in the same tensor, for g(1) - g(0)
        times = torch.cat([t.flatten(), t.new_ones(1)])[:, None]
        slope, height = self.log_slope.exp(), self.log_height.exp()
        at_zero, at_t = torch.sigmoid(-self.bias), torch.sigmoid(slope * times + self.bias)
        # sigmoid(x) - sigmoid(y) = sigmoid(x) sigmoid(-y) (1 - exp(y - x)) keeps its digits where x is close to y
        rise = times[:, 0] - (height * at_t * at_zero * torch.expm1(-slope * times)).sum(1)
        rise_rate = 1 + (height * slope * at_t * torch.sigmoid(-(slope * times + self.bias))).sum(1)
        share, rate = (rise[:-1] / rise[-1]).view(t.shape), (rise_rate[:-1] / rise[-1]).view(t.shape)
        # exact at t = 1 in any order of summation; only the value moves
        share = share + torch.where(t == 1, 1 - share, 0.0).detach()
        if self._split is not None:
            for value in (share, rate):
                if value.requires_grad:
                    value.register_hook(self._split.scale)
        return share, rate

    def log_snr_and_rate(self, t: PerSample) -> tuple[PerSample, PerSample]:
        """lambda(t) and d lambda / dt, in closed form: one backward pass through both reaches the parameters."""
        share, rate = self._share_and_rate(t)
        gamma = (1 - share) * self.gamma_min + share * self.gamma_max
        return -gamma.to(t.device), -((self.gamma_max - self.gamma_min) * rate).to(t.device)

    def log_snr(self, t: PerSample) -> PerSample:
        """lambda(t) = -gamma(t)."""
        return self.log_snr_and_rate(t)[0]

    def log_alpha(self, t: PerSample) -> PerSample:
        """1/2 log sigmoid(lambda)."""
        return 0.5 * F.logsigmoid(self.log_snr(t))

    def log_sigma(self, t: PerSample) -> PerSample:
        """1/2 log sigmoid(-lambda)."""
        return 0.5 * F.logsigmoid(-self.log_snr(t))

    def alpha_sigma(self, t: PerSample) -> tuple[PerSample, PerSample]:
        """alpha(t) and sigma(t), from one evaluation of the schedule."""
        log_snr = self.log_snr(t)
        return (0.5 * F.logsigmoid(log_snr)).exp(), (0.5 * F.logsigmoid(-log_snr)).exp()

    def drift_coeff(self, t: PerSample) -> PerSample:
        """f = -g^2 / 2."""
        return -0.5 * self.diffusion_sq(t)

    def diffusion_sq(self, t: PerSample) -> PerSample:
        """g^2 = -sigma^2 d lambda / dt."""
        log_snr, rate = self.log_snr_and_rate(t)
        return -torch.sigmoid(-log_snr) * rate

    @torch.no_grad()
    def time_from_log_snr(self, log_snr: PerSample) -> PerSample:
        """The t in [0, 1] at which lambda(t) is ``log_snr``; out of reach, the nearer end. Without a gradient."""
        target = log_snr.double().to(self.bias.device)
        start = (-self.gamma_min - target) / (self.gamma_max - self.gamma_min)
        return invert_falling(self.log_snr_and_rate, target, start.clamp(0.0, 1.0)).to(log_snr.device)

    def time_from_sigma(self, sigma: PerSample) -> PerSample:
        """The t in [0, 1] at which sigma(t) is ``sigma``, through lambda = log(1 - sigma^2) - 2 log sigma."""
        var = sigma.double().square().clamp(max=1.0)
        return self.time_from_log_snr(torch.log1p(-var) - var.log())
