"""The benchmark of speed: both networks are one function, and a run of seconds gives the whole report."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import operators, precision, speed, unet_pair
from benchmarks.unet_pair import Side, Workbench
from models import NetworkScoreModel
from models.backbones import UNet

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Workbench("tiny", batch_size=3, device=torch.device("cpu"), sampling_steps=4)


def test_both_networks_are_the_same_function(bench: Workbench):
    ours, theirs = bench.forward(Side(True, FP32))(), bench.forward(Side(False, FP32))()
    assert float(theirs.norm()) > 1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert ours.dtype == bench.forward(Side(False, BF16))().dtype == FP32


def test_a_network_that_is_another_function_is_found_out(bench: Workbench, monkeypatch: pytest.MonkeyPatch):
    def wrong(ours: NetworkScoreModel) -> torch.nn.Module:
        theirs = their_network(ours)
        torch.nn.init.constant_(theirs.get_parameter("conv_out.bias"), 0.1)
        return theirs

    their_network = unet_pair.their_network
    sides = speed.our_sides(compiled=False)
    errors = speed.check_equal(bench, sides)
    assert errors["ours fp32"] < 1e-5 < errors["ours bf16"] < 0.1
    assert errors["diffusers bf16"] == pytest.approx(errors["ours bf16"], rel=1)
    monkeypatch.setattr(unet_pair, "their_network", wrong)
    with pytest.raises(AssertionError, match="ours fp32 is off by"):
        speed.check_equal(bench, sides)


def test_both_sides_draw_the_same_images(bench: Workbench):
    ours, theirs = bench.sampling(Side(True, FP32))(), bench.sampling(Side(False, FP32))()
    # theirs ends at its table's first entry, ours at no noise at all
    assert float((ours - theirs).norm() / theirs.norm()) < 0.02


@pytest.mark.slow
def test_both_sides_train(bench: Workbench):
    curves = {}
    for side in (Side(False, FP32), Side(False, BF16), Side(True, FP32), Side(True, BF16)):
        torch.manual_seed(0)
        step = bench.training_step(side)
        curve = curves[side.label] = [step() for _ in range(30)]
        assert sum(curve[20:]) < 0.92 * sum(curve[:10]), side.label
    # ours has the same times, noise and dropout in both precisions
    assert curves["ours bf16"] == pytest.approx(curves["ours fp32"], rel=0.02)


def test_ratios_are_of_one_round_and_shares_of_the_formulas_work(bench: Workbench, monkeypatch: pytest.MonkeyPatch):
    clock = iter([4.0, 2.0, 1.0, 9.0, 6.0, 1.0])  # seconds of diffusers fp32, diffusers bf16 and ours, twice
    monkeypatch.setattr(speed, "seconds", lambda work: next(clock))
    monkeypatch.setattr(speed, "works", lambda *_: {k: lambda: lambda: None for k in (*speed.BASES[:2], "ours bf16")})
    rows = speed.measure(bench, "forward", (), 2, {"fp32": lambda: 1e8, "bf16": lambda: 1e9})
    assert [row["side"] for row in rows] == ["diffusers fp32", "diffusers bf16", "ours bf16"]
    assert rows[2]["over diffusers fp32"] == {"median": 6.5, "least": 4.0, "most": 9.0}
    assert rows[2]["over diffusers bf16"] == {"median": 4.0, "least": 2.0, "most": 6.0}
    assert rows[2]["images_per_second"] == 3.0
    flops = 3 * speed.forward_flops(bench.ours, (3, 16, 16))
    assert rows[2]["share_of_peak"]["median"] == pytest.approx(flops / 1e9)
    assert rows[0]["share_of_peak"]["most"] == pytest.approx(flops / 4.0 / 1e8)


@pytest.mark.slow
def test_a_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "speed.json"
    before = torch.get_num_threads()
    options = ["--quick", "--no-compile", "--rounds=1", "--batch-size=2", "--sampling-steps=4", "--likelihood-steps=2"]
    speed.main([*options, "--device=cpu", "--no-memory", f"--threads={before}", f"--output={output}"])
    report: dict[str, Any] = json.loads(output.read_text())
    assert report["machine"]["threads"] == before and report["machine"]["torch"] == torch.__version__
    assert set(report["tasks"]) == set(speed.TITLES)
    labels = ["diffusers fp32", "diffusers bf16", "ours fp32", "ours bf16"]
    for task, rows in report["tasks"].items():
        assert [row["side"] for row in rows] == ([speed.PLAIN, *labels[2:]] if task == "likelihood" else labels)
        assert all(len(row["seconds"]) == 1 and row["images_per_second"] > 0 for row in rows)
        base = f"over {rows[0]['side']}"
        assert base not in rows[0] and all(row[base]["least"] > 0 for row in rows[1:])
        assert all(("share_of_peak" in row) == (task == "forward") for row in rows)
        profiled = [row["side"] for row in rows if "profile" in row]
        assert profiled == (["diffusers fp32", "ours bf16"] if task in speed.PROFILED else [])
    said = capsys.readouterr().out
    for title in ("forward, batch 2", "training step", "sampling, 4 steps of DDIM", "likelihood, 2 steps of Heun"):
        assert title in said
    assert said.count("diffusers fp32") > 6


def test_the_profile_tells_kinds_of_work_apart():
    a, image, weight = torch.randn(256, 256), torch.randn(4, 32, 32, 32), torch.randn(32, 32, 3, 3)

    def work() -> None:
        for _ in range(3):
            torch.nn.functional.conv2d(image, weight)
        torch.bmm(a[None], a[None])
        torch.mm(a, a)
        a.exp()

    found = operators.shares(work, torch.device("cpu"))
    assert sum(found.values()) == pytest.approx(1)
    assert set(found) == {"convolutions", "attention", "linear layers", "norms, activations, additions, copies"}
    kinds = {
        "aten::convolution_backward": "convolutions, backward",
        "mkldnn::_convolution_pointwise": "convolutions",
        "aten::_scaled_dot_product_flash_attention_for_cpu": "attention",
        "mkldnn::_linear_pointwise": "linear layers",
        "aten::addmm": "linear layers",
        "aten::_fused_adamw_": "optimizer",
        "aten::native_group_norm": "norms, activations, additions, copies",
    }
    assert {name: operators.kind_of(name) for name in kinds} == kinds


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own():
    given = ["--quick", "--batch-size=2", "--device=cpu", "--threads=1", "--no-compile"]
    filled = torch.ones(200 * 2**18)  # 200 MiB of this process
    memory = speed.peak_memory("forward", "ours fp32", given)
    assert memory is not None and 0.1 < memory < speed.own_peak_memory(torch.device("cpu")) + 1
    assert filled.sum() > 0
    assert speed.peak_memory("forward", "no such side", given) is None


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--batch-size=0", "argument --batch-size: must be a whole number from 1 to 1000000, got '0'"),
        ("--rounds=x", "argument --rounds: must be a whole number from 1 to 1000000, got 'x'"),
        ("--threads=0", "argument --threads: must be a whole number from 1 to 4096, got '0'"),
        ("--sampling-steps=1001", "argument --sampling-steps: must be a whole number from 1 to 1000, got '1001'"),
        ("--likelihood-steps=0", "argument --likelihood-steps: must be a whole number from 1 to 1000000, got '0'"),
        ("--tasks=forward,", "argument --tasks: invalid choice: 'forward,'"),
        (
            "--device=meta",
            "argument --device: device 'meta' cannot be used (it does not do float64); use auto, cpu or cuda",
        ),
        ("--output=/dev/null/x.json", "argument --output: '/dev/null/x.json' cannot be written ("),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_measured(
    option: str, said: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        speed.main([option])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_a_trial_does_not_replace_the_figures(tmp_path: Path):
    assert speed.parse([]).output == speed.parse(["--tasks", *speed.TITLES]).output == speed.RESULT
    assert speed.parse(["--quick"]).output is None and speed.parse(["--tasks=forward"]).output is None
    named = tmp_path / "new" / "speed.json"
    assert speed.parse(["--quick", f"--output={named}"]).output == named
    assert not named.exists() and named.parent.is_dir()


def test_a_spread_takes_two_seeds(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        precision.parse(["--seeds=1"])
    assert ended.value.code == 2
    assert "must be a whole number from 2" in capsys.readouterr().err.splitlines()[-1]


def test_the_work_of_a_network_is_that_of_its_products():
    # three layers' worth of 16 x 16 products, embeddings, and two attention products of 16 tokens
    net = UNet(image_size=4, in_channels=1, channels=16, channel_mult=(1,), num_res_blocks=1, attention_resolutions=())
    pixels, wide = 16, 64
    embed = 16 * wide + wide * wide
    blocks = [(16, 16), (16, 16), (16, 16), (32, 16), (32, 16)]
    convolutions = pixels * 9 * (1 * 16 + sum(i * o + o * o for i, o in blocks) + 16 * 1)
    skips = pixels * sum(i * o for i, o in blocks if i != o)
    projections = sum(wide * o for _, o in blocks)
    attention = pixels * (16 * 48 + 16 * 16) + 2 * pixels * pixels * 16
    expected = 2 * (embed + convolutions + skips + projections + attention)
    assert speed.forward_flops(net, (1, 4, 4)) == expected
    assert speed.forward_flops(UNet(image_size=32), (3, 32, 32)) == pytest.approx(12.44e9, rel=1e-3)
