"""Stable Diffusion's networks and folders beside diffusers itself."""

import json

import pytest
import torch
from diffusers_pipelines import BETAS, ONE, TWO, Float64Sinusoid, diffusers, same_bits
from importer_references import count, per_sample_error, randomize
from test_pretrained_diffusers import change_json

from models import Condition
from models.backbones import ADM
from models.pretrained import from_diffusers, from_stable_diffusion
from models.pretrained.diffusers.settings import plan_diffusers

FORMS = {"1.5": (ONE, "epsilon"), "2.1": (TWO, "v_prediction")}
PARTS = {
    "scheduler": ["diffusers", "DDIMScheduler"], "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"], "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "image_encoder": [None, None],
}  # fmt: skip
# unet/config.json of the published models, but for the names of classes and versions
PUBLISHED = {
    "1.5": {
        "act_fn": "silu", "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False, "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "downsample_padding": 1,
        "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    },
}  # fmt: skip
PUBLISHED["2.1"] = PUBLISHED["1.5"] | {
    "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "dual_cross_attention": False,
    "num_class_embeds": None, "only_cross_attention": False, "sample_size": 96, "upcast_attention": True,
    "use_linear_projection": True,
}  # fmt: skip


def save(folder, settings, prediction="epsilon"):
    """The folder of a pipeline without the parts that are not read, and its networks."""
    unet = randomize(diffusers.UNet2DConditionModel(**settings))
    vae = randomize(
        diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
        )
    )
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    diffusers.DDIMScheduler(**BETAS, prediction_type=prediction, clip_sample=False).save_pretrained(
        folder / "scheduler"
    )
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **PARTS}))
    return unet, vae


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 4, 8, 8, generator=generator, dtype=dtype)
    x[-1] *= 0.01  # so little contrast that the epsilon of the norms shows
    return x, torch.tensor([0, 517, 999]), torch.randn(3, 7, 12, generator=generator, dtype=dtype)


def refused(folder, message, read=from_diffusers, **kwargs):
    with pytest.raises(ValueError, match=message) as error:
        read(folder, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_outputs_agree_with_diffusers(tmp_path, form, dtype):
    settings, prediction = FORMS[form]
    theirs, _ = save(tmp_path, settings, prediction)
    model = from_diffusers(tmp_path)
    assert type(model.backbone) is ADM and not model.training and not model.learned_variance
    assert sum(p.numel() for p in model.backbone.parameters()) == theirs.num_parameters()
    theirs, ours = theirs.to(dtype), model.backbone.to(dtype)
    if dtype == torch.float64:
        theirs.time_proj = Float64Sinusoid(16, 0)
    x, t, tokens = inputs(dtype)
    with torch.no_grad():
        expected = theirs(x, t, encoder_hidden_states=tokens).sample
        tolerance = 5e-5 if dtype == torch.float32 else 1e-10
        assert per_sample_error(ours(x, t, tokens=tokens), expected.double()) < tolerance
        # and a mask hides what it hides there
        mask = torch.arange(7) < torch.tensor([[2], [7], [4]])
        expected = theirs(x, t, encoder_hidden_states=tokens, encoder_attention_mask=mask).sample
        assert per_sample_error(ours(x, t, tokens=tokens, mask=mask), expected.double()) < tolerance


@pytest.mark.parametrize("changes", [
    {"transformer_layers_per_block": 2}, {"downsample_padding": 0}, {"freq_shift": 1, "norm_eps": 1e-4},
    {"resnet_time_scale_shift": "scale_shift"}, {"flip_sin_to_cos": False}, {"sample_size": (8, 16)},
])  # fmt: skip
def test_other_settings_agree_with_diffusers(tmp_path, changes):
    theirs, _ = save(tmp_path, ONE | changes)
    ours = from_diffusers(tmp_path).backbone
    x, t, tokens = inputs()
    x = torch.cat([x, -x], 3) if "sample_size" in changes else x
    with torch.no_grad():
        expected = theirs(x, t, encoder_hidden_states=tokens).sample.double()
        assert per_sample_error(ours(x, t, tokens=tokens), expected) < 5e-5


@pytest.mark.parametrize(("form", "size"), [("1.5", 859_520_964), ("2.1", 865_910_724)])
def test_published_settings_build_networks_of_the_published_size(form, size):
    scheduler = {"_class_name": "PNDMScheduler", **BETAS, "skip_prk_steps": True, "steps_offset": 1}
    plan = plan_diffusers({"_class_name": "UNet2DConditionModel", **PUBLISHED[form]}, scheduler)
    assert plan.backbone == "adm" and count(plan.build_backbone) == size
    assert plan.network["cross_attention_resolutions"] == ((64, 32, 16) if form == "1.5" else (96, 48, 24))
    heads = (8, None) if form == "1.5" else (1, 64)
    assert (plan.network["num_heads"], plan.network["head_channels"]) == heads
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(torch.tensor(plan.sde["betas"], dtype=torch.float64), betas, rtol=1e-12, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_a_pipeline_is_a_score_model_of_the_latents_of_its_autoencoder(tmp_path, form):
    settings, prediction = FORMS[form]
    unet, vae = save(tmp_path, settings, prediction)
    model = from_stable_diffusion(tmp_path)
    assert not model.training and model.prior.of_latents and model.prior.latent_scale == 0.18215
    left_out = [f"the {name} of {tmp_path} is left out" for name in ("feature_extractor", "safety_checker")]
    assert list(model.prior.notes) == left_out  # pyright: ignore
    x, t, tokens = inputs()
    scheduler = diffusers.DDIMScheduler.from_pretrained(tmp_path / "scheduler")
    with torch.no_grad():
        ours = model.prior(x, (t + 1.0).double() / 1000, cond=Condition(tokens=tokens))
        for i, step in enumerate(t.tolist()):
            raw = unet(x[i : i + 1], step, encoder_hidden_states=tokens[i : i + 1]).sample
            scheduler.set_timesteps(1000)
            x0 = scheduler.step(raw, step, x[i : i + 1]).pred_original_sample.double()
            assert per_sample_error(ours.x0[i : i + 1], x0) < 5e-5
        z = torch.randn(2, 4, 8, 8)
        expected = vae.decode(z / vae.config.scaling_factor).sample.double()
        assert model.first_stage.latent_shape == (4, 8, 8) and expected.shape == (2, 3, 16, 16)
        assert per_sample_error(model.first_stage.decode(model.restore(z)).mean, expected) < 5e-5
        images = torch.rand(2, 3, 16, 16) * 2 - 1
        expected = vae.encode(images).latent_dist.mean * vae.config.scaling_factor
        assert per_sample_error(model.standardize(model.first_stage.encode(images).mean), expected.double()) < 5e-5


def test_parts_of_a_pipeline_are_read_alone(tmp_path):
    save(tmp_path, ONE)
    whole = from_diffusers(tmp_path)
    bare = from_diffusers(tmp_path / "unet")
    assert same_bits(bare, whole) and bare.of_latents and bare.latent_scale == 0.18215
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    refused(tmp_path / "unet", "no file says the scheduler of .*, whose network is told a text; of Stable Diffusion 1")
    flags = "--beta_schedule scaled_linear --beta_start 0.00085 --beta_end 0.012"
    again = from_diffusers(tmp_path / "unet", flags)
    assert again.plan == whole.plan and same_bits(again, whole)
    (tmp_path / "vae").rename(tmp_path / "elsewhere")
    assert not from_diffusers(tmp_path / "unet", flags).of_latents
    refused(tmp_path, r"must have an autoencoder in vae/, got none; read the unet alone", read=from_stable_diffusion)


def test_attention_in_float32_alone_is_said(tmp_path):
    save(tmp_path, TWO | {"upcast_attention": True})
    assert "upcast_attention: float16 overflows" in from_diffusers(tmp_path).notes[-1]


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet", {"attention_head_dim": 3}, "a number of heads that divides the channels of each level"),
        ("unet", {"attention_head_dim": [4]}, r"divides the channels of each level, \[16, 32\], got \[4\]"),
        ("unet", {"attention_head_dim": [4, 16]}, "as many heads at every level, or heads of as many channels"),
        ("unet", {"in_channels": 9}, "as many out_channels as in_channels=9, got 4; those that are told an image"),
        ("unet", {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "attend at the same levels down and up"),
        ("unet", {"down_block_types": ["KDownBlock2D", "DownBlock2D"]}, "unknown block type of UNet2DConditionModel"),
        ("unet", {"down_block_types": ["DownBlock2D"]}, "a block type for each of 2 levels"),
        ("unet", {"addition_embed_type": "text_time"}, "addition_embed_type='text_time' is not supported"),
        ("unet", {"cross_attention_dim": 16}, "misshapen"),
        ("unet", {"new_setting": 1}, "unknown setting of the config 'new_setting'"),
        ("scheduler", {"_class_name": "ScoreSdeVeScheduler"}, "VeScheduler goes with time_embedding_type=fourier"),
        ("scheduler", {"prediction_type": "flow"}, "unknown prediction_type of the config"),
        ("vae", {"latent_channels": 3}, "misshapen|does not fit"),
    ],
)  # fmt: skip
def test_networks_that_are_not_supported_are_refused_in_one_line(tmp_path, file, changes, message):
    save(tmp_path, ONE)
    name = "scheduler_config.json" if file == "scheduler" else "config.json"
    change_json(tmp_path / file / name, **changes)
    refused(tmp_path, message, read=from_stable_diffusion)


def test_pipelines_with_other_parts_are_refused_in_one_line(tmp_path):
    save(tmp_path, ONE)
    for part in ("text_encoder_2", "image_encoder"):
        change_json(tmp_path / "model_index.json", **{part: ["transformers", "CLIPTextModel"]})
        refused(
            tmp_path, f"of texts of a vae, a text_encoder and a tokenizer too, got .*{part}.*; its vae alone can be"
        )
        change_json(tmp_path / "model_index.json", **{part: [None, None]})
    from_diffusers(tmp_path)


def test_parts_of_different_latents_are_refused_in_one_line(tmp_path):
    save(tmp_path, ONE)
    diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2).save_pretrained(
        tmp_path / "vae"
    )
    refused(tmp_path, "is of latents of 4x8x8, but its vae has 2x8x8; fetch both again", read=from_stable_diffusion)
