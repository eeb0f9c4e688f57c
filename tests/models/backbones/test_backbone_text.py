"""Networks that are told a text: cross-attention to its tokens, and a pooled vector."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import Condition, EpsParameterization, NetworkScoreModel
from models.backbones import ADM, Backbone, DiT, UNet
from models.backbones.blocks.cross_attention import Attention, CrossAttentionBlock, read_text
from sde_lib import VP

SMALL: dict[str, Any] = {
    "image_size": 8, "in_channels": 1, "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1,
    "attention_resolutions": (4,),
}  # fmt: skip


def dit(**options: Any) -> DiT:
    """A transformer by the options of all of them."""
    of_levels = ("channel_mult", "num_res_blocks", "attention_resolutions")
    return DiT(**{key: value for key, value in options.items() if key not in of_levels}, depth=2, num_heads=2)


ADDED = {"unet": UNet, "adm": ADM, "transformers": partial(ADM, transformer_depth=2), "dit": dit}
# words that join the pixels' sequence change the answer at once
NETWORKS = ADDED | {"in context": partial(dit, text_by="in_context")}
TOLD: dict[str, Any] = {"cond_tokens": 6, "cond_pooled": 5, "null_condition": True}


def drawn(network: nn.Module, std: float = 0.2) -> Any:
    """The network with all weights drawn at random."""
    generator = torch.Generator().manual_seed(0)
    for weights in network.parameters():
        nn.init.normal_(weights, std=std, generator=generator)
    return network.eval()


def told(length: int = 7, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Texts of 1, 3, all and no tokens, with NaN where there is none."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(length) < torch.tensor([1, 3, length, 0])[:, None]
    tokens = torch.randn(4, length, 6, generator=generator, dtype=dtype)
    return {
        "tokens": tokens.masked_fill(~mask[..., None], math.nan),
        "mask": mask,
        "pooled": torch.randn(4, 5, generator=generator, dtype=dtype),
    }


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2), dtype=dtype)
    return x, torch.tensor([3.0, 100, 400, 900])


def test_cross_attention_is_its_formula():
    block = drawn(CrossAttentionBlock(12, 6, num_heads=3).double(), std=0.7)
    text = told(dtype=torch.float64)
    x = torch.randn(4, 12, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    out = block(x, read_text(x, text["tokens"], text["mask"], features=6, null_condition=True))
    tokens, mask = block.norm_tokens(text["tokens"]), text["mask"]
    q = (block.norm(x).flatten(2).transpose(1, 2) @ block.attend.q.weight.T).view(4, 6, 3, 4)
    to_k, to_v = block.attend.kv.weight.view(2, 12, 6)
    for b, count in enumerate(mask.sum(1).tolist()):
        if count == 0:
            assert torch.equal(out[b], x[b])
            continue
        # the tokens that there are, alone
        k, v = ((tokens[b, :count] @ to.T).view(count, 3, 4) for to in (to_k, to_v))
        weights = (torch.einsum("nhd,lhd->hnl", q[b], k) / 4**0.5).softmax(-1)
        found = torch.einsum("hnl,lhd->nhd", weights, v).reshape(6, 12) @ block.attend.proj.weight.T
        expected = x[b] + (found + block.attend.proj.bias).T.view(12, 2, 3)
        torch.testing.assert_close(out[b], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ADDED)
def test_a_trained_network_that_is_told_a_text_keeps_its_outputs_to_the_bit(name: str):
    torch.manual_seed(0)
    new = ADDED[name](**SMALL, cond_values=1)
    torch.manual_seed(0)
    wider = ADDED[name](**SMALL, cond_values=1, **TOLD)
    # the text moves no other weight of a new network
    assert all(torch.equal(weights, wider.state_dict()[key]) for key, weights in new.state_dict().items())
    plain = drawn(new)
    missing, unexpected = wider.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all("cross_attention." in key or "pooled" in key for key in missing)
    x, c_noise = inputs()
    values, given = torch.ones(4, 1), told()
    given["pooled"][1] = torch.nan
    assert torch.equal(wider.eval()(x, c_noise, values=values, **given), plain(x, c_noise, values=values))


@pytest.mark.parametrize("name", NETWORKS)
def test_text_is_heard_by_its_own_sample_alone(name: str):
    network = drawn(NETWORKS[name](**SMALL, **TOLD))
    x, c_noise = inputs()
    base = network(x, c_noise, **told())
    assert torch.isfinite(base).all()
    for field, where in (("tokens", (1, 2, 0)), ("pooled", (1,)), ("mask", (1, 2))):
        changed = told()
        changed[field][where] = False if field == "mask" else changed[field][where] + 0.5
        moved = (network(x, c_noise, **changed) - base).abs().flatten(1).amax(1)
        assert moved[1] > 1e-4 and moved[[0, 2, 3]].max() == 0, field


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_and_order_of_tokens_move_nothing(name: str):
    network = drawn(NETWORKS[name](**SMALL, **TOLD))
    x, c_noise = inputs()
    base = network(x, c_noise, **told())
    short, longer = told(), told()
    for fill in (0.0, 1e4, torch.inf, torch.nan):
        more = torch.full((4, 5, 6), fill)
        longer["tokens"] = torch.cat([short["tokens"], more], 1)
        longer["mask"] = torch.cat([short["mask"], torch.zeros(4, 5, dtype=torch.bool)], 1)
        torch.testing.assert_close(network(x, c_noise, **longer), base, rtol=0, atol=1e-6)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    shuffled = short | {key: short[key][:, order] for key in ("tokens", "mask")}
    torch.testing.assert_close(network(x, c_noise, **shuffled), base, rtol=0, atol=1e-6)
    # without a mask zeros would be tokens too
    seen = network(x, c_noise, tokens=longer["tokens"].nan_to_num(0.0), pooled=longer["pooled"])
    assert ((seen - base).abs().flatten(1).amax(1) > 1e-3).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_text_is_no_cross_attention_also_in_its_gradient(dtype: torch.dtype):
    network = drawn(ADM(**SMALL, **TOLD))
    x, c_noise = inputs()
    without = Condition(**told()).without()
    rest = {"mask": without.mask, "pooled": without.pooled}
    tokens = torch.full((4, 7, 6), torch.nan).requires_grad_()
    results = []
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        for blind in (False, True):
            if blind:
                for level in network.stages:
                    level.cross_attention = nn.ModuleList() if level is not network.middle else None
            x = x.detach().requires_grad_()
            network.zero_grad()
            out = network(x, c_noise, tokens=tokens, **rest)
            out.square().sum().backward()
            gradients = {name: weights.grad for name, weights in network.named_parameters()}
            results.append((out, x.grad, gradients))
    (out, of_x, gradients), (blind, blind_of_x, blind_gradients) = results
    assert torch.equal(out, blind) and torch.equal(of_x, blind_of_x)
    assert float(of_x.abs().max()) > 0 and torch.equal(tokens.grad, torch.zeros(4, 7, 6))  # pyright: ignore
    for name, gradient in gradients.items():
        expected = torch.zeros_like(gradient) if "cross_attention" in name else blind_gradients[name]
        assert torch.equal(gradient, expected), name


def test_under_autocast_text_is_heard_as_in_float32():
    network = drawn(UNet(**SMALL, **TOLD))
    x, c_noise = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = network(x, c_noise, **told())
    exact, without = network(x, c_noise, **told()), network(x, c_noise, **Condition(**told()).without().given)
    assert (rounded - exact).square().mean() < 0.01 * (exact - without)[:3].square().mean()


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_reaches_every_new_weight_after_a_step(name: str):
    network = NETWORKS[name](**SMALL, **TOLD)
    network.load_state_dict(drawn(NETWORKS[name](**SMALL)).state_dict(), strict=False)
    of_text = ("cross_attention", "pooled", "tokens_in")
    new = {key: weights for key, weights in network.named_parameters() if any(part in key for part in of_text)}
    # down, middle, up: q, kv, proj with its bias, and two norms of two each; a layer with its bias, and the null
    assert name not in ("unet", "adm") or len(new) == 4 * 8 + 3
    x, c_noise = inputs()
    given = told()
    given["pooled"][1] = torch.nan
    optimizer = torch.optim.SGD(new.values(), lr=0.1)
    # what is behind two layers that start at zero waits for both
    for _ in range(3 if name == "transformers" else 2):
        optimizer.zero_grad()
        (network(x, c_noise, **given) - x).square().mean().backward()
        optimizer.step()
    assert all(float(weights.grad.abs().max()) > 0 for weights in new.values())  # pyright: ignore


def test_cross_attention_is_where_it_is_asked_for():
    def where(**options: Any) -> list[int]:
        network = UNet(**SMALL | {"num_res_blocks": 2}, cond_tokens=6, **options)
        counts = [len(level.cross_attention) for level in (*network.down, *network.up)]  # pyright: ignore
        assert network.middle.cross_attention is not None
        return counts

    assert where() == [0, 2, 0, 3]
    assert where(cross_attention_resolutions=()) == [0, 0, 0, 0]
    assert where(cross_attention_resolutions=(8,)) == [2, 0, 3, 0]
    up = ADM(**SMALL, up_attention_resolutions=(8,), cond_tokens=6)
    assert [len(level.cross_attention) for level in (*up.down, *up.up)] == [0, 1, 2, 0]  # pyright: ignore
    with pytest.raises(ValueError, match=r"^cross_attention_resolutions must be among 8, 4, got 16; pass \(\) for"):
        where(cross_attention_resolutions=(16,))


def test_heads_are_those_of_self_attention():
    def heads(**options: Any) -> list[int]:
        network = ADM(**SMALL | {"attention_resolutions": (8, 4), "channels": 24}, cond_tokens=6, **options)
        return [part.num_heads for part in network.modules() if isinstance(part, Attention)]

    assert heads(num_heads=4) == [4, 4, 4, 4, 4, 4, 4]
    assert heads(head_channels=12) == [2, 4, 4, 2, 2, 4, 4]
    # too narrow for a head of 32: one head, for the text is to be heard
    assert heads(head_channels=32, floor_heads=True) == [1, 1, 1, 1, 1, 1, 1]


def test_gradient_checkpointing_changes_no_gradient():
    network = drawn(ADM(**SMALL, **TOLD)).train()
    x, c_noise = inputs()
    results = []
    for on in (False, True):
        network.gradient_checkpointing = on
        network.zero_grad()
        network(x, c_noise, **told()).square().sum().backward()
        results.append([weights.grad.clone() for weights in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_forward_and_second_derivatives_with_the_unfused_attention():
    network = drawn(UNet(**SMALL, **TOLD).double()).requires_grad_(False)
    x, c_noise = inputs(torch.float64)
    text = told(dtype=torch.float64)
    direction = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def energy(x: Tensor) -> Tensor:
        return network(x, c_noise, **text).square().sum()

    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(energy)(x)

    with sdpa_kernel(SDPBackend.MATH):
        _, forward = torch.func.jvp(energy, (x,), (direction,))  # pyright: ignore
        _, hessian = torch.func.vjp(gradient, x)  # pyright: ignore
        (product,) = hessian(direction)
    differences = (gradient(x + 1e-5 * direction) - gradient(x - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close(forward, (gradient(x) * direction).sum(), rtol=1e-9, atol=0)
    torch.testing.assert_close(product, differences, rtol=0, atol=1e-6 * float(product.abs().max()))


def test_a_score_model_passes_a_text_on_and_its_null():
    network = drawn(UNet(**SMALL, **TOLD))
    model, (x, c_noise) = NetworkScoreModel(network, VP(), EpsParameterization()), inputs()
    cond = Condition(**told())
    t = torch.full((4,), 0.5, dtype=torch.float64)
    c_noise = EpsParameterization().c_noise(VP(), t)
    for one in (cond, cond.without(), cond.without(torch.tensor([True, False, True, False]))):
        expected = network(x, c_noise, **one.given)
        assert torch.isfinite(expected).all()
        torch.testing.assert_close(model(x, t, cond=one).eps, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_compiles_into_one_graph():
    network = drawn(UNet(**SMALL, **TOLD))
    x, c_noise = inputs()
    compiled = torch.compile(network, fullgraph=True, backend="eager", dynamic=False)
    for text in (told(), Condition(**told()).without().given):
        torch.testing.assert_close(compiled(x, c_noise, **text), network(x, c_noise, **text))
    torch._dynamo.reset()


TOKENS, PRESENT = torch.zeros(4, 7, 6), torch.ones(4, 7, dtype=torch.bool)
NO_THIRD = (torch.arange(4) != 2)[:, None].expand(4, 7)


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, {"tokens": TOKENS}, "tokens must be None: the network takes no tokens; build it with cond_tokens=..."),
        ({}, {"pooled": torch.zeros(4, 5)}, "the network takes no pooled; build it with cond_pooled=..."),
        ({"cond_tokens": 6}, {}, "tokens must have shape [4, L, 6], got None; pass Condition(tokens=...)"),
        ({"cond_tokens": 8}, {"tokens": TOKENS}, "tokens must have shape [4, L, 8], got [4, 7, 6]; pass Condition("),
        ({"cond_tokens": 6}, {"tokens": torch.zeros(4, 0, 6)}, "tokens must have shape [4, L, 6], got [4, 0, 6]"),
        (
            {"cond_tokens": 6},
            {"tokens": TOKENS, "mask": PRESENT[:, 1:]},
            "bool [4, 7] as tokens are, got torch.bool [4, 6]",
        ),
        (
            {"cond_tokens": 6},
            {"tokens": TOKENS, "mask": PRESENT.long()},
            "bool [4, 7] as tokens are, got torch.int64 [4, 7]",
        ),
        (
            {"cond_tokens": 6},
            {"tokens": TOKENS, "mask": NO_THIRD},
            "must be True somewhere, got none in sample 2 (the net",
        ),
        (
            {"cond_tokens": 6},
            {"tokens": TOKENS * torch.nan, "mask": NO_THIRD},
            "tokens must have no NaN, got some in sample 0",
        ),
        (
            {"cond_pooled": 5},
            {"pooled": torch.full((4, 5), torch.nan)},
            "pooled must have no NaN, got some in sample 0",
        ),
        ({"cond_pooled": 5}, {"pooled": torch.zeros(4, 6)}, "pooled must have shape [4, 5], got [4, 6]; pass Cond"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(options: dict[str, Any], given: dict[str, Tensor], message: str):
    network: Backbone = UNet(**SMALL, **options)
    with pytest.raises(ValueError) as caught:
        network(*inputs(), **given)
    assert message in str(caught.value) and "\n" not in str(caught.value)
