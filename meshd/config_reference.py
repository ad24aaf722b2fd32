"""The reference of the configuration file, made from its declarations in `meshd.config`."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
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
            default = None if is_required or item.default is None else toml(item.default)
            expected, doc = item.metadata["kind"].expected, item.metadata["doc"]
            yield KeyReference(table, item.name, expected, default, doc, is_required)


Values = Mapping[str, Sequence[Mapping[str, Any]]]
_EXAMPLE: Values = {"interface": [{"name": "wlan0"}]}


def example_config(values: Values = _EXAMPLE) -> str:
    """A configuration file with every key explained: at its default, commented, or as `values` says (tables of each
    name, as they would be read from TOML)."""
    lines = [
        "# meshd configuration. Keys that are commented out have the value shown; tables that are commented out are",
        "# examples. `meshctl config check` says what is wrong with it.",
    ]
    for table, kind in TABLES.items():
        lines += ["", *(f"# {line.strip()}" for line in (kind.__doc__ or "").splitlines())]
        if table not in ARRAYS:
            lines += _example_table(f"[{table}]", kind, dict(*values.get(table, ())))
        for given in values.get(table, ()) if table in ARRAYS else ():
            lines += _example_table(f"[[{table}]]", kind, given)
        if table in ARRAYS and not values.get(table):
            lines += [f"#{line}" for line in _example_table(f"[[{table}]]", kind, None) if not line.startswith("# ")]
    return "\n".join(lines) + "\n"


def _example_table(header: str, kind: type[Any], given: Mapping[str, Any] | None) -> list[str]:
    """`given` None: it is an example, in which nothing is left out."""
    lines = [header]
    for item in dataclasses.fields(kind):
        lines.append(f"# {item.metadata['doc']} Takes {item.metadata['kind'].expected}.")
        if given is not None and item.name in given:
            lines.append(f"{item.name} = {toml(given[item.name])}")
            continue
        required = item.default is dataclasses.MISSING
        value = item.metadata["example"] if required or item.default is None else item.default
        lines.append(f"{'' if given is None else '#'}{item.name} = {toml(value)}")
    return lines


def json_schema() -> dict[str, Any]:
    """Of the configuration file, as JSON has it; for editors, and for programs that write it."""
    tables = {}
    for name, kind in TABLES.items():
        properties = {}
        for item in dataclasses.fields(kind):
            properties[item.name] = {"description": item.metadata["doc"], **item.metadata["kind"].schema}
            if item.default not in (dataclasses.MISSING, None):
                properties[item.name]["default"] = tomllib.loads(f"x = {toml(item.default)}")["x"]
        required = [item.name for item in dataclasses.fields(kind) if item.default is dataclasses.MISSING]
        table = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        tables[name] = {"type": "array", "items": table} if name in ARRAYS else table
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:meshd:configuration",
        "title": "The configuration of meshd",
        "type": "object",
        "properties": tables,
        "additionalProperties": False,
    }


def toml(value: Any) -> str:
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
