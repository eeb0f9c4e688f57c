"""Every layer against its formula written out in elementary operations."""

import pytest
import torch

from models.backbones import AttentionBlock, Downsample, ResBlock, Upsample, group_norm
from models.backbones.blocks.initialization import initialize


def randomize(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return module.double()


def normals(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def silu(x):
    return x / (1 + torch.exp(-x))


def normalize(x, norm):
    """Group normalization of [B, C, H, W] by its definition."""
    groups = x.reshape(x.shape[0], norm.num_groups, -1)
    mean, var = groups.mean(2, keepdim=True), groups.var(2, unbiased=False, keepdim=True)
    unit = ((groups - mean) / torch.sqrt(var + norm.eps)).reshape(x.shape)
    return unit * norm.weight[:, None, None] + norm.bias[:, None, None]


def convolve(x, layer, *, stride=1, before=1, after=1):
    """3x3 convolution as a sum over kernel positions, with zeros before and after each axis."""
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, channels, height + before + after, width + before + after)
    padded[:, :, before : before + height, before : before + width] = x
    rows = (padded.shape[2] - 3) // stride + 1
    out = layer.bias[:, None, None].expand(batch, -1, rows, rows)
    for a in range(3):
        for b in range(3):
            window = padded[:, :, a : a + stride * rows : stride, b : b + stride * rows : stride][..., :rows, :rows]
            out = out + torch.einsum("oc,bchw->bohw", layer.weight[:, :, a, b], window)
    return out


@pytest.mark.parametrize(
    ("channels", "groups"),
    [
        (128, 32),
        (256, 32),
        (32, 32),
        (64, 32),
        (96, 32),
        (384, 32),
        (48, 12),
        (144, 24),
        (20, 5),
        (8, 2),
        (6, 1),
        (1, 1),
    ],
)
def test_group_norm_groups(channels, groups):
    norm = group_norm(channels, 1e-5)
    assert norm.num_groups == groups
    assert norm.eps == 1e-5


def test_group_norm_groups_can_be_fewer():
    assert group_norm(32, max_groups=8).num_groups == 8
    assert group_norm(12, max_groups=8).num_groups == 3


def test_initialization_is_fan_avg_uniform():
    torch.manual_seed(0)
    weight = initialize(torch.nn.Conv2d(64, 32, 3)).weight
    limit = (6 / (9 * 64 + 9 * 32)) ** 0.5
    assert 0.999 * limit < weight.abs().max().item() <= limit
    assert weight.var().item() == pytest.approx(2 / (9 * 64 + 9 * 32), rel=0.03)
    for third in AttentionBlock(128).qkv.weight.chunk(3):  # a fused fan would give a limit smaller by sqrt(2)
        limit = (6 / 256) ** 0.5
        assert 0.999 * limit < third.abs().max().item() <= limit


def test_new_blocks_are_their_skips():
    x, embedding = normals(2, 8, 4, 4).float(), normals(2, 6).float()
    assert torch.equal(ResBlock(8, 8, 6)(x, embedding), x)
    assert torch.equal(AttentionBlock(8)(x), x)
    block = ResBlock(8, 12, 6)
    expected = torch.einsum("oc,bchw->bohw", block.skip.weight[:, :, 0, 0], x)
    torch.testing.assert_close(block(x, embedding), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize("out_channels", [8, 12])
def test_res_block_is_the_formula(scale_shift, out_channels):
    block = randomize(ResBlock(8, out_channels, 6, scale_shift=scale_shift))
    x, embedding = normals(2, 8, 5, 5), normals(2, 6, seed=2)
    projected = (embedding @ block.project.weight.T + block.project.bias)[:, :, None, None]
    hidden = convolve(silu(normalize(x, block.norm1)), block.conv1)
    if scale_shift:
        scale, shift = projected[:, :out_channels], projected[:, out_channels:]
        hidden = normalize(hidden, block.norm2) * (1 + scale) + shift
    else:
        hidden = normalize(hidden + projected, block.norm2)
    skip = x
    if out_channels != 8:
        skip = torch.einsum("oc,bchw->bohw", block.skip.weight[:, :, 0, 0], x) + block.skip.bias[:, None, None]
    expected = skip + convolve(silu(hidden), block.conv2)
    torch.testing.assert_close(block(x, embedding), expected, rtol=0, atol=1e-12)


def test_dropout_only_touches_the_residual_branch_in_training():
    block = randomize(ResBlock(8, 8, 6, dropout=0.999999))
    block.conv2.bias.data.zero_()
    x, embedding = normals(2, 8, 4, 4), normals(2, 6)
    torch.manual_seed(0)
    assert torch.equal(block(x, embedding), x)  # all of the branch dropped
    assert not torch.allclose(block.eval()(x, embedding), x)


def test_groups_of_one_channel_hide_an_additive_embedding():
    x, one, two = normals(1, 32, 4, 4), normals(1, 6), normals(1, 6, seed=2)
    blind = randomize(ResBlock(32, 32, 6))
    torch.testing.assert_close(blind(x, one), blind(x, two), rtol=0, atol=1e-4)  # up to eps of the norm
    for seeing in (
        ResBlock(32, 32, 6, scale_shift=True),
        ResBlock(32, 32, 6, norm=lambda channels: group_norm(channels, max_groups=8)),
    ):
        randomize(seeing)
        assert (seeing(x, one) - seeing(x, two)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("heads", "kwargs"), [(1, {}), (4, {"num_heads": 4}), (2, {"num_heads": 8, "head_channels": 6})]
)
def test_attention_is_the_explicit_softmax(heads, kwargs):
    block = randomize(AttentionBlock(12, **kwargs))
    x = normals(3, 12, 4, 5)
    tokens = normalize(x, block.norm).reshape(3, 12, 20)
    weights, biases = block.qkv.weight.chunk(3), block.qkv.bias.chunk(3)
    q, k, v = (torch.einsum("oc,bcn->bon", w, tokens) + b[:, None] for w, b in zip(weights, biases, strict=True))
    width = 12 // heads
    attended = torch.zeros_like(tokens)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = torch.einsum("bcn,bcm->bnm", q[:, part], k[:, part]) / width**0.5
        attended[:, part] = torch.einsum("bnm,bcm->bcn", torch.softmax(scores, dim=2), v[:, part])
    out = torch.einsum("oc,bcn->bon", block.proj.weight, attended) + block.proj.bias[:, None]
    torch.testing.assert_close(block(x), x + out.reshape(x.shape), rtol=0, atol=1e-12)


@pytest.mark.parametrize("symmetric", [False, True])
def test_downsample_is_the_strided_sum(symmetric):
    layer = randomize(Downsample(3, symmetric=symmetric))
    x = normals(2, 3, 8, 8)
    expected = convolve(x, layer.conv, stride=2, before=int(symmetric), after=1)[..., :4, :4]
    assert layer(x).shape == (2, 3, 4, 4)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-13)


def test_downsample_same_padding_starts_at_the_first_pixel():
    layer = Downsample(1).double()
    torch.nn.init.zeros_(layer.conv.weight)
    layer.conv.weight.data[0, 0, 0, 0] = 1.0
    x = normals(1, 1, 6, 6)
    assert torch.equal(layer(x), x[:, :, ::2, ::2])


def test_upsample_repeats_pixels_and_convolves():
    layer = randomize(Upsample(3))
    x = normals(2, 3, 4, 4)
    index = torch.arange(8) // 2
    torch.testing.assert_close(layer(x), convolve(x[:, :, index][..., index], layer.conv), rtol=0, atol=1e-13)


def test_refusals():
    for call, message in (
        (lambda: ResBlock(8, 8, 4, dropout=1.0), "dropout must be in [0, 1), got 1.0"),
        (lambda: ResBlock(8, 8, 4, dropout=-0.1), "dropout must be in [0, 1), got -0.1"),
        (lambda: AttentionBlock(8, num_heads=3), "num_heads must divide 8 channels, got 3; use one of 1, 2, 4, 8"),
        (
            lambda: AttentionBlock(6, head_channels=4),
            "head_channels must divide 6 channels, got 4; use one of 1, 2, 3, 6",
        ),
        (lambda: AttentionBlock(6, num_heads=0), "num_heads must divide 6 channels, got 0; use one of 1, 2, 3, 6"),
        (lambda: group_norm(0), "channels and groups must be at least 1, got 0 channels and 32 groups"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == message


@pytest.mark.parametrize("channels", [16, 24])
def test_group_norm_from_channel_moments_is_group_norm(channels):
    norm = randomize(group_norm(channels, 1e-3))
    x = normals(3, channels, 4, 5) + 100.0 * torch.arange(channels, dtype=torch.float64)[:, None, None]
    x[1] *= 1e-3  # so little contrast that the epsilon shows
    compiled = torch.compile(norm, backend="eager", dynamic=False)
    u = normals(3, channels, 4, 5, seed=3)
    results = []
    for normed in (normalize, lambda x, norm: compiled(x)):
        y = x.clone().requires_grad_()
        norm.zero_grad()
        out = normed(y, norm)
        (out * u).sum().backward()
        results.append([out.detach(), y.grad, norm.weight.grad.clone(), norm.bias.grad.clone()])
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


def test_group_norm_from_channel_moments_is_float32_for_bfloat16():
    norm = randomize(group_norm(16)).float()
    x = (100 + normals(2, 16, 4, 4)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = torch.compile(norm, backend="eager", dynamic=False)(x)
    assert out.dtype == torch.bfloat16
    assert (out.double() - normalize(x.double(), norm.double())).abs().max() < 0.01


@pytest.mark.parametrize("heads", [1, 4])
def test_compiled_attention_in_bfloat16_is_attention(heads):
    block = randomize(AttentionBlock(16, num_heads=heads)).float()
    x = normals(2, 16, 5, 4).float()
    truth = block.double()(x.double())
    block.float()
    compiled = torch.compile(block, backend="eager", dynamic=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, fused = compiled(x), block(x)
    assert not torch.equal(ours, fused)
    error, expected = (ours - truth).norm() / truth.norm(), (fused - truth).norm() / truth.norm()
    assert error < max(2 * expected, 0.01)
