"""Writes TOML: the standard library only reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's too, but for DEL, which TOML wants escaped, and surrogates, which it does not know.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_value(item)}' for key, item in value.items())} }}"
    raise TypeError(f"no TOML for {type(value).__name__}")


def _lines(table: Mapping[str, Any]) -> str:
    return "".join(f"{key} = {_value(value)}\n" for key, value in table.items())


def dump(document: Mapping[str, Mapping[str, Any] | list[Mapping[str, Any]]]) -> str:
    """A document of tables and of arrays of tables, one level deep, as the daemon's configuration is."""
    parts = []
    for name, content in document.items():
        if isinstance(content, Mapping):
            parts.append(f"[{name}]\n{_lines(content)}")
        else:
            parts += [f"[[{name}]]\n{_lines(table)}" for table in content]
    return "\n".join(parts)
