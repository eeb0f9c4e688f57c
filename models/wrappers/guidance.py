"""Guidance by the difference of two answers: classifier-free guidance, autoguidance, and weights over noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from sde_lib import SDE, check_grid, check_per_sample, expand_like

from ..condition import Cond, Condition, null_of
from ..prediction import Prediction
from ..score_model import NetworkScoreModel, ScoreModel

# float64 [B] of an SDE and times [B]
Weight = Callable[[SDE, Tensor], Tensor]
# (lo, hi) of sigma / alpha
Interval = tuple[float, float]
EVERYWHERE: Interval = (0.0, math.inf)


class GuidedScoreModel(ScoreModel):
    """Classifier-free guidance, and autoguidance: a model's answer, moved away from that of a reference.

        guided = reference + w (model - reference),

    of x0 and of eps alike; w = 1 is no guidance and w = 0 the reference, both to the bit. Without a ``reference`` it is
    the model itself under its null condition (Ho & Salimans 2022, Eq. 6, whose w is ours minus 1); a smaller or less
    trained model makes it autoguidance (Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself").
    Where w is 1 for a whole batch, as outside the interval, the reference is not called: NFE counts two calls of a step
    with guidance, and one of a step without.

    What is sampled is not the law whose density is p(x) p(c | x)^w: see docs/guidance.md.

    Args:
        model: The model; its answer's ``variance_fraction`` is kept.
        weight: w, a number, or a function of the SDE and t, [B] to [B], such as ``CFGPlusPlusWeight``.
        reference: Another model of the same SDE; it is told the same condition, or none if it is a network without
            classes. None is the model without its condition.
        interval: (lo, hi): w where lo < sigma / alpha <= hi, and 1 elsewhere (Kynkaanniemi et al. 2024).
        negative: What to move away from in place of the null condition, such as a text that tells what is not wanted: a
            condition of one sample, whose fields take the place of those that the model is told. All else that it is
            told, such as the small image of a cascade, it is told too where it is moved away from.
        keeps_image: Tell the condition's image where it is moved away from too, as a ControlNet's hint; None: beside
            ``negative`` alone.
        rescale: phi in [0, 1]: the guided x0 times phi std(model's x0) / std(guided x0) + 1 - phi, over all
            dimensions of a sample, and eps agreeing with it (Lin et al. 2024, Section 3.4, who do so to the network's
            output). 0 is off.

    Raises:
        ValueError: If an option is out of range, the reference is of another SDE, or there is neither a reference nor
            a network that is trained without its condition now and then.

    Example:
        >>> guided = GuidedScoreModel(model, weight=3.0, interval=(0.2, 2.0))
        >>> x0 = sampler.sample(guided, x_T, cond=labels).x0
    """

    def __init__(
        self,
        model: ScoreModel,
        *,
        weight: float | Weight = 1.0,
        reference: ScoreModel | None = None,
        interval: Interval = EVERYWHERE,
        negative: Condition | None = None,
        keeps_image: bool | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(model.sde)
        if not callable(weight) and not math.isfinite(weight):
            raise ValueError(f"weight must be finite, got {weight}; 1 is no guidance")
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must lie in [0, 1], got {rescale}; 0 is off")
        check_interval(interval)
        if negative is not None and (reference is not None or len(negative) != 1):
            got = f"a condition of {len(negative)}" if reference is None else "a reference too"
            raise ValueError(f"negative must be a condition of one sample, and no reference beside it, got {got}")
        if reference is not None:
            check_same_sde("reference", reference.sde, model.sde)
        elif negative is None and weight != 1 and lacks_null_condition(model):
            raise ValueError(
                "guidance needs a network that is trained without its condition now and then, got one that never was; "
                "train one, or pass a reference"
            )
        self.model, self.reference, self.negative = model, reference, negative
        self.weight, self.interval, self.rescale = weight, interval, rescale
        self.keeps_image = negative is not None if keeps_image is None else keeps_image

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        """Ask the model, and the reference where some sample's weight is not 1; combine x0 and eps."""
        check_per_sample("t", t, x_t.shape[0])
        answer = self.model(x_t, t, cond=cond)
        weight = self.weights(t)
        if bool((weight == 1).all()):
            return answer
        other = self._reference_answer(x_t, t, cond)
        # of both, since either alone loses its digits at one end of time; lerp is exact at weights 0 and 1
        share = expand_like(weight, x_t, name="weight")
        x0, eps = torch.lerp(other.x0, answer.x0, share), torch.lerp(other.eps, answer.eps, share)
        if self.rescale > 0:
            change = self.rescale * (_std(answer.x0, x0) - 1)
            # alpha x0 + sigma eps stays x_t; no change is none to the bit
            eps = eps - expand_like(self.sde.alpha(t) / answer.sigma * change, x0) * x0
            x0 = expand_like(1 + change, x0) * x0
        fraction = answer.variance_fraction
        if fraction is not None and other.variance_fraction is not None:
            fraction = torch.where(share == 0, other.variance_fraction, fraction)
        return replace(answer, x0=x0, eps=eps, variance_fraction=fraction)

    def weights(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """w at times t, 1 outside the interval, float64 [B]."""
        weight = self.weight(self.sde, t) if callable(self.weight) else torch.full_like(t, self.weight).double()
        if weight.shape != t.shape:
            raise ValueError(f"weight(sde, t) must give [{len(t)}], one a sample, got {list(weight.shape)}; reshape it")
        return torch.where(is_inside(self.interval, self.sde, t), weight, 1.0)

    def _reference_answer(self, x_t: Tensor, t: Tensor, cond: Cond | None) -> Prediction:
        if self.reference is not None:
            return self.reference(x_t, t, cond=cond if takes_labels(self.reference) else without_label(cond))
        if cond is None:
            raise ValueError("guidance needs a condition to leave out, got none; pass cond=..., or a reference")
        if self.negative is None:
            null = null_of(cond)
            if self.keeps_image and isinstance(cond, Condition) and isinstance(null, Condition):
                null = replace(null, image=cond.image)
            return self.model(x_t, t, cond=null)
        if isinstance(cond, Condition) and not self.keeps_image:
            cond = cond.without(part="image")
        given = cond.given if isinstance(cond, Condition) else {"label": cond}
        instead = {
            name: value.to(x_t.device).expand(len(x_t), *value.shape[1:]) for name, value in self.negative.given.items()
        }
        return self.model(x_t, t, cond=Condition(**given | instead))


class CFGPlusPlusWeight:
    """The weights under which a DDIM step of classifier-free guidance is one of CFG++ (Chung et al. 2024, Alg. 2).

    CFG++ goes from t to s by x_s = alpha_s x0_lambda + sigma_s eps_null, where x0_lambda is guided with weight lambda
    and eps_null is the answer without the condition. With r = sigma / alpha that is DDIM's step with the weight

        w(t) = lambda r_t / (r_t - r_s)

    for x0 and eps. It holds for ``ddim`` with eta = 0, and what equals it; in other samplers these are weights as any
    others. They grow as steps get shorter, so that CFG++ has no limit of many steps.

    Args:
        scale: lambda, at least 0; they take it from [0, 1].
        times: The sampler's grid, ``sampler.times(model.sde)``, falling, [num_steps + 1]. A time between two of them
            belongs to the step that crosses it. From the last one a step leads to x0, by w = lambda.

    Raises:
        ValueError: If lambda is negative or not finite, or the times are no grid.

    Example:
        >>> GuidedScoreModel(model, weight=CFGPlusPlusWeight(0.6, sampler.times(model.sde)))
    """

    def __init__(self, scale: float, times: Float[Tensor, " points"]) -> None:
        if not 0 <= scale < math.inf:
            raise ValueError(f"lambda of CFG++ must be at least 0 and finite, got {scale}; 0.6 is usual")
        self.scale, self.times = scale, check_grid(times)

    def __call__(self, sde: SDE, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """w(t), float64 [B]."""
        start = step_of(self.times, t)
        log_snr = torch.cat([sde.log_snr(self.times), self.times.new_full((1,), torch.inf)]).to(t.device)
        return -self.scale / torch.expm1(0.5 * (log_snr[start] - log_snr[start + 1]))


def step_of(times: Float[Tensor, " points"], t: Float[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
    """Number of the step of a falling grid in which t is: that from the last time which is not below it."""
    rising = times.to(t.device).flip(0)
    return (len(times) - torch.searchsorted(rising, t.double())).sub(1).clamp(min=0)


def check_interval(interval: Interval) -> None:
    """Refuse what is no interval of sigma / alpha.

    Raises:
        ValueError: In one line.
    """
    if not (len(interval) == 2 and 0 <= interval[0] < interval[1]):
        raise ValueError(f"a guidance interval must be (lo, hi) with 0 <= lo < hi, got {interval}; such as (0.2, 2)")


def is_inside(interval: Interval, sde: SDE, t: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """True where lo < sigma / alpha <= hi."""
    noise_ratio = (-0.5 * sde.log_snr(t)).exp()
    return (noise_ratio > interval[0]) & (noise_ratio <= interval[1])


@torch.no_grad()
def check_same_sde(name: str, theirs: SDE, ours: SDE) -> None:
    """Refuse a model that t tells of other noise.

    Raises:
        ValueError: In one line.
    """
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    found, wanted = (torch.stack(sde.alpha_sigma(t)) for sde in (theirs, ours))
    if not torch.allclose(found, wanted):
        k = int((found - wanted).abs().amax(0).argmax())
        a, b = (", ".join(f"{one:.4g}" for one in each[:, k].tolist()) for each in (wanted, found))
        raise ValueError(
            f"the {name} must be of the model's SDE, {ours} with alpha, sigma = {a} at t = {float(t[k]):g}, got "
            f"{theirs} with {b}; take one that was trained on it"
        )


def takes_labels(model: ScoreModel) -> bool:
    """False of networks without classes; oracles take a label or leave it."""
    networks = [part.backbone for part in model.modules() if isinstance(part, NetworkScoreModel)]
    return not networks or any(getattr(part, "num_classes", None) for one in networks for part in one.modules())


def without_label(cond: Cond | None) -> Condition | None:
    """All else that a condition says."""
    given = cond.given if isinstance(cond, Condition) else {}
    others = {name: value for name, value in given.items() if name != "label"}
    return Condition(**others) if others else None


def lacks_null_condition(model: ScoreModel) -> bool:
    """True if a network inside says that it was never trained without its condition."""
    networks = [part.backbone for part in model.modules() if isinstance(part, NetworkScoreModel)]
    return any(next(_said_of_null(one), True) is False for one in networks)


def _said_of_null(network: nn.Module) -> Iterator[bool]:
    # the outermost module that says it is the network, inside whatever is around it
    for part in network.modules():
        said = getattr(part, "null_condition", None)
        if said is not None:
            yield said


def _std(x0: Tensor, guided: Tensor) -> Float[Tensor, " batch"]:
    """std(x0) / std(guided) of each sample, float64; 1 where there is nothing to scale."""
    over, under = (one.double().unsqueeze(1).flatten(1).std(1, correction=0) for one in (x0, guided))
    return torch.where(under > 0, over / under, 1.0)
