"""Samplers turn a ScoreModel and noise into data. Importing this package registers its own."""

from sde_lib import Point, available_ode_solvers, combine, points_at_log_snr, points_of

from .annealed_langevin import AnnealedLangevinSampler
from .base import Hook, Sampler, SampleResult, StepState
from .consistency import ConsistencySampler
from .correctors import (
    AnnealedLangevinCorrector,
    Corrector,
    LangevinCorrector,
    NoCorrector,
    available_correctors,
    make_corrector,
    register_corrector,
)
from .ddim import DDIMSampler
from .denoiser import Denoiser
from .dpm_solver import DPMSolverPPSampler
from .grid_sampler import GridSampler
from .heun import HeunSampler
from .predictor_corrector import PredictorCorrectorSampler
from .predictors import (
    AncestralPredictor,
    AncestralSampler,
    EulerMaruyamaPredictor,
    EulerMaruyamaSampler,
    NoPredictor,
    Predictor,
    ReverseDiffusionPredictor,
    ReverseDiffusionSampler,
    available_predictors,
    make_predictor,
    register_predictor,
)
from .probability_flow import FlowResult, ProbabilityFlowSampler
from .registry import available_samplers, make_sampler, register_sampler
from .replacement import ReplaceObserved
from .resampling import ResampledSampler
from .twisted import TwistedResult, TwistedSampler
from .unipc import UniPCSampler
