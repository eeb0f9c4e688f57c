"""The U-Net's promises: its size, its zero start, its classes, its numerical types, its refusals."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.backbones import UNet


def small(*, seed=0, **kwargs):
    """An 8x8 network with every parameter drawn at random, so that no branch is silent."""
    settings = {"image_size": 8, "channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1}
    settings |= {"attention_resolutions": (4,), "num_heads": 2} | kwargs
    net = UNet(**settings)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in net.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1.0
    return net.eval()


def batch(size=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 3, 8, 8, generator=generator, dtype=torch.float64)
    c_noise = torch.tensor([0.0, 12.5, 500.0, 999.0][:size], dtype=torch.float64)
    return x.to(dtype), c_noise


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_cifar10_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        assert count(UNet(image_size=32)) == 35_746_307


def test_new_network_returns_zeros_with_zero_biases():
    torch.manual_seed(0)
    net = UNet(image_size=8, channels=16, channel_mult=(1, 2), attention_resolutions=(4,))
    x, c_noise = batch()
    assert torch.equal(net(x, c_noise), torch.zeros_like(x))
    assert all(not p.any() for n, p in net.named_parameters() if n.endswith("bias"))
    zero = {n for n, p in net.named_parameters() if n.endswith("weight") and not p.any()}
    assert zero == {
        n for n, _ in net.named_parameters() if n.endswith(("conv2.weight", "proj.weight", "conv_out.weight"))
    }


def test_attention_sits_after_every_block_of_its_resolution():
    with torch.device("meta"):
        net = UNet(image_size=32, channel_mult=(1, 2, 2), attention_resolutions=(16, 8))
    assert [len(level.attention) for level in net.down] == [0, 2, 2]
    assert [len(level.attention) for level in net.up] == [0, 3, 3]
    assert [len(level.blocks) for level in net.up] == [3, 3, 3]


@pytest.mark.parametrize(
    "kwargs", [{}, {"scale_shift_norm": True, "learned_variance": True, "num_classes": 3, "null_condition": True}]
)
def test_no_sample_depends_on_its_batch_mates(kwargs):
    net = small(**kwargs).double()
    x, c_noise = batch(dtype=torch.float64)
    cond = torch.tensor([0, 2, -1, 1]) if "num_classes" in kwargs else None
    together = net(x, c_noise, cond)
    for i in range(4):
        alone = net(x[i : i + 1], c_noise[i : i + 1], None if cond is None else cond[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)


def test_learned_variance_doubles_the_last_layer_only():
    plain, both = small(), small(learned_variance=True)
    state = both.state_dict()
    x, c_noise = batch()
    assert both(x, c_noise).shape == (4, 6, 8, 8)
    for half in (slice(0, 3), slice(3, 6)):
        last = {name: state[name][half] for name in ("conv_out.weight", "conv_out.bias")}
        plain.load_state_dict(state | last)
        torch.testing.assert_close(both(x, c_noise)[:, half], plain(x, c_noise), rtol=1e-5, atol=1e-5)


def test_classes_shift_the_embedding_and_minus_one_is_no_class():
    net, plain = small(num_classes=3, null_condition=True).double(), small().double()
    state = net.state_dict()
    table = state.pop("embed.class_table.weight")
    plain.load_state_dict(state)
    x, c_noise = batch(dtype=torch.float64)
    assert torch.equal(net(x, c_noise, torch.full((4,), -1)), plain(x, c_noise))
    plain.load_state_dict(state | {"embed.linear2.bias": state["embed.linear2.bias"] + table[2]})
    torch.testing.assert_close(net(x, c_noise, torch.full((4,), 2)), plain(x, c_noise), rtol=0, atol=1e-12)
    assert (net(x, c_noise, torch.full((4,), 2)) - net(x, c_noise, torch.full((4,), 1))).abs().max() > 1e-3


def test_double_network_is_float64_throughout():
    net = small(num_classes=3, null_condition=True).double()
    seen = []
    for module in net.modules():
        module.register_forward_hook(lambda module, inputs, output: seen.extend([*inputs, output]))
    x, c_noise = batch(dtype=torch.float64)
    net(x, c_noise, torch.tensor([0, 1, 2, -1]))
    floating = [value.dtype for value in seen if isinstance(value, torch.Tensor) and value.is_floating_point()]
    assert len(floating) > 50
    assert set(floating) == {torch.float64}


def test_float32_network_stays_close_to_float64():
    net = small()
    x, c_noise = batch()
    single, double = net(x, c_noise), net.double()(x.double(), c_noise)
    assert single.dtype == torch.float32
    assert (single - double).abs().max() < 5e-6 * double.abs().max()


def test_autocast_returns_the_type_of_its_input():
    net = small(num_classes=3, null_condition=True)
    x, c_noise = batch()
    cond = torch.tensor([0, 1, 2, -1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = net(x, c_noise, cond)
    full = net(x, c_noise, cond)
    assert half.dtype == torch.float32
    assert 0 < (half - full).abs().max() < 0.05 * full.abs().max()


def test_channels_last_gives_the_same_numbers_in_the_same_layout():
    net = small().double()
    x, c_noise = batch(dtype=torch.float64)
    expected = net(x, c_noise)
    net = net.to(memory_format=torch.channels_last)
    layouts = []
    for name, module in net.named_modules():
        if name.endswith(("block1", "attention", "resample")):
            module.register_forward_hook(
                lambda m, i, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    out = net(x.contiguous(memory_format=torch.channels_last), c_noise)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert layouts
    assert all(layouts)


def test_stages_are_the_levels_in_the_order_of_their_calls():
    net, called = small(channel_mult=(1, 1, 2)), []
    for stage in net.stages:
        stage.register_forward_hook(lambda module, inputs, output: called.append(module))
    net(*batch())
    assert called == net.stages == [*net.down, net.middle, net.up[2], net.up[1], net.up[0]]
    inside = sum(count(stage) for stage in net.stages)
    assert inside + count(net.embed) + count(net.conv_in) + count(net.norm_out) + count(net.conv_out) == count(net)


def saved_bytes(net, x, c_noise, cond):
    """Memory of the activations that a forward pass keeps for the backward pass, and its output."""
    kept, parameters = {}, {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = net(x, c_noise, cond)
    return sum(kept.values()), out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradient_checkpointing_keeps_less_and_changes_no_bit(dtype):
    net = small(num_classes=3, null_condition=True, dropout=0.3, num_res_blocks=2).train()
    assert not net.gradient_checkpointing
    x, c_noise = batch()
    cond = torch.tensor([0, 1, 2, -1])
    memory, results = [], []
    for on in (False, True):
        net.gradient_checkpointing = on
        net.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            kept, out = saved_bytes(net, x, c_noise, cond)
        out.square().sum().backward()
        memory.append(kept)
        results.append([out, torch.get_rng_state(), *(parameter.grad.clone() for parameter in net.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert memory[1] < 0.35 * memory[0]
    assert net.gradient_checkpointing and all(stage.gradient_checkpointing for stage in net.stages)


@pytest.mark.slow
def test_compiles_into_one_graph():
    net = small(num_classes=3, null_condition=True)
    x, c_noise = batch()
    cond = torch.tensor([0, 1, 2, -1])
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, c_noise, cond), net(x, c_noise, cond))
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_per_sample_gradients_by_vmap_are_those_of_autograd():
    net = small(num_classes=3, null_condition=True).double().requires_grad_(False)
    x, c_noise = batch(dtype=torch.float64)
    cond = torch.tensor([0, 1, 2, -1])

    def energy(x, c_noise, cond):
        return net(x[None], c_noise[None], cond[None]).square().sum()

    vmapped = torch.func.vmap(torch.func.grad(energy))(x, c_noise, cond)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(net(x, c_noise, cond).square().sum(), x)
    torch.testing.assert_close(vmapped, expected, rtol=0, atol=1e-11)


def test_forward_and_second_derivatives_with_the_unfused_attention():
    net = small().double().requires_grad_(False)
    x, c_noise = batch(2, torch.float64)
    u, v = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        _, forward = torch.func.jvp(lambda x: net(x, c_noise), (x,), (u,))
        _, pullback = torch.func.vjp(lambda x: net(x, c_noise), x)
        (backward,) = pullback(v)
        hessian = torch.autograd.functional.hvp(lambda x: net(x, c_noise).square().sum(), x, u)[1]
        step = 1e-5

        def gradient(x):
            return torch.func.grad(lambda x: net(x, c_noise).square().sum())(x)

        slope = (gradient(x + step * u) - gradient(x - step * u)) / (2 * step)
    torch.testing.assert_close((v * forward).sum(), (backward * u).sum(), rtol=1e-11, atol=0)
    torch.testing.assert_close(hessian, slope, rtol=0, atol=1e-6 * hessian.abs().max().item())


def test_every_parameter_gets_a_gradient():
    net = small(num_classes=3, null_condition=True, scale_shift_norm=True, learned_variance=True).double()
    x, c_noise = batch(dtype=torch.float64)
    net(x, c_noise, torch.tensor([0, 1, 2, -1])).square().sum().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"image_size": 28, "channel_mult": (1, 2, 2, 2)},
            "image_size 28 cannot be halved 3 times; use channel_mult with 3 levels or pad to 32",
        ),
        (
            {"image_size": 7, "attention_resolutions": ()},
            "image_size 7 cannot be halved 1 times; use channel_mult with 1 level or pad to 8",
        ),
        (
            {"image_size": 32, "channel_mult": (1, 1, 1), "attention_resolutions": (16, 14)},
            "attention_resolutions must be among 32, 16, 8, got 14; pass () for attention in the middle only",
        ),
        ({"num_heads": 3}, "num_heads must divide 32 channels, got 3; use one of 1, 2, 4, 8, 16, 32"),
        ({"head_channels": 64}, "head_channels must divide 32 channels, got 64; use one of 1, 2, 4, 8, 16, 32"),
        ({"dropout": 1.0}, "dropout must be in [0, 1), got 1.0"),
        ({"channels": 15, "channel_mult": (2, 2)}, "embedding dim must be even and at least 4, got 15; use 16"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1, got 0; raise it"),
        (
            {"channel_mult": ()},
            "channel_mult must give each level a whole number of channels, got () times 16; change one of them",
        ),
        ({"image_size": 0}, "image_size must be at least 1, got 0; raise it"),
    ],
)
def test_refusals_of_settings(kwargs, message):
    with pytest.raises(ValueError) as caught:
        small(**kwargs)
    assert str(caught.value) == message


def test_refusals_of_inputs():
    net, classes = small(), small(num_classes=3)
    x, c_noise = batch()
    cond = torch.tensor([0, 1, 2, -1])
    for call, message in (
        (lambda: net(x[..., :6], c_noise), "x must have shape [B, 3, 8, 8], got [4, 3, 8, 6]; "),
        (lambda: net(x[:, :1], c_noise), "x must have shape [B, 3, 8, 8], got [4, 1, 8, 8]; "),
        (lambda: net(x[0], c_noise), "x must have shape [B, 3, 8, 8], got [3, 8, 8]; "),
        (lambda: net(x.double(), c_noise), "x must be torch.float32 like the network, got torch.float64; "),
        (lambda: net(x, c_noise[:, None]), "c_noise must have shape [4], got [4, 1]; pass c_noise.flatten()"),
        (lambda: net(x, c_noise[:1]), "c_noise must have shape [4], got [1]; "),
        (lambda: net(x, c_noise, cond), "cond must be None: the network has no classes; "),
        (lambda: classes(x, c_noise), "cond must be int64 labels of shape [4], got None; "),
        (lambda: classes(x, c_noise, cond), "cond must be in 0 .. 2, got -1: this network never saw samples without a"),
        (lambda: classes(x, c_noise, cond + 1), "cond must be in 0 .. 2, got 0 .. 3; "),
        (lambda: classes(x, c_noise, cond - 1), "cond must be in 0 .. 2, got -2 .. 1; "),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)
