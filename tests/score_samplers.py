"""The samplers of score models: all but that of consistency models."""

from samplers import available_samplers

OF_SCORES = [name for name in available_samplers() if name != "consistency"]
