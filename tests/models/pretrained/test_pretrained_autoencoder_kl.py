"""KL autoencoders of diffusers and latent-diffusion as our first stages, beside diffusers itself."""

import json
import sys
from types import ModuleType

import pytest
import torch
from diffusers_pipelines import diffusers, same_bits
from importer_references import count, per_sample_error, randomize
from safetensors.torch import load_file, save_file

from models import FirstStage
from models.pretrained import from_autoencoder_kl, from_diffusers
from models.pretrained.autoencoder_kl.names import LATENT_DIFFUSION, autoencoder_sources, named_layers
from models.pretrained.autoencoder_kl.settings import plan_autoencoder_kl
from models.pretrained.shared.renaming import renamed

BASE = {"block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 16}
NO_CONVS = {"use_quant_conv": False, "use_post_quant_conv": False}
NETWORKS = {
    "Stable Diffusion's kind": {"layers_per_block": 2},
    "Stable Diffusion 3's kind": {"latent_channels": 6, **NO_CONVS},
    "three levels of grey images": {"block_out_channels": (8, 12, 16), "in_channels": 1, "out_channels": 1},
}
# the smallest that latent-diffusion's norms of 32 groups allow
OF_32 = {"block_out_channels": (32, 64), "norm_num_groups": 32}


def drawn(**changes):
    settings = BASE | changes
    levels = len(settings["block_out_channels"])
    types = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    return randomize(diffusers.AutoencoderKL(**settings, **types))


def save(folder, **changes):
    theirs = drawn(**changes)
    theirs.save_pretrained(folder)
    return theirs


@torch.no_grad()
def error(ours, theirs, dtype=torch.float32, size=(16, 24)):
    """The largest error of mean, log variance and decoded mean, each over its largest value."""
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    x = torch.randn(3, theirs.config.in_channels, *size, dtype=dtype)
    x[-1] *= 0.01  # so little contrast that the epsilon of the norms shows
    latent, expected = ours.encode(x), theirs.encode(x).latent_dist
    z = expected.sample()
    found = latent.mean, 2 * latent.log_std, ours.decode(z).mean
    truth = expected.mean, expected.logvar, theirs.decode(z).sample
    return max(per_sample_error(one, other.double()) for one, other in zip(found, truth, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_latents_and_images_agree_with_diffusers_at_any_size(tmp_path, name):
    theirs = save(tmp_path, **NETWORKS[name])
    model = from_autoencoder_kl(tmp_path, image_size=(16, 24))
    assert isinstance(model, FirstStage) and not model.training
    assert error(model, theirs) < 5e-5
    assert error(model, theirs, torch.float64) < 1e-10
    # the scale of pixels is the only number that is not theirs
    log_std = model.backbone.pixel_log_std
    assert sum(p.numel() for p in model.backbone.parameters()) == theirs.num_parameters() + log_std.numel()
    assert torch.equal(log_std, torch.zeros_like(log_std))
    assert model.decode(torch.zeros(1, *model.latent_shape).double()).log_std.abs().max() == 0
    assert from_autoencoder_kl(tmp_path).plan.network["image_size"] == 16


def test_scale_and_shift_of_latents_are_kept(tmp_path):
    save(tmp_path / "third", scaling_factor=1.5305, shift_factor=0.0609, **NO_CONVS)
    model = from_autoencoder_kl(tmp_path / "third")
    assert (model.latent_scale, model.latent_shift) == (1.5305, 0.0609)
    assert model.notes == ("the checkpoint says force_upcast: float16 overflows in this network, float32 does not",)
    first = {"_class_name": "AutoencoderKL", "block_out_channels": [32]}
    assert plan_autoencoder_kl(first)[1:] == (0.18215, 0.0, ())


def test_a_pipeline_is_read_for_its_vae_and_half_precision_is_said(tmp_path):
    theirs = save(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text("{}")
    model = from_autoencoder_kl(tmp_path)
    assert same_bits(model, from_autoencoder_kl(tmp_path / "vae"))
    theirs.half().save_pretrained(tmp_path / "half", variant="fp16")
    half = from_autoencoder_kl(tmp_path / "half", image_size=(16, 24))
    assert "has weights in float16, which are taken as float32" in half.notes[-1]
    assert error(half, theirs.float()) < 5e-5


@pytest.mark.parametrize("kernels", [False, True])
def test_files_of_old_versions_are_read(tmp_path, kernels):
    save(tmp_path)
    new, path = from_autoencoder_kl(tmp_path), tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for now, then in old.items():
        tensors = {name.replace(f".{now}.", f".{then}."): tensor for name, tensor in tensors.items()}
    if kernels:
        matrices = tuple(f"{then}.weight" for then in old.values())
        tensors = {
            name: tensor[..., None, None] if name.endswith(matrices) else tensor for name, tensor in tensors.items()
        }
    path.unlink()
    torch.save(tensors, tmp_path / "diffusion_pytorch_model.bin")
    # settings that are no older than the tensors' names are left out
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("force_upcast", "latents_mean", "latents_std", "mid_block_add_attention", "shift_factor"):
        config.pop(name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = from_autoencoder_kl(tmp_path)
    assert same_bits(model, new) and model.notes == ()


# as published, but for the names of classes and versions
FIRST = {
    "act_fn": "silu", "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3,
    "sample_size": 256, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
THIRD = FIRST | NO_CONVS | {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}


@pytest.mark.parametrize(("settings", "size"), [(FIRST, 83_653_863), (THIRD, 83_819_683)])
def test_published_settings_build_networks_of_the_published_size(settings, size):
    plan = plan_autoencoder_kl(settings, image_size=32).plan
    assert count(plan.build_backbone) == size + 3
    assert plan.network["norm_eps"] == 1e-6 and plan.network["attention_resolutions"] == ()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [FIRST, THIRD])
def test_networks_of_the_published_size_agree_with_diffusers(tmp_path, settings):
    # by diffusers' own initialization: other weights would let rounding grow through so many layers
    theirs = diffusers.AutoencoderKL(**settings).eval()
    theirs.save_pretrained(tmp_path)
    model = from_autoencoder_kl(tmp_path, image_size=(32, 48))
    assert error(model, theirs, size=(32, 48)) < 5e-5
    assert error(model, theirs, torch.float64, size=(32, 48)) < 1e-10


class _Lightning(ModuleType):
    """Stands in for the modules of pytorch_lightning, of which old checkpoints name a class."""


def as_saved_by_lightning(held, path, name="ModelCheckpoint"):
    """A checkpoint with the state of a callback under its class."""
    place = "pytorch_lightning.callbacks.model_checkpoint"
    parts = [place.rsplit(".", k)[0] for k in (2, 1, 0)]
    callback = type(name, (), {"__module__": place})
    with pytest.MonkeyPatch.context() as patched:
        for part in parts:
            patched.setitem(sys.modules, part, _Lightning(part))
        setattr(sys.modules[place], name, callback)
        torch.save({"epoch": 3, "callbacks": {callback: {"best": None}}, "state_dict": held}, path)


def of_latent_diffusion(folder, **changes):
    """diffusers' autoencoder, and its tensors under latent-diffusion's names."""
    theirs = save(folder, **OF_32, **changes)
    network = from_autoencoder_kl(folder).backbone
    tensors = renamed(named_layers(network), autoencoder_sources(network, LATENT_DIFFUSION))
    # its attention is made of convolutions of kernel 1
    names = tuple(f".attn_1.{name}.weight" for name in ("q", "k", "v", "proj_out"))
    return theirs, {
        name: tensor[..., None, None] if name.endswith(names) else tensor for name, tensor in tensors.items()
    }


def test_names_of_latent_diffusion_are_those_that_diffusers_converts(tmp_path):
    convert = pytest.importorskip("diffusers.loaders.single_file_utils").convert_ldm_vae_checkpoint
    for changes in ({}, NO_CONVS):
        theirs, tensors = of_latent_diffusion(tmp_path, **changes)
        converted = convert(tensors, dict(theirs.config))
        expected = theirs.state_dict()
        assert converted.keys() == expected.keys()
        assert all(torch.equal(converted[name].reshape(expected[name].shape), expected[name]) for name in expected)


def test_files_of_latent_diffusion_are_read(tmp_path):
    theirs, tensors = of_latent_diffusion(tmp_path)
    more = {"loss.logvar": torch.zeros(()), "model_ema.decay": torch.zeros(()), "loss.discriminator.x": torch.ones(2)}
    save_file(tensors, tmp_path / "bare.safetensors")
    as_saved_by_lightning({**tensors, **more}, tmp_path / "autoencoder.ckpt")
    inner = {f"first_stage_model.{name}": tensor for name, tensor in {**tensors, **more}.items()}
    inner |= {"model.diffusion_model.out.2.bias": torch.zeros(4), "scale_factor": torch.tensor(0.25)}
    torch.save({"state_dict": inner}, tmp_path / "whole.ckpt")
    scales = {"bare.safetensors": 1.0, "autoencoder.ckpt": 1.0, "whole.ckpt": 0.25}
    for name, scale in scales.items():
        model = from_autoencoder_kl(tmp_path / name, image_size=(16, 24))
        assert error(model, theirs) < 5e-5
        assert (model.latent_scale, model.latent_shift) == (scale, 0.0)
        assert ("--scale_factor 0.18215" in "".join(model.notes)) == (name != "whole.ckpt")
    told = from_autoencoder_kl(str(tmp_path / "bare.safetensors"), "--scale_factor 0.3611 --shift_factor 0.1159")
    assert (told.latent_scale, told.latent_shift, told.notes) == (0.3611, 0.1159, ())
    assert told.plan.network["image_size"] == 256


def test_levels_that_attend_attend_at_any_size(tmp_path):
    _, tensors = of_latent_diffusion(tmp_path)
    for name in [name for name in tensors if ".mid.attn_1." in name]:
        side, leaf = name.split(".")[0], name.split("attn_1.")[1]
        up = side == "decoder"
        # the lowest level has as many channels as the middle
        for k in range(2 if up else 1):
            tensors[f"{side}.{'up' if up else 'down'}.1.attn.{k}.{leaf}"] = tensors[name].clone()
    save_file(tensors, tmp_path / "attends.safetensors")
    for size, attends in ((16, (8,)), (64, (32,))):
        model = from_autoencoder_kl(tmp_path / "attends.safetensors", image_size=size)
        assert model.plan.network["attention_resolutions"] == attends
        places = [name for name in model.backbone.state_dict() if name.endswith("proj.bias")]
        assert len(places) == 2 + 1 + 2


def refused(message, *args, **kwargs):
    with pytest.raises(ValueError, match=message) as raised:
        from_autoencoder_kl(*args, **kwargs)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "VQModel"}, "must be an AutoencoderKL, got VQModel; take --source autoencoder_vq"),
        ({"act_fn": "gelu"}, "act_fn='gelu' is not supported"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention=False is not supported"),
        ({"use_post_quant_conv": False}, "use_post_quant_conv=False is not supported; only use_post_quant_conv=True"),
        ({"latents_mean": [0.0] * 4}, "latents_mean=\\[.*\\] is not supported"),
        ({"out_channels": 6}, "out_channels=6 is not supported; only out_channels=3 is"),
        (
            {"down_block_types": ["AttnDownEncoderBlock2D"] * 2},
            "down_block_types of AutoencoderKL must be 2 times D",
        ),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types of AutoencoderKL must be 2 times UpDecoderBlock2D"),
        ({"norm_num_groups": 3}, "widths of the autoencoder must be multiples of its 3 norm groups, got \\[8, 16\\]"),
        ({"block_out_channels": [0, 8]}, "must be multiples of its 4 norm groups, got \\[0, 8\\]"),
        ({"block_out_channels": [8, 24]}, "misshapen"),
        ({"layers_per_block": 2}, "32 missing \\(encoder.down_blocks.0.resnets.1"),
        ({"latent_channels": 0}, "latent_channels must be a whole number of at least 1, got 0"),
        ({"scaling_factor": 0}, "latents must be scaled by a number above 0 and shifted by a finite one, got 0 and 0"),
        ({"sample_size": "large"}, "image_size must be one number or \\(height, width\\)"),
        ({"new_setting": 1}, "unknown setting of the config 'new_setting'"),
    ],
)
def test_autoencoders_that_are_not_supported_are_refused_in_one_line(tmp_path, changes, message):
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    refused(message, tmp_path)


def test_files_of_other_networks_are_refused_in_one_line(tmp_path):
    save(tmp_path)
    refused("config '--scale_factor 2' is of no use: .*config.json says all settings", tmp_path, "--scale_factor 2")
    refused("image_size 15x16 cannot be halved 1 times", tmp_path, image_size=(15, 16))
    refused("checkpoint .*absent.ckpt is no file", tmp_path / "absent.ckpt")
    (tmp_path / "empty").mkdir()
    refused("AutoencoderKL's config .* cannot be read", tmp_path / "empty")
    file = tmp_path / "other.safetensors"
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, file)
    refused("of another project than the autoencoder of latent-diffusion: it has no encoder.conv_in.weight", file)
    save_file({"first_stage_model.quantize.embedding.weight": torch.zeros(8, 3)}, file)
    refused("is of an autoencoder with a codebook, VQ; take --source autoencoder_vq", file)
    refused("unknown setting of the config 'ch_mult'", _of_32(tmp_path / "32"), "--ch_mult 1,2")
    as_saved_by_lightning({"encoder.conv_in.weight": torch.zeros(1)}, tmp_path / "code.ckpt", name="Other")
    refused("is a pickle that asks for pytorch_lightning.*Other, refused unread", tmp_path / "code.ckpt")
    with pytest.raises(ValueError, match="Model, got AutoencoderKL; take --source autoencoder_kl"):
        from_diffusers(tmp_path)


def _of_32(folder):
    save_file(of_latent_diffusion(folder)[1], folder / "bare.safetensors")
    return folder / "bare.safetensors"


def test_of_a_pipeline_on_the_hub_the_vae_alone_is_fetched(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    save(tmp_path / "pipeline" / "vae")
    save(tmp_path / "alone")
    asked = []

    def fetch(name, allow_patterns):
        asked.append(allow_patterns[1])
        return str(tmp_path / name.split("/")[1])

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert isinstance(from_autoencoder_kl("somebody/pipeline"), FirstStage)
    assert asked == ["vae/diffusion_pytorch_model.safetensors"]
    assert isinstance(from_autoencoder_kl("somebody/alone"), FirstStage)
    assert asked[-2:] == ["vae/diffusion_pytorch_model*.bin", "diffusion_pytorch_model.safetensors"]
