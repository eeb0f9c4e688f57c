"""The base class of losses, the weighting of errors, and losses by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from models import Cond, Prediction, ScoreModel
from runtime.options import ShowsOptions
from runtime.registry import Registry, choices_message
from sde_lib import SDE, expand_like

from .step_sampling import MiddleTimes, TimeSampler, UniformTimes, check_step_sampling

if TYPE_CHECKING:
    from .critic import Critic

Weighting = Literal["eps", "x0", "v", "velocity", "edm", "likelihood", "truncated_snr"]


def weighted_error(
    weighting: str, prediction: Prediction, x0: Tensor, eps: Tensor, *, sde: SDE, t: Tensor, data_std: float
) -> Tensor:
    """Mean squared error per sample, [B], of the quantity whose error has weight 1.

    Args:
        weighting: "eps": |eps error|^2, which is L_simple (Ho et al. 2020, Eq. 14) and sigma^2-weighted denoising score
            matching (Song et al. 2021, Eq. 7); "x0": |x0 error|^2; "v": |v error|^2 with v = alpha eps - sigma x0;
            "velocity": |u error|^2 with u = alpha' x0 + sigma' eps, which is eps - x0 of a rectified flow: flow
            matching (Lipman et al. 2023, Eq. 23); "edm": (s^2 + d^2) / (s d)^2 |x0 error|^2 with s = sigma / alpha
            (Karras et al. 2022, Section 5); "truncated_snr": max(alpha^2 / sigma^2, 1) |x0 error|^2 (Salimans & Ho
            2022, Eq. 9).
        prediction: The model's answer.
        x0: Data, [B, ...].
        eps: The noise that was added, [B, ...].
        sde: The SDE.
        t: Times, [B].
        data_std: d, for "edm".

    Raises:
        ValueError: If the weighting is unknown.
    """
    sigma = prediction.sigma
    if weighting == "eps":
        error = prediction.eps - eps
    elif weighting == "x0":
        error = prediction.x0 - x0
    elif weighting == "v":
        alpha, _ = sde.alpha_sigma(t)
        error = expand_like(alpha, eps) * (prediction.eps - eps) - expand_like(sigma, x0) * (prediction.x0 - x0)
    elif weighting == "velocity":
        alpha_rate, sigma_rate = sde.rates(t)
        error = expand_like(alpha_rate, x0) * (prediction.x0 - x0)
        error = error + expand_like(sigma_rate, eps) * (prediction.eps - eps)
    elif weighting == "edm":
        s = sigma / sde.alpha_sigma(t)[0]
        error = expand_like((s.square() + data_std**2).sqrt() / (s * data_std), x0) * (prediction.x0 - x0)
    elif weighting == "truncated_snr":
        alpha, _ = sde.alpha_sigma(t)
        error = expand_like((alpha / sigma).clamp_min(1), x0) * (prediction.x0 - x0)
    else:
        raise ValueError(choices_message("weighting", weighting, ["auto", *get_args(Weighting)]))
    return error.square().flatten(1).mean(1)


class Loss(ShowsOptions, ABC):
    """A loss: the error of a model at noisy data, weighted, and the times at which it is taken.

    Args:
        weighting: See ``weighted_error``; "likelihood" is for the loss "dsm".
        data_std: Standard deviation of the data, for the "edm" weighting.
        num_levels: Grey levels of the data, for the losses that are bounds on their likelihood.

    Raises:
        ValueError: If an option is unknown.

    Attributes:
        name: Its name in errors.
        own_weighting: The weighting that a loss has by what it is, whatever is asked for; None where it can be chosen.
        usual_weighting: The weighting where none is asked for; None for that of the model's parameterization.
        wants_more_noise: Whether it is called with ``more_noise``, a second draw like ``eps``: what it draws by itself
            would depend on how a batch is cut into micro-batches.
        of_distillation: Whether ``distillation.teacher`` may be set with it, and its options of the same names as keys
            of ``config.distillation`` are those; an option ``teacher`` is the frozen teacher, or None.
        own_steps: Steps of DDIM that the model learns to answer, and nothing else; None of most losses.
        trained_critic: The networks that the step trains in place of the model; None of most.
        rate: Factor of the learning rate, besides the schedule of ``config.optim``.
    """

    name = "a loss of your own"
    of_distillation = False
    own_weighting: Weighting | None = None
    usual_weighting: Weighting | None = None
    wants_more_noise = False
    own_steps: int | None = None
    trained_critic: Critic | None = None
    rate: float = 1.0

    def __init__(
        self,
        *,
        weighting: str = "eps",
        data_std: float = 0.5,
        num_levels: int | None = None,
    ) -> None:
        if weighting not in get_args(Weighting):
            raise ValueError(choices_message("weighting", weighting, ["auto", *get_args(Weighting)]))
        if not 0 < data_std < float("inf"):
            raise ValueError(f"data_std must be above 0, got {data_std}; pass the standard deviation of the data")
        self.weighting, self.data_std, self.num_levels = self.own_weighting or weighting, data_std, num_levels

    @property
    def levels(self) -> int:
        """The number of grey levels, of a loss that needs it.

        Raises:
            ValueError: If it was not given.
        """
        if self.num_levels is None:
            raise ValueError(f"loss {self.name!r} needs num_levels, got None; pass the data's")
        return self.num_levels

    @property
    def trains_variance(self) -> bool:
        """True if a learned reverse variance gets a gradient."""
        return False

    def check(self, sde: SDE) -> None:
        """Refuse an SDE or options that the loss cannot have.

        Raises:
            ValueError: In one line.
        """
        self.times(sde, torch.zeros(1))
        if self.weighting == "likelihood":
            raise ValueError("weighting 'likelihood' is one of continuous time; use loss 'dsm', or loss 'vlb'")

    @abstractmethod
    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """Training times from uniform draws.

        Args:
            sde: The SDE.
            u: Uniform draws in [0, 1), [B].

        Returns:
            Times, float64 [B].
        """

    def restarts(self, step: int) -> bool:
        """True if from a step on the average of the weights so far takes the place of model and teacher."""
        return False

    def take_teacher(self, model: ScoreModel) -> None:
        """Take a model's weights for the teacher's."""
        raise NotImplementedError

    def memory(self) -> dict[str, Tensor]:
        """Tensors, by name, that training changes in place beside the model; checkpoints hold them."""
        return {}

    def begin_step(self, step: int) -> None:
        """Take note of the number of steps done, before each, where the loss changes as training goes on."""
        return

    def time_sampler(self, sde: SDE, name: str = "uniform") -> TimeSampler:
        """The sampler of its training times.

        Args:
            sde: The SDE.
            name: "uniform"; "low_discrepancy", spread evenly over the batch; "importance", where the loss is large,
                weighted so that its mean stays the same; "logit_normal", in the middle, which is another loss.

        Raises:
            ValueError: If the name is unknown, or the loss has no such sampler.
        """
        check_step_sampling(name)
        if name == "importance":
            return self.important_times(sde)
        if name == "logit_normal":
            if self.own_weighting is not None or self.weighting == "likelihood":
                what = f"loss {self.name!r} with weighting {self.weighting!r}"
                raise ValueError(
                    f"step sampling 'logit_normal' weights times, which {what} does not allow; use 'low_discrepancy', "
                    "or loss 'ddpm' or 'dsm'"
                )
            return MiddleTimes(partial(self.times, sde))
        return UniformTimes(partial(self.times, sde), low_discrepancy=name == "low_discrepancy")

    def important_times(self, sde: SDE) -> TimeSampler:
        """A sampler of the times at which the loss is large; most losses have none.

        Raises:
            ValueError: If it has none.
        """
        raise ValueError(
            "step sampling 'importance' needs a loss with a table, or weighting 'likelihood'; use 'low_discrepancy'"
        )

    def __call__(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Cond | None = None) -> Tensor:
        """The loss of each sample, [B].

        Args:
            model: The model to train.
            x0: Data, [B, ...].
            t: Times from the time sampler, [B].
            eps: Standard normal noise, [B, ...].
            cond: Condition, or None.
        """
        alpha, sigma = model.sde.alpha_sigma(t)
        x_t = expand_like(alpha, x0) * x0 + expand_like(sigma, x0) * eps
        prediction = model(x_t, t, cond=cond)
        return weighted_error(self.weighting, prediction, x0, eps, sde=model.sde, t=t, data_std=self.data_std)


LOSSES: Registry[Loss] = Registry("loss")
register_loss = LOSSES.register


def make_loss(name: str, *, sde: SDE, parameterization: str | None, **kwargs: Any) -> Loss:
    """Build a loss by name.

    Args:
        name: "ddpm", "dsm", "hybrid", "vlb", "vlb_continuous", "dequantized", "cross_entropy", a registered name, or
            "auto": "cross_entropy" for a classifier, "ddpm" where the SDE has a table, else "dsm".
        sde: The SDE, for "auto".
        parameterization: The model's, for the "auto" weighting: "edm" for "edm", "velocity" for
            "velocity", else "eps". None of a classifier.
        **kwargs: Options of the loss: ``weighting``, ``data_std``, ``num_levels``.

    Raises:
        ValueError: If a name is unknown or does not fit the SDE.
    """
    if name == "auto":
        name = "cross_entropy" if parameterization is None else "dsm" if sde.table_size is None else "ddpm"
    asked = kwargs.get("weighting", "auto")
    if asked == "auto" and "weighting" in kwargs:
        usual: str | None = getattr(LOSSES.get(name), "usual_weighting", None)
        kwargs["weighting"] = usual or (parameterization if parameterization in ("edm", "velocity") else "eps")
    loss = LOSSES.make(name, **kwargs)
    if loss.own_weighting is not None and asked not in ("auto", loss.own_weighting):
        raise ValueError(f"loss {name!r} has its own weighting, got {asked!r}; leave it at 'auto'")
    loss.check(sde)
    return loss
