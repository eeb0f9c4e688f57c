"""Vectors: from npz files and the two moons, and the space that networks see them in."""

from typing import Any

import numpy as np
import pytest
import torch

from data import RealSpace, VectorDataset, eval_batches, load_dataset
from training.batches import TrainBatches

RANDOM = np.random.RandomState(0)
VECTORS = RANDOM.randn(40, 3) * [1.0, 20.0, 1e-3] + [0.0, 5e6, -1.0]
LABELS = np.arange(40) % 4


def load(path, split="train", **options: Any) -> Any:
    return load_dataset("npz", root=path, split=split, **options)


@pytest.mark.parametrize("name", ["vectors", "data"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_one_file_is_split_and_standardized_by_its_train_split(name, dtype, tmp_path):
    values = VECTORS.astype(dtype)
    arrays: dict[str, Any] = {name: values, "labels": LABELS}
    np.savez(tmp_path / "x.npz", **arrays)
    train, test = load(tmp_path / "x.npz"), load(tmp_path / "x.npz", "test")
    assert (len(train), len(test), train.num_classes, test.num_classes) == (36, 4, 4, 4)
    rows = {tuple(row): label for row, label in zip(values.tolist(), LABELS.tolist(), strict=True)}
    for part in (train, test):
        assert isinstance(part, VectorDataset) and part.image_shape == (3,) and part.num_dims == 3
        assert [rows[tuple(row)] for row in part.vectors.tolist()] == part.labels.tolist()
    assert train.space == test.space
    assert train.space.mean == pytest.approx(train.vectors.numpy().mean(0), rel=1e-12)
    assert train.space.std == pytest.approx(train.vectors.numpy().std(0), rel=1e-9)
    assert (train.other_split_size, test.other_split_size) == (4, 36)


def test_two_files_and_two_arrays_are_the_same_splits(tmp_path):
    train, test = VECTORS[:30], VECTORS[30:]
    np.savez(tmp_path / "train.npz", vectors=train, labels=LABELS[:30] % 2)
    np.savez(tmp_path / "test.npz", vectors=test, labels=LABELS[30:])
    np.savez(
        tmp_path / "both.npz", train_vectors=train, test_vectors=test, train_labels=LABELS[:30], test_labels=LABELS[30:]
    )
    for split, expected in (("train", train), ("test", test)):
        for path in (tmp_path, tmp_path / "both.npz"):
            found = load(path, split)
            assert np.array_equal(found.vectors.numpy(), expected)
            assert found.space.mean == pytest.approx(train.mean(0)) and found.num_classes == 4


def test_the_space_is_standardization_and_its_volume():
    space = RealSpace.of(torch.from_numpy(VECTORS))
    x0 = space.encode(torch.from_numpy(VECTORS))
    assert x0.dtype == torch.float32
    # float32 enters after standardizing: an offset of 5e6 costs nothing
    truth = (VECTORS - VECTORS.mean(0)) / VECTORS.std(0)
    np.testing.assert_allclose(x0.numpy(), truth, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(space.decode(torch.from_numpy(truth)).numpy(), VECTORS, rtol=1e-12)
    jacobian = torch.autograd.functional.jacobian(
        lambda x: space.decode(x[None])[0], torch.zeros(3, dtype=torch.float64)
    )
    assert space.log_volume == pytest.approx(float(torch.linalg.slogdet(jacobian).logabsdet), rel=1e-12)


def test_batches_are_stored_vectors():
    moons: Any = load_dataset("moons", root=".", split="train")
    vectors, labels = TrainBatches(moons, batch_size=7, seed=3).batch(5)
    indices = TrainBatches(moons, batch_size=7, seed=3).indices(5)
    assert torch.equal(vectors, moons.vectors[indices]) and torch.equal(labels, moons.labels[indices])
    first, _ = next(eval_batches(moons, batch_size=5))
    assert torch.equal(first, moons.vectors[:5])


def test_moons_are_points_around_two_half_circles_the_same_every_time():
    def moons(split) -> Any:
        return load_dataset("moons", root=".", split=split)

    train, test, again = moons("train"), moons("test"), moons("train")
    assert torch.equal(train.vectors, again.vectors) and train.space == test.space
    assert (len(train), len(test)) == (10_000, 2_000)
    for part in (train, test):
        centers = torch.tensor([[0.0, 0.0], [1.0, 0.5]], dtype=torch.float64)[part.labels]
        offset = (part.vectors - centers).norm(dim=1) - 1
        # beside the ends of the half circles the distance is the noise across them
        assert abs(float(offset.mean())) < 0.015 and 0.09 < float(offset.std()) < 0.11
        assert (part.vectors[:, 1] - centers[:, 1])[part.labels == 0].min() > -0.5
        assert (part.vectors[:, 1] - centers[:, 1])[part.labels == 1].max() < 0.5
    shared = set(map(tuple, train.vectors.tolist())) & set(map(tuple, test.vectors.tolist()))
    assert not shared


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vectors": VECTORS[:, 0]}, "vectors must be floating point [N, D], got float64 [40]"),
        ({"vectors": LABELS[:, None]}, "vectors must be floating point [N, D], got int64 [40, 1]"),
        ({"images": VECTORS}, "save vectors under the name 'vectors'"),
        ({"vectors": np.where(VECTORS > 6e6, np.nan, VECTORS) * np.inf}, "vectors are not finite"),
        ({"vectors": VECTORS * [1, 0, 1]}, "dimension 1 of the vectors is constant"),
        ({"vectors": VECTORS, "labels": LABELS[:5]}, "has 5 labels, expected 40"),
        ({"test_vectors": VECTORS}, "has no array train_vectors"),
        ({"train_vectors": VECTORS, "test_vectors": VECTORS[:, :0]}, "vectors must be torch.float64 [N, D]"),
        ({"train_vectors": VECTORS, "test_vectors": VECTORS[:, :2]}, "vectors have 2 dimensions, but those"),
        ({"vectors": VECTORS[:0]}, "0 images cannot be divided"),
    ],
)
def test_bad_vectors_are_one_line(arrays: dict[str, Any], message, tmp_path, refuses):
    np.savez(tmp_path / "x.npz", **arrays)
    with refuses(message):
        load(tmp_path / "x.npz", "test" if "train_vectors" in arrays else "train")


def test_vectors_beside_images_are_refused(tmp_path, refuses):
    images = np.zeros((4, 2, 2, 1), np.uint8)
    for of_vectors, of_images in (
        ("vectors", "images"),
        ("vectors", "arr_0"),
        ("train_vectors", "train_images"),
        ("test_vectors", "test_images"),
    ):
        np.savez(tmp_path / "x.npz", **{of_vectors: VECTORS, of_images: images})
        with refuses(f"x.npz holds both images ({of_images}) and vectors ({of_vectors}); save one of them alone"):
            load(tmp_path / "x.npz")


def test_options_of_images_are_refused(tmp_path, refuses):
    np.savez(tmp_path / "x.npz", vectors=VECTORS)
    for options in ({"image_size": 8}, {"channels": 1}):
        with refuses("holds vectors, which have no image_size or channels"):
            load(tmp_path / "x.npz", **options)
    with refuses("random_flip mirrors images, but npz holds vectors"):
        TrainBatches(load(tmp_path / "x.npz"), batch_size=2, seed=0, random_flip=True)
