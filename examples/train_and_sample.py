"""Train a class-conditional network on a tensor of images, and draw ten new images of each class.

    python examples/train_and_sample.py

takes about three minutes on two CPU cores and writes digits.png.
"""

from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits

from data import LevelSpace
from experiment.pictures import image_grid
from models import ClippedScoreModel, EpsParameterization, NetworkScoreModel
from models.backbones import UNet
from samplers import make_sampler
from sde_lib import VP, NoiseStreams
from training import fit


def main(steps: int = 1000, channels: int = 48, picture: Path = Path("digits.png")) -> torch.Tensor:
    """Train and draw; returns the new images, uint8 [100, 1, 8, 8]."""
    # any images, uint8 [N, C, H, W], with classes, int64 [N]
    pixels, target = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels * 15.9).byte().view(-1, 1, 8, 8)
    labels = torch.from_numpy(target)

    torch.manual_seed(0)  # of the network's first weights
    network = UNet(
        image_size=8,
        in_channels=1,
        channels=channels,
        channel_mult=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        norm_groups=8,
        num_classes=10,
    )
    model = NetworkScoreModel(network, VP(), EpsParameterization())
    model = fit(model, images, labels=labels, steps=steps, batch_size=64, learning_rate=1e-3)

    # ten of each class, by 20 network calls; image k depends on the seed and k alone
    classes = torch.arange(10).repeat(10)
    noise = NoiseStreams(seed=0, indices=range(100))
    sampler = make_sampler("dpm_solver_pp", num_steps=20, grid="log_snr")
    x_T = sampler.prior_sample(model.sde, (1, 8, 8), noise)
    x0 = sampler.sample(ClippedScoreModel(model), x_T, cond=classes, noise=noise).x0

    Image.fromarray(image_grid(LevelSpace(256).pixels(x0), columns=10)).save(picture)
    return LevelSpace(256).decode(x0)


if __name__ == "__main__":
    main()
