"""meshctl against a daemon that says what the test wants, through a real socket; and what its tables look like."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshd.ctl import client, render
from meshd.ctl import text as texts
from meshd.ctl.command import EXIT_CODES, Command, Renderer, envelope
from meshd.ctl.commands import COMMANDS
from meshd.ctl.main import build_parser, main
from tests.meshd.ctl_answers import ANSWERS, CHEAP, GOLDEN, GOLDEN_PATH, PATH
from tests.meshd.played_daemon import Daemon
from tests.meshd.schema import closed, validate

PLAIN = texts.Style(colour=False)
ASKING = [command for command in COMMANDS if command.method is not None]


@pytest.mark.parametrize("command", ASKING, ids=lambda command: command.words)
def test_tables_and_texts(command: Command) -> None:
    assert command.method is not None
    validate(ANSWERS[command.method], closed(command.result))
    assert command.render(ANSWERS[command.method], PLAIN) == GOLDEN[command.method]


@pytest.mark.parametrize("command", ASKING, ids=lambda command: command.words)
def test_colours_change_nothing_else(command: Command) -> None:
    assert command.method is not None
    coloured = command.render(ANSWERS[command.method], texts.Style(colour=True))
    for code in ("1", "2", "31", "32", "33", "0"):
        coloured = coloured.replace(f"\x1b[{code}m", "")
    assert coloured == GOLDEN[command.method]


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (render.neighbours, "No neighbours."),
        (render.routes, "No routes."),
        (render.channels, "No channels."),
        (render.ledger, "No accounts."),
        (render.credit, "No debts are settled on credit."),
    ],
)
def test_nothing_to_show_is_said(command: Renderer, text: str) -> None:
    assert command([], PLAIN) == text


def test_nothing_to_close_is_said() -> None:
    assert render.closed({"channels": [], "txid": None}, PLAIN) == "No channel to close."


def test_paths_that_are_none() -> None:
    own = PATH | {"origin": True, "chosen": None, "hops": None}
    assert render.path(own, PLAIN) == "10.1.0.7 is reached through this node itself (10.1.0.0/24)."
    assert render.path(PATH | {"chosen": None, "hops": None}, PLAIN) == "No route to 10.1.0.7."


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (texts.size(0), "0 B"),
        (texts.size(999), "999 B"),
        (texts.size(1000), "1.0 kB"),
        (texts.size(3 * 10**15), "3000.0 TB"),
        (texts.price(0), "0 sat/MB"),
        (texts.price(1), "0.000001 sat/MB"),
        (texts.price(4_294_967_294), "4,294.967294 sat/MB"),
        (texts.money(-999), "-999 msat"),
        (texts.money(-1500), "-1.5 sat"),
        (texts.money(1_000_000), "1,000 sat"),
        (texts.duration(0.9), "0s"),
        (texts.duration(3600), "1h 0m"),
        (texts.duration(59), "59s"),
    ],
)
def test_units(shown: str, text: str) -> None:
    assert shown == text


def test_control_characters_do_not_reach_the_terminal() -> None:
    shown = render.routes([CHEAP | {"interface": "\x1b[2Jeth0\n"}], PLAIN)
    assert "\x1b" not in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "method", "params"),
    [
        ("status", "status", {}),
        ("neighbours", "neighbours", {}),
        ("routes", "routes", {}),
        ("channels", "channels", {}),
        ("ledger", "ledger", {}),
        ("credit list", "credit", {}),
        ("credit redeem fd00::1 250000 --yes", "credit.redeem", {"peer": "fd00::1", "amount_msat": 250_000}),
        ("chain backends", "chain.backends", {}),
        ("price show", "price.show", {}),
        ("price set 200000", "price.set", {"fee_msat_per_gb": 200_000}),
        ("price set not-for-sale", "price.set", {"fee_msat_per_gb": 2**32 - 1}),
        ("interface cost wlan0 256", "interface.cost", {"interface": "wlan0", "cost": 256}),
        ("reload", "reload", {}),
        ("pay hold", "pay.hold", {}),
        ("pay resume", "pay.resume", {}),
        ("channel close --all --yes", "channel.close", {"peer": None}),
        ("price auto", "price.auto", {"on": True}),
        ("price auto --off --capacity 20", "price.auto", {"on": False, "capacity_mbit": 20}),
        ("budget show", "budget.show", {}),
        ("budget set --per-day 9 --per-hour 0", "budget.set", {"per_hour_msat": 0, "per_day_msat": 9}),
        ("peer list", "peer.list", {}),
        ("peer block abc --yes", "peer.set", {"peer": "abc", "rule": "blocked"}),
        ("peer allow abc", "peer.set", {"peer": "abc", "rule": "normal"}),
        ("peer free abc --yes", "peer.set", {"peer": "abc", "rule": "free"}),
        ("metrics", "metrics", {}),
        ("channel close --peer fd00::1 --yes", "channel.close", {"peer": "fd00::1"}),
        ("channel close 0123 --yes", "channel.close", {"channel": "0123"}),
        ("channel open ab --yes", "channel.open", {"peer": "ab"}),
        ("channel open ab --capacity 200000 --yes", "channel.open", {"peer": "ab", "capacity_sat": 200_000}),
        ("receipts", "receipts", {}),
        ("wallet balance", "wallet.balance", {}),
        ("wallet address", "wallet.address", {}),
        ("wallet address --label roof", "wallet.address", {"label": "roof"}),
        ("wallet send bcrt1q 500 --yes", "wallet.send", {"address": "bcrt1q", "amount_sat": 500}),
        (
            "wallet send bcrt1q 500 --fee 2.5 --label x --yes",
            "wallet.send",
            {"address": "bcrt1q", "amount_sat": 500, "fee_sat_per_vb": 2.5, "label": "x"},
        ),
        ("wallet sweep --yes", "wallet.sweep", {}),
        ("wallet sweep --to bcrt1q --everything --yes", "wallet.sweep", {"address": "bcrt1q", "everything": True}),
        ("wallet labels", "wallet.labels", {}),
    ],
)
def test_commands_call_methods(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], line: str, method: str, params: dict[str, Any]
) -> None:
    assert main(line.split()) == 0
    assert [(request["method"], request["params"]) for request in daemon.requests] == [(method, params)]
    assert capsys.readouterr().out == GOLDEN[method] + "\n"
    assert main(["--json", *line.split()]) == 0
    shown = json.loads(capsys.readouterr().out)
    command = max((c for c in COMMANDS if line.startswith(c.words)), key=lambda c: len(c.words))
    validate(shown, envelope(command))
    assert shown == {"version": 1, "command": command.words, "result": ANSWERS[method]}


@pytest.mark.parametrize(
    ("code", "word", "exit_code"),
    [
        (-32001, "not_found", 3),
        (-32002, "denied", 5),
        (-32003, "timeout", 6),
        (-32602, "usage", 2),
        (-32004, "error", 1),
        (-32005, "funds", 7),
        (-32006, "policy", 8),
        (-32603, "error", 1),
    ],
)
def test_refusals_have_exit_codes(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], code: int, word: str, exit_code: int
) -> None:
    daemon.error = code, "because\x1b[2J"
    assert main(["status"]) == exit_code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "meshctl: because?[2J\n")
    assert main(["status", "--json"]) == exit_code
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"version": 1, "error": {"code": word, "message": "because\x1b[2J"}}
    validate(shown, envelope(COMMANDS[0]))
    assert EXIT_CODES[word] == exit_code


@pytest.mark.parametrize(
    "line",
    [
        "",
        "rout",
        "stat",
        "path",
        "price",
        "price set -1",
        "price set 4294967295",
        "price set ٣",
        "price set 1.5",
        "interface cost wlan0",
        "interface cost wlan0 0",
        "interface cost wlan0 65535",
        "channel close",
        "channel close --all --peer x",
        "channel close --all 0123 --yes",
        "channel open ab",  # moves money: asks, and there is nobody to answer
        "channel open ab --capacity 4999 --yes",
        "wallet send bcrt1q 500",
        "wallet send bcrt1q 0 --yes",
        "wallet send bcrt1q -5 --yes",
        "wallet send bcrt1q 500 --fee 0 --yes",
        "wallet send bcrt1q 500 --fee nan --yes",
        "wallet sweep --everything",
        "channel close --all",  # would ask, and there is nobody to answer
        "status --timeout 0",
        "status --timeout nan",
        "status extra",
        "status --watch 0",
        "status --watch --count 0",
        "price set 1 --watch",
    ],
)
def test_wrong_usage(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert main(line.split()) == 2
    assert capsys.readouterr().err.startswith("meshctl: ")
    assert main([*line.split(), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"
    assert daemon.requests == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "agreed"), [("y\n", True), ("YES\n", True), ("\n", False), ("", False)])
def test_closing_asks_first(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: str, agreed: bool
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert main(["channel", "close", "--all"]) == (0 if agreed else 1)
    assert len(daemon.requests) == agreed
    assert "Close all channels?" in capsys.readouterr().err


def test_path_asks_the_nodes_on_the_way(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["path", "10.1.0.7"]) == 0
    assert capsys.readouterr().out == GOLDEN_PATH + "\n"
    assert [request["method"] for request in daemon.requests] == ["path", "path.hops"]
    assert main(["path", "10.1.0.7", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    command = next(command for command in COMMANDS if command.words == "path")
    validate(shown["result"], closed(command.result))
    for line, params in (
        ("path ::1 --source ::2", {"destination": "::1", "source": "::2"}),
        ("path ::1 --local", {"destination": "::1"}),
    ):
        daemon.requests.clear()
        assert main([*line.split(), "--json"]) == 0
        assert [(request["method"], request["params"]) for request in daemon.requests] == [("path", params)]
        assert json.loads(capsys.readouterr().out)["result"]["hops"] is None


def test_no_route_is_shown_and_is_not_found(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ANSWERS, "path", PATH | {"chosen": None, "alternatives": []})
    assert main(["path", "10.1.0.7"]) == 3
    assert capsys.readouterr().out == "No route to 10.1.0.7.\n"


def test_unreachable_and_denied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--socket", str(tmp_path / "nothing")]) == 4
    assert main(["--socket", str(tmp_path / "nothing"), "status"]) == 4
    assert "no daemon answers" in capsys.readouterr().err
    assert main(["status", "--socket", "x" * 200]) == 4


def test_closed_socket_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(client, "_exchange", refuse)  # root, who may run this, is refused nothing
    assert main(["status"]) == 5


def test_silence_times_out(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.silent = True
    assert main(["status", "--timeout", "0.05"]) == 6
    daemon.done.set()


@pytest.mark.parametrize(
    ("reply", "exit_code"),
    [
        (b"", 4),
        (b'{"jsonrpc"', 4),
        (b"junk\n", 1),
        (b"[]\n", 1),
        (b"{}\n", 1),
        (b'{"error":3}\n', 1),
        (b'{"result":{}}\n', 1),
        (b'{"result":null}\n', 1),
    ],
)
def test_bad_answers(daemon: Daemon, capsys: pytest.CaptureFixture[str], reply: bytes, exit_code: int) -> None:
    daemon.reply = reply
    assert main(["status"]) == exit_code
    assert capsys.readouterr().err.startswith("meshctl: ")


@pytest.mark.parametrize(
    ("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)]
)
def test_colours_only_where_they_are_wanted(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], coloured: bool
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["routes"]) == 0
    assert ("\x1b[" in terminal.getvalue()) is coloured


def test_watching_says_it_again(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["price", "show", "--watch", "0.001", "--count", "3"]) == 0
    assert capsys.readouterr().out == "\n".join([GOLDEN["price.show"] + "\n"] * 3)
    assert main(["price", "show", "--watch", "0.001", "--count", "2", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["result"] for line in lines] == [ANSWERS["price.show"]] * 2
    daemon.error = -32603, "broken"
    assert main(["status", "--watch", "--json"]) == 1


def test_watching_outlives_a_daemon_that_starts_anew(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.replies = [None, b"", None]
    assert main(["status", "--watch", "0.001", "--count", "3", "--json"]) == 0
    first, second, third = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == third
    assert second["error"]["code"] == "unreachable"


def test_every_command_is_documented_with_a_working_example(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    for command in COMMANDS:
        assert command.help.endswith(".")
        program, *arguments = command.example.split()
        assert program == "meshctl"
        assert parser.parse_args(arguments).command is command
        with pytest.raises(SystemExit) as stopped:
            parser.parse_args([*command.words.split(), "--help"])
        assert stopped.value.code == 0
        assert command.example in capsys.readouterr().out


def test_schema_of_every_command_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS[::9]:
        assert main(["schema", *command.words.split()]) == 0
        assert json.loads(capsys.readouterr().out) == envelope(command)
    assert main(["schema", "weather"]) == 3


def test_starts_without_the_daemons_libraries() -> None:
    code = "import sys, meshd.ctl.main; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"trio", "asyncio", "nacl", "msgspec", "pyroute2", "importlib.metadata"} & set(modules)


def test_reader_that_leaves_early_gets_no_traceback(daemon: Daemon) -> None:
    command = f"{sys.executable} -m meshd.ctl.main routes | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert done.stderr == b""


def test_a_tunnel_is_shown_by_the_interface_under_it() -> None:
    shown = render.routes([CHEAP | {"interface": "mw0123456789ab", "under": "wlan7"}], PLAIN)
    assert "wlan7 (tunnel)" in shown
    assert "mw0123456789ab" not in shown
