"""Networks of EDM: the project's numbers, what is read off the tensors, and what is refused."""

import json
import os
import pickle

import pytest
import torch
from importer_references import Reference, edm_denoised, randomize, take_no_class

from models.backbones import NCSNpp
from models.pretrained.edm.importer import from_edm
from models.pretrained.edm.names import edm_sources
from models.pretrained.edm.settings import plan_edm_adm
from models.pretrained.score_sde.importer import from_score_sde
from models.pretrained.shared.renaming import renamed
from models.pretrained.shared.settings import Settings
from models.pretrained.shared.tensors import read_tensors
from sde_lib import VE, VP

SONG = ["edm_ddpmpp_edm_cond", "edm_ddpmpp_vp", "edm_ncsnpp_ve", "edm_song_skip"]


def imported(name):
    reference = Reference(name)
    config = reference.settings["constructor"]
    # one of the noise levels rounds to below the smallest in float32
    extra = {"sigma_min": 0.01} if name == "edm_ncsnpp_ve" else {}
    return reference, take_no_class(from_edm(reference.path, config | extra))


@pytest.mark.parametrize("name", SONG)
def test_scores_are_those_of_the_project(name):
    reference, model = imported(name)
    model.double()

    def score_of_x(case):
        score = edm_denoised(model, case, torch.float64).score
        if isinstance(model.sde, VP):  # grad with respect to x = x_t / alpha
            score = score * (1 + case["t"].double().square()).rsqrt()[:, None, None, None]
        return score

    with torch.no_grad():
        for case in reference.cases():
            sigma = case["t"].double()[:, None, None, None]
            truth = (case["y_out_f64"] - case["x"].double()) / sigma.square()
            # what they subtract is rounded to 1e-16 of x before it is divided
            torch.testing.assert_close(score_of_x(case), truth, rtol=1e-8, atol=1e-10 * float(truth.abs().max()))


@pytest.mark.parametrize("name", SONG)
def test_every_tensor_is_used_as_it_is(name):
    reference, model = imported(name)
    assert isinstance(model.backbone, NCSNpp)
    assert sum(p.numel() for p in model.parameters()) == reference.settings["num_parameters"]
    expected = {
        name.removeprefix("model."): tensor
        for name, tensor in read_tensors(reference.path).items()
        if not name.endswith("resample_filter")
    }
    found = renamed(model.backbone, edm_sources(model.backbone))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


SMALL = {"image_size": 16, "channels": 8, "channel_mult": (1, 2, 1), "num_res_blocks": 1}


def filters(kernel):
    taps = torch.tensor(kernel, dtype=torch.float32)
    taps = taps / taps.sum()
    return (taps[:, None] * taps)[None, None]


def write(tmp_path, network, kernel=(1, 1), prefix="model."):
    tensors = {f"{prefix}{name}": tensor for name, tensor in renamed(network, edm_sources(network)).items()}
    for name in [name for name in tensors if name.endswith(("_down.conv0.weight", "_up.conv0.weight"))]:
        tensors[name.replace("weight", "resample_filter")] = filters(kernel)
    torch.save(tensors, tmp_path / "network.pt")
    return tmp_path / "network.pt"


@pytest.mark.parametrize(
    ("name", "kind", "kernel"),
    [("scoresde_ddpmpp_vp_continuous", "vp", (1, 1)), ("scoresde_ncsnpp_ve_continuous", "ve", (1, 3, 3, 1))],
)
def test_one_network_under_both_projects_names_is_one_model(tmp_path, name, kind, kernel):
    reference = Reference(name)
    one = from_score_sde(reference.path, reference.settings["config"])
    other = from_edm(write(tmp_path, one.backbone, kernel), preconditioning=kind)
    for case in reference.cases():
        x, t = case["x"], case["sde_time"]
        assert torch.equal(one(x, t).eps, other(x, t).eps)


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize(
    ("settings", "kernel"),
    [
        ({"attention_resolutions": (8,), "input_pyramid": "none", "fir_kernel": None}, (1, 1)),
        ({"attention_resolutions": (16, 4), "num_res_blocks": 3, "embedding": "fourier"}, (1, 3, 3, 1)),
        (
            {
                "attention_resolutions": (),
                "num_classes": 4,
                "null_condition": True,
                "augment_dim": 6,
                "fir_kernel": (1, 1),
            },
            (1, 1),
        ),
        ({"attention_resolutions": (4,), "input_pyramid": "skip", "output_pyramid": "skip"}, (1, 3, 3, 1)),
        (
            {"attention_resolutions": (8,), "noise_features": 12, "fir_kernel": (1, 5, 10, 10, 5, 1)},
            (1, 5, 10, 10, 5, 1),
        ),
    ],
    ids=str,
)
def test_the_structure_is_read_off_the_tensors(tmp_path, settings, kernel, prefix):
    network = randomize(NCSNpp(**SMALL | settings))
    config = {"label_dropout": 0.1} if settings.get("null_condition") else None
    model = from_edm(write(tmp_path, network, kernel, prefix), config, preconditioning="edm")
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([0.3, -1.0])
    cond = torch.tensor([-1, 3]) if "num_classes" in settings else None
    torch.testing.assert_close(model.backbone(x, t, cond), network(x, t, cond), rtol=1e-5, atol=1e-6)


def test_preconditionings_are_those_of_the_paper(tmp_path):
    network = randomize(NCSNpp(**SMALL, attention_resolutions=(8,), input_pyramid="none", fir_kernel=None))
    path = write(tmp_path, network)
    x, sigma = torch.randn(2, 3, 16, 16, dtype=torch.float64), torch.tensor([0.1, 20.0], dtype=torch.float64)
    s = sigma[:, None, None, None]
    network.double()
    for kind, c_skip, c_out, c_in, c_noise in (
        # Karras et al. 2022, Table 1
        ("edm", 0.25 / (s**2 + 0.25), 0.5 * s / (s**2 + 0.25).sqrt(), (s**2 + 0.25).rsqrt(), sigma.log() / 4),
        ("ve", 1, s, 1, (sigma / 2).log()),
        ("vp", 1, -s, (s**2 + 1).rsqrt(), None),
    ):
        model = from_edm(path, preconditioning=kind).double()
        if c_noise is None:  # 999 times the inverse of sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)
            log = torch.log1p(sigma**2)
            t = ((0.1**2 + 2 * 19.9 * log).sqrt() - 0.1) / 19.9
            c_noise, x_t = 999 * t, x * (1 + s**2).rsqrt()
        else:
            t, x_t = model.sde.time_from_sigma(sigma), x
        expected = c_skip * x + c_out * network(c_in * x, c_noise)
        torch.testing.assert_close(model(x_t, t).x0, expected, rtol=1e-9, atol=1e-9)


def test_noise_ends_where_the_config_says(tmp_path):
    path = write(tmp_path, NCSNpp(**SMALL, attention_resolutions=(8,), input_pyramid="none", fir_kernel=None))
    for config, ends in (
        ({"class_name": "EDMPrecond"}, (0.002, 80.0)),
        ({"class_name": "EDMPrecond", "sigma_min": 0, "sigma_max": float("inf")}, (0.002, 80.0)),
        ({"class_name": "VEPrecond"}, (0.02, 100.0)),
        ({"class_name": "VEPrecond", "sigma_min": 0.01, "sigma_max": 50}, (0.01, 50.0)),
    ):
        sde = from_edm(path, config).sde
        assert isinstance(sde, VE)
        assert (sde.sigma_min, sde.sigma_max) == ends
    sde = from_edm(path, {"class_name": "VPPrecond", "beta_d": 9.9, "beta_min": 0.2}).sde
    assert (sde.beta_min, sde.beta_max) == pytest.approx((0.2, 10.1))
    (tmp_path / "config.json").write_text(json.dumps({"class_name": "VPPrecond", "dropout": 0.13}))
    model = from_edm(path, tmp_path / "config.json")
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.13}


class Trap:
    def __reduce__(self):
        return os.system, ("touch it_ran",)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_is_refused_unread_with_the_way_to_convert_it(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "edm-cifar10-32x32-cond-vp.pkl"
    path.write_bytes(pickle.dumps({"ema": Trap()}, protocol=protocol))
    with pytest.raises(
        ValueError, match=r"is a pickle of Python objects, refused unread, .*\['ema'\].state_dict\(\), 'FILE.pt'\)$"
    ) as error:
        from_edm(path, preconditioning="edm")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "it_ran").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "config must say class_name, EDMPrecond, VPPrecond or VEPrecond, which the tensors do not"),
        ({"class_name": "iDDPMPrecond"}, "class_name of the config .*iDDPMPrecond.*EDMPrecond"),
        ({"class_name": "EDMPrecond", "img_resolution": 32}, "config's img_resolution is 32, but .* has 16"),
        ({"class_name": "EDMPrecond", "model_channels": 16}, "config's model_channels is 16, but .* has 8"),
        ({"class_name": "EDMPrecond", "channel_mult": [1, 2]}, r"channel_mult is \[1, 2\], but .* has \(1, 2, 1\)"),
        ({"class_name": "EDMPrecond", "num_blocks": 4}, "config's num_blocks is 4, but .* has 1"),
        ({"class_name": "EDMPrecond", "embedding_type": "fourier"}, "embedding_type is 'fourier', but .* 'positional'"),
        ({"class_name": "EDMPrecond", "encoder_type": "residual"}, "encoder_type is 'residual', but .* 'standard'"),
        ({"class_name": "EDMPrecond", "label_dim": 10}, "config's label_dim is 10, but .* has 0"),
        ({"class_name": "EDMPrecond", "resample_filter": [1, 3, 3, 1]}, "resample_filter is .* but .* has"),
        ({"class_name": "EDMPrecond", "attn_resolutions": [16]}, r"attn_resolutions is \(16,\), but .* has \(8,\)"),
        ({"class_name": "EDMPrecond", "model_type": "DhariwalUNet"}, "model_type is 'DhariwalUNet', but"),
        ({"class_name": "EDMPrecond", "sigma_data": 1.0}, "sigma_data=1.0"),
        ({"class_name": "VPPrecond", "M": 100}, "M=100"),
        ({"class_name": "EDMPrecond", "frobnicate": 1}, "setting of the config .*frobnicate"),
    ],
    ids=str,
)
def test_a_config_that_contradicts_the_checkpoint_is_one_line(tmp_path, config, message):
    path = write(tmp_path, NCSNpp(**SMALL, attention_resolutions=(8,), input_pyramid="none", fir_kernel=None))
    with pytest.raises(ValueError, match=message) as error:
        from_edm(path, config)
    assert "\n" not in str(error.value)


def test_two_preconditionings_are_one_line(tmp_path):
    path = write(tmp_path, NCSNpp(**SMALL, attention_resolutions=(8,), input_pyramid="none", fir_kernel=None))
    with pytest.raises(ValueError, match=r"class_name is EDMPrecond, but preconditioning is 'vp'"):
        from_edm(path, {"class_name": "EDMPrecond"}, preconditioning="vp")
    with pytest.raises(ValueError, match=r"preconditioning .*iddpm.*edm, ve, vp"):
        from_edm(path, preconditioning="iddpm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.dec.8x8_up.conv0.bias"), r"1 missing \(dec.8x8_up.conv0.bias\)"),
        (lambda t: t.update({"model.more": torch.ones(1)}), r"1 unexpected \(more\)"),
        (
            lambda t: t.update({"model.map_layer1.bias": torch.ones(3)}),
            r"1 misshapen \(map_layer1.bias is \[3\], expected \[32\]\)",
        ),
        (
            lambda t: t.update({"model.enc.8x8_down.conv0.resample_filter": filters((1, 3, 3, 1))}),
            "resamples with filters that EDM's networks do not have",
        ),
        (
            lambda t: [t[name].mul_(2) for name in t if name.endswith("resample_filter")],
            "resamples with filters that EDM's networks do not have",
        ),
        (
            lambda t: t.update({"model.map_layer1.bias": torch.ones(32).to_sparse()}),
            r"sparse or quantized tensors \(model.map_layer1.bias\)",
        ),
        (lambda t: [t.pop(name) for name in list(t) if ".enc.16x16_conv" in name], "is no SongUNet or DhariwalUNet"),
        (
            lambda t: [t.pop(name) for name in list(t) if ".enc.8x8_block0" in name],
            r"36 missing \(enc.8x8_block0.norm0.weight",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(tmp_path, change, message):
    path = write(tmp_path, NCSNpp(**SMALL, attention_resolutions=(8,), input_pyramid="none", fir_kernel=None))
    tensors = read_tensors(path)
    change(tensors)
    torch.save(tensors, path)
    with pytest.raises(ValueError, match=message) as error:
        from_edm(path, preconditioning="edm")
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_one_line(tmp_path):
    path = write(tmp_path, NCSNpp(**SMALL, attention_resolutions=(8,)))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"is truncated or no file of torch.save") as error:
        from_edm(path, preconditioning="edm")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("dropout", "classes"), [(0.1, 10), (0.0, 10), (None, 10), (0.1, 0)])
def test_no_class_is_a_label_of_networks_that_were_trained_with_it(tmp_path, dropout, classes):
    said = {} if dropout is None else {"label_dropout": dropout}
    trained = dropout == 0.1 and classes > 0
    adm = plan_edm_adm({}, Settings({"img_resolution": 8, "label_dim": classes, **said}))
    assert adm["null_condition"] is trained
    network = randomize(NCSNpp(**SMALL, attention_resolutions=(8,), num_classes=classes or None, fir_kernel=None))
    model = from_edm(write(tmp_path, network), said, preconditioning="edm")
    assert model.backbone.embed.null_condition is trained
    if classes and not trained:
        with pytest.raises(ValueError, match="never saw samples without a class"):
            model(torch.randn(1, 3, 16, 16), torch.ones(1), cond=torch.tensor([-1]))
