"""``--mode import`` of consistency models and rectified flows, and what the other modes do with them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import ROOT

import main
from experiment import load_run
from models import ConsistencyModel, NetworkScoreModel
from models.backbones import ADM, NCSNpp
from models.pretrained import from_consistency
from models.pretrained.consistency.importer import plan_consistency
from models.pretrained.guided.importer import guided_sources
from models.pretrained.score_sde.layout import score_sde_sources
from models.pretrained.shared.renaming import renamed
from sde_lib import NoiseStreams

FLAGS = (
    "--attention_resolutions 4 --channel_mult 1,2 --class_cond True --image_size 8 --num_channels 32 "
    "--num_head_channels 16 --num_res_blocks 1 --resblock_updown True"
)
DRAWN = ["--config.sampling.num_samples=3", "--config.sampling.batch_size=3", "--config.device=cpu"]


def _command(mode: str, config: str, workdir: Path, *extra: str) -> list[str]:
    path = ROOT / "configs" / "pretrained" / f"{config}.py"
    size = ["--config.data.dataset=folder", "--config.data.image_size=8", "--config.data.channels=3"]
    return [f"--config={path}", f"--mode={mode}", f"--workdir={workdir}", *size, *DRAWN, *extra]


def test_a_consistency_model_is_drawn_of_in_one_call_and_has_no_likelihood(tmp_path: Path):
    flags = f"--training_mode consistency_distillation {FLAGS}"
    torch.manual_seed(0)
    network = plan_consistency(flags, num_classes=5).build_backbone()
    assert isinstance(network, ADM)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(renamed(network, guided_sources(network, new_attention_order=True)), tmp_path / "cd.pt")
    settings = [f"--config.source.config={flags}"]
    imported = _command("import", "consistency_imagenet64", tmp_path / "run", *settings)
    assert main.run([*imported, f"--checkpoint={tmp_path / 'cd.pt'}"]) == 0
    assert main.run(_command("sample", "consistency_imagenet64", tmp_path / "run", *settings)) == 0
    assert json.loads((tmp_path / "run/samples/samples.json").read_text())["nfe"] == 1
    run = load_run(tmp_path / "run", device="cpu")
    assert isinstance(run.model, ConsistencyModel) and run.step == 0
    z, y = 80 * NoiseStreams(0, range(3)).normal((3, 8, 8)), torch.arange(3)
    model = from_consistency(tmp_path / "cd.pt", flags)
    assert isinstance(model, ConsistencyModel)
    expected = run.decode(model(z, torch.ones(3), cond=y).detach().clamp(-1, 1))
    drawn = np.load(tmp_path / "run/samples/samples.npz")["arr_0"]
    assert np.array_equal(drawn, expected.permute(0, 2, 3, 1).numpy())
    with pytest.raises(ValueError, match="which is not a density: it has no score and no likelihood"):
        run.bits_per_dim(torch.from_numpy(drawn).permute(0, 3, 1, 2), labels=y)


def test_a_rectified_flow_is_a_score_model_like_any_other(tmp_path: Path):
    settings = {"image_size": 8, "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1}
    torch.manual_seed(0)
    network = NCSNpp(**settings, attention_resolutions=(4,), fir_kernel=None, input_pyramid="none")
    torch.save({"model": renamed(network, score_sde_sources(network))}, tmp_path / "checkpoint_8.pth")
    theirs = {"data": {"image_size": 8}, "training": {"sde": "rectified_flow", "continuous": False}}
    theirs["model"] = {"name": "ncsnpp", "fir": False, "skip_rescale": True}
    (tmp_path / "rf.json").write_text(json.dumps(theirs))
    extra = [f"--config.source.config={tmp_path / 'rf.json'}", "--config.source.weights=raw"]
    extra += ["--config.sampling.sampler=ddim", "--config.sampling.options=", "--config.sampling.num_steps=4"]
    imported = _command("import", "rectified_flow_cifar10", tmp_path / "run", *extra)
    assert main.run([*imported, f"--checkpoint={tmp_path / 'checkpoint_8.pth'}"]) == 0
    assert main.run(_command("sample", "rectified_flow_cifar10", tmp_path / "run", *extra)) == 0
    run = load_run(tmp_path / "run", device="cpu")
    assert isinstance(run.model, NetworkScoreModel)
    assert (run.config.sde.name, run.config.model.parameterization) == ("rectified_flow", "velocity_to_data")
    assert run.config.model.time_input == "reversed_t999" and run.config.model.answers == "posterior_mean"
