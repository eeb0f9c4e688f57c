"""The ADM network and its classifier: beside other networks, in size, and what they promise."""

import pytest
import torch
from importer_references import Reference, count, randomize, take_no_class, worst_error
from torch.nn import functional as F

from models.backbones import ADM, EncoderClassifier, ResBlock, UNet
from models.backbones.blocks.fir import make_resampler
from models.backbones.classifier import AttentionPool
from models.pretrained.edm.importer import from_edm
from models.pretrained.edm.names import edm_sources
from models.pretrained.edm.settings import plan_edm_adm
from models.pretrained.shared.renaming import renamed
from models.pretrained.shared.settings import Settings


def small(**kwargs):
    settings = {"image_size": 8, "channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1}
    settings |= {"attention_resolutions": (4,), "head_channels": 8} | kwargs
    return randomize(ADM(**settings))


def batch(size=3, dtype=torch.float64):
    x = torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(dtype), torch.tensor([0.0, 12.5, 999.0][:size], dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.float64, 1e-10)])
def test_outputs_are_those_of_edm_s_network(dtype, tolerance):
    reference = Reference("edm_adm_edm_cond")
    network = take_no_class(from_edm(reference.path, reference.config).backbone.to(dtype))

    def denoised(case):
        # Karras et al. 2022, Table 1, with sigma_data = 1/2
        x, sigma = case["x"].double(), case["t"].double()[:, None, None, None]
        power = sigma**2 + 0.25
        raw = network((x / power.sqrt()).to(dtype), case["t"].double().log() / 4, case["y"])
        return 0.25 / power * x + 0.5 * sigma / power.sqrt() * raw.double()

    assert worst_error(reference, denoised) < tolerance


def test_edm_s_tensors_and_settings_must_fit(tmp_path):
    settings = {"img_resolution": 8, "model_channels": 64, "channel_mult": [1, 2], "num_blocks": 1, "label_dim": 4}
    settings |= {"attn_resolutions": [4], "class_name": "EDMPrecond"}
    options = {"image_size": 8, "channels": 64, "channel_mult": (1, 2), "num_res_blocks": 1, "num_classes": 4}
    options |= {"attention_resolutions": (4,), "head_channels": 64, "floor_heads": True, "norm_group_channels": 4}
    network = randomize(ADM(**options))
    tensors = renamed(network, edm_sources(network))

    def read(tensors, settings):
        torch.save({f"model.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "edm.pt")
        return from_edm(tmp_path / "edm.pt", settings).backbone

    again = read(tensors, settings)
    assert again.options == network.options | {"dropout": 0.1}
    for name, tensor in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
    # a linear map of one-hot vectors is a table of its columns
    assert torch.equal(tensors["map_label.weight"], network.embed.class_table.weight.t())
    for wrong, message in (
        ({**settings, "augment_dim": 9}, "config's augment_dim is 9, but the checkpoint has 0"),
        ({**settings, "label_dim": 3}, "map_label.weight is \\[256, 4\\], expected \\[256, 3\\]"),
        ({**settings, "model_type": "SongUNet"}, "model_type='SongUNet' is not supported"),
        ({**settings, "img_size": 8}, "unknown setting of the config 'img_size'"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tensors, wrong)


def test_edm_s_network_for_imagenet_has_the_published_size():
    # "~296 million" in Karras et al. 2022, Appendix F.4
    settings = Settings({"img_resolution": 64, "img_channels": 3, "label_dim": 1000})
    assert round(count(lambda: ADM(**plan_edm_adm({}, settings))) / 1e5) == 2959


@pytest.mark.parametrize("scale_shift", [False, True])
def test_with_convolutions_it_is_the_u_net(scale_shift):
    common = {"image_size": 8, "channels": 16, "channel_mult": (1, 2), "num_res_blocks": 2, "num_heads": 2}
    common |= {"attention_resolutions": (4,), "scale_shift_norm": scale_shift, "learned_variance": True}
    common |= {
        "num_classes": 3,
        "null_condition": True,
        "norm_eps": 1e-5,
        "embedding": "cos_first",
        "symmetric_downsample": True,
    }
    unet = randomize(UNet(**common)).double()
    adm = ADM(**common, resampling="convolution").double()
    adm.load_state_dict(unet.state_dict())
    x, c_noise = batch()
    cond = torch.tensor([2, -1, 0])
    torch.testing.assert_close(adm(x, c_noise, cond), unet(x, c_noise, cond), rtol=0, atol=1e-12)


@pytest.mark.parametrize("up", [False, True])
def test_resampling_blocks_average_or_repeat_both_branches(up):
    resampler = make_resampler("up" if up else "down", None)
    block = randomize(ResBlock(8, 8, 16, scale_shift=True, resample=resampler)).double()
    x, embedding = torch.randn(2, 8, 4, 4).double(), torch.randn(2, 16).double()

    def resample(value):
        if up:
            return value[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(2, 8, 8, 8)
        return value.reshape(2, 8, 2, 2, 2, 2).mean((3, 5))

    scale, shift = block.project(embedding)[:, :, None, None].chunk(2, dim=1)
    hidden = block.conv1(resample(F.silu(block.norm1(x))))
    hidden = block.norm2(hidden) * (1 + scale) + shift
    expected = resample(x) + block.conv2(F.silu(hidden))
    torch.testing.assert_close(block(x, embedding), expected, rtol=0, atol=1e-12)


def test_attention_pool_is_its_formula():
    pool = randomize(AttentionPool(2, 8, head_channels=4, out_features=5)).double()
    x = torch.randn(3, 8, 2, 2).double()
    for i in range(3):
        pixels = x[i].flatten(1).t()
        tokens = torch.cat((pixels.mean(0, keepdim=True), pixels)) + pool.position
        q, k, v = (tokens @ pool.qkv.weight.t() + pool.qkv.bias).split(8, dim=1)
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            attention = torch.softmax(q[:1, head] @ k[:, head].t() / 2, dim=1)
            heads.append(attention @ v[:, head])
        torch.testing.assert_close(pool(x)[i], pool.proj(torch.cat(heads, dim=1))[0], rtol=0, atol=1e-12)


def test_new_network_returns_zeros_and_no_sample_depends_on_its_batch_mates():
    x, c_noise = batch()
    new = ADM(
        image_size=8, channels=16, channel_mult=(1, 2), attention_resolutions=(4,), num_classes=3, null_condition=True
    ).double()
    cond = torch.tensor([0, 2, -1])
    assert torch.equal(new(x, c_noise, cond), torch.zeros_like(x))
    network = randomize(new).double()
    together = network(x, c_noise, cond)
    for i in range(3):
        alone = network(x[i : i + 1], c_noise[i : i + 1], cond[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-12)


def test_gradient_checkpointing_changes_no_gradient():
    x, c_noise = batch()
    gradients = []
    for on in (False, True):
        network = small().double()
        network.gradient_checkpointing = on
        assert network.gradient_checkpointing is on and all(
            level.gradient_checkpointing is on for level in network.stages
        )
        network(x, c_noise).square().sum().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_attention_where_it_was_asked_for():
    with torch.device("meta"):
        both = ADM(image_size=32, channels=32, channel_mult=(1, 2, 4), attention_resolutions=(16, 8), head_channels=32)
        floor = ADM(
            image_size=32, channels=32, channel_mult=(1, 2, 5), attention_resolutions=(32, 16, 8), head_channels=64,
            floor_heads=True,
        )  # fmt: skip
        apart = ADM(
            image_size=32, channel_mult=(1, 1), attention_resolutions=(16,), up_attention_resolutions=(32,),
            middle_attention=False,
        )  # fmt: skip
    assert [len(level.attention) for level in both.down] == [0, 2, 2]
    assert [len(level.attention) for level in both.up] == [0, 3, 3]
    # 32 channels make no head of 64, and 160 make two
    assert [len(level.attention) for level in floor.down] == [0, 2, 2]
    assert floor.down[2].attention[0].num_heads == floor.middle.attention.num_heads == 2
    assert [len(level.attention) for level in apart.down] == [0, 2]
    assert [len(level.attention) for level in apart.up] == [3, 0]
    assert apart.middle.attention is None


def test_half_a_multiple_of_the_width():
    network = small(channels=32, channel_mult=(0.5, 1), norm_groups=8)
    assert network.conv_in.out_channels == 16 and network.embed.embedding_dim == 32
    x, c_noise = batch(dtype=torch.float32)
    assert network(x, c_noise).shape == x.shape


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": 10, "channel_mult": (1, 2, 2)}, "image_size 10 cannot be halved 2 times"),
        ({"channel_mult": (0.3, 1)}, "channel_mult must give each level a whole number of channels"),
        ({"channel_mult": ()}, "channel_mult must give each level a whole number of channels"),
        ({"attention_resolutions": (5,)}, "attention_resolutions must be among 8, 4, got 5"),
        ({"up_attention_resolutions": (5,)}, "attention_resolutions must be among 8, 4, got 5"),
        ({"resampling": "pool"}, "resampling must be one of residual, convolution, got 'pool'"),
        ({"head_channels": 5}, "head_channels must divide 32 channels, got 5"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1, got 0"),
        ({"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        small(**kwargs)
    assert "\n" not in str(error.value)


def test_classifier_refuses_what_it_cannot_take():
    classifier = EncoderClassifier(
        image_size=8, channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), head_channels=32
    )
    with pytest.raises(ValueError, match=r"x must have shape \[B, 3, 8, 8\]"):
        classifier(torch.zeros(2, 3, 16, 16), torch.zeros(2))
    with pytest.raises(ValueError, match="head_channels must divide 64 channels, got 48"):
        AttentionPool(4, 64, head_channels=48, out_features=3)
