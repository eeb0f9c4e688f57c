"""Networks that map scaled noisy data, a noise label and perhaps a class to a raw prediction; nothing but torch."""

from .adm import ADM
from .classifier import EncoderClassifier
from .embedding import ConditioningEmbedding, EmbeddingKind, FourierEmbedding, sinusoidal_embedding
from .input_features import InputFourierFeatures
from .layers import AttentionBlock, ResBlock
from .mlp import MLP
from .ncsnpp import NCSNpp
from .ncsnpp_blocks import NoiseLabelEmbedding
from .normalization import GroupNorm, group_norm
from .resampling import Downsample, Upsample
from .resolutions import ImageSize, height_and_width, level_resolutions, one_or_pair
from .unet import UNet

__all__ = [
    "ADM",
    "MLP",
    "AttentionBlock",
    "ConditioningEmbedding",
    "Downsample",
    "EmbeddingKind",
    "EncoderClassifier",
    "FourierEmbedding",
    "GroupNorm",
    "ImageSize",
    "InputFourierFeatures",
    "NCSNpp",
    "NoiseLabelEmbedding",
    "ResBlock",
    "UNet",
    "Upsample",
    "group_norm",
    "height_and_width",
    "level_resolutions",
    "one_or_pair",
    "sinusoidal_embedding",
]
