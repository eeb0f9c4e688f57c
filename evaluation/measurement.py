"""The values of a likelihood over a split: batch by batch, then as means with standard errors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import AnyDataset, RealSpace, eval_batches
from experiment.conditions import Conditions
from likelihood import RunningMean, nats_to_bits_per_dim
from sde_lib import NoiseStreams

Values = dict[str, np.ndarray]
TERMS = ("prior", "diffusion", "reconstruction")


def values_of(terms: Any) -> Values:
    """The terms of a batch, a dataclass, as arrays under the names they have there; None is left out."""
    values: Values = {}
    for field in dataclasses.fields(terms):
        value = getattr(terms, field.name)
        if value is not None:
            values[field.name] = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    if "step_index" in values:
        values["step_index"] = values["step_index"].astype(np.int32)
    return values


def bits_per_dim_of(values: Values) -> np.ndarray:
    """-log2 p(x0), or the bound above it, per dimension, for each image of a batch, float64 [B]."""
    nats = values["prior"] + values["diffusion"] + values["reconstruction"]
    return nats_to_bits_per_dim(torch.from_numpy(nats), int(values["num_dims"])).numpy()


class EvalSplit:
    """The images to measure, in order, cut into batches once for all.

    An adaptive solver chooses its steps for a whole batch: only with the same batches does an interrupted or a
    distributed measurement give the same bits.

    Args:
        dataset: The images.
        batch_size: Images a batch; the last one may be short.
        num_images: How many; 0 for all.
        seed: Image k draws from stream (seed, k).
        conditions: What the model is told of each image; None for nothing.
        device: Where the model is.

    Raises:
        DataError: If ``batch_size`` or ``num_images`` is out of range.
    """

    def __init__(
        self,
        dataset: AnyDataset,
        *,
        batch_size: int,
        num_images: int = 0,
        seed: int = 0,
        conditions: Conditions | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._batches = list(eval_batches(dataset, batch_size=batch_size, num_images=num_images))
        self.dataset, self.batch_size, self.num_images = dataset, batch_size, num_images or len(dataset)
        self.seed, self.conditions, self.device = seed, conditions, torch.device(device)

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._batches)

    def size(self, k: int) -> int:
        """The number of images of batch k."""
        return len(self._batches[k][0])

    def measure(self, k: int, estimator: Callable[..., Any], model: Any) -> Values:
        """Measure batch k: a function of the arguments and the seed alone.

        Args:
            k: The batch.
            estimator: A ``LikelihoodEstimator``, or what is called in the same way and returns a dataclass.
            model: What it measures.
        """
        images, _ = self._batches[k]
        first = k * self.batch_size
        here = slice(first, first + len(images))
        noise = NoiseStreams(self.seed, range(here.start, here.stop))
        space = self.dataset.space
        x0 = space.encode(images).to(self.device)
        cond = None if self.conditions is None else self.conditions.tell(self.conditions.observe_in(self.dataset, here))
        cond = None if cond is None else cond.to(self.device)
        values = values_of(estimator(model, x0, cond=cond, noise=noise))
        if isinstance(space, RealSpace):
            # the density is of the vectors as they are stored
            for name in ("diffusion", "class_nats", "null_nats"):
                if name in values:
                    values[name] = values[name] + space.log_volume
        return values


def _moments(values: np.ndarray) -> RunningMean:
    mean = RunningMean()
    mean.update(torch.from_numpy(values))
    return mean


class Measurement:
    """A likelihood over a split: every image's value, and means with standard errors, in bits/dim.

    Args:
        batches: The values of all batches, in order. Nothing here depends on who measured them, or when.

    Attributes:
        per_image: Float64 [N], in the order of the split.
        per_image_terms: The three terms that add up to it, float64 [N] each.
        per_image_steps: Of a bound on a grid, each L_t that was evaluated for an image, "step_bits_per_dim", float64
            [N, K], its index, "step_index", int32 [N, K], 0 nearest to the data, and what it counts for, "step_scale",
            float64 [N, K], if the estimator says so; else empty.
        total: Mean and standard error over the images.
        terms: The same of each term.
        steps: The same of each L_t that was evaluated, by index, 0 nearest to the data.
        probe_variance: Of the mean over its probes, for each image, if it has several.
        sampling_variance: Due to the steps that were drawn, for each image, if they were.
        nfe: Network calls for an image, at most.
    """

    def __init__(self, batches: Sequence[Values]) -> None:
        num_dims = int(batches[0]["num_dims"])
        self._batches = batches
        self.per_image = np.concatenate([bits_per_dim_of(values) for values in batches])
        self.total = _moments(self.per_image)
        self.per_image_terms = {name: _joined(batches, name, num_dims) for name in TERMS}
        self.terms = {name: _moments(values) for name, values in self.per_image_terms.items()}
        self.nfe = max(int(values["nfe"]) for values in batches)
        self.per_image_steps: Values = {}
        self.steps: dict[int, RunningMean] = {}
        if "step_index" in batches[0]:
            index = np.concatenate([values["step_index"] for values in batches])
            bits = _joined(batches, "step_nats", num_dims)
            self.per_image_steps = {"step_index": index, "step_bits_per_dim": bits}
            if "step_scale" in batches[0]:
                self.per_image_steps["step_scale"] = np.concatenate([values["step_scale"] for values in batches])
            self.steps = _step_means(index.ravel(), bits.ravel())
        self.probe_variance = RunningMean()
        if "probe_nats" in batches[0] and batches[0]["probe_nats"].shape[1] > 1:
            probes = _joined(batches, "probe_nats", num_dims)
            self.probe_variance = _moments(probes.var(1, ddof=1) / probes.shape[1])
        self.sampling_variance = RunningMean()
        if "sampling_variance" in batches[0]:
            nats = np.concatenate([values["sampling_variance"] for values in batches])
            self.sampling_variance = _moments(nats / (num_dims * math.log(2)) ** 2)

    def values(self, name: str) -> np.ndarray | None:
        """The field of the terms of that name, of all images, [N, ...]; None if they have none."""
        return np.concatenate([values[name] for values in self._batches]) if name in self._batches[0] else None

    def report(self) -> dict[str, Any]:
        """The entry of ``eval/report.json``."""
        report: dict[str, Any] = {"bits_per_dim": self.total.mean, "stderr": self.total.stderr}
        report |= {name: mean.mean for name, mean in self.terms.items()}
        report |= {f"{name}_stderr": mean.stderr for name, mean in self.terms.items()}
        if self.probe_variance.count:
            # the share of stderr that more probes would take away
            report["probe_stderr"] = math.sqrt(self.probe_variance.mean / self.probe_variance.count)
        if self.sampling_variance.count:
            # the share that more draws of t would take away
            report["sampling_stderr"] = math.sqrt(self.sampling_variance.mean / self.sampling_variance.count)
        return report | {"nfe": self.nfe}


def _joined(batches: Sequence[Values], name: str, num_dims: int) -> np.ndarray:
    nats = np.concatenate([values[name] for values in batches])
    return nats_to_bits_per_dim(torch.from_numpy(nats), num_dims).numpy()


def _step_means(index: np.ndarray, values: np.ndarray) -> dict[int, RunningMean]:
    """Means of each L_t over the draws of it, summed in the order of the images."""
    counts = np.bincount(index)
    means = np.bincount(index, values) / np.maximum(counts, 1)
    squares = np.bincount(index, np.square(values - means[index]))
    return {int(k): RunningMean(int(counts[k]), float(means[k]), float(squares[k])) for k in np.flatnonzero(counts)}
