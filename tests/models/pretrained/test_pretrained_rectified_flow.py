"""Networks of RectifiedFlow, whose time runs from noise to data, against its formulas around the same weights."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from importer_references import randomize

from models.backbones import NCSNpp
from models.pretrained import from_score_sde
from models.pretrained.score_sde.layout import score_sde_sources
from models.pretrained.shared.renaming import renamed
from samplers import make_sampler
from sde_lib import NoiseStreams, RectifiedFlow, make_grid

CONFIG = {
    "data": {"image_size": 8, "centered": True, "num_channels": 3},
    "model": {"name": "ncsnpp", "fir": False, "skip_rescale": True, "embedding_type": "positional", "num_scales": 1000},
    "training": {"sde": "rectified_flow", "continuous": False},
}


def written(folder: Path, **options: object) -> tuple[NCSNpp, Path]:
    """A checkpoint of the project's training loop, whose average is other numbers than its weights."""
    settings = {"image_size": 8, "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1}
    settings |= {"attention_resolutions": (4,), "fir_kernel": None, "input_pyramid": "none"} | options
    network = randomize(NCSNpp(**settings))
    tensors = renamed(network, score_sde_sources(network))
    sigmas = torch.linspace(math.log(50), math.log(0.01), 1000, dtype=torch.float64).exp()
    trained = [tensor for name, tensor in tensors.items() if not name.endswith(".0.W")]
    checkpoint = {
        "optimizer": {},
        "model": {"module.sigmas": sigmas} | {f"module.{name}": 0 * tensor for name, tensor in tensors.items()},
        "ema": {"decay": 0.999999, "num_updates": 7, "shadow_params": trained},
        "step": 7,
    }
    torch.save(checkpoint, folder / "checkpoint_8.pth")
    return network, folder / "checkpoint_8.pth"


def test_x0_and_noise_are_those_of_its_velocity(tmp_path):
    network, path = written(tmp_path)
    model = from_score_sde(path, CONFIG).double()
    network = network.double()
    theirs = torch.tensor([0.001, 0.3, 0.8, 0.9999], dtype=torch.float64)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        # Liu et al. 2023: x = t x0 + (1 - t) z, and the network of 999 t answers x0 - z
        velocity = network(x, 999 * theirs)
        found = model(x, 1 - theirs)
    wide = theirs[:, None, None, None]
    torch.testing.assert_close(found.x0, x + (1 - wide) * velocity, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.eps, x - wide * velocity, rtol=1e-9, atol=1e-9)
    assert isinstance(model.sde, RectifiedFlow) and float(velocity.abs().max()) > 0.1


def test_its_euler_sampler_is_ddim(tmp_path):
    network, path = written(tmp_path)
    model, network = from_score_sde(path, CONFIG).double(), network.double()
    sampler = make_sampler("ddim", num_steps=6)
    times = 1 - make_grid("uniform", model.sde, 6)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        found = sampler.sample(model, x, noise=NoiseStreams(0, range(2))).x0
        for now, then in pairwise(times):
            x = x + (then - now) * network(x, (999 * now).expand(2))
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)


def test_a_flow_of_pairs_has_no_posterior_mean(tmp_path):
    _, path = written(tmp_path)
    reflow = {"reflow_type": "train_reflow", "reflow_t_schedule": "uniform"}
    model, first = from_score_sde(path, CONFIG | {"reflow": reflow}), from_score_sde(path, CONFIG)
    assert (model.answers, first.answers) == ("flow", "posterior_mean")
    x, noise = torch.randn(2, 3, 8, 8), NoiseStreams(0, range(2))
    with torch.no_grad():
        both = [make_sampler("ddim", num_steps=2).sample(one, x, noise=noise).x0 for one in (model, first)]
        assert torch.equal(*both)
        with pytest.raises(ValueError, match="flow"):
            make_sampler("ancestral", num_steps=2).sample(model, x, noise=noise)


def test_what_is_no_rectified_flow_is_refused(tmp_path):
    _, path = written(tmp_path, embedding="fourier")
    with pytest.raises(ValueError, match="rectified_flow needs a positional embedding of time"):
        from_score_sde(path, {**CONFIG, "model": {**CONFIG["model"], "embedding_type": "fourier"}})
    distilled = {"reflow_type": "train_reflow", "reflow_t_schedule": "t0"}
    with pytest.raises(ValueError, match="reflow_t_schedule='t0' is not supported"):
        from_score_sde(written(tmp_path)[1], CONFIG | {"reflow": distilled})
