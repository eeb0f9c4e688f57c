"""First stages: sizes of published autoencoders, latents, bottlenecks, and what is refused."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from data import LevelSpace
from likelihood import first_stage_terms
from models import Autoencoder, FirstStage, GaussianLatent, VectorLatent
from models.first_stage import make_bottleneck
from sde_lib import VP
from training.losses import make_loss

TINY = {"image_size": 8, "in_channels": 1, "channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1}


def _built_by(**options: object) -> Autoencoder:
    with torch.device("meta"):
        return Autoencoder(**options)  # pyright: ignore[reportArgumentType]


def test_it_has_the_size_of_stable_diffusions_autoencoders():
    # 83,653,863 of SD 1.5 to XL; 83,819,683 of SD 3 and FLUX, 16 channels and no convolutions at the bottleneck
    of_scale = 3
    first = _built_by(image_size=256, bottleneck="diagonal")
    assert sum(p.numel() for p in first.parameters()) == 83_653_863 + of_scale
    third = _built_by(image_size=256, bottleneck="diagonal", latent_channels=16, latent_convs=False)
    assert sum(p.numel() for p in third.parameters()) == 83_819_683 + of_scale
    assert third.latent_shape == (16, 32, 32)


def test_the_kl_is_that_of_torch():
    torch.manual_seed(0)
    latent = GaussianLatent(torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(5, 2, 3, dtype=torch.float64))
    q = Independent(Normal(latent.mean, latent.log_std.exp()), 2)
    p = Independent(Normal(torch.zeros_like(latent.mean), torch.ones_like(latent.mean)), 2)
    torch.testing.assert_close(latent.rate, kl_divergence(q, p), rtol=1e-12, atol=0)


def test_kls_of_little_are_not_lost_to_rounding():
    # of a mean of 1e-5 and a standard deviation of 1 + 1e-6, computed as 1e-10 / 2 + 1e-12 to first order
    latent = GaussianLatent(
        torch.full((1, 1), 1e-5, dtype=torch.float64), torch.full((1, 1), 1e-6, dtype=torch.float64)
    )
    assert float(latent.rate) == pytest.approx(0.5e-10 + 1e-12, rel=1e-4)


def test_bottlenecks_say_mean_and_spread():
    raw = torch.randn(2, 4, 3, 3)
    fixed = make_bottleneck("fixed", log_snr=4.0)(raw)
    assert torch.equal(fixed.mean, raw) and torch.equal(fixed.log_std, torch.full_like(raw, -2.0))
    z = fixed.draw(torch.ones_like(raw))
    torch.testing.assert_close(z - raw, torch.full_like(raw, math.exp(-2)))
    diagonal = make_bottleneck("diagonal")(raw)
    assert torch.equal(diagonal.mean, raw[:, :2])
    torch.testing.assert_close(diagonal.log_std.exp().square(), raw[:, 2:].exp())
    wild = make_bottleneck("diagonal")(torch.full((1, 2, 1, 1), 1e4))
    assert float(wild.log_std) == 10.0


def test_codes_lie_on_the_levels_of_data_and_pass_gradients():
    raw = torch.linspace(-6, 6.1, 1001).view(1, 1, 7, 143).requires_grad_()
    for levels in (2, 5, 256):
        latent = make_bottleneck("fsq", latent_levels=levels)(raw)
        codes = LevelSpace(levels).decode(latent.mean)
        assert torch.equal(LevelSpace(levels).encode(codes), latent.mean.detach())
        if levels < 256:
            # bins of equal width in the sigmoid
            assert torch.equal(codes, (levels * raw.sigmoid()).floor().clamp(max=levels - 1).to(torch.uint8))
        assert float(latent.rate) == pytest.approx(1001 * math.log(levels))
        (slope,) = torch.autograd.grad(latent.mean.sum(), raw)
        exact = 2 * levels / (levels - 1) * raw.sigmoid() * (1 - raw.sigmoid())
        torch.testing.assert_close(slope, exact, rtol=1e-4, atol=1e-6)
        # no noise changes them
        assert torch.equal(latent.draw(torch.randn_like(raw)), latent.mean)


def test_a_codebook_is_between_encoder_and_decoder():
    torch.manual_seed(0)
    network = Autoencoder(**TINY, latent_channels=2, bottleneck="vq", codebook_size=7)  # pyright: ignore
    model, x = FirstStage(network, VP()), torch.rand(3, 1, 8, 8)
    latent = model.encode(x)
    assert isinstance(latent, VectorLatent) and latent.codes.shape == (3, 4, 4)
    torch.testing.assert_close(latent.rate, torch.full((3,), 16 * math.log(7), dtype=torch.float64))
    book = network.bottleneck.quantizer.codebook
    assert torch.equal(latent.z, book[latent.codes].movedim(-1, 1)) and not torch.equal(latent.z, latent.mean)
    # the decoder quantizes what it is given, as latent-diffusion's does for its samples
    answer = model(x, torch.randn(3, 2, 4, 4))
    for z in (latent.mean, latent.z):
        torch.testing.assert_close(model.decode(z).mean, answer.pixels.mean, rtol=0, atol=1e-6)
    away = (latent.mean - latent.z).square().flatten(1).sum(1)
    torch.testing.assert_close(answer.latent.penalty, 1.25 * away)
    # the loss is the bound and what codebook and encoder learn by
    terms = first_stage_terms(model, x, torch.randn(3, 2, 4, 4), num_levels=None)
    loss = make_loss("autoencoder", sde=VP(), parameterization=None)(model, x, torch.ones(3), torch.randn_like(x))
    nats = (terms.total + 1.25 * away.double()) / (64 * math.log(2))
    torch.testing.assert_close(loss, nats, rtol=1e-6, atol=0)
    loss.sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(".conv1." in name or ".norm" in name or ".qkv." in name for name in still), still


@pytest.mark.parametrize("pixels", ["gaussian", "levels"])
@pytest.mark.parametrize("bottleneck", ["fixed", "diagonal"])
def test_all_of_a_network_learns_and_forward_is_encode_draw_decode(pixels: str, bottleneck: str):
    torch.manual_seed(0)
    network = Autoencoder(**TINY, bottleneck=bottleneck, pixels=pixels, num_levels=17)  # pyright: ignore[reportArgumentType]
    model = FirstStage(network, VP())
    x0, eps = torch.rand(3, 1, 8, 8) * 2 - 1, torch.randn(3, *model.latent_shape)
    answer = model(x0, eps)
    latent = model.encode(x0)
    torch.testing.assert_close(answer.latent.mean, latent.mean)
    torch.testing.assert_close(answer.pixels.mean, model.decode(latent.draw(eps)).mean)
    assert answer.pixels.mean.shape == x0.shape
    mean, log_std, raw = network(x0, eps)
    (mean.square().sum() + log_std.sum() + (raw * torch.randn_like(raw)).sum()).backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    # what ends in a layer that starts at zero moves from the second step on
    assert all(".conv1." in name or ".norm" in name or ".qkv." in name for name in still), still


def test_checkpointed_gradients_are_the_same():
    torch.manual_seed(0)
    network = Autoencoder(**TINY, pixels="levels", num_levels=17)
    x0, eps = torch.rand(3, 1, 8, 8), torch.randn(3, *network.latent_shape)
    grads = []
    for on in (False, True):
        network.gradient_checkpointing = on
        assert network.gradient_checkpointing is on
        network.zero_grad()
        network(x0, eps)[2].square().sum().backward()
        grads.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_networks_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="latent must not be larger than the image, of 64 numbers, got 80"):
        Autoencoder(**TINY, latent_channels=5)
    with pytest.raises(ValueError, match="unknown bottleneck 'kl'"):
        Autoencoder(**TINY, bottleneck="kl")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="unknown pixels 'l1'"):
        Autoencoder(**TINY, pixels="l1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="pixels=levels is of data with grey levels, got none"):
        Autoencoder(**TINY, pixels="levels")
    with pytest.raises(ValueError, match="log_snr of a fixed bottleneck must be finite, got inf"):
        Autoencoder(**TINY, log_snr=math.inf)
    with pytest.raises(ValueError, match="x must have shape"):
        Autoencoder(**TINY)(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 2, 2))


def test_each_frame_of_a_clip_is_encoded_and_decoded_as_an_image():
    torch.manual_seed(0)
    network = Autoencoder(**TINY, bottleneck="diagonal", pixels="levels", num_levels=17)
    images, clips = FirstStage(network, VP()), FirstStage(network, VP(), num_frames=3)
    assert clips.latent_shape == (4, 3, 4, 4)
    x0 = LevelSpace(17).encode(torch.randint(17, (2, 1, 3, 8, 8), dtype=torch.uint8))
    eps = torch.randn(2, *clips.latent_shape)
    answer, terms = clips(x0, eps), first_stage_terms(clips, x0, eps, num_levels=17)
    frames = [(x0[:, :, frame], eps[:, :, frame]) for frame in range(3)]
    alone = [first_stage_terms(images, *one, num_levels=17) for one in frames]
    torch.testing.assert_close(terms.distortion, torch.stack([one.distortion for one in alone]).sum(0))
    torch.testing.assert_close(terms.rate, torch.stack([one.rate for one in alone]).sum(0))
    means = torch.stack([images.encode(one).mean for one, _ in frames], 2)
    torch.testing.assert_close(answer.latent.mean, means)
    torch.testing.assert_close(clips.encode(x0).mean, answer.latent.mean)
    torch.testing.assert_close(clips.decode(answer.latent.draw(eps)).mean, answer.pixels.mean)
    with pytest.raises(ValueError, match=r"clips must be \[B, C, 3, H, W\], got \[2, 1, 2, 8, 8\]"):
        clips.encode(x0[:, :, :2])
    with pytest.raises(ValueError, match="an autoencoder of clips has no codes yet; set bottleneck to diagonal"):
        FirstStage(Autoencoder(**TINY, bottleneck="fsq"), VP(), num_frames=3)
