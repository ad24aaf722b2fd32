"""meshctl: parse the command line, run one command, show what came of it.

With --json, one object on stdout: {"version": 1, "command": ..., "result": ...} or {"version": 1, "error": {...}};
with --watch, one such object a line. Everything that is said to people besides goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from meshd.ctl.client import CallError
from meshd.ctl.command import EXIT_CODES, EXIT_MEANINGS, JSON_VERSION, Command, Context, UsageError, seconds, whole
from meshd.ctl.commands import COMMANDS, GROUPS
from meshd.ctl.text import Style, printable

DEFAULT_SOCKET = "/run/meshd/meshd.sock"
DEFAULT_WATCH = 2.0
_EXIT_HELP = "exit codes: " + "; ".join(f"{code} {EXIT_MEANINGS[word]}" for word, code in EXIT_CODES.items())
_CLEAR = "\x1b[H\x1b[2J\x1b[3J"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\n{self.format_usage().strip()}")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="meshctl", description="Look at and steer the mesh daemon.", epilog=_EXIT_HELP, allow_abbrev=False
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    _common_arguments(parser, top=True)
    subparsers: dict[str, Any] = {"": parser.add_subparsers(metavar="COMMAND", title="commands")}
    for command in COMMANDS:
        group, _, word = command.words.rpartition(" ")
        if group not in subparsers:
            group_parser = subparsers[""].add_parser(group, help=GROUPS[group], description=GROUPS[group])
            subparsers[group] = group_parser.add_subparsers(metavar="COMMAND", required=True)
        subparser = subparsers[group].add_parser(
            word,
            help=command.help,
            description=command.help,
            epilog=f"example: {command.example}",
            allow_abbrev=False,
            aliases=list(command.aliases),
        )
        _command_arguments(command, subparser)
    return parser


def _command_arguments(command: Command, parser: argparse.ArgumentParser) -> None:
    command.arguments(parser)
    if command.question is not None:
        parser.add_argument("--yes", action="store_true", help="do not ask")
    if command.watch:
        parser.add_argument(
            "--watch",
            metavar="SECONDS",
            type=seconds,
            nargs="?",
            const=DEFAULT_WATCH,
            default=DEFAULT_WATCH if command.live else None,
            help=f"again and again, every {DEFAULT_WATCH:g} s or as said; with --json one object a line",
        )
        parser.add_argument(
            "--count", metavar="N", type=whole(1, 10**9), default=None, help="with --watch: so many times"
        )
    _common_arguments(parser, top=False)
    parser.set_defaults(command=command)


def _common_arguments(parser: argparse.ArgumentParser, *, top: bool) -> None:
    """Taken before and after the command; after it, an absent one must not undo what stood before."""

    def default(value: Any) -> Any:
        return value if top else argparse.SUPPRESS

    socket_path = os.environ.get("MESHD_SOCKET") or DEFAULT_SOCKET
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=default(socket_path),
        help=f"the daemon's control socket (default: $MESHD_SOCKET, or {DEFAULT_SOCKET})",
    )
    parser.add_argument("--json", action="store_true", default=default(False), help="one JSON object, for programs")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=seconds, default=default(35.0), help="wait so long at most (default 35)"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    as_json = "--json" in arguments
    try:
        return _run(arguments)
    except UsageError as error:
        return _fail("usage", str(error), as_json=as_json)
    except CallError as error:
        return _fail(error.word, str(error), as_json=as_json)
    except BrokenPipeError:
        # Whoever read our output has gone (meshctl routes | head); keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: Sequence[str]) -> int:
    options = build_parser().parse_args(arguments)
    if options.version:
        return _print_version()
    command: Command | None = getattr(options, "command", None)
    if command is None:
        raise UsageError("which command? meshctl --help lists them")
    options.is_socket_given = options.socket != DEFAULT_SOCKET
    context = Context(options)
    question = None if command.question is None else command.question(options)
    if question is not None and not context.agreed(question):
        return _fail("error", "not done", as_json=options.json)
    interval: float | None = getattr(options, "watch", None)
    if interval is not None:
        return _watch(command, context, interval)
    result = command.answer(context)
    print(_show(command, result, options), flush=True)
    return EXIT_CODES[command.exit_word(result)]


def _watch(command: Command, context: Context, interval: float) -> int:
    """Until there were so many as asked for, or Ctrl-C, which is how it is meant to end. A daemon that is away is
    waited for, once it has answered."""
    options, times = context.options, 0
    is_screen = sys.stdout.isatty() and not options.json
    word = "ok"
    try:
        while True:
            began = time.monotonic()
            result = None
            try:
                result = command.answer(context)
                shown, word = _show(command, result, options), command.exit_word(result)
            except CallError as error:
                if not times or error.word not in ("unreachable", "timeout"):
                    raise
                word = error.word
                shown = _error(word, str(error)) if options.json else _message(str(error))
            separator = "" if options.json or is_screen or not times else "\n"
            print(f"{_CLEAR if is_screen else separator}{shown}", flush=True)
            context.previous, context.previous_at = result, began
            times += 1
            if options.count is not None and times >= options.count:
                return EXIT_CODES[word]
            time.sleep(max(0.0, began + interval - time.monotonic()))
    except KeyboardInterrupt:
        return EXIT_CODES[word]


def _show(command: Command, result: Any, options: argparse.Namespace) -> str:
    if options.json:
        return json.dumps({"version": JSON_VERSION, "command": command.words, "result": result})
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    try:
        return command.render(result, Style(colour=colour))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CallError("error", "unexpected answer: are meshctl and meshd of the same version?") from error


def _print_version() -> int:
    from importlib.metadata import version  # noqa: PLC0415  slow to import, rarely wanted

    print(f"meshctl {version('meshd')}")
    return 0


def _message(text: str) -> str:
    return "\n".join(printable(line) for line in f"meshctl: {text}".splitlines())


def _error(word: str, message: str) -> str:
    return json.dumps({"version": JSON_VERSION, "error": {"code": word, "message": message}})


def _fail(word: str, message: str, *, as_json: bool) -> int:
    if as_json:
        print(_error(word, message), flush=True)
    else:
        print(_message(message), file=sys.stderr)
    return EXIT_CODES[word]


if __name__ == "__main__":
    sys.exit(main())
