"""Frozen text encoders; those that are trained with a network are a part of it, see ``backbones.WordEncoder``."""

from .pretrained import TransformersEncoder
