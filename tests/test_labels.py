"""The label of each sample reaches the network beside that sample: not another's, not shifted, not cut."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_one_process import draw, measure
from score_samplers import OF_SCORES
from tiny import TINY
from torch import Tensor, nn
from training_runs import CPU, ROOT

from commands import sample as sample_command
from configs.default import get_default_config
from data import ImageDataset, ImageKind
from evaluation import step_weights
from evaluation.samples.sample_batch import draw_batch
from experiment.config import load_config
from experiment.pictures import as_array
from experiment.trained_run import TrainedRun
from likelihood import LikelihoodEstimator, available_likelihoods, make_likelihood
from models import Dequantizer, NetworkScoreModel, make_parameterization
from runtime.processes.collectives import Communication
from runtime.processes.rank_slice import RankSlice
from runtime.processes.ranks import ALONE
from samplers import make_sampler
from sde_lib import SDE, NoiseStreams, make_sde
from training.build import build_state
from training.losses import DequantizedLoss, make_loss
from training.losses.base import LOSSES as ALL_LOSSES
from training.preview import preview_samples
from training.trainer import Trainer, TrainingOptions

CLASSES, LEVELS = 10, 17
LABELS = torch.tensor([3, 0, 9, 4, 1])
KIND = ImageKind((1, 8, 8), LEVELS, CLASSES, tuple("abcdefghij"))


class Told(nn.Module):
    """Answers that differ from class to class; ``label`` is the class of all that it is told nothing of."""

    num_classes = CLASSES

    def __init__(self, label: int | None = None, *, outputs: int = 1, slope: float = 0.3) -> None:
        super().__init__()
        self.label, self.outputs, self.slope = label, outputs, nn.Parameter(torch.tensor(slope))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        assert (cond is None) == (self.label is not None)
        label = torch.full((len(x),), self.label or 0) if cond is None else cond
        assert len(label) == len(x)
        self.seen.append(label)
        shift = (label.double() / 8 - 0.5).to(x.dtype)
        return torch.cat([self.slope * x + shift[:, None, None, None]] * self.outputs, 1)


def told(
    label: int | None = None, sde: SDE | None = None, *, learned: bool = False, **kwargs: Any
) -> NetworkScoreModel:
    torch.manual_seed(0)
    return NetworkScoreModel(
        Told(label, outputs=1 + learned, **kwargs),
        sde or make_sde("ddpm", num_steps=20, beta_start=0.01, beta_end=0.3),
        make_parameterization("x0"),
        learned_variance=learned,
        dequantizer=Dequantizer(1),
    )


def images(count: int = 5) -> Tensor:
    return torch.randint(LEVELS, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def dataset(labels: Tensor = LABELS) -> ImageDataset:
    """Images of one level each, which is the label."""
    flat = labels.to(torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()
    return ImageDataset(flat, labels, LEVELS, CLASSES, "digits", "test", KIND.class_names)


ESTIMATORS: dict[str, list[dict[str, Any]]] = {
    "vlb": [{}, {"steps_per_image": 3, "step_sampling": "uniform"}],
    "vlb_continuous": [{"steps_per_image": 3}],
    "ode": [
        {"solver": "heun", "num_steps": 3},
        {"rtol": 0.1, "atol": 0.1},
        {"solver": "euler", "num_steps": 2, "divergence": "exact", "num_importance_samples": 2},
    ],
}


def estimators() -> list[Any]:
    assert set(ESTIMATORS) == set(available_likelihoods()), "say in ESTIMATORS how a new likelihood is built"
    return [
        pytest.param(make_likelihood(name, num_levels=LEVELS, **options), id=f"{name}-{k}")
        for name, various in ESTIMATORS.items()
        for k, options in enumerate(various)
    ]


@pytest.mark.parametrize("estimator", estimators())
def test_every_likelihood_tells_each_image_its_class(estimator: LikelihoodEstimator):
    x0 = KIND.space.encode(images())
    found = estimator(told(), x0, cond=LABELS, noise=NoiseStreams(0, range(5))).total
    alone = [
        estimator(told(int(label)), x0[k : k + 1], noise=NoiseStreams(0, [k])).total for k, label in enumerate(LABELS)
    ]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vlb", "vlb_continuous"])
def test_the_fit_of_step_weights_tells_each_image_its_class(name: str, monkeypatch: pytest.MonkeyPatch):
    model = told()
    options = {"steps_per_image": 3, "step_sampling": "importance"}
    estimator: Any = make_likelihood(name, num_levels=LEVELS, **options)
    monkeypatch.setattr(step_weights, "_other_split", lambda config, measured: measured)
    config = load_config(str(ROOT / "configs/vp/digits.py"), ["--config.model.class_conditional=True"])
    step_weights.fit_step_weights(config, {name: (estimator, model)}, dataset(), CPU, ALONE)
    seen: Any = model.backbone.seen
    assert len(seen) > 2 and all(torch.equal(cond, LABELS) for cond in seen)


LOSSES: dict[str, dict[str, Any]] = {
    "ddpm": {},
    "dsm": {"weighting": "likelihood"},
    "hybrid": {"learned": True},
    "vlb": {"learned": True},
    "vlb_continuous": {"sde": make_sde("vp_learned")},
    "dequantized": {},
}


# the cross-entropy is of classifiers, whose answer the label is, and an autoencoder is told none; of the joint loss see
# test_training_joint.py
# those of a distillation have a teacher, and tests of their own
_OTHERS = ("cross_entropy", "autoencoder", "joint")
LOSSES_OF_SCORES = [
    name
    for name in ALL_LOSSES.names()
    if name not in _OTHERS and not getattr(ALL_LOSSES.get(name), "of_distillation", 0)
]


@pytest.mark.parametrize("name", [*LOSSES_OF_SCORES, "vlb_continuous of a fixed SDE", "dsm of eps"])
def test_every_loss_tells_each_sample_its_class(name: str):
    options = dict(LOSSES[name]) if name in LOSSES else {}
    name, (learned, sde) = name.split(" ")[0], (options.pop("learned", False), options.pop("sde", None))
    model = told(None, sde, learned=learned)
    loss = make_loss(name, sde=model.sde, parameterization="x0", num_levels=LEVELS, **options)
    x0, eps = KIND.space.encode(images()), torch.randn(5, 1, 8, 8)
    t = loss.times(model.sde, torch.tensor([0.01, 0.2, 0.5, 0.7, 0.9], dtype=torch.float64))
    more = {"more_noise": eps.flip(0)} if loss.wants_more_noise else {}
    with torch.no_grad():
        found = loss(model, x0, t, eps, cond=LABELS, **more)
        for k, label in enumerate(LABELS):
            row = slice(k, k + 1)
            mine = {key: value[row] for key, value in more.items()}
            alone = loss(told(int(label), sde, learned=learned), x0[row], t[row], eps[row], **mine)
            torch.testing.assert_close(found[row], alone, rtol=1e-5, atol=1e-5)


class _OneOfTwo(Communication):
    """A rank of two, whose sums are nobody's business here."""

    def wrap(self, network: nn.Module) -> nn.Module:
        return network

    def without_sum(self, network: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def average_gradients(self, parameters: Any) -> None:
        return


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_every_micro_batch_of_every_rank_has_its_own_labels_times_and_noise(
    accumulation: int, world: int, monkeypatch: pytest.MonkeyPatch
):
    settings = ("model.class_conditional=True", "training.loss=dequantized")
    config = load_config(
        str(ROOT / "configs/vp/digits.py"),
        [*TINY, "--config.model.norm_groups=8", *(f"--config.{s}" for s in settings)],
    )
    data, seen = dataset(torch.arange(23) % CLASSES), []
    state = build_state(config, data.kind, CPU)
    options = TrainingOptions(1, batch_size=11, seed=4, class_conditional=True)

    def loss(model: Any, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Tensor, more_noise: Tensor) -> Tensor:
        seen.append((x0, t, eps, cond, more_noise))
        return 0 * next(model.parameters()).sum() + x0.flatten(1).mean(1)

    monkeypatch.setattr(DequantizedLoss, "__call__", lambda _, *args, **kwargs: loss(*args, **kwargs))
    for rank in range(world):
        rank_slice = RankSlice(11, rank=rank, world=world, accumulation_steps=accumulation)
        trainer = Trainer(state, data, options, communication=_OneOfTwo(rank_slice, CPU))
        trainer._gradient(trainer._batches.at(3))
    assert len(seen) == world * accumulation
    x0, t, eps, cond, more_noise = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert len(set(cond.tolist())) > 4 and torch.equal(data.space.decode(x0)[:, 0, 0, 0].long(), cond)
    whole = Trainer(state, data, replace(options, class_conditional=False))._batches.at(3)
    assert torch.equal(cond, whole.labels) and torch.equal(eps, whole.eps)
    assert torch.equal(more_noise, torch.as_tensor(whole.more_noise))
    assert torch.equal(t, state.times.draw(whole.uniform).t)


def shown(labels: Tensor) -> Tensor:
    """Samples of a model of slope 0, in the model's space."""
    return (labels / 8 - 0.5).clamp(-1, 1)[:, None, None, None].expand(-1, 1, 8, 8)


def levels(labels: Tensor) -> Tensor:
    return KIND.space.decode(shown(labels))


def test_the_preview_shows_the_classes_in_turn():
    kind = replace(KIND, num_classes=3, class_names=())
    x0 = preview_samples(told(slope=0.0), kind, seed=0, cond=torch.arange(16) % 3, stops=lambda: False)
    assert x0 is not None
    np.testing.assert_array_equal(as_array(x0, kind), as_array(shown(torch.arange(16) % 3), kind))


@pytest.mark.parametrize("name", OF_SCORES)
def test_every_sampler_tells_each_sample_its_class(name: str):
    few = {"annealed_langevin": {"steps_per_level": 2}, "probability_flow": {"rtol": 0.1, "atol": 0.1}}.get(name, {})
    sampler = make_sampler(name, num_steps=4, **few)
    x_T = torch.randn(5, 1, 8, 8)
    found = sampler.sample(told(), x_T, cond=LABELS, noise=NoiseStreams(0, range(5))).x0
    for k, label in enumerate(LABELS):
        alone = sampler.sample(told(int(label)), x_T[k : k + 1], noise=NoiseStreams(0, [k])).x0
        torch.testing.assert_close(found[k : k + 1], alone, rtol=1e-4, atol=1e-4)


def _conditional(*settings: str) -> Any:
    flags = ("model.class_conditional=True", "sampling.sampler=ddim", "sampling.num_steps=3", *settings)
    path = str(ROOT / "configs/vp/digits.py")
    return load_config(path, [*TINY, *(f"--config.{one}" for one in flags)], defaults=get_default_config())


def test_a_run_samples_the_class_that_is_asked_for_or_all_in_turn():
    run = TrainedRun(told(slope=0.0), KIND, _conditional(), 1)
    for asked, expected in ((2, torch.full((4,), 2)), ("j", torch.full((4,), 9))):
        assert torch.equal(run.sample(4, label=asked), levels(expected))
    assert torch.equal(run.sample(13), levels(torch.arange(13) % CLASSES))


def _by_class(measured: Callable[[NetworkScoreModel, int], float], labels: Tensor) -> list[float]:
    return [measured(told(int(label)), k) for k, label in enumerate(labels)]


@pytest.mark.parametrize("likelihood", ["vlb", "vlb_continuous", "ode"])
def test_a_run_measures_each_image_of_each_batch_as_its_class(likelihood: str):
    fast = ("eval.batch_size=2", "eval.vlb_steps_per_image=2", "eval.ode_solver=euler", "eval.ode_num_steps=2")
    config = _conditional(*fast, "eval.vlb_step_sampling=uniform")
    found = TrainedRun(told(), KIND, config, 1).bits_per_dim(
        images(), labels=LABELS, likelihood=likelihood, progress=False
    )
    for k, label in enumerate(LABELS):
        # the others are of that class too, so that all but the labels is the same
        same = TrainedRun(told(), KIND, config, 1).bits_per_dim(
            images(), labels=label.expand(5), likelihood=likelihood, progress=False
        )
        torch.testing.assert_close(found[k], same[k], rtol=1e-6, atol=1e-6)
        assert abs(float(found[k] - same[k - 1])) > 1e-3


def test_a_split_is_measured_with_its_labels():
    estimator, data = make_likelihood("vlb", num_levels=LEVELS), replace(dataset(), images=images())
    found = measure(estimator, told(), data, batch_size=2, class_conditional=True).per_image
    alone = [
        measure(estimator, told(int(label)), data, batch_size=2).per_image[k] for k, label in enumerate(data.labels)
    ]
    np.testing.assert_allclose(found, alone, rtol=1e-6)


def test_samples_are_of_the_classes_in_turn_in_any_batch():
    sampler, classes, model = make_sampler("ddim", num_steps=3), (3, 7, 1), told(slope=0.0)
    expected = torch.tensor([classes[k % 3] for k in range(8)])
    result, _ = draw_batch(sampler, model, range(4, 7), sample_shape=KIND.image_shape, cond=expected[4:7])
    assert torch.equal(KIND.space.decode(result.x0), levels(expected[4:7]))
    samples, labels, _ = draw(
        sampler, model, sample_shape=KIND.image_shape, num_samples=8, batch_size=3, classes=classes
    )
    assert torch.equal(labels, expected) and torch.equal(KIND.space.decode(samples), levels(expected))


def test_a_sample_set_says_the_class_of_each_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sample_command, "load_same_trained", lambda *_: (told(slope=0.0), 6))
    monkeypatch.setattr(sample_command, "trained_kind", lambda *_: KIND)
    monkeypatch.setattr(sample_command, "check_for_use", lambda *_: None)
    sample_command.sample(_conditional("sampling.classes=3,c,7", "sampling.num_samples=7"), tmp_path)
    arrays = np.load(tmp_path / "samples" / "samples.npz")
    assert arrays["arr_1"].tolist() == [3, 2, 7, 3, 2, 7, 3]
    np.testing.assert_array_equal(arrays["arr_0"], as_array(shown(torch.tensor(arrays["arr_1"])), KIND))
