"""The diffusion transformer: its start, its patches and positions, and the sizes that were published."""

import math
from typing import Any

import pytest
import torch
from test_backbone_unet import saved_bytes
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones import DiT
from models.backbones.blocks.dit_block import DiTBlock, SelfAttention
from models.backbones.blocks.patches import from_patches, grid_positions, rotations, sincos_positions, turned

SMALL: dict[str, Any] = {
    "image_size": (4, 8), "in_channels": 3, "channels": 16, "depth": 2, "num_heads": 2, "embedding_dim": 8,
}  # fmt: skip
PUBLISHED = {
    "S/2": (384, 12, 6, 32_963_360), "B/2": (768, 12, 12, 130_512_416), "L/2": (1024, 24, 16, 458_102_816),
    "XL/2": (1152, 28, 16, 675_129_632),
}  # fmt: skip
C_NOISE = torch.tensor([3.0, 400.0])


def drawn(network: Any, std: float = 0.3) -> Any:
    """The network in float64 with all weights drawn at random."""
    generator = torch.Generator().manual_seed(0)
    for weights in network.parameters():
        nn.init.normal_(weights, std=std, generator=generator)
    return network.double().eval()


def image(*shape: int) -> Tensor:
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_that_were_published(name: str):
    channels, depth, num_heads, expected = PUBLISHED[name]
    with torch.device("meta"):
        network = DiT(
            image_size=32, in_channels=4, channels=channels, depth=depth, num_heads=num_heads, num_classes=1000,
            null_condition=True, learned_variance=True,
        )  # fmt: skip
    assert network.positions is not None
    assert sum(weights.numel() for weights in network.parameters()) + network.positions.numel() == expected


def test_a_new_network_answers_zero_and_its_blocks_are_the_identity():
    network = DiT(**SMALL, num_classes=3)
    assert torch.equal(network(image(3, 4, 8).float(), C_NOISE, torch.tensor([0, 2])), torch.zeros(2, 3, 4, 8))
    sequence, embedding = torch.randn(2, 8, 16), torch.randn(2, 16)
    for block in network.stages:
        assert torch.equal(block(sequence, embedding), sequence)


def test_patches_are_a_bijection_of_the_image_row_by_row():
    x = image(3, 4, 6)
    # [row, column, channel] within a patch, whereas unfold orders [channel, row, column]
    unfolded = F.unfold(x, 2, stride=2).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2).transpose(1, 2)
    assert torch.equal(from_patches(unfolded, (4, 6), 2), x)
    assert torch.equal(from_patches(x.permute(0, 2, 3, 1).flatten(1, 2), (4, 6), 1), x)


@pytest.mark.parametrize("positions", ["sincos", "learned", "rotary"])
def test_patches_permuted_with_their_positions_give_the_permuted_answer(positions: str):
    network = drawn(DiT(**SMALL, positions=positions))  # pyright: ignore[reportArgumentType]
    order = torch.tensor([3, 0, 7, 5, 1, 6, 2, 4])

    def moved(x: Tensor) -> Tensor:
        patches = F.unfold(x, 2, stride=2)[:, :, order]
        return F.fold(patches, (4, 8), 2, stride=2)

    x = image(3, 4, 8)
    expected = moved(network(x, C_NOISE))
    alone = network(moved(x), C_NOISE)
    for name in ("positions", "rotation"):
        table = getattr(network, name)
        if table is not None:
            table.data = table[:, order] if name == "rotation" else table[order]
    torch.testing.assert_close(network(moved(x), C_NOISE), expected, rtol=0, atol=1e-12)
    # and without their positions they do not
    assert (alone - expected).abs().max() > 1e-3


def test_positions_are_sines_and_cosines_of_the_column_then_of_the_row():
    table = sincos_positions(3, 5, 16)
    for n in range(15):
        for half, place in ((0, n % 5), (8, n // 5)):
            for i in range(4):
                angle = place * 10000 ** (-i / 4)
                assert float(table[n, half + i]) == pytest.approx(math.sin(angle), abs=1e-6)
                assert float(table[n, half + 4 + i]) == pytest.approx(math.cos(angle), abs=1e-6)
    row, column = grid_positions(3, 5)
    assert row.tolist() == [n // 5 for n in range(15)] and column.tolist() == [n % 5 for n in range(15)]


def test_turned_queries_and_keys_know_the_distance_alone():
    rotation = rotations(4, 4, 8).double()
    q, k = (torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    all_q, all_k = (turned(one.expand(1, 1, 16, 8), rotation)[0, 0] for one in (q, k))
    products = (all_q @ all_k.T).view(4, 4, 4, 4)
    for rows in range(3):
        for columns in range(3):
            # from (0, 0) to (rows, columns), and one further down and right
            torch.testing.assert_close(products[0, 0, rows, columns], products[1, 1, rows + 1, columns + 1])
    assert float((products[0, 0, 1, 2] - products[0, 0, 2, 1]).abs()) > 1e-3
    torch.testing.assert_close(products[0, 0, 0, 0], q @ k)
    # words behind the places are left alone
    behind = torch.randn(1, 1, 20, 8, dtype=torch.float64)
    assert torch.equal(turned(behind, rotation)[:, :, 16:], behind[:, :, 16:])


def test_a_block_is_its_formula():
    block = drawn(DiTBlock(8, num_heads=2, mlp_ratio=2.0))
    x, e = image(5, 8), image(8)[:, :8]
    shift1, scale1, gate1, shift2, scale2, gate2 = (e @ block.modulate.weight.T + block.modulate.bias).chunk(6, 1)

    def norm(x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def attend(x: Tensor) -> Tensor:
        q, k, v = (x @ block.attention.qkv.weight.T + block.attention.qkv.bias).view(2, 5, 3, 2, 4).unbind(2)
        weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) / 2).softmax(-1)
        found = torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)
        return found @ block.attention.proj.weight.T + block.attention.proj.bias

    h = x + gate1[:, None] * attend(norm(x) * (1 + scale1[:, None]) + shift1[:, None])
    hidden = (norm(h) * (1 + scale2[:, None]) + shift2[:, None]) @ block.linear1.weight.T + block.linear1.bias
    cubic = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    expected = h + gate2[:, None] * (cubic @ block.linear2.weight.T + block.linear2.bias)
    torch.testing.assert_close(block(x, e), expected, rtol=0, atol=1e-12)


def test_normalized_queries_and_keys_do_not_see_the_scale_of_theirs():
    attention = drawn(SelfAttention(8, num_heads=2, qk_norm=True))
    x = image(5, 8)
    base = attention(x, None, None)
    attention.qkv.weight.data[:16] *= 7
    attention.qkv.bias.data[:16] *= 7
    torch.testing.assert_close(attention(x, None, None), base, rtol=0, atol=1e-6)


def test_no_class_is_a_row_of_its_own_that_is_trained():
    network = drawn(DiT(**SMALL, num_classes=3, null_condition=True))
    table = network.embed.class_table.weight
    assert len(table) == 4
    cond = torch.tensor([1, -1])
    base = network(image(3, 4, 8), C_NOISE, cond)
    base.square().sum().backward()
    assert [bool(row.abs().sum() > 0) for row in table.grad] == [False, True, False, True]
    table.data[3] += 1
    moved = (network(image(3, 4, 8), C_NOISE, cond) - base).abs().flatten(1).amax(1)
    assert moved[0] == 0 and moved[1] > 1e-3


@pytest.mark.parametrize("text_by", ["cross_attention", "in_context"])
def test_gradient_checkpointing_changes_no_gradient(text_by: Any):
    network = drawn(DiT(**SMALL, cond_tokens=6, text_by=text_by, qk_norm=True, positions="rotary")).train()
    tokens, results = image(5, 6), []
    for on in (False, True):
        network.gradient_checkpointing = on
        assert network.gradient_checkpointing == on
        network.zero_grad()
        network(image(3, 4, 8), C_NOISE, tokens=tokens).square().sum().backward()
        results.append([weights.grad.clone() for weights in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_gradient_checkpointing_keeps_less():
    network, memory = drawn(DiT(**SMALL | {"depth": 6})).train(), []
    for network.gradient_checkpointing in (False, True):
        memory.append(saved_bytes(network, image(3, 4, 8), C_NOISE, None)[0])
    assert memory[1] < 0.35 * memory[0]


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_compiles_into_one_graph(positions: Any):
    network = drawn(DiT(**SMALL, num_classes=3, null_condition=True, qk_norm=True, positions=positions))
    x, cond = image(3, 4, 8), torch.tensor([1, -1])
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, C_NOISE, cond), network(x, C_NOISE, cond))
    torch._dynamo.reset()


def test_the_norms_before_the_layers_have_an_epsilon_of_their_own():
    x, e = 1e-3 * image(5, 8), image(8)[:, :8]
    both = [drawn(DiTBlock(8, num_heads=2, mlp_norm_eps=eps)) for eps in (1e-6, 1e-5)]
    assert float((both[0](x, e) - both[1](x, e)).detach().abs().max()) > 1e-3
    # the layers silent, nothing of it is left
    for block in both:
        nn.init.zeros_(block.linear2.weight)
        nn.init.zeros_(block.linear2.bias)
    assert torch.equal(both[0](x, e), both[1](x, e))


@pytest.mark.parametrize("options", [{}, {"learned_variance": True}, {"outputs_per_channel": 5}])
def test_outputs_are_ordered_as_those_of_the_other_backbones(options: dict[str, Any]):
    network = drawn(DiT(**SMALL, **options))
    count = 3 * (options.get("outputs_per_channel", 1) + options.get("learned_variance", False))
    assert network(image(3, 4, 8), C_NOISE).shape == (2, count, 4, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 9}, "patch_size must divide images of 9x9, got 2; take another or pad them to 10x10"),
        ({"image_size": (8, 6), "patch_size": 4}, "patch_size must divide images of 8x6, got 4; take another or pad"),
        ({"num_heads": 3}, "num_heads must divide the 16 channels, got 3; change one"),
        ({"channels": 18}, "channels must be divisible by 4 for these positions, got 18; change channels or num_heads"),
        ({"channels": 12, "positions": "rotary"}, "the channels of a head must be divisible by 4 for these positions"),
        ({"positions": "none"}, "positions must be one of sincos, learned, rotary, got 'none'"),
        ({"text_by": "cross"}, "text_by must be one of cross_attention, in_context, got 'cross'"),
        ({"depth": 0}, "depth must be at least 1, got 0; raise it"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options: dict[str, Any], message: str):
    with pytest.raises(ValueError) as caught:
        DiT(**SMALL | options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_batch_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"x must have shape \[B, 3, 4, 8\], got \[2, 3, 8, 4\]"):
        DiT(**SMALL)(torch.zeros(2, 3, 8, 4), C_NOISE)
