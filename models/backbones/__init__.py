"""Networks that map scaled noisy data, a noise label and perhaps a class to a raw prediction; nothing but torch."""

from .embedding import ConditioningEmbedding, EmbeddingKind, FourierEmbedding, sinusoidal_embedding
from .input_features import InputFourierFeatures
from .layers import AttentionBlock, ResBlock
from .mlp import MLP
from .normalization import GroupNorm, group_norm
from .resampling import Downsample, Upsample
from .unet import UNet

__all__ = [
    "MLP",
    "AttentionBlock",
    "ConditioningEmbedding",
    "Downsample",
    "EmbeddingKind",
    "FourierEmbedding",
    "GroupNorm",
    "InputFourierFeatures",
    "ResBlock",
    "UNet",
    "Upsample",
    "group_norm",
    "sinusoidal_embedding",
]
