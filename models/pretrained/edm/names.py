"""Names of our networks' tensors in EDM's ``SongUNet`` and ``DhariwalUNet``."""

from __future__ import annotations

from ...backbones import ADM, NCSNpp, height_and_width
from ..shared.renaming import Source, fused_attention, level_blocks, sources_of, transposed

_INNER = {
    "norm1": "norm0",
    "conv1": "conv0",
    "project": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "norm": "norm2",
    "frequencies": "freqs",
}


def edm_sources(network: ADM | NCSNpp) -> dict[str, Source]:
    """Map a network's tensors to the state dict of EDM's ``DhariwalUNet`` or, of an ``NCSNpp``, ``SongUNet``.

    ``class_table`` holds the columns of EDM's linear map of class vectors. In the middle of EDM's networks stand the
    first two blocks of the way up.
    """
    resolution, _ = height_and_width(network.image_size)  # EDM's images are square
    sizes = [f"{resolution // 2**i}x{resolution // 2**i}" for i in range(len(network.down))]
    first, second = f"dec.{sizes[-1]}_in0", f"dec.{sizes[-1]}_in1"
    out = "out" if isinstance(network, ADM) else f"dec.{sizes[0]}_aux"
    places = {
        "embed.linear1": "map_layer0",
        "embed.linear2": "map_layer1",
        "embed.fourier": "map_noise",
        "embed.class_table": "map_label",
        "embed.class_map": "map_label",
        "embed.augment_map": "map_augment",
        "conv_in": f"enc.{sizes[0]}_conv",
        "middle.block1": first,
        "middle.attention": first,
        "middle.attention.block": first,
        "middle.block2": second,
        "norm_out": f"{out}_norm",
        "conv_out": f"{out}_conv",
    }
    for name, side, level, kind, index in level_blocks(network):
        if kind == "resample":
            places[name] = f"enc.{sizes[level + 1]}_down" if side == "down" else f"dec.{sizes[level - 1]}_up"
        else:
            # a SongUNet has one attention on the way up, in the last block
            last = kind == "attention" and side == "up" and isinstance(network, NCSNpp)
            number = network.num_res_blocks if last else index
            places[name] = f"{'enc' if side == 'down' else 'dec'}.{sizes[level]}_block{number}"
    for i, size in enumerate(sizes):
        places |= {f"up.{i}.image_output.{layer}": f"dec.{size}_aux_{layer}" for layer in ("norm", "conv")}
    for i, half in enumerate(sizes[1:]):
        places[f"down.{i}.image_input.down.conv"] = f"enc.{half}_aux_residual"
        places[f"down.{i}.image_input.conv"] = f"enc.{half}_aux_skip"
    return sources_of(
        network,
        places,
        _INNER,
        lambda heads: fused_attention(heads, (1, 2, 0), 2) | {"embed.class_table.weight": transposed},
    )
