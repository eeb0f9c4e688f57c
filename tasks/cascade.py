"""Cascades: a model of small images, and models that are told the smaller image and draw the next larger one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from data import ImageKind
from data.conditions import Masked
from experiment import TrainedRun
from experiment.build import build_sampler
from experiment.conditions import Conditions, Observed
from models import CFGPlusPlusWeight, Cond, ScoreModel, check_same_sde
from samplers import GridSampler, Hook, Sampler, StepState
from sde_lib import SDE, NoiseStreams, derive_seed, points_of

Texts = Mapping[str, Tensor]
"""Captions in the numbers of a stage; see ``Observed.texts``."""

_NOISE = 1  # derives the seed of the noise on a stage's image from that of the stage


@dataclass(frozen=True)
class Stage:
    """A model of a cascade.

    Attributes:
        model: The model, guided and with bounds of its x0 where that is wanted.
        sampler: Its sampler.
        conditions: The images that it is of, and what it is told: of the first stage class and caption at most, of the
            others the image of the stage before too.
        most_noise_t: Largest time of the noise that the image had in training.
        rounded: Round images to grey levels before the next stage is told them, as its training does; False for models
            of real numbers.
        name: A name, for messages.
    """

    model: ScoreModel
    sampler: Sampler
    conditions: Conditions
    most_noise_t: float = 0.0
    rounded: bool = True
    name: str = ""

    @classmethod
    def of(cls, run: TrainedRun, sampler: Sampler | None = None, *, name: str = "") -> Stage:
        """A stage of a trained run, guided and bounded as its config says.

        Args:
            run: The run; see ``experiment.load_run``.
            sampler: The sampler; None for the one of the run's config.
            name: A name, for messages.
        """
        sampler = sampler or build_sampler(run.config)
        model = run.sampled_model(sampler)
        return cls(model, sampler, run.conditions, run.config.model.get("condition_noise_t", 0.0), name=name)

    @property
    def kind(self) -> ImageKind:
        """The images that it is of."""
        assert isinstance(self.conditions.kind, ImageKind)
        return self.conditions.kind


@dataclass(frozen=True)
class CascadeSamples:
    """The samples of a cascade.

    Attributes:
        x0: The images of each stage, [B, C, H, W], the last of which are the samples. Of a stage that was stopped early
            it is E[x0 | x_s].
        nfe: Network calls of all stages.
    """

    x0: tuple[Float[Tensor, "batch c h w"], ...]
    nfe: int


class Cascade:
    """Draws y from the first stage, then x from p(x | y_s), where y_s = alpha_s y + sigma_s eps, and so on.

    The noise hides from the later stage what the earlier one did wrong (conditioning augmentation, Ho et al. 2021,
    CDM, Section 4). If each stage is exact the samples have the law of the data at any s. A truncated cascade takes the
    earlier chain's own x_s in place of y_s, which has the same law then (Section 4.2).

    Args:
        stages: Two or more, from the smallest images on.
        noise_t: s of each stage but the first, at most its ``most_noise_t``; 0 tells it the finished image as it is.
        truncated: Take x_s of the earlier stage's own chain where s is above 0.

    Raises:
        ValueError: In one line: see ``check_stages``; or a truncated cascade whose stages have different SDEs, whose
            sampler does not step along a grid that can end at s, or whose guidance is CFG++, which is of whole grids.

    Example:
        >>> runs = [load_run(f"runs/cascade/digits_2_4_8/{name}") for name in ("digits_2", "digits_4_sr", "digits_sr")]
        >>> samples = Cascade([Stage.of(run) for run in runs], noise_t=(0.1, 0.1)).sample(range(8))
        >>> images = runs[-1].decode(samples.x0[-1])
    """

    def __init__(self, stages: Sequence[Stage], *, noise_t: Sequence[float], truncated: bool = False) -> None:
        self.stages, self.noise_t, self.truncated = list(stages), tuple(noise_t), truncated
        names = [stage.name or str(number) for number, stage in enumerate(self.stages)]
        most = [stage.most_noise_t for stage in self.stages]
        check_stages(names, [stage.conditions for stage in self.stages], self.noise_t, most)
        self._samplers = [stage.sampler for stage in self.stages]
        for number, s in enumerate(self.noise_t):
            if truncated and s > 0:
                first, second = self.stages[number], self.stages[number + 1]
                check_same_sde("stage before in a truncated cascade", first.model.sde, second.model.sde)
                _check_weights(first.model)
                self._samplers[number] = _stopped_at(s, first.sampler, first.model.sde)

    @property
    def num_classes(self) -> int | None:
        """The number of classes that the first stage is told one of; None without."""
        first = self.stages[0].conditions
        return self.stages[0].kind.num_classes if first.labels else None

    @property
    def hears_captions(self) -> bool:
        """True if the first stage is told captions."""
        return self.stages[0].conditions.text is not None

    @property
    def num_steps(self) -> int:
        """Steps of all stages whose samplers step along a grid, final denoising included."""
        walked = [
            points_of(stage.model.sde, sampler.times(stage.model.sde))
            for sampler, stage in zip(self._samplers, self.stages, strict=True)
            if isinstance(sampler, GridSampler)
        ]
        return sum(len(points) - (points[-1].sigma == 0) for points in walked)

    def sample(
        self,
        index: range,
        *,
        labels: Int64[Tensor, " batch"] | None = None,
        captions: Sequence[Texts] = (),
        seed: int = 0,
        device: torch.device | str = "cpu",
        hooks: Sequence[Hook] = (),
    ) -> CascadeSamples:
        """Draw samples: stage j of sample k from the noise stream (derived from seed and j, k), in any batch.

        Args:
            index: The numbers k of the samples.
            labels: Their classes, int64 [B], which every stage is told that knows classes; None for all in turn.
            captions: Their captions, a mapping for each stage, such as ``observed_prompts(run.config, run.conditions,
                prompts)[0].texts``; {} for a stage that is told none. Empty where no stage is told any.
            seed: The seed.
            device: Where the models are.
            hooks: See ``Sampler.sample``; called in every stage.

        Raises:
            ValueError: If there are labels or captions and no stage is told them, or captions are missing.
        """
        if labels is not None and self.num_classes is None:
            raise ValueError(
                "the cascade is told no classes, got labels; leave them out, or train its stages with them"
            )
        if labels is None and self.num_classes is not None:
            labels = torch.tensor(index) % self.num_classes
        self._check_captions(captions)
        texts = captions or [{}] * len(self.stages)
        cond = self.stages[0].conditions.tell(Observed(labels=labels, texts=texts[0]))
        found, nfe = [], 0
        for number, stage in enumerate(self.stages):
            noise, last = NoiseStreams(derive_seed(seed, number), index), _LastNoisy()
            sde = stage.model.sde
            x_T = stage.sampler.prior_sample(sde, stage.kind.sample_shape, noise, device=device)
            cond = None if cond is None else cond.to(device)
            result = self._samplers[number].sample(stage.model, x_T, cond=cond, noise=noise, hooks=[*hooks, last])
            found.append(result.x0)
            nfe += result.nfe
            if number < len(self.noise_t):
                stopped = self._samplers[number] is not stage.sampler
                told = {"labels": labels, "texts": texts[number + 1]}
                cond = self._told(number + 1, last.x if stopped else None, result.x0, seed, index, **told)
        return CascadeSamples(tuple(found), nfe)

    def _check_captions(self, captions: Sequence[Texts]) -> None:
        wanted = [stage.name or str(k) for k, stage in enumerate(self.stages) if stage.conditions.text is not None]
        got = [stage.name or str(k) for k, (stage, one) in enumerate(zip(self.stages, captions, strict=False)) if one]
        if got != wanted or len(captions) not in (0, len(self.stages)):
            raise ValueError(
                f"captions must be for {len(self.stages)} stages, of which {', '.join(wanted) or 'none'} are told "
                f"them, got {len(captions)}, of which {', '.join(got) or 'none'} have them; pass one mapping a stage"
            )

    def _told(
        self,
        number: int,
        x_s: Tensor | None,
        x0: Tensor,
        seed: int,
        index: range,
        *,
        labels: Tensor | None,
        texts: Texts,
    ) -> Cond:
        """The condition of a stage: x_s of the one before if it was stopped there, else its images with noise."""
        stage, before, s = self.stages[number], self.stages[number - 1], self.noise_t[number - 1]
        space = before.kind.space
        y = space.encode(space.decode(x0)).to(x0) if before.rounded else x0
        if s == 0:
            return stage.conditions.tell_image(y, labels=labels, texts=texts)
        t = torch.full((len(y),), s, dtype=torch.float64, device=y.device)
        if x_s is None:
            eps = NoiseStreams(derive_seed(seed, number, _NOISE), index).normal_like(y)
            x_s = stage.model.sde.perturb(y, t, eps)
        return stage.conditions.tell_image(x_s, log_snr=stage.model.sde.log_snr(t), labels=labels, texts=texts)


class _LastNoisy:
    """A hook that keeps the state at the last time above 0: the state before a final denoising."""

    def __init__(self) -> None:
        self.x: Tensor | None = None

    def __call__(self, state: StepState) -> None:
        if state.s > 0:
            self.x = state.x


def _check_weights(model: ScoreModel) -> None:
    """Refuse CFG++, whose last weight is that of the step that is cut."""
    if any(isinstance(getattr(part, "weight", None), CFGPlusPlusWeight) for part in model.modules()):
        raise ValueError(
            "the weights of CFG++ are of the whole grid, which a truncated cascade stops; take a constant weight, or "
            "truncated=False"
        )


def _stopped_at(s: float, sampler: Sampler, sde: SDE) -> GridSampler:
    """The sampler on its grid down to s, from where it predicts x0."""
    if not isinstance(sampler, GridSampler) or type(sampler).times is not GridSampler.times:
        raise ValueError(
            f"a truncated cascade stops at t = {s:g}, which {type(sampler).__name__} cannot; take ddim, or another "
            "sampler that steps along a grid"
        )
    times = sampler.times(sde)
    above = times[times > s]
    if not len(above):
        raise ValueError(f"a truncated cascade must stop below t = {float(times[0]):g}, got {s:g}; lower noise_t")
    stopped = copy.copy(sampler)
    stopped.grid = torch.cat([above, times.new_tensor([s])])
    stopped.num_steps, stopped.denoise_final = len(above), True
    return stopped


def check_stages(
    names: Sequence[str], told: Sequence[Conditions], noise_t: Sequence[float], most_noise_t: Sequence[float]
) -> None:
    """Refuse stages that make no cascade.

    Args:
        names: The stages' names, for the messages.
        told: What each stage is told, and of which images it is.
        noise_t: Times of the noise on what each stage but the first is told.
        most_noise_t: The largest of them in each stage's training.

    Raises:
        ValueError: In one line.
    """
    if len(told) < 2:
        raise ValueError(f"a cascade has 2 stages or more, got {len(told)}; add the stage that enlarges its images")
    if len(noise_t) != len(told) - 1:
        raise ValueError(
            f"a cascade of {len(told)} stages needs {len(told) - 1} noise levels, got {len(noise_t)}; set noise_t, one "
            "for each stage but the first"
        )
    kinds = [one.kind for one in told if isinstance(one.kind, ImageKind)]
    if len(kinds) < len(told):
        raise ValueError("a cascade is of images, got vectors; take runs of images")
    if any(kind.latents is not None for kind in kinds):
        raise ValueError("a cascade is of pixels, got a stage of latents; take runs without data.first_stage")
    if told[0].of_samples:
        raise ValueError(f"the first stage, {names[0]}, is told an image or values; begin with a model that is not")
    for number, (s, one) in enumerate(zip(noise_t, told[1:], strict=True), 1):
        name, before = names[number], names[number - 1]
        if one.values or len(one.images) != 1 or isinstance(one.images[0], Masked) or one.images[0].of_paired:
            raise ValueError(
                f"stage {name} must be told the image of stage {before} alone, got {[*one.images, *one.values]}; train "
                "it with condition lowres"
            )
        ours, theirs = ((kind.image_shape, kind.num_levels) for kind in (one.observed_kind, kinds[number - 1]))
        if ours != theirs:
            raise ValueError(
                f"stage {name} is told images of {_of(ours)}, but stage {before} draws {_of(theirs)}; let each stage "
                "be told what the one before draws"
            )
        classes, first_classes = ((kind.num_classes, kind.class_names) for kind in (kinds[number], kinds[0]))
        if one.labels and not (told[0].labels and classes == first_classes):
            raise ValueError(
                f"stage {name} is told a class, which the first stage, {names[0]}, is not told alike; train both so"
            )
        if one.text is not None and told[0].text is None:
            raise ValueError(
                f"stage {name} is told captions, which the first stage, {names[0]}, is not told; train both so"
            )
        if not 0 <= s <= most_noise_t[number]:
            raise ValueError(
                f"noise_t of stage {name} must be from 0 to {most_noise_t[number]:g}, as in its training, got {s:g}; "
                "change it"
            )


def _of(shape_and_levels: tuple[tuple[int, ...], int]) -> str:
    shape, levels = shape_and_levels
    return f"{'x'.join(map(str, shape))} with {levels} levels"
