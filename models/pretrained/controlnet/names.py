"""Names of our ControlNet's tensors in diffusers' ``ControlNetModel`` and in the files of its authors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ...backbones import ControlNet
from ..diffusers.names import diffusers_sources
from ..guided.importer import guided_sources
from ..shared.renaming import Source, same, sources_of


def of_diffusers(control: ControlNet, *, halves_swapped: bool, convolutions: bool, bgr: bool) -> dict[str, Source]:
    """Map a ControlNet's tensors to the state dict of ``ControlNetModel``.

    Args:
        control: Our ControlNet.
        halves_swapped: See ``diffusers_sources``.
        convolutions: See ``diffusers_sources``.
        bgr: The first convolution there sees the hint's channels in reverse.
    """
    hint = "controlnet_cond_embedding"
    stem = [f"{hint}.conv_in", *(f"{hint}.blocks.{i}" for i in range(len(control.stem.layers) - 1)), f"{hint}.conv_out"]
    zero = [f"controlnet_down_blocks.{i}" for i in range(len(control.zero))]
    encoder = diffusers_sources(control.encoder, halves_swapped=halves_swapped, convolutions=convolutions)
    return _joined(control, encoder, [*stem, *zero, "controlnet_mid_block"], bgr=bgr)


def of_authors(control: ControlNet, *, convolutions: bool) -> dict[str, Source]:
    """Map a ControlNet's tensors to the ``control_model`` of its authors' files, without that prefix.

    Args:
        control: Our ControlNet.
        convolutions: See ``guided_sources``.
    """
    # the layers of the hint are counted with the activations between them
    stem = [f"input_hint_block.{2 * i}" for i in range(len(control.stem.layers) + 1)]
    zero = [f"zero_convs.{i}.0" for i in range(len(control.zero))]
    encoder = guided_sources(control.encoder, convolutions=convolutions)
    return _joined(control, encoder, [*stem, *zero, "middle_block_out.0"])


def _joined(
    control: ControlNet, encoder: Mapping[str, Source], layers: Sequence[str], *, bgr: bool = False
) -> dict[str, Source]:
    """The sources of the copied network, and of all other layers, whose names there are in our order."""
    added = nn.ModuleDict({"stem": control.stem, "zero": control.zero, "zero_middle": control.zero_middle})
    ours = [name for name, layer in added.named_modules() if isinstance(layer, nn.Conv2d)]
    places = dict(zip(ours, layers, strict=True))
    sources = sources_of(added, places, {}, lambda _: {"stem.layers.0.weight": _reversed_channels if bgr else same})
    return {f"encoder.{name}": source for name, source in encoder.items()} | sources


def _reversed_channels(ours: Tensor) -> Sequence[Tensor]:
    return [ours.flip(1)]
