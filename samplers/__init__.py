"""Samplers: numbers that turn a ScoreModel and noise into data. Importing this package registers its own."""

from .ancestral import AncestralSampler
from .base import Hook, Sampler, SampleResult, StepSampler, StepState
from .ddim import DDIMSampler
from .registry import available_samplers, make_sampler, register_sampler

__all__ = [
    "AncestralSampler",
    "DDIMSampler",
    "Hook",
    "SampleResult",
    "Sampler",
    "StepSampler",
    "StepState",
    "available_samplers",
    "make_sampler",
    "register_sampler",
]
