"""Checkpoints of published projects as models, a folder or file a project; reading them runs no code."""

from .autoencoder_kl.importer import from_autoencoder_kl
from .autoencoder_vq.importer import from_autoencoder_vq
from .consistency.importer import from_consistency
from .controlnet.importer import from_controlnet
from .ddpm import from_ddpm
from .diffusers.export import export_diffusers
from .diffusers.importer import from_diffusers
from .diffusers.prior import from_diffusers_prior
from .dit.diffusers import from_diffusers_dit
from .dit.importer import from_dit, from_sit
from .edm.importer import from_edm
from .guided.importer import from_guided_classifier, from_guided_diffusion, from_guided_file, from_improved_diffusion
from .latent_diffusion.importer import from_latent_diffusion
from .score_sde.importer import from_score_sde
from .shared.plan import (
    BACKBONES,
    ModelPlan,
    PlannedClassifier,
    PlannedConsistencyModel,
    PlannedFirstStage,
    PlannedModel,
    default_options,
)
from .stable_diffusion import from_stable_diffusion
