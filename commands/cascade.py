"""Train, measure and sample the stages of a cascade, each of which is an ordinary run."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.conditions import LowResolution
from evaluation.over_ranks import deal, says_what_is_kept
from evaluation.samples.sample_conditions import SampleConditions
from evaluation.samples.sample_set import SampleSet
from experiment.build import build_dataset, pick_device
from experiment.conditions import Conditions, build_conditions
from experiment.config import Config, data_root
from experiment.config.checks import check_config
from experiment.config.imported import complete_config
from experiment.pictures import as_array
from experiment.rank0_first import load_on_rank0_first
from experiment.workdir import check_for_use, save_npz, write_json
from runtime.locks import locked
from runtime.memory import explain_out_of_memory
from runtime.messages import say
from runtime.processes.ranks import Ranks
from runtime.terminal import ProgressBar
from samplers import StepState
from tasks import Cascade, Stage, check_stages

from .cascade_report import cascade_report, read_stage
from .run_mode import run_mode
from .sample import SampledRun, check_folder, conditions_of, load_sampled, plan_batches, texts_of, told_by

Stages = Mapping[str, Config]


def run_cascade(
    mode: str, config: Config, stages: Stages, workdir: Path, flags: Mapping[str, Any], ranks: Ranks
) -> None:
    """Do what a mode stands for with every stage of a cascade, each in its own folder of the work directory.

    Args:
        mode: train, eval or sample.
        config: The cascade's config, of which the section ``cascade`` counts.
        stages: The configs of its stages by name.
        workdir: The cascade's work directory.
        flags: The command line's flags, "" or None where not given.
        ranks: The processes of the job.

    Raises:
        ValueError: In one line: another mode, or stages that make no cascade; and what the modes themselves raise.
    """
    if mode not in ("train", "eval", "sample"):
        raise ValueError(f"--mode {mode} is of one model, got a cascade; run it for a stage, with its --workdir")
    for flag in ("init_from", "input", "hint"):
        if flags.get(flag):
            name = f"--{flag.replace('_', '-')}"
            raise ValueError(f"{name} is of one model, got a cascade; run that for a stage, with its --workdir")
    stages = {name: complete_config(one, workdir / name) for name, one in stages.items()}
    for one in stages.values():
        check_config(one)
    if mode == "sample":
        prompts = [flags.get(name) or "" for name in ("prompt", "prompts")]
        _sample(config, stages, workdir, Path(flags.get("output") or workdir / "samples"), prompts, ranks)
        return
    _check(mode, config, stages, ranks)
    for name, one in stages.items():
        if ranks.first:
            say(f"stage {name}")
        run_mode(mode, one, workdir / name, {}, ranks.part(name))
    if mode == "eval" and ranks.first:
        _write_report(config, stages, workdir)


def _check(mode: str, config: Config, stages: Stages, ranks: Ranks) -> None:
    """Refuse stages that make no cascade, before any of them is trained or measured."""
    told = []
    for name, one in stages.items():
        dataset = load_on_rank0_first(ranks, f"data of {name}", lambda one=one: build_dataset(one, "train"))
        told.append(build_conditions(one, dataset.kind))
    check_stages(list(stages), told, config.cascade.noise_t, _most_noise_t(stages))
    if mode == "eval":
        _check_bits(stages, told)


def _check_bits(stages: Stages, told: Sequence[Conditions]) -> None:
    """Refuse stages whose bits do not add up: each must be told exactly what the one before is of."""
    names, configs = list(stages), list(stages.values())
    for number, conditions in enumerate(told[1:], 1):
        before, own = configs[number - 1], configs[number]
        theirs, ours = ((one.data.dataset, data_root(one), one.data.options) for one in (before, own))
        if theirs != ours:
            raise ValueError(
                f"the bits of stages add up on the same data, got {ours} of stage {names[number]} and {theirs} of "
                f"stage {names[number - 1]}; set data.dataset, data.root and data.options alike"
            )
        # images that are halved twice are rounded twice
        (maker,) = conditions.images
        factors = (*own.data.downscale, maker.factor) if isinstance(maker, LowResolution) else before.data.downscale
        if tuple(factors) != tuple(before.data.downscale):
            raise ValueError(
                f"stage {names[number]} is told images made smaller by {factors}, but stage {names[number - 1]} is of "
                f"those by {before.data.downscale}; make them smaller in the same steps"
            )


def _most_noise_t(stages: Stages) -> list[float]:
    return [one.model.get("condition_noise_t", 0.0) for one in stages.values()]


def _write_report(config: Config, stages: Stages, workdir: Path) -> None:
    """Add up the stages' bits of each image, print them, and write ``eval/report.json`` of the cascade."""
    report, per_image = cascade_report({name: read_stage(workdir / name) for name in stages})
    save_npz(workdir / "eval" / "per_image.npz", per_image)
    write_json(workdir / "eval" / "report.json", report)
    for name in per_image:
        print(f"{name} {report[name]['quote']}", flush=True)
    say(f"wrote {workdir / 'eval' / 'report.json'}")


def _load(stages: Stages, workdir: Path, device: torch.device, ranks: Ranks) -> dict[str, SampledRun]:
    """Load all stages; one that is told no class draws nothing of ``sampling.classes``."""
    runs: dict[str, SampledRun] = {}
    for name, one in stages.items():
        check_for_use(workdir / name, one)
        if runs and not one.model.class_conditional:
            one.sampling.classes = ()
        try:
            runs[name] = load_sampled(one, workdir / name, device, ranks.part(name))
        except ValueError as error:
            raise ValueError(f"stage {name}: {error}") from error
    return runs


def _check_sampling(config: Config, stages: Stages) -> None:
    """Refuse settings of samples of one model, and give each stage its weight of guidance."""
    unset: dict[str, Any] = {"record_trajectory": False, "condition_split": "test", "condition_noise_t": 0.0}
    if any("text" in one.data.condition for one in stages.values()):
        del unset["condition_split"]  # whose captions are told
    for key, value in unset.items():
        if any(one.sampling[key] != value for one in stages.values()):
            instead = "set cascade.noise_t" if key == "condition_noise_t" else "leave it out"
            raise ValueError(f"sampling.{key} is of one model, got a cascade; {instead}")
    weights = config.cascade.guidance_weight
    if len(weights) not in (0, len(stages)):
        raise ValueError(
            f"cascade.guidance_weight must be one for each of {len(stages)} stages, got {len(weights)}; change it, or "
            "set sampling.guidance_weight for all"
        )
    for one, weight in zip(stages.values(), weights, strict=False):
        one.sampling.guidance_weight = weight


def _captions(
    runs: Mapping[str, SampledRun], texts: Sequence[str], ranks: Ranks
) -> tuple[dict[str, SampleConditions], list[str] | None]:
    """The captions of each stage that is told them, of prompts or else of a split, and the same in words."""
    told = {name: run for name, run in runs.items() if "text" in run.config.data.condition}
    if not told:
        if texts:
            raise ValueError("a prompt is of stages that are told captions, got none; leave it out")
        return {}, None
    found: dict[str, SampleConditions] = {}
    for name, run in told.items():
        config, part = run.config, ranks.part(f"captions of {name}")
        split = config.sampling.condition_split
        try:
            found[name] = conditions_of(config, run.workdir, run.kind, None, (), part, split=split, texts=texts)
        except ValueError as error:
            raise ValueError(f"stage {name}: {error}") from error
    num_samples = list(runs.values())[-1].config.sampling.num_samples
    first, *others = (one.captions(range(num_samples)) for one in found.values())
    if any(other != first for other in others):
        raise ValueError(f"stages {', '.join(found)} are of different captions; name one by --prompt or --prompts")
    return found, first


def _sample(config: Config, stages: Stages, workdir: Path, folder: Path, prompts: Sequence[str], ranks: Ranks) -> None:
    """Draw the images of all stages, those of the last as the samples; see ``commands.sample``."""
    *_, last = stages.values()
    settings, device = last.sampling, ranks.device(pick_device(last))
    _check_sampling(config, stages)
    with (
        explain_out_of_memory("sampling.batch_size", settings.batch_size),
        contextlib.ExitStack() as held,
    ):
        check_folder(folder)
        runs = _load(stages, workdir, device, ranks)
        most = _most_noise_t(stages)
        parts = [
            Stage(run.model, run.sampler, build_conditions(run.config, run.kind), s, name=name)
            for s, (name, run) in zip(most, runs.items(), strict=True)
        ]
        cascade = Cascade(parts, noise_t=config.cascade.noise_t, truncated=config.cascade.truncated)
        told, captions = _captions(runs, texts_of(*prompts), ranks)
        if ranks.first:
            held.enter_context(locked(folder, "sample", flag="--output"))
            for name, run in runs.items():
                say(f"stage {name}")
                run.say_notes()
        first, final = next(iter(runs.values())), list(runs.values())[-1]
        numbers = np.arange(settings.num_samples)
        labels = None if first.classes is None else np.array(first.classes)[numbers % len(first.classes)]
        about = {"stages": list(runs), "noise_t": list(cascade.noise_t), "truncated": cascade.truncated}
        weights = {"guidance_weight": list(config.cascade.guidance_weight)} if config.cascade.guidance_weight else {}
        said = told_by(first.config, next(iter(told.values())), (), "".join(prompts)) if told else {}
        of_texts = {"captions": {name: one.digest for name, one in told.items()}} if told else {}
        samples = SampleSet(
            folder,
            {"cascade": about} | {name: run.fingerprint() for name, run in runs.items()} | of_texts,
            final.about(first.classes) | {"cascade": about | weights} | said,
            num_samples=settings.num_samples,
            batch_size=settings.batch_size,
            kind=final.kind,
            labels=labels,
            pngs=settings.png_folder,
            captions=captions,
            stages={part.name: part.kind for part in parts[:-1]},
        )
        todo = plan_batches(samples, ranks)
        if todo is None:
            return
        with says_what_is_kept(lambda: f"stopped with {samples.kept()} kept; the same command goes on from there"):
            num_steps = cascade.num_steps
            _draw(cascade, ranks, samples, todo, labels, told, seed=last.seed, device=device, num_steps=num_steps)
            if ranks.first:
                nfe, notes = samples.finish()
                for note in notes:
                    say(note)
                steps = ", ".join(f"{name} of step {run.step}" for name, run in runs.items())
                say(f"{settings.num_samples} samples of {steps}, {nfe} network calls each; wrote them in {folder}")


def _draw(
    cascade: Cascade,
    ranks: Ranks,
    samples: SampleSet,
    todo: list[list[str]],
    labels: np.ndarray | None,
    captions: Mapping[str, SampleConditions],
    *,
    seed: int,
    device: torch.device,
    num_steps: int,
) -> None:
    """Draw the batches, each on its process, and keep them."""
    mine = todo[ranks.rank :: ranks.world]
    with ProgressBar(unit="step", desc="sample", total=num_steps * len(mine), disable=not ranks.first) as bar:

        def progress(_: StepState) -> None:
            bar.update()

        def drawn(unit: str) -> bytes:
            index = samples.index(int(unit))
            told = None if labels is None else torch.from_numpy(labels[index.start : index.stop])
            texts = [captions[one.name].observed(index).texts if one.name in captions else {} for one in cascade.stages]
            found = cascade.sample(index, labels=told, captions=texts, seed=seed, device=device, hooks=[progress])
            images = [as_array(x0, stage.kind) for x0, stage in zip(found.x0, cascade.stages, strict=True)]
            earlier = {stage.name: one for stage, one in zip(cascade.stages, images[:-1], strict=False)}
            return samples.encode(int(unit), {"images": images[-1], "nfe": np.asarray(found.nfe)} | earlier)

        deal(ranks, todo, drawn, lambda unit, data: samples.keep(int(unit), data))
