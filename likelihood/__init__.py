"""Likelihoods: -log p(x0), or bounds above it, in nats per image and bits/dim. Importing registers them."""

from .base import (
    LikelihoodEstimator,
    LikelihoodTerms,
    available_likelihoods,
    make_likelihood,
    register_likelihood,
)
from .continuous import ContinuousBound
from .decoder import discretized_gaussian_log_prob, level_entropy, levels_of
from .probability_flow import FlowLikelihood
from .term_sampling import draw_steps
from .units import RunningMean, mean_and_stderr, nats_to_bits_per_dim
from .variational import VariationalBound, decoder_nats, prior_kl, step_kl

__all__ = [
    "ContinuousBound",
    "FlowLikelihood",
    "LikelihoodEstimator",
    "LikelihoodTerms",
    "RunningMean",
    "VariationalBound",
    "available_likelihoods",
    "decoder_nats",
    "discretized_gaussian_log_prob",
    "draw_steps",
    "level_entropy",
    "levels_of",
    "make_likelihood",
    "mean_and_stderr",
    "nats_to_bits_per_dim",
    "prior_kl",
    "register_likelihood",
    "step_kl",
]
