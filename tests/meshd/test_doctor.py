"""The doctor against set-ups that are broken on purpose, most of them for real, in a namespace."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from meshd.doctor import CHECKS, Finding, Level, World, examine, links
from meshd.kernel.nl80211 import Radio, RadioType
from tests.meshd.ctl_answers import ANSWERS, NEIGHBOURS, STATUS
from tests.meshd.kernel_lab import needs_namespaces
from tests.meshd.played_daemon import running
from tools.ns import Namespaces

_CLONE_NEWNET = 0x40000000
NAME = "wlan0"
T = TypeVar("T")


def inside(namespace: str, look: Callable[[], T]) -> T:
    """In a thread of its own, which is in that network namespace, and so is what it starts."""
    answers: list[T] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            with open(f"/run/netns/{namespace}", "rb") as file:
                assert ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET) == 0
            answers.append(look())
        except BaseException as error:
            faults.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return answers[0]


@pytest.fixture(scope="module")
def wire() -> Iterator[tuple[Namespaces, str]]:
    """A namespace with an interface that is as it should be."""
    with Namespaces("ctldoc") as namespaces:
        namespaces.add("a")
        namespaces.add("b")
        for name in ("a", "b"):
            namespaces.run(
                name, ["sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0"]
            )
        namespaces.veth(("a", NAME), ("b", "peer"))
        yield namespaces, namespaces.full("a")


def world(directory: Path, text: str = "", **options: Any) -> World:
    path = directory / "meshd.toml"
    if not path.exists():
        state = f'[node]\nstate_dir = "{directory}/state"\ncontrol_socket = "{directory}/sock"\n'
        interface = f'[[interface]]\nname = "{NAME}"\nsecurity = "none"\n'
        path.write_text(state + (text or interface + f'[chain]\nsocket = "{directory}/chain"\n'))
    return World(path, **options)


def found(check: str, about: World) -> tuple[Level, str, str]:
    """The worst of what a check says."""
    order = list(Level)
    rank = [Level.OK, Level.SKIPPED, Level.WARNING, Level.ERROR]
    assert set(rank) == set(order)
    worst = max(
        list(CHECKS[check](about)) or [Finding(check, Level.OK, "")], key=lambda finding: rank.index(finding.level)
    )
    return worst.level, worst.message, worst.mending


@contextmanager
def daemon(directory: Path, **changes: Any) -> Iterator[None]:
    """One that answers `status` and `neighbours` with these changes."""
    with running(directory / "sock") as made:
        made.answers = ANSWERS | {"status": STATUS | changes.pop("status", {}), **changes}
        yield
    (directory / "sock").unlink()


# --- the configuration and the disk


def test_no_configuration(tmp_path: Path) -> None:
    level, message, mending = found("configuration", World(tmp_path / "meshd.toml"))
    assert (level, message) == (Level.ERROR, f"there is no {tmp_path}/meshd.toml")
    assert mending == f"meshctl config init --output {tmp_path}/meshd.toml"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[routing]\nhelo_interval = 1", 'unknown key helo_interval; did you mean "hello_interval"?'),
        ('[node]\nname = "n"\n', "names no interface and no peer"),
    ],
)
def test_wrong_configuration(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "meshd.toml").write_text(text)
    level, shown, mending = found("configuration", world(tmp_path))
    assert level is Level.ERROR and message in shown and mending


def test_keys_that_everybody_can_read(tmp_path: Path) -> None:
    keys = 'mac_keys = [{ algorithm = "hmac-sha256", key = "00112233" }]'
    about = world(tmp_path, f'[[interface]]\nname = "{NAME}"\nsecurity = "none"\n{keys}\n')
    about.config_path.chmod(0o644)
    level, message, mending = found("configuration", about)
    assert level is Level.WARNING and "MAC keys" in message and f"chmod o= {about.config_path}" in mending
    about.config_path.chmod(0o640)
    assert found("configuration", world(tmp_path))[0] is Level.OK


IN_A_FULL_DISK = """
import sys
from pathlib import Path
from meshd.doctor import CHECKS, World
print([(f.level.value, f.message) for f in CHECKS["state"](World(Path(sys.argv[1])))])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
@pytest.mark.parametrize(
    ("options", "message"), [("size=64k", "MB left: payments stop"), ("size=64k,ro", "is mounted read-only")]
)
def test_full_or_read_only_disk(tmp_path: Path, options: str, message: str) -> None:
    about = world(tmp_path)
    about.config.node.state_dir.mkdir(mode=0o700)
    mount = f'mount -t tmpfs -o {options} none {tmp_path}/state && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", IN_A_FULL_DISK, str(about.config_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "error" in done.stdout and message in done.stdout


def test_state_that_others_can_read(tmp_path: Path) -> None:
    about = world(tmp_path)
    directory = about.config.node.state_dir
    directory.mkdir(mode=0o700)
    (directory / "identity").write_text("00" * 32)
    (directory / "identity").chmod(0o640)
    level, message, mending = found("state", about)
    assert level is Level.ERROR and "mode 0640" in message and mending == f"chmod 600 {directory}/identity"
    (directory / "identity").chmod(0o600)
    assert found("state", about)[0] is Level.OK
    directory.chmod(0o755)
    assert found("state", about)[0] is Level.WARNING


# --- the machine


def test_clock_of_1970(tmp_path: Path) -> None:
    level, message, mending = found("clock", world(tmp_path, now=lambda: 3600.0))
    assert level is Level.ERROR and "1970-01-01 01:00" in message and "set-ntp true" in mending
    assert found("clock", world(tmp_path))[0] is not Level.ERROR


AS_NOBODY = """
import json, os, sys
from pathlib import Path
from meshd.doctor import CHECKS, World
os.setgroups([]); os.setgid(65534); os.setuid(65534)
about = World(Path(sys.argv[1]))
print(json.dumps({name: [f.as_dict() for f in CHECKS[name](about)] for name in ("permissions", "nftables", "daemon")}))
"""


@pytest.mark.namespaces
def test_without_permission(tmp_path: Path, wire: tuple[Namespaces, str]) -> None:
    """Neither for nftables, nor for the control socket."""
    place = Path(f"/tmp/ctldoc-{os.getpid()}")  # noqa: S108  tmp_path is closed to others
    place.mkdir()
    try:
        with daemon(place):
            (place / "sock").chmod(0o600)
            argv = [sys.executable, "-c", AS_NOBODY, str(world(place).config_path)]
            shown = json.loads(wire[0].run("a", argv))
    finally:
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
    assert "no CAP_NET_ADMIN and no CAP_NET_RAW" in shown["permissions"][0]["message"]
    assert shown["nftables"][0]["level"] == "error"
    assert "no permission for nftables" in shown["nftables"][0]["message"]
    assert "may not open the control socket" in shown["daemon"][0]["message"]
    assert "usermod -aG meshd" in shown["daemon"][0]["mending"]


def test_no_nft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found("nftables", world(tmp_path)) == (
        Level.ERROR, "nft is not installed: nothing can be metered", "apt install nftables"
    )  # fmt: skip


def test_no_wireguard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = world(tmp_path, f'[[interface]]\nname = "{NAME}"\n')
    monkeypatch.setenv("PATH", str(tmp_path))
    # As on a kernel without it, whatever runs this.
    monkeypatch.setattr("meshd.doctor.host._kernel_has_wireguard", lambda _: False)
    level, message, mending = found("wireguard", about)
    assert level is Level.ERROR and "wireguard-go is not installed" in message and "apt install" in mending
    (tmp_path / "bare").mkdir()
    assert found("wireguard", world(tmp_path / "bare"))[1] == "no tunnels are wanted"


@needs_namespaces[0]
@pytest.mark.parametrize(
    ("rules", "message", "mending"),
    [
        ("add chain inet t i { type filter hook input priority 0; policy drop; }", "drops UDP port 6696 (Babel)",
         "nft insert rule inet t i udp dport 6696 accept"),
        ("add chain inet t i { type filter hook input priority 0; }; add rule inet t i udp dport 6696 drop",
         "drops UDP port 6696 (Babel)", "nft insert rule"),
        ("add chain inet t f { type filter hook forward priority 0; policy drop; }", "drops what is to be forwarded",
         "nft add rule inet t f"),
    ],
)  # fmt: skip
def test_firewall(tmp_path: Path, wire: tuple[Namespaces, str], rules: str, message: str, mending: str) -> None:
    namespaces, name = wire
    namespaces.run("a", ["nft", "add table inet t"])
    namespaces.run("a", ["nft", rules])
    try:
        level, shown, mend = inside(name, lambda: found("firewall", world(tmp_path)))
        assert level is Level.ERROR and message in shown and mending in mend
        if "policy drop" in rules and "input" in rules:
            namespaces.run("a", ["nft", "insert rule inet t i udp dport 6696 accept"])
            assert inside(name, lambda: found("firewall", world(tmp_path)))[0] is Level.OK
    finally:
        namespaces.run("a", ["nft", "delete table inet t"])


@needs_namespaces[0]
def test_another_routing_daemon(tmp_path: Path, wire: tuple[Namespaces, str]) -> None:
    _, name = wire

    def look() -> tuple[Level, str, str]:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other:
            other.bind(("::", 6696))
            # The name of this very process stands for babeld's.
            before = Path("/proc/self/comm").read_text()
            Path("/proc/self/comm").write_text("babeld")
            try:
                return found("ports", world(tmp_path))
            finally:
                Path("/proc/self/comm").write_text(before.strip())

    level, message, mending = inside(name, look)
    assert level is Level.ERROR and message == "babeld has UDP port 6696, which is for Babel"
    assert mending.startswith("systemctl stop babeld")
    assert inside(name, lambda: found("ports", world(tmp_path)))[0] is Level.OK


# --- the interfaces


@needs_namespaces[0]
@pytest.mark.parametrize(
    ("break_it", "message", "mending"),
    [
        (("ip link set wlan0 down", "ip link set wlan0 up"), "wlan0 is down", "ip link set wlan0 up"),
        (("ip link set wlan0 mtu 1000", "ip link set wlan0 mtu 1500"), "an MTU of 1000: IPv6 needs 1280",
         "ip link set wlan0 mtu 1500"),
        (("sysctl -qw net.ipv6.conf.wlan0.disable_ipv6=1", "sysctl -qw net.ipv6.conf.wlan0.disable_ipv6=0"),
         "IPv6 is switched off on wlan0", "sysctl -w net.ipv6.conf.wlan0.disable_ipv6=0"),
        (("ip link set wlan0 name wlan7", "ip link set wlan7 name wlan0"),
         "there is no interface wlan0; there are: wlan7", "correct name"),
    ],
)  # fmt: skip
def test_interface(
    tmp_path: Path, wire: tuple[Namespaces, str], break_it: tuple[str, str], message: str, mending: str
) -> None:
    namespaces, name = wire
    assert inside(name, lambda: found("interfaces", world(tmp_path)))[0] is Level.OK
    namespaces.run("a", break_it[0].split())
    try:
        findings = inside(name, lambda: list(CHECKS["interfaces"](world(tmp_path))))
    finally:
        namespaces.run("a", break_it[1].split())
        namespaces.run("a", ["ip", "link", "set", NAME, "up"])
    matching = [finding for finding in findings if message in finding.message]
    assert matching and matching[0].level is Level.ERROR and mending in matching[0].mending


@needs_namespaces[0]
@pytest.mark.parametrize("key", ["net.ipv6.conf.all.forwarding", "net.ipv4.conf.all.forwarding", "rp_filter"])
def test_sysctls_changed_under_a_running_daemon(tmp_path: Path, wire: tuple[Namespaces, str], key: str) -> None:
    namespaces, name = wire
    good = {"net.ipv6.conf.all.forwarding": 1, "net.ipv4.conf.all.forwarding": 1, "net.ipv4.conf.all.rp_filter": 0}
    good |= {f"net.ipv4.conf.{NAME}.rp_filter": 0}
    namespaces.run("a", ["sysctl", "-qw", *(f"{name}={value}" for name, value in good.items())])
    with daemon(tmp_path):
        assert inside(name, lambda: found("sysctls", world(tmp_path)))[0] is Level.OK
        bad = f"net.ipv4.conf.{NAME}.rp_filter=1" if key == "rp_filter" else f"{key}=0"
        namespaces.run("a", ["sysctl", "-qw", bad])
        level, message, mending = inside(name, lambda: found("sysctls", world(tmp_path)))
    assert level is Level.ERROR and ("rp_filter is strict" if key == "rp_filter" else "switched off") in message
    assert bad.rpartition("=")[0] in mending


def test_radio_in_another_mode(tmp_path: Path) -> None:
    """By what the kernel would say of it: the radios of tests/vm are in machines."""
    about = world(tmp_path, f'[[interface]]\nname = "{NAME}"\nkind = "wireless"\n')
    managed = Radio(1, NAME, 0, b"\0" * 6, RadioType.MANAGED, None, 2412)
    (finding,) = links.judge_radios(about, {NAME: managed})
    assert finding.level is Level.ERROR and "is in mode managed" in finding.message
    assert f"meshd radio setup {NAME}" in finding.mending
    lonely = Radio(1, NAME, 0, b"\0" * 6, RadioType.IBSS, None, None)
    (finding,) = links.judge_radios(about, {NAME: lonely})
    assert "in no network" in finding.message
    (tmp_path / "wired").mkdir()
    good = Radio(1, NAME, 0, b"\0" * 6, RadioType.MESH_POINT, b"m", 2412)
    (finding,) = links.judge_radios(world(tmp_path / "wired"), {NAME: good})
    assert finding.level is Level.WARNING and 'kind = "wireless"' in finding.mending


# --- the daemon, its neighbours, its money


def test_no_daemon_a_dead_one_and_one_that_hangs(tmp_path: Path) -> None:
    assert found("daemon", world(tmp_path))[1:] == (
        f"the daemon does not run: there is no {tmp_path}/sock", "systemctl start meshd"
    )  # fmt: skip
    with socket.socket(socket.AF_UNIX) as crashed:
        crashed.bind(str(tmp_path / "sock"))
        assert "has died" in found("daemon", world(tmp_path))[1]
        crashed.listen()
        assert "does not answer" in found("daemon", world(tmp_path, timeout=0.05))[1]


def test_chain_that_is_away(tmp_path: Path) -> None:
    level, message, mending = found("chain", world(tmp_path))
    assert level is Level.ERROR and f"{tmp_path}/chain: No such file" in message and "[chain]" in mending
    away = {"chain": {"backend": "kernel", "height": None, "connected": False}}
    with socket.socket(socket.AF_UNIX) as other, daemon(tmp_path, status=away):
        other.bind(str(tmp_path / "chain"))
        other.listen()
        level, message, _ = found("chain", world(tmp_path))
        assert level is Level.ERROR and "does not answer the daemon" in message


def test_neither_chain_nor_wallet_is_missed_where_no_debt_is_settled_on_a_chain(tmp_path: Path) -> None:
    about = world(tmp_path, text='[payments]\nsettlement = "credit"\n')
    with daemon(tmp_path, status={"wallet": {"balance_sat": None}}):
        assert found("chain", about)[:2] == (Level.OK, "no debt is settled on it")
        assert found("wallet", about)[0] is Level.OK


def test_one_backend_in_reach_is_enough(tmp_path: Path) -> None:
    text = f'[chain]\nsocket = "{tmp_path}/away"\n[[backend]]\nsocket = "{tmp_path}/chain"\n'
    with socket.socket(socket.AF_UNIX) as chain, daemon(tmp_path):
        chain.bind(str(tmp_path / "chain"))
        chain.listen()
        assert list(CHECKS["chain"](world(tmp_path, text=text))) == []


def test_empty_wallet_and_payments_on_hold(tmp_path: Path) -> None:
    with daemon(tmp_path, status={"wallet": {"balance_sat": 0}, "paying": False}):
        findings = list(CHECKS["wallet"](world(tmp_path)))
    assert [finding.level for finding in findings] == [Level.WARNING, Level.WARNING]
    assert findings[0].mending == "meshctl pay resume"
    assert "0 sat, which is not enough for a channel (100000 sat)" in findings[1].message


def test_neighbours_that_are_none_deaf_or_in_debt(tmp_path: Path) -> None:
    with daemon(tmp_path, neighbours=[]):
        level, message, mending = found("neighbours", world(tmp_path))
        assert (level, message) == (Level.WARNING, "nobody is heard") and "same channel" in mending
    with daemon(tmp_path, neighbours=[NEIGHBOURS[1]], status={"counters": {"packets with wrong MAC": 4}}):
        shown = " ".join(finding.message for finding in CHECKS["neighbours"](world(tmp_path)))
        assert "4 packets had another MAC key" in shown
        assert "does not hear us" in shown and "held to the free tier" in shown


@needs_namespaces[0]
def test_nothing_is_wrong_where_nothing_is_broken(tmp_path: Path, wire: tuple[Namespaces, str]) -> None:
    namespaces, name = wire
    namespaces.run("a", ["sysctl", "-qw", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.forwarding=1"])
    namespaces.run("a", ["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", f"net.ipv4.conf.{NAME}.rp_filter=0"])
    up = {"interfaces": STATUS["interfaces"][:1]}  # type: ignore[index]
    with socket.socket(socket.AF_UNIX) as chain, daemon(tmp_path, neighbours=NEIGHBOURS[:1], status=up):
        chain.bind(str(tmp_path / "chain"))
        chain.listen()
        findings = inside(name, lambda: examine(world(tmp_path)))
    assert {finding.check for finding in findings} == set(CHECKS)
    unkept_clock = [finding for finding in findings if finding.level is not Level.OK and finding.check != "clock"]
    assert unkept_clock == []


def test_every_fault_says_how_to_mend_it(tmp_path: Path) -> None:
    for finding in examine(World(tmp_path / "none", socket=str(tmp_path / "sock"))):
        assert bool(finding.mending) == (finding.level in (Level.WARNING, Level.ERROR)), finding
