"""The U-Net number for number against published implementations, with every parameter random."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from models.backbones import UNet

REFERENCE = Path(__file__).resolve().parents[4] / "shared" / "reference"


def rename(name, rules):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def load(net, theirs, rules, *, qkv_parts=("q", "k", "v"), fused_heads=None):
    """Fill our network from their state dict, every tensor of which must be used exactly once.

    ``rules`` rename ours to theirs; ``{}`` in a name stands for q, k, v. With ``fused_heads`` theirs is one layer
    with rows [head, (q, k, v), channel].
    """
    used, state = set(), {}
    for ours, parameter in net.state_dict().items():
        name = rename(ours, rules)
        names = [name.format(part) for part in qkv_parts] if "{}" in name else [name]
        tensor = torch.cat([theirs[n] for n in names])
        if fused_heads is not None and ".qkv." in ours:
            width = parameter.shape[0] // 3 // fused_heads
            tensor = tensor.reshape(fused_heads, 3, width, -1).transpose(0, 1)
        assert not used & set(names)
        used |= set(names)
        assert tensor.numel() == parameter.numel()
        state[ours] = tensor.reshape(parameter.shape)
    assert used == set(theirs)
    net.load_state_dict(state)
    return net.eval()


def per_sample_error(out, truth):
    axes = (1, 2, 3)
    return ((out - truth).abs().amax(axes) / truth.abs().amax(axes)).max().item()


DIFFUSERS_RULES = [
    (r"^embed\.linear(\d)", r"time_embedding.linear_\1"),
    (r"^embed\.class_table", r"class_embedding"),
    (r"^down\.", r"down_blocks."),
    (r"^up\.(\d)", lambda match: f"up_blocks.{2 - int(match[1])}"),
    (r"^(down.*)\.resample\.", r"\1.downsamplers.0."),
    (r"^(up.*)\.resample\.", r"\1.upsamplers.0."),
    (r"^middle\.block1", r"mid_block.resnets.0"),
    (r"^middle\.block2", r"mid_block.resnets.1"),
    (r"^middle\.attention", r"mid_block.attentions.0"),
    (r"\.blocks\.", r".resnets."),
    (r"\.attention\.", r".attentions."),
    (r"(attentions\.\d)\.norm\.", r"\1.group_norm."),
    (r"\.qkv\.", r".to_{}."),
    (r"\.proj\.", r".to_out.0."),
    (r"\.project\.", r".time_emb_proj."),
    (r"\.skip\.", r".conv_shortcut."),
    (r"^norm_out", r"conv_norm_out"),
]


class Float64Sinusoid(torch.nn.Module):
    """Stands in for diffusers' embedding, whose frequencies are float32 even in a float64 network."""

    def forward(self, t):
        frequencies = torch.tensor([10000 ** (-i / 15) for i in range(16)], dtype=torch.float64)
        phase = t.double()[:, None] * frequencies
        return torch.cat([phase.sin(), phase.cos()], dim=1)


def diffusers_network(*, full_size=False, heads=1, classes=None, scale_shift=False):
    diffusers = pytest.importorskip("diffusers")
    widths = (128, 256, 256, 256) if full_size else (32, 64, 64)
    down = ["DownBlock2D"] * len(widths)
    up = ["UpBlock2D"] * len(widths)
    down[1], up[-2] = "AttnDownBlock2D", "AttnUpBlock2D"
    return diffusers.UNet2DModel(
        sample_size=32 if full_size else 16,
        block_out_channels=widths,
        layers_per_block=2 if full_size else 1,
        down_block_types=down,
        up_block_types=up,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attn_norm_num_groups=32,  # without it scale_shift leaves the norm of the middle attention out
        attention_head_dim=None if heads == 1 else 64 // heads,
        num_class_embeds=classes,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
    ).eval()


def test_parameter_count_is_that_of_diffusers():
    with torch.device("meta"):
        theirs = diffusers_network(full_size=True)
    assert sum(p.numel() for p in theirs.parameters()) == 35_746_307


@pytest.mark.parametrize(
    ("heads", "classes", "scale_shift"),
    [(1, None, False), (4, None, False), (1, None, True), (2, 5, True)],
    ids=["ho", "four_heads", "scale_shift", "classes"],
)
def test_agrees_with_diffusers(heads, classes, scale_shift):
    theirs = diffusers_network(heads=heads, classes=classes, scale_shift=scale_shift)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1.0
    ours = UNet(
        image_size=16,
        channels=32,
        channel_mult=(1, 2, 2),
        num_res_blocks=1,
        attention_resolutions=(8,),
        num_heads=heads,
        num_classes=classes,
        scale_shift_norm=scale_shift,
    )
    load(ours, theirs.state_dict(), DIFFUSERS_RULES)
    x = torch.randn(4, 3, 16, 16, generator=generator)
    x[3] *= 0.01  # so little contrast that the epsilon of the norms shows
    t = torch.tensor([0.0, 1.0, 517.0, 999.0])
    cond = None if classes is None else torch.tensor([0, 4, 2, 2])
    with torch.no_grad():
        single = theirs(x, t, class_labels=cond).sample
        assert per_sample_error(ours(x, t, cond), single) < 5e-5
        ours, theirs = ours.double(), theirs.double()
        theirs.time_proj = Float64Sinusoid()
        double = theirs(x.double(), t, class_labels=cond).sample
        assert per_sample_error(ours(x.double(), t, cond), double) < 1e-10


PESSER_RULES = [
    (r"^embed\.linear(\d)", lambda match: f"temb.dense.{int(match[1]) - 1}"),
    (r"^(down.*)\.resample\.", r"\1.downsample."),
    (r"^(up.*)\.resample\.", r"\1.upsample."),
    (r"^middle\.block(\d)", r"mid.block_\1"),
    (r"^middle\.attention", r"mid.attn_1"),
    (r"\.blocks\.", r".block."),
    (r"\.attention\.", r".attn."),
    (r"\.qkv\.", r".{}."),
    (r"\.proj\.", r".proj_out."),
    (r"\.project\.", r".temb_proj."),
    (r"\.skip\.", r".nin_shortcut."),
]

IMPROVED_RULES = [
    (r"^embed\.linear1", r"time_embed.0"),
    (r"^embed\.linear2", r"time_embed.2"),
    (r"^conv_in", r"input_blocks.0.0"),
    (r"^norm_out", r"out.0"),
    (r"^conv_out", r"out.2"),
    (r"^middle\.block1", r"middle_block.0"),
    (r"^middle\.attention", r"middle_block.1"),
    (r"^middle\.block2", r"middle_block.2"),
    # One residual block a level and two levels, attention at both: inputs 1, (2: down), 3; outputs 0, 1 (up), 2, 3.
    (r"^down\.(\d)\.blocks\.0", lambda match: f"input_blocks.{1 + 2 * int(match[1])}.0"),
    (r"^down\.(\d)\.attention\.0", lambda match: f"input_blocks.{1 + 2 * int(match[1])}.1"),
    (r"^down\.0\.resample\.conv", r"input_blocks.2.0.op"),
    (r"^up\.(\d)\.blocks\.(\d)", lambda match: f"output_blocks.{2 * (1 - int(match[1])) + int(match[2])}.0"),
    (r"^up\.(\d)\.attention\.(\d)", lambda match: f"output_blocks.{2 * (1 - int(match[1])) + int(match[2])}.1"),
    (r"^up\.1\.resample", r"output_blocks.1.2"),
    (r"\.norm1\.", r".in_layers.0."),
    (r"\.conv1\.", r".in_layers.2."),
    (r"\.project\.", r".emb_layers.1."),
    (r"\.norm2\.", r".out_layers.0."),
    (r"\.conv2\.", r".out_layers.3."),
    (r"\.skip\.", r".skip_connection."),
    (r"\.proj\.", r".proj_out."),
]


def reference(name, suffix):
    if not (REFERENCE / f"{name}.json").is_file():
        pytest.skip(f"no reference weights {name} in a folder shared/reference beside the checkout")
    weights = torch.load(REFERENCE / f"{name}{suffix}", map_location="cpu", weights_only=True)
    settings = json.loads((REFERENCE / f"{name}.json").read_text())["constructor"]
    return weights, settings, np.load(REFERENCE / f"{name}_io.npz")


def assert_reproduces(net, io):
    truth = torch.from_numpy(io["y_out_f64"])
    x, t = torch.from_numpy(io["x"]), torch.from_numpy(io["t"])
    with torch.no_grad():
        single = max(per_sample_error(net(x[k], t[k]), truth[k]) for k in range(len(x)))
        net = net.double()
        double = max(per_sample_error(net(x[k].double(), t[k]), truth[k]) for k in range(len(x)))
    assert single < 5e-5
    assert double < 1e-10


def test_reproduces_the_network_of_ho_et_al():
    weights, settings, io = reference("pesser_ddpm", ".ckpt")
    net = UNet(
        image_size=settings["resolution"],
        channels=settings["ch"],
        channel_mult=settings["ch_mult"],
        num_res_blocks=settings["num_res_blocks"],
        attention_resolutions=settings["attn_resolutions"],
        dropout=settings["dropout"],
    )
    assert_reproduces(load(net, weights, PESSER_RULES), io)


def test_reproduces_the_network_of_improved_ddpm():
    weights, settings, io = reference("improved_cifar", ".pt")
    net = UNet(
        image_size=16,
        channels=settings["model_channels"],
        channel_mult=settings["channel_mult"],
        num_res_blocks=settings["num_res_blocks"],
        attention_resolutions=[16 // factor for factor in settings["attention_resolutions"]],
        num_heads=settings["num_heads"],
        dropout=settings["dropout"],
        scale_shift_norm=settings["use_scale_shift_norm"],
        learned_variance=settings["out_channels"] == 2 * settings["in_channels"],
        norm_eps=1e-5,
        embedding="cos_first",
        symmetric_downsample=True,
    )
    assert_reproduces(load(net, weights, IMPROVED_RULES, fused_heads=settings["num_heads"]), io)
