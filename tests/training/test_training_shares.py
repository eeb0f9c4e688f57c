"""Slices of a batch: several ranks, or several micro-batches, compute what one does at once."""

import pytest
import torch
from thinning import only
from torch import Tensor
from training_runs import CPU, ROOT, digits_like

from experiment.config import load_config
from runtime.processes.collectives import Communication
from runtime.processes.rank_slice import RankSlice
from sde_lib import derive_seed
from training.batches import Batch, Batches
from training.build import build_state
from training.state import TrainingState
from training.trainer import StepResult, Trainer, TrainingOptions


@pytest.mark.parametrize(
    ("batch_size", "world", "accumulation"), [(8, 1, 1), (8, 2, 2), (7, 3, 2), (128, 5, 3), (6, 6, 1)]
)
def test_shares_cut_a_batch_without_gap_or_overlap(batch_size: int, world: int, accumulation: int):
    shares = [RankSlice(batch_size, rank=r, world=world, accumulation_steps=accumulation) for r in range(world)]
    places = [place for share in shares for part in share.micro_batches for place in range(batch_size)[part]]
    assert places == list(range(batch_size))
    sizes = [part.stop - part.start for share in shares for part in share.micro_batches]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    for share in shares:
        assert share.samples == slice(share.micro_batches[0].start, share.micro_batches[-1].stop)
        assert share.sizes() == [one.samples.stop - one.samples.start for one in shares]


def test_a_batch_with_fewer_samples_than_micro_batches_is_refused():
    message = "a batch of 3 cannot be cut into 4 micro-batches, one for each of 2 processes and 2"
    with pytest.raises(ValueError, match=message):
        RankSlice(3, world=2, accumulation_steps=2)
    with pytest.raises(ValueError, match="accumulation_steps must be at least 1, got 0"):
        RankSlice(3, accumulation_steps=0)


def test_sharding_needs_several_processes_and_a_name():
    with pytest.raises(ValueError, match=r"sharding=fsdp needs several processes, got 1; start it with torchrun"):
        Communication(RankSlice(4), CPU, sharding="fsdp")
    with pytest.raises(ValueError, match="unknown sharding 'ddp'"):
        Communication(RankSlice(4), CPU, sharding="ddp")


def _batches(rank_slice: RankSlice, *, ahead: bool = False) -> Batches:
    return Batches(digits_like(50), rank_slice, seed=5, random_flip=True, ahead=ahead)


def _same(one: Batch, other: Batch) -> bool:
    names = ("samples", "labels", "uniform", "eps")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_draw_what_one_process_draws(world: int):
    """Also where noise comes from several generators."""
    whole = _batches(RankSlice(600)).at(11)
    slices = [_batches(RankSlice(600, rank=rank, world=world)).at(11) for rank in range(world)]
    for name in ("samples", "labels", "eps"):
        assert torch.equal(torch.cat([getattr(one, name) for one in slices]), getattr(whole, name))
    assert all(torch.equal(one.uniform, whole.uniform) for one in slices)
    assert not _same(whole, _batches(RankSlice(600)).at(12))


def test_noise_of_a_batch_is_standard_normal_and_never_the_same_twice():
    batches = _batches(RankSlice(600))
    eps = torch.cat([batches.at(step).eps for step in range(3)]).flatten(1).double()
    assert eps.mean().abs() < 4 / eps.numel() ** 0.5 and (eps.var() - 1).abs() < 4 * (2 / eps.numel()) ** 0.5
    correlation = torch.corrcoef(eps) - torch.eye(len(eps))
    assert correlation.abs().max() < 0.75  # 64 numbers each, 1.6 million pairs: six standard deviations
    # numbers that runs of earlier versions drew
    first = torch.Generator().manual_seed(derive_seed(5, 0, 1))
    assert torch.equal(_batches(RankSlice(64)).at(0).eps, torch.randn(64, 1, 8, 8, generator=first))


def test_a_second_draw_of_noise_is_independent_of_the_first():
    """Of the losses that want one; equal noise, or its negative, would bias the bound."""
    batch = Batches(digits_like(600), RankSlice(600), seed=5, more_noise=True).at(0)
    assert batch.more_noise is not None and batch.more_noise.shape == batch.eps.shape
    one, two = batch.eps.double().flatten(), batch.more_noise.double().flatten()
    assert abs(float((one * two).mean())) < 4 / len(one) ** 0.5
    assert abs(float((one.square() * two.square()).mean()) - 1) < 4 * (8 / len(one)) ** 0.5
    assert abs(float(two.mean())) < 4 / len(two) ** 0.5 and abs(float(two.var()) - 1) < 4 * (2 / len(two)) ** 0.5
    # of other samples too
    shifted = torch.roll(batch.more_noise.double(), 1, 0).flatten()
    assert abs(float((one * shifted).mean())) < 4 / len(one) ** 0.5


def test_no_two_draws_of_a_step_share_a_seed(monkeypatch: pytest.MonkeyPatch):
    """Times, both noises of each chunk and dropout of each micro-batch, at two steps."""
    keys: list[tuple[int, ...]] = []

    def recorded(*of: int) -> int:
        keys.append(of)
        return derive_seed(*of)

    monkeypatch.setattr("training.batches.derive_seed", recorded)
    monkeypatch.setattr("training.trainer.derive_seed", recorded)
    settings = ("model.channels=16", "training.loss=dequantized", "model.attention_resolutions=()")
    config = load_config(str(ROOT / "configs/vp/digits.py"), [f"--config.{setting}" for setting in settings])
    dataset = digits_like(12)
    state = build_state(config, dataset.kind, CPU)
    trainer = Trainer(state, dataset, TrainingOptions(2, batch_size=300, seed=5, accumulation_steps=2))
    monkeypatch.setattr(
        type(state.loss),
        "__call__",
        lambda _, model, x0, *__, **___: 0 * next(model.parameters()).sum() + x0.mean((1, 2, 3)),
    )
    for _ in range(2):
        trainer.step()
    # a time, two chunks of each of two noises, and two micro-batches
    assert len(keys) == len(set(keys)) == 2 * 7
    assert {of[0] for of in keys} == {5} and len({of[1] for of in keys}) == 2


def test_batches_made_ahead_are_the_same_in_any_order():
    ahead, plain = _batches(RankSlice(8), ahead=True), _batches(RankSlice(8))
    for step in (0, 1, 2, 7, 8, 3, 3):
        assert _same(ahead.at(step), plain.at(step))
    ahead.close()


def test_an_error_ahead_is_raised_where_the_batch_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    make = Batches._make

    def failing(self: Batches, step: int) -> Batch:
        if step == 1:
            raise OSError("no such disk")
        return make(self, step)

    monkeypatch.setattr(Batches, "_make", failing)
    ahead = _batches(RankSlice(8), ahead=True)
    ahead.at(0)
    with pytest.raises(OSError, match="no such disk"):
        ahead.at(1)
    ahead.close()


def _trained(name: str, accumulation: int, *extra: str, steps: int = 3) -> tuple[list[StepResult], TrainingState]:
    """A few steps without dropout, whose masks are a part's own."""
    settings = ("model.channels=16", "training.batch_size=12", "model.dropout=0.0", *extra)
    config = load_config(str(ROOT / f"configs/vp/{name}.py"), [f"--config.{setting}" for setting in settings])
    dataset = digits_like(40)
    state = build_state(config, dataset.kind, CPU)
    options = TrainingOptions(1, batch_size=12, learning_rate=1e-3, accumulation_steps=accumulation)
    trainer = Trainer(state, dataset, options)
    return [trainer.step() for _ in range(steps)], state


CASES = {
    "digits": (),
    "digits_hybrid": ("sde.num_steps=4", "training.step_sampling=importance"),
    "digits_dequantized": (),
    "mnist_vdm": ("model.attention_resolutions=4",),
}


@pytest.mark.parametrize("accumulation", only((5,), [2, 5]))
@pytest.mark.parametrize("name", CASES)
def test_accumulated_gradients_are_those_of_the_whole_batch(name: str, accumulation: int):
    at_once, state = _trained(name, 1, *CASES[name])
    in_parts, other = _trained(name, accumulation, *CASES[name])
    for one, two in zip(at_once, in_parts, strict=True):
        assert two.loss == pytest.approx(one.loss, rel=1e-5) and two.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
    # Adam's first steps have the size of the learning rate whatever the gradient: only where that is not rounding
    for key, value in state.model.state_dict().items():
        moved = (other.model.state_dict()[key] - value).abs()
        assert float((moved > 2e-4).double().mean()) < 0.01, key
    for key, value in state.times.memory().items():
        torch.testing.assert_close(other.times.memory()[key].double(), value.double(), rtol=1e-4, atol=1e-6)


def test_micro_batches_draw_dropout_of_their_own():
    """Two halves of a batch that holds each image twice, at equal times and noise, would else be the same."""
    config = load_config(
        str(ROOT / "configs/vp/digits.py"), ["--config.model.channels=16", "--config.model.dropout=0.5"]
    )
    dataset = digits_like(12)
    state = build_state(config, dataset.kind, CPU)
    with torch.no_grad():
        # a new network says 0, and so does each block before its dropout is heard of
        for parameter in state.model.parameters():
            parameter.normal_(std=0.1)
    trainer = Trainer(state, dataset, TrainingOptions(1, batch_size=8, accumulation_steps=2, grad_clip=0.0))
    batch = Batches(dataset, RankSlice(4), seed=0).at(0)
    twice = Batch(*(torch.cat([getattr(batch, n)] * 2) for n in ("samples", "labels", "uniform", "eps")))
    _, losses, _ = trainer._gradient(twice)
    assert not torch.equal(losses[:4], losses[4:])
    again: Tensor = trainer._gradient(twice)[1]
    assert torch.equal(losses, again)
