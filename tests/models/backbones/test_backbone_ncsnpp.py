"""NCSN++: parts against their formulas, parameter counts against publications, and what each option changes."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.backbones import NCSNpp, NoiseLabelEmbedding, ResBlock
from models.backbones.blocks.fir import FIRDownsample, FIRUpsample, make_conv_downsample
from models.backbones.blocks.ncsnpp_levels import InputResidual, InputSkip, OutputSkip

SMALL = {"image_size": 8, "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,)}
DDPM = {"block": "ddpm", "fir_kernel": None, "input_pyramid": "none", "rescale": False, "min_group_channels": 1}
SKIPS = {"input_pyramid": "skip", "output_pyramid": "skip"}
FOURIER = {"embedding": "fourier"}
# as published counts go: frequencies that are not trained are counted with them
SIZE_256 = {"image_size": 256, "channel_mult": (1, 1, 2, 2, 2, 2, 2), "num_res_blocks": 2, **SKIPS, **FOURIER}


def randomize(network):
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.2)
    return network.double().eval()


def batch(size=8, channels=3):
    return torch.randn(2, channels, size, size, dtype=torch.float64), torch.tensor([3.0, 400.0])


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        # score_sde_pytorch's "ddpm" at CIFAR-10 size, counted by building that project's class
        pytest.param({"image_size": 32, "num_res_blocks": 2, **DDPM}, 35_218_947, id="ddpm"),
        # DDPM++ for CIFAR-10, Lin et al. 2025 (Latent Zoning Network), Appendix C.3, as rectified flow's network
        pytest.param({"image_size": 32, "fir_kernel": None, "input_pyramid": "none"}, 61_804_419, id="ddpmpp"),
        # NCSN++ of Song et al. 2021 at 256x256, same source
        pytest.param(SIZE_256, 65_574_549, id="ncsnpp_256"),
    ],
)
def test_full_size_networks_have_the_published_numbers_of_parameters(settings, count):
    with torch.device("meta"):
        network = NCSNpp(**settings)
    frequencies = 0 if network.embed.fourier is None else network.embed.fourier.frequencies.numel()
    assert sum(parameter.numel() for parameter in network.parameters()) + frequencies == count


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("resample", [None, "down", "up"])
@pytest.mark.parametrize("out", [8, 16])
def test_the_residual_block_is_its_formula(rescale, resample, out):
    kernel = (1, 3, 3, 1)
    module = {None: None, "down": FIRDownsample(kernel), "up": FIRUpsample(kernel)}[resample]
    block = ResBlock(
        8,
        out,
        6,
        norm=lambda width: nn.GroupNorm(2, width, eps=1e-6),
        rescale=rescale,
        resample=module,
        skip_conv=module is not None,
    )
    randomize(block)
    x, embedding = torch.randn(2, 8, 8, 8, dtype=torch.float64), torch.randn(2, 6, dtype=torch.float64)
    r = (lambda v: v) if module is None else module
    hidden = r(F.silu(F.group_norm(x, 2, block.norm1.weight, block.norm1.bias, 1e-6)))
    hidden = F.conv2d(hidden, block.conv1.weight, block.conv1.bias, padding=1)
    hidden = hidden + (embedding @ block.project.weight.t() + block.project.bias)[:, :, None, None]
    hidden = F.silu(F.group_norm(hidden, 2, block.norm2.weight, block.norm2.bias, 1e-6))
    hidden = F.conv2d(hidden, block.conv2.weight, block.conv2.bias, padding=1)
    skip = r(x)
    if out != 8 or module is not None:
        skip = torch.einsum("oi,bihw->bohw", block.skip.weight[:, :, 0, 0], skip) + block.skip.bias[:, None, None]
    else:
        assert isinstance(block.skip, nn.Identity)
    expected = (skip + hidden) / (math.sqrt(2) if rescale else 1)
    torch.testing.assert_close(block(x, embedding), expected, rtol=1e-12, atol=1e-12)


def test_the_image_pyramids_are_their_formulas():
    kernel = (1, 3, 3, 1)
    image, x = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 6, 4, 4, dtype=torch.float64)
    skip = randomize(InputSkip(3, 6, FIRDownsample(kernel)))
    small, features = skip(image, x)
    torch.testing.assert_close(small, FIRDownsample(kernel)(image))
    torch.testing.assert_close(features, x + skip.conv(small))
    for rescale in (True, False):
        residual = randomize(InputResidual(make_conv_downsample(3, 6, kernel), rescale=rescale))
        pyramid, features = residual(image, x)
        expected = (x + residual.down(image)) / (math.sqrt(2) if rescale else 1)
        torch.testing.assert_close(features, expected)
        assert pyramid is features
    output = randomize(OutputSkip(nn.GroupNorm(2, 6), 6, 3, FIRUpsample(kernel)))
    own = output.conv(F.silu(output.norm(x)))
    torch.testing.assert_close(output(x, None), own)
    below = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(output(x, below), own + FIRUpsample(kernel)(below))


def test_the_whole_output_is_the_sum_of_the_levels_images():
    network = randomize(NCSNpp(**SMALL, **SKIPS))
    x, t = batch()
    whole = network(x, t)
    nn.init.zeros_(network.conv_out.weight)
    nn.init.zeros_(network.conv_out.bias)
    images = []
    network.up[1].image_output.register_forward_hook(lambda *args: images.append(args[2]))
    low = network(x, t)
    torch.testing.assert_close(low, FIRUpsample((1, 3, 3, 1))(images[0]))
    assert not torch.allclose(low, whole)


@pytest.mark.parametrize(
    "settings", [{}, DDPM, SKIPS, FOURIER, {"num_classes": 3, "null_condition": True}, {"outputs_per_channel": 2}]
)
def test_a_new_network_returns_zeros_of_the_right_shape(settings):
    network = NCSNpp(**SMALL, **settings)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 700.0])
    cond = torch.tensor([-1, 2]) if "num_classes" in settings else None
    out = network(x, t, cond)
    assert out.shape == (2, 3 * settings.get("outputs_per_channel", 1), 8, 8)
    assert not out.any()


@pytest.mark.parametrize(
    "change",
    [
        {"rescale": False},
        {"fir_kernel": None, "input_pyramid": "none"},
        {"fir_kernel": (1, 5, 10, 10, 5, 1)},
        {"input_pyramid": "none"},
        {"input_pyramid": "skip"},
        {"output_pyramid": "skip"},
        {"block": "ddpm"},
        {"block": "ddpm", "resample_conv": False},
        {"min_group_channels": 1},
        {"norm_eps": 1e-2},
        {"attention_resolutions": ()},
    ],
    ids=str,
)
def test_each_option_changes_the_function(change):
    base = randomize(NCSNpp(**SMALL))
    other = randomize(NCSNpp(**SMALL | change))
    shared = {k: v for k, v in base.state_dict().items() if k in other.state_dict()}
    fits = {k: v for k, v in shared.items() if v.shape == other.state_dict()[k].shape}
    assert len(fits) > 30
    other.load_state_dict(fits, strict=False)
    x, t = batch()
    assert (base(x, t) - other(x, t)).abs().max() > 1e-3 * base(x, t).abs().max()


def test_the_noise_label_changes_the_output_and_both_embeddings_are_their_formula():
    for kind in ("sin_first", "fourier"):
        embed = randomize(NoiseLabelEmbedding(8, 12, kind=kind))
        t = torch.tensor([0.3, 999.0], dtype=torch.float64)
        if kind == "fourier":
            phase = 2 * math.pi * t[:, None] * embed.fourier.frequencies.double()
        else:
            phase = t[:, None] * torch.tensor([10000 ** (-i / 3) for i in range(4)], dtype=torch.float64)
        features = torch.cat((phase.sin(), phase.cos()), dim=1)
        expected = F.silu(embed.linear2(F.silu(embed.linear1(features))))
        torch.testing.assert_close(embed(t, None, None, 2), expected, rtol=1e-12, atol=1e-12)


def test_classes_are_scaled_one_hot_vectors_before_the_linear_layers():
    embed = randomize(NoiseLabelEmbedding(8, 12, num_classes=5, null_condition=True, augment_dim=4))
    t, cond = torch.tensor([2.0, 3.0, 4.0]), torch.tensor([0, 4, -1])
    one_hot = torch.zeros(3, 5, dtype=torch.float64)
    one_hot[0, 0] = one_hot[1, 4] = math.sqrt(5)
    bare = randomize(NoiseLabelEmbedding(8, 12))
    bare.load_state_dict({k: v for k, v in embed.state_dict().items() if k.startswith("linear")})
    seen = []
    for one in (bare, embed):
        one.linear1.register_forward_hook(lambda *args: seen.append(args[1][0]))
    augment = torch.randn(3, 4, dtype=torch.float64)
    bare(t, None, None, 3)
    embed(t, cond, None, 3)
    embed(t, cond, augment, 3)
    torch.testing.assert_close(seen[1] - seen[0], embed.class_map(one_hot))
    torch.testing.assert_close(seen[2] - seen[1], augment @ embed.augment_map.weight.t())
    assert torch.equal(embed(t, cond, None, 3), embed(t, cond, torch.zeros(3, 4), 3))


def test_every_parameter_has_a_gradient_without_augmentation_labels():
    network = randomize(NCSNpp(**SMALL, num_classes=3, null_condition=True, augment_dim=4))
    x, t = batch()
    network(x, t, torch.tensor([-1, 1])).square().sum().backward()
    blank = {name for name, parameter in network.named_parameters() if not bool(parameter.grad.any())}
    assert blank == {"embed.augment_map.weight"}


@pytest.mark.parametrize("settings", [{}, DDPM, SKIPS], ids=str)
def test_gradient_checkpointing_changes_no_gradient(settings):
    network = randomize(NCSNpp(**SMALL, **settings))
    x, t = batch()
    gradients = []
    for on in (False, True):
        network.gradient_checkpointing = on
        assert network.gradient_checkpointing is on
        network.zero_grad()
        network(x, t).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


def test_the_stages_hold_every_level_once():
    network = NCSNpp(**SMALL)
    assert network.stages == [*network.down, network.middle, network.up[1], network.up[0]]


def test_norms_have_at_most_32_groups_of_at_least_4_channels():
    with torch.device("meta"):
        wide, flat = NCSNpp(image_size=32, channels=64), NCSNpp(image_size=32, channels=64, **DDPM)
    for network, groups in ((wide, {64: 16, 128: 32}), (flat, {64: 32, 128: 32})):
        found = {m.num_channels: m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)}
        assert {width: found[width] for width in groups} == groups
        assert all(m.eps == 1e-6 for m in network.modules() if isinstance(m, nn.GroupNorm))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block": "resnet"}, "block must be one of biggan, ddpm, got 'resnet'"),
        ({"input_pyramid": "input_skip"}, "input_pyramid must be one of none, residual, skip, got 'input_skip'"),
        ({"output_pyramid": "residual"}, "output_pyramid must be one of none, skip, got 'residual'"),
        ({"embedding": "cos_first"}, "embedding must be one of sin_first, fourier, got 'cos_first'"),
        ({"attention_resolutions": (16,)}, "attention_resolutions must be among 8, 4, got 16"),
        ({"image_size": 9}, "image_size 9 cannot be halved 1 times; use channel_mult with 1 level or pad to 10"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1, got 0"),
        ({"noise_features": 7}, "embedding dim must be even and at least 4, got 7; use 8"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"fir_kernel": (1, 2, 1)}, "fir_kernel must be symmetric"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(ValueError, match=message) as refused:
        NCSNpp(**SMALL | settings)
    assert "\n" not in str(refused.value)


def test_wrong_inputs_are_refused_in_one_line():
    plain, classes = NCSNpp(**SMALL), NCSNpp(**SMALL, num_classes=3, augment_dim=2)
    x, t, cond = torch.randn(2, 3, 8, 8), torch.tensor([0.5, 700.0]), torch.tensor([0, 1])
    for call, message in (
        (lambda: plain(x[:, :2], t), r"x must have shape \[B, 3, 8, 8\]"),
        (lambda: plain(x, t[:1]), r"c_noise must have shape \[2\], got \[1\]"),
        (lambda: plain(x, t, cond), "cond must be None"),
        (lambda: plain(x, t, None, torch.zeros(2, 2)), "augment must be None"),
        (lambda: classes(x, t), "cond must be int64 labels"),
        (lambda: classes(x, t, cond.float()), "cond must be int64, got torch.float32; pass cond.long()"),
        (lambda: classes(x, t, cond + 2), r"cond must be in 0 .. 2, got 2 .. 3"),
        (lambda: classes(x, t, cond - 1), r"cond must be in 0 .. 2, got -1: this network never saw samples without a"),
        (lambda: classes(x, t, cond, torch.zeros(2, 3)), r"augment must have shape \[2, 2\], got \[2, 3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
