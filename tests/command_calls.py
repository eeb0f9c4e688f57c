"""The commands, each up to one call: what the test of the settings looks into."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from training_runs import digits_like

from commands import import_checkpoint, sample, subject
from commands.editing import edit
from commands.ensembles import restore, segment
from commands.eval import evaluate
from commands.latents import interpolate, progressive
from commands.train import train
from data import ImageDataset
from experiment import build
from experiment.build import build_model
from experiment.config import Config
from models import ScoreModel, pretrained
from training.trainer import StepResult, Trainer


class _Reached(Exception):  # noqa: N818
    pass


@dataclass
class Call:
    """The arguments of a call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Bench:
    """The commands on random digits and new networks, each up to the call that a test asks for."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._monkeypatch = folder, monkeypatch

    def call(self, run: Callable[[], object], target: str) -> Call:
        """The arguments of the first call of ``target``, which ends the command."""
        found: list[Call] = []

        def reached(*args: Any, **kwargs: Any) -> None:
            found.append(Call(args, kwargs))
            raise _Reached

        with self._monkeypatch.context() as patched:
            patched.setattr(target, reached)
            with pytest.raises(_Reached):
                run()
        return found[0]

    def _images(self, config: Config) -> ImageDataset:
        return replace(digits_like(40), split=config.eval.split)

    def train(self, config: Config, target: str) -> Call:
        with self._monkeypatch.context() as patched:
            if target != "experiment.build.load_dataset":
                patched.setattr(build, "load_dataset", lambda *_, **__: digits_like(40))
            return self.call(lambda: train(config, self._folder / "run"), target)

    def trainer(self, config: Config) -> Trainer:
        call = self.train(config, "training.job.Trainer")
        return Trainer(*call.args, **(call.kwargs | {"workdir": None}))

    def stepped(self, config: Config) -> Trainer:
        """After the step number 2, the first one that this trainer does."""
        trainer = self.trainer(config)
        trainer.state.step = 2
        trainer.step()
        return trainer

    def loop(self, config: Config) -> list[tuple[str, int]]:
        """The names of all but the steps that a training does, each with its step."""
        trainer, done = self.trainer(config), []

        def step(*, stop: bool = False) -> StepResult:
            trainer.state.step += 1
            return StepResult(1.0, 1.0, skipped=False, stop=stop)

        with self._monkeypatch.context() as patched:
            patched.setattr(trainer, "step", step)
            for name in ("save", "_log_numbers", "_draw_samples"):
                patched.setattr(trainer, name, lambda *_, name=name: done.append((name, trainer.state.step)))
            trainer.run()
        return done

    def _with_model(self, module: Any, patched: pytest.MonkeyPatch) -> None:
        def load(_: object, config: Config, __: object, kind: Any, ___: object) -> tuple[ScoreModel, int]:
            return build_model(config, kind).eval(), 6

        patched.setattr(module, "load_same_trained", load)
        patched.setattr(module, "check_for_use", lambda *_: None)

    def sample(self, config: Config, target: str = "commands.sample.draw_batch") -> Call:
        with self._monkeypatch.context() as patched:
            self._with_model(sample, patched)
            patched.setattr(sample, "trained_kind", lambda *_: digits_like(1).kind)
            return self.call(lambda: sample.sample(config, self._folder / "run"), target)

    def interpolate(self, config: Config, target: str = "commands.latents.interpolate.interpolate_images") -> Call:
        return self._of_latents(config, target, interpolate, interpolate.interpolate_pairs)

    def progressive(self, config: Config, target: str = "commands.latents.progressive.draw_progressively") -> Call:
        return self._of_latents(config, target, progressive, progressive.progressive)

    def _of_latents(self, config: Config, target: str, module: Any, command: Callable[[Config, Path], object]) -> Call:
        with self._monkeypatch.context() as patched:
            self._with_model(sample, patched)
            patched.setattr(sample, "trained_kind", lambda *_: digits_like(1).kind)
            patched.setattr(module, "check_for_use", lambda *_: None)
            patched.setattr(subject, "as_trained", lambda *args: args[-1])
            if target != "experiment.build.load_dataset":
                patched.setattr(build, "load_dataset", lambda *_, **__: digits_like(64))
            return self.call(lambda: command(config, self._folder / "run"), target)

    def edit(self, config: Config, target: str = "commands.editing.edit.write_edited") -> Call:
        with self._monkeypatch.context() as patched:
            self._with_model(sample, patched)
            patched.setattr(sample, "trained_kind", lambda *_: digits_like(1).kind)
            patched.setattr(edit, "check_for_use", lambda *_: None)
            patched.setattr(subject, "as_trained", lambda *args: args[-1])
            if target != "experiment.build.load_dataset":
                patched.setattr(build, "load_dataset", lambda *_, **__: digits_like(40))
            return self.call(lambda: edit.edit_images(config, self._folder / "run"), target)

    def eval(
        self,
        config: Config,
        target: str = "commands.eval.Schedule",
        command: Callable[[Config, Path], object] = evaluate,
    ) -> Call:
        with self._monkeypatch.context() as patched:
            self._with_model(subject, patched)
            patched.setattr(subject, "as_trained", lambda *args: args[-1])
            if target != "experiment.build.load_dataset":
                patched.setattr(build, "load_dataset", lambda *_, **__: self._images(config))
            return self.call(lambda: command(config, self._folder / "run"), target)

    def restore(self, config: Config, target: str = "commands.ensembles.restore.draw_posterior") -> Call:
        with self._monkeypatch.context() as patched:
            self._with_model(restore, patched)
            patched.setattr(restore, "trained_kind", lambda *_: digits_like(1).kind)
            patched.setattr(subject, "as_trained", lambda *args: args[-1])
            if target != "experiment.build.load_dataset":
                patched.setattr(build, "load_dataset", lambda *_, **__: digits_like(40))
            return self.call(lambda: restore.restore(config, self._folder / "run"), target)

    def segment(self, config: Config, target: str = "commands.ensembles.segment.draw_ensemble") -> Call:
        digits = digits_like(64)
        masks = replace(digits, images=digits.images % 2, num_levels=2, paired=digits.images, paired_levels=17)
        with self._monkeypatch.context() as patched:
            self._with_model(sample, patched)
            patched.setattr(sample, "trained_kind", lambda *_: masks.kind)
            patched.setattr(sample, "as_trained", lambda *args: args[-1])
            patched.setattr(segment, "check_for_use", lambda *_: None)
            if target != "experiment.build.load_dataset":
                patched.setattr(build, "load_dataset", lambda *_, **__: masks)
            return self.call(lambda: segment.segment(config, self._folder / "run"), target)

    def imported(self, config: Config, source: str) -> Call:
        name = f"from_{source}"
        with self._monkeypatch.context() as patched:
            # the table holds the functions themselves
            looked_up = lambda *args, **kwargs: getattr(pretrained, name)(*args, **kwargs)  # noqa: E731
            patched.setitem(import_checkpoint._SOURCES, source, looked_up)
            return self.call(lambda: import_checkpoint.read_source(config), f"models.pretrained.{name}")
