"""The training loop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor

from data import ImageDataset, TrainBatches, to_model_space
from models import ClippedScoreModel, NetworkScoreModel
from samplers import DDIMSampler, StepState
from sde_lib import LearnedVP, NoiseStreams, derive_seed

from .build import build_dataset, build_sampler, check_config, check_eval_names, pick_device
from .config import Config
from .images import to_uint8
from .lock import locked
from .logging import TrainingLog, say
from .precision import PrecisionBackbone, pick_precision
from .schedules import learning_rate_factor
from .state import TrainingState
from .time_sampling import TimeDraw
from .workdir import check_for_training, claim_for_training

_TIME_STREAM, _NOISE_STREAM, _NETWORK_STREAM = 0, 1, 2


class Interrupted(KeyboardInterrupt):
    """The user asked to stop; everything is saved."""


@contextmanager
def _catch_interrupt() -> Iterator[list[bool]]:
    """Turn the first Ctrl-C into a request to stop after the step; a second one stops at once."""
    requested: list[bool] = []

    def request(_signal: int, _frame: FrameType | None) -> None:
        requested.append(True)
        os.write(2, b"\nstopping after this step; Ctrl-C again to stop at once, without saving\n")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, request)
    try:
        yield requested
    finally:
        signal.signal(signal.SIGINT, before)


class TrainingStep:
    """One optimizer step. All its randomness is a function of (seed, step), so that a resumed run is the same run.

    Args:
        state: What is trained.
        batches: Where images come from.
        seed: Seed of the run.
        num_levels: Grey levels of the data.
        class_conditional: Hand the labels to the network.
        precision: dtype of the network's arithmetic.
        learning_rate: After the warm-up.
        warmup_steps: Steps over which the learning rate rises.
        decay_steps: Step at which it has fallen to 0; 0 keeps it.
        grad_clip: Largest gradient norm; 0 for none. What lies inside a learned noise schedule, which follows the
            variance of the loss and not the loss, has its own norm.
    """

    def __init__(
        self,
        state: TrainingState,
        batches: TrainBatches,
        *,
        seed: int,
        num_levels: int,
        class_conditional: bool,
        precision: torch.dtype,
        learning_rate: float,
        warmup_steps: int,
        grad_clip: float,
        decay_steps: int = 0,
    ) -> None:
        self._state, self._batches = state, batches
        self._seed, self._num_levels, self._class_conditional = seed, num_levels, class_conditional
        self._decay_steps = decay_steps
        self._learning_rate, self._warmup_steps, self._grad_clip = learning_rate, warmup_steps, grad_clip
        model = state.model
        backbone = PrecisionBackbone(model.backbone, precision)
        self._model = NetworkScoreModel(
            backbone,
            model.sde,
            model.parameterization,
            learned_variance=model.learned_variance,
            dequantizer=model.dequantizer,
        )
        self._model.train()
        # the gradient of a variance is far larger than that of the loss, which a norm of both would scale away
        self._inner = model.sde.inner_parameters() if isinstance(model.sde, LearnedVP) else []
        apart = {id(parameter) for parameter in self._inner}
        self._parameters = [parameter for parameter in model.parameters() if id(parameter) not in apart]
        self._device = self._parameters[0].device

    def _draw(self, step: int) -> tuple[Tensor, TimeDraw, Tensor, Tensor | None]:
        """Data, times, noise and condition of a step."""
        images, labels = self._batches.batch(step)
        x0 = to_model_space(images, self._num_levels)
        uniform = torch.rand(len(x0), generator=self._generator(step, _TIME_STREAM), dtype=torch.float64)
        eps = torch.randn(x0.shape, generator=self._generator(step, _NOISE_STREAM))
        drawn = self._state.loss.draw(self._state.model.sde, uniform)
        cond = labels.to(self._device) if self._class_conditional else None
        times = TimeDraw(drawn.t.to(self._device), drawn.weight.to(self._device))
        return x0.to(self._device), times, eps.to(self._device), cond

    def _generator(self, step: int, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self._seed, step, stream))

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Do step number ``state.step``.

        Returns:
            The mean loss and the gradient norm before clipping, as tensors, so that the device need not be waited for.
        """
        state, step = self._state, self._state.step
        x0, times, eps, cond = self._draw(step)
        # dropout draws from the global generator: there is no other way to reach it
        torch.manual_seed(derive_seed(self._seed, step, _NETWORK_STREAM))
        losses = state.loss(self._model, x0, times.t, eps, cond=cond)
        loss = (times.weight * losses).mean()
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        largest = self._grad_clip if self._grad_clip > 0 else float("inf")
        grad_norm = torch.nn.utils.clip_grad_norm_(self._parameters, largest)
        torch.nn.utils.clip_grad_norm_(self._inner, largest)
        for group in state.optimizer.param_groups:
            group["lr"] = self._learning_rate * learning_rate_factor(
                step, self._warmup_steps, decay_steps=self._decay_steps
            )
        state.optimizer.step()
        state.ema.update(state.model)
        state.loss.observe(state.model.sde, times.t, losses)
        state.step += 1
        return loss.detach(), grad_norm.detach()


class _PreviewStopped(Exception):  # noqa: N818
    pass


def _log_preview(
    config: Config, state: TrainingState, dataset: ImageDataset, log: TrainingLog, interrupted: list[bool]
) -> None:
    """16 samples by 50 steps of DDIM, from the same noise every time; Ctrl-C does without them."""

    def stop(_: StepState) -> None:
        if interrupted:
            raise _PreviewStopped

    device = next(state.model.parameters()).device
    noise = NoiseStreams(config.seed, range(16))
    model = ClippedScoreModel(state.ema.model)
    cond = torch.arange(16, device=device) % dataset.num_classes if config.model.class_conditional else None
    x_T = model.sde.prior_sample(dataset.image_shape, noise, device=device)
    try:
        result = DDIMSampler(num_steps=50).sample(model, x_T, cond=cond, noise=noise, hooks=[stop])
    except _PreviewStopped:
        return
    log.samples(state.step, to_uint8(result.x0, dataset.num_levels))


def train(config: Config, workdir: Path) -> None:
    """Train, or go on training from the newest good checkpoint, up to ``training.num_steps``.

    Args:
        config: The config.
        workdir: The work directory.

    Raises:
        ValueError: If the config cannot work; nothing is written then.
        FloatingPointError: If the loss stops being finite; the last checkpoint is kept.
        Interrupted: After Ctrl-C, with a checkpoint of that moment written.
    """
    check_config(config)
    check_eval_names(config)
    training = config.training
    device = pick_device(config)
    precision = pick_precision(training.precision, device)
    build_sampler(config)
    dataset = build_dataset(config, "train")
    batches = TrainBatches(
        dataset, batch_size=training.batch_size, seed=config.seed, random_flip=config.data.random_flip
    )
    state = TrainingState.create(config, dataset, device)
    do_step = TrainingStep(
        state,
        batches,
        seed=config.seed,
        num_levels=dataset.num_levels,
        class_conditional=config.model.class_conditional,
        precision=precision,
        learning_rate=config.optim.learning_rate,
        warmup_steps=config.optim.warmup_steps,
        decay_steps=config.optim.decay_steps,
        grad_clip=training.grad_clip,
    )
    check_for_training(workdir, config)
    with locked(workdir, "train"):
        # another process may have begun in the meantime
        check_for_training(workdir, config)
        _train_there(config, workdir, state, do_step, dataset, device, precision)


def _train_there(
    config: Config,
    workdir: Path,
    state: TrainingState,
    do_step: TrainingStep,
    dataset: ImageDataset,
    device: torch.device,
    precision: torch.dtype,
) -> None:
    training = config.training
    if state.restore(workdir / "checkpoints"):
        say(f"continues from step {state.step}")
    claim_for_training(workdir, config)
    if state.step >= training.num_steps:
        say(f"already trained to step {state.step}; raise --config.training.num_steps to train on")
        return
    size = sum(p.numel() for p in state.model.parameters())
    say(
        f"{len(dataset):,} images of {'x'.join(map(str, dataset.image_shape))}, {dataset.num_levels} grey levels; "
        f"{size:,} parameters on {device}, network in {str(precision).removeprefix('torch.')}"
    )
    log = TrainingLog(workdir, start=state.step, num_steps=training.num_steps, batch_size=training.batch_size)
    with log, _catch_interrupt() as interrupted:
        _run(config, workdir, state, do_step, log, interrupted, dataset)


def _run(
    config: Config,
    workdir: Path,
    state: TrainingState,
    do_step: TrainingStep,
    log: TrainingLog,
    interrupted: list[bool],
    dataset: ImageDataset,
) -> None:
    training = config.training
    began, steps_timed = time.perf_counter(), 0
    while state.step < training.num_steps and not interrupted:
        loss, grad_norm = do_step()
        state.losses.append(loss.cpu())
        steps_timed += 1
        log.advance()
        last = state.step == training.num_steps
        if last or state.step % training.log_every == 0:
            mean = float(torch.stack(state.losses).mean())
            _check_finite(mean, state.step)
            log.scalars(
                state.step,
                loss=mean,
                grad_norm=float(grad_norm),
                learning_rate=state.optimizer.param_groups[0]["lr"],
                seconds_per_step=(time.perf_counter() - began) / steps_timed,
            )
            state.losses.clear()
            began, steps_timed = time.perf_counter(), 0
        paused = time.perf_counter()
        if last or state.step % training.checkpoint_every == 0:
            _check_finite(float(loss), state.step)
            state.save(workdir / "checkpoints", keep=training.keep_checkpoints)
            log.learning_curve()
        if training.sample_every and state.step % training.sample_every == 0:
            _log_preview(config, state, dataset, log, interrupted)
        began += time.perf_counter() - paused
    if interrupted:
        _check_finite(float(torch.stack(state.losses).mean()) if state.losses else 0.0, state.step)
        state.save(workdir / "checkpoints", keep=training.keep_checkpoints)
        log.learning_curve()
        raise Interrupted(f"stopped at step {state.step}, which is saved; the same command goes on from there")


def _check_finite(loss: float, step: int) -> None:
    if not loss < float("inf"):
        raise FloatingPointError(
            f"the loss is {loss} at step {step}; lower optim.learning_rate or training.grad_clip, "
            "and go on from the last checkpoint if there is one"
        )
