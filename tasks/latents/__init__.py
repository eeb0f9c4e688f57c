"""Latents: ways between two of them, images that share one, and the image that each holds."""

from .interpolation import Interpolation, available_ways, flow_latents, interpolate, interpolate_images, q_latents
from .progress import PosteriorDraws, draw_shared, noised, predictions_along, shared_correlation
