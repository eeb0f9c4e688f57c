"""Every config builds its model and takes one step; the full-size ones have the published sizes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict
from thinning import only

from configs.default import get_default_config
from data import AnyDataset, ImageDataset, downscale, load_dataset
from experiment.build import build_model, build_sampler, build_sde
from experiment.conditions import build_conditions
from experiment.config import load_config, load_stages
from experiment.config.checks import check_config
from experiment.network import is_classifier
from sde_lib import make_grid
from tasks import check_stages
from training.build import build_options, build_state
from training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted(
    path.relative_to(ROOT).as_posix()
    for family in ("vp", "ve", "subvp")
    for path in (ROOT / "configs" / family).glob("*.py")
    if path.stem not in ("__init__", "family")
)
SHAPES = {
    "digits": (1, 8, 8, 17),
    "mnist": (1, 28, 28, 256),
    "cifar10": (3, 32, 32, 256),
    "folder": (3, 32, 32, 256),
}

CLASSIFIERS = ("cifar10_classifier", "digits_classifier", "mnist_classifier")
FOR_LIKELIHOOD = ("cifar10_improved", "digits_dequantized", "digits_hybrid", "mnist_levels", "mnist_vdm", "mnist_vlb")

CONDITIONAL = ("cifar10_class", "cifar10_gray", "digits_class", "digits_sr", "mnist_class", "mnist_sr")
OF_LESIONS = {
    **dict.fromkeys(("digits_lesions", "mnist_lesions"), "lesions"),
    **dict.fromkeys(("digits_segment", "mnist_segment"), "lesion_masks"),
}
STAGES = ("digits_2", "digits_4_sr", "mnist_7", "mnist_14_sr")


def _data(config: ConfigDict) -> AnyDataset:
    if config.data.dataset == "moons":
        return load_dataset("moons", root=".", split="train")
    if config.data.dataset == "lesion_masks":
        side, levels = {"": (8, 17), "base=mnist": (28, 256)}[config.data.options]
        images = torch.randint(2, (12, 1, side, side), dtype=torch.uint8)
        paired = torch.randint(levels, images.shape, dtype=torch.uint8)
        labels = torch.arange(12) % 2
        return ImageDataset(images, labels, 2, 2, "lesion_masks", "train", paired=paired, paired_levels=levels)
    is_lesions = config.data.dataset == "lesions"
    channels, height, width, levels = SHAPES[config.data.options[5:] if is_lesions else config.data.dataset]
    images = torch.randint(levels, (12, channels, height, width), dtype=torch.uint8)
    if is_lesions:
        return ImageDataset(images, torch.arange(12) % 2, levels, 2, "lesions", "train")
    dataset = ImageDataset(images, torch.arange(12) % 10, levels, 10, config.data.dataset, "train")
    return downscale(dataset, config.data.downscale)


def test_the_promised_configs_are_there():
    names = [f"configs/{f}/{d}.py" for f in ("vp", "ve", "subvp") for d in ("digits", "mnist", "cifar10")]
    assert (
        sorted(
            [
                *names,
                *(
                    f"configs/vp/{name}.py"
                    for name in ("folder", "moons", *CLASSIFIERS, *FOR_LIKELIHOOD, *CONDITIONAL, *OF_LESIONS, *STAGES)
                ),
            ]
        )
        == CONFIGS
    )


@pytest.mark.parametrize("path", only([path for path in CONFIGS if "/vp/" in path or "digits" in path], CONFIGS))
def test_config_builds_its_model_and_takes_one_step(path: str):
    overrides = ["--config.model.channels=16", "--config.model.num_res_blocks=1", "--config.training.batch_size=3"]
    overrides.append("--config.model.head_channels=0")
    config = load_config(str(ROOT / path), overrides)
    check_config(config)
    dataset = _data(config)
    state = build_state(config, dataset.kind, torch.device("cpu"))
    options = replace(build_options(config), warmup_steps=0)
    conditions = build_conditions(config, dataset.kind)
    trainer = Trainer(state, dataset, options, conditions=conditions)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    first = trainer.step().loss
    # a new network says 0, so that the first loss is known up to the draw of the noise
    if config.model.parameterization == "eps" and not is_classifier(config) and config.training.loss == "auto":
        expected = 1.0
        numel = 3 * dataset.num_dims
        assert abs(first - expected) < 5 * (2 / numel) ** 0.5
    assert any(not torch.equal(before[name], value) for name, value in state.model.state_dict().items())
    assert state.step == 1


@pytest.mark.parametrize("path", CONFIGS)
def test_config_is_the_family_that_its_folder_says(path: str):
    config = load_config(str(ROOT / path))
    sde = build_sde(config)
    family = path.split("/")[1]
    assert (
        config.sde.name in {"vp": ("vp", "ddpm", "improved_ddpm", "vp_learned"), "ve": "ve", "subvp": "subvp"}[family]
    )
    stem = Path(path).stem
    assert config.data.dataset == OF_LESIONS.get(stem, stem.split("_")[0])
    build_sampler(config)
    grid = make_grid(config.sampling.grid, sde, config.sampling.num_steps)
    assert len(grid) == config.sampling.num_steps + 1


@pytest.mark.parametrize("name", ["digits_2_4_8", "mnist_7_14_28"])
def test_stages_of_a_cascade_fit_each_other(name: str):
    path, defaults = str(ROOT / f"configs/cascade/{name}.py"), get_default_config()
    cascade = load_config(path, defaults=defaults).cascade
    stages = load_stages(load_config(path, defaults=defaults), path, defaults=defaults)
    told = [build_conditions(config, _data(config).kind) for config in stages.values()]
    check_stages(list(stages), told, cascade.noise_t, [config.model.condition_noise_t for config in stages.values()])
    # one SDE, so that it can be truncated
    assert len({str(build_sde(config)) for config in stages.values()}) == 1
    sizes = [one.kind.image_shape for one in told if one.kind]
    assert [f"{shape[1]}" for shape in sizes] == name.split("_")[1:]


def test_cifar10_is_the_network_and_training_of_ho_et_al():
    config = load_config(str(ROOT / "configs/vp/cifar10.py"))
    model = build_model(config, _data(config).kind)
    assert sum(p.numel() for p in model.parameters()) == 35_746_307
    training, optim = config.training, config.optim
    assert (training.num_steps, training.batch_size, training.ema_decay) == (800_000, 128, 0.9999)
    assert (optim.name, optim.learning_rate, optim.warmup_steps, training.grad_clip) == ("adam", 2e-4, 5_000, 1.0)
    assert config.model.dropout == 0.1 and config.data.random_flip
    assert model.sde.table_size == 1000
    assert float(model.sde.alpha(torch.ones(1, dtype=torch.float64)) ** 2) == pytest.approx(4.0358e-5, rel=1e-4)


def test_improved_cifar10_is_the_network_and_training_of_nichol_and_dhariwal():
    config = load_config(str(ROOT / "configs/vp/cifar10_improved.py"))
    model = build_model(config, _data(config).kind)
    assert sum(p.numel() for p in model.parameters()) == 52_546_438
    sde = build_sde(config)
    assert (config.sde.name, sde.table_size, config.training.loss) == ("improved_ddpm", 4000, "hybrid")
    assert model.learned_variance and config.eval.vlb_variance == "auto"
    assert (config.training.num_steps, config.training.batch_size, config.optim.learning_rate) == (500_000, 128, 1e-4)


def test_model_weights_depend_on_the_seed_alone():
    config = load_config(str(ROOT / "configs/vp/digits.py"), ["--config.model.channels=16"])
    dataset = _data(config)
    one = build_model(config, dataset.kind).state_dict()
    torch.rand(7)
    two = build_model(config, dataset.kind).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    config.seed = 1
    other = build_model(config, dataset.kind).state_dict()
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_data_reaches_the_network_in_minus_one_to_one():
    config = load_config(str(ROOT / "configs/vp/digits.py"))
    dataset = _data(config)
    assert isinstance(dataset, ImageDataset)
    x = dataset.space.encode(dataset.images)
    assert float(x.min()) == -1.0 and float(x.max()) == 1.0


@pytest.mark.parametrize("data", ["digits", "mnist", "cifar10"])
def test_a_classifier_is_of_the_data_and_the_noise_of_the_models_that_it_guides(data: str):
    one, other = (load_config(str(ROOT / f"configs/vp/{name}.py")) for name in (f"{data}_classifier", data))
    assert (one.sde, one.data) == (other.sde, other.data)
