"""Checkpoints of published projects as score models, a folder or file a project; reading them runs no code."""

from .ddpm import from_ddpm
from .diffusers.export import export_diffusers
from .diffusers.importer import from_diffusers
from .edm.importer import from_edm
from .guided.importer import from_guided_classifier, from_guided_diffusion, from_guided_file, from_improved_diffusion
from .score_sde.importer import from_score_sde
from .shared.plan import BACKBONES, ModelPlan, PlannedClassifier, PlannedModel, default_options
