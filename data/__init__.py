"""Images as uint8 [N, C, H, W] or real vectors [N, D], plus labels, and batches of them that can be resumed exactly."""

from .base import Dataset, ImageDataset, ImageKind
from .beside import NOTHING, Beside, Column, TableRows
from .conditions import (
    ConditionMaker,
    Edges,
    GivenText,
    GivenValues,
    ImageMaker,
    ValuesMaker,
    available_conditions,
    downscale,
    make_conditions,
    register_condition,
)
from .couples import COUPLES, CoupleDataset, read_couples
from .errors import DataError
from .given import read_given_images, read_given_mask, read_given_values
from .kinds import image_kind
from .latents import LatentDataset
from .loader import eval_batches
from .recaptioning import captioned_as, mix_captions, read_caption_list
from .registry import available_datasets, load_dataset, register_dataset
from .sizes import ImageSize, height_and_width, one_or_pair
from .space import Codec, LatentSpace, LevelSpace, ModelSpace, RealSpace, Space
from .tensors import TensorDataset
from .vectors import AnyDataset, AnyKind, VectorDataset, VectorKind
from .video import VideoDataset, refuse_clips
from .words import NO_WORD, TextKind, Vocabulary, longest
