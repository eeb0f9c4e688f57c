"""The pages of docs/howto are followed, step by step; the commands of all pages name keys that exist."""

import importlib
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import ROOT, TINY

import main
from commands.flags import check_flags, parse_flags
from commands.listing import REGISTRIES
from configs.default import get_default_config
from experiment.config import load_config

HOWTO = sorted((ROOT / "docs" / "howto").glob("*.md"))
BRIEF = [
    "--config.training.num_steps=2",
    "--config.training.checkpoint_every=2",
    "--config.restore.num_images=2",
    "--config.restore.samples_per_image=2",
    "--config.segment.num_images=2",
    "--config.segment.samples_per_image=2",
    "--config.edit.num_images=4",
    "--config.interpolate.weights=0.5",
    "--config.sampling.batch_size=16",
]
BRIEF_OF = {"classify": ["--config.eval.num_images=4", "--config.eval.vlb_steps_per_image=4"]}
# numbers of a page that decide how long a command takes, and the most of each here
MOST = {"num_steps": 8, "num_samples": 8, "num_images": 8, "batch_size": 64, "shared_images": 3, "num_updates": 2}
# pages of many commands, each of which has tests of its own
LONG = ("classify", "edit", "interpolate", "progressive", "segment", "cascade", "notebook")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of each block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def _commands(text: str) -> list[list[str]]:
    """The arguments of main.py in all shell blocks; a line may end in a backslash."""
    lines = "".join(block for language, block in _blocks(text) if language == "sh").replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[line.index("main.py") + 1 :] for line in words if "main.py" in line]


def _shortened(argument: str) -> str:
    """An argument whose number is the most allowed, if it is larger."""
    return re.sub(
        rf"\b({'|'.join(MOST)})=(\d+)", lambda found: f"{found[1]}={min(int(found[2]), MOST[found[1]])}", argument
    )


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=pytest.mark.slow if page.stem in LONG else (), id=page.stem) for page in HOWTO],
)
def test_what_a_page_tells_to_do_can_be_done(
    page: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(tiny_run, tmp_path / "runs" / "vp" / "digits")
    for k in range(20):
        path = tmp_path / "pictures" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(path)

    for module, name in REGISTRIES.values():  # what a page registers goes when it is done
        registry = getattr(importlib.import_module(module), name)
        monkeypatch.setattr(registry, "_factories", dict(registry._factories))

    names: dict[str, Any] = {}
    for language, block in _blocks(page.read_text()):
        file = re.match(r"# (\w+\.py)\n", block)
        if file:
            (tmp_path / file[1]).write_text(block)
        elif language == "python":
            for name in [name for name in sys.modules if name.startswith("_plugin_my_")]:  # as commands import files
                monkeypatch.setitem(sys.modules, name.removeprefix("_plugin_"), sys.modules[name])
            exec(compile(block, str(page), "exec"), names)
        elif language == "sh" and "torchrun" not in block:
            for arguments in _commands(f"```sh\n{block}```"):
                # a page's own settings come last, so that they win
                shortened = [_shortened(argument) for argument in arguments]
                assert main.run([*TINY, *BRIEF, *BRIEF_OF.get(page.stem, []), *shortened]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_a_page_name_flags_and_keys_that_exist(page: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    text = page.read_text()
    commands = _commands(text)
    assert len(commands) == len(re.findall(r"^[^`\"\n]*main\.py --(?!config FILE)", text, flags=re.MULTILINE))
    for arguments in commands:
        if "--list" in arguments:
            continue
        options, overrides = parse_flags(arguments)
        check_flags(options.mode, vars(options))
        load_config(options.config, overrides, defaults=get_default_config())
