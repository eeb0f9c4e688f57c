"""Imports run one way.

runtime <- {sde_lib, data} <- models <- {samplers, likelihood} <- experiment <- {tasks, training, evaluation}
<- commands <- main, and tasks <- proofs.
"""

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_CORE = {"runtime", "sde_lib", "data", "models", "samplers", "likelihood"}
MAY_IMPORT = {
    "runtime": set(),
    "sde_lib": {"runtime"},
    "data": {"runtime"},
    "models": {"runtime", "sde_lib", "data"},
    "samplers": {"runtime", "sde_lib", "models"},
    "likelihood": {"runtime", "sde_lib", "models"},
    "experiment": _CORE,
    "tasks": _CORE | {"experiment"},
    "training": _CORE | {"experiment"},
    "evaluation": _CORE | {"experiment"},
    "proofs": _CORE | {"experiment", "tasks"},
    "commands": _CORE | {"experiment", "tasks", "training", "evaluation"},
    "configs": set(),
}
_FOLDERS = (*MAY_IMPORT, "benchmarks", "docs", "examples", "tests")
# Third-party packages of the rooms that promise to have few.
THIRD_PARTY = {
    "runtime": {"filelock", "psutil", "torch", "tqdm"},
    "models/backbones": {"torch", "jaxtyping"},
    "configs": {"ml_collections"},
    "sde_lib": {"torch", "numpy", "scipy", "jaxtyping", "torchdiffeq", "torchode"},
    "samplers": {"torch", "jaxtyping", "numpy", "scipy"},
    "likelihood": {"torch", "jaxtyping", "numpy"},
}


def _imports(path: Path) -> Iterator[str]:
    """Top-level names of absolute imports, wherever they stand in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_packages_import_downwards_only(package: str):
    for path in (ROOT / package).rglob("*.py"):
        ours = set(_imports(path)) & MAY_IMPORT.keys() - {package}
        assert ours <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {ours - MAY_IMPORT[package]}"


@pytest.mark.parametrize("room", sorted(THIRD_PARTY))
def test_rooms_keep_to_their_third_party_packages(room: str):
    for path in (ROOT / room).rglob("*.py"):
        foreign = set(_imports(path)) - MAY_IMPORT.keys() - sys.stdlib_module_names
        assert foreign <= THIRD_PARTY[room], f"{path.relative_to(ROOT)} imports {foreign - THIRD_PARTY[room]}"


def test_backbones_know_no_sde():
    for path in (ROOT / "models" / "backbones").rglob("*.py"):
        assert "sde_lib" not in set(_imports(path)), path
        relative = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom) and node.level > 1
        ]
        assert not relative, f"{path} reaches out of backbones"


def test_within_a_package_imports_are_relative():
    for package in MAY_IMPORT.keys() - {"configs"}:
        for path in (ROOT / package).rglob("*.py"):
            assert package not in set(_imports(path)), f"{path.relative_to(ROOT)} imports {package} absolutely"


def test_config_objects_stop_at_training_and_evaluation():
    for package in ("sde_lib", "models", "samplers", "likelihood", "data"):
        for path in (ROOT / package).rglob("*.py"):
            assert "ml_collections" not in set(_imports(path)), path


def test_every_package_is_ours_and_installed():
    for name in MAY_IMPORT:
        module = importlib.import_module(name)
        assert module.__file__ is not None
        assert Path(module.__file__).resolve().parent.parent == ROOT
    left_out = re.findall(r'"(\w+)\*"', (ROOT / "setup.py").read_text())
    there = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert there - set(left_out) == set(MAY_IMPORT)
    # setuptools finds only what has one
    assert all((path.parent / "__init__.py").is_file() for name in MAY_IMPORT for path in (ROOT / name).rglob("*.py"))


def test_main_is_short_and_no_module_is_called_utils():
    assert len((ROOT / "main.py").read_text().splitlines()) < 80
    for name in MAY_IMPORT:
        assert not list((ROOT / name).rglob("util*.py"))


def test_no_flat_folder_is_a_room_of_its_own():
    for name in MAY_IMPORT:
        for folder in {path.parent for path in (ROOT / name).rglob("*.py")}:
            lines = sum(len(path.read_text().splitlines()) for path in folder.glob("*.py"))
            assert lines <= 2500, f"{folder} has {lines} lines"


def test_files_can_be_read_in_one_sitting():
    for name in MAY_IMPORT:
        for path in (ROOT / name).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 500, path


def test_docstrings_begin_with_a_noun_or_an_imperative():
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in [*ROOT.glob("*.py"), *(path for folder in _FOLDERS for path in (ROOT / folder).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            head = ast.get_docstring(node) if isinstance(node, kinds) else None
            first = (head or "").split(" ")[0]
            assert first not in {"What", "Where", "How", "Whether", "Which", "Why", "Who"}, f"{path}: {head}"


def test_nothing_in_a_library_package_seeds_globally():
    for package in ("sde_lib", "models", "samplers", "likelihood", "data", "tasks", "evaluation"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.manual_seed", "np.random.seed"):
                    pytest.fail(f"{path.relative_to(ROOT)} seeds globally")


def test_the_repository_ships_no_data_and_no_weights():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        if name.startswith("tests/fixtures/old_runs/"):  # runs of an earlier version, which must go on
            continue
        assert not name.endswith((".pt", ".pth", ".ckpt", ".safetensors", ".npz", ".gz")), name
