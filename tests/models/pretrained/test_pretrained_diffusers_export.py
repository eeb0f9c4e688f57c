"""Our models as pipelines of diffusers, beside diffusers itself."""

import json

import pytest
import torch
from diffusers_pipelines import diffusers, same_bits, same_outputs
from importer_references import per_sample_error, randomize

from models import Dequantizer, NetworkScoreModel, make_parameterization, reverse_log_var
from models.backbones import ADM, MLP, UNet
from models.pretrained.diffusers.export import export_diffusers
from models.pretrained.diffusers.importer import from_diffusers
from samplers import DDIMSampler
from sde_lib import VE, VP, NoiseStreams, Tabulated, ddpm_betas


def digits_model(sde=None, *, parameterization="eps", **changes):
    """The network of configs/vp/digits.py, smaller, with random weights."""
    settings = {"image_size": 8, "in_channels": 1, "channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1}
    settings |= {"attention_resolutions": (4,), "norm_groups": 8, "dropout": 0.1} | changes
    backbone = randomize(UNet(**settings))
    sde = sde or Tabulated.ddpm(beta_start=2e-3, beta_end=0.02)
    learned = changes.get("learned_variance", False)
    return NetworkScoreModel(backbone, sde, make_parameterization(parameterization), learned_variance=learned).eval()


TABLES = {
    "linear": Tabulated.ddpm(),
    "digits": Tabulated.ddpm(beta_start=2e-3, beta_end=0.02),
    "cosine": Tabulated.improved_ddpm(num_steps=400),
    "any": Tabulated.from_betas(ddpm_betas(50, beta_end=0.3).sqrt()),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
def test_our_models_run_in_diffusers_and_come_back_to_the_same_bits(tmp_path, table, parameterization):
    model = digits_model(TABLES[table], parameterization=parameterization)
    export_diffusers(model, tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert same_outputs(model.backbone, pipeline.unet)
    assert len(pipeline.scheduler.betas) == model.sde.table_size
    again = from_diffusers(tmp_path)
    assert same_bits(again, model) and type(again.parameterization) is type(model.parameterization)
    if table == "any":
        torch.testing.assert_close(again.sde.log_snr_table, model.sde.log_snr_table, rtol=1e-12, atol=1e-12)
    else:
        assert torch.equal(again.sde.log_snr_table, model.sde.log_snr_table)
        x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.001, 0.4, 1.0])
        assert torch.equal(again(x, t).x0, model(x, t).x0)


def test_ddim_samples_are_the_same_here_and_there(tmp_path):
    model = digits_model()
    # an untrained network's samples grow without bounds; a tenth of it is tame
    model.backbone.conv_out.weight.data *= 0.1
    export_diffusers(model, tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    scheduler.set_timesteps(20)
    x_T = NoiseStreams(0, range(3)).normal((1, 8, 8))
    with torch.no_grad():
        ours = DDIMSampler(num_steps=20, grid="leading").sample(model, x_T).x0
        x = x_T
        for t in scheduler.timesteps:
            x = scheduler.step(pipeline.unet(x, t).sample, t, x).prev_sample
    # float32 tables there
    assert per_sample_error(ours, x.double()) < 1e-4
    # and the whole of their pipeline, which clips
    images = pipeline(batch_size=2, num_inference_steps=5, output_type="np").images
    assert images.shape == (2, 8, 8, 1)


def test_learned_variances_are_the_same_here_and_there(tmp_path):
    model = digits_model(learned_variance=True)
    export_diffusers(model, tmp_path)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    scheduler, x = pipeline.scheduler, torch.randn(2, 1, 8, 8)
    for index in (1, 500, 999):
        s, t = torch.full((2,), index / 1000).double(), torch.full((2,), (index + 1) / 1000).double()
        with torch.no_grad():
            ours = reverse_log_var("learned", model(x, t), model.sde, s, t)
            v = pipeline.unet(x, index).sample[:, 1:]
        theirs = scheduler._get_variance(index, predicted_variance=v)
        # float32 tables there
        torch.testing.assert_close(ours, theirs.double(), rtol=1e-3, atol=1e-3)


def test_exported_files_hold_the_model_and_nothing_else(tmp_path):
    export_diffusers(digits_model(num_classes=3, learned_variance=True), tmp_path)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }
    scheduler = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())
    assert (scheduler["beta_schedule"], scheduler["beta_start"], scheduler["beta_end"]) == ("linear", 2e-3, 0.02)
    assert scheduler["variance_type"] == "learned_range" and scheduler["trained_betas"] is None
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert pipeline.unet.config.num_class_embeds == 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: digits_model(VP()), "tells networks the timestep of a DDPM table, got a network told auto of VP"),
        (lambda: digits_model(Tabulated.ncsn()), "the timestep of a DDPM table, got a network told auto of Tabulated"),
        (lambda: digits_model(VE(), parameterization="edm"), "know eps, x0 and v, got parameterization edm"),
        (lambda: digits_model(input_frequencies=(2,)), "has no Fourier features of its input"),
        (lambda: digits_model(embedding="fourier"), "divides by sigma after a Fourier embedding"),
        (lambda: digits_model(channel_mult=(2, 2)), "in its first level, 32, got 16 and 16"),
        (lambda: digits_model(channels=12, channel_mult=(1, 2)), "one number of norm groups for the whole network"),
        (lambda: digits_model(num_heads=2), "one number of channels a head for the whole network"),
    ],
    ids=["vp", "ncsn", "edm", "input features", "fourier", "widths", "groups", "heads"],
)
def test_what_diffusers_cannot_hold_is_refused_in_one_line(tmp_path, build, message):
    model = build()
    if "channels a head" in message:
        model.backbone.middle.attention.num_heads = 4
    with pytest.raises(ValueError, match=message) as error:
        export_diffusers(model, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_other_backbones_and_dequantizers_have_no_export(tmp_path):
    sde, parameterization = Tabulated.ddpm(), make_parameterization("eps")
    # as many noise features as channels in the first level, but an embedding of four times another number
    wide = ADM(image_size=8, channels=16, channel_mult=(2, 2), embedding_dim=32, attention_resolutions=())
    with pytest.raises(ValueError, match="has an embedding of 128 features, four times its first level, got 64"):
        export_diffusers(NetworkScoreModel(wide, sde, parameterization), tmp_path / "out")
    with pytest.raises(ValueError, match="diffusers has no MLP; only UNet and ADM can be exported"):
        export_diffusers(NetworkScoreModel(MLP(2), sde, parameterization), tmp_path / "out")
    model = digits_model()
    model.dequantizer = Dequantizer(1)
    with pytest.raises(ValueError, match=r"no place for a dequantizer; set model\.dequantizer = None"):
        export_diffusers(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
