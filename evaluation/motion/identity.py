"""The digit that each frame of a clip shows, by a classifier that is trained on still digits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Int64, UInt8
from torch import Tensor

from data import ImageDataset, LevelSpace

from ..quality import DigitClassifier, train_feature_classifier
from .tracks import centred


@dataclass(frozen=True)
class DigitReader:
    """Reads digits from frames, wherever they are.

    Attributes:
        classifier: Of digits around their centre of mass.
        side: Side of a digit in pixels.
        num_levels: Number of grey levels.
        accuracy: Share of the held-out digits that it names right.
    """

    classifier: DigitClassifier
    side: int
    num_levels: int
    accuracy: float

    def read(self, clips: UInt8[Tensor, "clips frames height width"]) -> Int64[Tensor, "clips frames"]:
        """The digit of each frame; -1 of a black one."""
        crops = centred(clips, self.side)
        x = LevelSpace(self.num_levels).encode(crops.flatten(0, 1)[:, None])
        found = self.classifier(x).argmax(1).view(crops.shape[:2])
        return found.masked_fill(~(clips > 0).flatten(2).any(2), -1)

    def keeps_identity(self, clips: UInt8[Tensor, "clips frames height width"]) -> Tensor:
        """True for clips all of whose frames show one digit, bool [N]."""
        found = self.read(clips)
        return (found == found[:, :1]).all(1) & (found[:, 0] >= 0)


def train_digit_reader(train: ImageDataset, held_out: ImageDataset, *, seed: int = 0) -> DigitReader:
    """Train a ``DigitReader`` on still digits, grey; the same for the same seed.

    Args:
        train: Images and labels to learn, such as those of ``digits``.
        held_out: Those to count the accuracy on.
        seed: Seed of the weights and batches.
    """
    side = train.image_shape[1]
    splits = (replace(one, images=centred(one.images, side)) for one in (train, held_out))
    classifier, accuracy = train_feature_classifier(*splits, seed=seed)
    return DigitReader(classifier, side, train.num_levels, accuracy)
