import numpy as np
import pytest
import torch

from data import eval_batches
from training.batches import TrainBatches


def order(batches, steps):
    return torch.cat([batches.batch(step)[1] for step in steps]).tolist()


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (7, 7), (5, 12), (1, 4), (6, 1)])
def test_every_epoch_visits_every_image_exactly_once(make_dataset, count, batch_size):
    batches = TrainBatches(make_dataset(count), batch_size=batch_size, seed=3)
    seen = order(batches, range(5 * count))
    assert len(seen) == 5 * count * batch_size
    for epoch in range(len(seen) // count):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_images_stay_with_their_labels(make_dataset):
    dataset = make_dataset(10)
    images, labels = TrainBatches(dataset, batch_size=25, seed=0).batch(4)
    assert images.shape == (25, 1, 2, 3) and images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert torch.equal(images, dataset.images[labels])


def test_a_batch_depends_on_seed_and_step_alone(make_dataset):
    dataset = make_dataset(10)
    straight = TrainBatches(dataset, batch_size=4, seed=5, random_flip=True)
    expected = [straight.batch(step) for step in range(20)]
    for step in (17, 3, 19, 0, 3, 11):
        resumed = TrainBatches(dataset, batch_size=4, seed=5, random_flip=True)
        for batches in (straight, resumed):
            images, labels = batches.batch(step)
            assert torch.equal(images, expected[step][0]) and torch.equal(labels, expected[step][1])


def test_global_random_state_is_neither_read_nor_written(make_dataset):
    batches = TrainBatches(make_dataset(10), batch_size=4, seed=5, random_flip=True)
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = batches.batch(7)[0]
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]
    torch.manual_seed(1)
    assert torch.equal(batches.batch(7)[0], first)


def test_epochs_and_seeds_have_orders_of_their_own(make_dataset):
    orders = {
        tuple(order(TrainBatches(make_dataset(50), batch_size=50, seed=seed), [epoch]))
        for seed in (0, 1, 2**40)
        for epoch in range(5)
    }
    assert len(orders) == 15


def test_the_batch_size_does_not_change_the_order(make_dataset):
    small = order(TrainBatches(make_dataset(10), batch_size=3, seed=1), range(20))
    large = order(TrainBatches(make_dataset(10), batch_size=12, seed=1), range(5))
    assert small == large


def test_the_order_never_moves(make_dataset):
    # A checkpoint written today must resume with the same images under any later version of NumPy.
    assert order(TrainBatches(make_dataset(8), batch_size=8, seed=0), [0, 1]) == [
        7,
        2,
        0,
        4,
        3,
        5,
        6,
        1,
        3,
        4,
        0,
        6,
        5,
        2,
        7,
        1,
    ]


def test_first_images_are_uniform_over_seeds(make_dataset):
    dataset = make_dataset(8)
    firsts = [order(TrainBatches(dataset, batch_size=1, seed=seed), [0])[0] for seed in range(1600)]
    counts = np.bincount(firsts, minlength=8)
    assert ((counts - 200) ** 2 / 200).sum() < 26  # chi-squared, 7 degrees: one in 2000


def test_flips_mirror_half_of_the_images_and_leave_the_order_alone(make_dataset):
    dataset = make_dataset(500)
    plain = TrainBatches(dataset, batch_size=1000, seed=9)
    flipped = TrainBatches(dataset, batch_size=1000, seed=9, random_flip=True)
    counts = []
    for step in range(4):
        (expected, labels), (images, same_labels) = plain.batch(step), flipped.batch(step)
        assert torch.equal(labels, same_labels)
        kept = (images == expected).flatten(1).all(1)
        mirrored = (images == expected.flip(-1)).flatten(1).all(1)
        assert torch.all(kept ^ mirrored)
        counts.append(int(mirrored.sum()))
    assert len(set(counts)) > 1
    assert abs(sum(counts) - 2000) < 4 * np.sqrt(4000) / 2
    assert torch.equal(dataset.images, make_dataset(500).images)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_must_be_positive(refuses, make_dataset, batch_size):
    with refuses(f"batch_size must be at least 1, got {batch_size}"):
        TrainBatches(make_dataset(3), batch_size=batch_size, seed=0)
    with refuses(f"batch_size must be at least 1, got {batch_size}"):
        eval_batches(make_dataset(3), batch_size=batch_size)


def test_negative_seed_and_step_are_refused(refuses, make_dataset):
    with refuses("seed", "-1"):
        TrainBatches(make_dataset(3), batch_size=1, seed=-1)
    with refuses("step", "-1"):
        TrainBatches(make_dataset(3), batch_size=1, seed=0).batch(-1)


@pytest.mark.parametrize(
    ("batch_size", "num_images", "sizes"),
    [(4, 0, [4, 4, 2]), (4, 10, [4, 4, 2]), (4, 5, [4, 1]), (5, 0, [5, 5]), (64, 0, [10]), (4, 3, [3])],
)
def test_eval_goes_once_through_the_first_images_in_order(make_dataset, batch_size, num_images, sizes):
    dataset = make_dataset(10)
    found = list(eval_batches(dataset, batch_size=batch_size, num_images=num_images))
    assert [len(images) for images, _ in found] == sizes
    count = num_images or 10
    assert torch.equal(torch.cat([images for images, _ in found]), dataset.images[:count])
    assert torch.cat([labels for _, labels in found]).tolist() == list(range(count))


@pytest.mark.parametrize("num_images", [11, -1])
def test_eval_of_more_images_than_there_are_names_the_size(refuses, make_dataset, num_images):
    with refuses("10, the size of the toy train split", f"got {num_images}"):
        eval_batches(make_dataset(10), batch_size=4, num_images=num_images)
