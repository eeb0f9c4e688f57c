"""One optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from data import TrainBatches
from experiment.precision import PrecisionBackbone
from models import NetworkScoreModel
from runtime.processes.collectives import Communication, Share
from sde_lib import LearnedVP, derive_seed

from .draws import NETWORK_STREAM, Draw, Draws, make_draw
from .losses.time_sampling import TimeDraw
from .state import TrainingState
from .warmup import learning_rate_factor


@dataclass(frozen=True)
class StepResult:
    """The result of a training step.

    Attributes:
        loss: Mean over the global batch.
        grad_norm: Norm of the gradient before clipping.
        skipped: Whether the guard left the step out.
        stop: Whether some process was asked to stop.
    """

    loss: float
    grad_norm: float
    skipped: bool
    stop: bool


class TrainingStep:
    """One optimizer step. All its randomness is a function of (seed, step), so that a resumed run is the same run.

    Args:
        state: What is trained.
        batches: Where images come from.
        seed: Seed of the run.
        class_conditional: Hand the labels to the network.
        precision: dtype of the network's arithmetic.
        learning_rate: After the warm-up.
        warmup_steps: Steps over which the learning rate rises.
        decay_steps: Step at which it has fallen to 0; 0 keeps it.
        grad_clip: Largest gradient norm; 0 for none. What lies inside a learned noise schedule, which follows the
            variance of the loss and not the loss, has its own norm.
        communication: This process's share of the batch, and how shares are added up; None for one process.
        compiled: Compile the network.
        ahead: Make a step's draws while the one before it is computed; see ``Draws``.
    """

    def __init__(
        self,
        state: TrainingState,
        batches: TrainBatches,
        *,
        seed: int,
        class_conditional: bool,
        precision: torch.dtype,
        learning_rate: float,
        warmup_steps: int,
        grad_clip: float,
        decay_steps: int = 0,
        communication: Communication | None = None,
        compiled: bool = False,
        ahead: bool = False,
    ) -> None:
        self._state, self._seed = state, seed
        self._space, self._class_conditional = batches.dataset.space, class_conditional
        self._decay_steps = decay_steps
        self._learning_rate, self._warmup_steps, self._grad_clip = learning_rate, warmup_steps, grad_clip
        model = state.model
        self._device = next(model.parameters()).device
        self._communication = communication or Communication(Share(batches.batch_size), self._device)
        share = self._communication.share
        self._backbone = PrecisionBackbone(model.backbone, precision, compiled=compiled)
        self._network = self._communication.wrap(self._backbone)
        self._model = NetworkScoreModel(
            self._network,
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
        of_network = {id(parameter) for parameter in model.backbone.parameters()}
        self._outside = [parameter for parameter in model.parameters() if id(parameter) not in of_network]
        self._draws = Draws(
            lambda step: make_draw(batches, seed, share, step, more_noise=state.loss.wants_more_noise),
            ahead=ahead,
            pin=self._device.type == "cuda",
        )

    @property
    def compiled(self) -> bool:
        """True while the network is compiled and that has not failed."""
        return self._backbone.compiles

    def close(self) -> None:
        """End the thread that draws, if there is one."""
        self._draws.close()

    def prepare(self) -> None:
        """Compute a step's gradient once, and forget it.

        DistributedDataParallel orders its sums by what the first backward pass did. Sums of three and more numbers
        depend on their order: without this, the first step after a resumption would round otherwise.
        """
        if self._communication.share.world > 1:
            self._gradient(self._draws.take(self._state.step))
            self._state.optimizer.zero_grad(set_to_none=True)

    def _gradient(self, draw: Draw) -> tuple[TimeDraw, Tensor, Tensor]:
        """Leave the gradient of the mean loss in the parameters.

        Returns:
            The times of the global batch, this process's losses [b], and its part of the mean loss, float64.
        """
        state, share, device = self._state, self._communication.share, self._device
        # of all processes, since some losses spread their times over the batch
        times = state.loss.draw(state.model.sde, draw.uniform)
        own, losses = share.all.start, []
        mean = torch.zeros((), dtype=torch.float64, device=device)
        parts = share.parts
        for part in parts:
            local = slice(part.start - own, part.stop - own)
            x0 = self._space.encode(draw.images[local].to(device, non_blocking=True))
            cond = draw.labels[local].to(device, non_blocking=True) if self._class_conditional else None
            t, weight = times.t[part].to(device), times.weight[part].to(device)
            # dropout draws from the global generator: there is no other way to reach it
            stream = (NETWORK_STREAM, part.start) if part.start else (NETWORK_STREAM,)
            torch.manual_seed(derive_seed(self._seed, state.step, *stream))
            with self._communication.without_sum(self._network, last=part is parts[-1]):
                eps = draw.eps[local].to(device, non_blocking=True)
                more: dict[str, Tensor] = {}
                if draw.more_noise is not None:
                    more["more_noise"] = draw.more_noise[local].to(device, non_blocking=True)
                values = state.loss(self._model, x0, t, eps, cond=cond, **more)
                loss = (weight * values).sum() / share.batch_size
                # processes' gradients are averaged, not added
                (loss * share.world).backward() if share.world > 1 else loss.backward()
            losses.append(values.detach())
            mean += loss.detach()
        self._communication.average_gradients(self._outside)
        return times, torch.cat(losses), mean

    def __call__(self, *, stop: bool = False) -> StepResult:
        """Do step number ``state.step``.

        Args:
            stop: Tell the other processes that this one was asked to stop.

        Raises:
            FloatingPointError: If the guard has seen too many bad steps in a row.
        """
        state, step = self._state, self._state.step
        state.optimizer.zero_grad(set_to_none=True)
        times, losses, mean = self._gradient(self._draws.take(step))
        asked = mean.new_tensor(float(stop))
        total = self._communication.add(torch.stack([mean, asked]))
        largest = self._grad_clip if self._grad_clip > 0 else math.inf
        norms = [_clip(parameters, largest).double().to(self._device) for parameters in (self._parameters, self._inner)]
        # one wait for the device a step: what the guard says must be known before the weights change
        loss, stops, norm, inner_norm = torch.cat([total, torch.stack(norms)]).tolist()
        accepted = state.guard.accepts(loss, norm if math.isfinite(inner_norm) else inner_norm, step + 1)
        if accepted:
            for group in state.optimizer.param_groups:
                group["lr"] = self._learning_rate * learning_rate_factor(
                    step, self._warmup_steps, decay_steps=self._decay_steps
                )
            state.optimizer.step()
            state.ema.update(state.model)
            state.loss.observe(state.model.sde, times.t, self._communication.gather(losses))
        state.step += 1
        return StepResult(loss, norm, skipped=not accepted, stop=stops > 0)


def _clip(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale gradients to a norm of at most ``largest``; those of sharded parameters count with their other shards.

    Returns:
        The norm before.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    sharded = [isinstance(parameter, DTensor) for parameter in trained]
    # the two kinds cannot be in one call
    groups = [[p for p, one in zip(trained, sharded, strict=True) if one == kind] for kind in (True, False)]
    norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in groups if group]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    if not norms:
        return torch.zeros(())
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([one.double() for one in norms]))
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, largest, norm)
    return norm
