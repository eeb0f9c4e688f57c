"""``--list``: each registered name with a line that says something."""

import importlib

import pytest

import main
from commands.listing import REGISTRIES


@pytest.mark.parametrize("kind", REGISTRIES)
def test_every_name_of_a_kind_has_one_whole_line(kind: str, capsys: pytest.CaptureFixture[str]):
    module, registry = REGISTRIES[kind]
    with pytest.raises(SystemExit, match=r"^0$"):
        main.run(["--list", kind])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == getattr(importlib.import_module(module), registry).names()
    for line in lines:
        assert len(line) <= 140 and len(line.split()) > 3 and "`" not in line and line[-1] not in ".:,;", line
