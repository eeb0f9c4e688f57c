"""The scripts of examples/ and the README's, run for a moment."""

import re
import runpy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def _main(name: str) -> Any:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_read_in_a_minute(path: Path):
    assert len(path.read_text().splitlines()) <= 60
    assert f"python examples/{path.name}" in path.read_text()


def test_the_example_of_a_sampler_has_the_order_of_its_method():
    errors = _main("own_sampler")()
    ratios = {name: [a / b for a, b in pairwise(of)] for name, of in errors.items()}
    # DDIM is of order 1, the midpoint rule of order 2
    assert ratios["ddim"] == pytest.approx([2, 2, 2], rel=0.05)
    assert ratios["midpoint_flow"] == pytest.approx([4, 4, 4], rel=0.1)


def test_the_example_of_training_draws_ten_images_of_each_class(tmp_path: Path):
    images = _main("train_and_sample")(steps=3, channels=16, picture=tmp_path / "digits.png")
    assert images.shape == (100, 1, 8, 8) and images.dtype == torch.uint8 and images.float().std() > 0
    assert Image.open(tmp_path / "digits.png").size == (502, 502)


def test_the_example_of_bits_per_dim_measures_both_likelihoods(capsys: pytest.CaptureFixture[str]):
    found = _main("bits_per_dim")(steps=3, channels=16, num_images=4)
    printed = dict(re.findall(r"(\w+) +([\d.]+) ± [\d.]+ bits/dim", capsys.readouterr().out))
    assert set(found) == set(printed) == {"bound", "ode"}
    for name, bits in found.items():
        assert bits.shape == (4,) and bits.dtype == torch.float64
        assert float(printed[name]) == pytest.approx(float(bits.mean()), abs=6e-4)
        # a network that has hardly begun needs more than the log2(17) bits of guessing
        assert bits.mean() > 4.09


def test_the_script_of_the_readme_draws_images():
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len([line for line in script.splitlines() if line.strip()]) <= 20
    assert script.count("steps=1000, ") == 1
    names: dict[str, Any] = {}
    exec(compile(script.replace("steps=1000, ", "steps=3, "), "README.md", "exec"), names)
    assert names["new_images"].shape == (16, 1, 8, 8) and names["new_images"].dtype == torch.uint8
    assert names["new_images"].float().std() > 0
