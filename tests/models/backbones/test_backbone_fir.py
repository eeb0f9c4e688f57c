"""Resampling with FIR filters against SciPy's polyphase filtering and correlation, which share no code with it."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d, upfirdn

from models.backbones.blocks.fir import (
    ConvUpsample,
    FIRConvDownsample,
    FIRDownsample,
    FIRUpsample,
    fir_filter,
    make_conv_downsample,
)

KERNELS = [(1, 1), (1, 3, 3, 1), (1, 5, 10, 10, 5, 1)]


def along_both(image, function):
    return np.apply_along_axis(function, 1, np.apply_along_axis(function, 0, image))


def images(size=8):
    return torch.randn(2, 3, size, size, dtype=torch.float64)


def per_image(x, function):
    return np.stack([[function(channel) for channel in image] for image in x.numpy()])


@pytest.mark.parametrize("kernel", KERNELS)
def test_downsampling_is_scipys(kernel):
    taps, half = np.array(kernel) / sum(kernel), len(kernel) // 2
    x = images()
    expected = per_image(x, lambda image: along_both(image, lambda row: upfirdn(taps, row)[half::2][: len(row) // 2]))
    np.testing.assert_allclose(FIRDownsample(kernel)(x).numpy(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kernel", KERNELS)
def test_upsampling_is_scipys(kernel):
    taps, half = 2 * np.array(kernel) / sum(kernel), len(kernel) // 2

    def double(row):
        # SciPy leaves out the zero after the last number
        full = np.append(upfirdn(taps, row, up=2), 0.0)
        return full[half - 1 :][: 2 * len(row)]

    x = images()
    expected = per_image(x, lambda image: along_both(image, double))
    np.testing.assert_allclose(FIRUpsample(kernel)(x).numpy(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_convolution_of_stride_2_is_on_the_filtered_image_and_a_pixel_more(kernel):
    taps, half = np.array(kernel) / sum(kernel), len(kernel) // 2
    layer = FIRConvDownsample(3, 5, kernel).double()
    torch.nn.init.normal_(layer.conv.bias)
    x = images()

    def filtered(image):
        return along_both(image, lambda row: upfirdn(taps, row)[half - 1 :][: len(row) + 1])

    smooth = per_image(x, filtered)
    weight, bias = layer.conv.weight.detach().numpy(), layer.conv.bias.detach().numpy()
    expected = [
        [
            bias[out] + sum(correlate2d(image[c], weight[out, c], mode="valid") for c in range(3))[::2, ::2]
            for out in range(5)
        ]
        for image in smooth
    ]
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=0, atol=1e-13)


def test_plain_stride_2_pads_below_and_to_the_right():
    layer = make_conv_downsample(1, 1, None).double()
    x = images()[:1, :1]
    padded = np.pad(x[0, 0].numpy(), ((0, 1), (0, 1)))
    expected = correlate2d(padded, layer.conv.weight[0, 0].detach().numpy(), mode="valid")[::2, ::2]
    np.testing.assert_allclose(layer(x)[0, 0].detach().numpy(), expected, rtol=0, atol=1e-14)


def test_upsampling_with_a_convolution_filters_first():
    layer = ConvUpsample(3, (1, 3, 3, 1)).double()
    x = images()
    expected = torch.nn.functional.conv2d(FIRUpsample((1, 3, 3, 1))(x), layer.conv.weight, padding=1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_constant_stays_away_from_the_border(kernel):
    x, edge = torch.ones(1, 1, 16, 16, dtype=torch.float64), len(kernel) // 2
    for resampled in (FIRDownsample(kernel)(x), FIRUpsample(kernel)(x)):
        inside = resampled[..., edge:-edge, edge:-edge]
        torch.testing.assert_close(inside, torch.ones_like(inside))


def test_the_filter_of_song_et_al():
    one = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 8
    assert torch.equal(fir_filter((1, 3, 3, 1)), one[:, None] * one)


@pytest.mark.parametrize("kernel", [(1, 2, 1), (1, 2), (), (1, -1, -1, 1)])
def test_filters_that_cannot_be_used_are_refused(kernel):
    with pytest.raises(ValueError, match=r"^fir_kernel must be symmetric, of even length .*; try \(1, 3, 3, 1\)$"):
        FIRDownsample(kernel)


def test_no_filter_is_saved_and_all_follow_the_device_and_bfloat16():
    down = FIRDownsample((1, 3, 3, 1))
    assert not down.state_dict()
    x = torch.randn(1, 2, 8, 8).bfloat16()
    # 1/64, 3/64 and 9/64 are exact in bfloat16
    torch.testing.assert_close(down(x).float(), down(x.double()).float(), rtol=2**-8, atol=2**-8)
    assert down(x).dtype == torch.bfloat16
