"""Readings of what a setting has changed, in the object or the call that uses it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_calls import Bench
from training_runs import ROOT, digits_like

import main
from commands.cascade import run_cascade
from commands.classify import classify
from configs.default import get_default_config
from data import ImageDataset, TextKind
from experiment.build import build_model
from experiment.config import Config, load_stages
from experiment.guidance import load_reference
from experiment.text import frozen
from experiment.text.prompts import negative_prompt
from models import GuidedScoreModel, Parameterization, ScoreModel
from models.backbones import Backbone
from runtime.processes.ranks import ALONE
from training.trainer import Trainer


def number_of(image: torch.Tensor) -> int:
    """The number of one of the images of ``digits_like(40)``, as a network has it."""
    known = digits_like(40)
    return int((known.space.encode(known.stored) - image.cpu()).flatten(1).abs().sum(1).argmin())


Read = Callable[[Bench, Config], Any]


def option(trainer_reads: Callable[[Trainer], Any]) -> Read:
    return lambda bench, config: trainer_reads(bench.trainer(config))


def when(name: str) -> Read:
    return lambda bench, config: [step for done, step in bench.loop(config) if done == name]


def data(mode: str, key: str | int) -> Read:
    def read(bench: Bench, config: Config) -> Any:
        call = getattr(bench, mode)(config, "experiment.build.load_dataset")
        return call.args[key] if isinstance(key, int) else call.kwargs[key]

    return read


def device(mode: str) -> Read:
    return lambda bench, config: getattr(bench, mode)(config, "experiment.build.named_device").args[0]


def mode_of(command: str, place: int) -> Read:
    module = {"train": "training.job", "eval": "commands.subject"}.get(command, f"commands.{command}")
    return lambda bench, config: getattr(bench, command)(config, f"{module}.pick_mode").args[place]


def built_network(config: Config) -> Backbone:
    network = build_model(config, digits_like(1).kind).backbone
    assert isinstance(network, Backbone)
    return network


def answered(config: Config) -> float:
    """The answer of a model of random weights, dropout and all: it depends on all that the network is."""
    model = build_model(config, digits_like(1).kind).train()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.normal_(std=0.3)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 0.9])
    cond = torch.tensor([1, 4]) if config.model.class_conditional else None
    torch.manual_seed(5)
    return round(float(model(x, t, cond=cond).x0.detach().double().abs().sum()), 6)


def told(name: str) -> Read:
    return lambda bench, config: getattr(bench.trainer(config)._conditions, name)


def in_network(key: str) -> list[Read]:
    return [lambda _, config: built_network(config).options[key], lambda _, config: answered(config)]


def reading(config: Config) -> Parameterization:
    return build_model(config, digits_like(1).kind).parameterization


def ema_weight(trainer: Trainer) -> float:
    """The weight of the old average in the new one, of a step before which it was 0 and the weights were 1."""
    with torch.no_grad():
        for parameter in trainer.state.model.parameters():
            parameter.fill_(1.0)
        for parameter in trainer.state.ema.model.parameters():
            parameter.fill_(0.0)
    trainer.state.ema.update(trainer.state.model)
    return round(1 - float(next(trainer.state.ema.model.parameters()).flatten()[0]), 6)


def gradient_norm(trainer: Trainer) -> float:
    squares = [p.grad.double().square().sum() for p in trainer.state.model.parameters() if p.grad is not None]
    return round(float(torch.stack(squares).sum().sqrt()), 8)


def group(key: str, place: int | None = None) -> Read:
    def read(bench: Bench, config: Config) -> Any:
        value = bench.trainer(config).state.optimizer.param_groups[0][key]
        return value if place is None else value[place]

    return read


def rate(bench: Bench, config: Config) -> float:
    return round(bench.stepped(config).state.optimizer.param_groups[0]["lr"], 12)


def drawn(key: str | int) -> Read:
    def read(bench: Bench, config: Config) -> Any:
        call = bench.sample(config)
        return call.args[key] if isinstance(key, int) else call.kwargs[key]

    return read


def sampler(name: str) -> Read:
    return lambda bench, config: getattr(bench.sample(config).args[0], name)


def sampled_model(bench: Bench, config: Config) -> str:
    return type(bench.sample(config).args[1]).__name__


def guided(key: str) -> Read:
    """An argument of classifier guidance, "classifier" or "scale"; None without."""

    def read(bench: Bench, config: Config) -> Any:
        calls: list[dict[str, Any]] = []

        def guide(model: ScoreModel, classifier: Path, *, scale: float, interval: Any) -> ScoreModel:
            calls.append({"classifier": str(classifier), "scale": scale})
            return model

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("experiment.guidance.classifier.classifier_kind", lambda _: digits_like(1).kind)
            patched.setattr("experiment.guidance.classifier.load_classifier", lambda workdir, _: workdir)
            patched.setattr("experiment.guidance.classifier.ClassifierGuidedScoreModel", guide)
            bench.sample(config)
        return calls[0][key] if calls else None

    return read


def encoded_by(bench: Bench, config: Config) -> str:
    """The autoencoder whose latents are trained on; "" without."""
    named: list[str] = []

    def encode(config: Config, dataset: ImageDataset, *_: object) -> ImageDataset:
        named.append(config.data.first_stage)
        return dataset

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("training.job.encoded", encode)
        bench.trainer(config)
    return named[0] if named else ""


def text_encoder(_: Bench, config: Config) -> tuple[str, dict[str, Any]]:
    """Folder and options of the frozen encoder that captions are read by."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(frozen, "_opened", lambda path, options: (path, dict(options)))
        return frozen.load_text_encoder(config)  # pyright: ignore[reportReturnType]


def negative_words(_: Bench, config: Config) -> list[int] | None:
    """The words that guidance moves away from, of a model that knows "blue" and "red"."""
    kind = replace(digits_like(1).kind, text=TextKind(("blue", "red")))
    negative = negative_prompt(config, kind, build_model(config, kind))  # pyright: ignore[reportArgumentType]
    return None if negative is None else negative.given["words"][0, :2].tolist()


def guidance(name: str) -> Read:
    """An attribute of the guided model inside the bounds of its x0; None without guidance."""

    def read(bench: Bench, config: Config) -> Any:
        parts = bench.sample(config).args[1].modules()
        return next((getattr(part, name) for part in parts if isinstance(part, GuidedScoreModel)), None)

    return read


def reference(_: Bench, config: Config) -> tuple[str, Any, Any] | None:
    """Folder, weights and step of the model that guidance moves away from."""
    kind, folders = digits_like(1).kind, []
    with pytest.MonkeyPatch.context() as patched:
        for name, does in {
            "saved_config": lambda folder: folders.append(str(folder)) or config,
            "check_step": lambda *_: None,
            "trained_kind": lambda *_: kind,
            "load_same_trained": lambda *_, weights, step, **__: (weights, step),
        }.items():
            patched.setattr(f"experiment.guidance.sampled.{name}", does)
        found = load_reference(config, kind, torch.device("cpu"))
    return found and (folders[0], found.model, found.step)


def sample_set(name: str) -> Read:
    return lambda bench, config: bench.sample(config, "commands.sample.SampleSet").kwargs[name]


def restored(read: Callable[..., Any]) -> Read:
    """Of method, model, measurements and numbers of the first batch that --mode restore draws."""
    return lambda bench, config: read(*bench.restore(config).args)


def interpolated(read: Callable[..., Any]) -> Read:
    """Of the arguments of the first batch that --mode interpolate takes up and down."""

    def found(bench: Bench, config: Config) -> Any:
        call = bench.interpolate(config)
        return read(*call.args, **call.kwargs)

    return found


def edited(read: Callable[..., Any]) -> Read:
    """Of run, method, images, their classes, what came of them and t of --mode edit."""
    return lambda bench, config: read(*bench.edit(config).args)


def shared(read: Callable[..., Any]) -> Read:
    """Of the arguments of the first samples that share a state in --mode progressive."""

    def found(bench: Bench, config: Config) -> Any:
        call = bench.progressive(config, "commands.latents.progressive.draw_shared")
        return read(*call.args, **call.kwargs)

    return found


def split(name: str) -> Read:
    return lambda bench, config: getattr(bench.eval(config).args[0], name)


def seen(name: str, likelihood: str = "vlb") -> Read:
    """An attribute of an estimator that measures, "solver.rtol" of its solver."""

    def read(bench: Bench, config: Config) -> Any:
        found: Any = bench.eval(config).args[1][likelihood][0]
        for part in name.split("."):
            found = getattr(found, part)
        return found

    return read


def by_class(read: Callable[[dict[str, Any]], Any]) -> Read:
    """Of the likelihoods that --mode classify measures, each with the model as it sees it."""
    return lambda bench, config: read(bench.eval(config, command=classify).args[1])


def estimators(bench: Bench, config: Config) -> list[str]:
    return list(bench.eval(config).args[1])


def seen_model(bench: Bench, config: Config) -> str:
    return type(bench.eval(config).args[1]["vlb"][1]).__name__


def pilot(key: str) -> Read:
    """An argument of the fit of the weights by which steps are drawn."""
    target = "likelihood.variational.VariationalBound.fit_steps"
    return lambda bench, config: bench.eval(config, target).kwargs[key]


def preview(key: str) -> Read:
    def read(bench: Bench, config: Config) -> Any:
        trainer = bench.trainer(config)
        return bench.call(lambda: trainer._draw_samples(None), "training.trainer.preview_samples").kwargs[key]  # type: ignore[arg-type]

    return read


def source(bench: Bench, config: Config) -> tuple[Any, ...]:
    call = bench.imported(config, config.source.name)
    return call.args, call.kwargs


def plugins(bench: Bench, config: Config) -> Any:
    command = [
        f"--config={ROOT / 'configs/vp/digits.py'}",
        "--mode=train",
        f"--config.plugins={','.join(config.plugins)}",
    ]
    return bench.call(lambda: main.run(command), "experiment.config.import_plugins").args[0]


def stages(_: Bench, config: Config) -> list[str]:
    path = str(ROOT / "configs/cascade/digits_2_4_8.py")
    return list(load_stages(config, path, defaults=get_default_config()))


def stage_weights(bench: Bench, config: Config) -> list[float]:
    """The weights of guidance that the stages of a cascade are loaded with."""
    two = {"one": get_default_config(), "two": get_default_config()}
    sample = partial(run_cascade, "sample", config, two, Path(), {}, ALONE)
    loaded = bench.call(sample, "commands.cascade._load").args[0]
    return [one.sampling.guidance_weight for one in loaded.values()]


def cascade(name: str) -> Read:
    """An argument of the cascade that is sampled."""

    def read(bench: Bench, config: Config) -> Any:
        stage = get_default_config()
        run = SimpleNamespace(model=None, sampler=None, config=stage, kind=digits_like(1).kind)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("commands.cascade._load", lambda *_: {"one": run})
            sample = partial(run_cascade, "sample", config, {"one": stage}, Path(), {}, ALONE)
            return bench.call(sample, "commands.cascade.Cascade").kwargs[name]

    return read
