"""meshctl: ask the daemon, show the answer.

Exit codes: 0 done, 1 error, 2 wrong usage, 3 not found, 4 daemon unreachable, 5 denied, 6 timeout.
With --json, one object on stdout: {"version": 1, "command": ..., "result": ...} or {"version": 1, "error": {...}}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from meshd.ctl import render
from meshd.ctl.client import CallError, call

DEFAULT_SOCKET = "/run/meshd/meshd.sock"
JSON_VERSION = 1
_EXIT_CODES = {"error": 1, "usage": 2, "not_found": 3, "unreachable": 4, "denied": 5, "timeout": 6}
_EXIT_HELP = "exit codes: 0 done, 1 error, 2 wrong usage, 3 not found, 4 daemon unreachable, 5 denied, 6 timeout"


class _UsageError(Exception):
    """The command line is wrong; the message has the usage line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message}\n{self.format_usage().strip()}")


@dataclass(frozen=True, slots=True)
class Command:
    """One command: what it calls, and how the answer is shown."""

    words: str  # "price set"
    help: str
    example: str
    method: str
    renderer: render.Renderer
    arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None
    params: Callable[[argparse.Namespace], dict[str, Any]] = lambda _: {}
    question: Callable[[argparse.Namespace], str] | None = None  # asked first, unless --yes


def _path_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("destination", metavar="DEST", help="an IPv4 or IPv6 address")
    parser.add_argument("--source", metavar="ADDR", help="where the packets come from, for source-specific routes")


def _path_params(options: argparse.Namespace) -> dict[str, Any]:
    source = {} if options.source is None else {"source": options.source}
    return {"destination": options.destination, **source}


def _fee(text: str) -> int:
    if text == "not-for-sale":
        return render.NOT_FOR_SALE
    if not text.isascii() or not text.isdecimal() or not 0 <= int(text) < render.NOT_FOR_SALE:
        raise argparse.ArgumentTypeError(f"expected 0 to {render.NOT_FOR_SALE - 1}, or not-for-sale; not {text!r}")
    return int(text)


def _price_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "fee", metavar="MSAT_PER_GB", type=_fee, help='1000000 is 1 sat/MB; "not-for-sale": carry for nobody'
    )


def _cost_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("interface", metavar="INTERFACE", help="its name")
    parser.add_argument("cost", metavar="COST", type=_cost, help="1 to 65534; lower is preferred; 96 by default")


def _cost(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) <= 65534:
        raise argparse.ArgumentTypeError(f"expected 1 to 65534, not {text!r}")
    return int(text)


def _close_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--all", action="store_true", help="the channels with every peer")
    which.add_argument(
        "--peer", metavar="PEER", help="those with this peer: its identity, the beginning of it, or its overlay address"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _close_question(options: argparse.Namespace) -> str:
    whose = "all channels" if options.all else f"the channels with {options.peer}"
    return f"Close {whose}? What was paid to us through them is claimed on the chain, less the fee."


COMMANDS = (
    Command("status", "This node: identity, interfaces, money.", "meshctl status", "status", render.status),
    Command("neighbours", "Who is in range, and how it stands with them.", "meshctl neighbours", "neighbours",
            render.neighbours),
    Command("tunnels", "The WireGuard tunnels: whose, over what, to where.", "meshctl tunnels", "tunnels",
            render.tunnels),
    Command("routes", "Every route, with metric and price; * is in use.", "meshctl routes --json", "routes",
            render.routes),
    Command("path", "Which way packets to an address go, and why not another.", "meshctl path fd00::1", "path",
            render.path, _path_arguments, _path_params),
    Command("channels", "The payment channels.", "meshctl channels", "channels", render.channels),
    Command("ledger", "What was billed, paid and is owed, for each peer.", "meshctl ledger", "ledger", render.ledger),
    Command("price show", "The fee asked for carrying traffic.", "meshctl price show", "price.show", render.fee),
    Command("price set", "Change the fee asked for carrying traffic.", "meshctl price set 200000", "price.set",
            render.fee, _price_arguments, lambda options: {"fee_msat_per_gb": options.fee}),
    Command("interface cost", "Give an interface another cost, until the next start.",
            "meshctl interface cost wlan0 256", "interface.cost", render.cost, _cost_arguments,
            lambda options: {"interface": options.interface, "cost": options.cost}),
    Command("reload", "Read filters, redistribution, interface costs and MAC keys anew from the file.",
            "meshctl reload", "reload", render.reloaded),
    Command("pay hold", "Stop paying; sellers stop carrying for us once their window is used up.", "meshctl pay hold",
            "pay.hold", render.paying),
    Command("pay resume", "Pay again.", "meshctl pay resume", "pay.resume", render.paying),
    Command("channel close", "Close payment channels on the chain.", "meshctl channel close --all --yes",
            "channel.close", render.closed, _close_arguments, lambda options: {"peer": options.peer},
            _close_question),
)  # fmt: skip
_GROUPS = {
    "price": "Show or change the fee.",
    "interface": "Change an interface.",
    "pay": "Stop or resume payments.",
    "channel": "Close channels.",
}


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="meshctl", description="Look at and steer the mesh daemon.", epilog=_EXIT_HELP, allow_abbrev=False
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    _common_arguments(parser, top=True)
    subparsers: dict[str, Any] = {"": parser.add_subparsers(metavar="COMMAND")}
    for command in COMMANDS:
        group, _, word = command.words.rpartition(" ")
        if group not in subparsers:
            group_parser = subparsers[""].add_parser(group, help=_GROUPS[group], description=_GROUPS[group])
            subparsers[group] = group_parser.add_subparsers(metavar="COMMAND", required=True)
        subparser = subparsers[group].add_parser(
            word, help=command.help, description=command.help, epilog=f"example: {command.example}", allow_abbrev=False
        )
        command.arguments(subparser)
        _common_arguments(subparser, top=False)
        subparser.set_defaults(command=command)
    return parser


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
        "--timeout", metavar="SECONDS", type=_seconds, default=default(35.0), help="wait so long at most (default 35)"
    )


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, not {text!r}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; gives its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    as_json = "--json" in arguments
    try:
        return _run(arguments)
    except _UsageError as error:
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
        raise _UsageError("which command? meshctl --help lists them")
    if command.question is not None and not options.yes and not _agreed(command.question(options), options):
        return _fail("error", "not done", as_json=options.json)
    result = call(options.socket, command.method, command.params(options), timeout=options.timeout)
    print(_show(command, result, options), flush=True)
    # A question that was answered with "nowhere" is an answer, and a script wants to see it.
    nowhere = command.method == "path" and not result["origin"] and result["chosen"] is None
    return _EXIT_CODES["not_found"] if nowhere else 0


def _show(command: Command, result: Any, options: argparse.Namespace) -> str:
    if options.json:
        return json.dumps({"version": JSON_VERSION, "command": command.words, "result": result})
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    try:
        return command.renderer(result, render.Style(colour=colour))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CallError("error", "unexpected answer: are meshctl and meshd of the same version?") from error


def _agreed(question: str, options: argparse.Namespace) -> bool:
    if options.json or not sys.stdin.isatty():
        raise _UsageError("this moves money: add --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _print_version() -> int:
    from importlib.metadata import version  # noqa: PLC0415  slow to import, rarely wanted

    print(f"meshctl {version('meshd')}")
    return 0


def _fail(word: str, message: str, *, as_json: bool) -> int:
    if as_json:
        print(json.dumps({"version": JSON_VERSION, "error": {"code": word, "message": message}}), flush=True)
    else:
        lines = [render.printable(line) for line in f"meshctl: {message}".splitlines()]
        print("\n".join(lines), file=sys.stderr)
    return _EXIT_CODES[word]


if __name__ == "__main__":
    sys.exit(main())
