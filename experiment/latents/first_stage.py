"""The autoencoder of a latent model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data import ImageKind
from models import FirstStage
from models.pretrained import default_options

from ..checkpoints.weights import weights_digest
from ..config import Config

# images encoded at once, whatever the batch size of a run: the last digits of a latent depend on it
AT_ONCE = 100


def sees_latents(config: Config) -> bool:
    """Tell a model of an autoencoder's latents from one of pixels."""
    return bool(config.data.get("first_stage") or config.model.get("first_stage"))


class FirstStageCodec:
    """An autoencoder as data see it; see ``data.Codec``.

    Args:
        model: The autoencoder, in evaluation mode.
    """

    def __init__(self, model: FirstStage) -> None:
        self.model = model

    @property
    def device(self) -> torch.device:
        """The device on which it computes."""
        return next(self.model.parameters()).device

    def encode(self, x0: Tensor) -> Tensor:
        """The mean latent of images in [-1, 1], [N, C, H, W]."""
        return self._by_parts(x0, lambda part: self.model.encode(part).mean)

    def decode(self, z: Tensor) -> Tensor:
        """The mean image of latents, [N, c, h, w]."""
        return self._by_parts(z, lambda part: self.model.decode(part).mean)

    @torch.no_grad()
    def _by_parts(self, batch: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.cat([function(part.to(self.device)).to(batch.device) for part in batch.split(AT_ONCE)])


@dataclass(frozen=True)
class LoadedFirstStage:
    """An autoencoder from its work directory.

    Attributes:
        model: The autoencoder with its averaged weights, in evaluation mode.
        kind: The images that it is of.
        workdir: Its work directory.
        digest: See ``first_stage_digest``.
    """

    model: FirstStage
    kind: ImageKind
    workdir: Path
    digest: str


def first_stage_digest(model: FirstStage) -> str:
    """Digest of all that an autoencoder computes by: its weights, and the options of its network.

    Options at their defaults are left out, so that those that later versions add make it no other one.
    """
    defaults = default_options("autoencoder")
    options = {name: value for name, value in model.backbone.options.items() if value != defaults[name]}
    told = json.dumps({"weights": weights_digest(model), "options": options}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()
