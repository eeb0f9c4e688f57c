"""Ways to edit images, by name."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from experiment.config.keys import fitting
from models import Cond, ScoreModel, null_of
from models.wrappers.guidance import lacks_null_condition
from runtime.options import ShowsOptions, whole_number
from runtime.registry import Registry
from samplers import GridSampler, ProbabilityFlowSampler, Sampler

from .finetuning import few_steps, latents_of
from .images import Edited, invert, reconstruct, sdedit


@dataclass(frozen=True)
class EditTask:
    """Images to edit.

    Attributes:
        x0: The images as networks see them, [B, ...].
        t: The time that they are taken to.
        numbers: The number of each, from which its noise comes.
        source: The condition that each has, or None.
        target: The condition that it is edited towards, or None.
        seed: Seed of the run.
    """

    x0: Float[Tensor, "batch *shape"]
    t: float
    numbers: Sequence[int]
    source: Cond | None = None
    target: Cond | None = None
    seed: int = 0


class EditMethod(ShowsOptions, ABC):
    """A way to edit images.

    Attributes:
        noise_ratio: sigma / alpha at the time that images are taken to where none is asked for; 0 is where the sampler
            begins.
        follows_flow: Images are taken up by the probability flow, which the sampler must be.
        needs_target: Images are edited towards another condition than their own.
        maps: The change of an image tells where something is.
    """

    noise_ratio: ClassVar[float] = 0.0
    follows_flow: ClassVar[bool] = False
    needs_target: ClassVar[bool] = False
    maps: ClassVar[bool] = False

    @abstractmethod
    def edit(self, network: ScoreModel, model: ScoreModel, sampler: GridSampler, task: EditTask) -> Edited:
        """Edit a batch; image k is the same whatever else is in it.

        Args:
            network: The model, without guidance and bounds of x0.
            model: What samples are drawn with, guided or tuned.
            sampler: The sampler.
            task: The images.

        Raises:
            ValueError: If the sampler cannot start at t.
        """


EDIT_METHODS: Registry[EditMethod] = Registry("edit method")
register_edit_method = EDIT_METHODS.register
available_edit_methods = EDIT_METHODS.names


def make_edit_method(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> EditMethod:
    """Build a method by name.

    Args:
        name: One of ``available_edit_methods()``.
        options: Its options, by their names in its class.

    Raises:
        ValueError: In one line: no such method or option, or one of another type.
    """
    known = {one.name: one.default for one in inspect.signature(EDIT_METHODS.get(name)).parameters.values()}
    for option, value in options.items():
        if option in known and fitting(value, known[option]) is None:
            kind = type(known[option]).__name__
            raise ValueError(f"{option} of edit method {name} must be of type {kind}, got {value!r}; change it")
    return EDIT_METHODS.make(name, **options)


def flow_of(name: str, sampler: Sampler) -> ProbabilityFlowSampler:
    """The sampler, if it can take images up to noise.

    Args:
        name: Of the method, for the message.
        sampler: The sampler.

    Raises:
        ValueError: If it cannot.
    """
    if not isinstance(sampler, ProbabilityFlowSampler):
        raise ValueError(
            f"edit method {name} takes images up to noise by the probability flow, got {sampler}; set "
            "sampling.sampler=probability_flow"
        )
    return sampler


@register_edit_method("sdedit")
class SDEdit(EditMethod):
    """Noise on the image, then the sampler from there; see ``sdedit``."""

    noise_ratio = 1.0

    def edit(self, network: ScoreModel, model: ScoreModel, sampler: GridSampler, task: EditTask) -> Edited:
        """See ``sdedit``."""
        return sdedit(model, sampler, task.x0, task.t, numbers=task.numbers, cond=task.target, seed=task.seed)


@register_edit_method("invert")
class Inversion(EditMethod):
    """Up by the probability flow under one condition, down under another; see ``invert``.

    Args:
        own_class: On the way up the image's class is told; else none, as its null condition.
    """

    follows_flow = True
    needs_target = True

    def __init__(self, *, own_class: bool = True) -> None:
        self.own_class = own_class

    def edit(self, network: ScoreModel, model: ScoreModel, sampler: GridSampler, task: EditTask) -> Edited:
        """See ``invert``."""
        flow = flow_of("invert", sampler)
        return invert(network, flow, task.x0, task.t, source=task.source, target=task.target, decoder=model)


@register_edit_method("counterfactual")
class Counterfactual(Inversion):
    """``invert`` towards what is healthy, whose change is a map of the rest (Sanchez et al. 2022; Wolleb et al. 2022).

    Its other images have "reconstruction" too, a baseline: see ``reconstruct``.

    Args:
        own_class: As of ``Inversion``. Without, nothing need be known of the image.
    """

    noise_ratio = 1.0
    maps = True

    def __init__(self, *, own_class: bool = False) -> None:
        super().__init__(own_class=own_class)

    def edit(self, network: ScoreModel, model: ScoreModel, sampler: GridSampler, task: EditTask) -> Edited:
        """See ``invert``."""
        edited = super().edit(network, model, sampler, task)
        cond = task.source
        if cond is not None and not lacks_null_condition(network):
            cond = null_of(cond)
        baseline = reconstruct(network, sampler, task.x0, task.t, numbers=task.numbers, cond=cond, seed=task.seed)
        return replace(edited, others=edited.others | {"reconstruction": baseline})


@register_edit_method("finetune")
class FineTuning(EditMethod):
    """Up by the flow of the network, down in few steps by weights that are tuned for it; see ``tune``.

    Args:
        steps: Of the sampler on the way down, which gradients pass through.
        num_updates: See ``TuningOptions``.
        learning_rate: See ``TuningOptions``.
        identity_weight: See ``TuningOptions``.
        num_images: Images of the train split that weights are tuned on.

    Raises:
        ValueError: If an option is out of range.
    """

    follows_flow = True
    needs_target = True

    def __init__(
        self,
        *,
        steps: int = 6,
        num_updates: int = 50,
        learning_rate: float = 1e-4,
        identity_weight: float = 10.0,
        num_images: int = 64,
    ) -> None:
        whole_number("steps", steps, least=2, fix="set 6")
        for name, value in {"num_updates": num_updates, "num_images": num_images}.items():
            whole_number(name, value, fix="set 1 or more")
        if not (0 < learning_rate < 1 and 0 <= identity_weight < math.inf):
            raise ValueError(
                f"learning_rate must lie in (0, 1) and identity_weight be at least 0, got {learning_rate:g} and "
                f"{identity_weight:g}; change them"
            )
        self.steps, self.num_updates, self.num_images = steps, num_updates, num_images
        self.learning_rate, self.identity_weight = learning_rate, identity_weight

    def edit(self, network: ScoreModel, model: ScoreModel, sampler: GridSampler, task: EditTask) -> Edited:
        """Take images up by ``network`` and down by ``model``, with those of ``network`` as "before"."""
        x_t, nfe = latents_of(network, flow_of("finetune", sampler), task.x0, task.t, cond=task.source)
        down = few_steps(model.sde, task.t, self.steps)
        before, after = (down.sample(one, x_t, cond=task.source) for one in (network, model))
        return Edited(x_t, after.x0, nfe + after.nfe, {"before": before.x0})
