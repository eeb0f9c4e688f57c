"""Measure the likelihood of a network on held-out images, in bits/dim with standard errors, in two ways.

    python examples/bits_per_dim.py

takes about three minutes on two CPU cores. Both numbers say how many bits a pixel takes when the model codes the image;
pixels of 17 equally likely levels take log2(17) = 4.09.
"""

import torch

from data import LevelSpace, load_dataset
from likelihood import FlowLikelihood, VariationalBound, mean_and_stderr
from models import ClippedScoreModel, EpsParameterization, NetworkScoreModel
from models.backbones import UNet
from sde_lib import NoiseStreams, Tabulated
from training import fit


def main(steps: int = 1000, channels: int = 48, num_images: int = 100) -> dict[str, torch.Tensor]:
    """Train and measure; returns the bits/dim of each image by each likelihood, float64 [num_images]."""
    train, test = (load_dataset("digits", root=".", split=split) for split in ("train", "test"))
    torch.manual_seed(0)  # of the network's first weights
    network = UNet(
        image_size=8,
        in_channels=1,
        channels=channels,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        norm_groups=8,
    )
    # DDPM's table of 1000 steps; its first noise, sigma = 0.045, suits images of 17 levels
    model = NetworkScoreModel(network, Tabulated.ddpm(beta_start=2e-3), EpsParameterization())
    model = fit(model, train, steps=steps, batch_size=64, learning_rate=1e-3)

    levels = 17  # the digits' grey levels are 0 .. 16
    x0 = LevelSpace(levels).encode(test.stored[:num_images])
    noise = NoiseStreams(seed=0, indices=range(num_images))
    # the bound of the reverse chain, from 20 of its 1000 terms an image; the chain clips the predicted x0
    bound = VariationalBound(num_levels=levels, steps_per_image=20)
    found = {"bound": bound(ClippedScoreModel(model), x0, noise=noise).bits_per_dim}
    # the probability-flow ODE's, by the change of variables along it
    flow = FlowLikelihood(num_levels=levels, rtol=1e-4, atol=1e-4)
    found["ode"] = flow(model, x0, noise=noise).bits_per_dim

    for name, bits in found.items():
        print(f"{name:5}  %.3f ± %.3f bits/dim" % mean_and_stderr(bits))
    return found


if __name__ == "__main__":
    main()
