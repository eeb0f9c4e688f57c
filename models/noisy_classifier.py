"""A classifier of noisy data, whose gradient guides a score model."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from sde_lib import SDE, check_per_sample

from .consistency import ConsistencyModel
from .first_stage import FirstStage
from .parameterization import TimeInput, time_input
from .score_model import NetworkScoreModel


class NoisyClassifier(nn.Module):
    """log p(class | x_t) at time t of an SDE, and its gradient.

    Args:
        backbone: Network from ([B, ...], [B]) to logits [B, K].
        sde: The SDE it is trained on.
        time_input: What the network is told of t; see ``time_input``.

    Source: Dhariwal and Nichol 2021, Section 4.
    """

    def __init__(self, backbone: nn.Module, sde: SDE, *, time_input: TimeInput = "auto") -> None:
        super().__init__()
        self.backbone = backbone
        self.sde = sde
        self.time_input: TimeInput = time_input

    def with_backbone(self, backbone: nn.Module) -> NoisyClassifier:
        """The same classifier around another backbone; the SDE is shared."""
        return NoisyClassifier(backbone, self.sde, time_input=self.time_input)

    def forward(self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, " batch"]) -> Float[Tensor, "batch classes"]:
        """Logits of p(class | x_t).

        Args:
            x_t: Noisy data, [B, ...].
            t: Times in [0, 1], [B].

        Raises:
            ValueError: If t is not of shape [B].
        """
        check_per_sample("t", t, x_t.shape[0])
        return self.backbone(x_t, time_input(self.time_input, self.sde, t))

    def class_log_prob(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        """log p(class | x_t) of every class, [B, K]."""
        return self(x_t, t).log_softmax(dim=1)

    def grad_log_prob(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, " batch"], label: Int64[Tensor, " batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """The gradient of log p(label | x_t) with respect to x_t.

        Args:
            x_t: Noisy data, [B, ...].
            t: Times in [0, 1], [B].
            label: Classes, [B].
        """
        return grad_of_class(lambda x: self.class_log_prob(x, t), x_t, label)


def grad_of_class(
    log_probs: Callable[[Tensor], Tensor], x_t: Float[Tensor, "batch *shape"], label: Int64[Tensor, " batch"]
) -> Float[Tensor, "batch *shape"]:
    """The gradient of log p(label | x_t) with respect to x_t, also where gradients are switched off.

    Args:
        log_probs: From x_t to log p(class | x_t) of every class, [B, K].
        x_t: Noisy data, [B, ...].
        label: Classes, [B].
    """
    with torch.enable_grad():
        x_t = x_t.detach().requires_grad_(True)
        # each sample's log-probability depends on its own x_t alone
        return torch.autograd.grad(log_probs(x_t).gather(1, label[:, None]).sum(), x_t)[0]


NetworkModel = NetworkScoreModel | ConsistencyModel | NoisyClassifier | FirstStage
