"""Shares of a batch: what several processes, or several parts, do is what one does at once."""

import pytest
import torch
from thinning import only
from torch import Tensor
from training_runs import CPU, ROOT, digits_like

from data import TrainBatches
from experiment.config import load_config
from runtime.processes.collectives import Communication, Share
from sde_lib import derive_seed
from training.draws import Draw, Draws, make_draw
from training.state import TrainingState
from training.step import StepResult, TrainingStep


@pytest.mark.parametrize(
    ("batch_size", "world", "accumulation"), [(8, 1, 1), (8, 2, 2), (7, 3, 2), (128, 5, 3), (6, 6, 1)]
)
def test_shares_cut_a_batch_without_gap_or_overlap(batch_size: int, world: int, accumulation: int):
    shares = [Share(batch_size, rank=r, world=world, accumulation_steps=accumulation) for r in range(world)]
    places = [place for share in shares for part in share.parts for place in range(batch_size)[part]]
    assert places == list(range(batch_size))
    sizes = [part.stop - part.start for share in shares for part in share.parts]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1
    for share in shares:
        assert share.all == slice(share.parts[0].start, share.parts[-1].stop)
        assert share.sizes() == [one.all.stop - one.all.start for one in shares]


def test_a_batch_with_fewer_samples_than_parts_is_refused():
    with pytest.raises(ValueError, match="a batch of 3 cannot be cut into 4 parts, one for each of 2 processes and 2"):
        Share(3, world=2, accumulation_steps=2)
    with pytest.raises(ValueError, match="accumulation_steps must be at least 1, got 0"):
        Share(3, accumulation_steps=0)


def test_sharding_needs_several_processes_and_a_name():
    with pytest.raises(ValueError, match=r"sharding=fsdp needs several processes, got 1; start it with torchrun"):
        Communication(Share(4), CPU, sharding="fsdp")
    with pytest.raises(ValueError, match="unknown sharding 'ddp'"):
        Communication(Share(4), CPU, sharding="ddp")


def _batches(batch_size: int) -> TrainBatches:
    return TrainBatches(digits_like(50), batch_size=batch_size, seed=3, random_flip=True)


def _same(one: Draw, other: Draw) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "labels", "uniform", "eps"))


@pytest.mark.parametrize("world", [2, 3, 7])
def test_processes_draw_what_one_process_draws(world: int):
    """Also where noise comes from several generators."""
    batches = _batches(600)
    whole = make_draw(batches, 5, Share(600), 11)
    parts = [make_draw(batches, 5, Share(600, rank=rank, world=world), 11) for rank in range(world)]
    for name in ("images", "labels", "eps"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    assert all(torch.equal(part.uniform, whole.uniform) for part in parts)
    assert not _same(whole, make_draw(batches, 5, Share(600), 12))


def test_noise_of_a_batch_is_standard_normal_and_never_the_same_twice():
    eps = torch.cat([make_draw(_batches(600), 5, Share(600), step).eps for step in range(3)]).flatten(1).double()
    assert eps.mean().abs() < 4 / eps.numel() ** 0.5 and (eps.var() - 1).abs() < 4 * (2 / eps.numel()) ** 0.5
    correlation = torch.corrcoef(eps) - torch.eye(len(eps))
    assert correlation.abs().max() < 0.75  # 64 numbers each, 1.6 million pairs: six standard deviations
    # numbers that runs of earlier versions drew
    first = torch.Generator().manual_seed(derive_seed(5, 0, 1))
    assert torch.equal(make_draw(_batches(64), 5, Share(64), 0).eps, torch.randn(64, 1, 8, 8, generator=first))


def test_draws_made_ahead_are_the_same_in_any_order():
    batches = _batches(8)
    ahead = Draws(lambda step: make_draw(batches, 5, Share(8), step), ahead=True)
    for step in (0, 1, 2, 7, 8, 3, 3):
        assert _same(ahead.take(step), make_draw(batches, 5, Share(8), step))
    ahead.close()


def test_what_goes_wrong_ahead_is_raised_where_it_is_asked_for():
    def make(step: int) -> Draw:
        if step == 1:
            raise OSError("no such disk")
        return make_draw(_batches(8), 5, Share(8), step)

    ahead = Draws(make, ahead=True)
    ahead.take(0)
    with pytest.raises(OSError, match="no such disk"):
        ahead.take(1)
    ahead.close()


def _trained(name: str, accumulation: int, *extra: str, steps: int = 3) -> tuple[list[StepResult], TrainingState]:
    """A few steps without dropout, whose masks are a part's own."""
    settings = ("model.channels=16", "training.batch_size=12", "model.dropout=0.0", *extra)
    config = load_config(str(ROOT / f"configs/vp/{name}.py"), [f"--config.{setting}" for setting in settings])
    dataset = digits_like(40)
    state = TrainingState.create(config, dataset.kind, CPU)
    do_step = TrainingStep(
        state,
        TrainBatches(dataset, batch_size=12, seed=0),
        seed=0,
        class_conditional=False,
        precision=torch.float32,
        learning_rate=1e-3,
        warmup_steps=0,
        grad_clip=1.0,
        communication=Communication(Share(12, accumulation_steps=accumulation), CPU),
    )
    return [do_step() for _ in range(steps)], state


CASES = {
    "digits": (),
    "digits_hybrid": ("sde.num_steps=4", "training.time_sampling=importance"),
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
    for key, value in state.loss.memory().items():
        torch.testing.assert_close(other.loss.memory()[key].double(), value.double(), rtol=1e-4, atol=1e-6)


def test_parts_draw_dropout_of_their_own():
    """Two halves of a batch that holds each image twice, at equal times and noise, would else be the same."""
    config = load_config(
        str(ROOT / "configs/vp/digits.py"), ["--config.model.channels=16", "--config.model.dropout=0.5"]
    )
    dataset = digits_like(12)
    state = TrainingState.create(config, dataset.kind, CPU)
    with torch.no_grad():
        # a new network says 0, and so does each block before its dropout is heard of
        for parameter in state.model.parameters():
            parameter.normal_(std=0.1)
    share = Share(8, accumulation_steps=2)
    batches = TrainBatches(dataset, batch_size=8, seed=0)
    do_step = TrainingStep(
        state,
        batches,
        seed=0,
        class_conditional=False,
        precision=torch.float32,
        learning_rate=1e-3,
        warmup_steps=0,
        grad_clip=0.0,
        communication=Communication(share, CPU),
    )
    draw = make_draw(batches, 0, Share(4), 0)
    twice = Draw(*(torch.cat([getattr(draw, n)] * 2) for n in ("images", "labels", "uniform", "eps")))
    _, losses, _ = do_step._gradient(twice)
    assert not torch.equal(losses[:4], losses[4:])
    again: Tensor = do_step._gradient(twice)[1]
    assert torch.equal(losses, again)
