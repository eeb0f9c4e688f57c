"""Every network of the reference folder imports and gives its project's numbers."""

import pytest
import torch
from importer_references import FOLDER, Reference, edm_denoised, score_sde_output, take_no_class, worst_error

from models.backbones import ADM, EncoderClassifier, NCSNpp, UNet
from models.pretrained import (
    from_ddpm,
    from_edm,
    from_guided_classifier,
    from_guided_diffusion,
    from_improved_diffusion,
    from_score_sde,
)

# Each network: its backbone here, how it is read, and what of the model is compared with the project's output.


def _edm(reference):
    # one of the noise levels rounds to below the smallest in float32
    extra = {"sigma_min": 0.01} if reference.settings["constructor"]["class_name"] == "VEPrecond" else {}
    return take_no_class(from_edm(reference.path, reference.config | extra))


def _denoised(model, case, dtype):
    return edm_denoised(model, case, dtype).x0


def _score_sde(reference):
    return from_score_sde(reference.path, reference.settings["config"])


def _output(model, case, dtype):
    return model.backbone(case["x"].to(dtype), case["t"], case.get("y"))


def _logits(model, case, dtype):
    return model(case["x"].to(dtype), (case["t"] + 1).double() / 1000)


NETWORKS = {
    "edm_adm_edm_cond": (ADM, _edm, _denoised),
    "edm_ddpmpp_edm_cond": (NCSNpp, _edm, _denoised),
    "edm_ddpmpp_vp": (NCSNpp, _edm, _denoised),
    "edm_ncsnpp_ve": (NCSNpp, _edm, _denoised),
    "edm_song_skip": (NCSNpp, _edm, _denoised),
    "guided_classifier": (EncoderClassifier, lambda r: from_guided_classifier(r.path, r.config), _logits),
    "guided_imagenet_cond": (ADM, lambda r: from_guided_diffusion(r.path, {"image_size": 16, **r.config}), _output),
    "guided_plain_resampling": (ADM, lambda r: from_guided_diffusion(r.path, {"image_size": 16, **r.config}), _output),
    "improved_cifar": (UNet, lambda r: from_improved_diffusion(r.path, {"image_size": 16, **r.config}), _output),
    "pesser_ddpm": (UNet, lambda r: from_ddpm(r.path, r.config), _output),
    "scoresde_ddpm_vp": (NCSNpp, _score_sde, score_sde_output),
    "scoresde_ddpmpp_vp_continuous": (NCSNpp, _score_sde, score_sde_output),
    "scoresde_ncsnpp_ddpm_blocks": (NCSNpp, _score_sde, score_sde_output),
    "scoresde_ncsnpp_ve_checkpoint": (NCSNpp, _score_sde, score_sde_output),
    "scoresde_ncsnpp_ve_continuous": (NCSNpp, _score_sde, score_sde_output),
    "scoresde_ncsnpp_ve_skips": (NCSNpp, _score_sde, score_sde_output),
    "scoresde_ncsnpp_vp_continuous": (NCSNpp, _score_sde, score_sde_output),
}
# parameters of theirs that have no place here: EDM's ADM is without what maps augmentation labels, [16, 9]
LEFT_OUT = {"edm_adm_edm_cond": 16 * 9}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_its_project_s_numbers(name):
    kind, read, compute = NETWORKS[name]
    reference = Reference(name)
    model = read(reference)
    backbone = model.backbone
    assert type(backbone) is kind and not model.training
    fourier = getattr(getattr(backbone, "embed", None), "fourier", None)
    # in score_sde_pytorch the frequencies are parameters, in EDM buffers
    frequencies = fourier.frequencies.numel() if fourier is not None and name.startswith("scoresde") else 0
    parameters = sum(parameter.numel() for parameter in model.parameters()) + frequencies
    assert parameters == reference.settings["num_parameters"] - LEFT_OUT.get(name, 0)
    assert worst_error(reference, lambda case: compute(model, case, torch.float32)) < 5e-5
    model.double()
    assert worst_error(reference, lambda case: compute(model, case, torch.float64)) < 1e-10


def test_no_network_of_the_folder_is_left_out():
    if not FOLDER.is_dir():
        pytest.skip(f"no folder {FOLDER}; set SDE_REFERENCE to the one of the reference networks")
    assert sorted(path.stem for path in FOLDER.glob("*.json")) == sorted(NETWORKS)
