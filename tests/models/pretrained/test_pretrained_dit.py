"""Diffusion transformers of facebookresearch/DiT, willisma/SiT and diffusers, beside forward passes of their own."""

import argparse
import math
import re
from itertools import pairwise

import pytest
import torch
from diffusers_pipelines import Float64Sinusoid, diffusers, same_bits
from importer_references import count, per_sample_error, randomize
from safetensors.torch import load_file, save_file
from test_pretrained_diffusers import change_json
from torch.nn import functional as F

from models.backbones import DiT
from models.pretrained import from_diffusers, from_diffusers_dit, from_dit, from_sit
from models.pretrained.dit.diffusers import plan_diffusers_dit
from models.pretrained.dit.importer import dit_sources
from models.pretrained.shared.renaming import renamed
from samplers import make_sampler
from sde_lib import NoiseStreams, RectifiedFlow, make_grid

SMALL = {
    "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "sample_size": 8, "num_embeds_ada_norm": 5,
    "in_channels": 4, "out_channels": 8,
}  # fmt: skip
# transformer/config.json of facebook/DiT-XL-2-256, from before the class had its name
PUBLISHED = {
    "_class_name": "Transformer2DModel", "activation_fn": "gelu-approximate", "attention_bias": True,
    "attention_head_dim": 72, "cross_attention_dim": None, "dropout": 0.0, "in_channels": 4,
    "norm_elementwise_affine": False, "norm_num_groups": 32, "norm_type": "ada_norm_zero", "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000, "num_layers": 28, "num_vector_embeds": None, "only_cross_attention": False,
    "out_channels": 8, "patch_size": 2, "sample_size": 32, "upcast_attention": False, "use_linear_projection": False,
}  # fmt: skip
SCHEDULER = {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "clip_sample": False}
HEADS = "--num_heads 2"


def pipeline(folder, **changes):
    """The parts of a DiTPipeline that are read, its blocks with the same embedders, and its network."""
    theirs = randomize(diffusers.DiTTransformer2DModel(**SMALL | changes))
    first = theirs.transformer_blocks[0].norm1.emb.state_dict()
    for block in theirs.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(first)
    theirs.save_pretrained(folder / "transformer")
    diffusers.DDIMScheduler(beta_schedule="linear").save_pretrained(folder / "scheduler")
    return theirs


def inputs(dtype=torch.float32):
    """Latents, of which one has little contrast, timesteps and classes, the last of which is none."""
    x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    x[2] *= 0.01
    return x, torch.tensor([0, 1, 517, 999]), torch.tensor([0, 4, 2, -1])


def written(folder, **changes):
    """A file of facebookresearch/DiT's class with random weights, and its tensors."""
    settings = {"image_size": 8, "in_channels": 4, "channels": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    settings |= {"null_condition": True, "learned_variance": True, "embedding": "cos_first"}
    network = randomize(DiT(**settings | changes))
    tensors = renamed(network, dit_sources(network))
    # row by row: the column's sines and cosines, then the row's
    column, row = torch.arange(16).double() % 4, torch.arange(16).double() // 4
    halves = [place[:, None] / 10000 ** (torch.arange(4) / 4) for place in (column, row)]
    tensors["pos_embed"] = torch.cat([part for angle in halves for part in (angle.sin(), angle.cos())], 1)[None].float()
    torch.save(tensors, folder / "published.pt")
    return tensors


def forward(tensors, x, t, labels, *, heads=2):
    """The network of both projects as their papers say, on their tensors, all of its outputs."""

    def linear(name, x):
        return F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x, shift, scale):
        mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-6).sqrt() * (1 + scale[:, None]) + shift[:, None]

    width = tensors["pos_embed"].shape[-1]
    half = tensors["t_embedder.mlp.0.weight"].shape[1] // 2
    phase = t[:, None] * torch.exp(-math.log(10000) * torch.arange(half, dtype=x.dtype) / half)
    time = linear("t_embedder.mlp.0", torch.cat((phase.cos(), phase.sin()), 1))
    c = linear("t_embedder.mlp.2", time * time.sigmoid())
    c = c + tensors["y_embedder.embedding_table.weight"][labels]
    c = c * c.sigmoid()
    h = torch.einsum(
        "bcipjq,dcpq->bijd", x.unflatten(3, (4, 2)).unflatten(2, (4, 2)), tensors["x_embedder.proj.weight"]
    )
    h = (h + tensors["x_embedder.proj.bias"]).flatten(1, 2) + tensors["pos_embed"]
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    for i in range(depth):
        shift1, scale1, gate1, shift2, scale2, gate2 = linear(f"blocks.{i}.adaLN_modulation.1", c).chunk(6, 1)
        q, k, v = linear(f"blocks.{i}.attn.qkv", norm(h, shift1, scale1)).unflatten(2, (3, heads, -1)).unbind(2)
        weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(width // heads)).softmax(-1)
        found = torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2)
        h = h + gate1[:, None] * linear(f"blocks.{i}.attn.proj", found)
        hidden = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(h, shift2, scale2)), approximate="tanh")
        h = h + gate2[:, None] * linear(f"blocks.{i}.mlp.fc2", hidden)
    shift, scale = linear("final_layer.adaLN_modulation.1", c).chunk(2, 1)
    patches = linear("final_layer.linear", norm(h, shift, scale)).unflatten(2, (2, 2, -1)).unflatten(1, (4, 4))
    return torch.einsum("bijpqc->bcipjq", patches).flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folders_of_diffusers_give_what_it_gives(tmp_path, dtype):
    theirs = pipeline(tmp_path).to(dtype)
    model = from_diffusers_dit(tmp_path)
    assert (model.of_latents, model.latent_scale, model.training) == (True, 0.18215, False)
    assert model.plan.parameterization == "eps" and model.plan.sde["name"] == "ddpm" and len(model.notes) == 1
    ours = model.backbone.to(dtype)
    if dtype == torch.float64:
        for block in theirs.transformer_blocks:
            block.norm1.emb.time_proj = Float64Sinusoid(256, 1)
            block.norm3.eps = 1e-5
    x, t, labels = inputs(dtype)
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=torch.where(labels < 0, 5, labels)).sample
        found = ours(x, t, labels)
    assert found.shape == (4, 8, 8, 8)
    assert per_sample_error(found, expected.double()) < (5e-5 if dtype == torch.float32 else 1e-10)
    # of the published pipeline's parts the network alone is enough, and its scheduler is found
    assert same_bits(from_diffusers_dit(tmp_path / "transformer").backbone, from_diffusers_dit(tmp_path).backbone)


def test_a_prediction_and_a_variance_that_are_not_learned_are_read_too(tmp_path):
    theirs = pipeline(tmp_path, out_channels=None, norm_eps=1e-3, patch_size=4)
    diffusers.DDPMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear").save_pretrained(
        tmp_path / "scheduler"
    )
    model = from_diffusers_dit(tmp_path)
    assert model.plan.parameterization == "v" and model.plan.sde["name"] == "betas" and not model.learned_variance
    x, t, labels = inputs()
    labels[-1] = 1
    with torch.no_grad():
        expected = theirs(x, timestep=t, class_labels=labels).sample
        assert per_sample_error(model.backbone(x, t, labels), expected.double()) < 5e-5


def test_embedders_of_blocks_that_differ_are_refused(tmp_path):
    pipeline(tmp_path)
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"][3] += 1e-3
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"other embedders in its block 1 than in its first \(timestep_embedder"):
        from_diffusers_dit(tmp_path)


def test_published_networks_have_the_published_sizes():
    for size, tokens in ((32, 256), (64, 1024)):
        plan = plan_diffusers_dit(PUBLISHED | {"sample_size": size}, SCHEDULER)
        # a table of positions is counted there
        assert count(plan.build_backbone) + tokens * 1152 == 675_129_632 + (tokens - 256) * 1152
    assert (plan.network["mlp_norm_eps"], plan.network["norm_eps"]) == (1e-5, 1e-6)
    with torch.device("meta"):
        theirs = diffusers.DiTTransformer2DModel(**{k: v for k, v in SMALL.items() if k == "out_channels"})
        ours = plan_diffusers_dit(PUBLISHED, SCHEDULER).build_backbone()
    embedders = sum(p.numel() for p in theirs.transformer_blocks[0].norm1.emb.parameters())
    assert theirs.num_parameters() - 27 * embedders == sum(p.numel() for p in ours.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_of_dit_give_what_the_paper_s_network_gives(tmp_path, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in written(tmp_path).items()}
    model = from_dit(tmp_path / "published.pt", HEADS)
    assert (model.of_latents, model.latent_scale, model.notes) == (True, 0.18215, ())
    assert model.plan.sde == {"name": "ddpm"} and model.learned_variance
    x, t, labels = inputs(dtype)
    with torch.no_grad():
        expected = forward(tensors, x, t.to(dtype), labels % 6)
        found = model.backbone.to(dtype)(x, t, labels)
    assert per_sample_error(found, expected.double()) < (5e-5 if dtype == torch.float32 else 1e-10)


def test_what_a_training_saves_is_read_for_its_average(tmp_path):
    tensors = written(tmp_path)
    raw = {name: tensor + 1 for name, tensor in tensors.items()}
    held = {"model": raw, "ema": tensors, "opt": {"state": {}}, "args": argparse.Namespace(model="DiT-XL/2", seed=0)}
    torch.save(held, tmp_path / "0050000.pt")
    one, other = from_dit(tmp_path / "0050000.pt", HEADS), from_dit(tmp_path / "published.pt", HEADS)
    assert same_bits(one.backbone, other.backbone) and one.plan == other.plan


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("learned_variance", [True, False])
def test_sit_is_a_velocity_whose_time_runs_to_the_data(tmp_path, learned_variance, dtype):
    tensors = {key: one.double() for key, one in written(tmp_path, learned_variance=learned_variance).items()}
    model = from_sit(tmp_path / "published.pt", HEADS).to(dtype)
    assert isinstance(model.sde, RectifiedFlow) and not model.learned_variance
    x, _, labels = inputs(torch.float64)
    s = torch.tensor([0.0002, 0.3, 0.8, 0.9999], dtype=torch.float64)
    with torch.no_grad():
        # Ma et al. 2024: x_s = s x0 + (1 - s) eps, and the network of s answers the first half of x0 - eps
        velocity = forward(tensors, x, s, labels % 6)[:, :4]
        found = model(x.to(dtype), 1 - s, cond=labels)
    wide, most = s[:, None, None, None], 5e-5 if dtype == torch.float32 else 1e-10
    assert per_sample_error(found.x0, x + (1 - wide) * velocity) < most
    assert per_sample_error(found.eps, x - wide * velocity) < most


def test_sit_s_euler_sampler_is_ddim(tmp_path):
    tensors = {name: tensor.double() for name, tensor in written(tmp_path).items()}
    model = from_sit(tmp_path / "published.pt", HEADS).double()
    x, _, labels = inputs(torch.float64)
    times = 1 - make_grid("uniform", model.sde, 5)
    with torch.no_grad():
        found = make_sampler("ddim", num_steps=5).sample(model, x, cond=labels, noise=NoiseStreams(0, range(4))).x0
        for now, then in pairwise(times):
            x = x + (then - now) * forward(tensors, x, now.expand(4), labels % 6)[:, :4]
    torch.testing.assert_close(found, x, rtol=1e-8, atol=1e-8)


def refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_other_files_are_refused_in_one_line(tmp_path):
    tensors = written(tmp_path)
    path = tmp_path / "published.pt"
    refused(
        lambda: from_dit(path), "is 16 wide, which is neither S, B, L nor XL; set config.source.config='--num_heads"
    )
    refused(lambda: from_dit(path, f"{HEADS} --depth 2"), "unknown setting of the config 'depth'")
    refused(lambda: from_dit(path, "--num_heads 3"), "num_heads must divide the 16 channels, got 3")
    refused(lambda: from_sit(path, f"{HEADS} --path-type GVP"), "config's path-type='GVP' is not supported")
    refused(lambda: from_sit(path, f"{HEADS} --prediction noise"), "config's prediction='noise' is not supported")

    def with_changes(message, **changes):
        torch.save({name: one for name, one in (tensors | changes).items() if one is not None}, path)
        refused(lambda: from_dit(path, HEADS), message)

    swapped = torch.cat(tensors["pos_embed"].chunk(2, -1)[::-1], -1)
    with_changes("has positions of 16 patches that are not the sines and cosines", pos_embed=swapped)
    with_changes("positions of 15 patches that are not", pos_embed=tensors["pos_embed"][:, 1:])
    with_changes("has tensors of shapes that no DiT has", pos_embed=None)
    with_changes("of shapes that no DiT has", **{"x_embedder.proj.weight": torch.zeros(16, 16)})
    with_changes("does not fit the network: 1 missing", **{"blocks.1.mlp.fc2.bias": None})
    with_changes("does not fit the network: 1 unexpected", **{"blocks.1.attn.q_norm.weight": torch.ones(8)})
    with_changes("another project than facebookresearch/DiT", **{"blocks.0.adaLN_modulation.1.weight": None})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation_fn": "geglu"}, "activation_fn='geglu' is not supported"),
        ({"out_channels": 5}, "as many out_channels as in_channels=4, or twice as many"),
        ({"cross_attention_dim": 768}, "cross_attention_dim=768 is not supported"),
        ({"patches": 2}, "unknown setting of the config 'patches'"),
        ({"_class_name": "PixArtTransformer2DModel"}, "must be a DiTTransformer2DModel, got PixArtTransformer2DModel"),
    ],
)
def test_other_networks_of_diffusers_are_refused_in_one_line(tmp_path, settings, message):
    pipeline(tmp_path)
    change_json(tmp_path / "transformer" / "config.json", **settings)
    refused(lambda: from_diffusers_dit(tmp_path), message)


def test_folders_say_their_scheduler_once_or_it_is_assumed(tmp_path):
    pipeline(tmp_path)
    refused(lambda: from_diffusers_dit(tmp_path, "--beta_schedule linear"), "says all settings; leave it out")
    assert "DDPM's is assumed" not in from_diffusers_dit(tmp_path).notes[0]
    (tmp_path / "scheduler" / "scheduler_config.json").unlink()
    assert "DDPM's is assumed" in from_diffusers_dit(tmp_path).notes[0]
    said = from_diffusers_dit(tmp_path, "--beta_schedule squaredcos_cap_v2 --prediction_type v_prediction")
    assert said.plan.sde["name"] == "improved_ddpm" and said.plan.parameterization == "v"
    change_json(tmp_path / "transformer" / "config.json", _class_name="DiTTransformer2DModel")
    refused(lambda: from_diffusers(tmp_path / "transformer"), "take --source diffusers_dit")
