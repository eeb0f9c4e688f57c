"""Losses, and the times that they take."""

from .autoencoder import AutoencoderLoss
from .base import LOSSES, Loss, make_loss, register_loss, weighted_error
from .bounds import ContinuousBoundLoss, DequantizedLoss, HybridLoss, VariationalLoss, check_trains, timestep_bits
from .classification import CrossEntropyLoss
from .consistency import (
    ConsistencyDistillation,
    ConsistencyLoss,
    ConsistencyTraining,
    ConsistencyTuning,
)
from .continuous_consistency import ContinuousConsistency
from .denoising import DDPMLoss, DenoisingScoreMatching, ReflowLoss, TableLoss
from .joint import JointLoss
from .matching import DistributionMatching
from .progressive import ProgressiveLoss
from .step_sampling import LogSNRTimes, LossHistory, TimeDraw, TimeSampler, UniformTimes
