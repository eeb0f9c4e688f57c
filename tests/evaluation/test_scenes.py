"""Drawn scenes read from their pixels, and their grades."""

import math
from itertools import product

import pytest
import torch

from data import ImageDataset, LevelSpace, load_dataset
from data.sources.scene_words import RELATIONS, Scene, SceneObject, objects_of, parse_caption, scenes_of
from evaluation.scenes import GRADES, SceneReader, chance_levels, grade_estimates, grade_scenes, train_scene_reader

RED, BLUE = SceneObject("small", "red", 3), SceneObject("big", "blue", 7)


def load(split: str, num_images: int, **options: object) -> ImageDataset:
    dataset = load_dataset("scenes", root=".", split=split, options={"num_images": num_images} | options)
    assert isinstance(dataset, ImageDataset)
    return dataset


@pytest.fixture(scope="module")
def reader() -> SceneReader:
    """A reader that has learned for a few seconds."""
    return train_scene_reader(load("train", 2000), num_steps=80)


def grades(asked: Scene, drawn: Scene | None) -> dict[str, float]:
    return {name: float(value) for name, value in grade_scenes([asked], [drawn]).items()}


def test_real_scenes_are_read(reader: SceneReader):
    test = load("test", 10_000)
    truth, drawn = scenes_of("test", 500), reader.read(test.space.encode(test.images))
    found = grade_estimates(grade_scenes(truth, drawn))
    assert found["colour"].value == found["size"].value == 1 and found["relation"].value > 0.995
    assert found["digit"].value > 0.93  # after 80 steps; see the slow test
    assert found["pair"] == found["digit"] and found["all"].value <= found["digit"].value
    # either order of naming is one scene
    assert all(scene is None or scene.relation in ("above", "left of") for scene in drawn)
    swapped = [Scene(one.second, one.first, _opposite(one.relation)) for one in truth]
    assert grade_estimates(grade_scenes(swapped, drawn)) == found
    # and each image's answer is its own
    assert reader.read(test.space.encode(test.images[7:9])) == drawn[7:9]


@pytest.mark.slow
@pytest.mark.parametrize("pairs", ["seen", "held_out"])
def test_at_least_98_of_100_held_out_digits_are_read_and_all_else_without_error(trained: SceneReader, pairs: str):
    test = load("test", 40_000, pairs=pairs)
    found = grade_scenes(scenes_of("test", 2000, pairs=pairs), trained.read(test.space.encode(test.images)))
    means = {name: float(values.mean()) for name, values in found.items()}
    assert means["colour"] == means["size"] == 1 and means["relation"] > 0.999 and means["digit"] >= 0.985


@pytest.fixture(scope="module")
def trained() -> SceneReader:
    return train_scene_reader(load("train", 20_000))


def _opposite(relation: str) -> str:
    return RELATIONS[RELATIONS.index(relation) ^ 1]


def test_noise_and_other_levels_do_not_change_what_is_read(reader: SceneReader):
    test = load("test", 4000)
    clean = test.space.encode(test.images)
    noisy = clean + 0.15 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    rounded = LevelSpace(256).encode(LevelSpace(256).decode(noisy))
    truth = scenes_of("test", 200)
    for images in (noisy, rounded):
        found = grade_scenes(truth, reader.read(images))
        assert all(float(found[name].mean()) > 0.98 for name in ("size", "colour", "relation"))


def test_images_with_less_than_two_objects_are_wrong_throughout(reader: SceneReader):
    test, truth = load("test", 4000), scenes_of("test", 200)
    x = test.space.encode(test.images)
    black, grey = torch.full_like(x, -1), torch.zeros_like(x)
    one_half = torch.stack([
        image.where((torch.arange(16) < 8).view((1, 16, 1) if scene.in_place.relation == "above" else (1, 1, 16)), -1)
        for image, scene in zip(x, truth, strict=True)
    ])  # fmt: skip
    blob = black.clone()
    blob[:, 0, 4:12, 5:11] = 1
    dots = black.clone()
    dots[:, :, 2, 2] = dots[:, :, 13, 13] = 1
    cyan = x.clone()
    cyan[:, 0], cyan[:, 2] = -1, cyan[:, 1]
    for images in (black, one_half, blob, dots, cyan):
        drawn = reader.read(images)
        assert drawn == (None,) * 200
        assert all(not values.any() for values in grade_scenes(truth, drawn).values())
    # of noise something may be read, but no image is an error
    reader.read(torch.cat([grey, torch.randn(50, 3, 16, 16, generator=torch.Generator().manual_seed(1))]))


def test_each_mistake_is_counted_where_it_is():
    asked, right = Scene(RED, BLUE, "left of"), dict.fromkeys(GRADES, 1.0)
    assert grades(asked, asked) == grades(asked, Scene(BLUE, RED, "right of")) == right
    assert grades(asked, None) == dict.fromkeys(GRADES, 0.0)
    for drawn, wrong in {
        Scene(SceneObject("big", "red", 3), BLUE, "left of"): {"size": 0.5},
        Scene(RED, SceneObject("big", "green", 7), "left of"): {"colour": 0.5, "pair": 0.5},
        Scene(SceneObject("small", "red", 5), BLUE, "left of"): {"digit": 0.5, "pair": 0.5},
        Scene(RED, BLUE, "right of"): {"relation": 0.0},
        Scene(RED, BLUE, "above"): {"relation": 0.0},
        # of colours that have changed objects, those are matched that agree in more: size and digit
        Scene(SceneObject("small", "blue", 3), SceneObject("big", "red", 7), "left of"): {"colour": 0.0, "pair": 0.0},
        Scene(SceneObject("big", "red", 3), SceneObject("small", "blue", 7), "right of"): {
            "size": 0.0,
            "relation": 0.0,
        },
    }.items():
        assert grades(asked, drawn) == right | wrong | {"all": 0.0}, drawn


def test_standard_errors_are_those_of_images_not_of_objects():
    asked = [parse_caption("a red three above a blue seven")] * 100
    drawn = [parse_caption("a red three above a blue seven")] * 50 + [parse_caption("a red one above a blue two")] * 50
    digit = grade_estimates(grade_scenes(asked, drawn))["digit"]
    # both objects of an image are right or wrong at once
    assert digit.value == 0.5 and digit.stderr == pytest.approx(math.sqrt(0.25 / 99))


def test_chance_is_the_mean_over_all_scenes_that_could_be_drawn():
    asked = [Scene(RED, BLUE, "left of"), Scene(RED, RED, "below"), *scenes_of("test", 3, pairs="held_out")]
    every = [
        Scene(first, second, relation)
        for first, second in product(objects_of("held_out"), repeat=2)
        for relation in ("above", "left of")
    ]
    chance = chance_levels(asked, pairs="held_out")
    whole = [grade_scenes([one] * len(every), every) for one in asked]
    for name in GRADES:
        assert chance[name] == pytest.approx(float(torch.cat([one[name] for one in whole]).mean()), abs=1e-12)
    # a scene of seen pairs is one of 2 * 108^2 pictures; objects that are alike leave the relation to the halves
    assert chance_levels([Scene(BLUE, RED, "above")])["all"] == pytest.approx(1 / (2 * 108**2))
    assert chance_levels([Scene(RED, RED, "above")])["relation"] == pytest.approx(1 / 2)


def test_shuffled_captions_are_at_chance():
    truth = scenes_of("test", 4001)
    chance, found = chance_levels(truth[1:]), grade_estimates(grade_scenes(truth[1:], truth[:-1]))
    for name in GRADES[:-1]:
        # images and captions that are neighbours are dependent: m-dependence of 1 at most doubles the variance
        assert abs(found[name].value - chance[name]) < 4 * math.sqrt(2) * found[name].stderr, name
    # 1 / 4, and as much more as both ways to match agree alike in 18 % of the cases and more
    assert 0.3 < chance["relation"] < 0.36 and chance["colour"] > 1 / 6


def test_training_is_a_function_of_the_seed_and_leaves_the_global_generator():
    train = load("train", 200)
    before = torch.get_rng_state()
    first, again, other = (train_scene_reader(train, num_steps=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [list(one.classifier.state_dict().values()) for one in (first, again, other)]
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not torch.equal(weights[0][0], weights[2][0]) and not first.classifier.training


def test_what_cannot_be_read_is_refused(reader: SceneReader):
    with pytest.raises(ValueError, match=r"floats in \[-1, 1\] of shape \[N, 3, 16, 16\], got torch.uint8"):
        reader.read(load("test", 20).images)
    with pytest.raises(ValueError, match=r"got torch.float32 \[1, 3, 32, 32\]; pass dataset.space.encode"):
        reader.read(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="finite, got 1 of 2"):
        reader.read(torch.stack([torch.zeros(3, 16, 16), torch.full((3, 16, 16), math.nan)]))
    with pytest.raises(ValueError, match="train must be the train split of scenes, got scenes test"):
        train_scene_reader(load("test", 20))
    with pytest.raises(ValueError, match=r"16x16 or 32x32, got \[3, 8, 8\]"):
        SceneReader(torch.nn.Identity(), (3, 8, 8))
    with pytest.raises(ValueError, match="at least 1, got 1 and 0"):
        grade_scenes([Scene(RED, BLUE, "above")], [])
