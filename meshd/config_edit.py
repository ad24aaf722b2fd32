"""One key of a configuration file: look it up, or change it and leave every other line as it is.

Keys are written as `routing.hello_interval`, and in tables of which there may be several as `interface.wlan0.cost`: by
the value of the table's first key, or by its number (1 is the first).
"""

from __future__ import annotations

import dataclasses
import grp
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshd.config import ARRAYS, TABLES, Config, ConfigError, parse
from meshd.config_kinds import Kind, nearest

_GROUP = "meshd"


class NoSuchKeyError(Exception):
    """There is no such key, or no such table; the message says which there are."""


@dataclass(frozen=True, slots=True)
class Place:
    """A key: `table` as in the file, `number` of the table (from 1) where there may be several, and `name`."""

    table: str
    number: int
    name: str

    @property
    def header(self) -> str:
        return f"[[{self.table}]]" if self.table in ARRAYS else f"[{self.table}]"

    @property
    def kind(self) -> Kind:
        kind: Kind = _fields(self.table)[self.name].metadata["kind"]
        return kind


def _fields(table: str) -> dict[str, dataclasses.Field[Any]]:
    return {item.name: item for item in dataclasses.fields(TABLES[table])}


def find(key: str, text: str) -> Place:
    """Raises NoSuchKeyError, and ConfigError for a file that is none."""
    table, _, rest = key.partition(".")
    if table not in TABLES:
        raise NoSuchKeyError(f"no table {table}{nearest(table, TABLES)}")
    which, _, name = rest.rpartition(".") if table in ARRAYS else ("", "", rest)
    if name not in _fields(table):
        raise NoSuchKeyError(f"no key {name} in {table}{nearest(name, _fields(table))}")
    return Place(table, _number(table, which, text), name)


def _number(table: str, which: str, text: str) -> int:
    if table not in ARRAYS:
        return 1
    first = next(iter(_fields(table)))
    rows = _document(text).get(table, [])
    for number, row in enumerate(rows, start=1):
        if which in (str(row.get(first)), str(number)):
            return number
    known = ", ".join(str(row.get(first)) for row in rows) or "none"
    raise NoSuchKeyError(f"no [[{table}]] {which!r}; there are: {known}")


def _document(text: str) -> dict[str, Any]:
    parse(text)  # so that what follows need not doubt it
    return tomllib.loads(text)


def value_of(place: Place, text: str) -> tuple[Any, bool]:
    """What the key has in the file, or has by default (None: nothing), and whether it is given. Raises ConfigError."""
    rows = _document(text).get(place.table, {})
    row = rows[place.number - 1] if isinstance(rows, list) else rows
    if place.name in row:
        return row[place.name], True
    default = _fields(place.table)[place.name].default
    if default in (dataclasses.MISSING, None):
        return None, False
    from meshd.config_reference import toml  # noqa: PLC0415  it describes what is read here

    return tomllib.loads(f"x = {toml(default)}")["x"], False


def changed(place: Place, written: str, text: str) -> str:
    """The text with the key set to `written`: TOML, or bare words, which are taken as a string.

    Raises ConfigError where the value, or the file with it, is not right.
    """
    line = f"{place.name} = {_as_toml(written)}"
    lines = text.splitlines()
    start, end = _range(place, lines)
    for index in range(start, end):
        if re.match(rf"\s*{place.name}\s*=", lines[index]):
            lines[index : _value_end(lines, index, end)] = [line]
            break
    else:
        commented = [i for i in range(start, end) if re.match(rf"#\s?{place.name}\s*=", lines[i])]
        lines[commented[0] if commented else start : commented[0] + 1 if commented else start] = [line]
    made = "\n".join(lines) + "\n"
    parse(made)
    return made


def _as_toml(written: str) -> str:
    try:
        tomllib.loads(f"x = {written}")
    except tomllib.TOMLDecodeError:
        quoted = written.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}"'
    return written


def _range(place: Place, lines: list[str]) -> tuple[int, int]:
    """The lines of the table, without its header. A table that is not there is appended."""
    header = re.compile(rf"\s*{re.escape(place.header)}\s*(#.*)?$")
    starts = [index for index, line in enumerate(lines) if header.match(line)]
    if len(starts) < place.number:
        lines += ["", place.header]
        return len(lines), len(lines)
    start = starts[place.number - 1] + 1
    end = next((i for i in range(start, len(lines)) if re.match(r"\s*#?\[", lines[i])), len(lines))
    return start, end


def _value_end(lines: list[str], start: int, end: int) -> int:
    """After the last line of a value, which may go over several."""
    for stop in range(start + 1, end + 1):
        try:
            tomllib.loads("\n".join(lines[start:stop]))
        except tomllib.TOMLDecodeError:
            continue
        return stop
    raise ConfigError(f"line {start + 1} cannot be changed by itself; edit the file")


def write(path: Path, text: str) -> None:
    """All of it or nothing, and as readable as it was; a new file by its owner and the group meshd. Raises OSError."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        status = path.stat()
        mode, owner = status.st_mode & 0o7777, (status.st_uid, status.st_gid)
    except FileNotFoundError:
        mode, owner = _of_a_new_file()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, mode)
        if owner != (-1, -1) and os.geteuid() == 0:
            os.fchown(descriptor, *owner)
        file.write(text)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)


def _of_a_new_file() -> tuple[int, tuple[int, int]]:
    """Mode and owner: there may be keys in it, and the daemon of the package, in a group of its own, must read it."""
    try:
        return 0o640, (0, grp.getgrnam(_GROUP).gr_gid)
    except KeyError:
        return 0o640 if os.geteuid() == 0 else 0o600, (-1, -1)


def differences(old: Config, new: Config) -> list[str]:
    """The keys in which two configurations differ, as `find` takes them; a table of several is named as a whole."""
    found = []
    for table in TABLES:
        attribute = ARRAYS.get(table, table)
        before, after = getattr(old, attribute), getattr(new, attribute)
        if table in ARRAYS:
            found += [table] if before != after else []
            continue
        found += [f"{table}.{name}" for name in _fields(table) if getattr(before, name) != getattr(after, name)]
    return found
