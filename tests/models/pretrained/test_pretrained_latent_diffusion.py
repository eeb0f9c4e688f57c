"""U-Nets of latent diffusions, in latent-diffusion's files and in diffusers' pipelines, beside diffusers itself."""

import json
import re

import pytest
import torch
from diffusers_pipelines import Float64Sinusoid, diffusers, inputs, same_bits, save_latent
from importer_references import count, per_sample_error, randomize
from safetensors.torch import save_file

from models.backbones import ADM, UNet
from models.pretrained import from_diffusers, from_latent_diffusion
from models.pretrained.diffusers.settings import plan_diffusers
from models.pretrained.latent_diffusion.settings import plan_latent_diffusion_unet

# CelebA-HQ's, as published
UNET = {
    "_class_name": "UNet2DModel", "act_fn": "silu", "attention_head_dim": 32,
    "block_out_channels": [224, 448, 672, 896], "center_input_sample": False, "downsample_padding": 1,
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3], "flip_sin_to_cos": True, "freq_shift": 0,
    "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32,
    "out_channels": 3, "sample_size": 64, "time_embedding_type": "positional",
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_end": 0.0195, "beta_schedule": "scaled_linear", "beta_start": 0.0015,
    "clip_sample": False, "num_train_timesteps": 1000, "trained_betas": None,
}  # fmt: skip
FLAGS = (
    "--image_size 64 --in_channels 3 --out_channels 3 --model_channels 224 --attention_resolutions 8,4,2 "
    "--num_res_blocks 2 --channel_mult 1,2,3,4 --num_head_channels 32 --linear_start 0.0015 --linear_end 0.0195"
)
# the same in small
SMALL = {"block_out_channels": (32, 64, 96, 128), "sample_size": 16, "attention_head_dim": 16}
OF_SMALL = FLAGS.replace("224", "32").replace("size 64", "size 16").replace("head_channels 32", "head_channels 16")


def small_pipeline(folder, **changes):
    """A pipeline of CelebA-HQ's kind, and its U-Net."""
    settings = {name: value for name, value in UNET.items() if name[0] != "_"} | SMALL | changes
    theirs = randomize(diffusers.UNet2DModel(**settings))
    save_latent(folder, theirs, diffusers.DDIMScheduler(**{k: v for k, v in SCHEDULER.items() if k[0] != "_"}))
    return theirs


RES = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
FIXED = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip


def place_there(name, per_level, attends):
    """The block of latent-diffusion's file that holds a tensor of diffusers, written out here anew."""
    for ours, theirs in FIXED.items():
        if name.startswith(f"{ours}."):
            return theirs, name.removeprefix(f"{ours}.")
    level, kind, index, leaf = re.fullmatch(
        r"(?:down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name
    ).groups()
    level, index, leaf = int(level), int(index), leaf.removeprefix("conv.")
    if name.startswith("down"):
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (per_level + 1)}.0", f"op.{leaf}"
        return f"input_blocks.{1 + level * (per_level + 1) + index}.{int(kind == 'attentions')}", leaf
    if kind == "upsamplers":
        return f"output_blocks.{level * (per_level + 1) + per_level}.{1 + attends[level]}", f"conv.{leaf}"
    return f"output_blocks.{level * (per_level + 1) + index}.{int(kind == 'attentions')}", leaf


def as_latent_diffusion(theirs):
    """The tensors of a UNet2DModel under the names and in the layout of latent-diffusion's UNetModel."""
    config, state, tensors = theirs.config, theirs.state_dict(), {}
    attends = [block.startswith("Attn") for block in config.up_block_types]
    for name in state:
        block, leaf = place_there(name, config.layers_per_block, attends)
        layer, _, kind = leaf.rpartition(".")
        tensor = state[name]
        if layer in ("to_k", "to_v"):
            continue
        if layer == "to_q":
            # queries, keys and values head by head, as a convolution of kernel 1 along the pixels
            thirds = [state[name.replace("to_q", other)] for other in ("to_q", "to_k", "to_v")]
            heads = [third.unflatten(0, (-1, config.attention_head_dim)) for third in thirds]
            tensor, layer = torch.cat(heads, dim=1).flatten(0, 1), "qkv"
        layer = {"to_out.0": "proj_out", "group_norm": "norm"}.get(layer, RES.get(layer, layer))
        if layer in ("qkv", "proj_out") and kind == "weight":
            tensor = tensor[..., None]
        tensors[".".join(part for part in (block, layer, kind) if part)] = tensor
    return tensors


@torch.no_grad()
def error(network, theirs, dtype):
    x, t, _ = inputs(theirs)
    if dtype == torch.float64:
        theirs = theirs.double()
        theirs.time_proj = Float64Sinusoid(theirs.config.block_out_channels[0], 0)
    return per_sample_error(network.to(dtype)(x.to(dtype), t), theirs(x.to(dtype), t).sample.double())


def test_a_pipeline_of_latents_is_read_for_its_network(tmp_path):
    theirs = small_pipeline(tmp_path)
    model = from_diffusers(tmp_path)
    assert type(model.backbone) is UNet and model.of_latents and model.latent_scale is None
    assert sum(p.numel() for p in model.parameters()) == theirs.num_parameters()
    assert same_bits(from_diffusers(tmp_path / "unet"), model) and from_diffusers(tmp_path / "unet").of_latents
    assert error(model.backbone, theirs, torch.float32) < 5e-5
    assert error(model.backbone, theirs, torch.float64) < 1e-10


def test_files_of_latent_diffusion_hold_the_average_and_the_weights(tmp_path):
    theirs, raw = small_pipeline(tmp_path / "pipeline"), {}
    expected = from_diffusers(tmp_path / "pipeline")
    for name, tensor in as_latent_diffusion(theirs).items():
        raw[f"model.diffusion_model.{name}"] = tensor + 1
        raw["model_ema.diffusion_model" + name.replace(".", "")] = tensor
    others = {"model_ema.decay": torch.tensor(0.9999), "first_stage_model.quantize.embedding.weight": torch.zeros(8, 3)}
    torch.save({"state_dict": raw | others | {"scale_factor": torch.tensor(0.5)}, "epoch": 1}, tmp_path / "model.ckpt")
    averaged = from_latent_diffusion(tmp_path / "model.ckpt", OF_SMALL)
    assert same_bits(averaged.backbone, expected.backbone) and not averaged.training
    assert averaged.of_latents and averaged.latent_scale == 0.5 and averaged.notes == ()
    assert averaged.plan == expected.plan
    assert error(averaged.backbone, theirs, torch.float32) < 5e-5
    weights = from_latent_diffusion(tmp_path / "model.ckpt", OF_SMALL, weights="raw").backbone.state_dict()
    assert all(
        torch.equal(weights[name], tensor + 1) for name, tensor in averaged.backbone.float().state_dict().items()
    )
    # without an average, the weights, which a line says
    bare = {name: tensor.clone() for name, tensor in raw.items() if name.startswith("model.")}
    save_file(bare, tmp_path / "bare.safetensors")
    model = from_latent_diffusion(tmp_path / "bare.safetensors", OF_SMALL)
    assert model.latent_scale is None and "has no averaged weights" in model.notes[0]
    torch.testing.assert_close(model.backbone.state_dict(), weights)


def test_the_published_settings_build_the_network_of_the_published_size():
    plans = [plan_diffusers(UNET, SCHEDULER), plan_latent_diffusion_unet(FLAGS)]
    assert plans[0] == plans[1]
    assert count(plans[0].build_backbone) == 274_056_163
    assert plans[0].network["attention_resolutions"] == (32, 16, 8) and plans[0].network["head_channels"] == 32
    # what latent-diffusion calls "linear" is linear in the root, as diffusers' scaled_linear is
    betas = torch.tensor(plans[0].sde["betas"], dtype=torch.float64)
    assert betas[[0, -1]].tolist() == pytest.approx([0.0015, 0.0195], rel=1e-12)
    steps = betas.sqrt().diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=1e-9, atol=0)
    scheduler = diffusers.DDIMScheduler(**{k: v for k, v in SCHEDULER.items() if k[0] != "_"})
    torch.testing.assert_close(betas.float(), scheduler.betas, rtol=1e-6, atol=0)


def test_lsun_churches_network_has_residual_resampling():
    flags = (
        "--image_size 32 --in_channels 4 --out_channels 4 --model_channels 192 --attention_resolutions 1,2,4,8 "
        "--num_res_blocks 2 --channel_mult 1,2,2,4,4 --num_heads 8 --use_scale_shift_norm True --resblock_updown True "
        "--linear_start 0.0015 --linear_end 0.0155"
    )
    plan = plan_latent_diffusion_unet(flags)
    with torch.device("meta"):
        assert isinstance(plan.build_backbone(), ADM)
    found = {name: plan.network[name] for name in ("resampling", "scale_shift_norm", "num_heads", "head_channels")}
    assert found == {"resampling": "residual", "scale_shift_norm": True, "num_heads": 8, "head_channels": None}
    assert plan.network["attention_resolutions"] == (32, 16, 8, 4)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "config must say model_channels and the other arguments of UNetModel"),
        (OF_SMALL + " --use_spatial_transformer True", "use_spatial_transformer='True' is not supported"),
        (OF_SMALL + " --beta_schedule cosine", "beta_schedule='cosine' is not supported; only beta_schedule='linear'"),
        (OF_SMALL + " --parameterization v", "unknown parameterization of the config 'v'"),
        (OF_SMALL + " --ch 3", "unknown setting of the config 'ch'"),
        (OF_SMALL.replace("0.0195", "1.5"), "betas must be inside \\(0, 1\\), got 0.0015 to 1.5"),
        (OF_SMALL.replace("num_res_blocks 2", "num_res_blocks 3"), "does not fit the network"),
    ],
)
def test_networks_that_are_not_supported_are_refused_in_one_line(tmp_path, flags, message):
    theirs = randomize(diffusers.UNet2DModel(**{k: v for k, v in UNET.items() if k[0] != "_"} | SMALL))
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in as_latent_diffusion(theirs).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message) as raised:
        from_latent_diffusion(tmp_path / "model.safetensors", flags)
    assert "\n" not in str(raised.value)


def test_files_of_other_projects_are_refused_in_one_line(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"first_stage_model.encoder.conv_in.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="of another project than latent-diffusion's U-Net"):
        from_latent_diffusion(path, FLAGS)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({first: torch.zeros(1), "model_ema.decay": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"it has no model_ema\.diffusion_modelinput_blocks00weight"):
        from_latent_diffusion(path, FLAGS)
    with pytest.raises(ValueError, match="weights of latent-diffusion must be ema or raw, got 'best'"):
        from_latent_diffusion(path, FLAGS, weights="best")
    # a pipeline of more models than these
    small_pipeline(tmp_path / "pipeline")
    index = tmp_path / "pipeline" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"bert": ["diffusers", "LDMBertModel"]}))
    with pytest.raises(ValueError, match="must consist of a unet and a scheduler"):
        from_diffusers(tmp_path / "pipeline")
