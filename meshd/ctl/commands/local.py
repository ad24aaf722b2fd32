"""Commands that need no daemon."""

from __future__ import annotations

import argparse
import json
from typing import Any

from meshd import schemas
from meshd.ctl.command import CallError, Command, Context, envelope
from meshd.ctl.text import Record, Style

GROUPS: dict[str, str] = {}
SHELLS = ("bash", "zsh", "fish")


def _completion_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="whose")


def _completion(context: Context) -> Record:
    import shtab  # noqa: PLC0415  no other command has need of them

    from meshd.ctl.main import build_parser  # noqa: PLC0415

    shell = context.options.shell
    return {"shell": shell, "script": shtab.complete(build_parser(), shell=shell)}


def _schema_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", metavar="COMMAND", nargs="+", help="such as: price show")


def _schema(context: Context) -> Any:
    from meshd.ctl.commands import COMMANDS  # noqa: PLC0415  which has this module in it

    wanted = " ".join(context.options.words)
    for command in COMMANDS:
        if command.words == wanted:
            return envelope(command)
    raise CallError("not_found", f"no command {wanted}; meshctl --help lists them")


def _script(result: Record, style: Style) -> str:  # noqa: ARG001  a renderer like the others
    return str(result["script"])


def _indented(result: Any, style: Style) -> str:  # noqa: ARG001
    return json.dumps(result, indent=1)


COMMANDS = (
    Command(
        words="completion",
        help="A script that lets a shell complete meshctl's command lines.",
        example="meshctl completion bash",
        result=schemas.record(shell=schemas.text("", *SHELLS), script=schemas.text("to be sourced")),
        render=_script,
        run=_completion,
        arguments=_completion_arguments,
    ),
    Command(
        words="schema",
        help="The JSON Schema of what a command prints with --json.",
        example="meshctl schema price show",
        result={"type": "object", "description": "a JSON Schema, draft 2020-12"},
        render=_indented,
        run=_schema,
        arguments=_schema_arguments,
    ),
)
