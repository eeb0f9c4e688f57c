"""Networks that are told an image, the noise of that image, and values."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import Condition, EDMParameterization, EpsParameterization, NetworkScoreModel
from models.backbones import ADM, MLP, Backbone, DiT, NCSNpp, UNet
from sde_lib import SDE, VE, VP

SMALL: dict[str, Any] = {
    "image_size": 8, "in_channels": 1, "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1,
    "attention_resolutions": (4,),
}  # fmt: skip


def dit(**options: Any) -> DiT:
    """A transformer by the options of all of them."""
    of_levels = ("channel_mult", "num_res_blocks", "attention_resolutions")
    return DiT(**{key: value for key, value in options.items() if key not in of_levels}, depth=2, num_heads=2)


OF_IMAGES = {"unet": UNet, "adm": ADM, "ncsnpp": NCSNpp, "dit": dit}
TOLD: dict[str, Any] = {"num_classes": 3, "null_condition": True, "cond_channels": 2, "cond_values": 1}


def drawn(network: Backbone, std: float = 0.2) -> Backbone:
    """The network with all weights drawn at random."""
    generator = torch.Generator().manual_seed(0)
    for weights in network.parameters():
        nn.init.normal_(weights, std=std, generator=generator)
    return network.eval()


def told(size: int = 4) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "cond": torch.tensor([0, 1, 2, -1])[:size],
        "image": torch.randn(size, 2, 8, 8, generator=generator),
        "image_log_snr": torch.linspace(-3, 3, size),
        "values": torch.randn(size, 1, generator=generator),
    }


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([3.0, 100, 400, 900])


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_trained_network_that_is_made_conditional_keeps_its_outputs_to_the_bit(name: str):
    plain = drawn(OF_IMAGES[name](**SMALL))
    wider = OF_IMAGES[name](**SMALL, cond_channels=2, cond_values=1, null_condition=True).eval()
    missing, unexpected = wider.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(key.startswith("condition_input.") for key in missing)
    x, c_noise = inputs()
    more = {key: value for key, value in told().items() if key != "cond"}
    more["image"][1], more["values"][2] = torch.nan, torch.nan
    assert torch.equal(wider(x, c_noise, **more), plain(x, c_noise))


@pytest.mark.parametrize("name", OF_IMAGES)
def test_all_that_is_told_is_heard_by_its_own_sample_alone(name: str):
    network = drawn(OF_IMAGES[name](**SMALL, **TOLD))
    x, c_noise = inputs()
    base = network(x, c_noise, **told())
    for field in ("image", "image_log_snr", "values", "cond"):
        changed = told()
        changed[field][1] += 0.5 if changed[field].is_floating_point() else 1
        moved = (network(x, c_noise, **changed) - base).abs().flatten(1).amax(1)
        assert moved[1] > 1e-4 and moved[[0, 2, 3]].max() == 0, field


@pytest.mark.parametrize("name", OF_IMAGES)
def test_no_image_and_no_value_are_none_that_could_be_told(name: str):
    network = drawn(OF_IMAGES[name](**SMALL, **TOLD))
    x, c_noise = inputs()

    def answer(**changes: Any) -> Tensor:
        told_now = told()
        for field, value in changes.items():
            told_now[field][1] = value
        return network(x, c_noise, **told_now)[1]

    for field in ("image", "values"):
        none = answer(**{field: torch.nan})
        assert torch.isfinite(none).all()
        for value in (-1.0, 0.0, 1.0):
            assert (answer(**{field: value}) - none).abs().max() > 1e-3, (field, value)
    # and it is trained
    dropped = told()
    dropped["image"][1], dropped["values"][2] = torch.nan, torch.nan
    network(x, c_noise, **dropped).square().sum().backward()
    for weights in (network.condition_input.no_image, network.condition_input.no_values):  # pyright: ignore
        assert float(weights.grad.abs().max()) > 0  # pyright: ignore


def test_the_image_is_concatenated_and_not_scaled():
    network = drawn(UNet(**SMALL, cond_channels=2))
    seen = []
    network.down[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))  # pyright: ignore
    sde, image = VE(sigma_max=50), told()["image"]
    model = NetworkScoreModel(network, sde, EDMParameterization(data_std=0.5))
    x, t = inputs()[0], torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    model(x, t, cond=Condition(image=image))
    c_in = EDMParameterization(data_std=0.5).c_in(sde, t)
    scaled = (c_in.float()[:, None, None, None] * x).to(x.dtype)
    own = network.condition_input.conv  # pyright: ignore
    weight, bias = torch.cat([network.conv_in.weight, own.weight], 1), network.conv_in.bias + own.bias  # pyright: ignore
    expected = F.conv2d(torch.cat([scaled, image], 1), weight, bias, padding=1)
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-5)


def test_a_clean_image_is_the_limit_of_little_noise():
    network = drawn(UNet(**SMALL, cond_channels=2))
    x, c_noise = inputs()
    image = told()["image"]
    clean = network(x, c_noise, image=image)
    for log_snr in (20.0, 1e3, float("inf")):
        assert torch.equal(network(x, c_noise, image=image, image_log_snr=torch.full((4,), log_snr)), clean)
    assert not torch.equal(network(x, c_noise, image=image, image_log_snr=torch.full((4,), 5.0)), clean)


@pytest.mark.parametrize("sde", [VP(), VE(sigma_max=50)])
def test_a_clean_image_is_told_as_one_of_the_least_noise_that_the_sde_has(sde: SDE):
    network = drawn(UNet(**SMALL, cond_channels=2))
    model, image = NetworkScoreModel(network, sde, EpsParameterization()), told()["image"]
    x, t = inputs()[0], torch.tensor([0.1, 0.4, 0.7, 1.0], dtype=torch.float64)
    least = sde.log_snr(torch.zeros(4, dtype=torch.float64)).float()
    clean, noisy = (model(x, t, cond=Condition(image=image, image_log_snr=level)).eps for level in (least, least - 4))
    assert torch.equal(model(x, t, cond=Condition(image=image)).eps, clean)
    assert torch.equal(noisy, clean) == isinstance(sde, VP)  # whose least noise is none


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize(("field", "shape"), [("image", (2, 8, 8)), ("values", (2,))])
def test_nan_that_do_not_stand_for_none_are_refused(name: str, field: str, shape: tuple[int, ...]):
    given = {"image": torch.zeros(4, 2, 8, 8), "values": torch.zeros(4, 2)}
    x, c_noise = inputs()
    for null, part, why in (
        (True, (0,), "NaN throughout is none"),
        (False, (0,), "the network was never trained without it"),
        (False, (...,), "the network was never trained without it"),
    ):
        network = OF_IMAGES[name](**SMALL, cond_channels=2, cond_values=2, null_condition=null)
        wrong = given | {field: torch.zeros(4, *shape)}
        wrong[field][2][part] = torch.nan
        with pytest.raises(ValueError) as caught:
            network(x, c_noise, **wrong)
        assert str(caught.value) == (
            f"the condition's {field} must have no NaN, got some in sample 2 ({why}); give each sample its {field}"
        )


def test_vectors_are_told_values():
    network = drawn(MLP(2, hidden=16, num_layers=2, cond_values=2, null_condition=True))
    model = NetworkScoreModel(network, VP(), EpsParameterization())
    x, t, values = torch.randn(3, 2), torch.full((3,), 0.5), torch.randn(3, 2)
    base = model(x, t, cond=Condition(values=values)).eps
    values[1] = torch.nan
    moved = (model(x, t, cond=Condition(values=values)).eps - base).abs().amax(1)
    assert moved[1] > 1e-4 and moved[0] == moved[2] == 0


@pytest.mark.parametrize(
    ("options", "cond", "message"),
    [
        ({}, {"image": torch.zeros(4, 2, 8, 8)}, "the network takes no image; build it with cond_channels="),
        ({}, {"values": torch.zeros(4, 1)}, "the network takes no values; build it with cond_values="),
        ({}, {"image_log_snr": torch.zeros(4)}, "image must be None: the network takes no image"),
        ({"cond_channels": 2}, {"image": torch.zeros(4, 2, 4, 4)}, r"shape \[4, 2, 8, 8\], got \[4, 2, 4, 4\]"),
        ({"cond_channels": 2}, {}, r"image must have shape \[4, 2, 8, 8\], got None; pass Condition\(image=...\)"),
        ({"cond_values": 3}, {"values": torch.zeros(4, 1)}, r"values must have shape \[4, 3\], got \[4, 1\]"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(options: dict[str, Any], cond: dict[str, Tensor], message: str):
    x, c_noise = inputs()
    with pytest.raises(ValueError, match=message) as caught:
        UNet(**SMALL, **options)(x, c_noise, **cond)
    assert "\n" not in str(caught.value)
