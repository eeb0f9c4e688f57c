"""Fourier features of the input: formula, digits, dtypes and derivative, and their place in the U-Net."""

import math

import pytest
import torch

from models.backbones import InputFourierFeatures, UNet


def by_formula(x, frequencies):
    """x, sin(2^n pi x), cos(2^n pi x) in float64; the phase by math.fmod, exact for turns that float64 holds."""
    phases = [
        torch.tensor([2 * math.pi * math.fmod(float(v) * 2.0 ** (n - 1), 1.0) for v in x.flatten()]).view(x.shape)
        for n in frequencies
    ]
    return torch.cat([x, *(f(p) for p in phases for f in (torch.sin, torch.cos))], dim=1)


@pytest.fixture(autouse=True)
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def noisy(dtype=torch.float32, size=2):
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(size, 3, 4, 5, generator=generator)).to(dtype)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 4e-7), (torch.float64, 1e-15)])
@pytest.mark.parametrize("frequencies", [(7, 8), (0,), (3, 20, 1)])
def test_features_are_the_formula_to_the_last_digits(dtype: torch.dtype, digits: float, frequencies: tuple[int, ...]):
    x = noisy(dtype)
    layer = InputFourierFeatures(frequencies)
    out = layer(x)
    assert out.dtype == dtype
    assert out.shape == (2, layer.out_channels(3), 4, 5) == (2, 3 * (1 + 2 * len(frequencies)), 4, 5)
    assert (out.double() - by_formula(x.double(), frequencies)).abs().max() <= digits


def test_large_inputs_keep_their_digits():
    x = torch.tensor([[12345.625]], dtype=torch.float32)
    out = InputFourierFeatures((0, 1))(x)
    # 12345.625 pi is 12344 pi, a whole number of turns, and 1.625 pi
    expected = [12345.625] + [f(c * math.pi) for c in (1.625, 3.25) for f in (math.sin, math.cos)]
    torch.testing.assert_close(out.double(), torch.tensor([expected]), rtol=1e-7, atol=4e-7)


def test_half_precision_comes_no_nearer_than_the_input_itself():
    x = noisy(torch.float32)
    layer = InputFourierFeatures((7, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = layer(x)
    assert torch.equal(under_autocast, layer(x))
    assert layer(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("n", [0, 1, 7])
def test_derivative_is_that_of_the_formula(n: int):
    x = noisy(torch.float64).requires_grad_()
    rate = 2.0**n * math.pi
    layer = InputFourierFeatures((n,))
    sine, cosine = layer(x)[:, 3:6], layer(x)[:, 6:]
    (d_sine,) = torch.autograd.grad(sine.sum(), x)
    (d_cosine,) = torch.autograd.grad(cosine.sum(), x)
    torch.testing.assert_close(d_sine, rate * cosine, rtol=0, atol=1e-12)
    torch.testing.assert_close(d_cosine, -rate * sine, rtol=0, atol=1e-12)
    _, forward_mode = torch.func.jvp(layer, (x.detach(),), (torch.ones_like(x),))
    torch.testing.assert_close(forward_mode[:, 3:6], d_sine, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", [(7, 7), (-1,), (21,), (7.5,), ("7",), (True,)])
def test_wrong_frequencies_are_refused(wrong: tuple[object, ...]):
    with pytest.raises(ValueError, match=r"input frequencies must be .*, got .*; (try|drop)") as caught:
        InputFourierFeatures(wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def network(**kwargs):
    settings = {"image_size": 8, "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1}
    torch.manual_seed(0)
    return UNet(**settings | {"attention_resolutions": (), "in_channels": 3} | kwargs)


def test_a_network_without_them_is_the_network_it_was():
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(image_size=32, input_frequencies=()).parameters()) == 35_746_307
    plain, none = network().state_dict(), network(input_frequencies=()).state_dict()
    assert list(plain) == list(none)
    assert all(torch.equal(plain[name], none[name]) for name in plain)


def test_only_the_first_convolution_grows():
    plain, wide = network().state_dict(), network(input_frequencies=(7, 8)).state_dict()
    assert list(plain) == list(wide)
    assert {name for name in plain if plain[name].shape != wide[name].shape} == {"conv_in.weight"}
    assert wide["conv_in.weight"].shape == (8, 15, 3, 3)


def test_the_first_convolution_sees_the_features():
    net = network(input_frequencies=(7, 8)).float()
    x = noisy(torch.float32)[..., :4].repeat(1, 1, 2, 2)
    seen = []
    net.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    c_noise = torch.zeros(2)
    net(x, c_noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(x.contiguous(memory_format=torch.channels_last), c_noise)
    assert (seen[0].double() - by_formula(x.double(), (7, 8))).abs().max() <= 4e-7
    assert seen[1].dtype == torch.float32
    assert torch.equal(seen[1], seen[0])
    assert seen[1].is_contiguous(memory_format=torch.channels_last)


def test_neighbouring_grey_levels_start_far_apart():
    """0 and 1/128 of 256 levels differ by half a period at n = 7; a plain network barely tells them apart."""
    net, plain = network(input_frequencies=(7,)).conv_in, network().conv_in
    low, high = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 1 / 128)
    features = InputFourierFeatures((7,))
    apart = (net(features(low)) - net(features(high))).abs().max()
    assert apart > 20 * (plain(low) - plain(high)).abs().max()
