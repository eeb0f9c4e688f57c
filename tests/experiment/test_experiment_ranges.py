"""Numbers of a config that no run can have, and what is said of a batch's parts."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict
from tiny import error, tiny_command

from configs.default import get_default_config
from data import ImageKind
from experiment.build import build_model
from experiment.config import flatten, load_config
from experiment.config.checks import check_config
from runtime.processes.rank_slice import RankSlice
from training.build import build_loss
from training.optimizers import build_optimizer
from training.start_lines import slice_line

ROOT = Path(__file__).resolve().parent.parent.parent
KIND = ImageKind((1, 8, 8), 17, 10)
SMALL = ("--config.model.channels=16", "--config.model.channel_mult=1,1", "--config.device=cpu")
NUMBERS = {
    key: value
    for key, value in flatten(get_default_config())
    if isinstance(value, (int, float)) and not isinstance(value, bool)
}
FLOATS = [key for key, value in NUMBERS.items() if isinstance(value, float)]
# 0 is none, or a number like others; the rest begin above it
MAY_BE_0 = {
    "seed", "data.image_size", "data.channels", "data.given_frames", "model.head_channels", "model.dropout",
    "model.condition_dropout",
    "model.condition_noise_t", "sampling.condition_noise_t", "training.explosion_factor",
    "training.max_bad_steps", "training.ema_decay", "training.grad_clip", "training.sample_every", "optim.beta1",
    "optim.beta2", "optim.weight_decay", "optim.warmup_steps", "optim.decay_steps", "sampling.threshold_x0",
    "sampling.guidance_weight", "sampling.guidance_rescale",
    "eval.classify_z", "eval.classify_told_above_t", "sampling.classifier_scale",
    "eval.num_images", "eval.vlb_num_steps", "eval.vlb_steps_per_image", "eval.ode_num_steps", "eval.ode_max_nfe",
    "eval.ode_t_end", "restore.noise_std", "edit.t", "edit.noise_ratio", "control.scale",
    "distillation.regression", "distillation.gan",
}  # fmt: skip


def _build(*overrides: str) -> ConfigDict:
    """All that a training builds before it writes anything, of the config that is returned."""
    config = load_config(str(ROOT / "configs/vp/digits.py"), (*SMALL, *overrides), defaults=get_default_config())
    check_config(config)
    model = build_model(config, KIND)
    build_optimizer(config, model)
    build_loss(config, model.sde, KIND)
    return config


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("key", FLOATS)
def test_no_number_is_nan_or_infinite(key: str, value: str):
    with pytest.raises(ValueError, match=rf"{key.split('.')[-1]} must .*, got {value}; .*"):
        _build(f"--config.{key}={value}")


@pytest.mark.parametrize("key", sorted(NUMBERS))
def test_every_number_has_a_range(key: str):
    with pytest.raises(ValueError, match=rf"{key.split('.')[-1]} must .*-1|groups must be at least"):
        _build(f"--config.{key}=-1")
    if key not in MAY_BE_0:
        with pytest.raises(ValueError, match=rf"{key.split('.')[-1]} must .* got 0|groups must be at least"):
            _build(f"--config.{key}=0")


@pytest.mark.parametrize("key", sorted(MAY_BE_0))
def test_what_may_be_0_may(key: str):
    value = dict(flatten(_build(f"--config.{key}=0")))[key]
    assert value == 0 and type(value) is type(NUMBERS[key])


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.norm_eps=2",),
        ("optim.eps=1e9",),
        ("optim.beta1=1",),
        ("optim.weight_decay=1e9",),
        ("eval.ode_rtol=1e9",),
        ("eval.ode_t_end=1",),
        ("data.image_size=(8, -8)",),
    ],
)
def test_ranges_have_another_end(overrides: tuple[str, ...]):
    with pytest.raises(ValueError, match=overrides[0].split("=")[0] + " must be"):
        _build(*(f"--config.{override}" for override in overrides))


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        ("vp", "beta_max", ("inf", "nan", "-1")),
        ("subvp", "beta_max", ("inf", "nan", "-1")),
        ("subvp", "beta_min", ("inf", "nan", "-1")),
        ("ve", "sigma_max", ("inf", "nan", "-1")),
        ("vp_cosine", "s", ("inf", "nan", "-1")),
        ("ncsn", "num_steps", ("-1", "0", "1")),
        ("ncsn", "sigma_max", ("inf", "nan", "-1")),
        ("ddpm", "beta_end", ("inf", "nan", "-1")),
        ("improved_ddpm", "s", ("inf", "nan", "-1")),
    ],
)
def test_numbers_of_sdes_are_finite_too(name: str, option: str, values: tuple[str, ...]):
    for value in values:
        said = f"config.sde.{option} must be finite, got {value}; " if value in ("inf", "nan") else "; "
        with pytest.raises(ValueError, match=said):
            _build(f"--config.sde.name={name}", f"--config.sde.{option}={value}")


def test_none_for_infinity_is_advised_where_there_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said = error(capsys, tiny_command("train", tmp_path / "run", "--config.training.grad_clip=inf"))
    assert "config.training.grad_clip must be at most 1e+30, got inf; set it to 0 for none" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("batch_size", "world", "accumulation", "samples", "line"),
    [
        (7, 2, 1, "images", "2 processes, 1 accumulation step: 3 or 4 images at a time"),
        (8, 2, 1, "vectors", "2 processes, 1 accumulation step: 4 vectors at a time"),
        (7, 1, 2, "images", "1 process, 2 accumulation steps: 3 or 4 images at a time"),
        (13, 2, 3, "images", "2 processes, 3 accumulation steps: 2 or 3 images at a time"),
        (4, 2, 2, "images", "2 processes, 2 accumulation steps: 1 image at a time"),
    ],
)
def test_the_start_line_is_of_all_ranks(batch_size: int, world: int, accumulation: int, samples: str, line: str):
    slices = [RankSlice(batch_size, rank=rank, world=world, accumulation_steps=accumulation) for rank in range(world)]
    assert {slice_line(one, samples) for one in slices} == {line}
    sizes = slices[0].micro_batch_sizes()
    assert sizes == [micro.stop - micro.start for one in slices for micro in one.micro_batches]
    assert sum(sizes) == batch_size
