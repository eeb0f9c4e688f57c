"""A learned noise schedule and its optimizer."""

from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict

from data import ImageDataset
from experiment.config import load_config
from sde_lib import LearnedVP
from training.build import build_state
from training.state import TrainingState
from training.trainer import Trainer, TrainingOptions

ROOT = Path(__file__).resolve().parents[2]
LEVELS = 17


def _config(*extra: str) -> ConfigDict:
    small = ("model.channels=16", "model.attention_resolutions=4", "training.batch_size=8", *extra)
    return load_config(str(ROOT / "configs/vp/mnist_vdm.py"), [f"--config.{setting}" for setting in small])


def _state(config: ConfigDict) -> tuple[TrainingState, ImageDataset]:
    images = torch.randint(LEVELS, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dataset = ImageDataset(images, torch.arange(16) % 10, LEVELS, 10, "digits", "train")
    return build_state(config, dataset.kind, torch.device("cpu")), dataset


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_weight_decay_is_for_the_network_alone(name: str, tmp_path: Path):
    """With gradients of 0, a step is the decay: log-SNRs stay, weights go to 0."""
    config = _config(f"optim.name={name}", "optim.weight_decay=0.1")
    state, _ = _state(config)
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    after = state.model.state_dict()
    schedule = {key for key in before if key.startswith("sde.")}
    assert len(schedule) == 5 and all(torch.equal(after[key], before[key]) for key in schedule)
    weights = [key for key in before if float(before[key].abs().max()) > 0 and key not in schedule]
    assert len(weights) > 20 and not any(torch.equal(after[key], before[key]) for key in weights)
    # each parameter once, and saved and restored with its moments
    numbers = [number for group in state.optimizer.state_dict()["param_groups"] for number in group["params"]]
    assert len(numbers) == len(set(numbers)) == len(list(state.model.parameters()))
    state.step = 1
    state.save(tmp_path, keep=1)
    other, _ = _state(config)
    assert other.restore(tmp_path)
    assert all(torch.equal(value, after[key]) for key, value in other.model.state_dict().items())
    assert [group["weight_decay"] for group in other.optimizer.param_groups] == [0.1, 0.0]


def _gradients(grad_clip: float) -> tuple[dict[str, torch.Tensor], float]:
    """Those that the optimizer is given in the first step, and the norm that is logged."""
    config = _config()
    state, dataset = _state(config)
    trainer = Trainer(state, dataset, TrainingOptions(1, batch_size=8, learning_rate=1e-3, grad_clip=grad_clip))
    norm = trainer.step().grad_norm
    gradients = {name: p.grad.double() for name, p in state.model.named_parameters() if p.grad is not None}
    return gradients, float(norm)


def test_the_gradient_of_the_variance_takes_nothing_from_that_of_the_loss():
    """Each is clipped by its own norm."""
    inside = {f"sde.{name}" for name, _ in LearnedVP().named_parameters() if not name.startswith("gamma")}
    whole, norm = _gradients(0.0)
    clipped, logged = _gradients(1.0)
    assert len(inside) == 3 and inside < whole.keys() == clipped.keys()
    norms = {}
    for names in (inside, whole.keys() - inside):
        of_names = float(torch.cat([whole[name].flatten() for name in names]).norm())
        norms[len(names)] = of_names
        for name in names:
            torch.testing.assert_close(clipped[name], whole[name] / of_names, rtol=1e-4, atol=1e-9)
    of_variance, of_loss = (norms[count] for count in sorted(norms))
    assert of_variance > 5 * of_loss > 5
    assert norm == pytest.approx(of_loss, rel=1e-5) and logged == pytest.approx(of_loss, rel=1e-5)


def test_a_gradient_of_the_schedule_that_is_not_finite_leaves_the_step_out():
    """The inside of the schedule has a norm of its own, which the test for bad steps is to see."""
    config = _config()
    state, dataset = _state(config)
    schedule = state.model.sde
    assert isinstance(schedule, LearnedVP)
    schedule.inner_parameters()[0].register_hook(lambda gradient: gradient * float("nan"))
    trainer = Trainer(state, dataset, TrainingOptions(1, batch_size=8, learning_rate=1e-3, grad_clip=1.0))
    before = {key: value.clone() for key, value in state.model.state_dict().items()}
    assert trainer.step().skipped
    assert all(torch.equal(value, before[key]) for key, value in state.model.state_dict().items())
