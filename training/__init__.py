"""Fitting a network: losses, time samplers, the trainer and what it changes."""

from .ema import ExponentialMovingAverage
from .fit import fit
from .losses import Loss, TimeSampler, make_loss, register_loss
from .state import TrainingState
from .trainer import StepResult, Trainer, TrainingOptions
