"""Every config of clips builds its network, and one step of it moves the weights that it can."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data import VideoDataset
from experiment.build import build_dataset
from experiment.conditions import build_conditions
from experiment.config import load_config
from experiment.config.checks import check_config
from models import FirstStage
from models.backbones import SpaceTimeDiT
from training.build import build_options, build_state
from training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(
    path.stem for path in (ROOT / "configs" / "video").glob("*.py") if path.stem not in ("__init__", "family")
)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_of_clips_takes_its_steps(name: str):
    overrides = ["--config.model.channels=16", "--config.training.batch_size=4", "--config.data.options=num_clips=20"]
    if "predict" in name:
        # some of so few clips are to be without frames
        overrides.append("--config.model.condition_dropout=0.5")
    config = load_config(str(ROOT / "configs" / "video" / f"{name}.py"), overrides)
    check_config(config)
    dataset = build_dataset(config, "train")
    assert isinstance(dataset, VideoDataset)
    state = build_state(config, dataset.kind, torch.device("cpu"))
    network = state.model.backbone
    if "autoencoder" in name:
        assert isinstance(state.model, FirstStage) and state.model.num_frames == 8
    else:
        assert isinstance(network, SpaceTimeDiT)
        assert (network.given_frames, network.num_frames) == ((2, 6) if "predict" in name else (0, 8))
    options = replace(build_options(config), warmup_steps=0)
    trainer = Trainer(state, dataset, options, conditions=build_conditions(config, dataset.kind))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for _ in range(4):
        trainer.step()
    # the last layer moves first, then the gates of the blocks, then all that they let through
    stuck = [key for key, value in network.state_dict().items() if torch.equal(before[key], value)]
    assert not stuck
