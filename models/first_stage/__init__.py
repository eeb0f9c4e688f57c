"""First stages: encoders of data into smaller latents, and decoders that say how probable the data are given them."""

from .autoencoder import Autoencoder
from .bottlenecks import (
    Bottleneck,
    DiagonalNoise,
    FiniteScalars,
    FixedNoise,
    available_bottlenecks,
    make_bottleneck,
)
from .latent import CodeLatent, GaussianLatent, Latent
from .model import FirstStage, FirstStageAnswer
from .pixels import GaussianPixels, LevelPixels, PixelDistribution, available_pixels, read_pixels
