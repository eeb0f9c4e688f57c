"""Checkpoints of published projects as score models, one file a source; reading them runs no code."""

from .ddpm import from_ddpm
from .diffusers import from_diffusers
from .edm import from_edm
from .guided import from_guided_classifier, from_guided_diffusion, from_improved_diffusion
from .plan import BACKBONES, Backbone, ModelPlan, PlannedModel
from .score_sde import from_score_sde
from .to_diffusers import export_diffusers

__all__ = [
    "BACKBONES",
    "Backbone",
    "ModelPlan",
    "PlannedModel",
    "export_diffusers",
    "from_ddpm",
    "from_diffusers",
    "from_edm",
    "from_guided_classifier",
    "from_guided_diffusion",
    "from_improved_diffusion",
    "from_score_sde",
]
