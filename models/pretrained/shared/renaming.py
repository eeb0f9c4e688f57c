"""Names and layouts of our tensors in other projects' checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .tensors import check_tensors

Layout = Callable[[Tensor], Sequence[Tensor]]
"""Another project's tensors made of one of ours, by moving its numbers about and in no other way."""

# names within a layer of latent diffusion's transformers, which diffusers has kept
_TRANSFORMER_LAYER = {
    **{f"norm{i}": f"norm{i}" for i in (1, 2, 3)},
    "self_attention.q": "attn1.to_q",
    "self_attention.kv": "attn1.to_k,attn1.to_v",
    "self_attention.proj": "attn1.to_out.0",
    "cross_attention.q": "attn2.to_q",
    "cross_attention.kv": "attn2.to_k,attn2.to_v",
    "cross_attention.proj": "attn2.to_out.0",
    "expand": "ff.net.0.proj",
    "contract": "ff.net.2",
}


class Source(NamedTuple):
    """The place of one of our tensors in another project's file: its names there and its layout."""

    names: tuple[str, ...]
    layout: Layout


def same(ours: Tensor) -> Sequence[Tensor]:
    """The layout of a tensor that is the same in both projects."""
    return [ours]


def transposed(ours: Tensor) -> Sequence[Tensor]:
    """The layout of a matrix that is transposed there."""
    return [ours.t()]


def pointwise(num_dims: int) -> Layout:
    """A linear layer's weight [O, I] as that of a convolution of kernel 1 in ``num_dims`` dimensions."""
    return lambda ours: [ours[(..., *[None] * num_dims)]]


def thirds(layout: Layout = same) -> Layout:
    """Queries, keys and values in three tensors, each in a layout of one tensor."""
    return lambda ours: [layout(third)[0] for third in ours.chunk(3)]


def halves(ours: Tensor) -> Sequence[Tensor]:
    """The layout of keys and values in two tensors."""
    return ours.chunk(2)


def reordered_heads(num_heads: int, order: Sequence[int], layout: Layout = same) -> Layout:
    """Queries, keys and values in another order along the first axis than our [(q, k, v), head, channel].

    Args:
        num_heads: Number of heads, ``H``.
        order: Their order, as axes of ours: (1, 0, 2) is [head, (q, k, v), channel].
        layout: The layout of what is in their order.
    """

    def to_theirs(ours: Tensor) -> Sequence[Tensor]:
        split = ours.unflatten(0, (3, num_heads, -1))
        return layout(split.permute(*order, *range(3, split.ndim)).flatten(0, 2))

    return to_theirs


def fused_attention(num_heads: int, order: Sequence[int], num_dims: int) -> dict[str, Layout]:
    """Layouts of attention by convolutions of kernel 1, one for queries, keys and values; see ``reordered_heads``."""
    return {
        "qkv.weight": reordered_heads(num_heads, order, pointwise(num_dims)),
        "qkv.bias": reordered_heads(num_heads, order),
        "proj.weight": pointwise(num_dims),
    }


def transformer_names(depth: int) -> dict[str, str]:
    """Names of the layers within a transformer of latent diffusion or diffusers, by ours; see ``sources_of``.

    Args:
        depth: Its layers of self-attention, cross-attention and feed-forward.
    """
    return {
        f"layers.{i}.{ours}": ",".join(f"transformer_blocks.{i}.{one}" for one in theirs.split(","))
        for i in range(depth)
        for ours, theirs in _TRANSFORMER_LAYER.items()
    }


def transformer_layouts(depth: int, *, convolutions: bool) -> dict[str, Layout]:
    """Layouts of the tensors within such a transformer, by our name.

    Args:
        depth: See ``transformer_names``.
        convolutions: The projections into and out of it are convolutions of kernel 1 there.
    """
    fused = [f"layers.{i}.{kind}_attention.kv.weight" for i in range(depth) for kind in ("self", "cross")]
    ends = [f"proj_{end}.weight" for end in ("in", "out")] if depth and convolutions else []
    return dict.fromkeys(fused, halves) | dict.fromkeys(ends, pointwise(2))


def level_blocks(network: nn.Module) -> Iterator[tuple[str, str, int, str, int]]:
    """Find the blocks of a U-Net's levels.

    Yields:
        Our name of the block; "down" or "up"; the level, 0 at the highest resolution; "blocks", "attention",
        "cross_attention" or "resample"; and the block's number among those of its kind in the level.
    """
    for name, _ in network.named_modules():
        found = re.fullmatch(
            r"(down|up)\.(\d+)\.(blocks|attention|cross_attention(?=\.)|resample)(?:\.(\d+))?(?:\.block)?", name
        )
        if found:
            yield name, found[1], int(found[2]), found[3], int(found[4] or 0)


def sources_of(
    network: nn.Module,
    places: Mapping[str, str],
    inner: Mapping[str, str],
    layouts: Callable[[int], Mapping[str, Layout]],
) -> dict[str, Source]:
    """Find the tensors of a network in another project's file.

    Args:
        network: The network.
        places: Their name of each of our blocks and layers, by ours; the longest one that fits is taken.
        inner: Their name of each layer or tensor within a block, by ours; of several, separated by commas. Those left
            out have our names.
        layouts: The layouts of the tensors that are not the same there, by our name within a block, or in the network,
            for a block's number of heads.
    """
    modules, sources = dict(network.named_modules()), {}
    for ours in network.state_dict():
        place = max((one for one in places if ours.startswith(f"{one}.")), key=len)
        tensor = ours.removeprefix(f"{place}.")
        layer, dot, leaf = tensor.rpartition(".")
        within = inner.get(tensor) or ",".join(f"{one}{dot}{leaf}" for one in inner.get(layer, layer).split(","))
        known = layouts(getattr(modules[place], "num_heads", 1))
        names = tuple(f"{places[place]}.{one}" for one in within.split(","))
        sources[ours] = Source(names, known.get(tensor) or known.get(ours, same))
    return sources


def load_renamed(
    module: nn.Module, tensors: Mapping[str, Tensor], sources: Mapping[str, Source], *, path: Path
) -> None:
    """Load another project's tensors into a network of ours, with none missing and none left over.

    Args:
        module: The network, changed in place; unchanged where this raises.
        tensors: Under their names.
        sources: The place of each of our tensors among them.
        path: The file they are from, for the message.

    Raises:
        ValueError: In one line that lists tensors, by their names, that are missing, unexpected, or of another shape
            or kind than the network's.
    """
    expected: dict[str, Tensor] = {}
    for ours, tensor in module.state_dict().items():
        like = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
        expected.update(zip(sources[ours].names, sources[ours].layout(like), strict=True))
    check_tensors(expected, tensors, path=path)
    module.load_state_dict(
        {
            ours: _undo(sources[ours].layout, [tensors[name] for name in sources[ours].names], tensor.shape)
            for ours, tensor in module.state_dict().items()
        }
    )


def _undo(layout: Layout, theirs: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """The tensor of ours that a layout makes theirs of, found from where it moves the numbers 0, 1, 2, ..."""
    if layout is same:
        return theirs[0]
    origin = layout(torch.arange(shape.numel()).view(shape))
    ours = torch.empty(shape.numel(), dtype=theirs[0].dtype)
    ours[torch.cat([one.flatten() for one in origin])] = torch.cat([one.flatten() for one in theirs])
    return ours.view(shape)


def renamed(module: nn.Module, sources: Mapping[str, Source]) -> dict[str, Tensor]:
    """The tensors of a network of ours, under their names and in their layout: the way back of ``load_renamed``."""
    theirs: dict[str, Tensor] = {}
    for ours, tensor in module.state_dict().items():
        made = [one.detach().contiguous().clone() for one in sources[ours].layout(tensor)]
        theirs.update(zip(sources[ours].names, made, strict=True))
    return theirs
