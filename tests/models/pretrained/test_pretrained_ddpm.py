"""Ho et al.'s networks as pytorch_diffusion saves them: the project's numbers, published sizes, refusals."""

import pytest
import torch
from importer_references import Reference, count, per_sample_error, randomize, worst_error

from models.pretrained.ddpm import ddpm_sources, from_ddpm, plan_ddpm
from models.pretrained.shared.renaming import renamed
from sde_lib import Tabulated

SMALL = {"resolution": 8, "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4]}


def saved(folder):
    network = randomize(plan_ddpm(SMALL).build_backbone())
    torch.save(renamed(network, ddpm_sources(network)), folder / "model.ckpt")
    return network, folder / "model.ckpt"


def test_outputs_at_our_times_are_those_of_the_project():
    reference = Reference("pesser_ddpm")
    model = from_ddpm(reference.path, reference.config)

    def through_the_model(case):
        return model(case["x"], (case["t"] + 1).double() / 1000).eps

    assert worst_error(reference, through_the_model) < 5e-5


def test_x0_is_that_of_ho_et_al_s_table():
    reference = Reference("pesser_ddpm")
    model = from_ddpm(reference.path, reference.config).double()
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), dim=0)
    for case in reference.cases():
        ab = alpha_bar[case["t"]][:, None, None, None]
        x0 = (case["x"].double() - (1 - ab).sqrt() * case["y_out_f64"]) / ab.sqrt()
        prediction = model(case["x"].double(), (case["t"] + 1).double() / 1000)
        assert per_sample_error(prediction.x0.detach(), x0) < 1e-9


def test_published_networks_have_the_published_size():
    # 35.7 and 114 million in Ho et al. 2020, Appendix B
    assert count(plan_ddpm("cifar10").build_backbone) == 35_746_307
    for name in ("lsun_bedroom", "lsun_cat", "ema_lsun_church"):
        assert count(plan_ddpm(name).build_backbone) == 113_673_219


def test_tensors_are_the_same_to_the_bit(tmp_path):
    network, path = saved(tmp_path)
    model = from_ddpm(path, {**SMALL, "num_diffusion_timesteps": 50, "beta_start": 1e-3, "beta_end": 0.3})
    for name, tensor in network.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], tensor)
    expected = Tabulated.ddpm(num_steps=50, beta_start=1e-3, beta_end=0.3)
    assert torch.equal(model.sde.log_snr_table, expected.log_snr_table)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**SMALL, "ch_mult": [2, 1]}, "misshapen"),
        ({**SMALL, "num_res_blocks": 2}, "missing"),
        ({**SMALL, "attn_resolutions": []}, "unexpected \\(down.1.attn.0.norm.weight"),
        ({**SMALL, "attn_resolutions": [16]}, "attention_resolutions must be among 8, 4, got 16"),
        ({**SMALL, "resamp_with_conv": False}, "resamp_with_conv=False is not supported"),
        ({**SMALL, "beta_schedule": "quad"}, "beta_schedule='quad' is not supported"),
        ({**SMALL, "channels": 3}, "unknown setting of the config 'channels'"),
        ({"ch": 32}, "config must say resolution"),
        ("cifar10", "missing"),
        ("cifar", "config cifar cannot be read"),
    ],
)
def test_a_config_that_contradicts_the_file_is_refused_in_one_line(tmp_path, config, message):
    _, path = saved(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        from_ddpm(path, config)
    assert "\n" not in str(error.value)


def test_another_project_and_damage_are_refused_in_one_line(tmp_path):
    _, path = saved(tmp_path)
    whole = path.read_bytes()
    torch.save({"input_blocks.0.0.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"of another project than pytorch_diffusion: it has no temb.dense.0.weight"):
        from_ddpm(path, SMALL)
    path.write_bytes(whole[:1000])
    with pytest.raises(ValueError, match="truncated") as error:
        from_ddpm(path, SMALL)
    assert "\n" not in str(error.value)
