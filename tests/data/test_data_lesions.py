"""Digits with soft lesions at known places, and their masks."""

import hashlib

import numpy as np
import pytest
import torch

from data import ImageDataset, downscale, load_dataset
from data.sources.lesions import HEALTHY_IMAGES, HEALTHY_MASKS, TIGHT


def load(name: str, split: str = "train", **options: object) -> ImageDataset:
    dataset = load_dataset(name, root=".", split=split, options=options)
    assert isinstance(dataset, ImageDataset)
    return dataset


def share_is(found: torch.Tensor, expected: float) -> None:
    """The share of true entries is within four standard errors."""
    assert abs(float(found.double().mean()) - expected) < 4 * (expected * (1 - expected) / len(found)) ** 0.5


def test_healthy_images_are_the_digits_and_lesions_change_them_where_the_mask_is():
    base, lesions = (load(name) for name in ("digits", "lesions"))
    assert (lesions.kind.image_shape, lesions.num_levels, lesions.class_names) == ((1, 8, 8), 17, ("healthy", "lesion"))
    masks, has = lesions.masks, lesions.labels == 1
    assert masks is not None and masks.shape == (1437, 1, 8, 8)
    share_is(has, 1 - HEALTHY_IMAGES)
    assert torch.equal(lesions.images[~has], base.images[~has]) and not masks[~has].any()
    change = (lesions.images.int() - base.images.int()).abs()
    extreme = ((base.images == 0) | (base.images == 16)) & masks
    assert change[extreme].min() >= 3 and change[extreme].float().mean() > 6  # half of 0.4 of 16 at the rim
    area = masks[has].sum((1, 2, 3)).double()
    # pi r^2 of r uniform on [1.25, 2]
    assert area.mean() == pytest.approx(np.pi * (2**3 - 1.25**3) / 3 / 0.75, abs=0.15)
    assert area.min() >= 4 and area.max() <= 15


def test_they_are_the_same_on_every_machine():
    test = load("lesions", "test")
    digest = hashlib.sha256(test.images.numpy().tobytes()).hexdigest()
    assert digest.startswith("a3c522d6fdd6f0bc")
    assert test.masks is not None and test.masks[2, 0, 3].tolist() == [False] * 3 + [True] + [False] * 4
    # train and test have other lesions, of other digits
    assert load("lesions").other_split_size == len(test) == 360


def test_a_mask_is_an_image_of_two_levels_beside_its_image():
    masks, lesions = load("lesion_masks"), load("lesions")
    assert masks.num_levels == 2 and masks.kind.paired_channels == 1 and masks.kind.paired_levels == 17
    assert torch.equal(masks.images.bool(), masks.masks) and masks.paired is not None
    share_is(masks.labels == 0, HEALTHY_MASKS)
    # a lesion that both have is the same one
    both = (masks.labels == 1) & (lesions.labels == 1)
    assert both.any() and torch.equal(masks.paired[both], lesions.images[both])
    assert not masks.images[masks.labels == 0].any()


def test_annotators_draw_a_tight_outline_or_a_wide_one():
    one, many = load("lesion_masks"), load("lesion_masks", annotators=30)
    has = many.labels == 1
    assert one.masks is not None and many.masks is not None and torch.equal(one.paired, many.paired)  # pyright: ignore
    drawn, true = many.masks[has], one.masks[has]
    areas = drawn.sum((2, 3))
    assert not many.masks[~has].any()
    tight = areas == areas.min(1, keepdim=True).values
    assert all(len(row.unique()) == 2 for row in areas)
    for annotator in range(3):
        share_is(tight[:, annotator], TIGHT)
    # each by themselves
    share_is(tight[:, 0] & tight[:, 1], TIGHT**2)
    # the true outline encloses the tight one, and is within the wide one
    assert ((drawn & true) == torch.where(tight[..., None, None], drawn, true)).all()
    assert torch.equal(many.images.bool(), many.masks[:, :1])
    three = load("lesion_masks", annotators=3)
    assert three.masks is not None and torch.equal(three.masks, many.masks[:, :3])


def test_all_changes_are_within_the_wide_outline_and_the_tight_one_is_of_one_grey():
    base, many = load("digits", "test"), load("lesion_masks", "test", annotators=30)
    assert many.masks is not None and many.paired is not None
    tight, wide = many.masks.all(1, keepdim=True), many.masks.any(1, keepdim=True)
    assert not (many.paired != base.images)[~wide].any()
    for image, core in zip(many.paired, tight, strict=True):
        assert len(image[core].unique()) <= 1 and all(6 <= grey <= 10 for grey in image[core].unique())


def test_mnist_is_a_base_too(real_data):
    masks = load_dataset("lesion_masks", root=real_data, split="test", options={"base": "mnist"})
    assert masks.kind.paired_levels == 256 and masks.image_shape[1:] == (28, 28)


def test_what_does_not_fit_is_refused(refuses):
    with refuses("unknown option of data set lesions: 'annotators'", "choices: base"):
        load("lesions", annotators=2)
    with refuses("unknown base 'cifar'", "choices: digits, mnist"):
        load("lesions", base="cifar")
    with refuses("annotators must be at least 1, a whole number, got 0"):
        load("lesion_masks", annotators=0)
    with refuses("a mask beside each, which is not downscaled"):
        downscale(load("lesions", "test"), (2,))


def test_what_lies_beside_images_must_fit_them(refuses):
    images, labels = torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)

    def made(**beside: object) -> ImageDataset:
        return ImageDataset(images, labels, 2, 1, "mine", "train", **beside)  # pyright: ignore[reportArgumentType]

    whole = made(paired=images.repeat(1, 2, 1, 1), masks=images.bool())
    first = whole.subset(2)
    assert whole.kind.paired_channels == 2 and first.paired is not None and first.masks is not None
    assert len(first.paired) == len(first.masks) == 2
    with refuses("paired images must be [N, c, H, W], N = 3, H = 4, W = 4, got [3, 1, 5, 4]"):
        made(paired=torch.zeros(3, 1, 5, 4, dtype=torch.uint8))
    with refuses("pixel values must be 0 .. 1, got 2"):
        made(paired=images + 2, paired_levels=2)
    with refuses("masks must be torch.bool, got torch.uint8"):
        made(masks=images)
    with refuses("masks must be [N, A, H, W], N = 3"):
        made(masks=images[:2].bool())
