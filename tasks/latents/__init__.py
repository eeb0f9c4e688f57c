"""Latents: ways between two of them, images that share one, and the image that each holds."""

from .interpolation import Interpolation, available_ways, flow_latents, interpolate, interpolate_images, q_latents
from .progress import (
    PosteriorDraws,
    ProgressiveSamples,
    common_variance,
    draw_progressively,
    draw_shared,
    gaussian_correlation,
    noised,
    prediction_times,
    predictions_along,
    shared_correlation,
    variances_of,
)
