"""The one place that broadcasts a value per sample, [B], against a batch, [B, ...]."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def check_per_sample(name: str, value: Tensor, batch_size: int) -> None:
    """Refuse a per-sample value that is not a vector of length ``batch_size``.

    Args:
        name: What the message calls the value.
        value: The tensor to look at.
        batch_size: The length it must have.

    Raises:
        ValueError: If the shape is not [batch_size]; the message says what to pass instead.
    """
    if tuple(value.shape) == (batch_size,):
        return
    if value.numel() == batch_size:
        fix = f"pass {name}.flatten()"
    elif value.numel() == 1:
        fix = f"pass {name}.flatten().expand({batch_size})"
    else:
        fix = "pass one value per sample"
    raise ValueError(f"{name} must have shape [{batch_size}], got {list(value.shape)}; {fix}")


def expand_like(
    value: Float[Tensor, " batch"], x: Shaped[Tensor, "batch *shape"], *, name: str = "t"
) -> Float[Tensor, "batch *_"]:
    """View a per-sample value as [B, 1, ..., 1] in the dtype and on the device of ``x``.

    Coefficients are computed in float64 and cast here, at the multiply.

    Args:
        value: One number per sample, shape [B].
        x: The batch to multiply, shape [B, ...].
        name: What the error message calls ``value``.

    Returns:
        ``value`` with as many dimensions as ``x``.

    Raises:
        ValueError: If ``value`` does not have shape [B].
    """
    check_per_sample(name, value, x.shape[0])
    dtype = x.dtype if x.dtype.is_floating_point else torch.get_default_dtype()
    return value.to(device=x.device, dtype=dtype).reshape(x.shape[0], *([1] * (x.ndim - 1)))


def combine(*terms: tuple[float, Tensor]) -> Tensor:
    """sum_i coefficient_i tensor_i, a new tensor, in one pass a term.

    Terms whose coefficient is 0 are left out, so that an infinity there does no harm; one term must be left.
    """
    terms = tuple(term for term in terms if term[0] != 0) or terms[:1]
    (first, tensor), *rest = terms
    if first == 1 and rest:
        (second, other), *rest = rest
        out = torch.add(tensor, other, alpha=second)
    else:
        out = tensor * first
    for coefficient, tensor in rest:
        out.add_(tensor, alpha=coefficient)
    return out
