"""Common promises of all backbones: their options as given, and dropout in every kind of block."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from models.backbones import ADM, MLP, Backbone, EncoderClassifier, NCSNpp, UNet

SMALL: dict[str, Any] = {"image_size": 8, "channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1}
SMALL |= {"attention_resolutions": (4,)}
# with the number of residual blocks: two down, two in the middle, four up, and those that resample
NETWORKS: dict[str, tuple[type[Backbone], dict[str, Any], int]] = {
    "unet": (UNet, SMALL, 8),
    "adm, resampled by blocks": (ADM, SMALL, 10),
    "adm, resampled by convolutions": (ADM, SMALL | {"resampling": "convolution"}, 8),
    "ncsnpp, biggan": (NCSNpp, SMALL, 10),
    "ncsnpp, ddpm": (NCSNpp, SMALL | {"block": "ddpm"}, 8),
    "ncsnpp, skips": (NCSNpp, SMALL | {"input_pyramid": "skip", "output_pyramid": "skip"}, 10),
    "classifier": (EncoderClassifier, SMALL | {"num_classes": 5, "head_channels": 8}, 5),
}


def randomize(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for name, parameter in network.named_parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1.0
    return network


@pytest.mark.parametrize(("build", "given", "_"), [*NETWORKS.values(), (MLP, {"num_dims": 2, "hidden": 8}, 0)])
def test_a_network_is_built_again_from_its_options(build, given, _):
    network = build(**given)
    assert given.items() <= network.options.items() and len(network.options) > len(given)
    again = type(network)(**network.options)
    shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (network, again)]
    assert shapes[0] == shapes[1] and again.options == network.options == copy.deepcopy(network).options


def test_options_are_those_of_the_class_that_is_built():
    class Narrow(UNet):
        def __init__(self, size: int, *, width: int = 16) -> None:
            super().__init__(image_size=size, channels=width, channel_mult=(1, 2), attention_resolutions=())

    network = Narrow(8)
    assert network.options == {"size": 8, "width": 16} and network.widths == [16, 32]
    assert UNet(**SMALL).options.keys() == UNet(image_size=32).options.keys()
    assert "resampling" not in UNet(**SMALL).options  # which its base has


@pytest.mark.parametrize("kind", NETWORKS)
def test_dropout_reaches_every_block_and_acts_in_training_alone(kind):
    build, settings, num_blocks = NETWORKS[kind]
    network = randomize(build(**settings, dropout=0.3))
    blocks = [module for module in network.modules() if hasattr(module, "conv2")]
    assert len(blocks) == num_blocks
    x, c_noise = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 300.0])
    for mode in ("eval", "train"):
        network.train(mode == "train")
        for block in blocks:
            seen: list[torch.Tensor] = []
            assert isinstance(block.dropout, nn.Dropout) and block.dropout.p == 0.3
            hook = block.conv2.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
            with torch.no_grad():
                network(x, c_noise)
            hook.remove()
            dropped = (seen[0] == 0).double().mean()
            assert abs(dropped - 0.3) < 0.1 if mode == "train" else dropped == 0
        with torch.no_grad():
            alike = torch.equal(network(x, c_noise), network(x, c_noise))
        assert alike is (mode == "eval")
