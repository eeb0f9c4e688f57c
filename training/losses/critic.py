"""The network beside a generator: the score of its samples, and perhaps a head that tells them from data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from models import Cond, Prediction, ScoreModel
from models.backbones import ADM
from sde_lib import SDE


class Discriminator(nn.Module):
    """A head on the middle of a network: a logit, larger for data than for samples (Yin et al. 2024, Section 4.3).

    Args:
        channels: Channels of the middle.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.linear = nn.Linear(channels, 1)

    def forward(self, features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " batch"]:
        """Logits, [B]."""
        return self.linear(F.silu(self.conv(F.silu(features))).mean((2, 3)))[:, 0]


class Critic(nn.Module):
    """The score model of a generator's samples, trained beside it with an optimizer of its own.

    Args:
        fake: The score model, such as a copy of the teacher.
        adversarial: Add a ``Discriminator``, of a network with a middle.

    Raises:
        ValueError: If the network has no middle.

    Attributes:
        optimizer: The optimizer of ``fake`` and the head: Adam unless ``optimize_by`` says otherwise.
    """

    def __init__(self, fake: ScoreModel, *, adversarial: bool = False) -> None:
        super().__init__()
        self.fake = fake
        self.head = Discriminator(_network_of(fake).widths[-1]) if adversarial else None
        if self.head is not None:
            self.head.to(next(fake.parameters()).device)
        self.optimize_by(torch.optim.Adam(self.parameters()))

    @property
    def sde(self) -> SDE:
        """The SDE of the score model."""
        return self.fake.sde

    def optimize_by(self, optimizer: torch.optim.Optimizer) -> None:
        """Take Adam or AdamW over all parameters, with its state as it is before the first step."""
        self.optimizer = optimizer
        # PyTorch makes it in that step, but a checkpoint is to have it always
        for parameter in self.parameters():
            zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            step = torch.zeros((), dtype=torch.float32, device=parameter.device)
            self.optimizer.state[parameter] = {"step": step, **zeros}

    def memory(self) -> dict[str, Tensor]:
        """Weights and moments, by name, which change in place."""
        state = {f"fake.{name}": tensor for name, tensor in self.state_dict().items()}
        for number, parameter in enumerate(self.parameters()):
            entries = self.optimizer.state[parameter]
            state |= {f"fake_optim.{number}.{key}": value for key, value in entries.items()}
        return state

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> tuple[Prediction, Tensor | None]:
        """The prediction at x_t, and the head's logits, [B], where there is one."""
        if self.head is None:
            return self.fake(x_t, t, cond=cond), None
        with _middle_of(self.fake) as seen:
            prediction = self.fake(x_t, t, cond=cond)
        return prediction, self.head(seen[0])


def _network_of(model: ScoreModel) -> ADM:
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, ADM):
        raise ValueError(
            f"distillation.gan needs a unet or adm, got {type(backbone or model).__name__}; set it to 0, or take one"
        )
    return backbone


@contextmanager
def _middle_of(model: ScoreModel) -> Iterator[list[Tensor]]:
    """Keep what the middle of the network answers within the ``with`` block."""
    seen: list[Tensor] = []
    handle = _network_of(model).middle.register_forward_hook(lambda *of: seen.append(of[2]))
    try:
        yield seen
    finally:
        handle.remove()
