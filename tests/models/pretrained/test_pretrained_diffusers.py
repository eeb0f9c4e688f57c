"""Pipelines of diffusers as our models, beside diffusers itself."""

import builtins
import json
import math

import pytest
import torch
from diffusers_pipelines import BASE, RESNET, Float64Sinusoid, diffusers, inputs, same_bits, same_outputs, save
from importer_references import count, per_sample_error, randomize
from safetensors.torch import load_file, save_file
from thinning import one_each, only

from models.backbones import ADM, NCSNpp, UNet
from models.pretrained.diffusers.export import export_diffusers
from models.pretrained.diffusers.importer import from_diffusers
from models.pretrained.diffusers.settings import plan_diffusers

HO = {"downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6, "attention_head_dim": None}
# what differs from BASE, and the backbone that it becomes
NETWORKS = {
    "Ho et al.": (HO, UNet),
    "defaults": ({}, UNet),
    "heads of 16": ({"attention_head_dim": 16}, UNet),
    "cosines first, Ho et al.'s frequencies": ({"flip_sin_to_cos": True, "freq_shift": 1}, UNet),
    "sines first, OpenAI's frequencies": ({"flip_sin_to_cos": False, "freq_shift": 0}, UNet),
    "scale and shift": ({"resnet_time_scale_shift": "scale_shift"}, ADM),
    "scale and shift, norm": ({"resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32}, UNet),
    "no attention in the middle": ({"add_attention": False, "norm_num_groups": 8}, ADM),
    "residual resampling": (RESNET, ADM),
    "classes": ({"num_class_embeds": 7}, UNet),
    "any widths": ({"block_out_channels": (32, 48, 80), "norm_num_groups": 16}, ADM),
    "other attention on the way up": ({"up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D")}, ADM),
    "learned variance": ({"out_channels": 6}, UNet),
    "one channel": ({"in_channels": 1, "out_channels": 1}, UNet),
}


def change_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", only(list(NETWORKS)[::2], NETWORKS))
def test_outputs_agree_with_diffusers_there_and_back(tmp_path, name):
    changes, kind = NETWORKS[name]
    theirs = save(tmp_path / "theirs", BASE | changes)
    model = from_diffusers(tmp_path / "theirs")
    assert type(model.backbone) is kind and not model.training
    assert sum(p.numel() for p in model.backbone.parameters()) == theirs.num_parameters()
    assert same_outputs(model.backbone, theirs)
    export_diffusers(model, tmp_path / "ours")
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "ours")
    assert same_outputs(model.backbone, pipeline.unet)
    again = from_diffusers(tmp_path / "ours")
    assert same_bits(again, model) and type(again.backbone) is kind
    assert again.learned_variance == model.learned_variance == ("variance" in name)
    assert torch.equal(again.sde.log_snr_table, model.sde.log_snr_table)


@pytest.mark.parametrize("shift", [0, 1])
def test_float64_outputs_agree_to_rounding(tmp_path, shift):
    changes = {"flip_sin_to_cos": True, "freq_shift": shift, "resnet_time_scale_shift": "scale_shift"} | RESNET
    theirs = save(tmp_path, BASE | changes).double()
    theirs.time_proj = Float64Sinusoid(32, shift)
    x, t, _ = inputs(theirs)
    with torch.no_grad():
        ours = from_diffusers(tmp_path).backbone.double()(x.double(), t)
        assert per_sample_error(ours, theirs(x.double(), t).sample) < 1e-10


SCHEDULERS = {
    "linear": ("DDPMScheduler", {}),
    "linear, other ends": ("DDIMScheduler", {"beta_start": 2e-3, "beta_end": 0.05, "num_train_timesteps": 300}),
    "cosine": ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    "scaled linear": ("PNDMScheduler", {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012}),
    "sigmoid": ("DDPMScheduler", {"beta_schedule": "sigmoid"}),
    "a list": ("DDIMScheduler", {"trained_betas": [0.01, 0.3, 0.1, 0.2], "num_train_timesteps": 4}),
}


@pytest.mark.parametrize(("name", "prediction"), one_each(list(SCHEDULERS), ["epsilon", "sample", "v_prediction"]))
def test_tables_and_predictions_are_the_scheduler_s(tmp_path, name, prediction):
    kind = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}[prediction]
    scheduler_class, options = SCHEDULERS[name]
    scheduler = getattr(diffusers, scheduler_class)(prediction_type=prediction, **options)
    theirs = save(tmp_path, {**BASE, "block_out_channels": (32, 32, 32), "sample_size": 8}, scheduler)
    model = from_diffusers(tmp_path)
    num_steps = len(scheduler.betas)
    assert model.sde.table_size == num_steps
    t = torch.arange(1, num_steps + 1, dtype=torch.float64) / num_steps
    alpha_bar = model.sde.alpha(t) ** 2
    beta = 1 - alpha_bar / torch.cat((alpha_bar.new_ones(1), alpha_bar[:-1]))
    # theirs are float32: each beta to its last digits, and their product to one rounding a factor
    torch.testing.assert_close(beta, scheduler.betas.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(alpha_bar, scheduler.alphas_cumprod.double(), rtol=num_steps * 2**-24, atol=0)
    # x0 as the scheduler's own step finds it from the same network
    scheduler.alphas_cumprod = alpha_bar
    x = torch.randn(2, 3, 8, 8)
    for index in {0, num_steps // 2, num_steps - 1}:
        with torch.no_grad():
            raw = theirs(x, index).sample
            ours = model(x, torch.full((2,), (index + 1) / num_steps, dtype=torch.float64))
        alpha, sigma = float(alpha_bar[index]) ** 0.5, float(1 - alpha_bar[index]) ** 0.5
        x0 = {"eps": (x - sigma * raw) / alpha, "x0": raw, "v": alpha * x - sigma * raw}[kind]
        # what the float32 network's rounding becomes where alpha is small
        tolerance = 5e-5 / (alpha if kind == "eps" else 1)
        assert (ours.x0 - x0).abs().max() < tolerance * raw.abs().max()


def test_files_of_old_versions_and_pickles_are_read(tmp_path):
    theirs = save(tmp_path, BASE, safe=False)
    assert (tmp_path / "unet" / "diffusion_pytorch_model.bin").is_file()
    new = from_diffusers(tmp_path)
    assert same_outputs(new.backbone, theirs)
    # as in google/ddpm-*: all files beside model_index.json, and attention under its names of that time
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = theirs.state_dict()
    for now, then in old.items():
        tensors = {name.replace(f".{now}.", f".{then}."): tensor for name, tensor in tensors.items()}
    assert any(".query." in name for name in tensors)
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "unet" / "config.json").rename(tmp_path / "config.json")
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").unlink()
    (tmp_path / "unet").rmdir()
    assert same_bits(from_diffusers(tmp_path), new)


def test_diffusers_need_not_be_installed(tmp_path, monkeypatch):
    save(tmp_path, BASE)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] in ("diffusers", "huggingface_hub"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    export_diffusers(from_diffusers(tmp_path), tmp_path / "ours")
    with pytest.raises(ValueError, match="to fetch it from the hub needs huggingface_hub; pip install it"):
        from_diffusers("google/ddpm-cifar10-32")


def test_a_hub_name_is_fetched(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    save(tmp_path / "snapshot", BASE)
    asked = []

    def fetch(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert isinstance(from_diffusers("somebody/some-model").backbone, UNet)
    assert asked == [("somebody/some-model", ["*.json", "*diffusion_pytorch_model.safetensors"])]

    def fail(name, allow_patterns):
        raise OSError("no such repository\nand more")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match="cannot be fetched from the hub \\(no such repository\\); check the name"):
        from_diffusers("somebody/some-model")
    for name in (tmp_path / "absent", str(tmp_path / "absent"), "./some/folder", "name"):
        with pytest.raises(ValueError, match=r"is no folder; pass that of model_index\.json"):
            from_diffusers(name)


# config.json of google/ddpm-cifar10-32, but for the names of classes and versions
CIFAR10 = {
    "act_fn": "silu", "attention_head_dim": None, "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False, "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32,
    "time_embedding_type": "positional", "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


def test_published_settings_build_networks_of_the_published_size():
    plan = plan_diffusers(CIFAR10, {"_class_name": "DDPMScheduler", "clip_sample": True, "trained_betas": None})
    assert plan.backbone == "unet" and count(plan.build_backbone) == 35_746_307
    assert plan.sde == {"name": "ddpm", "num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02}
    down = ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"]
    up = ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4
    large = {"block_out_channels": [128, 128, 256, 256, 512, 512], "sample_size": 256}
    plan = plan_diffusers(CIFAR10 | large | {"down_block_types": down, "up_block_types": up}, {})
    assert plan.network["attention_resolutions"] == (16,) and count(plan.build_backbone) == 113_673_219


SKIPS = {
    "sample_size": 16,
    "block_out_channels": (128, 256),
    "layers_per_block": 1,
    "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"),
    "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
    "time_embedding_type": "fourier",
    "center_input_sample": True,
    "mid_block_scale_factor": math.sqrt(2),
    "norm_eps": 1e-6,
    "norm_num_groups": None,
    "attention_head_dim": None,
}
# widths as those of google/ncsnpp-ffhq-1024, whose norms have fewer groups where it is narrow
NARROW = {
    "block_out_channels": (16, 32, 64, 128, 128),
    "down_block_types": ("SkipDownBlock2D",) * 3 + ("AttnSkipDownBlock2D", "SkipDownBlock2D"),
    "up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D") + ("SkipUpBlock2D",) * 3,
}
VE_NETWORKS = {
    "skips": (SKIPS, NCSNpp),
    "narrow skips": (SKIPS | NARROW, NCSNpp),
    "plain": (BASE | {"time_embedding_type": "fourier", "center_input_sample": True}, ADM),
}


def save_ve(folder, settings):
    unet = diffusers.UNet2DModel(**settings)
    frequencies = unet.time_proj.weight.detach().clone()
    randomize(unet)
    unet.time_proj.weight.data.copy_(frequencies)
    scheduler = diffusers.ScoreSdeVeScheduler(sigma_max=50.0)
    diffusers.ScoreSdeVePipeline(unet, scheduler).save_pretrained(folder)
    return unet


@pytest.mark.parametrize("name", VE_NETWORKS)
def test_scores_of_the_ve_sde_agree_with_diffusers(tmp_path, name):
    settings, kind = VE_NETWORKS[name]
    theirs = save_ve(tmp_path, settings).double()
    model = from_diffusers(tmp_path)
    assert type(model.backbone) is kind
    # data x in [0, 1] there are 2 x - 1 here, with twice the noise and half the score
    t = torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
    sigma = 0.01 * (50.0 / 0.01) ** t
    torch.testing.assert_close(model.sde.sigma(t), 2 * sigma, rtol=1e-12, atol=0)
    x = torch.rand(4, 3, 16, 16).double() + sigma[:, None, None, None] * torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        score = theirs(x, sigma).sample
        # ln sigma, whose rounding the frequencies multiply by 10^2, and a network that amplifies it
        assert per_sample_error(2 * model.double()(2 * x - 1, t).score, score) < 1e-10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": (128, 192)}, "widths that are multiples of the first, from 128 on where they attend"),
        ({"block_out_channels": (64, 64)}, "from 128 on where they attend"),
        ({"block_out_channels": (16, 128)}, "and that min\\(width / 4, 32\\) divides, alone and added to their neighb"),
        ({"block_out_channels": (64, 128), "norm_num_groups": 32}, "norm_num_groups=32 is not supported"),
        ({"attention_head_dim": 8}, "attention_head_dim=8 is not supported"),
        ({"mid_block_scale_factor": 1}, "must have mid_block_scale_factor=sqrt\\(2\\), got 1"),
        ({"up_block_types": ("SkipUpBlock2D", "AttnSkipUpBlock2D")}, "must attend at the same levels down and up"),
        (
            {"up_block_types": ("UpBlock2D", "SkipUpBlock2D")},
            "must resample alike at every level, .* or be of skip blocks alone",
        ),
        ({"time_embedding_type": "positional"}, "a ScoreSdeVeScheduler goes with time_embedding_type=fourier"),
        ({"dropuot": 0.1}, "unknown setting of the config 'dropuot'; did you mean 'dropout'"),
    ],
)
def test_other_networks_of_skips_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        plan_diffusers(SKIPS | changes, {"_class_name": "ScoreSdeVeScheduler"})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "unet/config.json",
            {"_class_name": "UNet1DModel"},
            "must be a UNet2DModel or UNet2DConditionModel, got UNet1DModel",
        ),
        ("unet/config.json", {"block_out_channels": [32, 64, 96]}, "misshapen"),
        ("unet/config.json", {"layers_per_block": 2}, "missing"),
        ("unet/config.json", {"num_class_embeds": 3}, "1 missing \\(class_embedding.weight\\)"),
        ("unet/config.json", {"sample_size": None}, "config must say sample_size"),
        ("unet/config.json", {"sample_size": [16, 8, 8]}, "sample_size must be a whole number, got \\[16, 8, 8\\]"),
        ("unet/config.json", {"act_fn": "relu"}, "act_fn='relu' is not supported"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type='timestep' is not"),
        ("unet/config.json", {"center_input_sample": True}, "center_input_sample=True is not"),
        ("unet/config.json", {"time_embedding_type": "learned"}, "unknown time_embedding_type of the config 'learned'"),
        ("unet/config.json", {"time_embedding_type": "fourier"}, "DDPMScheduler goes with time_embedding_type=positi"),
        ("unet/config.json", {"out_channels": 4}, "as many out_channels as in_channels=3, or twice as many"),
        ("unet/config.json", {"out_channels": 6}, "variance_type='fixed_small' contradicts 2 outputs a channel"),
        ("unet/config.json", {"mid_block_type": None}, "mid_block_type=None is not supported"),
        ("unet/config.json", {"attn_norm_num_groups": 8}, "attn_norm_num_groups=8 is not supported"),
        ("unet/config.json", {"down_block_types": ["KDownBlock2D"] * 3}, "unknown block type of UNet2DModel 'KDown"),
        ("unet/config.json", {"down_block_types": ["DownBlock2D"]}, "a block type for each of 3 levels"),
        (
            "unet/config.json",
            {"down_block_types": RESNET["down_block_types"]},
            "must resample alike at every level, by convolutions or by residual blocks",
        ),
        ("unet/config.json", {"new_setting": 1}, "unknown setting of the config 'new_setting'"),
        ("scheduler/scheduler_config.json", {"_class_name": "EulerScheduler"}, "unknown _class_name of the config"),
        ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "unknown prediction_type of the config"),
        ("scheduler/scheduler_config.json", {"variance_type": "learned"}, "variance_type='learned' contradicts 1"),
        ("scheduler/scheduler_config.json", {"variance_type": "learned_range"}, "'learned_range' contradicts 1"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "leaves no signal at the last step"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1, 0.2]}, "trained_betas must be num_train_timeste"),
        ("scheduler/scheduler_config.json", {"beta_end": 1.5}, "betas must lie strictly between 0 and 1"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKL"]}, "its vae alone can be read, by --source"),
        ("model_index.json", {"unet": [None, None]}, "got DDPMPipeline of scheduler; it is not supported"),
    ],
)
def test_pipelines_that_are_not_supported_are_refused_in_one_line(tmp_path, file, changes, message):
    save(tmp_path, BASE)
    change_json(tmp_path / file, **changes)
    with pytest.raises(ValueError, match=message) as error:
        from_diffusers(tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_pipelines_are_refused_in_one_line(tmp_path):
    save(tmp_path, BASE)
    weights, config = tmp_path / "unet/diffusion_pytorch_model.safetensors", tmp_path / "unet/config.json"
    whole, tensors = weights.read_bytes(), load_file(weights)
    damages = [
        (weights, whole[: len(whole) // 2], "truncated"),
        (weights, None, "has no weights; diffusion_pytorch_model.safetensors or diffusion_pytorch_model.bin must be"),
        (config, config.read_bytes()[:50], "UNet2DModel's config .* is no JSON"),
        (config, b"[]", "it holds a list, not an object"),
        (config, None, "config.json cannot be read"),
        (tmp_path / "model_index.json", None, "model_index.json cannot be read"),
    ]
    for path, damage, message in damages:
        before = path.read_bytes()
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        with pytest.raises(ValueError, match=message) as error:
            from_diffusers(tmp_path)
        assert "\n" not in str(error.value)
        path.write_bytes(before)
    save_file({**tensors, "more": torch.zeros(1)}, weights)
    with pytest.raises(ValueError, match="1 unexpected \\(more\\)"):
        from_diffusers(tmp_path)


class Trap:
    """A pickle of this writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_with_code_is_refused_unread(tmp_path):
    save(tmp_path, BASE, safe=False)
    torch.save({"conv_in.weight": Trap(tmp_path / "ran")}, tmp_path / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="refused unread") as error:
        from_diffusers(tmp_path)
    assert "\n" not in str(error.value) and not (tmp_path / "ran").exists()
