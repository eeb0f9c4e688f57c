"""Networks of score_sde_pytorch: the project's numbers, what is read off the tensors, and what is refused."""

import copy
import json

import numpy as np
import pytest
import torch
from importer_references import Reference, randomize, score_sde_output, worst_error
from safetensors.torch import save_file
from thinning import only

from models.backbones import NCSNpp
from models.pretrained.score_sde.configs import CONFIGS
from models.pretrained.score_sde.importer import from_score_sde, plan_score_sde
from models.pretrained.score_sde.layout import score_sde_sources
from models.pretrained.shared.renaming import renamed
from models.pretrained.shared.tensors import read_tensors
from sde_lib import VE, VP, SubVP, Tabulated

VP_NETWORKS = [
    "scoresde_ddpm_vp",
    "scoresde_ddpmpp_vp_continuous",
    "scoresde_ncsnpp_ddpm_blocks",
    "scoresde_ncsnpp_vp_continuous",
]
VE_NETWORKS = ["scoresde_ncsnpp_ve_checkpoint", "scoresde_ncsnpp_ve_continuous", "scoresde_ncsnpp_ve_skips"]


def imported(name, **kwargs):
    reference = Reference(name)
    return reference, from_score_sde(reference.path, reference.settings["config"], **kwargs)


@pytest.mark.parametrize("name", VP_NETWORKS)
def test_vp_scores_are_those_of_the_project(name):
    reference, model = imported(name)
    discrete = not reference.settings["config"]["training"]["continuous"]
    assert isinstance(model.sde, Tabulated if discrete else VP)

    def score(case):
        # their step i of N, at time i / (N - 1), is row i of the table, which is at (i + 1) / N here
        t = (case["t"].double() + 1) / 1000 if discrete else case["sde_time"].double()
        told = model.parameterization.c_noise(model.sde, t)
        torch.testing.assert_close(told, case["t"].double(), rtol=1e-6, atol=1e-4)
        return model(case["x"], t).score

    assert worst_error(reference, score, "score") < 5e-5


@pytest.mark.parametrize("name", VE_NETWORKS)
def test_ve_scores_are_those_of_the_project_with_data_in_minus_one_to_one(name):
    reference, model = imported(name)
    config = reference.settings["config"]["model"]
    assert (model.sde.sigma_min, model.sde.sigma_max) == (2 * config["sigma_min"], 2 * config["sigma_max"])

    def at_sigma(case):
        return 2 * model.score(2 * case["x"] - 1, 2 * case["t"].double())

    def at_time(case):
        return 2 * model(2 * case["x"] - 1, case["sde_time"].double()).score

    assert worst_error(reference, at_sigma, "score") < 5e-5
    # their time is stored in float32, which moves ln(sigma) by up to 7e-7 and its phases by 2e-4
    assert worst_error(reference, at_time, "score") < 1e-3


def test_averaged_weights_by_default_and_the_others_when_asked_for():
    reference, model = imported("scoresde_ncsnpp_ve_checkpoint")
    _, raw = imported("scoresde_ncsnpp_ve_checkpoint", weights="raw")
    assert worst_error(reference, lambda case: score_sde_output(raw, case, torch.float32), "y_out_raw") < 5e-5
    assert worst_error(reference, lambda case: score_sde_output(model, case, torch.float32), "y_out_raw") > 0.1
    frequencies = [one.backbone.embed.fourier.frequencies for one in (model, raw)]
    assert torch.equal(*frequencies)


@pytest.mark.parametrize("name", VP_NETWORKS + VE_NETWORKS)
def test_every_tensor_is_used_as_it_is_those_without_effect_too(name):
    reference = Reference(name)
    if reference.path.suffix == ".pth":
        pytest.skip("the training checkpoint holds two sets")
    _, model = imported(name)
    found = renamed(model.backbone, score_sde_sources(model.backbone))
    expected = read_tensors(reference.path)
    expected.pop("sigmas")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


SMALL = {"image_size": 16, "channels": 8, "channel_mult": (1, 2, 1), "num_res_blocks": 1}
DDPM = {"block": "ddpm", "fir_kernel": None, "input_pyramid": "none", "rescale": False, "min_group_channels": 1}
VPSDE = {
    "data": {"image_size": 16},
    "model": {"name": "ncsnpp", "fir": True, "skip_rescale": True},
    "training": {"sde": "vpsde", "continuous": True},
}


def with_changes(config=VPSDE, **changes):
    config = copy.deepcopy(config)
    for name, value in changes.items():
        section, key = name.split("__")
        config[section][key] = value
    return config


def write(tmp_path, network, *, sigmas=None):
    tensors = renamed(network, score_sde_sources(network))
    if sigmas is not None:
        tensors["sigmas"] = sigmas
    save_file(tensors, tmp_path / "network.safetensors")
    return tmp_path / "network.safetensors"


def falling(low, high, num):
    return torch.from_numpy(np.exp(np.linspace(np.log(high), np.log(low), num)))


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"attention_resolutions": (8,)}, {}),
        ({"attention_resolutions": (16, 4), "num_res_blocks": 3}, {"training__sde": "subvpsde"}),
        ({"attention_resolutions": (), "rescale": False}, {"model__skip_rescale": False}),
        ({"attention_resolutions": (4,), "input_pyramid": "none"}, {}),
        ({"attention_resolutions": (8,), "fir_kernel": None}, {"model__fir": False}),
        ({"attention_resolutions": (8,), "input_pyramid": "skip", "output_pyramid": "skip"}, {}),
        ({"attention_resolutions": (16,), "channel_mult": (1,), "num_res_blocks": 2}, {}),
        ({"attention_resolutions": (8, 4), **DDPM}, {"model__name": "ddpm"}),
        ({"attention_resolutions": (8,), "block": "ddpm", "resample_conv": False, "input_pyramid": "none"}, {}),
        ({"attention_resolutions": (8,), "fir_kernel": (1, 1)}, {"model__fir_kernel": [1, 1]}),
    ],
    ids=str,
)
def test_the_structure_is_read_off_the_tensors(tmp_path, settings, changes):
    network = randomize(NCSNpp(**SMALL | settings))
    path = write(tmp_path, network)
    model = from_score_sde(path, with_changes(**changes))
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3.0, 600.0])
    assert torch.equal(model.backbone(x, t), network(x, t))
    assert type(model.sde) is (SubVP if "training__sde" in changes else VP)


def test_discrete_ve_counts_down_from_the_largest_noise(tmp_path):
    network = randomize(NCSNpp(**SMALL, attention_resolutions=(8,)))
    sigmas = falling(0.02, 30.0, 40)
    path = write(tmp_path, network, sigmas=sigmas)
    config = with_changes(training__sde="vesde", training__continuous=False)
    model = from_score_sde(path, config)
    index = torch.tensor([0, 5, 39])
    torch.testing.assert_close(model.sde.log_snr_table.flip(0), -2 * (2 * sigmas).log(), rtol=0, atol=1e-12)
    x = torch.rand(3, 3, 16, 16)
    # Song et al. 2021: the network's output is divided by sigma, and sigma_0 is the largest
    expected = network(2 * x - 1, index.double()) / sigmas[index].float()[:, None, None, None]
    t = (40 - index.double()) / 40
    torch.testing.assert_close(2 * model(2 * x - 1, t).score, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(2 * model.score(2 * x - 1, 2 * sigmas[index]), expected, rtol=1e-5, atol=1e-6)


def test_ve_of_centered_data_keeps_its_noise_levels(tmp_path):
    network = randomize(NCSNpp(**SMALL, attention_resolutions=(8,), embedding="fourier"))
    path = write(tmp_path, network, sigmas=falling(0.02, 30.0, 40))
    model = from_score_sde(path, with_changes(training__sde="vesde", data__centered=True))
    assert isinstance(model.sde, VE)
    x, sigma = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 20.0], dtype=torch.float64)
    expected = network(x, sigma.log()) / sigma.float()[:, None, None, None]
    torch.testing.assert_close(model.score(x, sigma), expected, rtol=1e-4, atol=1e-4)


def test_discrete_vp_has_the_table_of_its_betas(tmp_path):
    network = randomize(NCSNpp(**SMALL, attention_resolutions=(8,)))
    path = write(tmp_path, network, sigmas=falling(0.01, 50.0, 100))
    model = from_score_sde(path, with_changes(training__continuous=False, model__beta_max=10.0))
    betas = np.linspace(0.1 / 100, 10.0 / 100, 100)
    alpha = model.sde.alpha(torch.arange(1, 101, dtype=torch.float64) / 100)
    np.testing.assert_allclose(alpha.numpy() ** 2, np.cumprod(1 - betas), rtol=1e-12)


def training_checkpoint(tmp_path, network, *, shift=1.0):
    tensors = renamed(network, score_sde_sources(network))
    shadow = [tensor + shift for name, tensor in tensors.items() if not name.endswith(".0.W")]
    checkpoint = {
        "optimizer": {"param_groups": [{"lr": np.float64(2e-4)}]},
        "model": {f"module.{name}": tensor for name, tensor in tensors.items()},
        "ema": {"decay": 0.999, "num_updates": 7, "shadow_params": shadow},
        "step": 7,
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    return tmp_path / "checkpoint.pth", checkpoint


def test_a_training_checkpoint_has_its_average_in_the_order_of_the_parameters(tmp_path):
    network = randomize(NCSNpp(**SMALL, attention_resolutions=(8,), embedding="fourier"))
    path, _ = training_checkpoint(tmp_path, network)
    config = with_changes(training__sde="vesde")
    raw, ema = from_score_sde(path, config, weights="raw"), from_score_sde(path, config)
    for name, parameter in network.named_parameters():
        assert torch.equal(raw.backbone.get_parameter(name), parameter)
        assert torch.equal(ema.backbone.get_parameter(name), parameter + 1)
    frequencies = network.embed.fourier.frequencies
    assert torch.equal(ema.backbone.embed.fourier.frequencies, frequencies)


def test_a_config_may_be_a_file_flags_or_a_published_name(tmp_path):
    settings = {"image_size": 32, "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1}
    network = randomize(NCSNpp(**settings, fir_kernel=None, input_pyramid="none"))
    path = write(tmp_path, network)
    config = with_changes(data__image_size=32, model__fir=False)
    (tmp_path / "config.json").write_text(json.dumps({**config, "optim": {"lr": 1}, "seed": 42}))
    flags = "--data.image_size 32 --model.name ncsnpp --model.fir False --model.skip_rescale=True "
    flags += "--training.sde vpsde --training.continuous True"
    x, t = torch.randn(1, 3, 32, 32), torch.tensor([30.0])
    for form in (
        config,
        tmp_path / "config.json",
        str(tmp_path / "config.json"),
        flags,
        "vp/cifar10_ddpmpp_continuous",
    ):
        model = from_score_sde(path, form)
        assert torch.equal(model.backbone(x, t), network(x, t))
    with pytest.raises(ValueError, match=r"config of score_sde_pytorch .*vp/cifar10_ddpmpp_continuous"):
        from_score_sde(path, "vp/cifar10_ddpmp_continuous")


SMALL_SIZES = {"cifar10": (32, 50.0), "celeba_": (64, 90.0)}
LARGEST_SIGMA = {"bedroom": 378.0, "church": 380.0}


def of_config(name):
    """The arguments of NCSNpp, and the number and the largest of the noise levels, of one of the project's configs."""
    small, deep = next((kind for kind in SMALL_SIZES if kind in name), None), "deep" in name
    size, sigma_max = SMALL_SIZES.get(small, (256, LARGEST_SIGMA.get(name.split("/")[-1].split("_")[0], 348.0)))
    settings = {"image_size": size, "channels": 128, "num_res_blocks": 8 if deep else 4}
    settings["channel_mult"] = (1, 2, 2, 2) if small else (1, 1, 2, 2, 2, 2, 2)
    levels = (1000 if small else 2000, sigma_max)
    if is_ddpm(name):
        settings |= {"num_res_blocks": 2, **DDPM} | ({} if small else {"channel_mult": (1, 1, 2, 2, 4, 4)})
        levels = (1000, sigma_max if small else 378.0)
    elif "ddpmpp" in name:
        settings |= {"fir_kernel": None, "input_pyramid": "none"}
    elif not small:
        settings |= {"input_pyramid": "skip", "output_pyramid": "skip", "num_res_blocks": 2}
        if name in ("ve/celebahq_ncsnpp_continuous", "ve/ffhq_ncsnpp_continuous"):
            settings |= {"image_size": 1024, "channel_mult": (1, 2, 4, 8, 16, 32, 32, 32), "channels": 16}
            settings["num_res_blocks"], levels = 1, (2000, 1348.0)
    if name.startswith("ve/") and "continuous" in name:
        settings |= {"embedding": "fourier"}
    return settings, levels


def is_ddpm(name):
    return "ddpm" in name and "ddpmpp" not in name


# what the project's config files say besides, or the defaults that they begin with; nothing of it has an effect here
OTHERS = {
    "training": "loss batch_size n_iters snapshot_freq log_freq eval_freq snapshot_freq_for_preemption "
    "snapshot_sampling likelihood_weighting reduce_mean n_jitted_steps",
    "data": "dataset random_flip uniform_dequantization category tfrecords_path",
    "sampling": "method predictor corrector n_steps_each noise_removal probability_flow snr",
    "eval": "begin_ckpt end_ckpt batch_size enable_sampling num_samples enable_loss enable_bpd bpd_dataset",
    "optim": "weight_decay optimizer lr beta1 eps warmup grad_clip amsgrad",
}


def whole_config(name):
    """One of the project's configs with all of its keys, those that have no effect here too."""
    settings, (num_scales, sigma_max) = of_config(name)
    exploding, continuous = name.startswith("ve/"), "continuous" in name
    config = {section: dict.fromkeys(keys.split(), 1) for section, keys in OTHERS.items()} | {"seed": 42}
    config["training"] |= {"sde": f"{name.partition('/')[0]}sde", "continuous": continuous}
    config["data"] |= {"image_size": settings["image_size"], "centered": not exploding, "num_channels": 3}
    model = {"sigma_min": 0.01, "sigma_max": sigma_max, "num_scales": num_scales, "beta_min": 0.1, "beta_max": 20.0}
    model |= {"dropout": 0.1 if settings["image_size"] < 256 else 0.0, "embedding_type": "fourier"}
    model |= {"name": "ddpm" if is_ddpm(name) else "ncsnpp", "scale_by_sigma": exploding, "ema_rate": 0.999}
    model |= {"normalization": "GroupNorm", "nonlinearity": "swish", "nf": settings["channels"], "conditional": True}
    model |= {"ch_mult": settings["channel_mult"], "num_res_blocks": settings["num_res_blocks"]}
    model |= {"attn_resolutions": (16,), "resamp_with_conv": True}
    if is_ddpm(name):
        return config | {"model": model | ({"conv_size": 3} if exploding else {})}
    progressive = {"none": "none", "residual": "residual", "skip": "input_skip"}
    model["progressive_input"] = progressive[settings.get("input_pyramid", "residual")]
    model |= {"progressive": "output_skip" if "output_pyramid" in settings else "none", "progressive_combine": "sum"}
    model |= {"fir": "ncsnpp" in name, "fir_kernel": [1, 3, 3, 1], "skip_rescale": True, "resblock_type": "biggan"}
    model |= {"attention_type": "ddpm", "init_scale": 0.0, "conv_size": 3}
    model |= {"fourier_scale": 16} if continuous else {}
    model |= {} if exploding and continuous else {"embedding_type": "positional"}
    model |= {"sigma_begin": 90} if "celeba_" in name else {}
    return config | {"model": model}


@pytest.mark.parametrize("name", only(list(CONFIGS)[::6], CONFIGS))
def test_the_project_s_configs_by_name_and_in_full_give_its_networks(name):
    settings, (num_scales, sigma_max) = of_config(name)
    with torch.device("meta"):
        network = NCSNpp(**settings)
        tensors = renamed(network, score_sde_sources(network))
    tensors["sigmas"] = falling(0.01, sigma_max, num_scales)
    plan = plan_score_sde(tensors, name, path="published.pth")
    with torch.device("meta"):
        built = plan.build_backbone()
    expected, found = network.state_dict(), built.state_dict()
    assert {key: value.shape for key, value in found.items()} == {k: v.shape for k, v in expected.items()}
    assert plan.network["fir_kernel"] == settings.get("fir_kernel", (1, 3, 3, 1))
    assert (plan.parameterization == "score") == name.startswith("ve/")
    assert plan_score_sde(tensors, f"configs/{name}.py", path="published.pth") == plan
    in_full = plan_score_sde(tensors, whole_config(name), path="published.pth")
    assert (in_full.network, in_full.parameterization) == (plan.network, plan.parameterization)
    assert in_full.time_input == plan.time_input and in_full.sde["name"] == plan.sde["name"]
    numbers = [{key: value for key, value in one.sde.items() if key != "name"} for one in (in_full, plan)]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)


def test_the_project_s_ncsn_networks_are_refused_by_their_name_not_by_their_keys(tmp_path):
    path = write(tmp_path, NCSNpp(**SMALL))
    model = {"name": "ncsnv2_64", "normalization": "InstanceNorm++", "nonlinearity": "elu", "interpolation": "bilinear"}
    with pytest.raises(ValueError, match=r"unknown model.name of the config 'ncsnv2_64'; choices: ddpm, ncsnpp"):
        from_score_sde(path, VPSDE | {"model": model})
    # a key of theirs that is left in a config of another says nothing
    from_score_sde(path, with_changes(model__interpolation="bilinear"))


def test_ve_of_a_ddpm_network_divides_the_project_s_output_by_sigma(tmp_path):
    """The project's own numbers of its DDPM network, which discrete VE divides by the sigma of the index."""
    reference = Reference("scoresde_ddpm_vp")
    config = copy.deepcopy(reference.settings["config"])
    sigmas = falling(0.01, 50.0, 1000)
    save_file(read_tensors(reference.path) | {"sigmas": sigmas}, tmp_path / "ve.safetensors")
    config["training"] |= {"sde": "vesde", "continuous": False}
    config["data"]["centered"] = False
    config["model"] |= {"scale_by_sigma": True, "conv_size": 3}
    model = from_score_sde(tmp_path / "ve.safetensors", config)

    def times_sigma(case):
        sigma = sigmas[case["t"].long()]
        return 2 * model.score(case["x"], 2 * sigma) * sigma.float()[:, None, None, None]

    assert worst_error(reference, times_sigma, "y_out") < 5e-5


@pytest.mark.parametrize(
    "prefix",
    only(("module._orig_mod.",), ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "module.module."]),
)
def test_averaged_and_raw_weights_of_a_wrapped_network(tmp_path, prefix):
    network = randomize(NCSNpp(**SMALL, attention_resolutions=(8,), embedding="fourier"))
    path, checkpoint = training_checkpoint(tmp_path, network)
    bare = {name.removeprefix("module."): tensor for name, tensor in checkpoint["model"].items()}
    torch.save(checkpoint | {"model": {f"{prefix}{name}": tensor for name, tensor in bare.items()}}, path)
    for weights, shift in (("raw", 0), ("ema", 1)):
        model = from_score_sde(path, with_changes(training__sde="vesde"), weights=weights)
        for name, parameter in network.named_parameters():
            assert torch.equal(model.backbone.get_parameter(name), parameter + shift)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__nf": 16}, r"config's model.nf is 16, but the checkpoint has 8; correct one of them"),
        ({"model__ch_mult": [1, 2, 2]}, r"config's model.ch_mult is \[1, 2, 2\], but .* has \(1, 2, 1\)"),
        ({"model__num_res_blocks": 4}, "config's model.num_res_blocks is 4, but"),
        ({"model__attn_resolutions": [16]}, r"config's model.attn_resolutions is \(16,\), but .* has \(8,\)"),
        ({"model__resblock_type": "ddpm"}, "config's model.resblock_type is 'ddpm', but .* has 'biggan'"),
        ({"model__progressive": "output_skip"}, "config's model.progressive is 'output_skip', but .* 'none'"),
        ({"model__progressive_input": "none"}, "config's model.progressive_input is 'none', but .* has 'residual'"),
        ({"model__embedding_type": "fourier"}, "config's model.embedding_type is 'fourier', but .* 'positional'"),
        ({"data__num_channels": 1}, "config's data.num_channels is 1, but .* has 3"),
        ({"data__image_size": 18}, "config's data.image_size 18 cannot be halved 2 times"),
        ({"data__image_size": "big"}, "config's data.image_size must be a whole number, got 'big'"),
        ({"training__sde": "vpsd"}, "training.sde of the config .*vpsd.*vpsde"),
        ({"training__sde": "vesde"}, "continuous vesde needs a Fourier embedding of the noise, but"),
        ({"model__conditional": False}, "config's model.conditional=False is not supported"),
        ({"model__scale_by_sigma": True}, "config's model.scale_by_sigma must be False with vpsde"),
        ({"data__centered": False}, "config's data.centered must be True with vpsde"),
        ({"model__num_scales": 500}, "config says 500 noise levels from 0.01 to 50, but .* has 40 from 0.01 to 50"),
        ({"model__sigma_max": 90}, "config says 40 noise levels from 0.01 to 90, but"),
        ({"model__frobnicate": 1}, "setting of the config .*model.frobnicate"),
    ],
    ids=str,
)
def test_a_config_that_contradicts_the_checkpoint_is_one_line(tmp_path, changes, message):
    path = write(tmp_path, NCSNpp(**SMALL, attention_resolutions=(8,)), sigmas=falling(0.01, 50.0, 40))
    with pytest.raises(ValueError, match=message) as error:
        from_score_sde(path, with_changes(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["data.image_size", "model.name", "model.fir", "training.sde", "training.continuous"])
def test_what_the_tensors_do_not_say_the_config_must(tmp_path, name):
    path = write(tmp_path, NCSNpp(**SMALL, attention_resolutions=(8,)))
    config = with_changes()
    section, key = name.split(".")
    del config[section][key]
    with pytest.raises(ValueError, match=f"config must say {name}, which the checkpoint does not; add it"):
        from_score_sde(path, config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("all_modules.3.Conv_0.bias"), r"1 missing \(all_modules.3.Conv_0.bias\)"),
        (lambda t: t.update(more=torch.ones(1)), r"1 unexpected \(more\)"),
        (
            lambda t: t.update({"all_modules.3.GroupNorm_1.weight": torch.ones(9)}),
            r"1 misshapen \(all_modules.3.GroupNorm_1.weight is \[9\], expected \[8\]\)",
        ),
        (lambda t: [t.pop(name) for name in list(t) if ".0." in name[:14]], "is no ncsnpp or ddpm network"),
        (lambda t: [t.pop(name) for name in list(t) if "Dense_0" in name], "is no ncsnpp or ddpm network"),
        (lambda t: [t.update({f"x.{name}": t.pop(name)}) for name in list(t)], "it begins with x.all_modules"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(tmp_path, change, message):
    network = NCSNpp(**SMALL, attention_resolutions=(8,))
    tensors = renamed(network, score_sde_sources(network))
    change(tensors)
    path = tmp_path / "network.safetensors"
    save_file(tensors, path)
    with pytest.raises(ValueError, match=message) as error:
        from_score_sde(path, VPSDE)
    assert "\n" not in str(error.value)


def test_damaged_averages_are_one_line(tmp_path):
    network = NCSNpp(**SMALL, attention_resolutions=(8,))
    path, checkpoint = training_checkpoint(tmp_path, network)
    checkpoint["ema"]["shadow_params"].pop()
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"averaged tensors for .* trained ones; take weights='raw'"):
        from_score_sde(path, VPSDE)
    del checkpoint["ema"]
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=r"has no averaged weights under ema.shadow_params; import weights='raw'"):
        from_score_sde(path, VPSDE)
    assert from_score_sde(path, VPSDE, weights="raw").sde.table_size is None
    with pytest.raises(ValueError, match=r"weights .*best.*ema, raw"):
        from_score_sde(path, VPSDE, weights="best")
    torch.save(checkpoint | {"model": [1]}, path)
    with pytest.raises(ValueError, match=r"entry 'model' of checkpoint .* must be a state dict of tensors"):
        from_score_sde(path, VPSDE)
