"""The pages of docs/reference, each made from the declarations that the programs themselves run on."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
from collections.abc import Iterable
from typing import Any, cast

from prometheus_client.parser import text_string_to_metric_families

from meshd import schemas
from meshd.config import ARRAYS, TABLES
from meshd.config_reference import reference
from meshd.control import Method
from meshd.ctl.command import EXIT_CODES, EXIT_MEANINGS, Command
from meshd.ctl.commands import COMMANDS
from meshd.ctl.main import build_parser
from meshd.daemon import Daemon
from meshd.metrics import Snapshot, exposition
from meshd.rpc import methods
from meshd.schemas import Schema

_MADE = "<!-- Made by tools/reference; change the code that it is made from. -->"


def all_pages() -> dict[str, str]:
    """By file name in docs/reference."""
    return {
        "meshctl.md": meshctl_page(),
        "configuration.md": configuration_page(),
        "rpc.md": rpc_page(),
        "metrics.md": metrics_page(),
    }


def _page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", _MADE, *(part.strip("\n") for part in parts)]) + "\n"


def _table(headers: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    headers = list(headers)
    lines = [headers, ["---"] * len(headers), *([*row] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def meshctl_page() -> str:
    codes = _table(("code", "with --json", "meaning"), [
        (str(code), "" if word == "ok" else f"`{word}`", EXIT_MEANINGS[word]) for word, code in EXIT_CODES.items()
    ])  # fmt: skip
    intro = """
Every command takes `--json`: one object on stdout, `{"version": 1, "command": ..., "result": ...}` or
`{"version": 1, "error": {"code": ..., "message": ...}}`; what is said to people besides goes to stderr. With `--watch`
it is one such object a line. The JSON Schema of each is in [schemas](schemas/README.md); `meshctl schema` prints it,
too. A field may be added within a version; one that is there keeps its name, unit and meaning. Money is msat, as the
names say. Commands that move money or change who is carried ask first; with `--json`, or without a terminal, they want
`--yes`."""
    parser = build_parser()
    return _page("meshctl", intro, "## Exit codes", codes, *(_command(parser, command) for command in COMMANDS))


def _command(parser: argparse.ArgumentParser, command: Command) -> str:
    helped = io.StringIO()
    with contextlib.redirect_stdout(helped), contextlib.suppress(SystemExit):
        parser.parse_args([*command.words.split(), "--help"])
    lines = helped.getvalue().splitlines()
    # What every command takes is said once, above.
    usage = " ".join(" ".join(itertools.takewhile(bool, lines)).removeprefix("usage: ").split())
    for common in ("[-h] ", "[--socket PATH] ", "[--json] ", "[--timeout SECONDS] "):
        usage = usage.replace(common, "")
    usage = usage.replace("[--timeout SECONDS]", "").strip()
    parts = [f"## meshctl {command.words}", command.help, f"```sh\n{usage}\n```"]
    rows = [row for row in _arguments(parser, command) if row[0] not in _COMMON]
    if rows:
        parts.append(_table(("argument", "meaning"), rows))
    parts.append(f"Example: `{command.example}`")
    return "\n\n".join(parts)


_COMMON = ("`-h`, `--help`", "`--socket PATH`", "`--json`", "`--timeout SECONDS`")


def _arguments(parser: argparse.ArgumentParser, command: Command) -> list[tuple[str, str]]:
    for word in command.words.split():
        choices = next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = cast("argparse.ArgumentParser", choices[word])
    rows = []
    for action in parser._actions:
        metavar = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        takes = "" if action.nargs == 0 else f" {metavar}" if action.nargs != "?" else f" [{metavar}]"
        names = [f"`{option}{takes}`" for option in action.option_strings] or [f"`{metavar}`"]
        rows.append((", ".join(names), action.help or ""))
    return rows


def configuration_page() -> str:
    parts = [
        "The file is TOML, `/etc/meshd/meshd.toml` unless `--config` says another. Every key has a default but those "
        "marked *required*; unknown tables and keys are errors. `meshd example` prints a file with all of them, "
        "`meshd check` says what is wrong with one."
    ]
    for table, keys in itertools.groupby(reference(), key=lambda key: key.table):
        doc = " ".join((TABLES[table].__doc__ or "").split())
        rows = [
            (
                f"`{key.name}`",
                "*required*" if key.is_required else "" if key.default is None else f"`{key.default}`",
                key.expected,
                key.doc,
            )
            for key in keys
        ]
        header = f"[[{table}]]" if table in ARRAYS else f"[{table}]"
        parts += [f"## {header}", doc, _table(("key", "default", "takes", "meaning"), rows)]
    return _page("Configuration", *parts)


class _Nobody:
    """A daemon that is only described: the table of its methods needs none of its parts."""

    def __getattr__(self, name: str) -> Any:
        return _Nobody()


def method_table() -> dict[str, Method]:
    return methods(cast("Daemon", _Nobody()))


def rpc_page() -> str:
    intro = """
JSON-RPC 2.0 over the Unix socket `/run/meshd/meshd.sock`: one object a line, no batches. `rpc.discover` gives this
page as data, with the JSON Schema of every result. Methods marked *writes* are for root, the daemon's own user and the
members of `control_group`; the others are for everybody else too where `control_others` in `[node]` is "read"."""
    codes = _table(("code", "meaning"), [
        ("-32700, -32600, -32601, -32603", "as JSON-RPC 2.0 says"), ("-32602", "a parameter is wrong"),
        ("-32001", "no such destination, peer or channel"), ("-32002", "not for this user"),
        ("-32003", "it took too long"), ("-32004", "understood, but it cannot be done now"),
        ("-32005", "not enough money"), ("-32006", "this node's rules forbid it"),
    ])  # fmt: skip
    parts = [intro, "## Errors", codes]
    for name, method in sorted(method_table().items()):
        parts.append(f"## {name}")
        parts.append(method.doc + (" *Writes.*" if method.writes else ""))
        if method.params:
            rows = [
                (f"`{key}`", param.kind, "yes" if param.required else "no", param.doc)
                for key, param in method.params.items()
            ]
            parts.append(_table(("parameter", "kind", "required", "meaning"), rows))
        fields = list(_fields(dict(method.result)))
        if fields:
            parts.append(_table(("field of the result", "type", "meaning"), fields))
    return _page("Control socket", *parts)


def _fields(schema: Schema, path: str = "") -> Iterable[tuple[str, str, str]]:
    kinds = schema.get("type", "any")
    kind = " or ".join(kinds) if isinstance(kinds, list) else kinds
    if (path and not (kind == "object" and not path.endswith("]"))) or "additionalProperties" in schema:
        words = ", ".join("null" if word is None else f"`{word}`" for word in schema.get("enum", ()))
        yield f"`{path}`", kind, ": ".join(part for part in (schema.get("description", ""), words) if part)
    for name, item in schema.get("properties", {}).items():
        yield from _fields(item, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from _inside(schema["items"], f"{path}[]")


def _inside(items: Schema, path: str) -> Iterable[tuple[str, str, str]]:
    if "properties" not in items:
        return
    for name, item in items["properties"].items():
        yield from _fields(item, f"{path}.{name}")


def sample(schema: Schema) -> Any:
    """Something that the schema allows, with one of each list: enough to see what is made of it."""
    kinds = schema.get("type", "null")
    kind = kinds[0] if isinstance(kinds, list) else kinds
    if kind == "object":
        values = schema.get("additionalProperties")
        others = {"x": sample(values) if isinstance(values, dict) else 1}
        return {name: sample(item) for name, item in schema.get("properties", {}).items()} or others
    if kind == "array":
        return [sample(schema["items"])]
    if "enum" in schema:
        return schema["enum"][0]
    if "pattern" in schema:
        return "00" * 32  # all of ours are hexadecimal
    return {"string": "x", "integer": 1, "number": 1.0, "boolean": True, "null": None}[kind]


def metrics_page() -> str:
    snapshot = Snapshot(
        sample(schemas.STATUS), [sample(schemas.NEIGHBOUR)], [sample(schemas.LEDGER)], [sample(schemas.CHANNEL)]
    )
    rows = []
    for family in text_string_to_metric_families(exposition(snapshot).decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for item in family.samples for label in item.labels}
        rows.append((f"`{name}`", family.type, ", ".join(sorted(labels)), family.documentation))
    intro = """
`GET http://127.0.0.1:PORT/metrics`, where `metrics_port` in `[node]` says the port; for programs on this machine only.
[docs/monitoring](../monitoring/README.md) has rules for alerts and a dashboard."""
    return _page("Metrics", intro, _table(("metric", "type", "labels", "meaning"), rows))
