"""The conditions that samples are drawn of: classes in turn, the images of a split, or what a user gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from data import AnyDataset, AnyKind, LevelSpace
from experiment.conditions import Conditions, ImageNoise, Observed
from models import Cond, Condition
from sde_lib import SDE, NoiseStreams, derive_seed

from ..fingerprints import digest_of

_NOISE = 1  # derives the seed of the noise on condition images, which is not that of x_T


class SampleConditions:
    """The condition of sample k, a function of k alone: observation k of a list, and class k of a list, in turn.

    Args:
        conditions: What the model is told.
        classes: Classes, of a model that is told them or guided towards them; None for those of the observations.
        source: A split whose samples are observed, or what was observed; None where only classes are told.
        noise_t: Time of the noise on condition images; 0 for none.
        seed: Seed of that noise.
        prompts: Texts in numbers that are told in place of those of the source, in turn; a model that is told no image
            and no values needs no source then.
        captions: These in words; None for those of a split, if any.

    Attributes:
        source: As given.

    Raises:
        ValueError: If a model lacks classes or observations that it is told, or a class is none of its own.
    """

    def __init__(
        self,
        conditions: Conditions,
        *,
        classes: Sequence[int] | None = None,
        source: AnyDataset | Observed | None = None,
        noise_t: float = 0.0,
        seed: int = 0,
        prompts: Observed | None = None,
        captions: Sequence[str] | None = None,
    ) -> None:
        lacking = conditions.of_samples or (conditions.text is not None and prompts is None)
        if source is None and lacking:
            raise ValueError("the model is told more than classes; give a split, or what was observed")
        if conditions.labels and classes is None and (source is None or source.labels is None):
            raise ValueError("the model is told classes, which the file does not have; set sampling.classes=3,7")
        if conditions.labels and classes is None and isinstance(source, Observed):
            _check_labels(source.labels, conditions.kind)
        self._conditions, self.source, self._prompts = conditions, source, prompts
        self._classes = None if classes is None else torch.tensor(classes, dtype=torch.int64)
        self._noise_t, self._seed = noise_t, seed
        of_split = None if source is None or isinstance(source, Observed) else source.captions
        self._captions = (of_split if captions is None else captions) if conditions.text is not None else None

    @property
    def classes(self) -> list[int] | None:
        """The classes that are drawn in turn; None where there are none, or they are those of the observations."""
        return None if self._classes is None else self._classes.tolist()

    @property
    def digest(self) -> str | None:
        """Digest of the observations; None where there are none."""
        told = () if self._prompts is None else self._prompts.tensors
        if isinstance(self.source, Observed):
            told = (*self.source.tensors, *told)
        elif self.source is not None:
            told = (self.source.stored, self.source.labels, *self.source.beside.tensors, *told)
        return digest_of(*told) if told else None

    def observed(self, index: Sequence[int]) -> Observed:
        """The observations that samples are told, by their numbers."""
        numbers = torch.tensor(index)
        found = Observed()
        if isinstance(self.source, Observed):
            found = self.source[numbers % len(self.source)]
        elif self.source is not None:
            chosen = numbers % len(self.source)
            found = self._conditions.observe_in(self.source, chosen)
        if self._prompts is not None:
            found = replace(found, texts=self._prompts[numbers % len(self._prompts)].texts)
        if self._classes is not None:
            return replace(found, labels=self._classes[numbers % len(self._classes)])
        return found if self._conditions.labels else replace(found, labels=None)

    def of(self, index: Sequence[int], sde: SDE) -> Cond | None:
        """The condition of samples, by their numbers; the SDE is that of the noise on condition images."""
        observed, noise = self.observed(index), None
        if self._noise_t and observed.images:
            streams = NoiseStreams(derive_seed(self._seed, _NOISE), index)
            t = torch.full((len(index),), self._noise_t, dtype=torch.float64)
            noise = ImageNoise(sde, t, streams.normal((self._conditions.num_noisy,)))
        return self._conditions.tell(observed, noise=noise)

    def captions(self, index: Sequence[int]) -> list[str] | None:
        """The captions of samples, by their numbers; None of a model that is told none."""
        return None if self._captions is None else [self._captions[k % len(self._captions)] for k in index]

    def pictures(self, index: Sequence[int], sde: SDE) -> np.ndarray | None:
        """The condition images of samples as they are told, uint8 [n, H, W, 1 or 3]; None without."""
        cond = self.of(index, sde)
        if not isinstance(cond, Condition) or cond.image is None:
            return None
        # a mask comes after the colours
        return LevelSpace(256).pixels(cond.image[:, : 3 if cond.image.shape[1] > 2 else 1])


def _check_labels(labels: torch.Tensor | None, kind: AnyKind | None) -> None:
    """Refuse a label that is no class; -1, none, is up to the network."""
    if labels is None or kind is None:
        return
    most = kind.num_classes - 1
    wrong = [label for label in labels.tolist() if not -1 <= label <= most]
    if wrong:
        raise ValueError(f"given labels must be in 0 .. {most}, got {wrong[0]}; change it, or set sampling.classes")
