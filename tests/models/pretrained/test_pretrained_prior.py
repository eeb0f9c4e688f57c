"""unCLIP's prior beside diffusers' PriorTransformer and its scheduler."""

import math

import pytest
import torch
from diffusers_pipelines import Float64Sinusoid, diffusers, same_bits, unclip_scheduler
from importer_references import count, per_sample_error, randomize
from test_pretrained_diffusers import change_json

from models import ClippedScoreModel, Condition, GuidedScoreModel
from models.backbones import PriorTransformer
from models.pretrained import from_diffusers, from_diffusers_prior
from models.pretrained.diffusers.prior import plan_prior
from samplers import AncestralSampler, DDIMSampler
from sde_lib import NoiseStreams

SMALL = {
    "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 12, "num_embeddings": 7,
}  # fmt: skip
# kandinsky-community/kandinsky-2-1-prior
PUBLISHED = {
    "_class_name": "PriorTransformer", "additional_embeddings": 4, "attention_head_dim": 64, "dropout": 0.0,
    "embedding_dim": 768, "num_attention_heads": 32, "num_embeddings": 77, "num_layers": 20,
}  # fmt: skip
UNCLIP = {"clip_sample_range": 0.5, "prediction_type": "sample"}


def save(folder, place="scheduler", **changes):
    """The folder of a pipeline with the parts that are read, and its network."""
    prior = randomize(diffusers.PriorTransformer(**SMALL | changes)).eval()
    prior.clip_std.data.abs_().add_(0.1)
    prior.save_pretrained(folder / "prior")
    diffusers.UnCLIPScheduler(**UNCLIP).save_pretrained(folder / place)
    return prior


def inputs(dtype=torch.float32):
    """x, t, and texts of 2, all and 4 tokens, with NaN where there is none."""
    generator = torch.Generator().manual_seed(3)
    x, pooled = torch.randn(2, 3, 12, generator=generator, dtype=dtype)
    tokens = torch.randn(3, 7, 12, generator=generator, dtype=dtype)
    mask = torch.arange(7) < torch.tensor([[2], [7], [4]])
    return x, torch.tensor([0, 517, 999]), {"tokens": tokens, "mask": mask, "pooled": pooled}


def asked(theirs, x, t, tokens, mask, pooled):
    return theirs(x, t, pooled, tokens, mask).predicted_image_embedding.reshape(x.shape)


@pytest.mark.parametrize("changes", [{}, {"added_emb_type": None, "additional_embeddings": 3}], ids=["query", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_agree_with_diffusers(tmp_path, changes, dtype):
    theirs = save(tmp_path, **changes)
    model = from_diffusers_prior(tmp_path)
    ours = model.backbone
    assert type(ours) is PriorTransformer and not model.training and model.notes == ()
    assert sum(p.numel() for p in ours.parameters()) + 2 * 12 == theirs.num_parameters()
    assert model.space.mean == tuple(theirs.clip_mean[0].tolist())
    assert model.space.std == tuple(theirs.clip_std[0].tolist())
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    if dtype == torch.float64:
        theirs.time_proj = Float64Sinusoid(16, 0)
    x, t, told = inputs(dtype)
    tolerance = 5e-5 if dtype == torch.float32 else 1e-10
    with torch.no_grad():
        for mask in (told["mask"], torch.ones(3, 7, dtype=torch.bool)):
            expected = asked(theirs, x, t, **told | {"mask": mask}).double()
            # what is masked may be anything here
            tokens = told["tokens"].masked_fill(~mask[..., None], math.nan)
            assert per_sample_error(ours(x, t, **told | {"mask": mask, "tokens": tokens}), expected) < tolerance
        assert per_sample_error(ours(x, t, **told | {"mask": None}), expected) < tolerance
        # and what fills may be left out
        short = {"tokens": told["tokens"][2:, :4], "pooled": told["pooled"][2:]}
        alone = ours(x[2:], t[2:], **short)
        torch.testing.assert_close(alone, ours(x, t, **told)[2:], rtol=0, atol=tolerance)


def test_published_settings_build_a_network_of_the_published_size():
    plan = plan_prior(PUBLISHED, {"_class_name": "UnCLIPScheduler", "prediction_type": "sample"})
    # two vectors of the checkpoint are the space of the embeddings here
    assert count(plan.build_backbone) + 2 * 768 == 1_022_030_080
    assert plan == plan_prior({}, {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"} | UNCLIP)
    assert plan.parameterization == "x0" and plan.sde == {"name": "improved_ddpm", "num_steps": 1000}


def test_samples_are_those_of_diffusers_scheduler(tmp_path, monkeypatch):
    theirs = save(tmp_path)
    model = from_diffusers_prior(tmp_path)
    x, _, told = inputs()
    empty = {"tokens": -told["tokens"][:1], "mask": told["mask"][:1], "pooled": -told["pooled"][:1]}
    scheduler = unclip_scheduler(clip_sample_range=0.5)
    scheduler.set_timesteps(4)
    drawn = NoiseStreams(5, range(3))
    monkeypatch.setattr(
        diffusers.schedulers.scheduling_unclip, "randn_tensor", lambda shape, **_: drawn.normal(shape[1:])
    )
    x_t, times = x, scheduler.timesteps.tolist()
    with torch.no_grad():
        for t, s in zip(times, [*times[1:], None], strict=True):
            label = torch.full((3,), t)
            given = asked(theirs, x_t, label, **told)
            null = asked(theirs, x_t, label, **{name: one.expand(3, *one.shape[1:]) for name, one in empty.items()})
            x_t = scheduler.step(null + 3 * (given - null), t, x_t, prev_timestep=s).prev_sample
        expected = theirs.post_process_latents(x_t)
    guided = GuidedScoreModel(model, weight=3.0, negative=Condition(**empty))
    bounded = ClippedScoreModel(guided, low=-0.5, high=0.5)
    sampler = AncestralSampler(grid=torch.tensor([*times, -1.0]).double().add(1) / 1000, variance="small")
    result = sampler.sample(bounded, x, cond=Condition(**told), noise=NoiseStreams(5, range(3)))
    assert times == [999, 666, 333, 0] and result.nfe == 8
    torch.testing.assert_close(model.space.decode(result.x0).float(), expected, rtol=0, atol=5e-5)
    # bounds were at work, and another sampler of ours draws too
    assert float((result.x0.abs() == 0.5).float().mean()) > 0.1
    other = DDIMSampler(num_steps=3).sample(guided, x, cond=Condition(**told)).x0
    alone = DDIMSampler(num_steps=3).sample(guided, x[1:2], cond=Condition(**told)[1:2]).x0
    torch.testing.assert_close(other[1:2], alone, rtol=0, atol=1e-5)


def test_files_are_found_where_pipelines_have_them(tmp_path):
    save(tmp_path / "whole")
    whole = from_diffusers_prior(tmp_path / "whole")
    save(tmp_path / "karlo", "prior_scheduler")
    others = [from_diffusers_prior(tmp_path / place) for place in ("whole/prior", "karlo")]
    (tmp_path / "whole" / "scheduler" / "scheduler_config.json").unlink()
    bare = from_diffusers_prior(tmp_path / "whole" / "prior")
    assert "unCLIP's is assumed, 1000 steps of squaredcos_cap_v2, predicting x0" in bare.notes[0]
    said = from_diffusers_prior(tmp_path / "whole", "--prediction_type sample")
    assert said.notes == ()
    for other in (*others, bare, said):
        assert other.plan == whole.plan and same_bits(other, whole)


def refused(folder, message, read=from_diffusers_prior, **kwargs):
    with pytest.raises(ValueError, match=message) as error:
        read(folder, **kwargs)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("prior", {"_class_name": "UNet2DModel"}, "must be a PriorTransformer, got UNet2DModel; take --sou"),
        ("prior", {"norm_in_type": "layer"}, "norm_in_type='layer' is not supported; only norm_in_type=None is"),
        ("prior", {"encoder_hid_proj_type": None}, "encoder_hid_proj_type=None is not supported"),
        ("prior", {"additional_embeddings": 3}, "only additional_embeddings=4 is"),
        ("prior", {"added_emb_type": "other"}, "added_emb_type='other' is not supported"),
        ("prior", {"clip_embed_dim": 11}, "clip_embed_dim=11 is not supported"),
        ("prior", {"num_attention_heads": 0}, "num_attention_heads must be a whole number of at least 1, got 0"),
        ("prior", {"embedding_dim": 8}, "must have clip_mean and clip_std, 8 finite numbers each"),
        ("prior", {"num_embeddings": 9}, "1 misshapen .positional_embedding is"),
        ("prior", {"new_setting": 1}, "unknown setting of the config 'new_setting'"),
        ("scheduler", {"variance_type": "learned_range"}, "no outputs for a variance, got variance_type=learned_range"),
        ("scheduler", {"_class_name": "ScoreSdeVeScheduler"}, "unknown _class_name of the config"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_in_one_line(tmp_path, file, changes, message):
    save(tmp_path)
    change_json(tmp_path / file / f"{'scheduler_' * (file == 'scheduler')}config.json", **changes)
    refused(tmp_path, message)


def test_other_folders_are_refused_in_one_line(tmp_path):
    prior = save(tmp_path)
    refused(
        tmp_path / "prior",
        "must be a UNet2DModel .*, got PriorTransformer; take --source diffusers_prior",
        from_diffusers,
    )
    refused(tmp_path, "is of no use: .*scheduler_config.json says all settings", config="--prediction_type sample")
    prior.clip_std.data.zero_()
    prior.save_pretrained(tmp_path / "prior")
    refused(tmp_path, "and those of clip_std above 0, by which embeddings are standardized; fetch it again")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": None}, r"tokens must have shape \[3, L, 12\], got None"),
        ({"tokens": torch.zeros(3, 8, 12), "mask": None}, "at most 7 tokens, got 8; cut it off"),
        ({"mask": torch.zeros(3, 7, dtype=torch.bool)}, "mask must be True somewhere, got none in sample 0"),
        ({"pooled": None}, r"pooled must have shape \[3, 12\], got None; pass Condition\(pooled=...\)"),
        ({"pooled": torch.full((3, 12), math.nan)}, "pooled must have no NaN, got some"),
    ],
)
def test_texts_that_do_not_fit_are_refused_in_one_line(changes, message):
    network = PriorTransformer(12, 16, 1, num_heads=2, max_tokens=7, cond_tokens=12, cond_pooled=12)
    x, t, told = inputs()
    assert torch.equal(network(x, t, **told), torch.zeros(3, 12))
    with pytest.raises(ValueError, match=message):
        network(x, t, **told | changes)
