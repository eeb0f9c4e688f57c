"""A whole number is whatever is one by itself, NumPy's and torch's too, wherever an argument asks for one."""

import numpy as np
import pytest
import torch

from likelihood import ContinuousBound, FlowLikelihood, VariationalBound
from models import GaussianMixtureScoreModel
from models.backbones import ADM, MLP, NCSNpp, UNet
from runtime.options import whole_number
from samplers import make_sampler
from sde_lib import VE, VP, LearnedVP, NoiseStreams, Tabulated, cosine_betas, ddpm_betas, derive_seed, make_grid

KINDS = pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, torch.tensor], ids=lambda kind: kind.__name__)
SAMPLERS = {
    "ddim": ("ddim", {}, {}),
    "heun": ("heun", {"churn": 2.0}, {}),
    "unipc": ("unipc", {}, {"order": 3}),
    "pc": ("predictor_corrector", {}, {"corrector_steps": 2}),
    "langevin": ("annealed_langevin", {}, {"steps_per_level": 3}),
    "flow": ("probability_flow", {"solver": "rk4"}, {"max_nfe": 100}),
}


@KINDS
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(kind, name):
    sampler, options, whole = SAMPLERS[name]
    if kind is torch.tensor and name == "unipc":
        pytest.skip("an order is compared with 1, 2 and 3")
    model = GaussianMixtureScoreModel(VE(), means=torch.zeros(1, 2), covs=torch.eye(2)[None])
    numbers = {"num_steps": 4} | whole
    found = []
    for number in (int, kind):
        made = make_sampler(sampler, **options, **{key: number(value) for key, value in numbers.items()})
        noise = NoiseStreams(number(3), [number(k) for k in range(2)])
        found.append(made.sample(model, made.prior_sample(model.sde, (2,), noise), noise=noise).x0)
    assert torch.equal(*found)


@KINDS
def test_grids_tables_and_streams(kind):
    for name in ("uniform", "trailing", "leading", "karras", "log_snr", "quadratic"):
        assert torch.equal(make_grid(name, VP(), kind(7)), make_grid(name, VP(), 7))
    for build in (ddpm_betas, cosine_betas):
        assert torch.equal(build(kind(9)), build(9))
    for build in (Tabulated.ddpm, Tabulated.ncsn, Tabulated.improved_ddpm):
        assert torch.equal(build(num_steps=kind(9)).log_snr_table, build(num_steps=9).log_snr_table)
    assert len(LearnedVP(hidden_size=kind(5)).bias) == 5
    assert derive_seed(kind(3), kind(200)) == derive_seed(3, 200)


@KINDS
def test_likelihoods(kind):
    model = GaussianMixtureScoreModel(VE(), means=torch.zeros(1, 2), covs=torch.eye(2)[None])
    x0 = torch.ones(2, 2)
    for build in (
        lambda number: VariationalBound(num_levels=number(2), num_steps=number(6), steps_per_image=number(3)),
        lambda number: ContinuousBound(num_levels=number(2), steps_per_image=number(2)),
        lambda number: FlowLikelihood(
            num_levels=number(2), num_steps=number(5), solver="heun", num_probes=number(2), max_nfe=number(100)
        ),
    ):
        ours, theirs = (build(number)(model, x0, noise=NoiseStreams(0, range(2))).total for number in (int, kind))
        assert torch.equal(ours, theirs)


def test_networks():
    i = np.int64
    image = torch.zeros(2, 1, 8, 8)
    shared = {
        "in_channels": i(1),
        "channel_mult": (i(1), i(2)),
        "num_res_blocks": i(1),
        "attention_resolutions": (i(4),),
    }
    networks = [
        UNet(
            image_size=i(8), channels=i(8), norm_groups=i(4), input_frequencies=(i(2), i(3)), num_heads=i(2), **shared
        ),
        UNet(image_size=(i(8), i(8)), channels=i(8), norm_groups=i(4), **shared),
        ADM(image_size=i(8), channels=i(32), **shared),
        NCSNpp(image_size=i(8), channels=i(32), **shared),
    ]
    for network in networks:
        assert network(image, torch.ones(2)).shape == image.shape
    assert MLP(i(2), hidden=i(8), num_layers=i(1))(torch.ones(2, 2), torch.ones(2)).shape == (2, 2)


@pytest.mark.parametrize("value", [2.5, 5.0, "5", None, True, np.bool_(True), np.float64(5), 0, np.int64(-1), [5]])
def test_what_is_none_is_refused_in_one_line(value):
    for build in (
        lambda: whole_number("num_steps", value, fix="pass 1 or more"),
        lambda: make_grid("uniform", VP(), value),
        lambda: make_sampler("ddim", num_steps=value),
    ):
        with pytest.raises(ValueError, match=r"^num_steps must be at least 1, a whole number, got .*; pass 1 or more$"):
            build()


@pytest.mark.parametrize("value", [1.5, True, -1, 2**64, "1"])
def test_seeds_that_are_none_are_refused(value):
    for build in (lambda: NoiseStreams(0, [value]), lambda: derive_seed(0, value)):
        with pytest.raises(ValueError, match=r"seed"):
            build()
