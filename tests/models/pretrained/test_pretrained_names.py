"""Importers beside names and layouts that are written out here by hand, not by the tables that read them."""

import json

import pytest
import torch
from importer_references import randomize
from safetensors.torch import save_file

from models.backbones import ADM, NCSNpp, UNet
from models.pretrained import (
    from_ddpm,
    from_diffusers,
    from_edm,
    from_guided_diffusion,
    from_improved_diffusion,
    from_score_sde,
)

SIZE = {"image_size": 8, "in_channels": 1, "channels": 4, "channel_mult": (1, 2), "num_res_blocks": 1}
SIZE |= {"attention_resolutions": (4,)}


def place(text):
    """Their name of each part of our network, from lines of ours and theirs."""
    return dict(line.split() for line in text.strip().splitlines())


def split_heads(rows, heads, order):
    """Our rows [(q, k, v), head, channel] one by one at the places that an order gives them, such as "hcp"."""
    channels = len(rows) // (3 * heads)
    sizes = {"p": 3, "h": heads, "c": channels}
    out = torch.empty_like(rows)
    for p in range(3):
        for h in range(heads):
            for c in range(channels):
                at, index = 0, {"p": p, "h": h, "c": c}
                for axis in order:
                    at = at * sizes[axis] + index[axis]
                out[at] = rows[(p * heads + h) * channels + c]
    return out


def thirds(names, *, transposed=False, ndim=2):
    """Three tensors for queries, keys and values; a weight transposed, or with axes of length 1 behind."""

    def split(tensor):
        third = len(tensor) // 3
        parts = [tensor[i * third : (i + 1) * third] for i in range(3)]
        return dict(zip(names, (turn(part, transposed, ndim) for part in parts), strict=True))

    return split


def turn(tensor, transposed, ndim):
    if tensor.ndim < 2:
        return tensor
    return tensor.t().contiguous() if transposed else tensor.reshape(*tensor.shape, *[1] * (ndim - 2))


def fused(order, heads, ndim):
    """One tensor for queries, keys and values, rows in their order."""
    return lambda tensor: {"qkv": turn(split_heads(tensor, heads, order), False, ndim)}


def write(network, places, leaves, qkv, *, proj_transposed=False, proj_ndim=2, prefix=""):
    """Their file of our network's tensors."""
    theirs = {}
    for name, tensor in network.state_dict().items():
        ours = max((part for part in places if name.startswith(f"{part}.")), key=len)
        layer, _, leaf = name.removeprefix(f"{ours}.").rpartition(".")
        before = f"{prefix}{places[ours]}"
        if layer == "qkv":
            theirs |= {f"{before}.{inner}.{leaf}": part for inner, part in qkv(tensor).items()}
            continue
        if layer == "proj":
            tensor = turn(tensor, proj_transposed, proj_ndim)
        inner = leaves.get(f"{places[ours].split('.')[0]} {layer}", leaves.get(layer, layer))
        theirs[".".join(part for part in (before, inner, leaf) if part)] = tensor.clone()
    return theirs


def same(model, network):
    found, expected = model.backbone.state_dict(), network.state_dict()
    assert found.keys() == expected.keys() and type(model.backbone) is type(network)
    assert len({tuple(tensor.flatten()[:2].tolist()) for tensor in expected.values()}) == len(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


DDPM = place(
    """
    embed.linear1 temb.dense.0
    embed.linear2 temb.dense.1
    conv_in conv_in
    down.0.blocks.0 down.0.block.0
    down.0.resample down.0.downsample
    down.1.blocks.0 down.1.block.0
    down.1.attention.0 down.1.attn.0
    middle.block1 mid.block_1
    middle.attention mid.attn_1
    middle.block2 mid.block_2
    up.1.blocks.0 up.1.block.0
    up.1.attention.0 up.1.attn.0
    up.1.blocks.1 up.1.block.1
    up.1.attention.1 up.1.attn.1
    up.1.resample up.1.upsample
    up.0.blocks.0 up.0.block.0
    up.0.blocks.1 up.0.block.1
    norm_out norm_out
    conv_out conv_out
    """
)


def test_names_of_ddpm(tmp_path):
    network = randomize(UNet(**SIZE))
    leaves = {"project": "temb_proj", "skip": "nin_shortcut", "proj": "proj_out"}
    theirs = write(network, DDPM, leaves, thirds(("q", "k", "v"), ndim=4), proj_ndim=4)
    assert theirs["mid.attn_1.proj_out.weight"].shape == theirs["up.1.attn.1.k.weight"].shape == (8, 8, 1, 1)
    assert theirs["down.1.block.0.nin_shortcut.weight"].shape == (8, 4, 1, 1)
    torch.save(theirs, tmp_path / "model.ckpt")
    config = {"resolution": 8, "ch": 4, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4]}
    same(from_ddpm(tmp_path / "model.ckpt", {**config, "in_channels": 1, "out_ch": 1}), network)


DIFFUSERS = place(
    """
    embed.linear1 time_embedding.linear_1
    embed.linear2 time_embedding.linear_2
    embed.class_table class_embedding
    conv_in conv_in
    down.0.blocks.0 down_blocks.0.resnets.0
    down.0.resample down_blocks.0.downsamplers.0
    down.1.blocks.0 down_blocks.1.resnets.0
    down.1.attention.0 down_blocks.1.attentions.0
    middle.block1 mid_block.resnets.0
    middle.attention mid_block.attentions.0
    middle.block2 mid_block.resnets.1
    up.1.blocks.0 up_blocks.0.resnets.0
    up.1.attention.0 up_blocks.0.attentions.0
    up.1.blocks.1 up_blocks.0.resnets.1
    up.1.attention.1 up_blocks.0.attentions.1
    up.1.resample up_blocks.0.upsamplers.0
    up.0.blocks.0 up_blocks.1.resnets.0
    up.0.blocks.1 up_blocks.1.resnets.1
    norm_out conv_norm_out
    conv_out conv_out
    """
)


def test_names_of_diffusers(tmp_path):
    network = randomize(UNet(**SIZE, num_classes=3, embedding="cos_first", symmetric_downsample=True, norm_groups=4))
    leaves = {"project": "time_emb_proj", "skip": "conv_shortcut", "norm": "group_norm", "proj": "to_out.0"}
    theirs = write(network, DIFFUSERS, leaves, thirds(("to_q", "to_k", "to_v")))
    assert theirs["class_embedding.weight"].shape == (3, 16)
    (tmp_path / "unet").mkdir()
    (tmp_path / "scheduler").mkdir()
    save_file(theirs, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    unet = {"_class_name": "UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1}
    unet |= {"block_out_channels": [4, 8], "layers_per_block": 1, "num_class_embeds": 3, "norm_num_groups": 4}
    unet |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "attention_head_dim": None}
    unet |= {"up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
    (tmp_path / "unet" / "config.json").write_text(json.dumps(unet))
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "DDPMScheduler"}')
    parts = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", **parts}))
    same(from_diffusers(tmp_path), network)


# one counter runs down, another up
OPENAI = place(
    """
    embed.linear1 time_embed.0
    embed.linear2 time_embed.2
    embed.class_table label_emb
    conv_in input_blocks.0.0
    down.0.blocks.0 input_blocks.1.0
    down.0.resample input_blocks.2.0
    down.1.blocks.0 input_blocks.3.0
    down.1.attention.0 input_blocks.3.1
    middle.block1 middle_block.0
    middle.attention middle_block.1
    middle.block2 middle_block.2
    up.1.blocks.0 output_blocks.0.0
    up.1.attention.0 output_blocks.0.1
    up.1.blocks.1 output_blocks.1.0
    up.1.attention.1 output_blocks.1.1
    up.1.resample output_blocks.1.2
    up.0.blocks.0 output_blocks.2.0
    up.0.blocks.1 output_blocks.3.0
    norm_out out.0
    conv_out out.2
    """
)
OPENAI_LEAVES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "project": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
    "proj": "proj_out",
}
OPENAI_CONFIG = {
    "image_size": 8, "in_channels": 1, "out_channels": 1, "model_channels": 4, "num_res_blocks": 1,
    "attention_resolutions": [2], "channel_mult": [1, 2],
}  # fmt: skip


@pytest.mark.parametrize(("new_order", "order"), [(False, "hpc"), (True, "phc")])
def test_names_of_guided_diffusion(tmp_path, new_order, order):
    network = randomize(ADM(**SIZE, num_classes=3, head_channels=4))
    theirs = write(network, OPENAI, OPENAI_LEAVES, fused(order, 2, 3), proj_ndim=3)
    assert theirs["output_blocks.1.2.in_layers.2.weight"].shape == (8, 8, 3, 3)
    assert theirs["middle_block.1.qkv.weight"].shape == (24, 8, 1) and theirs["label_emb.weight"].shape == (3, 16)
    torch.save(theirs, tmp_path / "model.pt")
    config = OPENAI_CONFIG | {"num_head_channels": 4, "num_classes": 3, "resblock_updown": True}
    config |= {"use_scale_shift_norm": True, "use_new_attention_order": new_order}
    same(from_guided_diffusion(tmp_path / "model.pt", config), network)


def test_names_of_improved_diffusion(tmp_path):
    options = {"embedding": "cos_first", "symmetric_downsample": True, "norm_eps": 1e-5, "scale_shift_norm": True}
    # attention at the higher resolution, so that none stands before the resampling on the way up
    network = randomize(UNet(**SIZE | {"attention_resolutions": (8,)}, **options, num_heads=4))
    places = {ours: theirs for ours, theirs in OPENAI.items() if "attention" not in ours} | place(
        """
        down.0.attention.0 input_blocks.1.1
        middle.attention middle_block.1
        up.1.resample output_blocks.1.1
        up.0.attention.0 output_blocks.2.1
        up.0.attention.1 output_blocks.3.1
        """
    )
    # of resampling convolutions, those on the way down have another name than those on the way up
    leaves = OPENAI_LEAVES | {"input_blocks conv": "op"}
    theirs = write(network, places, leaves, fused("hpc", 4, 3), proj_ndim=3)
    assert "input_blocks.2.0.op.weight" in theirs and "output_blocks.1.1.conv.weight" in theirs
    torch.save(theirs, tmp_path / "model.pt")
    config = OPENAI_CONFIG | {"num_heads": 4, "use_scale_shift_norm": True, "attention_resolutions": [1]}
    same(from_improved_diffusion(tmp_path / "model.pt", config), network)


# attention has the name of the block before it; in the middle of theirs stand two blocks of the decoder
EDM = place(
    """
    embed.linear1 map_layer0
    embed.linear2 map_layer1
    conv_in enc.8x8_conv
    down.0.blocks.0 enc.8x8_block0
    down.0.resample enc.4x4_down
    down.1.blocks.0 enc.4x4_block0
    down.1.attention.0 enc.4x4_block0
    middle.block1 dec.4x4_in0
    middle.attention dec.4x4_in0
    middle.block2 dec.4x4_in1
    up.1.blocks.0 dec.4x4_block0
    up.1.blocks.1 dec.4x4_block1
    up.1.resample dec.8x8_up
    up.0.blocks.0 dec.8x8_block0
    up.0.blocks.1 dec.8x8_block1
    """
)
EDM_LEAVES = {"norm1": "norm0", "conv1": "conv0", "project": "affine", "norm2": "norm1", "conv2": "conv1"}
EDM_LEAVES |= {"norm": "norm2"}


def test_names_of_edm_s_adm(tmp_path):
    size = SIZE | {"channels": 64}
    network = randomize(ADM(**size, head_channels=64, floor_heads=True, norm_group_channels=4, num_classes=3))
    places = EDM | {"up.1.attention.0": "dec.4x4_block0", "up.1.attention.1": "dec.4x4_block1"}
    places |= {"embed.class_table": "map_label", "norm_out": "out_norm", "conv_out": "out_conv"}
    theirs = write(network, places, EDM_LEAVES, fused("hcp", 2, 4), proj_ndim=4, prefix="model.")
    theirs["model.map_label.weight"] = theirs["model.map_label.weight"].t().contiguous()
    for name in ("enc.4x4_down.conv0", "enc.4x4_down.skip", "dec.8x8_up.conv0", "dec.8x8_up.skip"):
        theirs[f"model.{name}.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
    torch.save(theirs, tmp_path / "edm.pt")
    config = {"class_name": "EDMPrecond", "img_resolution": 8, "img_channels": 1, "model_channels": 64}
    config |= {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "label_dim": 3}
    same(from_edm(tmp_path / "edm.pt", config), network)


def test_names_of_edm_s_ddpmpp(tmp_path):
    network = NCSNpp(**SIZE, fir_kernel=None, input_pyramid="none", num_classes=3, augment_dim=9)
    randomize(network)
    places = {name.replace(".attention.0", ".attention.0.block"): theirs for name, theirs in EDM.items()}
    places["middle.attention.block"] = places.pop("middle.attention")
    # one attention block a level on the way up, at its last residual block
    places |= {"up.1.attention.block": "dec.4x4_block1", "norm_out": "dec.8x8_aux_norm", "conv_out": "dec.8x8_aux_conv"}
    places |= {"embed.class_map": "map_label", "embed.augment_map": "map_augment"}
    theirs = write(network, places, EDM_LEAVES, fused("hcp", 1, 4), proj_ndim=4, prefix="model.")
    for name in ("enc.4x4_down.conv0", "enc.4x4_down.skip", "dec.8x8_up.conv0", "dec.8x8_up.skip"):
        theirs[f"model.{name}.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
    torch.save(theirs, tmp_path / "edm.pt")
    same(from_edm(tmp_path / "edm.pt", {"class_name": "EDMPrecond"}), network)


SCORE_SDE_LEAVES = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "project": "Dense_0", "norm2": "GroupNorm_1"}
SCORE_SDE_LEAVES |= {"conv2": "Conv_1", "norm": "GroupNorm_0"}
# one number after another in the order of their use, after those of the noise
NCSNPP = """
    conv_in
    down.0.blocks.0
    down.0.resample
    {image_input}
    down.1.blocks.0
    down.1.attention.0.block
    middle.block1
    middle.attention.block
    middle.block2
    up.1.blocks.0
    up.1.blocks.1
    up.1.attention.block
    up.1.resample
    up.0.blocks.0
    up.0.blocks.1
    norm_out
    conv_out
    """


NIN = thirds(("NIN_0", "NIN_1", "NIN_2"), transposed=True)


def as_nin(theirs):
    """The same with W and b for weight and bias in their own 1x1 layers."""
    ends = {"weight": "W", "bias": "b"}
    renamed = {}
    for name, tensor in theirs.items():
        before, _, leaf = name.rpartition(".")
        renamed[f"{before}.{ends[leaf]}" if "NIN" in name else name] = tensor
    return renamed


def test_names_of_score_sde_s_ncsnpp(tmp_path):
    network = randomize(NCSNpp(**SIZE, embedding="fourier"))
    names = [
        "embed.fourier",
        "embed.linear1",
        "embed.linear2",
        *NCSNPP.format(image_input="down.0.image_input").split(),
    ]
    places = {ours: f"all_modules.{i}" for i, ours in enumerate(names)}
    leaves = SCORE_SDE_LEAVES | {"skip": "Conv_2", "down.conv": "Conv2d_0", "proj": "NIN_3"}
    theirs = as_nin(write(network, places, leaves, NIN, proj_transposed=True))
    theirs["all_modules.0.W"] = theirs.pop("all_modules.0.frequencies")
    assert theirs["all_modules.6.Conv2d_0.weight"].shape == (4, 1, 3, 3)
    assert theirs["all_modules.10.NIN_2.W"].shape == (8, 8) and theirs["all_modules.19.weight"].shape == (1, 4, 3, 3)
    torch.save(theirs, tmp_path / "model.pth")
    config = "--data.image_size 8 --model.name ncsnpp --training.sde vesde --training.continuous True "
    config += "--model.fir True --model.skip_rescale True"
    same(from_score_sde(tmp_path / "model.pth", config), network)


def test_names_of_score_sde_s_ddpm(tmp_path):
    options = {"block": "ddpm", "fir_kernel": None, "input_pyramid": "none", "rescale": False, "min_group_channels": 1}
    network = randomize(NCSNpp(**SIZE, **options))
    names = ["embed.linear1", "embed.linear2", *NCSNPP.format(image_input="").split()]
    places = {ours: f"all_modules.{i}" for i, ours in enumerate(names)}
    leaves = SCORE_SDE_LEAVES | {"skip": "NIN_0", "conv": "Conv_0", "proj": "NIN_3"}
    theirs = as_nin(write(network, places, leaves, NIN, proj_transposed=True))
    for name in [name for name in theirs if name.endswith("NIN_0.W") and theirs[name].ndim == 4]:
        theirs[name] = theirs[name][:, :, 0, 0].t().contiguous()
    assert theirs["all_modules.5.NIN_0.W"].shape == (4, 8) and theirs["all_modules.4.Conv_0.weight"].shape == (
        4,
        4,
        3,
        3,
    )
    torch.save(theirs, tmp_path / "model.pth")
    config = "--data.image_size 8 --model.name ddpm --training.sde vpsde --training.continuous False"
    same(from_score_sde(tmp_path / "model.pth", config), network)
