"""The tuned weights of ``edit.method=finetune``: tuned, and written as a run that other modes load."""

from __future__ import annotations

from pathlib import Path

import torch

from experiment.checkpoints.folder import checkpoint_folders, drop_folder
from experiment.checkpoints.weights import load_weights, named_weights
from experiment.config import Config
from experiment.guidance import is_guided, load_classifier
from models import NetworkScoreModel
from runtime.messages import say
from runtime.processes.ranks import ALONE
from runtime.terminal import ProgressBar
from tasks.editing import ClassScore, FineTuning, TuningOptions, few_steps, flow_of, latents_of, tune
from training.build import build_state
from training.init_from import save_beginning

from ..sample import SampledRun
from ..subject import load_split


def class_score(run: SampledRun) -> ClassScore:
    """log p(class | x0) of ``sampling.classifier``, of the one class of ``sampling.classes``.

    Raises:
        ValueError: If there is no classifier, not one class, or guidance besides.
    """
    settings = run.config.sampling
    if not settings.classifier:
        raise ValueError(
            "edit.method=finetune needs a classifier whose answers are the score, got none; set sampling.classifier to "
            "the work directory of one"
        )
    if len(settings.classes) != 1 or run.classes is None:
        got = ",".join(map(str, settings.classes))
        raise ValueError(f"edit.method=finetune tunes towards one class, got sampling.classes={got}; set one")
    if is_guided(run.config):
        raise ValueError(
            "edit.method=finetune takes no guidance, got a guidance weight; leave sampling.guidance_weight=1"
        )
    classifier = load_classifier(settings.classifier, run.device)
    return ClassScore(classifier, run.classes[0])


def tuned_network(run: SampledRun, method: FineTuning, score: ClassScore, t: float) -> NetworkScoreModel:
    """The network, tuned on the first images of the train split."""
    dataset = load_split(run.config, run.workdir, "train", ALONE)
    dataset = dataset.subset(min(method.num_images, len(dataset)))
    x0 = run.kind.space.encode(dataset.stored).to(run.device)
    cond = dataset.labels.to(run.device) if run.config.model.class_conditional else None
    size, flow = run.config.sampling.batch_size, flow_of("finetune", run.sampler)
    parts = [
        latents_of(run.trained, flow, x0[rows], t, cond=None if cond is None else cond[rows])[0]
        for rows in torch.arange(len(x0)).split(size)
    ]
    down = few_steps(run.trained.sde, t, method.steps)
    options = TuningOptions(method.num_updates, method.learning_rate, size, method.identity_weight)
    with ProgressBar(unit="update", desc="finetune", total=method.num_updates) as bar:
        return tune(
            run.trained, down, score, torch.cat(parts), x0, cond=cond, options=options, progress=lambda _: bar.update()
        )


def save_tuned(config: Config, run: SampledRun, tuned: NetworkScoreModel, folder: Path) -> None:
    """Write step 0 of a run with the tuned weights; what an earlier command wrote there is replaced."""
    for old in checkpoint_folders(folder / "checkpoints"):
        drop_folder(old)
    state, weights = build_state(config, run.kind, torch.device("cpu")), named_weights(tuned, tuned)
    for one in (state.model, state.ema.model):
        load_weights(one, weights, "ema.")
    source = run.workdir / "checkpoints" / f"step_{run.step:08d}"
    save_beginning(config, folder, state, name="run", checkpoint=str(source.resolve()))
    say(f"wrote the tuned weights as step 0 of a run: --workdir {folder}")
