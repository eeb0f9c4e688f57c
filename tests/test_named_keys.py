"""Each key of the config that a message or a page names is there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs.default import get_default_config
from experiment.config import flatten

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "commands", "configs", "data", "evaluation", "likelihood", "models", "runtime", "samplers", "sde_lib", "training",
)  # fmt: skip
KEYS = {key for key, _ in flatten(get_default_config())}
SECTIONS = [key for key, value in get_default_config().items() if isinstance(value, ConfigDict)]
OPEN = ("sde.", "model.network.", "model.first_stage.")

_SECTION = "|".join(SECTIONS)
# config.training.num_steps, and --config.seed=0
_FULL = re.compile(r"(?<![\w./])(?:--)?config\.([a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*)(?![\w(/])")
# training.num_steps, in prose; training.loss=hybrid
_SHORT = re.compile(rf"(?<![\w./])((?:{_SECTION})\.(?:network\.)?[a-z][a-z0-9_]*)(?![\w(/])")
# of "config.json", "data.sources.npz" and "from experiment import load_run"
_FILES = ("run", "json", "npz", "py", "md", "pt", "pth", "safetensors", "ckpt", "pkl", "yml", "yaml", "png", "txt")


def _named(text: str) -> set[str]:
    keys = {key for pattern in (_FULL, _SHORT) for key in pattern.findall(text)}
    return {key for key in keys if key.rsplit(".", 1)[-1] not in _FILES and not key.startswith(OPEN)}


def _unknown(keys: set[str]) -> set[str]:
    # an attribute of models is no key, nor is a module
    modules = {key for key in keys if list(ROOT.glob(f"{key.replace('.', '/')}*"))}
    return keys - modules - KEYS - {"model.network", "model.first_stage", "model.sde", *SECTIONS}


def _messages(path: Path) -> Iterator[tuple[int, str]]:
    """Strings of the code that are no docstrings; what an f-string puts in is left out."""
    tree = ast.parse(path.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings | inside:
            yield node.lineno, node.value


@pytest.mark.parametrize("room", ROOMS)
def test_every_key_in_a_message_exists(room: str):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {key}"
        for path in sorted((ROOT / room).rglob("*.py"))
        # which speak of other projects' keys, too
        if "pretrained" not in path.parts
        for line, text in _messages(path)
        for key in _unknown(_named(text))
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", *sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")
)])  # fmt: skip
def test_every_key_on_a_page_exists(page: str):
    assert not _unknown(_named((ROOT / page).read_text()))


def test_the_test_finds_what_is_not_there():
    for text in ("set config.sampling.steps", "pass --config.eval.ode_dequantisation=none", "raise eval.max_nfe"):
        assert _unknown(_named(text)), text
    for text in (
        "config.json is damaged",
        "set training.num_steps",
        "see data.npz",
        "model.sde(x)",
        "sde.beta_max",
    ):
        assert not _unknown(_named(text)), text
