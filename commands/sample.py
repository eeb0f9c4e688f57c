"""Samples as pictures and as numbers, written batch by batch: ``--mode sample``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data import AnyKind, ImageKind, read_given_images, read_given_values
from evaluation.fingerprints import samples_fingerprint
from evaluation.over_ranks import deal, says_what_is_kept
from evaluation.samples.provenance import about_of, variance_of
from evaluation.samples.sample_batch import draw_batch
from evaluation.samples.sample_conditions import SampleConditions
from evaluation.samples.sample_set import IN_GRID, SampleSet
from evaluation.samples.trajectory import MOST_SAMPLES
from experiment.build import build_dataset, build_sampler, pick_device
from experiment.classes import classes_of
from experiment.conditions import Conditions, Observed, build_conditions
from experiment.config import Config
from experiment.config.checks import check_config
from experiment.control.settings import is_controlled
from experiment.from_checkpoints import as_sampled_model, as_score_model, trained_channels, trained_kind
from experiment.guidance import (
    Reference,
    described,
    guidance_in_words,
    is_guided,
    load_reference,
    sampled_consistency_model,
    sampled_model,
    with_classes_of_classifier,
)
from experiment.pictures import as_array, has_picture
from experiment.plugins import say_changed_plugins
from experiment.precision import NetworkMode, fast_inference, pick_mode
from experiment.rank0_first import as_trained, load_on_rank0_first, load_same_trained, pick_together
from experiment.text.prompts import observed_prompts, read_prompts
from experiment.warnings.prior import say_lost_signal
from experiment.workdir import check_for_use
from models import ConsistencyModel, ReverseVariance
from runtime.files import one_line
from runtime.locks import locked
from runtime.memory import explain_out_of_memory
from runtime.messages import say
from runtime.processes.ranks import ALONE, Ranks
from runtime.terminal import ProgressBar
from samplers import Sampler, StepState


def sample(
    config: Config,
    workdir: Path,
    *,
    output: str = "",
    input: str = "",
    hint: Sequence[str] = (),
    prompt: str = "",
    prompts: str = "",
    ranks: Ranks = ALONE,
) -> None:
    """Sample from the newest good checkpoint; write ``samples.npz``, ``grid.png`` and ``samples.json``.

    Batches are kept as they come, so that an interrupted command goes on to the same bytes, and memory holds one of
    them. The samples of another command that are in the folder are moved aside. Under torchrun the batches are dealt to
    its processes; the samples are the same, but for rounding where processes compute on other devices.

    Args:
        config: The config the work directory was trained with; ``sampling`` may differ.
        workdir: The work directory.
        output: The folder to write in; "" for ``samples`` in the work directory.
        input: A file or folder of conditions, in turn, in place of those of ``sampling.condition_split``; "" for none.
        hint: The same of the hints of a ControlNet: a file or folder for each, that of ``config.data`` first.
        prompt: A text of which all samples are drawn, in place of the captions of ``sampling.condition_split``.
        prompts: A file of such texts, one a line, taken in turn.
        ranks: The processes of the job.

    Raises:
        ValueError: If the config does not fit the work directory, or there is no good checkpoint or no such class.
        FloatingPointError: If the sampler's state stops being finite.
        MemoryError: If the memory does not suffice.
        OSError: If the folder cannot be written in.
        RuntimeError: If another command samples there.
        Interrupted: After Ctrl-C.
    """
    check_config(config)
    settings, folder = config.sampling, Path(output) if output else workdir / "samples"
    with (
        explain_out_of_memory("sampling.batch_size", settings.batch_size),
        contextlib.ExitStack() as held,
    ):
        check_for_use(workdir, config)
        check_folder(folder)
        device = ranks.device(pick_device(config))
        run = load_sampled(config, workdir, device, ranks, any_model=True)
        texts, split = texts_of(prompt, prompts), settings.condition_split
        given = given_of(config, input, hint)
        conditions = conditions_of(config, workdir, run.kind, run.classes, given, ranks, split=split, texts=texts)
        if ranks.first:
            held.enter_context(locked(folder, "sample", flag="--output"))
            run.say_notes()
        labels = conditions.observed(range(settings.num_samples)).labels
        samples = SampleSet(
            folder,
            run.fingerprint() | ({} if conditions.digest is None else {"conditions": conditions.digest}),
            run.about(conditions.classes) | told_by(config, conditions, given, prompts or prompt),
            num_samples=settings.num_samples,
            batch_size=settings.batch_size,
            kind=run.kind,
            labels=None if labels is None else labels.numpy(),
            pngs=settings.png_folder,
            condition_images=conditions.pictures(range(min(IN_GRID, settings.num_samples)), run.model.sde),
            captions=conditions.captions(range(settings.num_samples)),
        )
        todo = plan_batches(samples, ranks)
        if todo is None:
            return
        with says_what_is_kept(lambda: f"stopped with {samples.kept()} kept; the same command goes on from there"):
            _draw(config, ranks, samples, todo, run.sampler, run.model, conditions)
            if ranks.first:
                nfe, notes = samples.finish()
                for note in notes:
                    say(note)
                chain = f" with the {run.variance} variance" if run.variance else ""
                guided = f", {words}" if (words := guidance_in_words(config)) else ""
                chosen = _chosen(run.classes, run.kind.class_names) if settings.classes and run.classes else ""
                written = "grid.png and samples.npz" if has_picture(run.kind) else "samples.npz"
                say(
                    f"{settings.num_samples} samples{chosen} of step {run.step} by {settings.sampler}{chain}{guided}, "
                    f"{nfe} network calls each; wrote {written} in {folder}"
                )


def check_folder(folder: Path) -> None:
    """Refuse to write samples where a file is in the way."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; move it away, or choose another --output")


@dataclass(frozen=True)
class SampledRun:
    """A run that is to be drawn from, and all that its samples depend on but conditions and noise.

    Attributes:
        config: Its config.
        workdir: Its work directory.
        kind: What the samples are.
        classes: The classes that are drawn in turn; None of an unconditional model.
        sampler: The sampler.
        trained: The network with its SDE: a NetworkScoreModel, or a ConsistencyModel for --mode sample alone.
        step: The training step of its weights.
        reference: The model that guidance moves away from, if any.
        mode: How the networks compute.
        model: What is sampled: that model, guided, with bounds of its x0.
        device: Where it is.
    """

    config: Config
    workdir: Path
    kind: AnyKind
    classes: tuple[int, ...] | None
    sampler: Sampler
    trained: Any
    step: int
    reference: Reference | None
    mode: NetworkMode
    model: Any
    device: torch.device

    @property
    def variance(self) -> ReverseVariance | None:
        """The reverse variance of the sampler, if it has one."""
        return variance_of(self.sampler, learned=getattr(self.trained, "learned_variance", False))

    @property
    def units(self) -> str:
        """The units of x0, which errors are in."""
        if not isinstance(self.kind, ImageKind):
            return "standardized vectors"
        if self.kind.latents is None:
            return "pixels in [-1, 1]"
        return "standardized latents" if self.kind.seen_levels is None else "codes in [-1, 1]"

    def fingerprint(self) -> dict[str, Any]:
        """See ``samples_fingerprint``."""
        how = self.mode.recorded()
        return samples_fingerprint(
            self.config, self.model, self.step, self.kind, self.classes, how, self.device, self.reference
        )

    def about(self, classes: Sequence[int] | None) -> dict[str, Any]:
        """See ``about_of``; the classes are those that are drawn in turn."""
        guidance, how = described(self.config, self.reference), self.mode.recorded()
        return about_of(self.config, self.step, self.kind, classes, how, self.variance, guidance)

    def say_notes(self) -> None:
        """Say how the network computes, and what has changed or is lost."""
        for reason in self.mode.reasons:
            say(reason)
        say_changed_plugins(self.workdir, self.config.plugins)
        say_lost_signal(self.config, self.trained.sde)


def load_sampled(
    config: Config, workdir: Path, device: torch.device, ranks: Ranks, *, any_model: bool = False
) -> SampledRun:
    """Load a run to draw from.

    Args:
        config: The config.
        workdir: The work directory.
        device: Where the model goes.
        ranks: The processes of the job.
        any_model: Take a consistency model too, and not score models alone.

    Raises:
        ValueError: If there is no good checkpoint or no such class, or the settings cannot be.
    """
    settings, sampler = config.sampling, build_sampler(config)
    kind = load_on_rank0_first(ranks, "data", lambda: trained_kind(config, workdir, device))
    if settings.png_folder and (len(kind.image_shape) != 3 or kind.image_shape[0] not in (1, 3)):
        got = "vectors" if kind.num_levels is None else kind.image_shape[0] if len(kind.image_shape) == 3 else "clips"
        raise ValueError(f"sampling.png_folder is for images of 1 or 3 channels, got {got}; leave it out")
    kind = with_classes_of_classifier(config, kind)
    classes = classes_of(config, kind)
    loaded, step = load_same_trained(ranks, config, workdir, kind, device)
    trained = (as_sampled_model if any_model else as_score_model)(loaded, workdir)
    reference = load_reference(config, kind, device, ranks)
    num_calls = -(-settings.num_samples // settings.batch_size) * settings.num_steps * (1 + is_guided(config))
    precision, compiled = settings.precision, settings.compile
    mode = pick_together(
        ranks, partial(pick_mode, precision, compiled, device, backbone=trained.backbone, num_calls=num_calls)
    )
    if isinstance(trained, ConsistencyModel):
        model = sampled_consistency_model(config, fast_inference(trained, mode), kind)
    else:
        model = sampled_model(
            config, fast_inference(trained, mode), kind, sampler, reference and fast_inference(reference.model, mode)
        )
    return SampledRun(config, workdir, kind, classes, sampler, trained, step, reference, mode, model, device)


def _draw(
    config: Config,
    ranks: Ranks,
    samples: SampleSet,
    todo: list[list[str]],
    sampler: Sampler,
    model: Any,
    conditions: SampleConditions,
) -> None:
    """Draw the batches, each on its process, and keep them."""
    with ProgressBar(unit="step", desc="sample", disable=not ranks.first) as bar:

        def progress(state: StepState) -> None:
            bar.total = len(todo[ranks.rank :: ranks.world]) * state.num_steps
            bar.update()

        def drawn(unit: str) -> bytes:
            index = samples.index(int(unit))
            result, trajectory = draw_batch(
                sampler,
                model,
                index,
                sample_shape=samples.kind.sample_shape,
                seed=config.seed,
                cond=conditions.of(index, model.sde),
                device=ranks.device(pick_device(config)),
                hooks=[progress],
                num_trajectories=MOST_SAMPLES - index.start if config.sampling.record_trajectory else 0,
            )
            images = as_array(result.x0, samples.kind)
            return samples.encode(int(unit), {"images": images, "nfe": np.asarray(result.nfe)} | trajectory)

        deal(ranks, todo, drawn, lambda unit, data: samples.keep(int(unit), data))


def conditions_of(
    config: Config,
    workdir: Path,
    kind: AnyKind,
    classes: Sequence[int] | None,
    given: Sequence[str],
    ranks: Ranks,
    *,
    split: str,
    texts: Sequence[str] = (),
) -> SampleConditions:
    """The conditions to draw samples of: those of a file, or of a split, and texts in place of its captions.

    Raises:
        ValueError: If the model is not told such conditions, or not with such noise.
    """
    conditions, settings = build_conditions(config, kind), config.sampling
    known = config.model.get("condition_noise_t", 0.0)
    if settings.condition_noise_t > known:
        raise ValueError(
            f"sampling.condition_noise_t must be at most model.condition_noise_t={known:g}, up to which the model was "
            f"trained, got {settings.condition_noise_t:g}; lower it"
        )
    if given and not conditions.of_samples:
        raise ValueError("--input is of models that are told an image or values, got one of neither; leave it out")
    if given and conditions.text is not None and not texts:
        raise ValueError("the model is told captions, which no file has; leave out --input or --hint, or add --prompt")
    prompts = _prompts_of(config, conditions, texts, ranks) if texts else None
    if not conditions.of_samples and (conditions.text is None or texts):
        return SampleConditions(conditions, classes=classes, prompts=prompts, captions=texts)
    noise = {"noise_t": settings.condition_noise_t, "seed": config.seed}
    noise |= {"prompts": prompts, "captions": texts or None}
    # one that is not told classes may be guided towards them
    asked = classes if settings.classes or not conditions.labels else None
    if given:
        return SampleConditions(conditions, classes=asked, source=_read_given(given, conditions), **noise)
    channels = trained_channels(config, workdir)
    loaded = load_on_rank0_first(ranks, "condition data", lambda: build_dataset(config, split, channels))
    dataset = as_trained(ranks, config, workdir, loaded)
    return SampleConditions(conditions, classes=asked, source=dataset, **noise)


def given_of(config: Config, input: str, hint: Sequence[str]) -> tuple[str, ...]:
    """The files of the flags ``--input`` and ``--hint``; none where neither was given.

    Raises:
        ValueError: If the model is not one for the flag.
    """
    controlled = is_controlled(config)
    if input and controlled:
        raise ValueError("--input is of models that are told an image, got a ControlNet; give its hint by --hint")
    if hint and not controlled:
        raise ValueError("--hint is of ControlNets, got a model without control.base; leave it out")
    return (input,) if input else tuple(hint)


def texts_of(prompt: str, prompts: str) -> list[str]:
    """The texts of the flags; none where neither was given."""
    if prompt and prompts:
        raise ValueError("--prompt and --prompts were both given; leave one out")
    return read_prompts(Path(prompts)) if prompts else [prompt] if prompt else []


def _prompts_of(config: Config, conditions: Conditions, texts: Sequence[str], ranks: Ranks) -> Observed:
    """Prompts in numbers; what was cut off is said."""
    found, notes = observed_prompts(config, conditions, texts)
    if config.sampling.num_samples < len(texts):
        notes.append(
            f"sampling.num_samples={config.sampling.num_samples} draws the first of {len(texts)} prompts alone"
        )
    for note in notes if ranks.first else ():
        say(note)
    return found


def _read_given(given: Sequence[str], conditions: Conditions) -> Observed:
    """Read what a user gives for the conditions of a model, besides its class and its captions.

    Args:
        given: Images for each image that it is told, see ``read_given_images``, or an ``.npz`` file with ``values``.
        conditions: What the model is told.

    Raises:
        ValueError: If the model is told something else, or another number of images.
    """
    told = len(conditions.images) + bool(conditions.values)
    if conditions.values and told > 1:
        raise ValueError(
            "--input and --hint do not go with values besides an image, which the model is told too; leave them out, "
            "and both are of a split"
        )
    if len(given) != told:
        raise ValueError(
            f"--input and --hint give one condition besides the class each, got {len(given)}, but the model is told "
            f"{told}; give as many, or leave them out"
        )
    if conditions.values:
        values, labels = read_given_values(Path(given[0]), conditions.network_options["cond_values"])
        return Observed(values=values, labels=labels if conditions.labels else None)
    found = [read_given_images(Path(path), kind) for path, kind in zip(given, conditions.observed_kinds, strict=True)]
    count, labels = len(found[0][0]), found[0][1]
    if any(len(images) != count for images, _ in found):
        numbers = ", ".join(str(len(images)) for images, _ in found)
        raise ValueError(f"each --hint must have as many images, got {numbers}; give each sample one of each")
    return Observed(tuple(images for images, _ in found), labels=labels)


def told_by(config: Config, conditions: SampleConditions, given: Sequence[str], texts: str) -> dict[str, Any]:
    """Say for ``samples.json`` where observations are from; nothing without."""
    if conditions.digest is None:
        return {}
    if conditions.source is None:
        origin = {"input": texts}
    else:
        origin = {"input": ",".join(given)} if given else {"condition_split": config.sampling.condition_split}
        origin |= {"prompt": texts} if texts else {}
    return origin | {"condition_noise_t": config.sampling.condition_noise_t}


def _chosen(classes: Sequence[int], names: Sequence[str]) -> str:
    """The classes that were asked for, in words, as in " of 3 cat, 5 dog"."""
    named = [f"{k} {names[k]}" if names and names[k] != str(k) else str(k) for k in dict.fromkeys(classes)]
    return f" of {one_line(', '.join(named), 120)},"


def plan_batches(samples: SampleSet, ranks: Ranks) -> list[list[str]] | None:
    """Rank 0's list of the batches to draw, for all processes; None if the samples are there already."""

    def plan() -> list[list[str]] | None:
        found = samples.find()
        if found is not None:
            for note in found:
                say(note)
            say(f"these samples are in {samples.folder} already; to draw them anew, delete its samples.json")
            return None
        known, notes = samples.known()
        for note in notes:
            say(note)
        if known:
            say(f"goes on: {len(known)} of {len(samples)} batches were drawn before")
        return [[str(k)] for k in range(len(samples)) if k not in known]

    return share_plan(ranks, samples.digest, plan)


def share_plan(ranks: Ranks, digest: str, plan: Callable[[], list[list[str]] | None]) -> list[list[str]] | None:
    """Rank 0's plan, for all processes.

    Args:
        ranks: The processes.
        digest: Of all that samples depend on, as this process has it.
        plan: Makes the plan; called on rank 0.

    Raises:
        RuntimeError: If rank 0 has another digest.
    """
    shared = ranks.share("plan", lambda: {"digest": digest, "todo": plan()})
    if shared["digest"] != digest:
        raise RuntimeError(
            "the checkpoint or settings differ from those of rank 0; "
            "give all processes the same work directory and command"
        )
    return shared["todo"]
