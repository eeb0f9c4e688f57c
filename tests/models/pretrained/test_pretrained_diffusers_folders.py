"""Folders of diffusers besides whole pipelines: training checkpoints, bare networks, shards, variants."""

import json

import pytest
import torch
from diffusers_pipelines import diffusers
from importer_references import per_sample_error, randomize
from safetensors.torch import load_file, save_file

from models.pretrained.diffusers.importer import from_diffusers
from sde_lib import Tabulated

UNET = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
FOURIER = {"time_embedding_type": "fourier", "center_input_sample": True, "attention_head_dim": None}
COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
ASSUMED = "DDPM's is assumed, 1000 linear betas from 0.0001 to 0.02, predicting eps"


def drawn(seed=0, **changes):
    return randomize(diffusers.UNet2DModel(**UNET | changes), seed=seed)


@torch.no_grad()
def same_outputs(model, theirs, tolerance=2e-5):
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    return per_sample_error(model.backbone(x, t), theirs(x, t).sample.double()) < tolerance


def refused(folder, message, **kwargs):
    with pytest.raises(ValueError, match=message) as error:
        from_diffusers(folder, **kwargs)
    assert "\n" not in str(error.value)


def training_checkpoint(folder, *, averaged=True):
    """A folder of diffusers' training scripts: the network, its average, and files that are no model."""
    theirs, average = drawn(), drawn(seed=1)
    theirs.save_pretrained(folder / "unet")
    (folder / "optimizer.bin").write_bytes(b"what is not read")
    (folder / "random_states_0.pkl").write_bytes(b"what is not read")
    if averaged:
        ema = diffusers.training_utils.EMAModel(
            average.parameters(), model_cls=diffusers.UNet2DModel, model_config=average.config, use_ema_warmup=True
        )
        ema.save_pretrained(folder / "unet_ema")
    return theirs, average


HOW = {
    "one file": {},
    "shards": {"max_shard_size": "200KB"},
    "a pickle": {"safe_serialization": False},
    "shards of pickles": {"safe_serialization": False, "max_shard_size": "200KB"},
}


@pytest.mark.parametrize("variant", [None, "fp16", "ema"])
@pytest.mark.parametrize("how", HOW)
def test_weights_are_read_in_every_form_that_diffusers_writes(tmp_path, how, variant):
    theirs = drawn()
    if variant == "fp16":
        theirs = theirs.half()
    diffusers.DDPMPipeline(theirs, diffusers.DDPMScheduler()).save_pretrained(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    theirs.save_pretrained(tmp_path / "unet", variant=variant, **HOW[how])
    assert len(list((tmp_path / "unet").iterdir())) > (3 if "shards" in how else 1)
    model = from_diffusers(tmp_path)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert same_outputs(model, theirs.float())
    assert [note for note in model.notes if "has weights in float16, which are taken as float32" in note] == list(
        model.notes
    )
    assert len(model.notes) == (variant == "fp16")


def test_what_has_no_variant_is_read_before_what_has_one_and_two_variants_are_refused(tmp_path):
    theirs = drawn()
    theirs.save_pretrained(tmp_path)
    drawn(seed=1).save_pretrained(tmp_path, variant="ema")
    assert same_outputs(from_diffusers(tmp_path), theirs)
    drawn(seed=2).save_pretrained(tmp_path, variant="fp16")
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    refused(tmp_path, r"has weights of several variants \(ema, fp16\) and none of no variant; leave one of them there")


def test_prefixes_of_wrappers_are_dropped(tmp_path):
    theirs = drawn()
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for prefix in ("_orig_mod.", "module.", "module._orig_mod."):
        save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, path)
        assert same_outputs(from_diffusers(tmp_path), theirs)


def test_of_a_training_checkpoint_the_averaged_weights_are_read(tmp_path):
    folder = tmp_path / "checkpoint-500"
    theirs, average = training_checkpoint(folder)
    model = from_diffusers(folder)
    assert same_outputs(model, average) and not same_outputs(model, theirs)
    assert model.notes[0] == f"of {folder}, unet_ema is read, the averaged weights" and ASSUMED in model.notes[1]
    assert torch.equal(model.sde.log_snr_table, Tabulated.ddpm().log_snr_table)
    # the folder of the others is a bare network's
    assert same_outputs(from_diffusers(folder / "unet"), theirs)


def test_a_training_checkpoint_without_an_average_says_so(tmp_path):
    theirs, _ = training_checkpoint(tmp_path / "checkpoint-500", averaged=False)
    model = from_diffusers(tmp_path / "checkpoint-500")
    assert same_outputs(model, theirs)
    assert model.notes[0].endswith("checkpoint-500, unet is read; there is no unet_ema, averaged weights")
    refused(tmp_path, "is a training script's, with checkpoint-500 in it; pass one of these")


@pytest.mark.parametrize("part", ["checkpoint-500", "checkpoint-500/unet_ema", "unet"])
def test_the_scheduler_is_that_of_the_pipeline_around(tmp_path, part, monkeypatch):
    """As when a training script has ended: the pipeline stands in the folder of its checkpoints."""
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=300, **COSINE)
    diffusers.DDPMPipeline(drawn(seed=1), scheduler).save_pretrained(tmp_path)
    _, average = training_checkpoint(tmp_path / "checkpoint-500")
    for folder in (tmp_path / part, str(tmp_path / part)):
        model = from_diffusers(folder)
        assert same_outputs(model, average)
        assert torch.equal(model.sde.log_snr_table, Tabulated.improved_ddpm(num_steps=300).log_snr_table)
        assert type(model.parameterization).__name__ == "VParameterization"
        assert model.notes[-1] == f"the scheduler is that of {tmp_path / 'scheduler' / 'scheduler_config.json'}"
    monkeypatch.chdir(tmp_path / part)
    assert from_diffusers(".").sde.table_size == 300
    refused(tmp_path / part, "is of no use: .*scheduler_config.json says all settings", config="--beta_end 0.5")


def test_a_bare_network_takes_the_scheduler_that_the_config_says(tmp_path):
    theirs = drawn()
    theirs.save_pretrained(tmp_path / "net")
    model = from_diffusers(tmp_path / "net")
    assert same_outputs(model, theirs) and len(model.notes) == 1 and ASSUMED in model.notes[0]
    diffusers.DDPMScheduler(num_train_timesteps=300, **COSINE).save_pretrained(tmp_path / "said")
    flags = "--num_train_timesteps 300 --beta_schedule squaredcos_cap_v2 --prediction_type v_prediction"
    for config in (flags, tmp_path / "said" / "scheduler_config.json", {"num_train_timesteps": 300, **COSINE}):
        model = from_diffusers(tmp_path / "net", config)
        assert torch.equal(model.sde.log_snr_table, Tabulated.improved_ddpm(num_steps=300).log_snr_table)
        assert type(model.parameterization).__name__ == "VParameterization" and model.notes == ()
    refused(tmp_path / "net", "unknown setting of the config 'beta_schedul'", config="--beta_schedul linear")


def test_a_bare_network_of_a_learned_variance_is_read(tmp_path):
    drawn(out_channels=6).save_pretrained(tmp_path)
    assert from_diffusers(tmp_path).learned_variance


def test_a_bare_network_of_the_ve_sde_must_be_told_its_noise_levels(tmp_path):
    drawn(**FOURIER).save_pretrained(tmp_path)
    refused(tmp_path, r"no file says the scheduler of .*, whose network is of the VE-SDE; set config.source.config=")
    model = from_diffusers(tmp_path, "--_class_name ScoreSdeVeScheduler --sigma_min 0.02 --sigma_max 90")
    assert (model.sde.sigma_min, model.sde.sigma_max) == (0.04, 180.0)


@pytest.mark.parametrize("how", HOW)
def test_of_the_hub_no_more_is_asked_for_than_is_read(tmp_path, monkeypatch, how):
    hub = pytest.importorskip("huggingface_hub")
    theirs = drawn()
    theirs.save_pretrained(tmp_path, **HOW[how])
    asked = []

    def fetch(name, allow_patterns):
        asked.append(allow_patterns[1])
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert same_outputs(from_diffusers("somebody/some-network"), theirs)
    whole = ["*diffusion_pytorch_model.safetensors", "*diffusion_pytorch_model.bin"]
    shards = ["*diffusion_pytorch_model*.safetensors", "*diffusion_pytorch_model*.bin"]
    count = {"one file": 1, "a pickle": 2, "shards": 3, "shards of pickles": 4}[how]
    assert asked == (whole + shards)[:count]


def test_damaged_shards_are_refused_in_one_line(tmp_path):
    drawn().save_pretrained(tmp_path, max_shard_size="200KB")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    shards, whole = sorted(tmp_path.glob("*-of-*")), index.read_text()
    kept = shards[1].read_bytes()
    shards[1].unlink()
    refused(tmp_path, r"index.json names .*-00002-of-.*, which is not beside it; fetch it too")
    shards[1].write_bytes(kept[: len(kept) // 2])
    refused(tmp_path, "-00002-of-.* is truncated or no safetensors file")
    shards[1].write_bytes(kept)
    for shard in ("../other.safetensors", "/etc/passwd", 3):
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": shard}}))
        refused(tmp_path, "index of weights .* must map tensors to files beside it; fetch it again")
    for text in ("{}", '{"weight_map": {}}', "[]", "{"):
        index.write_text(text)
        refused(tmp_path, "index of weights|does not fit the network")
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": shards[0].name}}))
    refused(tmp_path, "does not fit the network: .* missing")
    index.write_text(whole)
    from_diffusers(tmp_path)


def test_a_folder_of_nothing_is_refused_in_one_line(tmp_path):
    refused(tmp_path, r"model_index\.json cannot be read")
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet1DModel"}))
    refused(tmp_path, "must be a UNet2DModel or UNet2DConditionModel, got UNet1DModel; it is not supported")
    (tmp_path / "config.json").write_text(json.dumps(UNET))
    refused(
        tmp_path, "has no weights; diffusion_pytorch_model.safetensors or diffusion_pytorch_model.bin must be there$"
    )
    (tmp_path / "model.safetensors").write_bytes(b"")
    refused(tmp_path, r"has no weights; .* must be there; save_pretrained\(\) what is in model\.safetensors")
