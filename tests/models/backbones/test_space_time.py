"""The space-time transformer: image weights, given frames, and which frames see which."""

import pytest
import torch

from experiment.precision import InferenceBackbone, PrecisionBackbone
from models.backbones import DiT, SpaceTimeDiT
from models.backbones.blocks.patches import turned
from models.backbones.space_time import TemporalBlock

SIZES = {"image_size": (8, 4), "in_channels": 2, "patch_size": 2, "channels": 16, "depth": 2, "num_heads": 2}
FRAMES = 3


def randomize(network, seed=0):
    """Give all weights values, those that start at zero too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return network.eval()


def clips(count=2, frames=FRAMES, seed=1):
    return torch.randn(count, 2, frames, 8, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("reach", ["place", "planes"])
@pytest.mark.parametrize("options", [{}, {"num_classes": 5, "learned_variance": True, "positions": "rotary"}])
def test_with_the_weights_of_an_image_network_each_frame_is_its_bits(options, reach):
    image_network = randomize(DiT(**SIZES, **options))
    network = SpaceTimeDiT(**SIZES, **options, num_frames=FRAMES, temporal_reach=reach).eval()
    missing, unexpected = network.load_state_dict(image_network.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("temporal.") for name in missing)
    x, c_noise = clips(), torch.tensor([3.0, 700.0])
    labels = torch.tensor([4, 1]) if options else None
    with torch.no_grad():
        found = network(x, c_noise, labels)
        of_frames = (one if one is None else one.repeat_interleave(FRAMES) for one in (c_noise, labels))
        expected = image_network(x.movedim(2, 1).flatten(0, 1), *of_frames)
    assert torch.equal(found.movedim(2, 1).flatten(0, 1), expected)


def test_a_new_network_has_the_first_weights_of_a_new_image_network():
    torch.manual_seed(3)
    image_network = DiT(**SIZES)
    torch.manual_seed(3)
    network = SpaceTimeDiT(**SIZES, num_frames=FRAMES)
    weights = network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in image_network.state_dict().items())


# of the two temporal blocks of "planes", one alone has weights that are not zero
REACHED = {
    "place": (0, (slice(2, 4), slice(0, 2))),
    "column": (0, (slice(None), slice(0, 2))),
    "row": (1, (slice(2, 4), slice(None))),
}


@pytest.mark.parametrize("within", REACHED)
def test_temporal_attention_reaches_all_frames_of_one_clip_at_one_place_column_or_row(within):
    # spatial gates are zero: a patch of one frame moves what it reaches in all frames of its clip, and nothing else
    reach = "place" if within == "place" else "planes"
    network = SpaceTimeDiT(**SIZES, num_frames=FRAMES, temporal_reach=reach).eval()
    number, (rows, columns) = REACHED[within]
    randomize(network.last)
    for block in network.temporal[number :: 1 if within == "place" else 2]:
        randomize(block)
    x, c_noise = clips(), torch.tensor([3.0, 700.0])
    changed = x.clone()
    changed[0, :, 1, 2:4, 0:2] += 1.0
    with torch.no_grad():
        moved = (network(x, c_noise) != network(changed, c_noise)).any(1)
    assert bool(moved[0, :, rows, columns].all())
    moved[0, :, rows, columns] = False
    assert not bool(moved.any())


def test_by_planes_all_places_of_all_frames_are_reached_in_one_block():
    network = SpaceTimeDiT(**SIZES | {"depth": 1}, num_frames=FRAMES, temporal_reach="planes").eval()
    randomize(network.temporal), randomize(network.last)
    x, c_noise = clips(), torch.tensor([3.0, 700.0])
    changed = x.clone()
    changed[0, :, 1, 2:4, 0:2] += 1.0
    with torch.no_grad():
        moved = (network(x, c_noise) != network(changed, c_noise)).any(1)
    assert bool(moved[0].all()) and not bool(moved[1].any())


def test_within_planes_only_distances_in_time_and_space_count():
    # what is seen lies the same way to the others when all are moved by a frame and a row, but for what the ends cut
    block = randomize(
        TemporalBlock(16, num_frames=4, grid=(5, 1), within="column", num_heads=2, qk_norm=True, norm_eps=1e-6)
    )
    scores = []
    block.attention.register_forward_pre_hook(lambda _, inputs: scores.append(inputs))
    x, embedding = torch.randn(4, 5, 16).expand(4, 5, 16), torch.zeros(4, 16)
    block(x, embedding, torch.zeros(4, 16))
    ((lines, mask, rotation),) = scores
    assert lines.shape == (1, 20, 16) and mask is None
    q, k = (turned(torch.randn(8).expand(1, 1, 20, 8), rotation)[0, 0].unflatten(0, (4, 5)) for _ in range(2))
    products = torch.einsum("fyd,gzd->fygz", q, k)
    torch.testing.assert_close(products[0, 1, 2, 3], products[1, 2, 3, 4])
    torch.testing.assert_close(products[0, 3, 0, 4], products[0, 2, 0, 3])
    torch.testing.assert_close(products[0, 4, 1, 0], products[2, 4, 3, 0])
    assert abs(float(products[0, 1, 2, 3] - products[0, 1, 3, 3])) > 1e-3
    assert abs(float(products[0, 1, 2, 3] - products[0, 1, 2, 4])) > 1e-3


def test_the_order_of_the_frames_is_told():
    network = randomize(SpaceTimeDiT(**SIZES, num_frames=FRAMES))
    x, c_noise = clips(), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        assert not torch.allclose(network(x.flip(2), c_noise), network(x, c_noise).flip(2), atol=1e-3)


def test_given_frames_are_frames_before_the_others_but_for_what_tells_them():
    given = randomize(SpaceTimeDiT(**SIZES, num_frames=FRAMES, given_frames=2, null_condition=True))
    whole = SpaceTimeDiT(**SIZES, num_frames=FRAMES + 2).eval()
    weights = {name: value for name, value in given.state_dict().items() if name not in ("given", "not_given")}
    whole.load_state_dict(weights)
    whole.when.copy_(given.when)
    x, before, c_noise = clips(), clips(frames=2, seed=2), torch.tensor([3.0, 700.0])
    none = torch.full_like(before, torch.nan)
    with torch.no_grad():
        assert not torch.allclose(given(x, c_noise, image=before), given(x, c_noise, image=none), atol=1e-3)
        mixed = given(x, c_noise, image=torch.cat((before[:1], none[1:])))
        torch.testing.assert_close(mixed[:1], given(x, c_noise, image=before)[:1])
        torch.testing.assert_close(mixed[1:], given(x, c_noise, image=none)[1:])
        given.given.zero_()
        expected = whole(torch.cat((before, x), 2), c_noise)[:, :, 2:]
        torch.testing.assert_close(given(x, c_noise, image=before), expected)


@pytest.mark.parametrize("reach", ["place", "planes"])
def test_checkpointing_changes_no_gradient(reach):
    network = randomize(SpaceTimeDiT(**SIZES, num_frames=FRAMES, temporal_reach=reach))
    gradients = []
    for on in (False, True):
        network.gradient_checkpointing = on
        assert network.gradient_checkpointing is on
        network.zero_grad()
        network(clips(), torch.tensor([3.0, 700.0])).square().sum().backward()
        gradients.append([weight.grad.clone() for weight in network.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_wrong_shapes_are_refused_in_one_line():
    network = SpaceTimeDiT(**SIZES, num_frames=FRAMES, given_frames=2)
    x, c_noise = clips(), torch.tensor([3.0, 700.0])
    with pytest.raises(ValueError, match=r"x must have shape \[B, 2, 3, 8, 4\], got \[2, 2, 4, 8, 4\]"):
        network(clips(frames=4), c_noise, image=clips(frames=2))
    with pytest.raises(ValueError, match=r"must have shape \[2, 2, 2, 8, 4\], got \[2, 2, 1, 8, 4\]"):
        network(x, c_noise, image=clips(frames=1))
    with pytest.raises(ValueError, match=r"must have shape \[2, 2, 2, 8, 4\], got None"):
        network(x, c_noise)
    with pytest.raises(ValueError, match="must have shape None"):
        SpaceTimeDiT(**SIZES, num_frames=FRAMES)(x, c_noise, image=x)
    with pytest.raises(ValueError, match="never trained without it"):
        network(x, c_noise, image=torch.full((2, 2, 2, 8, 4), torch.nan))
    with pytest.raises(ValueError, match="patch_size must divide images of 9x4"):
        SpaceTimeDiT(**SIZES | {"image_size": (9, 4)}, num_frames=FRAMES)
    with pytest.raises(ValueError, match="temporal_reach must be one of place, planes, got 'rows'"):
        SpaceTimeDiT(**SIZES, num_frames=FRAMES, temporal_reach="rows")
    with pytest.raises(ValueError, match="num_frames must be at least 1"):
        SpaceTimeDiT(**SIZES, num_frames=0)


@pytest.mark.parametrize("reach", ["place", "planes"])
def test_compiles_into_one_graph(reach):
    network = randomize(SpaceTimeDiT(**SIZES, num_frames=FRAMES, given_frames=1, temporal_reach=reach))
    x, given, c_noise = clips(), clips(frames=1, seed=2), torch.tensor([3.0, 700.0])
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, c_noise, image=given), network(x, c_noise, image=given))


@pytest.mark.parametrize("reach", ["place", "planes"])
def test_inference_in_bf16_is_autocast_bit_for_bit(reach):
    options = SIZES | {"positions": "rotary", "qk_norm": True, "temporal_reach": reach}
    network = randomize(SpaceTimeDiT(**options, num_frames=FRAMES, given_frames=1))
    x, given, c_noise = clips(), clips(frames=1, seed=2), torch.tensor([3.7, 500.0])
    with torch.no_grad():
        expected = PrecisionBackbone(network, torch.bfloat16)(x, c_noise, image=given)
        assert torch.equal(InferenceBackbone(network, torch.bfloat16)(x, c_noise, image=given), expected)
        exact = network(x, c_noise, image=given)
    assert 0 < float((expected - exact).abs().max() / exact.abs().max()) < 0.1
