"""Networks that map scaled noisy data, a noise label and perhaps a class to a raw prediction; nothing but torch."""

from .adm import ADM
from .base import Backbone
from .blocks.condition_input import ConditionInput
from .blocks.embedding import ConditioningEmbedding, FourierEmbedding, NoiseLabelEmbedding, sinusoidal_embedding
from .blocks.input_features import InputFourierFeatures
from .blocks.layers import AttentionBlock, ResBlock
from .blocks.normalization import group_norm
from .blocks.resampling import Downsample, Upsample
from .blocks.resolutions import ImageSize, height_and_width, level_resolutions, one_or_pair
from .blocks.word_encoder import EncodedText, WordEncoder
from .classifier import EncoderClassifier
from .control import ControlledBackbone, ControlNet, HintStem
from .dit import DiT
from .mlp import MLP
from .ncsnpp import NCSNpp
from .prior_transformer import PriorTransformer
from .space_time import SpaceTimeDiT
from .unet import UNet
