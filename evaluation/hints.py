"""Agreement of samples with the edges that they were to have."""

from __future__ import annotations

from jaxtyping import Float, Integer
from torch import Tensor


def edge_f1(found: Integer[Tensor, "batch c h w"], asked: Integer[Tensor, "batch c h w"]) -> Float[Tensor, " batch"]:
    """The F1 score of edges, 2 |found and asked| / (|found| + |asked|), of each image; 1 where neither has any.

    Args:
        found: Edges of samples, 0 or 1, [N, 1, H, W].
        asked: Those of their hints, of the same shape.

    Returns:
        Float64 [N].
    """
    if found.shape != asked.shape:
        raise ValueError(f"edges must be of one shape, got {list(found.shape)} and {list(asked.shape)}; pair them")
    both, all_of_both = (
        (one.flatten(1).sum(1)).double() for one in (found.long() * asked.long(), found.long() + asked)
    )
    return (2 * both / all_of_both.clamp_min(1)).where(all_of_both > 0, 1.0)
