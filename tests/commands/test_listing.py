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
    lines = {line.split()[0]: line.partition(" ")[2].strip() for line in capsys.readouterr().out.splitlines()}
    registered = getattr(importlib.import_module(module), registry)
    room = module.split(".")[0]
    # not what other tests have registered
    ours = [name for name in registered.names() if registered.get(name).__module__.split(".")[0] == room]
    assert len(ours) >= 3 and set(ours) <= set(lines)
    for name in ours:
        line = lines[name]
        assert len(line) <= 120 and len(line.split()) > 2 and "`" not in line and line[-1] not in ".:,;", line
