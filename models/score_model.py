"""ScoreModel: the one interface that samplers and likelihoods see."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sde_lib import SDE, check_per_sample, expand_like

from .condition import Cond, told_fields
from .dequantizer import Dequantizer
from .first_stage import FirstStage
from .parameterization import Parameterization
from .prediction import Prediction

Answer = Literal["posterior_mean", "flow", "steps"]


class ScoreModel(nn.Module, ABC):
    """Answers, for noisy data x_t at time t of an SDE: what are x0 and eps?

    Networks (``NetworkScoreModel``), exact oracles and wrappers of models are all ScoreModels; samplers and likelihoods
    call them and nothing else.

    Attributes:
        sde: The SDE whose t the model is called with.
        answers: "posterior_mean": its x0 and eps are E[x0 | x_t] and E[eps | x_t], or stand for them. "flow": they
            belong to the velocity of an ODE, alpha' x0 + sigma' eps, and to nothing else, as of a reflow (Liu et al.
            2023): samplers that follow the ODE and its likelihood take it, all others refuse it. "steps": x0 is where
            a step of DDIM leads that stands for many, at the times of a grid alone, as of progressive distillation:
            DDIM with that grid takes it, all else refuses it.
        own_steps: Of a model that answers "steps" the number of them, equal steps in t from ``sde.t_max`` to 0.
    """

    sde: SDE
    answers: Answer = "posterior_mean"
    own_steps: int | None = None

    def __init__(self, sde: SDE) -> None:
        super().__init__()
        self.sde = sde

    @abstractmethod
    def forward(
        self,
        x_t: Float[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        *,
        cond: Cond | None = None,
    ) -> Prediction:
        """Predict x0 and eps.

        Args:
            x_t: Noisy data, [B, ...].
            t: Times in [0, 1], [B]; float64 keeps the digits near 0 and 1.
            cond: Labels, int64 [B], or a ``Condition``; None for none.
        """

    def __call__(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        """``forward``, with hooks."""
        return super().__call__(x_t, t, cond=cond)

    def score(
        self,
        x: Float[Tensor, "batch *shape"],
        sigma: Float[Tensor, " batch"],
        *,
        cond: Cond | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """s(x, sigma) = -eps / sigma = grad log p(x) at the time whose noise is ``sigma``.

        Args:
            x: Noisy data, [B, ...].
            sigma: Noise standard deviations within the SDE's range, [B]; near t = 1 VP's sigma saturates, so that code
                which has t calls the model with t instead.
            cond: Condition, or None.

        Raises:
            ValueError: If sigma is not of shape [B], or lies outside the SDE's range, or the model answers a flow.
        """
        require_posterior_mean(self, "a score")
        check_per_sample("sigma", sigma, x.shape[0])
        low, high = self.sde.sigma(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
        inside = (sigma >= low * (1 - 1e-6)) & (sigma <= high * (1 + 1e-6)) & (sigma > 0)
        if not bool(inside.all()):
            raise ValueError(
                f"sigma must lie in the SDE's range, above 0 and within [{low:.6g}, {high:.6g}], "
                f"got {float(sigma.min()):.6g} to {float(sigma.max()):.6g}; choose another SDE or rescale x"
            )
        return self(x, self.sde.time_from_sigma(sigma), cond=cond).score


class NetworkScoreModel(ScoreModel):
    """A backbone, an SDE and a parameterization.

    The backbone is called as ``backbone(c_in x_t, c_noise, cond=label, image=..., values=...)``, with those fields of a
    ``Condition`` that are given: an image that is a condition is not scaled by c_in.

    Args:
        backbone: Network from ([B, ...], [B]) to [B, ...], or to twice the channels if it learns its variance. It must
            return a new tensor each time: samplers keep earlier answers.
        sde: The SDE it is trained on.
        parameterization: What its output means.
        learned_variance: The last of the output's channels, as many as the data has, are the variance fraction in
            [-1, 1] (Nichol & Dhariwal 2021, Section 3.1).
        dequantizer: How discrete data are lifted onto their bins where a density is asked for; None is uniformly.
        first_stage: The autoencoder whose latents it is of, where both are trained together.
        answers: See ``ScoreModel``.
        own_steps: See ``ScoreModel``.

    Example:
        >>> model = NetworkScoreModel(UNet(image_size=32), Tabulated.ddpm(), EpsParameterization())
        >>> prediction = model(x_t, t)
    """

    def __init__(
        self,
        backbone: nn.Module,
        sde: SDE,
        parameterization: Parameterization,
        *,
        learned_variance: bool = False,
        dequantizer: Dequantizer | None = None,
        first_stage: FirstStage | None = None,
        answers: Answer = "posterior_mean",
        own_steps: int | None = None,
    ) -> None:
        super().__init__(sde)
        self.answers, self.own_steps = answers, own_steps
        self.backbone = backbone
        self.parameterization = parameterization
        self.learned_variance = learned_variance
        self.dequantizer, self.first_stage = dequantizer, first_stage
        arguments = inspect.signature(backbone.forward).parameters
        takes_all = any(argument.kind is argument.VAR_KEYWORD for argument in arguments.values())
        self._told = None if takes_all else set(arguments)

    def with_backbone(self, backbone: nn.Module) -> NetworkScoreModel:
        """The same model around another backbone; all else is shared."""
        return NetworkScoreModel(
            backbone,
            self.sde,
            self.parameterization,
            learned_variance=self.learned_variance,
            dequantizer=self.dequantizer,
            first_stage=self.first_stage,
            answers=self.answers,
            own_steps=self.own_steps,
        )

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        """Scale the input, call the backbone and read its output."""
        check_per_sample("t", t, x_t.shape[0])
        told, scaled = told_fields(cond), x_t
        unknown = [] if self._told is None else sorted(told.keys() - self._told)
        if unknown:
            raise ValueError(f"this network is not told {', '.join(unknown)}; leave these out of the condition")
        if "image" in told and "image_log_snr" not in told and (self._told is None or "image_log_snr" in self._told):
            # the least noise that training may add to it
            told["image_log_snr"] = self.sde.log_snr(torch.zeros_like(t)).to(told["image"].dtype)
        if self.parameterization.scales_input:
            scaled = expand_like(self.parameterization.c_in(self.sde, t), x_t) * x_t
        raw = self.backbone(scaled, self.parameterization.c_noise(self.sde, t), **told).to(x_t.dtype)
        expected = list(x_t.shape)
        expected[1] *= self.parameterization.outputs_per_channel + self.learned_variance
        if list(raw.shape) != expected:
            raise ValueError(
                f"the backbone must return shape {expected}, got {list(raw.shape)}; "
                "set learned_variance if and only if the network has twice the channels"
            )
        fraction = None
        if self.learned_variance:
            raw, v = raw.split([expected[1] - x_t.shape[1], x_t.shape[1]], dim=1)
            fraction = 0.5 * (v + 1)
        kind, value = self.parameterization.read(raw, x_t, self.sde, t)
        make = {"eps": Prediction.from_eps, "x0": Prediction.from_x0, "v": Prediction.from_v}[kind]
        alpha, sigma = self.sde.alpha_sigma(t)
        return make(x_t, value, alpha=alpha, sigma=sigma, variance_fraction=fraction)


def _innermost(model: ScoreModel) -> list[ScoreModel]:
    """The ScoreModels inside any wrapper."""
    models = [module for module in model.modules() if isinstance(module, ScoreModel)]
    return [m for m in models if not any(isinstance(c, ScoreModel) for c in m.modules() if c is not m)]


def require_flow(model: ScoreModel, who: str, *, ddim_steps: int | None = None) -> None:
    """Refuse a model that answers steps of DDIM, unless they are these, also inside a wrapper.

    Args:
        model: The model.
        who: What needs its velocity, as the message names it.
        ddim_steps: The number of equal steps in t of a sampler that is DDIM without noise; None of all else.

    Raises:
        ValueError: If it answers others.
    """
    for inner in _innermost(model):
        if inner.answers == "steps" and inner.own_steps != ddim_steps:
            raise ValueError(
                f"{who} cannot take a student of progressive distillation, which answers {inner.own_steps} steps of "
                f"DDIM and nothing else, no likelihood either; set sampling.sampler=ddim, sampling.num_steps="
                f"{inner.own_steps} and sampling.grid=uniform"
            )


def require_posterior_mean(model: ScoreModel, who: str) -> None:
    """Refuse a model that answers a flow or steps of DDIM, also inside a wrapper.

    Args:
        model: The model.
        who: What needs E[x0 | x_t], as the message names it.

    Raises:
        ValueError: If it does.
    """
    require_flow(model, who)
    if any(inner.answers == "flow" for inner in _innermost(model)):
        raise ValueError(
            f"{who} needs a model that predicts posterior means, got one whose answer is a flow, as of a reflow; "
            "sample it with ddim, heun, dpm_solver_pp, unipc or probability_flow, measure it with likelihood ode"
        )


def check_score_model(model: object) -> None:
    """Refuse a model that answers no score.

    Raises:
        ValueError: In one line.
    """
    if not isinstance(model, ScoreModel):
        raise ValueError(
            f"a score model is needed, got a {type(model).__name__}, which is not a density: it has no score and no "
            "likelihood; sample a consistency model by sampler 'consistency'"
        )


class CallCounter:
    """A count of network calls."""

    def __init__(self) -> None:
        self.calls = 0


@contextmanager
def count_network_calls(model: ScoreModel) -> Iterator[CallCounter]:
    """Count calls where the network is called: at the innermost ScoreModels, inside any wrapper.

    Args:
        model: A model or a wrapper around models.

    Yields:
        A counter whose ``calls`` is the number of function evaluations (NFE) so far; a batch is one call.

    Raises:
        ValueError: If it is no ScoreModel: every sampler and likelihood comes by here.
    """
    check_score_model(model)
    counter = CallCounter()

    def count(*_: Any) -> None:
        counter.calls += 1

    handles = [m.register_forward_hook(count) for m in _innermost(model)]
    try:
        yield counter
    finally:
        for handle in handles:
            handle.remove()
