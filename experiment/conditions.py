"""Conditions of each sample: its class, its values, its caption, and what is made of its image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from data import (
    NOTHING,
    AnyKind,
    Beside,
    Column,
    ConditionMaker,
    DataError,
    Dataset,
    GivenText,
    GivenValues,
    ImageKind,
    ImageMaker,
    LevelSpace,
    ValuesMaker,
    make_conditions,
)
from models import Cond, Condition
from sde_lib import SDE, expand_like

from .config import Config, parse_options
from .control.settings import added_conditions


@dataclass(frozen=True)
class ImageNoise:
    """Noise of a batch's condition images, y_t = alpha(t) y + sigma(t) eps, of which the model is told the log-SNR.

    Attributes:
        sde: The SDE of the model.
        t: Its times, float64 [B].
        eps: Standard normal noise, [B, n], of all numbers of a sample's images; see ``Conditions.num_noisy``.
    """

    sde: SDE
    t: Tensor
    eps: Tensor


@dataclass(frozen=True)
class Observed:
    """Observations of samples, before they are brought into the form that a model is told.

    Attributes:
        images: Of each image maker, grey levels, uint8 [N, c, h, w].
        values: The values of all makers of them, [N, K]; None without.
        labels: Classes, int64 [N]; None where they are not told.
        texts: Captions in numbers; see ``Beside.texts``.
    """

    images: tuple[Tensor, ...] = ()
    values: Tensor | None = None
    labels: Tensor | None = None
    texts: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tensors[0])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that was observed, in a fixed order."""
        texts = (self.texts[name] for name in sorted(self.texts))
        return tuple(one for one in (*self.images, self.values, self.labels, *texts) if one is not None)

    def __getitem__(self, samples: Tensor) -> Observed:
        """Those of some samples, by index."""
        values, labels = (None if one is None else one[samples] for one in (self.values, self.labels))
        texts = {name: one[samples] for name, one in self.texts.items()}
        return Observed(tuple(one[samples] for one in self.images), values, labels, texts)


class Conditions:
    """Makes the condition of samples: their labels, and the fields that makers make of their images.

    Args:
        kind: The images or vectors; None of other data, which have labels and values alone.
        labels: Tell the class.
        makers: Makers of the other fields.

    Raises:
        ValueError: If a maker is not of such data.
    """

    def __init__(self, kind: AnyKind | None, *, labels: bool = False, makers: Sequence[ConditionMaker] = ()) -> None:
        if not isinstance(kind, ImageKind) and not all(isinstance(maker, (GivenValues, GivenText)) for maker in makers):
            raise DataError("conditions are made of images, got other data; tell values, or leave them out")
        self.kind, self.labels = kind, labels
        self.images = [maker for maker in makers if isinstance(maker, ImageMaker)]
        self.values = [maker for maker in makers if isinstance(maker, (ValuesMaker, GivenValues))]
        self.text = next((maker for maker in makers if isinstance(maker, GivenText)), None)
        for maker in self.images:
            if self._of_images.of_clips and not maker.of_paired:
                raise DataError(
                    "of clips a network is told given frames, class or values, got an image that is made of one; set "
                    "data.given_frames and data.condition=paired, or leave it out"
                )
            maker.kind(self._of_images)

    @property
    def network_options(self) -> dict[str, int]:
        """Options of a backbone: ``cond_channels``, of clips ``given_frames``, ``cond_values``, and those of text."""
        assert self.kind is not None
        channels = sum(maker.channels(self._of_images) for maker in self.images)
        of_images = {"cond_channels": channels}
        if self.images and self._of_images.of_clips:
            of_images = {"cond_channels": 0, "given_frames": self._of_images.paired_frames}
        sizes = [
            maker.size(self.kind) if isinstance(maker, GivenValues) else maker.size(self._of_images)
            for maker in self.values
        ]
        of_text = {} if self.text is None else self.text.network_options(self.kind)
        return of_images | {"cond_values": sum(sizes)} | of_text

    @property
    def observed_kind(self) -> ImageKind:
        """The kind of what the first image maker observes."""
        return self.observed_kinds[0]

    @property
    def observed_kinds(self) -> list[ImageKind]:
        """The kind of what each image maker observes."""
        return [maker.kind(self._of_images) for maker in self.images]

    @property
    def num_noisy(self) -> int:
        """Numbers of a sample's condition images as they are observed: what noise is drawn for."""
        return sum(torch.Size(maker.kind(self._of_images).image_shape).numel() for maker in self.images)

    @property
    def only_labels(self) -> bool:
        """True if labels are all that is told, or nothing is."""
        return not self.images and not self.values and self.text is None

    @property
    def of_samples(self) -> bool:
        """True if images or values are told, which a user gives by files and not in words."""
        return bool(self.images or self.values)

    @property
    def any(self) -> bool:
        """True if the model is told something."""
        return self.labels or not self.only_labels

    @property
    def _of_images(self) -> ImageKind:
        assert isinstance(self.kind, ImageKind)
        return self.kind

    def observe(self, samples: Tensor, labels: Tensor, beside: Beside = NOTHING) -> Observed:
        """Observe samples as they are stored, with their classes, int64 [N], and what lies beside them.

        Raises:
            DataError: If the model is told what is not there, or of another shape.
        """
        count = len(samples)
        images = tuple(
            maker.observe(self._paired(beside.paired, count) if maker.of_paired else samples, self._of_images)
            for maker in self.images
        )
        told = [
            self._given(beside.values, count)
            if isinstance(maker, GivenValues)
            else maker.values(samples, self._of_images)
            for maker in self.values
        ]
        texts = {} if self.text is None else self._texts(beside.texts, count)
        return Observed(images, torch.cat(told, dim=1) if told else None, labels if self.labels else None, texts)

    def observe_in(self, dataset: Dataset, samples: slice | Tensor) -> Observed:
        """Observe some samples of a data set, by slice or index; see ``observe``."""
        return self.observe(dataset.stored[samples], dataset.labels[samples], dataset.beside[samples])

    def _given(self, values: Tensor | None, count: int) -> Tensor:
        size = "K" if self.kind is None else self.kind.num_values
        if values is None or values.ndim != 2 or len(values) != count or size not in ("K", values.shape[1]):
            got = "none" if values is None else list(values.shape)
            raise DataError(
                f"the model is told values [{count}, {size}], got {got}; give each sample {size}, in an npz data set "
                "as the array 'values'"
            )
        return values.float()

    @staticmethod
    def _texts(texts: Mapping[str, Column], count: int) -> Mapping[str, Tensor]:
        if not texts or any(len(one) != count for one in texts.values()):
            got = {name: len(one) for name, one in texts.items()} or "none"
            raise DataError(f"the model is told the caption of each of {count} samples, got {got}; give each one")
        return {name: one[:] for name, one in texts.items()}

    def _paired(self, paired: Tensor | None, count: int) -> Tensor:
        (of_paired,) = [maker.kind(self._of_images) for maker in self.images if maker.of_paired]
        expected = [count, *of_paired.image_shape]
        if paired is None or paired.dtype != torch.uint8 or list(paired.shape) != expected:
            got = "none" if paired is None else f"{paired.dtype} {list(paired.shape)}"
            raise DataError(f"the model is told paired images, uint8 {expected}, got {got}; give each sample one")
        return paired

    def tell(self, observed: Observed, *, noise: ImageNoise | None = None) -> Cond | None:
        """The condition that a model is told of observations.

        Args:
            observed: The observations.
            noise: Noise of the condition images; None for none.

        Returns:
            Plain labels where nothing else is told; None where nothing is.
        """
        if self.only_labels:
            return observed.labels
        fields = {"label": observed.labels, "values": observed.values}
        if self.text is not None:
            fields |= self.text.tell(observed.texts)
        if self.images:
            fields["image"] = self._image(observed.images, noise)
            fields["image_log_snr"] = None if noise is None else noise.sde.log_snr(noise.t).to(fields["image"].dtype)
        return Condition(**fields)

    def tell_image(
        self,
        y: Tensor,
        *,
        log_snr: Tensor | None = None,
        labels: Tensor | None = None,
        texts: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Condition:
        """The condition of a model that is told one image, and perhaps class and caption, of what is not observed.

        Args:
            y: The image in model space, such as a sample of another model, with its noise if it has any, [B, c, h, w].
            log_snr: log-SNR of that noise, [B]; None for none.
            labels: Classes, int64 [B], unused where they are not told.
            texts: Captions in numbers, see ``Observed.texts``, unused where they are not told.
        """
        (maker,) = self.images
        return Condition(
            label=labels if self.labels else None,
            image=maker.tell(y, self._of_images),
            image_log_snr=None if log_snr is None else log_snr.to(y.dtype),
            **({} if self.text is None else self.text.tell(texts)),
        )

    def _image(self, observed: Sequence[Tensor], noise: ImageNoise | None) -> Tensor:
        told, used = [], 0
        for maker, levels in zip(self.images, observed, strict=True):
            y = LevelSpace(maker.kind(self._of_images).num_levels).encode(levels)
            if noise is not None:
                alpha, sigma = (expand_like(scale, y) for scale in noise.sde.alpha_sigma(noise.t))
                eps = noise.eps[:, used : used + y[0].numel()].reshape(y.shape)
                y, used = alpha * y + sigma * eps, used + y[0].numel()
            told.append(maker.tell(y, self._of_images))
        return torch.cat(told, dim=1)


def build_conditions(config: Config, kind: AnyKind, *, added: bool = True) -> Conditions:
    """The conditions of a config.

    Args:
        config: The config.
        kind: The data.
        added: With the hints of ``control.also``.

    Raises:
        ValueError: If a condition is unknown, or not of such data.
    """
    options: dict[str, Any] = parse_options(config.data.get("condition_options", ""))
    makers = make_conditions(tuple(config.data.get("condition", ())), **options)
    for names, others in added_conditions(config) if added else ():
        makers += make_conditions(names, **parse_options(others))
    return Conditions(kind, labels=config.model.class_conditional, makers=makers)
