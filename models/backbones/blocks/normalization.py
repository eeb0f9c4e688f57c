"""Group normalization, with a form of its own for the code that inductor makes for a CPU."""

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """``nn.GroupNorm``, which under ``torch.compile`` on a CPU is computed from the moments of each channel.

    The mean and variance of a group are those of its channels' means and variances, ``m = mean_c(m_c)`` and
    ``v = mean_c(v_c + (m_c - m)^2)``, in which nothing cancels. In channels-last memory the moments of a channel are
    sums over rows of contiguous numbers, and what follows is one multiplication and addition a number: both passes
    vectorize and fuse with what stands before and after, which the sum over a group's few adjacent channels does not.
    Groups are gathered and spread by products with a matrix of zeros and ones, never in bfloat16.

    Source: Wu and He 2018; Chan et al. 1979 for the moments.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalize [B, C, ...] over each group of channels and all positions; the result has the type of ``input``."""
        if torch.compiler.is_compiling() and input.device.type == "cpu" and input.ndim == 4:
            return self._by_channel_moments(input)
        return super().forward(input)

    def _by_channel_moments(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        with torch.autocast("cpu", enabled=False):
            wide = x.to(torch.promote_types(self.weight.dtype, torch.float32))
            var, mean = torch.var_mean(wide, (2, 3), correction=0)
            group_of = torch.arange(channels, device=x.device) // (channels // self.num_groups)
            member = (group_of == torch.arange(self.num_groups, device=x.device)[:, None]).to(wide.dtype)
            average = member.t() * (self.num_groups / channels)
            group_mean = mean @ average
            group_var = (var + (mean - group_mean @ member).square()) @ average
            inverse_std = (group_var + self.eps).rsqrt()
            spread = member * self.weight.to(wide.dtype)
            gain = inverse_std @ spread
            shift = self.bias - (group_mean * inverse_std) @ spread
            out = wide * gain.view(batch, channels, 1, 1) + shift.view(batch, channels, 1, 1)
        return out.to(x.dtype)


def group_norm(channels: int, eps: float = 1e-6, *, max_groups: int = 32) -> GroupNorm:
    """Group normalization with Ho et al.'s 32 groups, or a fitting number of groups for narrow networks.

    Where 32 divides the channels there are 32 groups, always. Elsewhere it is the largest divisor of ``channels``
    that leaves at least four channels a group (one group below eight channels), and at most 32.

    A group of one channel cancels whatever is constant over that channel, an additive time embedding included: a
    residual block of exactly 32 channels sees the time only with ``scale_shift`` or with fewer ``max_groups``.

    Args:
        channels: Number of channels.
        eps: Added to the variance; 1e-6 in Ho et al.'s network, 1e-5 in Improved DDPM.
        max_groups: Replaces the number 32 above.

    Returns:
        The layer, with unit gain and zero bias.

    Raises:
        ValueError: ``channels`` or ``max_groups`` is below 1.

    Source: Wu and He 2018; Ho et al. 2020, Appendix B.
    """
    if channels < 1 or max_groups < 1:
        raise ValueError(f"channels and groups must be at least 1, got {channels} channels and {max_groups} groups")
    groups = max_groups
    if channels % groups:
        limit = max(1, min(max_groups, channels // 4))
        groups = next(count for count in range(limit, 0, -1) if channels % count == 0)
    return GroupNorm(groups, channels, eps=eps)
