"""The multilayer perceptron against its formula, and its promises."""

import pytest
import torch

from models.backbones import MLP


def random_mlp(**kwargs):
    net = MLP(2, 16, 2, **kwargs)
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return net.double()


def batch():
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.tensor([0.0, 12.5, 500.0, 999.0], dtype=torch.float64), torch.tensor([0, 2, -1, 1])


@pytest.mark.parametrize("learned_variance", [False, True])
def test_mlp_is_the_formula(learned_variance):
    net = random_mlp(num_classes=3, null_condition=True, learned_variance=learned_variance, embedding_dim=10)
    x, c_noise, cond = batch()

    def silu(x):
        return x / (1 + torch.exp(-x))

    def apply(layer, x):
        return x @ layer.weight.T + layer.bias

    embedding = net.embed(c_noise, cond, 4)
    hidden = apply(net.linear_in, x)
    for layer in net.layers:
        inner = apply(layer.linear1, silu(hidden)) + apply(layer.project, embedding)
        hidden = hidden + apply(layer.linear2, silu(inner))
    expected = apply(net.linear_out, silu(hidden))
    assert expected.shape == (4, 4 if learned_variance else 2)
    torch.testing.assert_close(net(x, c_noise, cond), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("embedding", ["sin_first", "cos_first", "fourier"])
def test_every_parameter_matters_and_no_sample_depends_on_its_batch_mates(embedding):
    net = random_mlp(num_classes=3, null_condition=True, embedding=embedding)
    x, c_noise, cond = batch()
    out = net(x, c_noise, cond)
    for i in range(4):
        alone = net(x[i : i + 1], c_noise[i : i + 1], cond[i : i + 1])
        torch.testing.assert_close(out[i : i + 1], alone, rtol=0, atol=1e-12)
    out.square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_new_network_returns_zeros_in_the_type_of_its_input():
    x, c_noise, _ = batch()
    net = MLP(2, hidden=15)
    assert torch.equal(net(x.float(), c_noise), torch.zeros(4, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(x.float(), c_noise).dtype == torch.float32


def test_refusals():
    x, c_noise, cond = batch()
    net, classes = MLP(2).double(), MLP(2, num_classes=2).double()
    for call, message in (
        (lambda: MLP(0), "num_dims must be at least 1, got 0"),
        (lambda: MLP(2, num_layers=0), "num_layers must be at least 1, got 0"),
        (lambda: MLP(2, embedding_dim=7), "embedding dim must be even and at least 4, got 7; use 8"),
        (lambda: net(x[:, :1], c_noise), "x must have shape [B, 2], got [4, 1]; resize x or rebuild the network"),
        (lambda: net(x, c_noise[:, None]), "c_noise must have shape [4], got [4, 1]; pass c_noise.flatten()"),
        (lambda: net(x.float(), c_noise), "x must be torch.float64 like the network, got torch.float32; "),
        (lambda: net(x, c_noise, cond), "cond must be None: the network has no classes; "),
        (lambda: classes(x, c_noise), "cond must be int64 labels of shape [4], got None; "),
        (lambda: classes(x, c_noise, cond), "cond must be in 0 .. 1, got -1 .. 2; "),
        (lambda: classes(x, c_noise, cond.clamp(max=1)), "cond must be in 0 .. 1, got -1: this network never saw"),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value).startswith(message)
