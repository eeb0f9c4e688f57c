"""Settings and tensors that no project wrote are one line, never an error of another kind."""

import json
import os
from pathlib import Path

import pytest
import torch

from models.backbones import NCSNpp
from models.pretrained.diffusers.settings import plan_diffusers
from models.pretrained.edm.importer import from_edm, plan_edm
from models.pretrained.edm.names import edm_sources
from models.pretrained.guided.settings import plan_guided
from models.pretrained.score_sde.importer import plan_score_sde
from models.pretrained.score_sde.layout import score_sde_sources
from models.pretrained.shared.renaming import renamed
from models.pretrained.shared.settings import Settings, read_json

SIZE = {"image_size": 8, "channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,)}
UNET = {"sample_size": 8, "block_out_channels": [32, 64], "down_block_types": ["DownBlock2D"] * 2}
UNET |= {"up_block_types": ["UpBlock2D"] * 2, "layers_per_block": 1}
GUIDED = {"image_size": 8, "model_channels": 32, "out_channels": 3, "num_res_blocks": 1, "attention_resolutions": [2]}
SCORE_SDE = {"data.image_size": 8, "model.name": "ncsnpp", "training.sde": "vpsde", "training.continuous": False}
SCORE_SDE |= {"model.fir": True, "model.skip_rescale": True}


def one_line(message, compute):
    with pytest.raises(ValueError, match=message) as error:
        compute()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("unet", "scheduler", "message"),
    [
        ({"sample_size": float("inf")}, {}, "sample_size must be a whole number, got inf"),
        ({"sample_size": [None, None]}, {}, "sample_size must be a whole number"),
        ({"block_out_channels": [float("inf"), 64]}, {}, "block_out_channels must be numbers separated by commas"),
        ({"down_block_types": 3}, {}, "down_block_types must be a list of words, got 3"),
        ({"down_block_types": [["DownBlock2D"], {}]}, {}, "down_block_types must be a list of words"),
        ({"up_block_types": {"a": 1}}, {}, "up_block_types must be a list of words"),
        ({}, {"num_train_timesteps": 0}, "num_train_timesteps must be a whole number of at least 2, got 0"),
        ({}, {"trained_betas": [None, 0.1], "num_train_timesteps": 2}, "trained_betas must be numbers"),
        ({}, {"beta_schedule": "scaled_linear", "beta_start": -0.1}, "must be inside \\(0, 1\\), got -0.1 to 0.02"),
    ],
)
def test_settings_of_diffusers_of_any_kind_are_one_line(unet, scheduler, message):
    one_line(message, lambda: plan_diffusers(UNET | unet, scheduler))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 2, got 0"),
        ({"channel_mult": []}, "channel_mult"),
        ({"image_size": float("inf")}, "image_size must be a whole number, got inf"),
    ],
)
def test_settings_of_guided_diffusion_of_any_kind_are_one_line(changes, message):
    one_line(message, lambda: plan_guided(GUIDED | {"channel_mult": [1, 2]} | changes).build_backbone())


def test_settings_of_edm_and_score_sde_of_any_kind_are_one_line():
    path, network = Path("a.pt"), NCSNpp(**SIZE, fir_kernel=None, input_pyramid="none")
    tensors = renamed(network, edm_sources(network))
    config = {"class_name": ["EDMPrecond"]}
    one_line("unknown class_name", lambda: plan_edm(tensors, config, preconditioning=None, path=path))
    tensors = renamed(network, score_sde_sources(network))
    config = SCORE_SDE | {"model.num_scales": 0}
    one_line("num_scales must be a whole number of at least 2", lambda: plan_score_sde(tensors, config, path=path))


@pytest.mark.parametrize("name", ["map_layer0.weight", "enc.8x8_conv.weight", "enc.8x8_block0.conv0.weight"])
@pytest.mark.parametrize("shape", [(), (0,), (0, 0, 0, 0)])
def test_tensors_of_edm_of_any_shape_are_one_line(tmp_path, name, shape):
    network = NCSNpp(**SIZE, fir_kernel=None, input_pyramid="none")
    tensors = renamed(network, edm_sources(network)) | {name: torch.zeros(shape)}
    torch.save(tensors, tmp_path / "a.pt")
    one_line("a.pt|channel_mult must give each level", lambda: from_edm(tmp_path / "a.pt", preconditioning="edm"))
    del tensors[name]
    torch.save(tensors, tmp_path / "a.pt")
    one_line("a.pt|channel_mult must give each level", lambda: from_edm(tmp_path / "a.pt", preconditioning="edm"))


@pytest.mark.parametrize("shape", [(0, 0, 0, 0), (0, 3, 3, 3)])
def test_tensors_of_score_sde_of_any_shape_are_one_line(shape):
    network = NCSNpp(**SIZE)
    tensors = renamed(network, score_sde_sources(network)) | {"all_modules.2.weight": torch.zeros(shape)}
    one_line("a.pt", lambda: plan_score_sde(tensors, SCORE_SDE, path=Path("a.pt")))


def test_files_of_settings_that_are_none_are_one_line(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("[" * 100_000)
    one_line("config.json is no JSON", lambda: read_json(path, "config"))
    path.write_bytes(b"\xff\xfe{")
    one_line("config.json is no JSON", lambda: read_json(path, "config"))
    with path.open("wb") as file:
        file.truncate(2**30)
    one_line("config.json has 1073741824 bytes, expected at most 16777216", lambda: read_json(path, "config"))
    path.unlink()
    os.mkfifo(path)
    one_line("config.json is not a regular file", lambda: read_json(path, "config"))
    one_line("cannot be read", lambda: read_json(tmp_path / "absent.json", "config"))
    path.unlink()
    path.write_text(json.dumps({"a": [1, 2]}))
    assert Settings(path).integers("a", None) == (1, 2)
