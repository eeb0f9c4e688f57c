"""Uses of trained models: plain functions and classes, which need no config."""

from .cascade import Cascade, CascadeSamples, Stage, check_stages
from .latents import available_ways, draw_progressively, draw_shared, interpolate, interpolate_images
from .restoration import RestorationMethod, available_methods, draw_posterior, make_method, measure
