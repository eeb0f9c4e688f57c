"""The shapes in the signatures are true: every public call runs under a type checker, and wrong shapes are caught."""

import subprocess
import sys

import pytest

SCRIPT = """
from jaxtyping import TypeCheckError, install_import_hook

with install_import_hook(["sde_lib", "models", "samplers", "likelihood"], "beartype.beartype"):
    import sde_lib
    import models
    import samplers
    import likelihood

import torch
from models import *
from sde_lib import *


class Same(torch.nn.Module):
    def forward(self, x, time):
        return x


B = 3
for name in available_sdes():
    sde = make_sde(name, **({"betas": [0.01, 0.05, 0.1, 0.2, 0.3]} if name == "betas" else {}))
    for dtype in (torch.float32, torch.float64):
        x0, eps = torch.randn(2, B, 2, 3, 3).to(dtype)
        t = torch.tensor([0.3, 0.6, 0.9]).to(dtype)
        s = t / 2
        x_t = sde.perturb(x0, t, eps)
        sde.posterior(x0, x_t, s, t)
        sde.transition_var(s, t)
        sde.prior_log_prob(sde.prior_sample((2, 3, 3), NoiseStreams(0, range(B))))
        for of_time in ("alpha", "sigma", "log_snr", "drift_coeff", "diffusion_sq"):
            assert getattr(sde, of_time)(t).shape == (B,)
        sde.time_from_sigma(sde.sigma(t))
        sde.time_from_log_snr(sde.log_snr(t))
        discrete = DiscreteScoreModel(sde, points=torch.randn(4, 2, 3, 3), probs=[0.25] * 4, variance_fraction=0.5)
        for model in (discrete, ClippedScoreModel(discrete), ThresholdedScoreModel(discrete)):
            prediction = model(x_t, t)
            assert prediction.score.shape == x_t.shape
            model.score(x_t, sde.sigma(t))
            for kind in ("small", "large", "learned"):
                reverse_log_var(kind, prediction, sde, s, t)
        mixture = GaussianMixtureScoreModel(sde, means=torch.zeros(2, 4), covs=torch.eye(4).expand(2, 4, 4))
        x = sde.perturb(mixture.sample_data(B).to(dtype), t, torch.randn(B, 4).to(dtype))
        mixture.log_prob(x, t)
        for parameterization in ("eps", "x0", "v", "score", "edm"):
            NetworkScoreModel(Same(), sde, make_parameterization(parameterization))(x, t, cond=None)
    for grid in available_grids():
        make_grid(grid, sde, 5)
    for sampler in ("ancestral", "ddim"):
        samplers.make_sampler(sampler, num_steps=3, record_trajectory=True).sample(discrete, x_t.float())

points = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
table = make_sde("ddpm", num_steps=10)
bits = DiscreteScoreModel(table, points=points, probs=[0.5, 0.5])
likelihood.make_likelihood("vlb", num_levels=2)(bits, points).bits_per_dim

vp = make_sde("vp")
image, time = torch.zeros(B, 2, 3, 3), torch.tensor([0.3, 0.6, 0.9])
wrong = {
    "t [B, 1]": lambda: vp.perturb(image, time[:, None], image),
    "t of another batch": lambda: vp.perturb(image, time[:2], image),
    "integer t": lambda: vp.alpha(torch.tensor([0, 1])),
    "eps of another shape": lambda: vp.perturb(image, time, image[:, :1]),
    "x_t of another batch": lambda: vp.posterior(image, image[:2], time / 2, time),
    "s of another batch": lambda: vp.posterior(image, image, time[:2] / 2, time),
    "sigma of another batch": lambda: bits.score(torch.zeros(B, 2), time[:2]),
    "eps of another batch": lambda: Prediction(x0=image, eps=image[:2], sigma=time),
    "sigma [B, 1]": lambda: Prediction(x0=image, eps=image, sigma=time[:, None]),
    "value of another batch": lambda: expand_like(time[:2], image, name="value"),
    "noise like a number": lambda: NoiseStreams(0, range(B)).normal_like(3.0),
    "x [B, C, H, W] to a mixture's density": lambda: mixture.log_prob(image, time),
}
for what, call in wrong.items():
    try:
        call()
    except TypeCheckError:
        continue
    raise SystemExit(f"not caught: {what}")
print("checked", len(wrong))
"""


@pytest.mark.slow
def test_shape_annotations_hold_and_catch_wrong_shapes():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "checked 12\n"
