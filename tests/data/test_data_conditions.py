"""Conditions that are made of images."""

import numpy as np
import pytest
import torch
from torch import Tensor

from data import DataError, ImageDataset, ImageKind, LevelSpace, downscale, make_conditions, read_given_images
from data.conditions import Edges, LowResolution, Masked

GREY, COLOUR = ImageKind((1, 8, 8), 17), ImageKind((3, 4, 6), 256)


def images(kind: ImageKind, size: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(kind.num_levels, (size, *kind.image_shape), generator=generator, dtype=torch.uint8)


def test_low_resolution_is_the_exact_mean_where_its_levels_suffice():
    (maker,) = make_conditions(("lowres",), factor=2)
    x = images(GREY)
    small = maker.kind(GREY)
    assert small.image_shape == (1, 4, 4) and small.num_levels == 65
    mean = LevelSpace(17).encode(x).reshape(5, 1, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(LevelSpace(65).encode(maker.observe(x, GREY)), mean, rtol=0, atol=1e-6)
    told = maker.tell(mean, GREY)
    assert told.shape == x.shape and all(torch.equal(told[..., i::2, j::2], mean) for i in (0, 1) for j in (0, 1))


def test_low_resolution_of_many_levels_is_rounded_to_the_nearest_of_256():
    (maker,) = make_conditions(("lowres",), factor=2)
    x = images(COLOUR, 200)
    small = maker.observe(x, COLOUR)
    mean = x.double().reshape(200, 3, 2, 2, 3, 2).mean((3, 5))
    assert maker.kind(COLOUR).num_levels == 256 and small.dtype == torch.uint8
    assert torch.equal(small.double(), (mean + 0.5).floor())
    extremes = torch.stack([torch.zeros(3, 4, 6), torch.full((3, 4, 6), 255)]).to(torch.uint8)
    assert maker.observe(extremes, COLOUR).flatten(1).unique(dim=1).tolist() == [[0], [255]]


def test_digits_are_halved_twice_to_the_mean_of_sixteen_pixels():
    x = images(GREY)
    twice = downscale(ImageDataset(x, torch.zeros(5, dtype=torch.int64), 17, 1, "digits", "train"), (2, 2))
    total = x.long().reshape(5, 1, 2, 4, 2, 4).sum((3, 5))
    assert twice.num_levels == 256 and twice.image_shape == (1, 2, 2)
    assert torch.equal(twice.images.long(), (2 * total * 255 + 256) // 512)
    # 257 sums on 256 levels: two of them, next to one another, are told as one
    assert len({(2 * s * 255 + 256) // 512 for s in range(257)}) == 256


@pytest.mark.parametrize(
    ("name", "kind"), [("lowres", GREY), ("lowres", COLOUR), ("gray", COLOUR), ("edges", GREY), ("edges", COLOUR)]
)
def test_what_is_observed_of_a_flipped_image_is_flipped(name: str, kind: ImageKind):
    (maker,) = make_conditions((name,))
    x = images(kind)
    assert torch.equal(maker.observe(x.flip(-1), kind), maker.observe(x, kind).flip(-1))


def test_grey_is_the_luminance():
    (maker,) = make_conditions(("gray",))
    x = images(COLOUR, 50)
    exact = (x.double() * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1)).sum(1, keepdim=True)
    assert float((maker.observe(x, COLOUR) - exact).abs().max()) <= 0.5 + 1e-9
    assert maker.kind(COLOUR).image_shape == (1, 4, 6)


@pytest.mark.parametrize("hidden", ["left", "right", "top", "bottom", "center"])
def test_a_hidden_part_is_told_by_nothing_but_the_mask(hidden: str):
    maker, x = Masked(hidden=hidden), images(GREY)
    mask = maker.mask(GREY)
    assert mask.sum() == (48 if hidden == "center" else 32)
    where = {"left": mask[0, :, 0], "right": mask[0, :, -1], "top": mask[0, 0], "bottom": mask[0, -1],
             "center": mask[0, 3:5, 3:5]}[hidden]  # fmt: skip
    assert not where.any()
    told = maker.tell(LevelSpace(17).encode(maker.observe(x, GREY)), GREY)
    other = torch.where(mask.bool(), x, 16 - x)
    assert torch.equal(told, maker.tell(LevelSpace(17).encode(maker.observe(other, GREY)), GREY))
    assert told.shape == (5, 2, 8, 8) and torch.equal(told[:, 1:], mask.expand(5, 1, 8, 8))
    assert torch.equal(told[:, :1], LevelSpace(17).encode(x) * mask)


def test_edges_are_where_the_sobel_gradient_is_steep():
    maker, x = Edges(threshold=0.5), images(COLOUR, 50)
    padded = torch.nn.functional.pad(x.double() / 255, (1, 1, 1, 1), mode="replicate")
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64) / 4
    both = torch.stack([kernel, kernel.T])[:, None]
    gradient = torch.nn.functional.conv2d(padded.reshape(150, 1, 6, 8), both).norm(dim=1).reshape(50, 3, 4, 6)
    assert maker.kind(COLOUR).image_shape == (1, 4, 6) and maker.kind(COLOUR).num_levels == 2
    found = maker.observe(x, COLOUR)
    assert torch.equal(found, (gradient.amax(1, keepdim=True) >= 0.5).to(torch.uint8))
    assert 0.1 < float(found.double().mean()) < 0.9
    # black beside white: 1 on both sides of the edge, and 0 elsewhere
    half = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    half[..., 4:] = 16
    assert Edges(threshold=1.0).observe(half, GREY)[0, 0].tolist() == [[0, 0, 0, 1, 1, 0, 0, 0]] * 8
    assert not Edges(threshold=1.001).observe(half, GREY).any()


def test_ink_is_the_mean_grey():
    (maker,) = make_conditions(("ink",))
    x = images(GREY)
    assert maker.size(GREY) == 1
    torch.testing.assert_close(maker.values(x, GREY)[:, 0], x.float().mean((1, 2, 3)) / 8 - 1)


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("lowrez",), {}, "unknown condition 'lowrez'; did you mean 'lowres'?"),
        (("lowres",), {"factr": 2}, "option of conditions lowres: 'factr'; did you mean 'factor'?"),
        (("lowres",), {"factor": 1}, "factor must be at least 2"),
        (("edges",), {"threshold": 0}, r"threshold must lie in \(0, 1.118\], got 0"),
        (("edges",), {"threshold": 1.2}, r"threshold must lie in \(0, 1.118\], got 1.2"),
        (("masked",), {"hidden": "up"}, "unknown hidden 'up'"),
        ((), {"factor": 2}, r"option of conditions \(none\)"),
    ],
)
def test_unknown_conditions_are_refused(names: tuple[str, ...], options: dict[str, object], message: str):
    with pytest.raises(DataError, match=message):
        make_conditions(names, **options)


def test_images_that_have_no_such_observation_are_refused():
    with pytest.raises(DataError, match="images of 8x8 have no boxes of 3 pixels"):
        LowResolution(factor=3).kind(GREY)
    with pytest.raises(DataError, match="condition gray is of images of 3 channels, got 1"):
        make_conditions(("gray",))[0].kind(GREY)  # pyright: ignore


def test_given_images_come_to_the_levels_of_the_condition(tmp_path):
    kind = ImageKind((1, 4, 4), 65)
    levels = torch.randint(65, (3, 1, 4, 4), dtype=torch.uint8)
    path = tmp_path / "given.npz"
    # as samples.npz has them
    np.savez(path, LevelSpace(65).pixels(LevelSpace(65).encode(levels)), np.array([2, 0, 1]))
    found, labels = read_given_images(path, kind)
    assert torch.equal(found, levels) and labels is not None and labels.tolist() == [2, 0, 1]
    # as a data set has them
    np.savez(path, images=levels.permute(0, 2, 3, 1).numpy(), num_levels=65)
    found, labels = read_given_images(path, kind)
    assert torch.equal(found, levels) and labels is None
    with pytest.raises(DataError, match=r"condition images must be 1x8x8 \(C x H x W\), got 1x4x4; resize them"):
        read_given_images(path, ImageKind((1, 8, 8), 65))
    with pytest.raises(DataError, match="holds no images"):
        read_given_images(tmp_path / "nothing", kind)
    np.savez(path, images=np.zeros((0, 4, 4, 1), np.uint8))
    with pytest.raises(DataError, match="no images"):
        read_given_images(path, kind)
