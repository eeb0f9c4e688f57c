"""Names and layouts of our tensors in other projects' checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...backbones import (
    AttentionBlock,
    Downsample,
    ResBlock,
    Upsample,
)
from .tensors import list_problems, load_strictly

Leaves = Mapping[type[nn.Module], Mapping[str, str]]


class Layout(NamedTuple):
    """The layout of one of our tensors in another project's file: split into theirs, and made of them again."""

    to_theirs: Callable[[Tensor], list[Tensor]]
    to_ours: Callable[[list[Tensor]], Tensor]


class Source(NamedTuple):
    """The place of one of our tensors: its names and its layout."""

    names: tuple[str, ...]
    layout: Layout


SAME = Layout(lambda ours: [ours], lambda theirs: theirs[0])
TRANSPOSED = Layout(lambda ours: [ours.t()], lambda theirs: theirs[0].t())
THIRDS = Layout(lambda ours: list(ours.chunk(3)), torch.cat)


def pointwise(num_dims: int) -> Layout:
    """A linear layer's weight [O, I] as that of a convolution of kernel 1 in ``num_dims`` dimensions."""
    return Layout(lambda ours: [ours[(..., *[None] * num_dims)]], lambda theirs: theirs[0].flatten(1))


def thirds_of(layout: Layout) -> Layout:
    """Queries, keys and values in three tensors, each in a layout of one tensor."""
    return Layout(
        lambda ours: [layout.to_theirs(third)[0] for third in ours.chunk(3)],
        lambda theirs: torch.cat([layout.to_ours([third]) for third in theirs]),
    )


def rows_by_head(num_heads: int, order: Sequence[int], layout: Layout = SAME) -> Layout:
    """Rows of queries, keys and values in another order than our [(q, k, v), head, channel].

    Args:
        num_heads: Number of heads, ``H``.
        order: Their order, as axes of ours: (1, 0, 2) is [head, (q, k, v), channel].
        layout: What is done besides, to a tensor with rows in their order.
    """
    inverse = sorted(range(3), key=lambda axis: order[axis])

    def to_theirs(ours: Tensor) -> list[Tensor]:
        split = ours.unflatten(0, (3, num_heads, -1))
        return layout.to_theirs(split.permute(*order, *range(3, split.ndim)).flatten(0, 2))

    def to_ours(theirs: list[Tensor]) -> Tensor:
        rows = layout.to_ours(theirs)
        sizes = 3, num_heads, len(rows) // (3 * num_heads)
        split = rows.unflatten(0, [sizes[axis] for axis in order])
        return split.permute(*inverse, *range(3, split.ndim)).flatten(0, 2)

    return Layout(to_theirs, to_ours)


def blocks_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Residual, attention and resampling blocks of a U-Net, with our names."""
    for name, block in module.named_modules():
        if isinstance(block, ResBlock | AttentionBlock | Downsample | Upsample):
            yield name, block


def rename_blocks(module: nn.Module, places: Mapping[str, str], leaves: Leaves) -> dict[str, str]:
    """Their name for each parameter of the blocks of a U-Net.

    Args:
        module: The network.
        places: Their name of each block, by ours.
        leaves: Their names of what is in a block, by the kind of block and our name; left out, the names are alike.
    """
    names = {}
    for ours, block in blocks_of(module):
        table = leaves.get(type(block), {})
        for parameter in block.state_dict():
            leaf, _, rest = parameter.partition(".")
            names[f"{ours}.{parameter}"] = f"{places[ours]}.{table.get(leaf, leaf)}.{rest}"
    return names


def sources_of(module: nn.Module, names: Mapping[str, str], layouts: Mapping[str, Layout]) -> dict[str, Source]:
    """Put names and layouts together.

    Args:
        module: The network.
        names: Their name of each of our tensors, several separated by commas.
        layouts: The layouts of those that lie otherwise.
    """
    return {ours: Source(tuple(names[ours].split(",")), layouts.get(ours, SAME)) for ours in module.state_dict()}


def load_renamed(
    module: nn.Module, tensors: Mapping[str, Tensor], sources: Mapping[str, Source], *, path: Path
) -> None:
    """Load another project's tensors into a network of ours, with none missing and none left over.

    Args:
        module: The network, changed in place; unchanged where this raises.
        tensors: Under their names.
        sources: Where each of our tensors is among them.
        path: The file they are from, for the message.

    Raises:
        ValueError: In one line that lists tensors, by their names, that are missing, unexpected, or of another shape
            or kind than the network's.
    """
    expected: dict[str, Tensor] = {}
    for ours, tensor in module.state_dict().items():
        source = sources[ours]
        like = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        expected.update(zip(source.names, source.layout.to_theirs(like), strict=True))
    problems = list_problems(expected, tensors)
    if problems:
        raise ValueError(f"checkpoint {path} does not fit the network: {problems}; check the source and the settings")
    ours = {name: source.layout.to_ours([tensors[n] for n in source.names]) for name, source in sources.items()}
    load_strictly(module, ours, path=path)


def renamed(module: nn.Module, sources: Mapping[str, Source]) -> dict[str, Tensor]:
    """The tensors of a network of ours, under their names and in their layout: the way back of ``load_renamed``."""
    theirs: dict[str, Tensor] = {}
    for ours, tensor in module.state_dict().items():
        source = sources[ours]
        parts = [part.detach().contiguous().clone() for part in source.layout.to_theirs(tensor)]
        theirs.update(zip(source.names, parts, strict=True))
    return theirs
