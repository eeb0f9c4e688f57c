"""The one place that broadcasts, and what it says to a wrong shape."""

import pytest
import torch

from sde_lib import check_per_sample, expand_like


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2), (4, 1, 5, 5), (0, 3)])
def test_it_multiplies_each_sample_by_its_own_number(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    value = torch.arange(1.0, shape[0] + 1)
    expected = [value[k] * x[k] for k in range(shape[0])]
    product = expand_like(value, x) * x
    assert product.shape == x.shape
    assert all(torch.equal(product[k], expected[k]) for k in range(shape[0]))


def test_the_cast_happens_at_the_multiply():
    value = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert torch.equal(expand_like(value, torch.zeros(2, 3, dtype=dtype)).flatten(), value.to(dtype))
    assert expand_like(value, torch.zeros(2, 3, dtype=torch.uint8)).dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((16, 1), "t must have shape [16], got [16, 1]; pass t.flatten()"),
        ((4, 4), "t must have shape [16], got [4, 4]; pass t.flatten()"),
        ((), "t must have shape [16], got []; pass t.flatten().expand(16)"),
        ((1,), "t must have shape [16], got [1]; pass t.flatten().expand(16)"),
        ((15,), "t must have shape [16], got [15]; pass one value per sample"),
    ],
)
def test_a_wrong_shape_is_told_what_to_pass(shape, message):
    with pytest.raises(ValueError) as error:
        expand_like(torch.zeros(shape), torch.zeros(16, 3))
    assert str(error.value) == message


def test_the_message_names_the_value():
    with pytest.raises(ValueError, match=r"sigma must have shape \[2\], got \[3\]"):
        check_per_sample("sigma", torch.zeros(3), 2)
    with pytest.raises(ValueError, match=r"pass sigma\.flatten"):
        expand_like(torch.zeros(2, 1), torch.zeros(2, 3), name="sigma")
