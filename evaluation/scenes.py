"""Drawn scenes of two digits read from their pixels, and graded against the scenes that were asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import product

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from data import ImageDataset
from data.sources.scene_words import COLOURS, Scene, SceneObject, objects_of, scenes_of
from data.sources.scenes import CHANNELS, GEOMETRY
from likelihood import mean_and_stderr

from .quality import Estimate

GRADES = ("size", "colour", "digit", "pair", "relation", "all")
_LEAST_INK = 0.25  # of white: darker pixels are neither part of an object's box nor of where it is
_LEAST_SIZE = 0.75  # of a small digit, in length and in distance: what is less is half of a digit that was cut


class SceneReader:
    """Reads scenes from images: colours and boxes by their pixels, digits by a classifier.

    The picture is cut in its middle, across or down, whichever moves the two parts' ink further apart. The colour of
    a part is the one that most of its ink has; the box of the pixels of that colour, at least a quarter as bright as
    white, is the object: big if its longer side is nearer to that of big digits. Of an image with less than two
    objects, or with objects that are too small or too near each other, as the halves of a single digit are, nothing
    is read.

    Args:
        classifier: From crops of one object, its greys in [0, 1] on black, [M, 1, S, S], to logits of the digits.
        image_shape: (3, side, side) of the images.

    Raises:
        ValueError: If scenes are not made of this shape.
    """

    def __init__(self, classifier: nn.Module, image_shape: tuple[int, ...]) -> None:
        found = [sizes for side, sizes in GEOMETRY.values() if (3, side, side) == tuple(image_shape)]
        if not found:
            sides = " or ".join(f"{side}x{side}" for side, _ in GEOMETRY.values())
            raise ValueError(f"scenes are 3 channels of {sides}, got {list(image_shape)}; load the data set scenes")
        self.classifier, self.image_shape = classifier, tuple(image_shape)
        self.small, self.big = found[0]["small"], found[0]["big"]

    def read(self, images: Float[Tensor, "n 3 side side"]) -> tuple[Scene | None, ...]:
        """The scene of each image, with its upper or left object named first; None where none can be read.

        Args:
            images: In [-1, 1], as samplers draw them, [N, 3, side, side]; what exceeds the range is cut off.

        Raises:
            ValueError: If they are of another shape or type, or not finite.
        """
        crops, colour, is_big, is_row, readable = self.segment(images)
        # in evaluation mode each crop's answer is its own
        digits = torch.cat([self.classifier(some).argmax(1) for some in crops.flatten(0, 1).split(4096)])
        words = [
            SceneObject("big" if big else "small", COLOURS[hue], digit)
            for big, hue, digit in zip(*(one.flatten().tolist() for one in (is_big, colour, digits)), strict=True)
        ]
        return tuple(
            Scene(first, second, "left of" if row else "above") if good else None
            for first, second, row, good in zip(
                words[::2], words[1::2], is_row.tolist(), readable.tolist(), strict=True
            )
        )

    def segment(
        self, images: Float[Tensor, "n 3 side side"]
    ) -> tuple[
        Float[Tensor, "n 2 1 size size"],
        Float[Tensor, "n 2"],
        Bool[Tensor, "n 2"],
        Bool[Tensor, " n"],
        Bool[Tensor, " n"],
    ]:
        """The two objects of each image, the upper or left one first.

        Args:
            images: See ``read``.

        Returns:
            Greys of each object in [0, 1], its box in the middle of S = big + 2 pixels, [N, 2, 1, S, S]; numbers of the
            colours [N, 2]; True where an object is big [N, 2]; True where they are beside each other [N]; and True
            where there are two objects [N].
        """
        self._check(images)
        light = (images.float().clamp(-1, 1) + 1) / 2
        grey = light.amax(1)
        lit = ((light >= grey.unsqueeze(1) / 2) & (grey > 0).unsqueeze(1)).long()
        hue = _HUE_OF.to(images.device)[lit[:, 0] * 4 + lit[:, 1] * 2 + lit[:, 2]]
        ink = grey * (grey >= _LEAST_INK)
        parts, is_row = _cut(ink)
        votes = torch.stack([((hue == number) * ink).unsqueeze(1).mul(parts).sum((2, 3)) for number in range(6)], dim=2)
        colour = votes.argmax(2)
        own = grey.unsqueeze(1) * parts * (hue.unsqueeze(1) == colour[..., None, None])
        (top, bottom), (left, right) = (_ends((own >= _LEAST_INK).any(axis)) for axis in (3, 2))
        longer = torch.maximum(bottom - top, right - left)
        # along the cut: a single digit that it goes through has halves that are half of it apart
        apart = torch.where(is_row, (left + right).diff(dim=1)[:, 0], (top + bottom).diff(dim=1)[:, 0]) / 2
        least = _LEAST_SIZE * self.small
        readable = (votes.amax(2) > 0).all(1) & (longer >= least).all(1) & (apart >= least)
        crops = _crop(own.flatten(0, 1), (top + bottom).flatten(), (left + right).flatten(), self.big + 2)
        is_big = 2 * longer >= self.small + self.big
        return crops.unflatten(0, (len(images), 2)), colour, is_big, is_row, readable

    def _check(self, images: Tensor) -> None:
        expected = f"floats in [-1, 1] of shape [N, {', '.join(map(str, self.image_shape))}]"
        if not images.is_floating_point() or images.ndim != 4 or images.shape[1:] != self.image_shape:
            got = f"{images.dtype} {list(images.shape)}"
            raise ValueError(f"images must be {expected}, got {got}; pass dataset.space.encode(dataset.images)")
        bad = int((~torch.isfinite(images)).flatten(1).any(1).sum())
        if bad:
            raise ValueError(f"images must be finite, got {bad} of {len(images)} that are not; see what made them")


# of the channels that are lit, in bits, the number of the colour; -1 of cyan and black
_LIT: list[tuple[int, ...]] = [CHANNELS[name] for name in COLOURS]
_HUE_OF = torch.tensor([_LIT.index(bits) if bits in _LIT else -1 for bits in product((0, 1), repeat=3)])


def _cut(ink: Float[Tensor, "n side side"]) -> tuple[Bool[Tensor, "n 2 side side"], Bool[Tensor, " n"]]:
    """The two halves of each image that separate its ink best, and True where they are left and right."""
    side = ink.shape[-1]
    place = torch.arange(side, device=ink.device)
    halves = torch.stack([place < side / 2, place >= side / 2])
    profiles = torch.stack([ink.sum(2), ink.sum(1)], dim=1)
    weight, moment = (profiles @ one.T.to(ink) for one in (halves, halves * place))
    # variance between the halves of where the ink is along the axis that they divide
    between = weight.prod(2) * (moment / weight.clamp(min=1e-6)).diff(dim=2).square().squeeze(2)
    is_row = between[:, 1] > between[:, 0]
    above = halves[:, :, None].expand(2, side, side)
    return torch.stack([above, above.transpose(1, 2)])[is_row.long()], is_row


def _ends(lit: Bool[Tensor, "n 2 side"]) -> tuple[Tensor, Tensor]:
    """The first place that is lit, and the one after the last."""
    lit = lit.to(torch.uint8)
    return lit.argmax(2), lit.shape[2] - lit.flip(2).argmax(2)


def _crop(grey: Tensor, twice_y: Tensor, twice_x: Tensor, size: int) -> Tensor:
    """A square of each image around the middle of its box, black beyond the image, [M, 1, size, size]."""
    steps, number = torch.arange(size, device=grey.device), torch.arange(len(grey), device=grey.device)
    padded = F.pad(grey, (size, size, size, size))
    rows = (torch.div(twice_y - size, 2, rounding_mode="floor") + size)[:, None] + steps
    columns = (torch.div(twice_x - size, 2, rounding_mode="floor") + size)[:, None] + steps
    return padded[number[:, None, None], rows[:, :, None], columns[:, None, :]].unsqueeze(1)


def grade_scenes(asked: Sequence[Scene], drawn: Sequence[Scene | None]) -> dict[str, Tensor]:
    """Grade drawn scenes, one value an image in [0, 1] for each of ``GRADES``, float64 [N].

    The two drawn objects are matched with the two that were asked for in that way of the two in which more of their
    sizes, colours and digits agree. ``size``, ``colour`` and ``digit`` are the shares of the two objects that are
    right in it, ``pair`` in colour and digit at once. ``relation`` is 1 if the objects so matched are where they should
    be, and ``all`` if everything is right. Where both ways agree alike, objects are matched by their places. An image
    of which no scene could be read is wrong throughout.

    Args:
        asked: What was asked for, such as ``parse_caption(prompt)``.
        drawn: What ``SceneReader.read`` found.

    Raises:
        ValueError: If they are not as many.
    """
    if len(asked) != len(drawn) or not asked:
        raise ValueError(f"asked and drawn must be as many, at least 1, got {len(asked)} and {len(drawn)}; pair them")
    rows = [
        (0.0,) * len(GRADES) if found is None else _grades(*_compare(wanted.in_place, found.in_place))
        for wanted, found in zip(asked, drawn, strict=True)
    ]
    return dict(zip(GRADES, torch.tensor(rows, dtype=torch.float64).T, strict=True))


def grade_estimates(grades: dict[str, Tensor]) -> dict[str, Estimate]:
    """Mean and standard error of each grade over images, whose two objects are one draw."""
    return {name: Estimate(*mean_and_stderr(values)) for name, values in grades.items()}


def chance_levels(asked: Sequence[Scene], *, pairs: str = "seen") -> dict[str, float]:
    """The exact mean of each grade if images are drawn without regard to what was asked for.

    A drawn scene has two objects, each any of M = 108 with the same probability by themselves, above or beside each
    other. So a grade is averaged over the M^2 pairs and both places: over how often one object agrees with each of
    those asked for in size, colour and digit. With a share rho of wrong captions in the training data, a network
    without any other error has 1 - rho (1 - chance).

    Args:
        asked: The scenes that were asked for.
        pairs: The objects that are drawn; see ``objects_of``.

    Returns:
        The means over ``asked``, by name.
    """
    objects = objects_of(pairs)
    table, total = _grade_table(), np.zeros(len(GRADES))
    for scene in asked:
        wanted = scene.in_place
        codes = [8 * _agree(one, wanted.first) + _agree(one, wanted.second) for one in objects]
        share = np.bincount(codes, minlength=64) / len(objects)
        total += np.einsum("a,b,abg->g", share, share, table)
    return dict(zip(GRADES, (total / len(asked)).tolist(), strict=True))


def _agree(one: SceneObject, other: SceneObject) -> int:
    """The attributes in which two objects agree, as bits: size 4, colour 2, digit 1."""
    return 4 * (one.size == other.size) + 2 * (one.colour == other.colour) + (one.digit == other.digit)


def _compare(asked: Scene, drawn: Scene) -> tuple[int, int, bool]:
    """Compare scenes named in the order of space: in what either drawn object agrees with both asked for, and where."""
    first, second = (8 * _agree(one, asked.first) + _agree(one, asked.second) for one in (drawn.first, drawn.second))
    return first, second, asked.relation == drawn.relation


@cache
def _grades(first: int, second: int, same_relation: bool) -> tuple[float, ...]:
    """The ``GRADES`` of a drawn scene by what ``_compare`` says of it."""
    in_order, swapped = (first >> 3, second & 7), (first & 7, second >> 3)
    ordered = sum(map(int.bit_count, in_order)) >= sum(map(int.bit_count, swapped))
    matched = in_order if ordered else swapped
    shares = [sum((one & bits) == bits for one in matched) / 2 for bits in (4, 2, 1, 3)]
    relation = same_relation and ordered
    return (*shares, float(relation), float(relation and matched == (7, 7)))


@cache
def _grade_table() -> np.ndarray:
    """The grades of all that two drawn objects can agree in, the mean of both relations, [64, 64, G]."""
    rows = [
        np.add(_grades(first, second, False), _grades(first, second, True)) / 2
        for first, second in product(range(64), repeat=2)
    ]
    return np.array(rows).reshape(64, 64, len(GRADES))


def train_scene_reader(
    train: ImageDataset, *, seed: int = 0, num_steps: int = 450, batch_size: int = 128
) -> SceneReader:
    """Train the classifier of a ``SceneReader`` on objects cut out of training scenes, turned and stretched a little.

    The same weights for the same seed, on one machine with one number of threads. PyTorch's global generator is left
    as it was.

    Args:
        train: The train split of the data set ``scenes``, of either base.
        seed: Seed of the initial weights, the batches and the changes of the crops.
        num_steps: Steps of AdamW, whose learning rate rises and falls; 1000 for MNIST.
        batch_size: Crops a step.

    Raises:
        ValueError: If it is another data set.
    """
    if (train.name, train.split) != ("scenes", "train"):
        raise ValueError(f"train must be the train split of scenes, got {train.name} {train.split}; load that")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):  # PyTorch's layers draw initial weights and dropout from the global one
        torch.random.manual_seed(seed)
        reader = SceneReader(nn.Identity(), train.image_shape)
        crops, digits = _training_crops(reader, train)
        classifier = _new_classifier(crops.shape[-1])
        optimizer = torch.optim.AdamW(classifier.parameters(), lr=8e-3, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=num_steps)
        for _ in range(num_steps):
            chosen = torch.randint(len(crops), (batch_size,), generator=generator)
            optimizer.zero_grad(set_to_none=True)
            logits = classifier(_bent(crops[chosen], generator))
            F.cross_entropy(logits, digits[chosen], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    reader.classifier = classifier.eval().requires_grad_(False)
    return reader


def _training_crops(reader: SceneReader, train: ImageDataset) -> tuple[Tensor, Tensor]:
    """Crops of all objects of training scenes, [M, 1, S, S], and their true digits, [M]."""
    crops = torch.cat([reader.segment(train.space.encode(some))[0] for some in train.images.split(1000)])
    truth = [scene.in_place for scene in scenes_of("train", len(train))]
    digits = torch.tensor([[scene.first.digit, scene.second.digit] for scene in truth])
    return crops.flatten(0, 1), digits.flatten()


def _new_classifier(size: int) -> nn.Module:
    """A convolutional classifier of crops [M, 1, size, size]."""
    layers: list[nn.Module] = []
    for before, after, stride in ((1, 24, 1), (24, 48, 2), (48, 48, 1)):
        layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.BatchNorm2d(after), nn.GELU()]
    hidden = 48 * math.ceil(size / 2) ** 2
    head = [nn.Flatten(), nn.Dropout(0.3), nn.Linear(hidden, 64), nn.GELU(), nn.Dropout(0.3), nn.Linear(64, 10)]
    return nn.Sequential(*layers, *head)


def _bent(crops: Float[Tensor, "n 1 size size"], generator: torch.Generator) -> Float[Tensor, "n 1 size size"]:
    """Crops turned by up to 0.2 radians, stretched by up to 12 %, sheared, and moved by up to 0.4 pixels."""
    n, size = len(crops), crops.shape[-1]
    turn, wide, tall, shear, x, y = 2 * torch.rand(6, n, generator=generator) - 1
    cos, sin = torch.cos(0.2 * turn), torch.sin(0.2 * turn)
    wide, tall = 1 + 0.12 * wide, 1 + 0.12 * tall
    rows = [cos * wide, 0.2 * shear - sin * wide, 0.8 * x / size, sin * tall, cos * tall, 0.8 * y / size]
    grid = F.affine_grid(torch.stack(rows, dim=1).view(n, 2, 3), list(crops.shape), align_corners=False)
    return F.grid_sample(crops, grid, align_corners=False)
