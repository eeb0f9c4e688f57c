"""Small networks of published projects with their inputs and outputs, in a folder beside the checkout."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from models.backbones.blocks.embedding import LabelEmbedding
from sde_lib import VP

FOLDER = Path(os.environ.get("SDE_REFERENCE") or Path(__file__).resolve().parents[2] / "shared" / "reference")


class Reference:
    """One network: its settings, its file, and what it gave for its inputs.

    Attributes:
        settings: What its JSON says.
        path: The file of its weights.
        arrays: Inputs and outputs, [case, item, ...].
    """

    def __init__(self, name: str) -> None:
        if not (FOLDER / f"{name}.json").is_file():
            pytest.skip(f"no reference network {name} in {FOLDER}; set SDE_REFERENCE to the folder that has it")
        self.settings = json.loads((FOLDER / f"{name}.json").read_text())
        self.path = FOLDER / self.settings["weights_file"]
        self.arrays = {key: torch.from_numpy(value) for key, value in np.load(FOLDER / f"{name}_io.npz").items()}

    @property
    def config(self):
        """Arguments of its class and of its diffusion."""
        return {**self.settings["constructor"], **self.settings.get("diffusion", {})}

    def cases(self):
        """The arrays of one case after another."""
        for k in range(len(self.arrays["x"])):
            yield {key: value[k] for key, value in self.arrays.items()}


def per_sample_error(out, truth):
    """Largest difference over largest value, of the worst sample."""
    axes = tuple(range(1, truth.ndim))
    return ((out.double() - truth).abs().amax(axes) / truth.abs().amax(axes)).max().item()


def worst_error(reference, compute, truth="y_out_f64"):
    """The error over all cases of ``compute(case)`` against one of their arrays."""
    with torch.no_grad():
        return max(per_sample_error(compute(case), case[truth].double()) for case in reference.cases())


def score_sde_output(model, case, dtype):
    """The output of score_sde_pytorch's network: of the VE networks, of data in [0, 1] and divided by sigma."""
    x, t = case["x"].to(dtype), case["t"].double()
    if model.sde.prior_std == 1:
        return model.backbone(x, t)
    return model.backbone(2 * x - 1, t.log()) / t.to(dtype)[:, None, None, None]


def take_no_class(network):
    """Let a network take the label -1, for which EDM's code has zeros whether it was trained with it or not."""
    for module in network.modules():
        if isinstance(module, LabelEmbedding):
            module.null_condition = True
    return network


def edm_denoised(model, case, dtype):
    """EDM's D(x; sigma) with x = x0 + sigma n: x_t over alpha, where VP's sigma over alpha is sigma."""
    x, sigma = case["x"].double(), case["t"].double()
    if isinstance(model.sde, VP):
        t = model.sde.time_from_log_snr(-2 * sigma.log())
        x = x * (1 + sigma.square()).rsqrt()[:, None, None, None]
    else:
        t = model.sde.time_from_sigma(sigma)
    told = model.parameterization.c_noise(model.sde, t)
    torch.testing.assert_close(told, case["c_noise"], rtol=0, atol=1e-10)
    return model(x.to(dtype), t, cond=case.get("y"))


def randomize(network, seed=0):
    """Draw every parameter, so that no branch is silent."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1.0
    return network.eval()


def count(build):
    """Number of parameters, without memory for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters())
