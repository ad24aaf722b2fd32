"""The reference of the configuration file, made from its declarations in `meshd.config`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from meshd.config import ARRAYS, TABLES


@dataclass(frozen=True, slots=True)
class KeyReference:
    """One key, for the documentation. `default` is TOML; None: there is none (`is_required`: it must be given)."""

    table: str
    name: str
    expected: str
    default: str | None
    doc: str
    is_required: bool


def reference() -> Iterator[KeyReference]:
    """Every key that the file may hold, in the order of the example."""
    for table, kind in TABLES.items():
        for item in dataclasses.fields(kind):
            is_required = item.default is dataclasses.MISSING
            default = None if is_required or item.default is None else _toml(item.default)
            expected, doc = item.metadata["kind"].expected, item.metadata["doc"]
            yield KeyReference(table, item.name, expected, default, doc, is_required)


def example_config() -> str:
    """A configuration file with every key at its default, commented, and one interface."""
    lines = [
        "# meshd configuration. Keys that are commented out have the value shown; those of [[peer]],",
        "# [[filter]], [[redistribute]], [[neighbour]] and [[backend]] are examples.",
    ]
    for table, kind in TABLES.items():
        header = f"[[{table}]]" if table in ARRAYS else f"[{table}]"
        is_example = table in ARRAYS and table != "interface"
        lines += ["", *(f"# {line.strip()}" for line in (kind.__doc__ or "").splitlines())]
        lines.append(f"#{header}" if is_example else header)
        for item in dataclasses.fields(kind):
            lines.append(f"# {item.metadata['doc']} Takes {item.metadata['kind'].expected}.")
            required = item.default is dataclasses.MISSING
            value = item.metadata["example"] if required or item.default is None else item.default
            lines.append(f"{'' if required and not is_example else '#'}{item.name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return '""'
    if isinstance(value, Enum):
        return json.dumps(value.value)
    if isinstance(value, tuple):
        return json.dumps([str(item) for item in value])
    if isinstance(value, str | Path):
        return json.dumps(str(value))
    return repr(value)
