"""Tables of a TOML file into frozen, typed objects: each key is declared once, with its range, default and meaning.

The reader, its error messages and the reference in docs/scenarios.md are all made from the declarations. (meshd reads
its own configuration likewise; the simulator imports nothing of it.)
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


class ScenarioError(Exception):
    """The scenario cannot be used. The message names the table, the key, the value and what was expected."""


class InvalidError(Exception):
    """A value is not what its key takes; the message replaces the standard one when it is not empty."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a key takes: `expected` says it to people, `parse` makes the value or raises InvalidError."""

    expected: str
    parse: Callable[[Any], Any]


def text(expected: str = "a string", pattern: str = r"[^\0\n]*") -> Kind:
    def parse(raw: Any) -> str:
        if not isinstance(raw, str) or not re.fullmatch(pattern, raw):
            raise InvalidError
        return raw

    return Kind(expected, parse)


def choice(*words: str) -> Kind:
    def parse(raw: Any) -> str:
        if raw not in words:
            raise InvalidError(f"one of {', '.join(words)}{nearest(raw, words) if isinstance(raw, str) else ''}")
        return str(raw)

    return Kind(" or ".join(f'"{word}"' for word in words), parse)


def integer(low: int, high: int) -> Kind:
    def parse(raw: Any) -> int:
        if not isinstance(raw, int) or isinstance(raw, bool) or not low <= raw <= high:
            raise InvalidError
        return raw

    return Kind(f"an integer from {low} to {high}", parse)


def number(low: float, high: float, unit: str = "a number") -> Kind:
    def parse(raw: Any) -> float:
        if not isinstance(raw, int | float) or isinstance(raw, bool) or not low <= raw <= high:
            raise InvalidError
        return float(raw)

    return Kind(f"{unit} from {low:g} to {high:g}", parse)


def boolean() -> Kind:
    def parse(raw: Any) -> bool:
        if not isinstance(raw, bool):
            raise InvalidError
        return raw

    return Kind("true or false", parse)


def span(kind: Kind) -> Kind:
    """One value, or [low, high] from which each node or link draws its own. Read as (low, high)."""

    def parse(raw: Any) -> tuple[Any, Any]:
        if not isinstance(raw, list):
            value = kind.parse(raw)
            return value, value
        if len(raw) != 2:
            raise InvalidError
        low, high = kind.parse(raw[0]), kind.parse(raw[1])
        if low > high:
            raise InvalidError
        return low, high

    return Kind(f"{kind.expected}, or [low, high] to draw from", parse)


_NODE_WORDS = r"all|relay|gateway|access_point|buyer|leaf|random:[1-9]\d*|name:.+"


def nodes() -> Kind:
    """A selector: `simulator.scenario.select` says which nodes it means."""

    def parse(raw: Any) -> tuple[int | str, ...]:
        items = raw if isinstance(raw, list) else [raw]
        for item in items:
            is_number = isinstance(item, int) and not isinstance(item, bool) and item >= 0
            if not is_number and not (isinstance(item, str) and re.fullmatch(_NODE_WORDS, item)):
                raise InvalidError
        return tuple(items)

    return Kind('a node, a role, "all", "random:N", "name:NAME", or a list of these', parse)


def links() -> Kind:
    """Pairs of nodes; an empty tuple means all links."""

    def parse(raw: Any) -> tuple[tuple[int, int], ...]:
        if raw == "all":
            return ()
        if not isinstance(raw, list) or not raw:
            raise InvalidError
        whole = integer(0, 2**31)
        for pair in raw:
            if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
                raise InvalidError
        return tuple((int(whole.parse(a)), int(whole.parse(b))) for a, b in raw)

    return Kind('"all", or a list of pairs of nodes such as [[0, 1], [1, 2]]', parse)


def key(kind: Kind, doc: str, default: Any = dataclasses.MISSING) -> Any:
    return field(default=default, metadata={"kind": kind, "doc": doc})


def read_table(where: str, kind: type[Any], raw: Any) -> Any:
    """An object of the dataclass `kind`. Raises ScenarioError."""
    if not isinstance(raw, dict):
        raise ScenarioError(f"{where} must be a table")
    fields = {item.name: item for item in dataclasses.fields(kind)}
    for name in raw:
        if name not in fields:
            raise ScenarioError(f"{where}: unknown key {name}{nearest(name, fields)}")
    for name, item in fields.items():
        if item.default is dataclasses.MISSING and name not in raw:
            raise ScenarioError(f"{where}: {name} is missing ({item.metadata['kind'].expected})")
    return kind(**{name: _value(where, fields[name], value) for name, value in raw.items()})


def _value(where: str, item: dataclasses.Field[Any], raw: Any) -> Any:
    kind: Kind = item.metadata["kind"]
    try:
        return kind.parse(raw)
    except InvalidError as error:
        shown = f'"{raw}"' if isinstance(raw, str) else raw
        raise ScenarioError(f"{where}: {item.name} = {shown}: expected {str(error) or kind.expected}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """For the end of a message: the nearest known word; all of them when none is near."""
    words = list(known)
    near = difflib.get_close_matches(name, words, n=1)
    return f'; did you mean "{near[0]}"?' if near else f"; known are {', '.join(words)}"
