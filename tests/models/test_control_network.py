"""ControlNets: nothing at the beginning and at scale 0, gradients that are where theory says, and sums of several."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from data import ImageKind
from data.conditions import Edges
from likelihood import make_likelihood, mean_and_stderr
from models import Condition, GuidedScoreModel, NetworkScoreModel, make_parameterization
from models.backbones import ADM, ControlledBackbone, ControlNet, HintStem, UNet
from samplers import make_sampler
from sde_lib import NoiseStreams, make_sde

SMALL = {"channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (4,), "norm_groups": 8}


def at_random(network: nn.Module, seed: int = 0, std: float = 0.1) -> nn.Module:
    """Weights without zeros, so that each of them is seen in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(std * torch.randn(weight.shape, generator=generator))
    return network


def base_of(kind: type[ADM] = UNet, **options) -> ADM:
    network = at_random(kind(image_size=8, in_channels=2, dropout=0.3, **(SMALL | options)))
    assert isinstance(network, ADM)
    return network


def batch(size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, hint = torch.randn(size, 2, 8, 8, generator=generator), torch.randn(size, 1, 8, 8, generator=generator)
    return x, 999 * torch.rand(size, generator=generator), hint.sign()


TOLD = {
    "nothing": ({}, {}),
    "classes": ({"num_classes": 3}, {"cond": torch.tensor([0, 2, 1, 0])}),
    "words": ({"cond_words": 5, "max_words": 3}, {"words": torch.tensor([[1, 2, 0], [5, 0, 0], [3, 3, 3], [4, 1, 0]])}),
}


@pytest.mark.parametrize("kind", [UNet, ADM])
@pytest.mark.parametrize("told", TOLD)
def test_a_new_control_and_one_of_scale_0_are_the_base_to_the_bit(kind: type[ADM], told: str):
    options, given = TOLD[told]
    base = base_of(kind, **options)
    x, c_noise, hint = batch()
    network = ControlledBackbone(base, [ControlNet(base, hint_channels=1)]).train()
    expected = base(x, c_noise, **given)
    assert not torch.equal(expected, base.train()(x, c_noise, **given)), "dropout must be seen for this to be a test"
    base.eval()
    assert torch.equal(network.eval()(x, c_noise, image=hint, **given), expected)
    at_random(network.controls, 1)
    assert not torch.equal(network(x, c_noise, image=hint, **given), expected)
    network.scales = [0.0]
    assert torch.equal(network(x, c_noise, image=hint, **given), expected)


def test_samples_bound_and_flow_of_a_new_control_are_those_of_the_base():
    base = base_of().double()
    sde = make_sde("vp", beta_max=8.0)
    parameterization = make_parameterization("eps")
    alone = NetworkScoreModel(base, sde, parameterization).eval()
    controlled = NetworkScoreModel(ControlledBackbone(base, [ControlNet(base, hint_channels=1)]), sde, parameterization)
    x, _, hint = batch(2)
    x, cond = x.double().clamp(-1, 1), Condition(image=hint[:2].double())
    for name, options in (("ancestral", {"num_steps": 3}), ("heun", {"num_steps": 3})):
        sampler, results = make_sampler(name, **options), []
        for model, told in ((alone, None), (controlled.eval(), cond)):
            noise = NoiseStreams(0, range(2))
            x_T = sampler.prior_sample(sde, (2, 8, 8), noise)
            results.append(sampler.sample(model, x_T.double(), cond=told, noise=noise).x0)
        assert torch.equal(*results)
    estimators = [
        make_likelihood("vlb", num_steps=4, num_levels=3),
        make_likelihood("ode", num_levels=3, solver="euler", num_steps=3, divergence="rademacher"),
    ]
    for estimator in estimators:
        nats = [
            estimator(model, x.round(), cond=told, noise=NoiseStreams(0, range(2))).total
            for model, told in ((alone, None), (controlled, cond))
        ]
        assert torch.equal(*nats)


def test_the_first_gradient_is_that_of_the_zero_convolutions_alone_and_the_second_of_all():
    base = base_of()
    network = ControlledBackbone(base, [ControlNet(base, hint_channels=1)]).train()
    x, c_noise, hint = batch()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    assert {id(one) for one in network.parameters()}.isdisjoint(id(one) for one in base.parameters())

    def moved() -> set[str]:
        network.zero_grad()
        network(x, c_noise, image=hint).square().mean().backward()
        assert all(one.grad is None for one in base.parameters())
        return {name for name, one in network.named_parameters() if one.grad is not None and one.grad.abs().max() > 0}

    zero = {name for name, _ in network.named_parameters() if ".zero" in name}
    assert moved() == zero
    optimizer.step()
    # the stem is behind a zero convolution of its own, whose first gradient comes now, and its inside after it
    inside = {name for name, _ in network.named_parameters() if ".stem.layers" in name}
    assert moved() == {name for name, _ in network.named_parameters()} - inside
    optimizer.step()
    assert moved() == {name for name, _ in network.named_parameters()}


def test_a_sample_without_hint_is_that_of_the_base_and_no_other_sample_is_moved_by_it():
    base = base_of()
    network = at_random(ControlledBackbone(base, [ControlNet(base, hint_channels=1)]), 1).eval()
    x, c_noise, hint = batch()
    all_told = network(x, c_noise, image=hint)
    some = hint.clone()
    some[1] = torch.nan
    found = network(x, c_noise, image=some)
    assert torch.equal(found[1], base(x, c_noise)[1])
    assert torch.equal(found[[0, 2, 3]], all_told[[0, 2, 3]])
    some[2, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="hint must have no NaN, got some in sample 2"):
        network(x, c_noise, image=some)


def test_the_base_is_no_parameter_stays_in_evaluation_mode_and_is_shared_by_copies():
    base = base_of()
    network = ControlledBackbone(base, [ControlNet(base, hint_channels=1)]).train()
    assert not base.training and network.networks[0].encoder.training
    assert not any(name.startswith("base") for name in network.state_dict())
    twin = copy.deepcopy(network)
    assert twin.base is base
    assert {id(one) for one in twin.parameters()}.isdisjoint(id(one) for one in network.parameters())
    assert twin.options["controls"][0] is twin.controls[0]
    network.double()
    assert base.conv_in.weight.dtype == torch.float64
    network.gradient_checkpointing = True
    x, c_noise, hint = batch()
    network.eval()
    once = network(x.double(), c_noise, image=hint.double())
    network.gradient_checkpointing = False
    assert torch.equal(once, network(x.double(), c_noise, image=hint.double()))


def test_several_controls_add_each_with_its_scale_and_decay_weakens_those_of_high_resolution():
    base = base_of().double()
    controls = [ControlNet(base, hint_channels=1), ControlNet(base, hint_channels=2, hint_widths=(4,))]
    for k, control in enumerate(controls):
        at_random(control, k)
    network = ControlledBackbone(base, controls, scales=(0.5, 2.0), decay=0.8).double().eval()
    x, c_noise, hint = (one.double() for one in batch())
    other = torch.randn(4, 2, 8, 8, dtype=torch.float64)
    encoded = base.encode(x, c_noise)
    results = [*encoded.skips, encoded.middle]
    added = [controls[0].eval()(x, c_noise, hint=hint), controls[1].eval()(x, c_noise, hint=other)]
    # of the first convolution, a block and a downsampling, a block; and the middle, which is not weakened
    assert len(results) == 5
    wanted = [one + 0.8 ** (4 - i) * (0.5 * added[0][i] + 2.0 * added[1][i]) for i, one in enumerate(results)]
    expected = base.decode(encoded._replace(skips=wanted[:-1], middle=wanted[-1]), x.dtype)
    torch.testing.assert_close(network(x, c_noise, image=torch.cat([hint, other], 1)), expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="must have 3 channels, those of the hints of 2 controls, got 1"):
        network(x, c_noise, image=hint)


def test_the_stem_of_a_larger_hint_halves_it_in_each_pair_of_layers():
    stem = HintStem(3, (4, 8, 12), 16, downsample=True)
    assert [layer.stride[0] for layer in stem.layers] == [1, 1, 2, 1, 2]  # pyright: ignore[reportIndexIssue]
    assert stem(torch.randn(2, 3, 16, 16)).shape == (2, 16, 4, 4)
    assert [name for name, one in stem.named_parameters() if not one.any()][-2:] == ["out.weight", "out.bias"]
    base = base_of()
    control = ControlNet(base, hint_channels=3, hint_widths=(4, 8, 12), hint_factor=4)
    x, c_noise, _ = batch()
    assert len(control(x, c_noise, hint=torch.rand(4, 3, 32, 32))) == 5
    with pytest.raises(ValueError, match=r"hint must have shape \[4, 3, 32, 32\], got \[4, 3, 8, 8\]"):
        control(x, c_noise, hint=torch.rand(4, 3, 8, 8))
    with pytest.raises(ValueError, match="hint_factor must be 1 or 4"):
        ControlNet(base, hint_channels=3, hint_widths=(4, 8, 12), hint_factor=8)


def test_the_network_of_stable_diffusions_controls_has_the_published_count():
    with torch.device("meta"):
        base = ADM(
            image_size=64, in_channels=4, channels=320, channel_mult=(1, 2, 4, 4), num_heads=8,
            attention_resolutions=(), middle_attention=False, cond_tokens=768, transformer_depth=1,
            cross_attention_resolutions=(64, 32, 16), scale_shift_norm=False, resampling="convolution",
        )  # fmt: skip
        control = ControlNet(base, hint_channels=3, hint_widths=(16, 32, 96, 256), hint_factor=8)
    assert sum(one.numel() for one in control.parameters()) == 361_279_120


def test_guidance_controls_both_sides_or_the_conditional_one():
    base = base_of(num_classes=3, null_condition=True).double()
    network = at_random(ControlledBackbone(base, [ControlNet(base, hint_channels=1)]), 1, std=0.3).double().eval()
    model = NetworkScoreModel(network, make_sde("vp"), make_parameterization("eps")).eval()
    x, _, hint = (one.double() for one in batch())
    t, label = torch.full((4,), 0.5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    cond, none = Condition(label=label, image=hint), torch.full_like(label, -1)
    sides = {
        True: Condition(label=none, image=hint),
        False: Condition(label=none, image=torch.full_like(hint, torch.nan)),
    }
    for keeps, other in sides.items():
        guided = GuidedScoreModel(model, weight=3.0, keeps_image=keeps)(x, t, cond=cond).eps
        expected = torch.lerp(model(x, t, cond=other).eps, model(x, t, cond=cond).eps, 3.0)
        torch.testing.assert_close(guided, expected, rtol=0, atol=1e-12)
        negative = Condition(label=torch.tensor([1]))
        guided = GuidedScoreModel(model, weight=3.0, keeps_image=keeps, negative=negative)(x, t, cond=cond).eps
        assert other.image is not None
        away = Condition(label=torch.ones_like(label), image=other.image)
        expected = torch.lerp(model(x, t, cond=away).eps, model(x, t, cond=cond).eps, 3.0)
        torch.testing.assert_close(guided, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (1.0, 2.0)}, "each control needs a scale, got 1 and"),
        ({"decay": 0.0}, r"decay must lie in \(0, 1\], got 0.0"),
    ],
)
def test_impossible_controls_are_refused_in_one_line(options: dict, message: str):
    base = base_of()
    with pytest.raises(ValueError, match=message):
        ControlledBackbone(base, [ControlNet(base, hint_channels=1)], **options)
    with pytest.raises(ValueError, match="hint_widths must be channels"):
        ControlNet(base, hint_channels=1, hint_widths=())


@pytest.mark.slow
def test_a_hint_saves_its_entropy():
    """Eight images by a step in one of four places, in two polarities: the edges say the place, H(e) = 2 bits of 3."""
    columns = torch.stack([(torch.arange(4) >= k).long().expand(4, 4) for k in (0, 1, 2, 3)])
    levels = torch.cat([columns, 1 - columns])[:, None]
    hints = 2 * Edges().observe(levels.to(torch.uint8), ImageKind((1, 4, 4), 2)).float() - 1
    assert len(hints.unique(dim=0)) == 4
    x0, sde, parameterization = (
        2 * levels.float() - 1,
        make_sde("vp_cosine"),
        make_parameterization("levels", num_levels=2),
    )
    torch.manual_seed(0)
    options = {**SMALL, "channel_mult": (2,), "attention_resolutions": (), "norm_groups": 4}
    base = UNet(image_size=4, in_channels=1, outputs_per_channel=2, **options)

    def fit(network: nn.Module, num_steps: int, hints: Tensor | None) -> NetworkScoreModel:
        model, index = NetworkScoreModel(network, sde, parameterization).train(), torch.arange(32) % 8
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for k in range(num_steps):
            optimizer.param_groups[0]["lr"] = 3e-3 * (1 - k / num_steps)
            t = ((torch.randperm(32) + torch.rand(())) / 32).double()
            x_t = sde.perturb(x0[index], t, torch.randn(32, 1, 4, 4))
            answer = model(x_t, t, cond=None if hints is None else Condition(image=hints[index]))
            weight = (1 + sde.log_snr(t).exp()).clamp(max=5)
            optimizer.zero_grad()
            (weight * (answer.x0 - x0[index]).square().sum((1, 2, 3))).mean().backward()
            optimizer.step()
        return model.eval()

    alone = fit(base, 200, None)
    controlled = fit(ControlledBackbone(base, [ControlNet(base, hint_channels=1, hint_widths=(8,))]), 150, hints)
    estimator, many = make_likelihood("vlb", num_steps=1000, num_levels=2, steps_per_image=20), torch.arange(256) % 8
    bits = [
        estimator(model, x0[many], cond=cond, noise=NoiseStreams(0, range(256))).total / math.log(2)
        for model, cond in ((alone, None), (controlled, Condition(image=hints[many])))
    ]
    saved, error = mean_and_stderr(bits[0] - bits[1])
    assert 3 < float(bits[0].mean()) < 5
    # a bound of each, and so no exact difference: it comes near H(e) as both do
    assert abs(saved - 2) < 0.2 + 3 * error and error < 0.1
