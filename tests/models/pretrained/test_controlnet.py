"""ControlNets of Stable Diffusion in both published layouts, beside diffusers itself."""

import pytest
import torch
from diffusers_pipelines import BETAS, COMMON, ONE, TWO, Float64Sinusoid, diffusers, same_bits
from importer_references import count, per_sample_error, randomize
from safetensors.torch import save_file
from test_pretrained_diffusers import change_json
from test_pretrained_stable_diffusion import PUBLISHED

from models.backbones import ADM, ControlledBackbone, ControlNet
from models.pretrained import from_controlnet, from_diffusers
from models.pretrained.controlnet.settings import plan_control
from models.pretrained.diffusers.settings import plan_diffusers
from models.pretrained.guided.importer import guided_sources

WIDTHS = (4, 6, 6, 8)
# three levels of two blocks, so that blocks are counted across levels
DEEP = COMMON | {
    "attention_head_dim": 4, "layers_per_block": 2, "block_out_channels": (16, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
FORMS = {"1.5": ONE, "2.1": TWO, "deep": DEEP}
TOLERANCES = {torch.float32: 5e-5, torch.float64: 1e-10}


def save(folder, settings, **changes):
    """A U-Net and a ControlNet of it with random weights, in folders of diffusers."""
    unet = randomize(diffusers.UNet2DConditionModel(**settings))
    control = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=WIDTHS, **changes)
    control = randomize(control, seed=1)
    unet.save_pretrained(folder / "unet")
    control.save_pretrained(folder / "control")
    return unet, control


def read_base(folder):
    base = from_diffusers(folder / "unet", {"_class_name": "DDIMScheduler", **BETAS}).backbone
    assert isinstance(base, ADM)
    return base


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder with a small U-Net and its ControlNet, both of them, and the U-Net as it is read."""
    folder = tmp_path_factory.mktemp("small")
    _, theirs = save(folder, ONE)
    return folder, theirs, read_base(folder)


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 4, 8, 8, generator=generator, dtype=dtype)
    hint = torch.rand(3, 3, 64, 64, generator=generator, dtype=dtype)
    return x, torch.tensor([0, 517, 999]), torch.randn(3, 7, 12, generator=generator, dtype=dtype), hint


def refused(message, name, base):
    with pytest.raises(ValueError, match=message) as error:
        from_controlnet(name, base)
    assert "\n" not in str(error.value)


def names_of_the_authors(theirs):
    """The tensors of a ``ControlNetModel`` under the names of its authors' files, written out here anew."""
    per_level = theirs.config.layers_per_block + 1
    fixed = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0", "controlnet_mid_block": "middle_block_out.0",
        "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2", "controlnet_cond_embedding.conv_in": "input_hint_block.0",
        "controlnet_cond_embedding.conv_out": "input_hint_block.14",
    }  # fmt: skip
    fixed |= {f"controlnet_cond_embedding.blocks.{i}": f"input_hint_block.{2 * i + 2}" for i in range(6)}
    inner = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
        "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
    }  # fmt: skip
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        parts = name.split(".")
        if parts[0] == "controlnet_down_blocks":
            place, rest = f"zero_convs.{parts[1]}.0", parts[2:]
        elif parts[0] == "down_blocks":
            level, kind, index, rest = int(parts[1]), parts[2], int(parts[3]), parts[4:]
            place = f"input_blocks.{1 + per_level * level + (per_level - 1 if kind == 'downsamplers' else index)}"
            place += {"resnets": ".0", "attentions": ".1", "downsamplers": ".0.op"}[kind]
            rest = rest[1:] if kind == "downsamplers" else rest
        else:
            old = next(one for one in fixed if name.startswith(f"{one}."))
            place, rest = fixed[old], name.removeprefix(f"{old}.").split(".")
        if "resnets" in parts:
            rest = [inner[rest[0]], *rest[1:]]
        renamed[".".join([place, *rest])] = tensor
    return renamed


@pytest.mark.parametrize(
    ("form", "dtype"), [*((form, dtype) for form in ("1.5", "2.1") for dtype in TOLERANCES), ("deep", torch.float64)]
)
def test_outputs_agree_with_diffusers(tmp_path, form, dtype):
    unet, theirs = save(tmp_path, FORMS[form])
    base = read_base(tmp_path).to(dtype)
    ours = from_controlnet(tmp_path / "control", base)
    assert not ours.training and sum(p.numel() for p in ours.parameters()) == theirs.num_parameters()
    unet, theirs = unet.to(dtype), theirs.to(dtype)
    if dtype == torch.float64:
        unet.time_proj, theirs.time_proj = Float64Sinusoid(16, 0), Float64Sinusoid(16, 0)
    x, t, tokens, hint = inputs(dtype)
    with torch.no_grad():
        down, middle = theirs(x, t, encoder_hidden_states=tokens, controlnet_cond=hint, return_dict=False)
        made = ours(x, t, hint=hint, tokens=tokens)
        for one, expected in zip(made, [*down, middle], strict=True):
            assert one.dtype == dtype and per_sample_error(one, expected.double()) < TOLERANCES[dtype]
        expected = unet(
            x, t, tokens, down_block_additional_residuals=down, mid_block_additional_residual=middle, return_dict=False
        )[0].double()
        assert per_sample_error(unet(x, t, tokens).sample, expected) > 0.01
        controlled = ControlledBackbone(base, [ours])(x, t, image=hint, tokens=tokens)
        assert per_sample_error(controlled, expected) < TOLERANCES[dtype]


@pytest.mark.parametrize("changes", [
    {"controlnet_conditioning_channel_order": "bgr"}, {"conditioning_channels": 1},
    {"of_unet": {"transformer_layers_per_block": 2, "flip_sin_to_cos": False, "downsample_padding": 0}},
    {"of_unet": {"freq_shift": 1, "norm_eps": 1e-4, "sample_size": (8, 16)}},
])  # fmt: skip
def test_other_settings_agree_with_diffusers(tmp_path, changes):
    of_unet = changes.get("of_unet", {})
    _, theirs = save(tmp_path, ONE | of_unet, **{k: v for k, v in changes.items() if k != "of_unet"})
    ours = from_controlnet(tmp_path / "control", read_base(tmp_path))
    x, t, tokens, hint = inputs()
    hint = hint[:, : theirs.config.conditioning_channels]
    if "sample_size" in of_unet:
        x, hint = torch.cat([x, -x], 3), torch.cat([hint, 1 - hint], 3)
    with torch.no_grad():
        down, middle = theirs(x, t, encoder_hidden_states=tokens, controlnet_cond=hint, return_dict=False)
        for one, expected in zip(ours(x, t, hint=hint, tokens=tokens), [*down, middle], strict=True):
            assert per_sample_error(one, expected.double()) < 5e-5


@pytest.mark.parametrize("form", ["2.1", "deep"])
def test_files_of_the_authors_have_the_same_tensors(tmp_path, form):
    _, theirs = save(tmp_path, FORMS[form])
    base = read_base(tmp_path)
    # beside the model that it controls, as published
    others = {"model.diffusion_model.out.2.weight": torch.zeros(3), "logvar": torch.zeros(4)}
    renamed = {f"control_model.{name}": tensor for name, tensor in names_of_the_authors(theirs).items()}
    torch.save(others | renamed, tmp_path / "whole.pth")
    ours = from_controlnet(tmp_path / "whole.pth", base)
    assert not ours.training and same_bits(ours, from_controlnet(tmp_path / "control", base))


def test_files_of_the_authors_are_read_in_every_form(small, tmp_path):
    folder, theirs, base = small
    renamed = names_of_the_authors(theirs)
    torch.save({"state_dict": {f"control_model.{name}": one for name, one in renamed.items()}}, tmp_path / "file.ckpt")
    (tmp_path / "alone").mkdir()
    save_file(renamed, tmp_path / "alone" / "bare.safetensors")
    expected = from_controlnet(folder / "control", base)
    for name in ("file.ckpt", "alone"):
        assert same_bits(from_controlnet(tmp_path / name, base), expected)


def test_published_settings_build_a_network_of_the_published_size(tmp_path):
    settings = {"_class_name": "UNet2DConditionModel", **PUBLISHED["1.5"]}
    plan = plan_diffusers(settings, {"_class_name": "PNDMScheduler", **BETAS})
    with torch.device("meta"):
        base = plan.build_backbone()
    assert isinstance(base, ADM)
    said = {name: value for name, value in settings.items() if name not in ("out_channels", "sample_size")}
    said |= {
        "_class_name": "ControlNetModel", "class_embed_type": None, "num_class_embeds": None,
        "conditioning_embedding_out_channels": [16, 32, 96, 256], "controlnet_conditioning_channel_order": "rgb",
        "only_cross_attention": False, "projection_class_embeddings_input_dim": None,
        "resnet_time_scale_shift": "default", "upcast_attention": False, "use_linear_projection": False,
    }  # fmt: skip
    del said["up_block_types"]
    hint = plan_control(said, base, path=tmp_path)
    built = count(lambda: ControlNet(base, hint_channels=hint.channels, hint_widths=hint.widths, hint_factor=8))
    assert built == 361_279_120
    # some of the 686 names of the U-Net in its authors' file
    names = [name for source in guided_sources(base).values() for name in source.names]
    assert len(set(names)) == len(names) == 686
    for place in ("2.1.conv", "5.2.conv", "8.2.conv", "11.1.proj_out", "3.1.transformer_blocks.0.attn2.to_v"):
        assert f"output_blocks.{place}.weight" in names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": [16, 64]}, r"must have channel_mult=\(1, 4\) \(its block_out_channels\), got \(1, 2\)"),
        ({"layers_per_block": 2}, r"must have num_res_blocks=2 \(its layers_per_block\), got 1; pass the U-Net"),
        ({"cross_attention_dim": 16}, r"must have cond_tokens=16 \(its cross_attention_dim\), got 12"),
        ({"attention_head_dim": 2}, r"must have num_heads=2 \(its attention_head_dim\), got 4"),
        ({"transformer_layers_per_block": 2}, "must have transformer_depth=2"),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 2}, r"must have cross_attention_resolutions=\(8, 4\)"),
        ({"down_block_types": ["KDownBlock2D", "DownBlock2D"]}, "unknown block type"),
        ({"norm_num_groups": 4}, "must have norm_groups=4"),
        ({"in_channels": 3}, "must have in_channels=3, got 4"),
        ({"conditioning_embedding_out_channels": [4, 6, 6, 10]}, "misshapen .*controlnet_cond_embedding.blocks.5"),
        ({"conditioning_embedding_out_channels": [4, 8]}, "unexpected .*controlnet_cond_embedding"),
        ({"conditioning_channels": 4}, "misshapen .*controlnet_cond_embedding.conv_in.weight"),
        ({"controlnet_conditioning_channel_order": "grb"}, "unknown controlnet_conditioning_channel_order"),
        ({"global_pool_conditions": True}, "global_pool_conditions=True is not supported"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type='text_time' is not supported"),
        ({"new_setting": 1}, "unknown setting of the config 'new_setting'"),
        ({"_class_name": "UNet2DConditionModel"}, "must be a ControlNetModel, got UNet2DConditionModel; pass"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(small, changes, message):
    folder, _, base = small
    path = folder / "control" / "config.json"
    before = path.read_text()
    try:
        change_json(path, **changes)
        refused(message, folder / "control", base)
    finally:
        path.write_text(before)


def test_tensors_that_are_missing_or_left_over_are_refused_in_one_line(small, tmp_path):
    _, theirs, base = small
    whole = names_of_the_authors(theirs)
    path = tmp_path / "file.pth"
    for name in ("zero_convs.2.0.bias", "input_hint_block.4.weight", "input_blocks.1.1.proj_in.weight"):
        torch.save({one: tensor for one, tensor in whole.items() if one != name}, path)
        refused(f"missing .*{name}", path, base)
    torch.save(whole | {"input_blocks.9.0.weight": torch.zeros(3)}, path)
    refused("1 unexpected .input_blocks.9.0.weight", path, base)
    torch.save(whole | {"input_hint_block.8.weight": torch.zeros(())}, path)
    refused("misshapen .*input_hint_block.8.weight is ", path, base)
    torch.save(whole | {"difference": torch.zeros(())}, path)
    refused("has the differences of a ControlNet from its U-Net, .*; fetch the whole one", path, base)
    torch.save(theirs.state_dict(), path)
    refused("whose settings it does not hold; pass its folder", path, base)
    torch.save({"model.diffusion_model.out.2.weight": torch.zeros(3)}, path)
    refused("is of another project than ControlNet: it has no input_hint_block.0.weight", path, base)
    torch.save(theirs, path)
    refused("is a pickle that asks for .*, refused unread", path, base)


def test_bases_that_do_not_fit_are_refused_in_one_line(small, tmp_path):
    folder, theirs, base = small
    torch.save(names_of_the_authors(theirs), tmp_path / "file.pth")
    other = ADM(**base.options | {"transformer_depth": 0})
    refused("an ADM with transformer_depth, got ADM; pass from_stable_diffusion", folder / "control", other)
    refused("an ADM with transformer_depth, got Linear", tmp_path / "file.pth", torch.nn.Linear(2, 2))
    wider = ADM(**base.options | {"channels": 32})
    refused(r"must have channels=16 \(its block_out_channels\), got 32", folder / "control", wider)
    refused("misshapen", tmp_path / "file.pth", wider)
    shifted = ADM(**base.options | {"embedding": "sin_first"})
    refused(r"must have embedding='cos_first' \(its freq_shift\)", tmp_path / "file.pth", shifted)
    refused(r"must have num_classes=None, got 3", folder / "control", ADM(**base.options | {"num_classes": 3}))


def test_folders_without_one_file_are_refused_in_one_line(small, tmp_path):
    _, theirs, base = small
    refused("must have the config.json of a ControlNetModel, or one file of weights, got none", tmp_path, base)
    for name in ("a.pth", "b.pth"):
        torch.save(names_of_the_authors(theirs), tmp_path / name)
    refused("or one file of weights, got a.pth, b.pth; pass one of them", tmp_path, base)
    refused("is no file; pass the path", tmp_path / "c.pth", base)
    refused("is no folder", tmp_path / "c", base)
