"""Scenes of two coloured digits: their pixels, their law and their captions."""

import hashlib
import math
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from data import ImageDataset, load_dataset
from data.sources.scene_words import (
    HELD_OUT,
    RELATIONS,
    Scene,
    SceneObject,
    captions_of,
    entropy_bits,
    information_bits,
    objects_of,
    parse_caption,
    scenes_of,
)
from data.sources.scenes import CHANNELS, GEOMETRY, _shrunk  # pyright: ignore[reportPrivateUsage]

FEW = {"num_images": 600}


def load(split: str = "train", **options: object) -> ImageDataset:
    dataset = load_dataset("scenes", root=".", split=split, options=FEW | options)
    assert isinstance(dataset, ImageDataset)
    return dataset


def test_a_picture_has_its_objects_in_their_halves_in_their_colours_and_sizes():
    dataset, side = load(), 16
    assert dataset.kind.text is not None and dataset.num_levels == 17 and dataset.image_shape == (3, side, side)
    assert dataset.images.amax() == 16 and dataset.labels.tolist() == [0] * 600
    seen = Counter()
    for image, scene in zip(dataset.images, scenes_of("train", 600), strict=True):
        place = scene.in_place
        axis = 1 if place.relation == "above" else 2
        for half, one in zip(image.split(side // 2, axis), (place.first, place.second), strict=True):
            grey = half.amax(0)
            # every pixel is its grey times the colour
            assert torch.equal(half, grey * torch.tensor(CHANNELS[one.colour], dtype=torch.uint8).view(3, 1, 1))
            rows, columns = (grey > 0).any(1).nonzero()[:, 0], (grey > 0).any(0).nonzero()[:, 0]
            longer = max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1
            assert longer == GEOMETRY["digits"][1][one.size]
            seen[one] += 1
        across = (image.amax(0) > 0).any(axis - 1).nonzero()[:, 0]
        assert across[0] >= 2 and across[-1] < 14
    assert set(seen) == set(objects_of())


def test_small_digits_are_means_of_areas_and_big_ones_keep_their_pixels():
    grey = np.arange(64).reshape(8, 8) % 17
    assert np.array_equal(_shrunk(grey, 8), grey)
    # 4 x 2 -> 2 x 1: means of four, a half rounded up
    assert _shrunk(np.array([[0, 1], [0, 1], [7, 8], [8, 9]]), 2).tolist() == [[1], [8]]
    # 3 -> 2: pixels of one and a half, (1 + 2 / 2) / 1.5 and (2 / 2 + 4) / 1.5
    assert _shrunk(np.array([[1], [2], [4]]), 2).tolist() == [[1], [3]]


def test_they_are_the_same_on_every_machine_and_a_larger_set_begins_with_the_smaller():
    test, more = load("test"), load("test", num_images=1200)
    assert len(test) == 30 and test.other_split_size == 600 and load().other_split_size == 30
    digest = hashlib.sha256(test.images.numpy().tobytes() + "\n".join(test.captions or ()).encode()).hexdigest()
    assert digest.startswith("ca44def896bd258f")
    assert torch.equal(more.images[:30], test.images) and (more.captions or ())[:30] == test.captions
    assert test.captions == captions_of("test", 30)
    assert more.subset(30).captions == test.captions
    train = load()
    assert not torch.equal(train.images[:30], test.images) and (train.captions or ())[:30] != test.captions


def test_scenes_are_equally_likely_and_pairs_that_are_held_out_never_occur():
    scenes = scenes_of("train", 20_000)
    objects = Counter(one for scene in scenes for one in (scene.first, scene.second))
    assert set(objects) == set(objects_of()) and len(objects) == 2 * 54
    assert not {(one.colour, one.digit) for one in objects} & set(HELD_OUT)
    # chi2 of 107 and of 3 degrees of freedom, below their mean and five standard deviations
    assert sum((count - 40_000 / 108) ** 2 for count in objects.values()) / (40_000 / 108) < 107 + 5 * math.sqrt(214)
    relations = Counter(scene.relation for scene in scenes)
    assert sum((relations[name] - 5000) ** 2 for name in RELATIONS) / 5000 < 3 + 5 * math.sqrt(6)
    held_out = scenes_of("test", 500, pairs="held_out")
    assert {(one.colour, one.digit) for scene in held_out for one in (scene.first, scene.second)} == set(HELD_OUT)
    # one of each colour, of six digits
    assert len({colour for colour, _ in HELD_OUT}) == len({digit for _, digit in HELD_OUT}) == 6
    assert load("test", pairs="held_out").captions == captions_of("test", 30, pairs="held_out")


def test_captions_say_small_always_and_big_of_half_of_the_big_objects():
    captions, scenes = captions_of("train", 4000), scenes_of("train", 4000)
    assert captions[:3] == load().captions[:3]  # type: ignore[index]
    assert all(parse_caption(caption) == scene for caption, scene in zip(captions, scenes, strict=True))
    num_big = sum(one.size == "big" for scene in scenes for one in (scene.first, scene.second))
    said = sum(caption.split().count("big") for caption in captions)
    assert abs(said / num_big - 0.5) < 4 * 0.5 / num_big**0.5
    assert sum(caption.split().count("small") for caption in captions) == 8000 - num_big
    scene = Scene(SceneObject("small", "red", 3), SceneObject("big", "blue", 7), "above")
    assert scene.caption == "a small red three above a blue seven"
    assert scene.in_words(say_big=(True, True)) == "a small red three above a big blue seven"
    assert scene.in_place is scene
    below = Scene(scene.second, scene.first, "below")
    assert below.in_place == scene and below.caption == "a blue seven below a small red three"


def test_captions_are_parsed_and_others_refused_in_one_line():
    assert parse_caption("  A  big red THREE  left of a small white zero ") == Scene(
        SceneObject("big", "red", 3), SceneObject("small", "white", 0), "left of"
    )
    for text, words in {
        "": "must go on with a, got its end",
        "a red": "zero or one or",
        "the red three": "got 'the' as word 1",
        "a orange three above a red two": "red or green or blue or yellow or purple or white, got 'orange' as word 2",
        "a red three near a red two": "above or below or left of or right of, got 'near' as word 4",
        "a red three left a red two": "got 'left' as word 4",
        "a red ten above a red two": "got 'ten' as word 3",
        "a red three above a red two and a blue one": "must end after two objects, got 'and' beyond",
    }.items():
        with pytest.raises(ValueError, match=words) as caught:
            parse_caption(text)
        assert "\n" not in str(caught.value) and ";" in str(caught.value)


def test_wrong_captions_are_of_the_same_images_and_more_at_a_higher_rate():
    count = 4000
    right, some, most, all_ = (captions_of("train", count, wrong_captions=rate) for rate in (0, 0.2, 0.5, 1))
    changed = [np.array([a != b for a, b in zip(right, one, strict=True)]) for one in (some, most, all_)]
    assert not (changed[0] & ~changed[1]).any() and changed[2].mean() > 0.999
    for found, rate in zip(changed, (0.2, 0.5), strict=False):
        assert abs(found.mean() - rate) < 4 * (rate * (1 - rate) / count) ** 0.5
    # an image whose caption is wrong has the same wrong one at every rate
    assert all(a == b for a, b, wrong in zip(some, most, changed[0], strict=True) if wrong)
    assert captions_of("train", 50, wrong_captions=0.5) == most[:50]
    noisy = load(wrong_captions=0.2)
    assert torch.equal(noisy.images, load().images) and noisy.captions == some[:600]


def test_the_entropy_is_that_of_all_scenes_and_a_picture_has_one_bit_less():
    scenes = [Scene(a, b, relation) for a, b in product(objects_of("held_out"), repeat=2) for relation in RELATIONS]
    assert len(set(scenes)) == len(scenes) == 4 * 12**2
    assert entropy_bits("held_out") == pytest.approx(math.log2(len(scenes)))
    assert entropy_bits() == pytest.approx(2 * math.log2(108) + 2) and round(entropy_bits(), 2) == 15.51
    # I(x; c) of a picture that says all of its objects and places, by the joint table of pictures and captions
    pictures = sorted({scene.in_place for scene in scenes}, key=str)
    assert len(pictures) == len(scenes) / 2
    number = {picture: index for index, picture in enumerate(pictures)}
    for rate in (0.0, 0.2, 1.0):
        joint = np.full((len(pictures), len(scenes)), rate / len(scenes) / len(pictures))
        for column, scene in enumerate(scenes):
            joint[number[scene.in_place], column] += (1 - rate) / len(scenes)
        assert joint.sum() == pytest.approx(1)
        independent = joint.sum(1, keepdims=True) * joint.sum(0)
        full = joint[joint > 0] @ np.log2(joint[joint > 0] / independent[joint > 0])
        assert information_bits("held_out", wrong_captions=rate) == pytest.approx(full, abs=1e-9)
    assert information_bits() == pytest.approx(entropy_bits() - 1)


def test_mnist_is_a_base_too(real_data):
    dataset = load_dataset("scenes", root=real_data, split="test", options={"base": "mnist", "num_images": 400})
    assert dataset.image_shape == (3, 32, 32) and dataset.num_levels == 256
    assert dataset.captions == captions_of("test", 20)


def test_what_does_not_fit_is_refused(refuses):
    with refuses("unknown base 'cifar'", "choices: digits, mnist"):
        load(base="cifar")
    with refuses("unknown pairs 'some'", "choices: seen, held_out"):
        load("test", pairs="some")
    with refuses("pairs=held_out is of the test split alone, got the train split"):
        load(pairs="held_out")
    for wrong in (19, 2.5, True, "many"):
        with refuses("num_images must be a whole number, at least 20", wrong):
            load(num_images=wrong)
    for wrong in (-0.1, 1.1, math.nan, "none"):
        with refuses("wrong_captions must be a probability, 0 .. 1", wrong):
            load(wrong_captions=wrong)
    images, labels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)
    with refuses("captions must be 3, got 2; give one caption an image"):
        ImageDataset(images, labels, 2, 1, "mine", "train", captions=("a", "b"))
