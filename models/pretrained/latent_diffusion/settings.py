"""Settings of latent-diffusion's ``LatentDiffusion`` and of its ``UNetModel``."""

from __future__ import annotations

from dataclasses import replace

from ..guided.settings import plan_guided
from ..shared.plan import ModelPlan, scaled_linear
from ..shared.settings import Config, Settings

# of the diffusion, which guided-diffusion says otherwise
_OF_DIFFUSION = ("beta_schedule", "linear_end", "linear_start", "parameterization", "scale_factor", "timesteps")
# of networks that attend to a text or to classes, and of how the others are run
_NO_TRANSFORMER = {"context_dim": None, "legacy": True, "transformer_depth": 1, "use_spatial_transformer": False}


def plan_latent_diffusion_unet(config: Config) -> ModelPlan:
    """Plan the score model of a latent diffusion.

    Its networks are those of guided-diffusion, its schedule is not: what it calls "linear" is linear in sqrt(beta).

    Args:
        config: See ``from_latent_diffusion``.

    Raises:
        ValueError: In one line: a setting is unknown, impossible, or of a network that is not supported.
    """
    settings = Settings(config)
    if "model_channels" not in settings.values:
        raise ValueError(
            "config must say model_channels and the other arguments of UNetModel, which the checkpoint does not; "
            "write them as flags, as configs/pretrained/ldm_celebahq.py does"
        )
    settings.refuse_unless(beta_schedule="linear", **_NO_TRANSFORMER)
    parameterization = settings.choice("parameterization", "eps", ("eps", "x0"))
    steps = settings.integer("timesteps", 1000, least=2)
    sde = scaled_linear(settings.number("linear_start", 1e-4), settings.number("linear_end", 0.02), steps)
    ours = {*_OF_DIFFUSION, *_NO_TRANSFORMER}
    network = {name: value for name, value in settings.values.items() if name not in ours}
    return replace(plan_guided(network), sde=sde, parameterization=parameterization)
