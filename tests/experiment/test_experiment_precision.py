"""Precision and compilation: what is picked and why, what bf16 may touch, and failing compilation."""

from functools import partial
from typing import Any

import pytest
import torch
from importer_references import randomize
from small_networks import batch, network, score_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from experiment import precision
from experiment.precision import (
    InferenceBackbone,
    NetworkMode,
    PrecisionBackbone,
    fast_inference,
    pick_mode,
)
from models import NetworkScoreModel
from models.backbones import ADM, AttentionBlock, DiT, NCSNpp, ResBlock, UNet
from training.ema import ExponentialMovingAverage
from training.losses import DDPMLoss

CPU = torch.device("cpu")
BF16 = torch.bfloat16


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A CPU with bf16 units and a compiler, whatever this one has."""
    monkeypatch.setattr(precision, "bf16_units", lambda device: "AMX")
    monkeypatch.setattr(precision, "missing_compiler", lambda kind: None)
    return monkeypatch


@pytest.fixture(scope="module")
def large() -> UNet:
    """CIFAR-10's network of 35,746,307 weights, without memory."""
    with torch.device("meta"):
        return UNet(image_size=32)


def test_auto_takes_what_the_machine_is_good_at_and_says_why(units: pytest.MonkeyPatch, large: UNet):
    mode = pick_mode("auto", "auto", CPU, backbone=large, num_calls=100_000)
    assert (mode.precision, mode.compiled) == (BF16, True)
    assert mode.recorded() == {"precision": "bf16", "compile": True}
    assert mode.reasons == (
        "bf16: this CPU has AMX; weights stay in float32",
        "compiled: a run of 100,000 calls of the network is worth it",
    )
    units.setattr(precision, "bf16_units", lambda device: None)
    units.setattr(precision, "missing_compiler", lambda kind: "there is no C++ compiler g++; install one or set CXX")
    mode = pick_mode("auto", "auto", CPU, backbone=large, num_calls=100_000)
    assert mode.recorded() == {"precision": "fp32", "compile": False}
    assert mode.reasons == (
        "fp32: this CPU has no bf16 units",
        "not compiled: there is no C++ compiler g++; install one or set CXX",
    )


@pytest.mark.usefixtures("units")
def test_auto_leaves_short_runs_and_small_networks_as_they_are(large: UNet):
    short = pick_mode("auto", "auto", CPU, backbone=large, num_calls=99_999)
    assert short.reasons[1] == (
        "not compiled: a run of 99,999 calls of the network is over before it pays, from 100,000 on it does"
    )
    small = pick_mode("auto", "auto", CPU, backbone=_of_weights(4_999_999), num_calls=10**9)
    assert small.reasons[1] == "not compiled: a network of less than 5,000,000 weights gains little by it"
    on_gpu = [pick_mode("fp32", "auto", torch.device("cuda"), backbone=large, num_calls=n) for n in (9_999, 10_000)]
    assert [mode.compiled for mode in on_gpu] == [False, True]
    ends = [pick_mode("auto", "off", CPU, backbone=_of_weights(n), num_calls=1) for n in (4_999_999, 5_000_000)]
    assert [mode.precision for mode in ends] == [torch.float32, BF16]
    assert ends[0].reasons[0] == "fp32: a network of less than 5,000,000 weights gains nothing by AMX of this CPU"


def _of_weights(number: int) -> nn.Module:
    return nn.Linear(number, 1, bias=False, device="meta")


def test_a_request_is_followed_and_its_price_named(units: pytest.MonkeyPatch, large: UNet):
    ask = partial(pick_mode, device=CPU, backbone=large, num_calls=10**9)
    assert ask("fp32", "off").recorded() == {"precision": "fp32", "compile": False}
    assert pick_mode("bf16", "on", CPU, backbone=_of_weights(1), num_calls=1).recorded() == {
        "precision": "bf16",
        "compile": True,
    }
    units.setattr(precision, "bf16_units", lambda device: None)
    units.setattr(precision, "missing_compiler", lambda kind: "triton is not installed; pip install triton")
    mode = ask("bf16", "on")
    assert mode.recorded() == {"precision": "bf16", "compile": False}
    assert "has no bf16 units and gains nothing by it" in mode.reasons[0]
    assert mode.reasons[1] == "not compiled: triton is not installed; pip install triton"


def test_a_resumed_run_follows_its_beginning(units: pytest.MonkeyPatch, large: UNet):
    auto = partial(pick_mode, "auto", "auto", CPU, backbone=large)
    for began in ({"precision": "fp32", "compile": False}, {"precision": "bf16", "compile": True}):
        for num_calls in (1, 10**9):
            assert auto(num_calls=num_calls, recorded=began).recorded() == began
    units.setattr(precision, "bf16_units", lambda device: None)
    mode = auto(num_calls=1, recorded={"precision": "bf16", "compile": True})
    assert mode.precision == BF16 and mode.reasons[0].startswith("bf16: as the run began, though this CPU has no bf16")
    units.setattr(precision, "missing_compiler", lambda kind: "no compiler")
    assert not auto(num_calls=1, recorded={"precision": "bf16", "compile": True}).compiled
    # what says nothing leaves the choice open
    ours, theirs = (auto(num_calls=1, recorded=recorded).recorded() for recorded in ({}, {"precision": 3}))
    assert ours == theirs


@pytest.mark.parametrize("names", [("fp16", "auto"), ("auto", "yes")])
def test_unknown_names_list_the_choices(names: tuple[str, str]):
    with pytest.raises(ValueError, match=r"unknown (precision 'fp16'|compile 'yes'); "):
        pick_mode(*names, CPU, backbone=_of_weights(1), num_calls=1)


class _Outside(TorchDispatchMode):
    """Types of all that is computed outside the network."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(value, Tensor) and value.is_floating_point():
                self.dtypes[self.inside].add(value.dtype)
        return out


def test_bf16_stays_within_the_network():
    model = score_model(PrecisionBackbone(network(), BF16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ema = ExponentialMovingAverage(model, 0.9)
    seen = _Outside()

    def entered(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert [value.dtype for value in inputs[:2]] == [torch.float32, torch.float64]
        seen.inside = True

    def left(_module: nn.Module, _inputs: Any, out: Tensor) -> None:
        assert out.dtype == torch.float32
        seen.inside = False

    model.backbone.register_forward_pre_hook(entered)
    model.backbone.register_forward_hook(left)
    x, _ = batch()
    t = torch.tensor([0.001, 0.2, 0.7, 1.0], dtype=torch.float64)
    with seen:
        loss = DDPMLoss()(model, x, t, torch.randn_like(x)).mean()
    loss.backward()
    with seen:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model)
    assert BF16 in seen.dtypes[True]
    assert seen.dtypes[False] <= {torch.float32, torch.float64}
    kept = [*model.parameters(), *ema.model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    kept += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    assert {value.dtype for value in kept} == {torch.float32}


def test_the_network_sees_channels_last_and_keeps_its_own_parameters():
    net = network()
    wrapped = PrecisionBackbone(net, torch.float32, compiled=True)
    assert {id(p) for p in wrapped.parameters()} == {id(p) for p in net.parameters()}
    assert set(wrapped.state_dict()) == {f"inner.{name}" for name in net.state_dict()}
    layouts = []
    net.conv_in.register_forward_pre_hook(
        lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    PrecisionBackbone(net, torch.float32)(*batch())
    assert layouts == [True]


def test_inference_in_bf16_is_autocast_bit_for_bit():
    net = network(num_classes=3, null_condition=True).eval()
    x, c_noise = batch()
    cond = torch.tensor([0, 2, -1, 1])
    fast = InferenceBackbone(net, BF16)
    with torch.no_grad():
        expected = PrecisionBackbone(net, BF16)(x, c_noise, cond=cond)
        assert torch.equal(fast(x, c_noise, cond=cond), expected)
    blocks = [module for module in fast.inner.modules() if isinstance(module, (ResBlock, AttentionBlock))]
    layers = [part for block in blocks for part in block.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    assert {layer.weight.dtype for layer in layers} == {BF16}
    assert {p.dtype for p in net.parameters()} == {torch.float32}


OTHERS = {
    "adm": lambda: ADM(image_size=8, channels=32, channel_mult=(1, 2), num_res_blocks=1, num_classes=3,
                       null_condition=True, attention_resolutions=(4,)),
    "adm, fourier": lambda: ADM(image_size=8, channels=32, channel_mult=(1, 2), num_res_blocks=1, num_classes=3,
                                null_condition=True, attention_resolutions=(4,), resampling="convolution",
                                embedding="fourier"),
    "ncsnpp": lambda: NCSNpp(image_size=8, channels=32, channel_mult=(1, 2), num_res_blocks=1, num_classes=3,
                             null_condition=True, attention_resolutions=(4,), embedding="fourier"),
    "ncsnpp, ddpm blocks": lambda: NCSNpp(image_size=8, channels=32, channel_mult=(1, 2), num_res_blocks=1,
                                          num_classes=3, null_condition=True, attention_resolutions=(4,), block="ddpm"),
    "dit": lambda: DiT(image_size=8, channels=32, depth=2, num_heads=2, num_classes=3, null_condition=True,
                       qk_norm=True, positions="rotary"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_inference_in_bf16_of_other_backbones_is_autocast_bit_for_bit(name: str):
    net = randomize(OTHERS[name]())
    # labels whose phases bf16 cannot hold, beside small ones
    x, c_noise, cond = torch.randn(4, 3, 8, 8), torch.tensor([3.7, -4.6, 0.013, 500.0]), torch.tensor([0, 2, -1, 1])
    with torch.no_grad():
        expected = PrecisionBackbone(net, BF16)(x, c_noise, cond=cond)
        assert torch.equal(InferenceBackbone(net, BF16)(x, c_noise, cond=cond), expected)
        exact = net(x, c_noise, cond=cond)
    assert 0 < float((expected - exact).abs().max() / exact.abs().max()) < 0.1


def test_inference_is_a_frozen_copy_that_still_has_gradients_of_its_input():
    net = network(dropout=0.5)
    model = score_model(net)
    fast = fast_inference(model, NetworkMode(torch.float32, compiled=False))
    fast.train()
    assert not fast.backbone.training
    assert not any(p.requires_grad for p in fast.backbone.parameters())
    assert all(p.requires_grad for p in net.parameters()) and net.training
    x, _ = batch()
    t = torch.full((4,), 0.3, dtype=torch.float64)
    probe = torch.randn_like(x)

    def product(of: NetworkScoreModel) -> Tensor:
        y = x.clone().requires_grad_()
        return torch.autograd.grad(of(y, t).eps, y, probe)[0]

    net.eval()
    torch.testing.assert_close(product(fast), product(model), rtol=1e-4, atol=1e-5)
    before = fast(x, t).eps.detach()
    nn.init.zeros_(net.conv_out.weight)
    assert torch.equal(fast(x, t).eps.detach(), before)
