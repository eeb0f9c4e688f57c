"""Networks through torch.compile: the same numbers, and what happens where it fails."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import Small, batch, network
from thinning import only
from tiny import tiny_command
from torch import nn

import main
from experiment import precision
from experiment.precision import InferenceBackbone, PrecisionBackbone
from runtime import compilation
from runtime.compilation import missing_compiler

BF16 = torch.bfloat16


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert missing_compiler("cpu") == "there is no C++ compiler no-such-compiler; install one or set CXX"
    assert missing_compiler("meta") == "there is no compiler for meta"


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Traces and differentiates ahead of time as torch.compile does, but makes no code."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    return monkeypatch


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("whole", only((False,), [False, True]))
def test_compiled_training_gives_the_same_loss_and_gradients(whole: bool):
    unet = {"num_classes": 3, "null_condition": True, "channel_mult": (1,), "attention_resolutions": (8,)}
    plain = network(**unet) if whole else Small()
    wrapped = PrecisionBackbone(plain, torch.float32, compiled=True)
    x, c_noise = batch()
    told = {"cond": torch.tensor([0, 2, -1, 1])} if whole else {}
    results = []
    for net in (plain, wrapped):
        plain.zero_grad()
        out = net(x, c_noise, **told)
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad.clone() for p in plain.parameters() if p.grad is not None)])
    for ours, truth in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-6)
    assert wrapped._call is not None and not wrapped._call.failed


@pytest.mark.usefixtures("quick_compiler")
def test_to_compile_draws_no_random_numbers():
    net = Small(dropout=0.5)
    wrapped = PrecisionBackbone(net, torch.float32, compiled=True)
    x, c_noise = batch()
    torch.manual_seed(1)
    first = wrapped(x, c_noise)
    after_first = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(wrapped(x, c_noise), first)
    assert torch.equal(torch.get_rng_state(), after_first)
    assert all(p.grad is None for p in net.parameters())


def _failing(half: str) -> Any:
    """A backend whose compiler of one half fails."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def fail(*_: Any) -> Any:
        raise RuntimeError("no space left\nand a second line")

    def keep(graph: Any, *_: Any) -> Any:
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=fail if half == "forward" else keep, bw_compiler=fail)


@pytest.mark.parametrize("half", ["forward", "backward"])
def test_failing_compilation_goes_on_without_in_the_same_bits(half: str, monkeypatch: pytest.MonkeyPatch):
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=_failing(half)))
    said: list[str] = []
    monkeypatch.setattr(compilation, "say", said.append)
    net = Small(dropout=0.3)
    x, c_noise = batch()
    results = []
    for backbone in (PrecisionBackbone(net, BF16), PrecisionBackbone(net, BF16, compiled=True)):
        torch.manual_seed(0)
        net.zero_grad()
        for _ in range(2):
            backbone(x, c_noise).square().mean().backward()
        results.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert said[0] == "compiling the network, which may take minutes" and len(said) == 2
    assert said[1].startswith("compilation failed, goes on without: ")
    assert "no space left" in said[1] and "\n" not in said[1]


@pytest.mark.slow
def test_a_run_whose_compilation_failed_goes_on_without_at_its_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    torch._dynamo.reset()
    command = tiny_command("train", tmp_path, "--config.training.compile=on", "--config.training.precision=fp32")
    with monkeypatch.context() as patched:
        patched.setattr(torch, "compile", partial(torch.compile, backend=_failing("forward")))
        patched.setattr(precision, "missing_compiler", lambda _: None)
        assert main.run([*command, "--config.training.num_steps=2"]) == 0
    assert "compilation failed, goes on without" in capsys.readouterr().err
    state = json.loads((tmp_path / "checkpoints/step_00000002/state.json").read_text())
    assert state["how"]["compile"] is False
    automatic = [part.replace("compile=on", "compile=auto") for part in command]
    assert main.run([*automatic, "--config.training.num_steps=3"]) == 0
    assert "not compiled: as the run began" in capsys.readouterr().err


@pytest.mark.usefixtures("quick_compiler")
def test_what_the_network_refuses_is_not_taken_for_a_failure(monkeypatch: pytest.MonkeyPatch):
    said: list[str] = []
    monkeypatch.setattr(compilation, "say", said.append)
    wrapped = PrecisionBackbone(Small(), torch.float32, compiled=True)
    x, c_noise = batch()
    with pytest.raises(ValueError, match=r"x must have 3 channels, got 1"):
        wrapped(x[:, :1], c_noise)
    wrapped(x, c_noise)
    assert said == ["compiling the network, which may take minutes"]
    assert wrapped._call is not None and not wrapped._call.failed


@pytest.mark.usefixtures("quick_compiler")
def test_inference_compiles_for_the_largest_batch_alone():
    net = Small().eval()
    fast = InferenceBackbone(net, torch.float32, compiled=True)
    with torch.no_grad():
        for size, shapes in ((2, 1), (4, 2), (3, 2), (4, 2)):
            x, c_noise = batch(size)
            torch.testing.assert_close(fast(x, c_noise), net(x, c_noise), rtol=1e-4, atol=1e-5)
            assert fast._call is not None and len(fast._call._known) == shapes
    x, c_noise = batch()
    (gradient,) = torch.autograd.grad(fast(x.requires_grad_(), c_noise).sum(), x)
    assert gradient.shape == x.shape and len(fast._call._known) == 2


def test_many_networks_are_compiled_each_for_itself(monkeypatch: pytest.MonkeyPatch):
    torch._dynamo.reset()
    made: list[Any] = []

    def keep(graph: Any, _inputs: Any) -> Any:
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    x, c_noise = batch()
    for count in range(1, 12):
        net = Small()
        # in the same memory layout, on which the last bits of convolutions depend
        plain = InferenceBackbone(net, torch.float32)
        with torch.no_grad():
            assert torch.equal(InferenceBackbone(net, torch.float32, compiled=True)(x, c_noise), plain(x, c_noise))
        assert len(made) == count


def test_a_copy_compiles_its_own_network(quick_compiler: pytest.MonkeyPatch):
    import copy

    wrapped = PrecisionBackbone(Small(), torch.float32, compiled=True)
    x, c_noise = batch()
    with torch.no_grad():
        first = wrapped(x, c_noise)
        twin = copy.deepcopy(wrapped)
        nn.init.zeros_(wrapped.inner.conv_out.weight)
        assert torch.equal(twin(x, c_noise), first)


@pytest.mark.slow
@pytest.mark.skipif(missing_compiler("cpu") is not None, reason="no C++ compiler works here")
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_the_real_compiler_gives_the_same_numbers(dtype: torch.dtype):
    torch._dynamo.reset()
    net = network(channels=32, channel_mult=(1,), attention_resolutions=())
    x, c_noise = batch()
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    wrapped = PrecisionBackbone(net, dtype, compiled=True)
    truth = net.double()(x.double(), c_noise)
    truth.square().mean().backward()
    gradients = {name: p.grad.float() for name, p in net.named_parameters() if p.grad is not None}
    net.float().zero_grad()
    out = wrapped(x, c_noise)
    out.square().mean().backward()
    assert float((out - truth).detach().norm() / truth.detach().norm()) < tolerance
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert float((parameter.grad - gradients[name]).norm()) < 5 * tolerance * float(gradients[name].norm()), name
    frozen = InferenceBackbone(net, dtype, compiled=True)
    with torch.no_grad():
        assert float((frozen(x, c_noise) - truth).norm() / truth.norm()) < tolerance
    assert wrapped._call is not None and frozen._call is not None
    assert not wrapped._call.failed and not frozen._call.failed
