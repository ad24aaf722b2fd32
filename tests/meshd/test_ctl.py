"""meshctl against a daemon that says what the test wants, through a real socket; and what its tables look like."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from meshd.ctl import client, render
from meshd.ctl.main import COMMANDS, Command, build_parser, main

PLAIN = render.Style(colour=False)
ALICE = "fd3c:8aa9:32ea:37ba:4f1a:bd0c:2ad6:a6f1"
BOB = "fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f"

STATUS = {
    "name": "n1",
    "version": "0.1.0",
    "identity": "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8",
    "address": ALICE,
    "uptime_seconds": 93784.5,
    "interfaces": [
        {"name": "eth0", "address": "fe80::1", "kind": "wired", "up": True},
        {"name": "wlan0", "address": None, "kind": "wireless", "up": False},
    ],
    "neighbours": 2,
    "routes": 5,
    "fee_msat_per_gb": 100_000,
    "paying": True,
    "chain": {"backend": "kernel", "height": 117, "connected": True},
    "wallet": {"balance_sat": 1_234_567},
    "totals": {"carried_bytes": 104_857_600, "earned_msat": 10_485, "spent_msat": 0},
}
NEIGHBOURS = [
    {
        "interface": "eth0", "link_local": "fe80::2", "identity": "ab" * 32, "address": BOB, "cost": 96, "rxcost": 96,
        "txcost": 96, "rtt_ms": 12.345, "quality": None, "session": "up", "state": "open", "window_msat": 10_000,
        "owed_to_us_msat": 512, "owed_to_them_msat": 0, "bytes_in": 5_120_000, "bytes_out": 999,
        "bytes_free": 0, "bytes_refused": 0, "rate_bits_per_second": None,
    },
    {
        "interface": "wlan0", "link_local": "fe80::3", "identity": None, "address": None, "cost": 65535,
        "rxcost": 65535, "txcost": 256, "rtt_ms": None,
        "quality": {
            "share": 0.2484, "source": "expected throughput", "throughput_kbps": 9937, "tq": None, "signal_dbm": -30,
        },
        "session": "down", "state": "suspended", "window_msat": None,
        "owed_to_us_msat": None, "owed_to_them_msat": None, "bytes_in": 0, "bytes_out": 0,
        "bytes_free": 1234, "bytes_refused": 65_000, "rate_bits_per_second": 64_000,
    },
]  # fmt: skip
OWN = {
    "prefix": f"{ALICE}/128", "source_prefix": None, "interface": None, "next_hop": None,
    "metric": 0, "advertised_metric": 0,
    "price_msat_per_gb": 0, "announced_price_msat_per_gb": 0, "selected": True, "feasible": True, "refused": False,
    "origin": True,
}  # fmt: skip
CHEAP = {
    "prefix": "10.1.0.0/24", "source_prefix": None, "interface": "eth0", "next_hop": "fe80::2",
    "metric": 217, "advertised_metric": 96,
    "price_msat_per_gb": 1_250_000, "announced_price_msat_per_gb": 1_350_000, "selected": True, "feasible": True,
    "origin": False, "refused": False,
}  # fmt: skip
REFUSED = CHEAP | {"prefix": "10.2.0.0/24", "metric": 65535, "selected": False, "refused": True}
DEAR = CHEAP | {
    "interface": "wlan0", "next_hop": "fe80::3", "metric": 65535, "price_msat_per_gb": 2**32 - 1,
    "announced_price_msat_per_gb": None, "selected": False, "feasible": False,
}  # fmt: skip
PATH = {
    "destination": "10.1.0.7", "prefix": "10.1.0.0/24", "source_prefix": None, "origin": False, "chosen": CHEAP,
    "alternatives": [DEAR | {"reason": "unreachable"}],
}  # fmt: skip
CHANNELS = [
    {
        "channel_id": "0123456789abcdef" * 4, "peer": "ab" * 32, "peer_address": BOB, "direction": "out",
        "state": "open", "capacity_sat": 100_000, "cumulative_msat": 12_345_678, "funding": "ef" * 32 + ":0",
        "expiry_height": 2133, "closing_txid": None,
    },
    {
        "channel_id": "fedcba9876543210" * 4, "peer": "ab" * 32, "peer_address": BOB, "direction": "in",
        "state": "closing", "capacity_sat": 50_000, "cumulative_msat": 0, "funding": None, "expiry_height": 300,
        "closing_txid": "cd" * 32,
    },
]  # fmt: skip
LEDGER = [
    {
        "peer": "ab" * 32, "peer_address": BOB, "state": "suspended", "window_msat": 10_000, "billed_msat": 20_500,
        "acknowledged_msat": 20_000, "their_billed_msat": 0, "accepted_msat": 0, "sent_msat": 0,
        "received_msat": 5_001, "balance_msat": -15_499, "counts": {
            "standing": "warned", "finding": "overstated", "theirs": {"sent": 1}, "lost_to_them": 0.02,
            "lost_from_them": 0.0,
        },
    }
]  # fmt: skip
TUNNELS = [
    {
        "interface": "mw0123456789ab", "under": "gateway", "static": True, "identity": "ab" * 32, "address": BOB,
        "endpoint": "192.0.2.1:51820", "port": 40001, "mtu": 1420, "state": "up", "heard_seconds_ago": 1.6,
        "received_bytes": 12_345,
    },
    {
        "interface": "mwba9876543210", "under": "pi", "static": True, "identity": "cd" * 32, "address": "fd00::1",
        "endpoint": None, "port": 51820, "mtu": 1420, "state": "waiting", "heard_seconds_ago": None,
        "received_bytes": 0,
    },
]  # fmt: skip
ANSWERS: dict[str, Any] = {
    "tunnels": TUNNELS,
    "status": STATUS, "neighbours": NEIGHBOURS, "routes": [OWN, CHEAP, DEAR, REFUSED], "path": PATH,
    "channels": CHANNELS, "ledger": LEDGER, "price.show": {"fee_msat_per_gb": 100_000},
    "price.set": {"fee_msat_per_gb": 200_000},
    "pay.hold": {"paying": False}, "pay.resume": {"paying": True},
    "channel.close": {"channels": ["01" * 32], "txid": "cd" * 32},
    "interface.cost": {"interface": "wlan0", "cost": 256}, "reload": {"filters": 3, "redistributions": 1},
}  # fmt: skip

GOLDEN = {
    "status": """\
node        n1 (meshd 0.1.0, up 1d 2h)
identity    03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8
address     fd3c:8aa9:32ea:37ba:4f1a:bd0c:2ad6:a6f1
neighbours  2
routes      5
fee         0.1 sat/MB
paying      yes
chain       kernel, height 117, connected
wallet      1,234,567 sat
carried     104.9 MB
earned      10.485 sat
spent       0 msat

INTERFACE  KIND      STATE  ADDRESS
eth0       wired     up     fe80::1
wlan0      wireless  down   -""",
    "neighbours": """\
INTERFACE  LINK-LOCAL  ADDRESS                                   COST      RTT  QUALITY                                   SESSION  STATE                  WINDOW  OWED TO US  OWED TO THEM      IN    FREE  REFUSED    OUT
eth0       fe80::2     fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f     96  12.3 ms  -                                         up       open                   10 sat    512 msat        0 msat  5.1 MB     0 B      0 B  999 B
wlan0      fe80::3     -                                        65535        -  25 % (9.9 Mbit/s by expected throughput)  down     suspended (64 kbit/s)       -           -             -     0 B  1.2 kB  65.0 kB    0 B""",  # noqa: E501
    "routes": """\
   PREFIX                                       VIA      INTERFACE  METRIC         PRICE    ANNOUNCED  NOTE
*  fd3c:8aa9:32ea:37ba:4f1a:bd0c:2ad6:a6f1/128  -        -               0             -     0 sat/MB  own
*  10.1.0.0/24                                  fe80::2  eth0          217   1.25 sat/MB  1.35 sat/MB
   10.1.0.0/24                                  fe80::3  wlan0       65535  not for sale            -  unfeasible
   10.2.0.0/24                                  fe80::2  eth0        65535   1.25 sat/MB  1.35 sat/MB  refused""",
    "tunnels": """\
INTERFACE       OVER     ADDRESS                                  ENDPOINT          PORT   MTU  STATE      HEARD  RECEIVED
mw0123456789ab  gateway  fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f  192.0.2.1:51820  40001  1420  up       2 s ago   12.3 kB
mwba9876543210  pi       fd00::1                                  -                51820  1420  waiting        -       0 B""",  # noqa: E501
    "path": """\
10.1.0.7 matches 10.1.0.0/24: via fe80::2 on eth0, metric 217, price 1.25 sat/MB

  PREFIX       VIA      INTERFACE  METRIC         PRICE  ANNOUNCED  WHY NOT
  10.1.0.0/24  fe80::3  wlan0       65535  not for sale          -  unreachable""",
    "channels": """\
CHANNEL       PEER                                     DIRECTION  STATE       CAPACITY            PAID  EXPIRES AT  FUNDING       CLOSING
0123456789ab  fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f  out        open     100,000 sat  12,345.678 sat        2133  efefefefefef  -
fedcba987654  fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f  in         closing   50,000 sat          0 msat         300  -             cdcdcdcdcdcd""",  # noqa: E501
    "ledger": """\
PEER                                     STATE      COUNTS                         WINDOW    BILLED  ACKNOWLEDGED  THEIR BILLED  ACCEPTED    SENT   RECEIVED      BALANCE
fd91:32ab:9e1f:8e3c:cbd1:ae87:5b1d:c09f  suspended  warned: overstated, 2.0% lost  10 sat  20.5 sat        20 sat        0 msat    0 msat  0 msat  5.001 sat  -15.499 sat""",  # noqa: E501
    "price.show": "Fee: 0.1 sat/MB (100,000 msat/GB)",
    "price.set": "Fee: 0.2 sat/MB (200,000 msat/GB)",
    "interface.cost": "Cost of wlan0: 256",
    "reload": "In force: 3 filters, 1 rules of redistribution.",
    "pay.hold": "Payments are on hold.",
    "pay.resume": "Paying.",
    "channel.close": f"Closing 1 channel, transaction {'cd' * 32}:\n  {'01' * 32}",
}


class Daemon:
    """Answers each connection with `reply` (bytes), or else from ANSWERS; remembers what it was asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.requests: list[dict[str, Any]] = []
        self.reply: bytes | None = None
        self.error: tuple[int, str] | None = None
        self.silent = False
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self.done = threading.Event()

    def serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                line = connection.makefile("rb").readline()
                if not line:
                    return
                self.requests.append(json.loads(line))
                if self.silent:
                    self.done.wait()
                with contextlib.suppress(BrokenPipeError):
                    connection.sendall(self._answer() if self.reply is None else self.reply)

    def _answer(self) -> bytes:
        request = self.requests[-1]
        if self.error is not None:
            body: dict[str, Any] = {"error": {"code": self.error[0], "message": self.error[1]}}
        else:
            body = {"result": ANSWERS[request["method"]]}
        return json.dumps({"jsonrpc": "2.0", "id": request["id"], **body}).encode() + b"\n"


@contextmanager
def running(path: Path) -> Iterator[Daemon]:
    daemon = Daemon(path)
    thread = threading.Thread(target=daemon.serve)
    thread.start()
    try:
        yield daemon
    finally:
        with socket.socket(socket.AF_UNIX) as last:
            daemon.done.set()
            last.connect(str(path))
        thread.join()
        daemon._socket.close()


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    path = tmp_path / "s"
    monkeypatch.setenv("MESHD_SOCKET", str(path))
    with running(path) as made:
        yield made


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.method)
def test_tables_and_texts(command: Command) -> None:
    assert command.renderer(ANSWERS[command.method], PLAIN) == GOLDEN[command.method]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.method)
def test_colours_change_nothing_else(command: Command) -> None:
    coloured = command.renderer(ANSWERS[command.method], render.Style(colour=True))
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
    ],
)
def test_nothing_to_show_is_said(command: render.Renderer, text: str) -> None:
    assert command([], PLAIN) == text


def test_nothing_to_close_is_said() -> None:
    assert render.closed({"channels": [], "txid": None}, PLAIN) == "No channel to close."


def test_paths_that_are_none() -> None:
    own = PATH | {"origin": True, "chosen": None}
    assert render.path(own, PLAIN) == "10.1.0.7 is reached through this node itself (10.1.0.0/24)."
    assert render.path(PATH | {"chosen": None}, PLAIN) == "No route to 10.1.0.7."


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (render.size(0), "0 B"),
        (render.size(999), "999 B"),
        (render.size(1000), "1.0 kB"),
        (render.size(3 * 10**15), "3000.0 TB"),
        (render.price(0), "0 sat/MB"),
        (render.price(1), "0.000001 sat/MB"),
        (render.price(4_294_967_294), "4,294.967294 sat/MB"),
        (render.money(-999), "-999 msat"),
        (render.money(-1500), "-1.5 sat"),
        (render.money(1_000_000), "1,000 sat"),
        (render.duration(0.9), "0s"),
        (render.duration(3600), "1h 0m"),
        (render.duration(59), "59s"),
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
        ("path 10.1.0.7", "path", {"destination": "10.1.0.7"}),
        ("path ::1 --source ::2", "path", {"destination": "::1", "source": "::2"}),
        ("channels", "channels", {}),
        ("ledger", "ledger", {}),
        ("price show", "price.show", {}),
        ("price set 200000", "price.set", {"fee_msat_per_gb": 200_000}),
        ("price set not-for-sale", "price.set", {"fee_msat_per_gb": 2**32 - 1}),
        ("interface cost wlan0 256", "interface.cost", {"interface": "wlan0", "cost": 256}),
        ("reload", "reload", {}),
        ("pay hold", "pay.hold", {}),
        ("pay resume", "pay.resume", {}),
        ("channel close --all --yes", "channel.close", {"peer": None}),
        ("channel close --peer fd00::1 --yes", "channel.close", {"peer": "fd00::1"}),
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
    assert shown == {"version": 1, "command": method.replace(".", " "), "result": ANSWERS[method]}


@pytest.mark.parametrize(
    ("code", "word", "exit_code"),
    [
        (-32001, "not_found", 3),
        (-32002, "denied", 5),
        (-32003, "timeout", 6),
        (-32602, "usage", 2),
        (-32004, "error", 1),
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
    assert json.loads(capsys.readouterr().out) == {"version": 1, "error": {"code": word, "message": "because\x1b[2J"}}


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
        "channel close --all",  # would ask, and there is nobody to answer
        "status --timeout 0",
        "status --timeout nan",
        "status extra",
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


def test_every_command_is_documented_with_a_working_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert command.help.endswith(".")
        program, *arguments = command.example.split()
        assert program == "meshctl"
        assert build_parser().parse_args(arguments).command is command
        with pytest.raises(SystemExit) as stopped:
            main([*command.words.split(), "--help"])
        assert stopped.value.code == 0
        assert command.example in capsys.readouterr().out


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
