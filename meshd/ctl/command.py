"""What a command of meshctl is. One registration says all of it: see `Command`, and meshd/ctl/commands/."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from meshd.ctl import client
from meshd.ctl.client import CallError
from meshd.ctl.text import Style
from meshd.schemas import DIALECT, Schema

JSON_VERSION = 1
EXIT_CODES = {
    "ok": 0,
    "error": 1,
    "usage": 2,
    "not_found": 3,
    "unreachable": 4,
    "denied": 5,
    "timeout": 6,
    "funds": 7,
    "policy": 8,
    "degraded": 9,
}
EXIT_MEANINGS = {
    "ok": "done",
    "error": "it failed",
    "usage": "the command line is wrong",
    "not_found": "there is no such destination, peer, channel or key",
    "unreachable": "no daemon answers",
    "denied": "not for this user",
    "timeout": "no answer in time",
    "funds": "not enough money",
    "policy": "the node's rules forbid it",
    "degraded": "done, and something is wrong with the node",
}

Renderer = Callable[[Any, Style], str]
Params = Callable[[argparse.Namespace], dict[str, Any]]


class UsageError(Exception):
    """The command line is wrong; the message says how, and how it is right."""


@dataclass(slots=True)
class Context:
    """What a command's `run` has: the command line, the daemon, and the last answer of a repeated command."""

    options: argparse.Namespace
    previous: Any = None  # the last result, under --watch
    previous_at: float = 0.0  # time.monotonic()

    def call(self, method: str, **params: Any) -> Any:
        """The result of a method of the daemon. Raises CallError."""
        return client.call(self.options.socket, method, params, timeout=self.options.timeout)

    def say(self, text: str) -> None:
        """To the person, and never into the result."""
        print(text, file=sys.stderr, flush=True)

    def agreed(self, question: str) -> bool:
        """Asks. Raises UsageError where nobody can answer; `--yes` comes before it."""
        if self.options.yes:
            return True
        if self.options.json or not sys.stdin.isatty():
            raise UsageError("this moves money or changes the node: add --yes")
        print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command. With `method` it asks the daemon that, with `params`; with `run` it does what that says."""

    words: str  # "price set": a group and a word, or a word
    help: str  # a sentence
    example: str  # a command line that works
    result: Schema  # of what --json shows as "result"
    render: Renderer  # the result as text
    method: str | None = None
    params: Params = lambda _: {}
    run: Callable[[Context], Any] | None = None
    arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None
    # Asked before anything is done, unless --yes; None: nothing to ask this time.
    question: Callable[[argparse.Namespace], str | None] | None = None
    watch: bool = False  # takes --watch
    live: bool = False  # is watched unless told otherwise
    exit_word: Callable[[Any], str] = lambda _: "ok"  # of EXIT_CODES, by the result
    aliases: tuple[str, ...] = field(default=())  # other names of the last word

    def answer(self, context: Context) -> Any:
        if self.run is not None:
            return self.run(context)
        if self.method is None:
            raise ValueError(f"{self.words} has neither method nor run")
        return context.call(self.method, **self.params(context.options))


def envelope(command: Command) -> Schema:
    """The JSON Schema of what `meshctl COMMAND --json` prints; each line of --watch is one such object."""
    version = {"const": JSON_VERSION}
    done = {
        "type": "object",
        "properties": {"version": version, "command": {"const": command.words}, "result": command.result},
        "required": ["version", "command", "result"],
    }
    error = {
        "type": "object",
        "properties": {
            "version": version,
            "error": {
                "type": "object",
                "properties": {
                    "code": {"type": "string", "enum": [word for word in EXIT_CODES if word != "ok"]},
                    "message": {"type": "string"},
                },
                "required": ["code", "message"],
            },
        },
        "required": ["version", "error"],
    }
    name = command.words.replace(" ", "-")
    return {
        "$schema": DIALECT,
        "$id": f"urn:meshd:meshctl:{name}:{JSON_VERSION}",
        "title": f"meshctl {command.words} --json",
        "description": command.help,
        "oneOf": [done, error],
    }


def choice_error(text: str, expected: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"expected {expected}, not {text!r}")


def whole(low: int, high: int, what: str = "") -> Callable[[str], int]:
    """An argparse type: a whole number in bounds. `what` says more of it."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not low <= int(text) <= high:
            raise choice_error(text, f"{low} to {high}{what}")
        return int(text)

    return parse


def seconds(text: str) -> float:
    """An argparse type."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise choice_error(text, "seconds above 0")
    return value


__all__ = ["CallError", "Command", "Context", "UsageError", "envelope", "seconds", "whole"]
