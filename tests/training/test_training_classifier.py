"""A noisy classifier is trained as any model: its step by hand, its resumption, and the losses it may have."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from classifier_runs import CLASSIFIER, classifier_command
from tiny import ROOT, TINY, error, last_tensors, tiny_command
from torch.nn import functional as F
from training_runs import CPU, digits_like

import main
from experiment.config import load_config
from models import NoisyClassifier
from runtime.processes.rank_slice import RankSlice
from training.batches import Batches
from training.build import build_options, build_state
from training.losses import CrossEntropyLoss, make_loss
from training.trainer import Trainer


def test_a_step_is_adamw_on_the_mean_cross_entropy_of_x_t():
    flags = [*TINY, "--config.model.dropout=0"]
    config, dataset = load_config(str(ROOT / f"configs/{CLASSIFIER}.py"), flags), digits_like(40)
    state = build_state(config, dataset.kind, CPU)
    assert isinstance(state.loss, CrossEntropyLoss) and isinstance(state.model, NoisyClassifier)
    by_hand, state.step = copy.deepcopy(state.model), 1
    trainer = Trainer(state, dataset, replace(build_options(config), grad_clip=0.0))
    found = trainer.step()

    batch = Batches(dataset, RankSlice(8), seed=config.seed).at(1)
    sde = by_hand.sde
    t = sde.t_min + batch.uniform * (sde.t_max - sde.t_min)
    alpha, sigma = (scale[:, None, None, None] for scale in sde.alpha_sigma(t))
    x_t = alpha.float() * dataset.space.encode(batch.samples) + sigma.float() * batch.eps
    # what the network is told: the row of the table
    logits = by_hand.backbone(x_t, 1000 * t - 1)
    loss = F.cross_entropy(logits, batch.labels)
    loss.backward()
    rate = config.optim.learning_rate * 2 / config.optim.warmup_steps
    torch.optim.AdamW(by_hand.parameters(), lr=rate, betas=(0.9, 0.999), weight_decay=0.05).step()
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-6)
    for mine, theirs in zip(state.model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_a_training_that_is_stopped_and_resumed_ends_in_the_same_bits(classifier_run: Path, tmp_path: Path):
    for steps in (3, 6):
        assert main.run(classifier_command("train", tmp_path / "run", f"--config.training.num_steps={steps}")) == 0
    one, other = last_tensors(classifier_run), last_tensors(tmp_path / "run")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    first = json.loads((classifier_run / "logs" / "metrics.jsonl").read_text().splitlines()[0])
    # an untrained classifier of ten classes says log 10
    assert first["loss"] == pytest.approx(2.30, abs=0.3)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("training.loss=ddpm", "loss 'ddpm' does not train a classifier; a classifier's is 'cross_entropy'"),
        ("training.weighting=x0", "loss 'cross_entropy' has its own weighting, got 'x0'"),
        ("training.step_sampling=importance", "step sampling 'importance' needs a loss with a table"),
        ("model.class_conditional=False", "backbone classifier is of classes, got model.class_conditional=False"),
        ("sde.name=vp_learned", "loss 'cross_entropy' needs an SDE that is fixed, got a learned noise schedule"),
        ("data.dataset=moons", "backbone classifier is of images, got vectors of 2 numbers"),
    ],
)
def test_what_no_classifier_is_trained_with_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: str, message: str
):
    assert message in error(capsys, classifier_command("train", tmp_path / "run", f"--config.{extra}"))
    assert not (tmp_path / "run").exists()


def test_a_score_model_has_no_cross_entropy(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    said = error(capsys, tiny_command("train", tmp_path / "run", "--config.training.loss=cross_entropy"))
    assert "loss 'cross_entropy' does not train a score model" in said
    assert not (tmp_path / "run").exists()


def test_automatic_is_the_cross_entropy_of_what_has_no_parameterization():
    sde = build_state(load_config(str(ROOT / "configs/vp/digits.py"), TINY), digits_like(1).kind, CPU).model.sde
    assert isinstance(make_loss("auto", sde=sde, parameterization=None, weighting="auto"), CrossEntropyLoss)
