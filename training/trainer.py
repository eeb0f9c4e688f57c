"""The trainer: the steps of one training, what it logs and saves, and how it resumes."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from data import NOTHING, Dataset
from experiment.conditions import Conditions, ImageNoise, Observed
from experiment.pictures import as_array, picture_of
from experiment.precision import NetworkMode, PrecisionBackbone
from models import Cond, Condition, ScoreModel, null_of
from models.backbones import ControlledBackbone
from models.condition import PARTS
from runtime.messages import say
from runtime.options import whole_number
from runtime.processes.collectives import Communication
from runtime.processes.rank_slice import RankSlice
from runtime.signals import Interrupted, StopRequest
from sde_lib import LearnedVP, derive_seed

from .batches import NETWORK_STREAM, Batch, Batches
from .codes import Codebooks
from .ema.snapshots import drop_later, save_snapshot
from .log import TrainingLog
from .losses.step_sampling import TimeDraw
from .optimization import clip_gradients, learning_rate_factor
from .preview import preview_count, preview_samples
from .state import TrainingState

# of condition images at t = 0; a network that sees none is vague about clean ones
_CLEAN_SHARE = 0.25


@dataclass(frozen=True)
class TrainingOptions:
    """The settings of a training.

    Attributes:
        num_steps: Optimizer steps in all.
        batch_size: Samples a step, of all ranks together.
        accumulation_steps: Micro-batches into which each rank cuts its slice of the batch.
        seed: Seed of the batches, the noise, the times and dropout.
        class_conditional: Tell the network the labels.
        condition_dropout: Share of the samples whose condition is left out, a draw of each step, in [0, 1).
        part_dropout: Shares of those of which a part is left out, by its name in ``models.condition.PARTS``: draws of
            their own, beside that of the whole.
        condition_noise_t: Noise on condition images: that of t = 0 for one sample in four, of a t uniform in [0, this]
            for the others; 0 for none.
        random_flip: Mirror images left to right with probability 1/2.
        learning_rate: After the warm-up.
        warmup_steps: Steps over which the learning rate rises.
        decay_steps: Step at which it has fallen to 0; 0 keeps it.
        grad_clip: Largest gradient norm; 0 for none. The inner parameters of a learned noise schedule are
            clipped by a norm of their own, since their gradient is that of the loss's variance.
        log_every: Steps between two lines of numbers.
        checkpoint_every: Steps between two checkpoints.
        keep_checkpoints: Number of checkpoints to keep.
        ema_snapshot_every: Steps between two snapshots of the averages ``TrainingState.profiles``, which are all kept.
        sample_every: Steps between two pictures of samples; 0 for none. A classifier has none.
    """

    num_steps: int
    batch_size: int = 128
    accumulation_steps: int = 1
    seed: int = 0
    class_conditional: bool = False
    condition_dropout: float = 0.0
    part_dropout: Mapping[str, float] = field(default_factory=dict)
    condition_noise_t: float = 0.0
    random_flip: bool = False
    learning_rate: float = 2e-4
    warmup_steps: int = 0
    decay_steps: int = 0
    grad_clip: float = 1.0
    log_every: int = 50
    checkpoint_every: int = 5_000
    keep_checkpoints: int = 3
    ema_snapshot_every: int = 5_000
    sample_every: int = 0

    def __post_init__(self) -> None:
        for name in (
            "num_steps",
            "batch_size",
            "accumulation_steps",
            "log_every",
            "checkpoint_every",
            "ema_snapshot_every",
        ):
            whole_number(name, getattr(self, name), fix="pass 1 or more")
        for name in ("learning_rate", "grad_clip"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}; pass such a number")


@dataclass(frozen=True)
class StepResult:
    """The result of a training step.

    Attributes:
        loss: Mean over the global batch.
        grad_norm: Norm of the gradient before clipping.
        skipped: Whether the step was skipped.
        stop: Whether some rank was asked to stop.
    """

    loss: float
    grad_norm: float
    skipped: bool
    stop: bool


class Trainer:
    """Fits a network: resumes, does steps, logs and saves. A step is a function of the weights and (seed, step).

    Args:
        state: The model, its average, the optimizer and the loss, as they are before the next step.
        dataset: The samples to train on.
        options: The settings.
        workdir: The folder of ``checkpoints/``, ``logs/`` and ``samples/``; None writes nothing.
        mode: Precision and compilation of the network; float32 by default.
        conditions: What the network is told of each sample; by default its label if ``class_conditional``.
        communication: The ranks of a job, and this one's slice of a batch; one process by default.
        before_saving: Called on rank 0 before the first checkpoint of this trainer is written.
    """

    def __init__(
        self,
        state: TrainingState,
        dataset: Dataset,
        options: TrainingOptions,
        *,
        workdir: Path | str | None = None,
        mode: NetworkMode | None = None,
        conditions: Conditions | None = None,
        communication: Communication | None = None,
        before_saving: Callable[[], None] = lambda: None,
    ) -> None:
        self.state, self.options = state, options
        self.workdir = None if workdir is None else Path(workdir)
        model, mode = state.model, mode or NetworkMode(torch.float32, compiled=False)
        self._device = next(model.parameters()).device
        alone = RankSlice(options.batch_size, accumulation_steps=options.accumulation_steps)
        self._ranks = communication or Communication(alone, self._device)
        self._slice = self._ranks.rank_slice
        self._backbone = PrecisionBackbone(model.backbone, mode.precision, compiled=mode.compiled)
        self._network = self._ranks.wrap(self._backbone)
        # the loss says of which kind of model it is
        self._model: Any = model.with_backbone(self._network).train()
        # the gradient of a variance is far larger than that of the loss, which a norm of both would scale away
        self._inner = model.sde.inner_parameters() if isinstance(model.sde, LearnedVP) else []
        inner, network = ({id(p) for p in some} for some in (self._inner, model.backbone.parameters()))
        self._parameters = [p for p in model.parameters() if id(p) not in inner]
        self._outside_network = [p for p in model.parameters() if id(p) not in network]
        self._codebooks = Codebooks.of(model.backbone, state.ema.model.backbone, self._ranks)
        self._space = dataset.space
        self._conditions = conditions or Conditions(None, labels=options.class_conditional)
        self._tells = self._conditions.any
        # without its hint a ControlNet adds nothing, of which nothing is to be learned
        self._keeps_hint = isinstance(model.backbone, ControlledBackbone)
        self._shown = self._preview_condition(dataset)
        self._batches = Batches(
            dataset,
            self._slice,
            seed=options.seed,
            random_flip=options.random_flip,
            more_noise=state.loss.wants_more_noise,
            drops=options.condition_dropout > 0,
            part_drops=bool(options.part_dropout),
            num_condition_noise=self._conditions.num_noisy if options.condition_noise_t > 0 else 0,
            ahead=self._device.type == "cuda",
        )
        self._before_saving: Callable[[], None] | None = before_saving
        self._log: TrainingLog | None = None

    @property
    def first(self) -> bool:
        """True on rank 0, which prints and writes."""
        return self._slice.rank == 0

    def resume(self) -> bool:
        """Go to the newest good checkpoint of the work directory; False if there is none.

        Raises:
            ValueError: If there are checkpoints but none can be used.
        """
        if self.workdir is None:
            raise ValueError("a trainer without a workdir has nothing to resume; pass workdir")
        return self.state.restore(self.workdir / "checkpoints", rank=self._slice.rank, world=self._slice.world)

    def run(self, request: StopRequest | None = None) -> None:
        """Do the steps that are left of ``options.num_steps``; log, save and draw samples on the way.

        Args:
            request: A request to stop, looked at after each step; see ``stop_on_signals``.

        Raises:
            FloatingPointError: If too many steps in a row were skipped, or all of them.
            Interrupted: If a stop was requested; the step is saved.
        """
        # a request is false until there is one
        request = StopRequest() if request is None else request
        try:
            self.prepare()
            with self._open_log() as self._log:
                self._steps(request)
        finally:
            self._batches.close()

    def _open_log(self) -> AbstractContextManager[TrainingLog | None]:
        if not self.first:
            return nullcontext()
        return closing(TrainingLog(self.workdir, start=self.state.step, num_steps=self.options.num_steps))

    def _steps(self, request: StopRequest) -> None:
        options, state = self.options, self.state
        if self.first and self.workdir is not None:
            drop_later(self.workdir, state.step)
        stop, save_due = self._ranks.any(bool(request)), False
        began, steps_timed = time.perf_counter(), 0
        while state.step < options.num_steps and not stop:
            result = self.step(stop=bool(request))
            stop = result.stop or (self._slice.world == 1 and bool(request))
            last, steps_timed = state.step == options.num_steps, steps_timed + 1
            if last:
                state.bad_steps.check_trained(state.step)
            if last or state.step % options.log_every == 0:
                self._log_numbers(result, (time.perf_counter() - began) / steps_timed)
                began, steps_timed = time.perf_counter(), 0
            paused = time.perf_counter()
            if self.workdir is not None and state.step % options.ema_snapshot_every == 0:
                # before the checkpoint of this step, from which a run goes on that is killed in between
                save_snapshot(self.workdir, state.step, state.profiles, write=self.first)
            save_due = save_due or last or state.step % options.checkpoint_every == 0
            # weights at which nothing can be computed would take a good checkpoint's place
            if save_due and (last or not state.bad_steps.doubtful):
                save_due = False
                self.save()
            if options.sample_every and state.step % options.sample_every == 0:
                self._draw_samples(request)
            began += time.perf_counter() - paused
        if stop:
            self._end_early(request)

    def _end_early(self, request: StopRequest) -> None:
        # a command that did no step changes nothing
        if self.state.saved_step != self.state.step:
            self.save()
        raise Interrupted(
            f"stopped at step {self.state.step}, which is saved; the same command goes on from there",
            # of a request that another rank heard, the signal is not known here
            request.signal_number or signal.SIGTERM,
            together=True,
        )

    def step(self, *, stop: bool = False) -> StepResult:
        """Do step number ``state.step``.

        Args:
            stop: Tell the other ranks that this one was asked to stop.

        Raises:
            FloatingPointError: If too many steps in a row were skipped.
        """
        state, options = self.state, self.options
        if state.loss.of_distillation:
            state.begin_step()
        critic = state.loss.trained_critic
        optimizer = state.optimizer if critic is None else critic.optimizer
        trained = (self._parameters, self._inner) if critic is None else (list(critic.parameters()), [])
        optimizer.zero_grad(set_to_none=True)
        if self._codebooks is not None:
            self._codebooks.begin_step()
        times, losses, mean = self._gradient(self._batches.at(state.step))
        total = self._ranks.add(torch.stack([mean, mean.new_tensor(float(stop))]))
        largest = options.grad_clip if options.grad_clip > 0 else math.inf
        norms = [clip_gradients(some, largest).double().to(self._device) for some in trained]
        # one wait for the device a step: a bad step is told before the weights change
        loss, stops, norm, inner_norm = torch.cat([total, torch.stack(norms)]).tolist()
        accepted = state.bad_steps.accepts(loss, norm if math.isfinite(inner_norm) else inner_norm, state.step + 1)
        if accepted:
            factor = learning_rate_factor(state.step, options.warmup_steps, decay_steps=options.decay_steps)
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * factor * state.loss.rate
            optimizer.step()
            for average in (state.ema, *state.profiles) if critic is None else ():
                average.update(state.model)
            if self._codebooks is not None:
                self._codebooks.end_step()
            state.times.observe(times.t, self._ranks.gather(losses))
            state.losses.append(loss)
        state.step += 1
        if state.how.get("compile") and not self._backbone.compiles:
            # what failed for want of disk, say, may work at the next start, and end in other bits
            state.how["compile"] = False
        if self._log is not None:
            self._log.advance()
            if not accepted:
                say(f"step {state.step} is skipped: loss {loss:g}, gradient norm {norm:g}")
        return StepResult(loss, norm, skipped=not accepted, stop=stops > 0)

    def _gradient(self, batch: Batch) -> tuple[TimeDraw, Tensor, Tensor]:
        """Leave the gradient of the mean loss in the parameters.

        Returns:
            The times of the global batch, the losses of this rank's slice [b], and their part of the mean, float64.
        """
        # of all ranks, since some samplers spread their times over the batch
        times, world = self.state.times.draw(batch.uniform), self._slice.world
        losses, mean = [], torch.zeros((), dtype=torch.float64, device=self._device)
        micro_batches = self._slice.micro_batches
        for micro_batch in micro_batches:
            with self._ranks.without_sum(self._network, last=micro_batch is micro_batches[-1]):
                values = self._losses(batch, times, micro_batch)
                weight = times.weight[micro_batch].to(self._device)
                loss = (weight * values).sum() / self._slice.batch_size
                # ranks' gradients are averaged, not added
                (loss * world if world > 1 else loss).backward()
            losses.append(values.detach())
            mean += loss.detach()
        critic = self.state.loss.trained_critic
        self._ranks.average_gradients(self._outside_network if critic is None else critic.parameters())
        return times, torch.cat(losses), mean

    def _losses(self, batch: Batch, times: TimeDraw, micro_batch: slice) -> Tensor:
        """The loss of each sample of a micro-batch, a slice of the global batch."""
        begin = self._slice.samples.start
        local = slice(micro_batch.start - begin, micro_batch.stop - begin)

        def here(values: Tensor) -> Tensor:
            return values[local].to(self._device, non_blocking=True)

        coupled = batch.beside.noise
        x0, eps = self._space.encode(here(batch.samples)), here(batch.eps if coupled is None else coupled)
        cond = self._condition(batch, here) if self._tells else None
        more = {}
        if batch.spread is not None and batch.more_noise is not None:
            x0 = x0 + here(batch.spread) * here(batch.more_noise)
        elif batch.more_noise is not None:
            more = {"more_noise": here(batch.more_noise)}
        # dropout draws from the global generator: there is no other way to reach it
        stream = (NETWORK_STREAM, micro_batch.start) if micro_batch.start else (NETWORK_STREAM,)
        torch.manual_seed(derive_seed(self.options.seed, self.state.step, *stream))
        return self.state.loss(self._model, x0, times.t[micro_batch].to(self._device), eps, cond=cond, **more)

    def _condition(self, batch: Batch, here: Callable[[Tensor], Tensor]) -> Cond | None:
        """The condition of a micro-batch, which ``here`` takes out of a batch: with its noise, and left out of some."""
        noise = None
        if batch.condition_uniform is not None and batch.condition_eps is not None:
            noisy = (here(batch.condition_uniform) - _CLEAN_SHARE).clamp_min(0) / (1 - _CLEAN_SHARE)
            t = self.options.condition_noise_t * noisy
            noise = ImageNoise(self._model.sde, t, here(batch.condition_eps))
        beside = NOTHING if batch.beside is NOTHING else batch.beside.map(here)
        observed = self._conditions.observe(here(batch.samples), here(batch.labels), beside)
        cond = self._conditions.tell(observed, noise=noise)
        if cond is None:
            return None
        if batch.drop_uniform is not None:
            told, cond = cond, null_of(cond, here(batch.drop_uniform) < self.options.condition_dropout)
            if self._keeps_hint and isinstance(told, Condition) and isinstance(cond, Condition):
                cond = replace(cond, image=told.image)
        if batch.part_uniform is not None:
            uniform = dict(zip(PARTS, here(batch.part_uniform).unbind(1), strict=True))
            for part, rate in self.options.part_dropout.items():
                cond = null_of(cond, uniform[part] < rate, part=part)
        return cond

    def prepare(self) -> None:
        """Compute a step's gradient once, and forget it.

        DistributedDataParallel orders its sums by what the first backward pass did. Sums of three and more numbers
        depend on their order: without this, the first step after a resumption would round otherwise.
        """
        if self._slice.world > 1:
            # a step that trains the model, whatever the next one trains
            self.state.loss.begin_step(0)
            self._gradient(self._batches.at(self.state.step))
            self.state.optimizer.zero_grad(set_to_none=True)

    def save(self) -> None:
        """Write a checkpoint of this moment, and the learning curve; all ranks must call it.

        Raises:
            FloatingPointError: If a weight is not finite; nothing is written then.
        """
        if self.workdir is None:
            self.state.check_finite()
            return
        if self.first and self._before_saving is not None:
            self._before_saving()
            self._before_saving = None
        self.state.save(self.workdir / "checkpoints", keep=self.options.keep_checkpoints, write=self.first)
        if self._log is not None:
            self._log.learning_curve()

    def _preview_condition(self, dataset: Dataset) -> Cond | None:
        """The condition of the samples that are shown: classes in turn, or what is told of the first samples."""
        index = torch.arange(preview_count(self.state.kind))
        if self._conditions.only_labels:
            return (
                self._conditions.tell(Observed(labels=index % dataset.num_classes)) if self._conditions.labels else None
            )
        return self._conditions.tell(self._conditions.observe_in(dataset, index % len(dataset)))

    def _log_numbers(self, result: StepResult, seconds_per_step: float) -> None:
        state = self.state
        if self._log is not None and state.losses:
            self._log.scalars(
                {
                    "step": state.step,
                    "loss": fmean(state.losses),
                    "grad_norm": result.grad_norm,
                    "learning_rate": state.optimizer.param_groups[0]["lr"],
                    "images_per_second": self.options.batch_size / seconds_per_step,
                    "skipped_steps": state.bad_steps.skipped,
                }
            )
        state.losses.clear()

    def _draw_samples(self, request: StopRequest) -> None:
        """Log a picture of samples of the average; a request to stop does without it, and a classifier has none."""
        # of a sharded network all ranks are needed for a sample, and none can stop without the others
        sharded = self._ranks.sharded
        model = self.state.ema.model
        if self.state.kind is None or not isinstance(model, ScoreModel) or not (self.first or sharded):
            return
        samples = preview_samples(
            model,
            self.state.kind,
            seed=self.options.seed,
            cond=self._shown,
            stops=lambda: self._ranks.any(bool(request)) if sharded else bool(request),
        )
        if self._log is not None and samples is not None:
            self._log.samples(self.state.step, picture_of(as_array(samples, self.state.kind)))
