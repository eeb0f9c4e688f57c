"""``Trainer`` from Python: its own loop, a work directory, a stop and a resumption."""

from pathlib import Path

import pytest
import torch

from data import TensorDataset
from models import EpsParameterization, NetworkScoreModel
from models.backbones import MLP
from runtime.signals import Interrupted, StopRequest
from sde_lib import VP
from training import ExponentialMovingAverage, Trainer, TrainingOptions, TrainingState
from training.losses import DenoisingScoreMatching


def _trainer(workdir: Path | None, num_steps: int, seed: int = 0) -> Trainer:
    """A new trainer, with weights of its own until it resumes."""
    torch.manual_seed(seed)
    model = NetworkScoreModel(MLP(2, hidden=16), VP(), EpsParameterization(time_input="log_snr"))
    loss = DenoisingScoreMatching()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    state = TrainingState(
        model, ExponentialMovingAverage(model, 0.9), optimizer, loss, loss.time_sampler(model.sde, "low_discrepancy")
    )
    data = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    dataset = TensorDataset(data, torch.zeros(64, dtype=torch.int64), 1)
    options = TrainingOptions(num_steps, batch_size=8, log_every=2, checkpoint_every=3, keep_checkpoints=2)
    return Trainer(state, dataset, options, workdir=workdir)


def _tensors(trainer: Trainer) -> list[torch.Tensor]:
    return [*trainer.state.model.state_dict().values(), *trainer.state.ema.model.state_dict().values()]


def test_a_trainer_that_was_stopped_resumes_to_the_same_bits(tmp_path: Path):
    whole = _trainer(None, 8)
    whole.run()
    stopped, request = _trainer(tmp_path, 8), StopRequest()
    for _ in range(4):
        stopped.step()
    request.signal_number = 15
    with pytest.raises(Interrupted, match="stopped at step 4, which is saved"):
        stopped.run(request)
    resumed = _trainer(tmp_path, 8, seed=5)
    assert resumed.resume() and resumed.state.step == 4
    resumed.run()
    assert all(torch.equal(a, b) for a, b in zip(_tensors(resumed), _tensors(whole), strict=True))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_00000006", "step_00000008"]
    assert (tmp_path / "logs" / "metrics.jsonl").is_file()


def test_without_checkpoints_or_a_folder_there_is_nothing_to_resume(tmp_path: Path):
    assert not _trainer(tmp_path, 2).resume()
    with pytest.raises(ValueError, match="has nothing to resume; pass workdir"):
        _trainer(None, 2).resume()
