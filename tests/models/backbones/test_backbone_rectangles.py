"""Networks of images that are not square: what transposition, and whole networks as formulas, say of them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.backbones import ADM, EncoderClassifier, NCSNpp, UNet, Upsample, level_resolutions

SMALL = {"channels": 8, "channel_mult": (1, 2, 2), "num_res_blocks": 1, "attention_resolutions": (4,)}
DDPM = {"block": "ddpm", "rescale": False, "min_group_channels": 1}
NETWORKS = [
    pytest.param(UNet, {"norm_groups": 4}, id="unet"),
    pytest.param(
        UNet, {"norm_groups": 4, "symmetric_downsample": True, "input_frequencies": (1, 2)}, id="unet options"
    ),
    pytest.param(ADM, {"head_channels": 4, "norm_groups": 4}, id="adm"),
    pytest.param(ADM, {"head_channels": 8, "norm_groups": 4, "resampling": "convolution"}, id="adm convolutions"),
    pytest.param(NCSNpp, {}, id="ncsnpp"),
    pytest.param(
        NCSNpp, {"input_pyramid": "skip", "output_pyramid": "skip", "embedding": "fourier"}, id="ncsnpp skips"
    ),
    pytest.param(NCSNpp, {**DDPM, "fir_kernel": (1, 3, 3, 1), "input_pyramid": "none"}, id="ncsnpp ddpm fir"),
    pytest.param(NCSNpp, {**DDPM, "fir_kernel": None, "input_pyramid": "none"}, id="ncsnpp ddpm"),
    pytest.param(EncoderClassifier, {"num_classes": 5, "head_channels": 4}, id="classifier"),
]


def build(network, size, **options):
    torch.manual_seed(0)
    built = network(image_size=size, **(SMALL | options))
    for name, parameter in built.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.2)
    return built.double().eval()


def transposed(state, height, width):
    """Weights that do to the transpose what these do to an image."""
    state = {name: value.transpose(2, 3) if value.ndim == 4 else value for name, value in state.items()}
    if "pool.position" in state:
        mean, pixels = state["pool.position"].split([1, height * width])
        state["pool.position"] = torch.cat((mean, pixels.unflatten(0, (height, width)).transpose(0, 1).flatten(0, 1)))
    return state


@pytest.mark.parametrize(("network", "options"), NETWORKS)
def test_the_transposed_network_gives_the_transposed_output_and_gradients(network, options):
    lying, standing = build(network, (16, 24), **options), build(network, (24, 16), **options)
    standing.load_state_dict(transposed(lying.state_dict(), 4, 6))
    if network is not EncoderClassifier:
        lying.gradient_checkpointing = True  # of one of them: it changes nothing
    x, c_noise = torch.randn(2, 3, 16, 24, dtype=torch.float64), torch.tensor([3.0, 400.0])
    out, other = lying(x, c_noise), standing(x.mT, c_noise)
    if network is not EncoderClassifier:
        assert out.shape == x.shape
        other = other.mT
    assert out.abs().max() > 1e-3
    torch.testing.assert_close(out, other, rtol=1e-9, atol=1e-9)
    gradients = []
    for built, result in ((lying, out), (standing, other)):
        (result * torch.linspace(-1, 1, result.numel(), dtype=torch.float64).view_as(result)).sum().backward()
        gradients.append({name: parameter.grad for name, parameter in built.named_parameters()})
    expected = transposed(gradients[0], 4, 6)
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("network", "options"),
    [
        pytest.param(*one.values, id=one.id, marks=pytest.mark.slow if k % 2 else ())
        for k, one in enumerate(NETWORKS[:-1])
    ],
)
def test_a_size_changes_no_weight_and_a_pair_of_equal_sides_is_one_number(network, options):
    square, pair, wide = (build(network, size, **options) for size in (16, (16, 16), (16, 24)))
    assert square.image_size == pair.image_size == 16 and wide.image_size == (16, 24)
    for other in (pair, wide):
        assert list(other.state_dict()) == list(square.state_dict())
        assert all(torch.equal(value, square.state_dict()[name]) for name, value in other.state_dict().items())
    x, c_noise = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([3.0, 400.0])
    assert torch.equal(square(x, c_noise), pair(x, c_noise))
    for wrong in (x, torch.randn(2, 3, 24, 16, dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"x must have shape \[B, 3, 16, 24\], got"):
            wide(wrong, c_noise)


def test_pixels_far_from_the_borders_do_not_see_them():
    """Without attention and norms over the image, pixels far from all borders are those of a square."""
    torch.manual_seed(0)
    settings = {"channels": 4, "channel_mult": (1, 1), "num_res_blocks": 1, "attention_resolutions": ()}
    square, wide = (UNet(image_size=size, **settings, norm_groups=1).double().eval() for size in (72, (72, 100)))
    for name, parameter in square.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.3)
    wide.load_state_dict(square.state_dict())
    for one in (square, wide):
        one.middle.attention = nn.Identity()
        for module in list(one.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.GroupNorm):
                    setattr(module, name, nn.Identity())
    x, c_noise = torch.randn(1, 3, 72, 100, dtype=torch.float64), torch.tensor([40.0])
    cut = x[..., 12:84]
    torch.testing.assert_close(wide(x, c_noise)[..., 46:50], square(cut, c_noise)[..., 34:38], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("height", "width"), [(3, 5), (5, 2)])
def test_doubling_on_the_cpu_is_repeated_pixels_and_a_convolution(height, width):
    up = Upsample(4).double()
    nn.init.normal_(up.conv.weight)
    x = torch.randn(2, 4, height, width, dtype=torch.float64)
    expected = up.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    torch.testing.assert_close(up(x), expected, rtol=1e-12, atol=1e-12)


def test_a_level_is_named_by_its_shorter_side():
    assert level_resolutions((32, 48), 3) == level_resolutions((48, 32), 3) == level_resolutions(32, 3) == [32, 16, 8]
    built = UNet(image_size=(48, 32), channels=8, channel_mult=(1, 1, 1), num_res_blocks=1, norm_groups=4)
    assert [len(level.attention) for level in built.down] == [0, 1, 0]


@pytest.mark.parametrize("network", [UNet, ADM, NCSNpp, EncoderClassifier])
@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((16, 18), "image_size 16x18 cannot be halved 2 times; use channel_mult with 2 levels or pad to 16x20"),
        ((17, 16), "image_size 17x16 cannot be halved 2 times; use channel_mult with 1 level or pad to 20x16"),
        ((16,), r"image_size must be one number or \(height, width\), got \(16,\)"),
        ((16, 1.5), r"image_size must be one number or \(height, width\), got \(16, 1.5\)"),
        ((16, 0), r"image_size must be at least 1, got \(16, 0\); raise it"),
        ((24, 40), None),
    ],
)
def test_sizes_that_cannot_be_are_refused(network, size, message):
    if message is None:
        with pytest.raises(ValueError, match="attention_resolutions must be among 24, 12, 6, got 4"):
            build(network, size)
        return
    with pytest.raises(ValueError, match=message):
        build(network, size)
