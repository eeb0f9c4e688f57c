"""Score networks, their parameterizations, exact oracles and wrappers."""

from .condition import Cond, Condition, null_of
from .consistency import ConsistencyModel, Generator, QuantileFlow
from .dequantizer import Dequantizer, place_on_bin
from .exact import DiscreteScoreModel, GaussianMixtureScoreModel
from .exact_conditional import LabelledMixtureScoreModel, LinearGaussianScoreModel, ObservedGaussianScoreModel
from .first_stage import (
    Autoencoder,
    Bottleneck,
    CodeLatent,
    FirstStage,
    GaussianLatent,
    GaussianPixels,
    LevelPixels,
    PixelDistribution,
    VectorLatent,
)
from .grey_levels import LevelsParameterization, level_posterior_mean
from .latent import LatentDiffusion, is_own_state
from .noisy_classifier import NetworkModel, NoisyClassifier
from .operators import (
    CircularBlur,
    Downsampling,
    Grayscale,
    Identity,
    Inpainting,
    LinearOperator,
    MatrixOperator,
    available_operators,
    make_operator,
    register_operator,
)
from .parameterization import (
    EDMParameterization,
    EpsParameterization,
    Parameterization,
    ScoreParameterization,
    VelocityParameterization,
    VParameterization,
    X0Parameterization,
    make_parameterization,
    register_parameterization,
    time_input,
)
from .prediction import Prediction
from .probability_flow import FlowEquation, follow_flow
from .reverse_variance import ReverseVariance, check_variance, interpolate_log_var, pick_variance, reverse_log_var
from .score_model import (
    Answer,
    CallCounter,
    NetworkScoreModel,
    ScoreModel,
    check_score_model,
    count_network_calls,
    require_flow,
    require_posterior_mean,
)
from .wrappers.classifier_guidance import ClassifierGuidedScoreModel
from .wrappers.clipping import ClippedScoreModel, ThresholdedScoreModel
from .wrappers.guidance import CFGPlusPlusWeight, GuidedScoreModel, check_interval, check_same_sde
from .wrappers.posterior import (
    DDNMScoreModel,
    DPSScoreModel,
    DPSStepScoreModel,
    MMPSScoreModel,
    ObservedScoreModel,
    PiGDMScoreModel,
    TMPDScoreModel,
    available_posteriors,
    make_posterior,
    register_posterior,
)
from .wrappers.recomputed import RecomputedScoreModel
from .wrappers.told_above import ToldAboveScoreModel
