"""The benchmark of transformers: both networks are one function, and its ratios are of one round."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import transformer


def test_a_run_gives_operations_seconds_and_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = iter([4.0, 9.0, 2.0, 3.0, 6.0, 9.0, 2.0, 1.0] + [1.0, 1.0, 3.0, 2.0] * 2)
    monkeypatch.setattr(transformer, "seconds", lambda _, processor: next(clock) if processor else 0.0)
    arguments = ["--configs", "digits", "--size", "tiny", "--batch-size", "2", "--rounds", "2", "--device", "cpu"]
    transformer.main([*arguments, f"--output={tmp_path / 'found.json'}"])
    found = json.loads((tmp_path / "found.json").read_text())
    ours, unet = found["networks"]
    # every pixel is a patch of 96 features in 4 blocks, of which each has 12 * 96^2 weights
    linear = 64 * 4 * 12 * 96**2 + 64 * 2 * 96 + 4 * 6 * 96**2 + 2 * 96**2 + 256 * 96 + 96**2
    assert ours["mflop_per_image"] == pytest.approx(2 * (linear + 4 * 2 * 64**2 * 96) / 1e6, rel=1e-6)
    assert (ours["parameters"], unet["parameters"], unet["mflop_per_image"]) == (722_209, 1_573_489, 72.572928)
    assert ours["forward_seconds"] == 5.0 and unet["forward_backward_seconds"] == 2.0
    assert ours["forward_over_unet"] == {"median": pytest.approx(5 / 12), "least": 1 / 3, "most": 0.5}
    assert found["diffusers"]["distance"] < 1e-5
    assert found["diffusers"]["forward_over_diffusers"] == {"median": 3.0, "least": 3.0, "most": 3.0}
    # the embedders once more, of the second of two blocks
    embedders = 256 * 32 + 32 + 32 * 32 + 32 + 1001 * 32
    counts = found["diffusers"]["parameters"]
    assert counts["diffusers"] - counts["ours"] == embedders


def test_another_function_is_found_out(monkeypatch: pytest.MonkeyPatch):
    def wrong(ours: transformer.DiT) -> torch.nn.Module:
        theirs = their_network(ours)
        torch.nn.init.constant_(theirs.get_parameter("proj_out_2.bias"), 0.1)
        return theirs

    their_network = transformer.their_network
    monkeypatch.setattr(transformer, "their_network", wrong)
    with pytest.raises(AssertionError, match="another function than diffusers'"):
        transformer.compare_with_diffusers("tiny", 2, 1, torch.device("cpu"))
