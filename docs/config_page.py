"""Write docs/config.md, the reference of all config keys: ``python -m docs.config_page``.

Keys, order and text are those of ``configs/default.py``: a key's meaning is the comment beside it or above it, and a
section's introduction is the docstring of the function that makes it.
"""

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from configs.default import get_default_config
from sde_lib import sde_defaults
from sde_lib.catalog import SDES

ROOT = Path(__file__).resolve().parent.parent

HEAD = """\
# Config reference

Every key, with its default. A config file starts from these and changes what it needs to:

```python
from configs.default import get_default_config


def get_config():
    config = get_default_config()
    config.data.dataset = "cifar10"
    config.training.batch_size = 64
    return config
```

Any key can be set on the command line too, as in `--config.training.batch_size=64` or `--config.sampling.classes=3,7`.
Names and types are checked; an unknown key is answered with the nearest one. `python main.py --list KIND` lists the
names that may be used: conditions, correctors, datasets, edit_methods, grids, likelihoods, losses, operators,
parameterizations, posteriors, predictors, samplers, sdes.

This page is written by `python -m docs.config_page` from the comments of `configs/default.py`.
"""

SDE = """\
## sde

`sde.name` chooses the noise schedule; the other keys of the section are the options of that SDE, which may be left out.
"""


def write_page() -> str:
    """The text of docs/config.md."""
    source = (ROOT / "configs" / "default.py").read_text()
    functions = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    comments = _comments(source)
    config = get_default_config()
    top = {
        target.attr: _meaning(comments, statement)
        for statement in functions["get_default_config"].body
        for target in getattr(statement, "targets", [])
        if isinstance(target, ast.Attribute)
    }
    sections = {key for key in top if isinstance(config[key], ConfigDict)}
    lines = [HEAD, *_table("", {key: said for key, said in top.items() if key not in sections}, config)]
    for name in [key for key in top if key in sections]:
        if name == "sde":
            lines += ["", SDE, *_sdes()]
        else:
            function = functions[f"_{name}"]
            keys = next(node for node in ast.walk(function) if isinstance(node, ast.Dict))
            pairs = zip(keys.keys, keys.values, strict=True)
            said = {ast.literal_eval(key): _meaning(comments, value, key) for key, value in pairs if key is not None}
            head = re.sub(r"docs/(\w+\.md)", r"[\1](\1)", ast.get_docstring(function) or "")
            lines += ["", f"## {name}", "", head, "", *_table(name, said, config[name])]
    return "\n".join(lines) + "\n"


def _comments(source: str) -> dict[int, tuple[str, bool]]:
    """Comments by line, each with whether the line holds nothing else."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = (token for token in tokens if token.type == tokenize.COMMENT)
    return {t.start[0]: (t.string.lstrip("# "), t.line.strip().startswith("#")) for t in found}


def _meaning(
    comments: dict[int, tuple[str, bool]], value: ast.expr | ast.stmt, key: ast.expr | ast.stmt | None = None
) -> str:
    """The comment lines right above a key, then the comment beside its value."""
    line, words = (key or value).lineno - 1, []
    while line in comments and comments[line][1]:
        words.insert(0, comments[line][0])
        line -= 1
    beside = comments.get(value.end_lineno or 0)
    return " ".join(words + ([beside[0]] if beside else []))


def _table(section: str, meanings: dict[str, str], values: Any) -> list[str]:
    prefix = f"{section}." if section else ""
    rows = [f"| `{prefix}{key}` | {_shown(values[key])} | {_cell(said)} |" for key, said in meanings.items()]
    return ["| key | default | meaning |", "|---|---|---|", *rows]


def _sdes() -> list[str]:
    lines = ["| `sde.name` | the SDE | options and their defaults |", "|---|---|---|"]
    for name, said in SDES.described().items():
        if SDES.get(name).__module__.startswith("sde_lib."):  # those of plugins are not the project's
            options = ", ".join(f"`{key}={value}`" for key, value in sde_defaults(name).items())
            lines.append(f"| `{name}` | {_cell(said)} | {options or 'see its class'} |")
    return lines


def _shown(value: object) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, ConfigDict):
        return ", ".join(f"`{key}={one}`" for key, one in value.items()) or "none"
    if isinstance(value, tuple):
        return f"`{','.join(map(str, value))}`" if value else "`()`"
    return f"`{value}`" if value != "" else '`""`'


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    (ROOT / "docs" / "config.md").write_text(write_page())
