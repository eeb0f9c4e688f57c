"""scikit-learn's two moons: points around two half circles that reach into each other, in the plane."""

import torch

from ..base import check_split
from ..space import RealSpace
from ..vectors import VectorDataset

NUM_TRAIN, NUM_TEST = 10_000, 2_000
NOISE = 0.1  # standard deviation around the half circles, whose radius is 1


def load_moons(*, split: str) -> VectorDataset:
    """Draw the moons by scikit-learn's ``make_moons``; nothing is read from ``root``.

    With an angle a, uniform on a grid from 0 to pi, the points are (cos a, sin a) of the upper moon and
    (1 - cos a, 1/2 - sin a) of the lower one, each plus Gaussian noise of standard deviation 0.1.

    Args:
        split: ``"train"``, 10,000 points, or ``"test"``, 2,000; each is the same one every time.

    Returns:
        Vectors [N, 2], of class 0 on the upper moon and 1 on the lower one.

    Raises:
        DataError: If ``split`` is unknown.
    """
    # imported here: scikit-learn takes longer to import than every other dataset needs to load
    from sklearn.datasets import make_moons

    check_split(split)
    drawn = {
        name: make_moons(count, noise=NOISE, random_state=seed)
        for seed, (name, count) in enumerate((("train", NUM_TRAIN), ("test", NUM_TEST)))
    }
    points, labels = drawn[split]
    return VectorDataset(
        vectors=torch.from_numpy(points),
        labels=torch.from_numpy(labels),
        space=RealSpace.of(torch.from_numpy(drawn["train"][0])),
        num_classes=2,
        name="moons",
        split=split,
        class_names=("upper", "lower"),
        split_source="drawn with two seeds",
        other_split_size=NUM_TEST if split == "train" else NUM_TRAIN,
    )
