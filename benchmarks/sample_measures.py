"""All measures of a set of images against data: distances, precision and recall, density and coverage."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor

from data import ImageDataset
from evaluation.kernel_distance import kernel_distance
from evaluation.nearest import Neighbourhoods, coverage, coverage_of_one_law, density, precision, recall
from evaluation.quality import (
    Estimate,
    frechet_distance,
    grouped_estimate,
    sliced_wasserstein,
    train_feature_classifier,
)

_MOST_REFERENCE = 5000
# passes over the images of the classifier's training: 20 over digits, 3 over MNIST
_SEEN, _LEAST_EPOCHS, _MOST_EPOCHS = 100_000, 3, 20


class SampleMeasures:
    """Measures of samples against training images, with one standard error over draws of the samples.

    Those whose expectation depends on the number of samples are means over groups of one size: the Frechet and sliced
    Wasserstein distances, recall and coverage. The others, the kernel distance, precision and density, are of all
    samples at once. The features are those of a classifier that is trained here.

    Balls are about as many training images as a group has: where there were many more, samples would reach balls at
    random, few each, and coverage would hardly fall where modes are missing.

    Args:
        train: What samples are compared with; of many images 5,000 to 10,000, evenly spread.
        held_out: Gives the floor, of whole groups: images as good as samples can be.
        group_size: Samples in a group, at most as many as ``held_out`` has and as there are to compare with.
        num_projections: Directions of the sliced Wasserstein distance.

    Attributes:
        group_size: As given.
        accuracy: The share of held-out images that the classifier names right.
        floor: The measures of held-out images.
    """

    def __init__(
        self, train: ImageDataset, held_out: ImageDataset, *, group_size: int, num_projections: int = 200
    ) -> None:
        self._space, self.group_size, self._num_projections = train.space, group_size, num_projections
        num_epochs = min(max(_SEEN // len(train), _LEAST_EPOCHS), _MOST_EPOCHS)
        self._classifier, self.accuracy = train_feature_classifier(train, held_out, num_epochs=num_epochs)
        every = max(len(train) // _MOST_REFERENCE, 1)
        self._pixels = self._space.encode(train.images[::every])
        self._features = self._of(self._pixels)
        centers = torch.arange(group_size) * len(self._features) // group_size
        self._balls = Neighbourhoods(self._features[centers])
        # neighbours in a data set may be of one writer
        count = len(held_out) // group_size
        spread = torch.cat([torch.arange(k, count * group_size, count) for k in range(count)])
        self.floor = self(self._space.encode(held_out.images[spread]))

    def __call__(self, x0: Tensor) -> dict[str, dict[str, float]]:
        """Measure samples [N, C, H, W], N a multiple of the group, rounded to the data's grey levels first."""
        pixels = self._space.encode(self._space.decode(x0))
        features = self._of(pixels)
        grouped = partial(grouped_estimate, group_size=self.group_size, num_blocks=min(36, self.group_size))

        def sliced(part: Tensor) -> float:
            return sliced_wasserstein(part, self._pixels, num_projections=self._num_projections).value

        found: dict[str, Estimate] = {
            "frechet": grouped(partial(frechet_distance, features_b=self._features), features),
            "kernel": kernel_distance(features, self._features),
            "sliced": grouped(sliced, pixels),
            "precision": precision(features, self._balls),
            "recall": grouped(partial(recall, reference=self._balls), features),
            "density": density(features, self._balls),
            "coverage": grouped(partial(coverage, reference=self._balls), features),
        }
        return {name: asdict(one) for name, one in found.items()}

    def about(self) -> dict[str, Any]:
        """The facts that a report needs to be read."""
        size, k = self.group_size, self._balls.num_neighbours
        return {
            "group_size": size,
            "num_reference": len(self._features),
            "num_projections": self._num_projections,
            "num_neighbours": k,
            "coverage_of_one_law": coverage_of_one_law(size, size, num_neighbours=k),
            "floor": self.floor,
        }

    def _of(self, pixels: Tensor) -> Tensor:
        return torch.cat([self._classifier.features(part) for part in pixels.split(1000)])
