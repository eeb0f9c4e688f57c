"""Distances between samples and data, with standard errors, and nothing to download.

Two distances between sets of images: Frechet's between features of a small classifier that is trained here in seconds,
and the sliced Wasserstein distance between the pixels themselves. Both are squared distances. Both are larger for
smaller sets, also between two sets of one distribution, so that values are comparable at one sample size alone:
``grouped_estimate`` measures groups of one size, and held-out data in a group of that size are the floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from data import ImageDataset, LevelSpace
from likelihood import mean_and_stderr


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error.

    Attributes:
        value: The estimate.
        stderr: Its standard error; NaN where one draw alone was made.
    """

    value: float
    stderr: float


class Moments(NamedTuple):
    """Mean m [D] of points, and a root R [min(N, D), D] of their covariance R^T R, over n - 1; float64."""

    mean: Tensor
    root: Tensor


def moments_of(features: Float[Tensor, "n dim"]) -> Moments:
    """Mean and covariance of a set, one row a sample, N at least 2, for many distances from it."""
    points = checked_points("first", features)
    mean = points.mean(0)
    return Moments(mean, torch.linalg.qr(points - mean, mode="r").R / math.sqrt(len(points) - 1))


def frechet_distance(features_a: Float[Tensor, "n_a dim"], features_b: Float[Tensor, "n_b dim"]) -> float:
    """Squared Frechet distance of the two Gaussians with the sets' moments.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^{1/2}) (Dowson & Landau 1982; for features of images, Heusel et al.
    2017), with covariances S over n - 1, in float64. It is biased upwards, by about c / n_a + c / n_b: compare values
    at equal sample sizes alone.

    Args:
        features_a: One row a sample, [N, D], N at least 2.
        features_b: Likewise, [M, D].

    Returns:
        The squared distance, at least 0.

    Raises:
        ValueError: If the sets are no such matrices, or a value is not finite.
    """
    return frechet_of_moments(*map(moments_of, checked_pair(features_a, features_b)))


def frechet_of_moments(a: Moments, b: Moments) -> float:
    """The ``frechet_distance`` of two sets, of their moments."""
    # S = R^T R for R = qr(centred rows) / sqrt(n - 1), so that the eigenvalues of S_a S_b, and of the symmetric
    # S_a^{1/2} S_b S_a^{1/2}, are the squared singular values of R_a R_b^T. No covariance is formed and no eigenvalue's
    # root taken, which would turn rounding errors of 1e-16 into 1e-8, or into NaN where a covariance is singular.
    cross = torch.linalg.svdvals(a.root @ b.root.T).sum()
    distance = (a.mean - b.mean).square().sum() + a.root.square().sum() + b.root.square().sum() - 2 * cross
    return max(float(distance), 0.0)


def sliced_wasserstein(
    a: Float[Tensor, "n_a *shape"], b: Float[Tensor, "n_b *shape"], *, num_projections: int = 500, seed: int = 0
) -> Estimate:
    """Squared sliced 2-Wasserstein distance of two sets of points.

    SW^2 = E_u W_2^2(<a, u>, <b, u>) over directions u uniform on the unit sphere (Rabin et al. 2011; Bonneel et al.
    2015). In one dimension W_2^2 is the integral of (F_a^{-1}(q) - F_b^{-1}(q))^2 dq over (0, 1), here without error
    for any two sizes: both quantile functions are constant between the breaks i / N and j / M. A shift of all points by
    v has SW^2 = |v|^2 / D.

    Args:
        a: Points, [N, ...], flattened to [N, D].
        b: Points, [M, ...], likewise.
        num_projections: Number of random directions.
        seed: Seed of the directions, which depend on it and on D alone.

    Returns:
        The mean over the directions, and its standard error over the directions: that of these points' distance, not of
        the distributions' they were drawn from, for which see ``block_jackknife``.

    Raises:
        ValueError: If the sets do not fit each other, a value is not finite, or there is no direction.
    """
    if num_projections < 1:
        raise ValueError(f"num_projections must be at least 1, got {num_projections}; try 500")
    a, b = checked_pair(a.flatten(1) if a.ndim > 2 else a, b.flatten(1) if b.ndim > 2 else b)
    directions = np.random.Generator(np.random.PCG64(seed)).standard_normal((a.shape[1], num_projections))
    unit = F.normalize(torch.from_numpy(directions), dim=0)
    return Estimate(*mean_and_stderr(_squared_wasserstein_1d(a @ unit, b @ unit)))


def _squared_wasserstein_1d(a: Float[Tensor, "n_a p"], b: Float[Tensor, "n_b p"]) -> Float[Tensor, " p"]:
    """W_2^2 of each column of ``a`` [N, P] and ``b`` [M, P]."""
    n, m = len(a), len(b)
    # breaks of both quantile functions in units of 1 / (N M), so that equal ones are equal
    breaks = torch.unique(torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]))
    widths = breaks.diff().double() / (n * m)
    gap = a.sort(0).values[breaks[:-1] // m] - b.sort(0).values[breaks[:-1] // n]
    return widths @ gap.square()


def block_jackknife(
    statistic: Callable[[Tensor], float], samples: Float[Tensor, "n *shape"], *, num_blocks: int = 36
) -> Estimate:
    """A statistic of samples, and its standard error over draws of such samples.

    se^2 = (B - 1) / B sum_b (theta_b - mean theta)^2, where theta_b leaves out block b of B (Tukey 1958), which is
    every B-th sample. The jackknife, unlike the bootstrap, repeats no sample, which would look to a distance between
    distributions like a smaller set. It errs upwards (Efron & Stein 1981): for a distance of nearly zero by up to half.

    Args:
        statistic: From any number of samples, [n, ...], to a number.
        samples: Independent samples, [N, ...].
        num_blocks: B, in 2 .. N.

    Returns:
        The statistic of all samples, and its standard error.

    Raises:
        ValueError: If there are fewer samples than blocks, or fewer than two blocks.
    """
    if not 2 <= num_blocks <= len(samples):
        raise ValueError(f"num_blocks must be 2 .. {len(samples)}, the number of samples, got {num_blocks}; change it")
    block = torch.arange(len(samples), device=samples.device) % num_blocks
    left_out = np.array([statistic(samples[block != index]) for index in range(num_blocks)])
    return Estimate(statistic(samples), math.sqrt((num_blocks - 1) * left_out.var()))


def grouped_estimate(
    statistic: Callable[[Tensor], float], samples: Float[Tensor, "n *shape"], *, group_size: int, num_blocks: int = 36
) -> Estimate:
    """Mean of a statistic over disjoint groups of one size, with the standard error of that mean by the jackknife.

    Distances are biased by an amount that depends on the sample size: every value that is compared must be of one
    ``group_size``. More groups lessen the error and leave the bias.

    Args:
        statistic: From samples [n, ...] to a number.
        samples: Independent samples, [N, ...], N a multiple of ``group_size``.
        group_size: Samples in each group.
        num_blocks: Blocks of the jackknife within each group.

    Returns:
        The mean over the groups, and sqrt(sum se^2) / number of groups.

    Raises:
        ValueError: If the groups do not divide the samples.
    """
    if group_size < 2 or len(samples) < group_size or len(samples) % group_size:
        raise ValueError(
            f"samples must make groups of {group_size} without a rest, got {len(samples)}; draw a multiple of the group"
        )
    groups = [block_jackknife(statistic, group, num_blocks=num_blocks) for group in samples.split(group_size)]
    stderr = math.sqrt(sum(group.stderr**2 for group in groups)) / len(groups)
    return Estimate(sum(group.value for group in groups) / len(groups), stderr)


class DigitClassifier(nn.Module):
    """A small convolutional classifier, for the features of its last hidden layer.

    Args:
        image_shape: (C, H, W), H and W at least 4.
        num_classes: Number of classes.
        num_features: Width of the last hidden layer.
    """

    def __init__(self, image_shape: tuple[int, ...], num_classes: int, *, num_features: int = 32) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.hidden = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(32 * -(-height // 2) * -(-width // 2), num_features),
            nn.GELU(),
        )
        self.output = nn.Linear(num_features, num_classes)

    def features(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch features"]:
        """Features of images in [-1, 1], [B, C, H, W]: the last hidden layer, [B, num_features]."""
        return self.hidden(x)

    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch classes"]:
        """Logits, [B, num_classes]."""
        return self.output(self.features(x))


def train_feature_classifier(
    train: ImageDataset, held_out: ImageDataset, *, seed: int = 0, num_epochs: int = 20, batch_size: int = 64
) -> tuple[DigitClassifier, float]:
    """Train a ``DigitClassifier`` by AdamW with a falling learning rate: seconds for scikit-learn's digits.

    The same weights for the same seed, on one machine with one number of threads. PyTorch's global generator is left
    as it was.

    Args:
        train: Images and labels to learn.
        held_out: Those to count the accuracy on.
        seed: Seed of the initial weights and of the batches.
        num_epochs: Passes over the images.
        batch_size: Images a step.

    Returns:
        The classifier in evaluation mode, and the share of held-out images that it names right.

    Raises:
        ValueError: If the splits differ in shape, levels or classes.
    """
    ours, theirs = ((d.image_shape, d.num_levels, d.num_classes) for d in (train, held_out))
    if ours != theirs:
        raise ValueError(
            f"held_out must have shape, levels and classes {ours}, got {theirs}; pass splits of one data set"
        )
    generator = torch.Generator().manual_seed(seed)
    classifier = _initial_classifier(train, generator)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=5e-3, weight_decay=0.05)
    num_steps = num_epochs * math.ceil(len(train) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / num_steps))
    )
    x = LevelSpace(train.num_levels).encode(train.images)
    for _ in range(num_epochs):
        for index in torch.randperm(len(x), generator=generator).split(batch_size):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(classifier(x[index]), train.labels[index], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    classifier.eval().requires_grad_(False)
    predicted = classifier(LevelSpace(held_out.num_levels).encode(held_out.images)).argmax(1)
    return classifier, float((predicted == held_out.labels).double().mean())


def _initial_classifier(dataset: ImageDataset, generator: torch.Generator) -> DigitClassifier:
    """He et al. 2015's weights, from the generator alone."""
    with torch.random.fork_rng(devices=[]):  # PyTorch's layers draw initial weights from the global generator
        classifier = DigitClassifier(dataset.image_shape, dataset.num_classes)
    for layer in classifier.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]
    return classifier


def checked_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both sets as float64 on the CPU.

    Raises:
        ValueError: If they are not finite matrices [N, D] of one width with two samples or more.
    """
    found = checked_points("first", a), checked_points("second", b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"both sets must have one width, got {a.shape[1]} and {b.shape[1]}; use the same features")
    return found


def checked_points(name: str, points: Tensor) -> Tensor:
    """A set as float64 on the CPU.

    Args:
        name: What the message calls it, such as "first".
        points: One row a sample.

    Raises:
        ValueError: If it is no finite matrix [N, D] with N at least 2.
    """
    must = f"the {name} set must"
    if points.ndim != 2 or len(points) < 2 or points.shape[1] < 1:
        raise ValueError(f"{must} have shape [N, D] with N at least 2, got {list(points.shape)}; pass one row a sample")
    bad = int((~torch.isfinite(points)).any(1).sum())
    if bad:
        raise ValueError(f"{must} be finite, got {bad} of {len(points)} samples that are not; see what made them")
    return points.detach().cpu().double()
