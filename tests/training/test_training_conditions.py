"""Conditions in training: their draws, and an unconditional run that goes on as a conditional one."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import score_model
from test_labels import _OneOfTwo  # the ranks of one process
from tiny import error, tiny_command
from torch import Tensor
from training_runs import CPU, digits_like

import main
from data import LevelSpace, TensorDataset, make_conditions
from experiment.conditions import Conditions
from experiment.trained_run import load_run
from models import Condition
from models.backbones import MLP, UNet
from runtime.processes.rank_slice import RankSlice
from training.ema import ExponentialMovingAverage
from training.fit import fit
from training.losses import make_loss
from training.state import TrainingState
from training.trainer import Trainer, TrainingOptions

BATCH = 300  # more than one generator of noise makes


def conditions_of_a_step(world: int, accumulation: int, options: TrainingOptions, monkeypatch: Any) -> Condition:
    """The conditions that a step's loss is given, those of all ranks and micro-batches joined."""
    data, seen = digits_like(700), []
    # so that what is told of a sample shows whose it is
    values = torch.stack([LevelSpace(17).encode(data.images).flatten(1).mean(1), data.labels.float()], 1)
    data = replace(data, values=values)
    told = Conditions(data.kind, labels=options.class_conditional, makers=make_conditions(("lowres", "ink", "values")))
    model = score_model(UNet(image_size=8, in_channels=1, channels=8, channel_mult=(1,), attention_resolutions=()))
    loss = make_loss("ddpm", sde=model.sde, parameterization="eps")

    def record(_: Any, network: Any, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Condition) -> Tensor:
        seen.append(cond)
        return 0 * next(network.parameters()).sum() + x0.flatten(1).mean(1)

    monkeypatch.setattr(type(loss), "__call__", record)
    state = TrainingState(
        model, ExponentialMovingAverage(model, 0.9), torch.optim.Adam(model.parameters()), loss,
        loss.time_sampler(model.sde),
    )  # fmt: skip
    for rank in range(world):
        part = RankSlice(BATCH, rank=rank, world=world, accumulation_steps=accumulation)
        trainer = Trainer(state, data, options, conditions=told, communication=_OneOfTwo(part, CPU))
        trainer._gradient(trainer._batches.at(3))
    assert len(seen) == world * accumulation
    return Condition.cat(seen)


OPTIONS = TrainingOptions(
    1, batch_size=BATCH, seed=4, class_conditional=True, condition_dropout=0.3, condition_noise_t=0.5
)


@pytest.mark.parametrize("split", [(2, 3), (3, 1), (1, 4)])
def test_what_is_left_out_and_the_noise_are_draws_of_the_step(split: tuple[int, int], monkeypatch: Any):
    world, accumulation = split
    whole = conditions_of_a_step(1, 1, OPTIONS, monkeypatch)
    parts = conditions_of_a_step(world, accumulation, OPTIONS, monkeypatch)
    assert whole.given.keys() == {"label", "image", "image_log_snr", "values"}
    for name, value in whole.given.items():
        torch.testing.assert_close(parts.given[name], value, rtol=0, atol=0, equal_nan=True)
    ink, same, label = whole.values[whole.label >= 0].unbind(1)  # pyright: ignore
    assert torch.equal(same, ink) and torch.equal(label.long(), whole.label[whole.label >= 0])  # pyright: ignore


def test_a_sample_is_told_all_or_nothing(monkeypatch: Any):
    told, clean = (
        conditions_of_a_step(1, 1, replace(OPTIONS, condition_dropout=share), monkeypatch) for share in (0.3, 0.0)
    )
    dropped = told.label == -1
    assert abs(float(dropped.float().mean()) - 0.3) < 4 * (0.21 / BATCH) ** 0.5
    assert torch.equal(told.image.isnan().flatten(1).all(1), dropped)  # pyright: ignore
    assert torch.equal(told.image.isnan().flatten(1).any(1), dropped)  # pyright: ignore
    assert all(torch.equal(column, dropped) for column in told.values.isnan().unbind(1))  # pyright: ignore
    kept = ~dropped
    for name, value in clean.given.items():
        assert torch.equal(told.given[name][kept], value[kept])


PARTS = {"class": 0.4, "image": 0.3, "values": 0.2}


def told_parts(told: Condition) -> dict[str, Tensor]:
    """True for samples that are told nothing of a part, all of which or none is."""
    nan = {name: told.given[name].isnan().flatten(1) for name in ("image", "values")}
    assert all(torch.equal(one.all(1), one.any(1)) for one in nan.values())
    return {"class": told.given["label"] == -1} | {name: one.all(1) for name, one in nan.items()}


@pytest.mark.parametrize("whole", [0.0, 0.25])
def test_parts_are_left_out_independently_and_as_draws_of_the_step(whole: float, monkeypatch: Any):
    """P(parts S alone) = (1 - whole) prod over S of rate times prod over the others of 1 - rate; all: whole more."""
    options = replace(OPTIONS, condition_dropout=whole, part_dropout=PARTS)
    told = conditions_of_a_step(1, 1, options, monkeypatch)
    gone = told_parts(told)
    for chosen in itertools.product([False, True], repeat=3):
        here = [rate if one else 1 - rate for one, rate in zip(chosen, PARTS.values(), strict=True)]
        expected = (1 - whole) * math.prod(here) + whole * all(chosen)
        found = torch.stack([gone[part] == one for part, one in zip(PARTS, chosen, strict=True)]).all(0).double().mean()
        assert abs(float(found) - expected) < 4 * (expected * (1 - expected) / BATCH) ** 0.5, chosen
    # whatever the ranks, and whichever other parts are left out; the rest is as without
    parts = conditions_of_a_step(2, 3, options, monkeypatch)
    for name, value in told.given.items():
        torch.testing.assert_close(parts.given[name], value, rtol=0, atol=0, equal_nan=True)
    alone = conditions_of_a_step(1, 1, replace(options, part_dropout={"image": 0.3}), monkeypatch)
    assert torch.equal(told_parts(alone)["image"], gone["image"])
    clean = conditions_of_a_step(1, 1, replace(options, condition_dropout=0.0, part_dropout={}), monkeypatch)
    assert torch.equal(told.image[~gone["image"]], clean.image[~gone["image"]])  # pyright: ignore
    assert torch.equal(told.values[~gone["values"]], clean.values[~gone["values"]])  # pyright: ignore


def test_a_text_is_left_out_with_its_mask_and_its_vector():
    cond = Condition(
        label=torch.tensor([1, 2]), words=torch.ones(2, 3, dtype=torch.int64), tokens=torch.ones(2, 3, 4),
        pooled=torch.ones(2, 5),
    )  # fmt: skip
    left = cond.without(torch.tensor([True, False]), part="text")
    assert left.label.tolist() == [1, 2] and left.words.any(1).tolist() == [False, True]  # pyright: ignore
    assert left.mask.any(1).tolist() == [False, True] and left.pooled.isnan().all(1).tolist() == [True, False]  # pyright: ignore
    # what is told of a sample of which all parts are left out is the null branch of guidance
    nothing = cond.without(part="class").without(part="text").given
    assert all(torch.equal(nothing[name].nan_to_num(), one.nan_to_num()) for name, one in cond.without().given.items())
    only = cond.without(torch.tensor([True, False]), part="class")
    assert only.label.tolist() == [-1, 2] and bool(only.words.all()) and not only.pooled.isnan().any()  # pyright: ignore


def test_noise_on_the_image_is_what_its_log_snr_says(monkeypatch: Any):
    """A quarter is clean. Of the others E y_t = alpha y, Var y_t = sigma^2, times uniform up to condition_noise_t."""
    told = conditions_of_a_step(1, 1, replace(OPTIONS, condition_dropout=0.0), monkeypatch)
    without = replace(OPTIONS, condition_dropout=0.0, condition_noise_t=0.0)
    clean = conditions_of_a_step(1, 1, without, monkeypatch)
    assert clean.image_log_snr is None and told.image_log_snr is not None
    assert torch.equal(told.values, clean.values)  # pyright: ignore
    least = told.image_log_snr.isinf()
    assert abs(float(least.float().mean()) - 0.25) < 4 * (0.1875 / BATCH) ** 0.5
    assert torch.equal(told.image[least], clean.image[least])  # pyright: ignore
    fields = (told.image_log_snr, told.image, clean.image)
    log_snr, noisy, quiet = (one[~least].double() for one in fields)  # pyright: ignore
    snr = log_snr.exp()
    alpha, sigma = (snr / (1 + snr)).sqrt()[:, None, None, None], (1 / (1 + snr)).sqrt()[:, None, None, None]
    # each pixel of the small image is told four times
    eps = ((noisy - alpha * quiet) / sigma)[:, :, ::2, ::2]
    assert eps.shape[1:] == (1, 4, 4) and torch.equal(noisy[..., ::2], noisy[..., 1::2])
    count = eps.numel()
    assert abs(float(eps.mean())) < 4 / count**0.5 and abs(float(eps.var()) - 1) < 4 * (2 / count) ** 0.5
    sde = score_model(torch.nn.Linear(1, 1)).sde
    lowest, median = float(sde.log_snr(torch.tensor(0.5))), float(sde.log_snr(torch.tensor(0.25)))
    assert float(log_snr.min()) >= lowest
    share = float((log_snr > median).float().mean())
    assert abs(share - 0.5) < 4 * 0.5 / len(eps) ** 0.5


def test_fit_tells_a_network_what_its_makers_make():
    images = digits_like(64).images
    network = UNet(
        image_size=8, in_channels=1, channels=8, channel_mult=(1,), attention_resolutions=(), cond_channels=1,
        norm_groups=4,
    )  # fmt: skip
    makers = make_conditions(("lowres",))
    told = fit(score_model(network), images, steps=3, conditions=makers, batch_size=4, device="cpu")
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.7])
    one, other = (told(x, t, cond=Condition(image=torch.full((2, 1, 8, 8), value))).eps for value in (-1.0, 1.0))
    assert (one - other).abs().flatten(1).amax(1).min() > 0
    with pytest.raises(ValueError, match="conditions are made of images, got other data"):
        fit(score_model(network), torch.randn(4, 1, 8, 8), steps=1, conditions=makers)


def test_fit_tells_a_network_values_of_ones_own():
    """x = c + 0.1 eps: told c, a network knows x0 where x_t alone says a fifth of it."""
    c = torch.randn(512, 1, generator=torch.Generator().manual_seed(0))
    x = c + 0.1 * torch.randn(512, 1, generator=torch.Generator().manual_seed(1))
    network = MLP(1, hidden=32, cond_values=1)
    told = fit(score_model(network), x, values=c, steps=200, batch_size=64, learning_rate=3e-3, device="cpu")
    asked, t = torch.tensor([[-1.0], [0.0], [1.0]]), torch.full((3,), 0.4, dtype=torch.float64)
    x0 = told(float(told.sde.alpha(t[0])) * asked, t, cond=Condition(values=asked)).x0
    assert float((x0 - asked).abs().max()) < 0.3
    for wrong, message in ((c[:5], "values must be torch.float32"), (c * torch.nan, "512 of 512 samples are not fin")):
        with pytest.raises(ValueError, match=message):
            fit(score_model(network), x, values=wrong, steps=1)
    data = TensorDataset(x, torch.zeros(512, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels and values are for tensors, got a data set"):
        fit(score_model(network), data, values=c, steps=1)
    with pytest.raises(ValueError, match=r"told values \[16, K\], got none; give each sample K"):
        fit(score_model(network), data, conditions=make_conditions(("values",)), steps=1, batch_size=64)


CONDITIONS = [
    "--config.data.condition=lowres,ink", "--config.model.class_conditional=True",
    "--config.model.condition_dropout=0.5", "--config.model.condition_noise_t=0.5",
]  # fmt: skip


def test_a_run_without_conditions_goes_on_with_some_from_the_same_outputs(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    one_step = ["--config.training.num_steps=1", "--config.training.checkpoint_every=1"]
    command = tiny_command("train", tmp_path / "new", *CONDITIONS, *one_step, f"--init-from={run_copy}")
    assert main.run(command) == 0
    plain = load_run(run_copy, device="cpu").model
    wider = load_run(tmp_path / "new", device="cpu", step=0)
    images = digits_like(6).images
    x, t = LevelSpace(17).encode(images), torch.linspace(0.1, 1, 6, dtype=torch.float64)
    cond = wider.conditions.tell(wider.conditions.observe(images, torch.arange(6)))
    assert isinstance(cond, Condition) and cond.given.keys() == {"label", "image", "values"}
    expected = plain(x, t)
    for told in (cond, cond.without()):
        assert torch.equal(wider.model(x, t, cond=told).eps, expected.eps)
    later = load_run(tmp_path / "new", device="cpu", step=1, weights="raw").model
    # one step is enough for it to be told them
    assert not torch.equal(later(x, t, cond=cond).eps, later(x, t, cond=cond.without()).eps)
    # one channel fits two channels' weights by broadcasting, and values would be forgotten
    more = [*CONDITIONS, *one_step, "--config.data.condition=masked", "--config.data.condition_options="]
    said = error(capsys, tiny_command("train", tmp_path / "other", *more, f"--init-from={tmp_path / 'new'}"))
    assert "has another model: data.condition is " in said and "['masked'] here" in said
    assert not (tmp_path / "other").exists()
