"""Samplers by name."""

from __future__ import annotations

from runtime.registry import Registry

from .base import Sampler

SAMPLERS: Registry[Sampler] = Registry("sampler")
register_sampler, available_samplers, make_sampler = SAMPLERS.register, SAMPLERS.names, SAMPLERS.make
