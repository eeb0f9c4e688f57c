"""Every config of latents builds its networks, and one step of each reaches all of their parameters."""

from pathlib import Path
from typing import Any

import pytest
import torch

from data import ImageKind, LatentSpace
from experiment.build import build_model
from experiment.config import load_config
from experiment.config.checks import check_config
from experiment.latents.joint import as_its_latents
from models import FirstStage, NetworkScoreModel
from training.build import build_loss

ROOT = Path(__file__).resolve().parent.parent
KINDS = {
    "digits": ImageKind((1, 8, 8), 17, 10),
    "mnist": ImageKind((1, 28, 28), 256, 10),
    "cifar10": ImageKind((3, 32, 32), 256, 10),
}
# of the autoencoder that a config names
LATENTS = {"digits": (4, 4, 4), "digits_fsq": (2, 4, 4), "mnist": (4, 7, 7), "cifar10": (4, 8, 8)}
AUTOENCODERS = {
    "digits": "digits_autoencoder",
    "digits_fsq": "digits_fsq_autoencoder",
    "mnist": "mnist_autoencoder",
    "cifar10": "cifar10_autoencoder",
}
NAMES = sorted(path.stem for path in (ROOT / "configs" / "latent").glob("*.py") if path.stem != "__init__")


def _config(name: str) -> Any:
    config = load_config(str(ROOT / "configs" / "latent" / f"{name}.py"))
    check_config(config)
    return config


def _kind(name: str, config: Any) -> ImageKind:
    kind = KINDS[config.data.dataset]
    if name not in LATENTS:
        return as_its_latents(config, kind)
    shape, levels = LATENTS[name], 5 if name == "digits_fsq" else None
    space = LatentSpace(shape, (0.0,) * shape[0], (1.0,) * shape[0], kind.num_levels, "", levels)
    return ImageKind(kind.image_shape, kind.num_levels, kind.num_classes, latents=space)


@pytest.mark.parametrize("name", NAMES)
def test_one_step_reaches_all_parameters(name: str):
    torch.manual_seed(0)
    config = _config(name)
    kind = _kind(name, config)
    model = build_model(config, kind)
    loss = build_loss(config, model.sde, kind)
    of_pixels = isinstance(model, FirstStage) or model.first_stage is not None  # pyright: ignore[reportAttributeAccessIssue]
    levels = kind.num_levels if of_pixels else kind.seen_levels or 2
    x0 = torch.randint(levels, (2, *(kind.image_shape if of_pixels else kind.sample_shape))) * 2.0 / (levels - 1) - 1
    cond = torch.tensor([0, -1]) if config.model.class_conditional else None
    t = loss.times(model.sde, torch.tensor([0.3, 0.7]))
    # several times, since layers that begin at zero hide those before them
    for _ in range(3 if isinstance(model, FirstStage) else 4):
        values = loss(model, x0, t, torch.randn_like(x0), cond=cond)  # pyright: ignore[reportArgumentType]
        values.mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-2 * parameter.grad.sign()
    missing = [key for key, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert not missing, missing


@pytest.mark.parametrize("name", LATENTS)
def test_a_latents_shape_is_that_of_its_autoencoder(name: str):
    first = _config(AUTOENCODERS[name])
    model = build_model(first, KINDS[first.data.dataset])
    assert isinstance(model, FirstStage) and model.latent_shape == LATENTS[name]
    assert _config(name).data.first_stage == f"runs/latent/{AUTOENCODERS[name]}"


def test_the_joint_sde_begins_with_the_noise_of_the_latents():
    config = _config("digits_joint")
    model = build_model(config, as_its_latents(config, KINDS["digits"]))
    assert isinstance(model, NetworkScoreModel) and model.first_stage is not None
    assert model.first_stage.log_snr == pytest.approx(float(model.sde.log_snr(torch.zeros(1))[0]))
