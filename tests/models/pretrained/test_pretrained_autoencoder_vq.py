"""Autoencoders with a codebook of diffusers and latent-diffusion as our first stages, beside diffusers itself."""

import json

import pytest
import torch
from diffusers_pipelines import diffusers, same_bits
from importer_references import count, per_sample_error, randomize
from safetensors.torch import save_file

from models import FirstStage, VectorLatent
from models.pretrained import from_autoencoder_kl, from_autoencoder_vq, from_diffusers
from models.pretrained.autoencoder_kl.names import LATENT_DIFFUSION, autoencoder_sources, named_layers
from models.pretrained.autoencoder_kl.settings import CODEBOOK
from models.pretrained.autoencoder_vq.settings import plan_vq_model
from models.pretrained.shared.renaming import renamed

# as published in CompVis/ldm-celebahq-256
VQ_F4 = {
    "_class_name": "VQModel", "act_fn": "silu", "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3, "in_channels": 3, "latent_channels": 3, "layers_per_block": 2,
    "num_vq_embeddings": 8192, "out_channels": 3, "sample_size": 256, "up_block_types": ["UpDecoderBlock2D"] * 3,
}  # fmt: skip
SMALL = {"block_out_channels": [8, 16, 24], "norm_num_groups": 4, "sample_size": 16, "num_vq_embeddings": 40}
# the smallest that latent-diffusion's norms of 32 groups allow
OF_32 = {"block_out_channels": [32, 32, 64], "norm_num_groups": 32}


def save(folder, **changes):
    settings = {name: value for name, value in VQ_F4.items() if name[0] != "_"} | SMALL | changes
    theirs = randomize(diffusers.VQModel(**settings))
    # codes as far apart as the encoder's vectors
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        h = theirs.encode(x).latents
        theirs.quantize.embedding.weight.normal_(generator=torch.Generator().manual_seed(2)).mul_(h.std())
        theirs.quantize.embedding.weight += h.mean()
    theirs.save_pretrained(folder)
    return theirs


@torch.no_grad()
def error(ours, theirs, dtype=torch.float32, size=(16, 24)):
    """The largest error of the encoder's vectors and of the decoded mean, each over its largest value."""
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    x = torch.randn(3, 3, *size, dtype=dtype)
    x[-1] *= 0.01  # so little contrast that the epsilon of the norms shows
    latent, h = ours.encode(x), theirs.encode(x).latents
    quantized, _, (_, _, codes) = theirs.quantize(h)
    assert torch.equal(latent.codes, codes.view(latent.codes.shape)) and len(codes.unique()) > 3
    assert per_sample_error(latent.z, quantized.double()) < 1e-6
    found = latent.mean, ours.decode(h).mean
    truth = h, theirs.decode(h).sample
    return max(per_sample_error(one, other.double()) for one, other in zip(found, truth, strict=True))


def test_vectors_codes_and_images_agree_with_diffusers_at_any_size(tmp_path):
    theirs = save(tmp_path)
    model = from_autoencoder_vq(tmp_path, image_size=(16, 24))
    assert isinstance(model, FirstStage) and not model.training and model.latent_shape == (3, 4, 6)
    assert isinstance(model.encode(torch.zeros(1, 3, 16, 24)), VectorLatent)
    assert error(model, theirs) < 5e-5
    assert error(model, theirs, torch.float64) < 1e-10
    # the scale of pixels is the only number that is not theirs
    assert sum(p.numel() for p in model.parameters()) == theirs.num_parameters() + 3
    # in training no code is restarted at once
    assert not model.backbone.bottleneck.quantizer.idle.any()
    # of a pipeline
    theirs.float().save_pretrained(tmp_path / "pipeline" / "vqvae")
    assert same_bits(from_autoencoder_vq(tmp_path / "pipeline"), from_autoencoder_vq(tmp_path))


def test_the_scale_is_1_unless_the_file_says_another(tmp_path):
    # of the published file, older than the setting, whose default is Stable Diffusion's
    assert plan_vq_model(VQ_F4)[1:] == (1.0, 0.0, ())
    save(tmp_path, scaling_factor=0.5)
    assert from_autoencoder_vq(tmp_path).latent_scale == 0.5


def test_the_published_settings_build_the_network_of_the_published_size():
    plan = plan_vq_model(VQ_F4).plan
    assert count(plan.build_backbone) == 55_322_782 + 3
    assert plan.network["image_size"] == 256 and plan.network["codebook_size"] == 8192


def of_latent_diffusion(folder):
    """diffusers' autoencoder, and its tensors under latent-diffusion's names."""
    theirs = save(folder, **OF_32)
    network = from_autoencoder_vq(folder).backbone
    tensors = renamed(named_layers(network), autoencoder_sources(network, LATENT_DIFFUSION))
    # its attention is made of convolutions of kernel 1
    names = tuple(f".attn_1.{name}.weight" for name in ("q", "k", "v", "proj_out"))
    tensors = {name: tensor[..., None, None] if name.endswith(names) else tensor for name, tensor in tensors.items()}
    return theirs, tensors | {CODEBOOK: theirs.quantize.embedding.weight.detach().clone()}


def test_files_of_latent_diffusion_are_read(tmp_path):
    theirs, tensors = of_latent_diffusion(tmp_path)
    save_file(tensors, tmp_path / "bare.safetensors")
    more = {"loss.discriminator.x": torch.ones(2), "model_ema.decay": torch.zeros(())}
    torch.save({"state_dict": tensors | more}, tmp_path / "autoencoder.ckpt")
    whole = {f"first_stage_model.{name}": tensor for name, tensor in (tensors | more).items()}
    torch.save({"state_dict": whole | {"model.diffusion_model.out.2.bias": torch.zeros(3)}}, tmp_path / "whole.ckpt")
    for name in ("bare.safetensors", "autoencoder.ckpt", "whole.ckpt"):
        model = from_autoencoder_vq(tmp_path / name, image_size=(16, 24))
        assert error(model, theirs.float()) < 5e-5
        assert (model.latent_scale, model.latent_shift, model.notes) == (1.0, 0.0, ())
    assert error(model, theirs, torch.float64) < 1e-10
    told = from_autoencoder_vq(tmp_path / "bare.safetensors", "--scale_factor 0.3")
    assert told.latent_scale == 0.3 and told.plan.network["image_size"] == 256


@pytest.mark.slow
def test_the_network_of_the_published_size_agrees_with_diffusers(tmp_path):
    # by diffusers' own initialization: other weights would let rounding grow through so many layers
    theirs = diffusers.VQModel(**{name: value for name, value in VQ_F4.items() if name[0] != "_"}).eval()
    theirs.quantize.embedding.weight.data.normal_(std=0.3)
    theirs.save_pretrained(tmp_path)
    model = from_autoencoder_vq(tmp_path, image_size=(32, 48))
    assert error(model, theirs, size=(32, 48)) < 5e-5
    assert error(model, theirs, torch.float64, size=(32, 48)) < 1e-10


def refused(message, read, *args, **kwargs):
    with pytest.raises(ValueError, match=message) as raised:
        read(*args, **kwargs)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderKL"}, "must be a VQModel, got AutoencoderKL; take --source autoencoder_kl"),
        ({"norm_type": "spatial"}, "norm_type='spatial' is not supported; only norm_type='group' is"),
        ({"vq_embed_dim": 5}, "vq_embed_dim=5 is not supported"),
        ({"num_vq_embeddings": 9}, r"1 misshapen \(quantize.embedding.weight is \[40, 3\], expected \[9, 3\]\)"),
        ({"num_vq_embeddings": 0}, "num_vq_embeddings must be a whole number of at least 1, got 0"),
        ({"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types of VQModel must be 3 times UpDecoderBlock2D"),
        ({"new_setting": 1}, "unknown setting of the config 'new_setting'"),
    ],
)
def test_autoencoders_that_are_not_supported_are_refused_in_one_line(tmp_path, changes, message):
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    refused(message, from_autoencoder_vq, tmp_path)


def test_each_kind_names_the_source_that_reads_it(tmp_path):
    _, tensors = of_latent_diffusion(tmp_path)
    save_file(tensors, tmp_path / "vq.safetensors")
    refused("with a codebook, VQ; take --source autoencoder_vq", from_autoencoder_kl, tmp_path / "vq.safetensors")
    refused("got VQModel; take --source autoencoder_vq", from_autoencoder_kl, tmp_path)
    refused("got VQModel; take --source autoencoder_vq", from_diffusers, tmp_path)
    tensors.pop(CODEBOOK)
    save_file(tensors, tmp_path / "kl.safetensors")
    message = "without quantize.embedding.weight; take --source autoencoder_kl"
    refused(message, from_autoencoder_vq, tmp_path / "kl.safetensors")
    save_file({"model.diffusion_model.out.2.bias": torch.zeros(4)}, tmp_path / "other.safetensors")
    refused("of another project than the autoencoder of", from_autoencoder_vq, tmp_path / "other.safetensors")
    refused("config '--scale_factor 2' is of no use", from_autoencoder_vq, tmp_path, "--scale_factor 2")
