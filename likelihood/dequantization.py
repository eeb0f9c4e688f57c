"""From data to where a flow begins, with noise left: uniform noise, or the diffusion's own noise and a decoder."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, Dequantizer, Prediction, ScoreModel, place_on_bin
from runtime.registry import choices_message
from sde_lib import NoiseStreams, Point

from .decoder import discretized_gaussian_log_prob

Dequantization = Literal["decoder", "uniform", "variational", "none"]


def check_dequantization(kind: str, num_levels: int | None) -> None:
    """Refuse an unknown kind, and uniform noise for data without levels.

    Raises:
        ValueError: In one line.
    """
    if kind not in get_args(Dequantization):
        raise ValueError(choices_message("dequantization", kind, sorted(get_args(Dequantization))))
    if kind in ("uniform", "variational") and num_levels is None:
        raise ValueError(f"dequantization {kind!r} needs num_levels, got None; pass the data's, or choose 'decoder'")
    if kind == "none" and num_levels is not None:
        raise ValueError(
            f"dequantization 'none' measures a density, got {num_levels} levels; pass num_levels=None, or 'decoder'"
        )


def dequantize(
    kind: Dequantization,
    model: ScoreModel,
    x0: Float[Tensor, "batch *shape"],
    start: Point,
    *,
    num_levels: int | None,
    cond: Cond | None,
    noise: NoiseStreams,
) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, " batch"]]:
    """y where the flow begins, and what to add to log p(y) for a bound on log p(x0):

    - "none": y = x0, and nothing;
    - "uniform": y = x0 + u with u uniform on the bin, and D log(width of a bin) (Theis et al. 2016, Section 3.1; Uria
      et al. 2013);
    - "variational": see ``place_variational``;
    - "decoder": y = x0 + r z, and log p(x0 | y) - log q(y | x0), where -log q is |z|^2 / 2 + D log(r sqrt(2 pi)).

    Args:
        kind: One that ``check_dequantization`` lets pass.
        model: The model, asked once by "decoder".
        x0: Data, [B, ...].
        start: Where the flow begins; r is its ``noise_ratio``.
        num_levels: Number of grey levels, or None for a density.
        cond: Condition, handed to the model.
        noise: One random stream a sample.

    Returns:
        y and the addition, [B], both float64.
    """
    if kind == "none":
        return x0.double(), torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    if kind == "decoder":
        r, z = start.noise_ratio, noise.normal_like(x0).double()
        y = x0.double() + r * z
        constant = math.log(r) + 0.5 * math.log(2 * math.pi)
        minus_log_q = 0.5 * z.square().flatten(1).sum(1) + x0[0].numel() * constant
        prediction = model((start.alpha * y).to(x0.dtype), start.times_for(x0), cond=cond)
        return y, minus_log_q + decoder_log_prob(x0, prediction, r, num_levels)
    assert num_levels is not None
    if kind == "variational":
        return place_variational(x0, model, num_levels, noise)
    y, log_width = place_on_bin(x0, noise.uniform(x0.shape[1:]).to(x0.device), num_levels)
    return y, torch.full((len(x0),), log_width, dtype=torch.float64, device=x0.device)


def place_variational(
    x0: Float[Tensor, "batch *shape"], model: ScoreModel, num_levels: int, noise: NoiseStreams
) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, " batch"]]:
    """y = x0 + u with u on the bin by the model's own q(u | x0): log P(x0) >= E[log p(y) - log q(u | x0)].

    (Ho et al. 2019, Section 3.1.)

    Args:
        x0: Data on the lattice, [B, ...].
        model: A model that has a ``dequantizer``.
        num_levels: Number of grey levels.
        noise: One random stream a sample.

    Returns:
        y in float64, and -log q, [B].

    Raises:
        ValueError: If the model has none, or one for data of another kind.
    """
    dequantizer = getattr(model, "dequantizer", None)
    if not isinstance(dequantizer, Dequantizer):
        raise ValueError(
            "dequantization 'variational' needs a model that learned a dequantizer, got one without; "
            "choose 'uniform' or 'decoder', or train with model.dequantizer"
        )
    if x0.ndim != 4 or x0.shape[1] != dequantizer.num_channels:
        raise ValueError(
            f"the dequantizer takes x0 of shape [B, {dequantizer.num_channels}, H, W], got {list(x0.shape)}; "
            "choose 'uniform' or 'decoder'"
        )
    u, log_q = dequantizer(x0, noise.normal_like(x0))
    y, log_width = place_on_bin(x0, u, num_levels)
    return y, log_width - log_q


def decoder_log_prob(
    x0: Float[Tensor, "batch *shape"], prediction: Prediction, noise_ratio: float, num_levels: int | None
) -> Float[Tensor, " batch"]:
    """log p(x0 | y) of a Gaussian of standard deviation r around the predicted x0; of its mass on x0's bin if there
    are levels.

    For r small beside the data's own scale this is the posterior that the ODE's y has, so that
    log p(x0) >= E[log p(y) + log p(x0 | y) - log q(y | x0)] is tight to order r^4.

    Args:
        x0: Data, [B, ...].
        prediction: The model's answer at y.
        noise_ratio: r.
        num_levels: Number of grey levels, or None for a density.

    Returns:
        In nats, float64 [B].
    """
    if num_levels is not None:
        log_std = torch.tensor(math.log(noise_ratio), dtype=torch.float64, device=x0.device)
        return discretized_gaussian_log_prob(x0, prediction.x0, log_std, num_levels=num_levels).flatten(1).sum(1)
    z = (x0.double() - prediction.x0.double()) / noise_ratio
    constant = math.log(noise_ratio) + 0.5 * math.log(2 * math.pi)
    return -0.5 * z.square().flatten(1).sum(1) - x0[0].numel() * constant
