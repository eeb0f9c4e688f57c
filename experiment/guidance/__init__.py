"""Guidance from a config: by a weight, by another run, or by a classifier."""

from .classifier import guide_by_classifier, load_classifier, with_classes_of_classifier
from .sampled import (
    Reference,
    check_unguided,
    described,
    guidance_in_words,
    is_guided,
    load_reference,
    sampled_consistency_model,
    sampled_model,
)
