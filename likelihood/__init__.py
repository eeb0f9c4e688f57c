"""Likelihoods: -log p(x0), or bounds above it, in nats per image and bits/dim. Importing registers them."""

from .base import (
    LikelihoodEstimator,
    LikelihoodTerms,
    available_likelihoods,
    make_likelihood,
    register_likelihood,
)
from .by_class import ClassTerms, LikelihoodByClass
from .continuous import ContinuousBound
from .decoder import discretized_gaussian_log_prob, level_entropy, levels_of
from .first_stage import FirstStageBound, FirstStageTerms, first_stage_terms, pixel_nats
from .latent import LatentBound
from .probability_flow import FlowLikelihood
from .term_sampling import draw_steps
from .units import RunningMean, mean_and_stderr, nats_to_bits_per_dim
from .variational import VariationalBound, decoder_nats, prior_kl, step_kl
