"""Commands of meshctl that do more than to ask one method of the daemon."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshd.ctl.command import CallError, Command, envelope
from meshd.ctl.commands import COMMANDS, service
from meshd.ctl.main import main
from tests.meshd.ctl_answers import ALICE, ANSWERS, BOB, NEIGHBOURS, STATUS
from tests.meshd.kernel_lab import needs_namespaces
from tests.meshd.played_daemon import Daemon
from tests.meshd.schema import validate
from tools.ns import Namespaces


def command_of(words: str) -> Command:
    return next(command for command in COMMANDS if command.words == words)


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The result, which is as its schema says."""
    assert main([*arguments, "--json"]) in (0, 3, 9)
    shown = json.loads(capsys.readouterr().out)
    words = " ".join(arguments[:2]) if any(c.words == " ".join(arguments[:2]) for c in COMMANDS) else arguments[0]
    validate(shown, envelope(command_of(words)))
    return shown["result"]


def test_top_tells_rates_from_the_second_look_on(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    later = [NEIGHBOURS[0] | {"bytes_in": 5_120_000 + 250_000, "bytes_out": 999}, NEIGHBOURS[1]]
    daemon.sequence["neighbours"] = [NEIGHBOURS, later]
    daemon.sequence["status"] = [STATUS | {"uptime_seconds": 10.0}, STATUS | {"uptime_seconds": 12.0}]
    assert main(["top", "--watch", "0.001", "--count", "2", "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    validate(first, envelope(command_of("top")))
    assert [row["in_bits_per_second"] for row in first["result"]["neighbours"]] == [None, None]
    assert [row["in_bits_per_second"] for row in second["result"]["neighbours"]] == [1_000_000, 0]
    text = command_of("top").render(
        second["result"], __import__("meshd.ctl.text", fromlist=["Style"]).Style(colour=False)
    )
    assert "1 Mbit/s" in text and text.splitlines()[0].startswith("n1  2 neighbours, 5 routes")


def test_graph_has_neighbours_and_what_is_behind_them(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    result = ask(capsys, "graph")
    assert (result["type"], result["router_id"]) == ("NetworkGraph", ALICE)
    assert {node["id"] for node in result["nodes"]} == {ALICE, BOB, "fe80::3", "10.1.0.0/24"}
    links = {(link["source"], link["target"]): link["cost"] for link in result["links"]}
    assert links == {(ALICE, BOB): 96, (BOB, "10.1.0.0/24"): 96}  # fe80::3 is heard, and cannot be used
    assert main(["graph", "--dot"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("graph mesh {") and f'"{ALICE}" -- "{BOB}" [label="96"];' in shown
    assert main(["graph"]) == 0
    assert json.loads(capsys.readouterr().out) | {"dot": None} == result


def test_earnings_are_summed_by_peer(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    result = ask(capsys, "earnings")
    assert (result["net_msat"], result["peers"][0]["peer"]) == (10_485, BOB)
    assert main(["earnings"]) == 0
    assert capsys.readouterr().out.startswith("Earned 10.485 sat, spent 0 msat, net 10.485 sat; 104.9 MB carried.\n")


# --- the service


def test_up_and_down_by_systemd(
    daemon: Daemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(service, "_systemctl", asked.append)
    assert ask(capsys, "up") == {"unit": "meshd", "running": True}
    assert ask(capsys, "down") == {"unit": "meshd", "running": False}
    assert asked == ["start", "stop"]
    assert main(["up", "--socket", "/nonexistent", "--timeout", "0.05"]) == 6


def test_up_without_systemd_says_how_else(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["up"]) == 1
    assert "meshd run --config FILE" in capsys.readouterr().err


def test_logs_of_the_journal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [
        {"__REALTIME_TIMESTAMP": "1700000000000000", "PRIORITY": "4", "MESSAGE": "careful"},
        {"__REALTIME_TIMESTAMP": "1700000001000000", "PRIORITY": "6", "MESSAGE": list(b"\xffbytes")},
        {"MESSAGE": "no time"},
    ]
    journalctl = tmp_path / "journalctl"
    journalctl.write_text("#!/bin/sh\ncat <<'END'\n" + "\n".join(map(json.dumps, rows)) + "\nnot JSON\nEND\n")
    journalctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    result = ask(capsys, "logs", "--lines", "3")
    assert [(row["level"], row["message"]) for row in result] == [("warning", "careful"), ("info", "\ufffdbytes")]
    assert result[0]["time"] == "2023-11-14T22:13:20.000+00:00"
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["logs"]) == 1


SECRETS = {
    "identity": "5eed" * 16,
    "MAC key": "c0ffee33445566778899aabbccddeeff",
    "MAC key in a file": "feedface445566778899aabbccddeeff",
    "commented out": "0ldkey33445566778899aabbccddeeff",
    "RPC password": "correct-horse-battery",
    "cookie": "cookie-secret-77",
}


def test_a_report_has_no_secret(daemon: Daemon, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "identity").write_text(SECRETS["identity"] + "\n")
    (tmp_path / "password").write_text(SECRETS["RPC password"] + "\n")
    (tmp_path / "cookie").write_text(f"__cookie__:{SECRETS['cookie']}")
    (tmp_path / "mac").write_text(SECRETS["MAC key in a file"])
    config = tmp_path / "meshd.toml"
    config.write_text(f"""
[node]
state_dir = "{state}"
control_socket = "{daemon.path}"
[[interface]]
name = "eth0"
security = "none"
# key = "{SECRETS["commented out"]}"
mac_keys = [
  {{ algorithm = "hmac-sha256", key = "{SECRETS["MAC key"]}" }},
  {{ algorithm = "hmac-sha256", file = "{tmp_path}/mac" }},
]
[chain]
backend = "bitcoind"
rpc_cookie = "{tmp_path}/cookie"
rpc_password_file = "{tmp_path}/password"
""")
    # As if each had got into what the daemon says.
    daemon.answers = ANSWERS | {
        "routes": list(SECRETS.values()),
        "status": STATUS | {"name": SECRETS["MAC key"].upper()},
    }
    archive = tmp_path / "report.tar.gz"
    arguments = ("bugreport", "--output", str(archive), "--config", str(config), "--socket", str(daemon.path))
    result = ask(capsys, *arguments)
    assert {"meshd.toml", "status.json", "doctor.json", "nftables.txt", "version.txt"} <= set(result["parts"])
    assert archive.stat().st_mode & 0o077 == 0
    with tarfile.open(archive) as opened:
        texts = {item.name: (opened.extractfile(item) or io.BytesIO()).read().decode() for item in opened}
    assert set(texts) == {f"report/{name}" for name in result["parts"]}
    everything = "\n".join(texts.values()).lower()
    left = {name for name, secret in SECRETS.items() if secret.lower() in everything and name != "commented out"}
    assert left == set()
    assert SECRETS["commented out"] not in texts["report/meshd.toml"]
    assert "hmac-sha256" in texts["report/meshd.toml"] and ALICE in texts["report/status.json"]
    assert "(removed)" in texts["report/routes.json"]


def test_a_report_needs_neither_daemon_nor_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    archive, nothing = tmp_path / "r.tar.gz", str(tmp_path / "nothing")
    assert main(["bugreport", "--output", str(archive), "--config", nothing, "--socket", nothing]) == 0
    with tarfile.open(archive) as opened:
        status = opened.extractfile("r/status.json")
        assert status is not None and b"no daemon answers" in status.read()
    assert main(["bugreport", "--output", "/nonexistent/r.tar.gz", "--config", nothing, "--socket", nothing]) == 1


# --- packets of our own


@pytest.fixture(scope="module")
def line() -> Iterator[Namespaces]:
    """a - b - c, with routes and without a daemon."""
    with Namespaces("ctltr") as made:
        for name in ("a", "b", "c"):
            made.add(name)
            made.run(name, ["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.forwarding=1"])
            made.run(name, ["sysctl", "-qw", "net.ipv6.icmp.ratelimit=0"])
        made.veth(("a", "ab"), ("b", "ba"))
        made.veth(("b", "bc"), ("c", "cb"))
        for name, interface, address in (
            ("a", "ab", "1::a"),
            ("b", "ba", "1::b"),
            ("b", "bc", "2::b"),
            ("c", "cb", "2::c"),
        ):
            made.run(name, ["ip", "address", "add", f"{address}/64", "dev", interface, "nodad"])
        made.run("a", ["ip", "route", "add", "2::/64", "via", "1::b"])
        made.run("c", ["ip", "route", "add", "1::/64", "via", "2::b"])
        yield made


@needs_namespaces[0]
def test_trace_names_each_hop(line: Namespaces) -> None:
    import sys

    def trace(*arguments: str) -> tuple[Any, str]:
        argv = ["sh", "-c", '"$@"; true', "sh", sys.executable, "-m", "meshd.ctl.main", "trace", "--json", *arguments]
        shown = json.loads(line.run("a", argv))
        validate(shown, envelope(command_of("trace")))
        return shown.get("result"), shown.get("error", {}).get("code", "")

    result, _ = trace("2::c")
    assert result["reached"]
    assert [(hop["hop"], hop["address"], hop["arrived"]) for hop in result["hops"]] == [
        (1, "1::b", False), (2, "2::c", True)
    ]  # fmt: skip
    result, _ = trace("2::c", "--hops", "1")
    assert not result["reached"] and len(result["hops"]) == 1
    assert trace("3::1") == (None, "not_found")
    assert trace("no.such.name.invalid") == (None, "not_found")


def test_ping_reads_what_ping_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = "3 packets transmitted, 2 received, a loss\nrtt min/avg/max/mdev = 0.5/0.75/1.25/0.1 ms\n"
    program = tmp_path / "ping"
    program.write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/argv\nprintf "{said}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    result = ask(capsys, "ping", "fd00::1", "--packets", "3")
    assert result == {
        "destination": "fd00::1",
        "sent": 3,
        "received": 2,
        "rtt_ms": {"min": 0.5, "average": 0.75, "max": 1.25},
    }
    assert (tmp_path / "argv").read_text().split()[-1] == "fd00::1"
    program.write_text("#!/bin/sh\necho '1 packets transmitted, 0 received, 100% packet loss'; exit 1\n")
    assert main(["ping", "fd00::1"]) == 3
    monkeypatch.setenv("PATH", "/nonexistent")
    assert main(["ping", "fd00::1"]) == 1


def test_refusals_of_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "Access denied")

    monkeypatch.setattr(service.shutil, "which", lambda _: "/bin/systemctl")
    monkeypatch.setattr(service.Path, "exists", lambda _: True)
    monkeypatch.setattr(service.subprocess, "run", refuse)
    with pytest.raises(CallError) as caught:
        service._systemctl("start")
    assert caught.value.word == "denied"
