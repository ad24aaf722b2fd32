"""Radios in a line, set up by `meshd radio` and read by the daemon; `iw` and `batctl` are the judges.

mac80211_hwsim has a rate control that learns, so that it tells an expected throughput; it loses nothing and knows no
airtime, so that figures come to rest under traffic.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from meshd.ctl.client import CallError, call
from meshd.main import main
from routing import rules

MESHD = str(Path(sys.executable).with_name("meshd"))
NODES = ("rq1", "rq2", "rq3")
GROUPS = (0b01, 0b11, 0b10)  # a line: who shares a bit hears each other
NOMINAL, FULL_MBIT = 96, 40
PATIENCE = 150.0
CLONE_NEWNET = 0x4000_0000
NOBODY = 65534
AIR = ("--network", "meshtest", "--channel", "1")
IBSS = ("--type", "ibss", *AIR, "--cell", "02:ca:fe:ca:ca:40")
MESH = ("--type", "mesh", *AIR)
# 100 packets per second to an address; whether anybody takes them does not matter.
SENDER = """
import socket, sys, time
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender:
    while True:
        try:
            sender.sendto(bytes(500), (sys.argv[1], 9))
        except OSError:
            pass
        time.sleep(0.01)
"""


def run(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 or not check, f"{command}: {done.stderr}"
    return done.stdout


def on(node: str, *command: str) -> str:
    return run("ip", "netns", "exec", node, *command)


def radio(node: str, action: str, *options: str, uid: int = 0) -> str:
    """What `meshd radio` prints; in a child of ours, which has loaded all modules already."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            for number in (1, 2):
                os.dup2(writing, number)
            sys.stdout = sys.stderr = os.fdopen(writing, "w", buffering=1)
            with open(f"/run/netns/{node}") as namespace:
                ctypes.CDLL(None).setns(namespace.fileno(), CLONE_NEWNET)
            os.setuid(uid)
            main(["radio", action, "wlan0", *options])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as output:
        said = output.read()
    os.waitpid(child, 0)
    return said


def until(what: str, look: Callable[[], Any], *, limit: float = PATIENCE) -> Any:
    end = time.monotonic() + limit
    while True:
        if found := look():
            return found
        assert time.monotonic() < end, what
        time.sleep(0.3)


@contextmanager
def nodes(count: int) -> Iterator[None]:
    """Namespaces with a radio each, named wlan0; only neighbours in the line hear each other."""
    phys = sorted(path.name for path in Path("/sys/class/ieee80211").iterdir())
    assert len(phys) >= count
    try:
        for node, phy, group in zip(NODES[:count], phys, GROUPS, strict=False):
            Path(f"/sys/kernel/debug/ieee80211/{phy}/hwsim/group").write_text(f"{group:#x}")
            run("ip", "netns", "add", node)
            run("iw", "phy", phy, "set", "netns", "name", node)
            name = re.findall(r"Interface (\S+)", on(node, "iw", "dev"))[0]
            on(node, "ip", "link", "set", name, "name", "wlan0")
            on(node, "ip", "link", "set", "lo", "up")
        yield
    finally:
        for node in NODES[:count]:
            run("ip", "netns", "del", node, check=False)


@contextmanager
def daemon(node: str, folder: Path, interface: str, security: str) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Gives what `meshctl neighbours --json` shows."""
    home = folder / node
    home.mkdir()
    socket = home / "socket"
    config = home / "config.toml"
    config.write_text(
        f'[node]\nname = "{node}"\nstate_dir = "{home}"\ncontrol_socket = "{socket}"\n'
        f'[[interface]]\nname = "{interface}"\nkind = "wireless"\nsecurity = "{security}"\n'
        f"cost = {NOMINAL}\nfull_throughput = {FULL_MBIT}\n[payments]\nenabled = false\n"
    )

    def neighbours() -> list[dict[str, Any]]:
        try:
            rows: list[dict[str, Any]] = call(str(socket), "neighbours", {}, timeout=20)
        except CallError:
            return []
        return rows

    with open(home / "log", "w") as log:
        command = ["ip", "netns", "exec", node, MESHD, "run", "--config", str(config)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield neighbours
        except BaseException:
            print((home / "log").read_text())
            raise
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def traffic(node: str, to: str) -> Iterator[None]:
    process = subprocess.Popen(["ip", "netns", "exec", node, sys.executable, "-c", SENDER, to])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def reachable(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]] | None:
    return rows if sum(row["cost"] < rules.METRIC_INFINITY for row in rows) == count else None


def overlay_address(node: str, folder: Path) -> str:
    status = call(str(folder / node / "socket"), "status", {}, timeout=20)
    return str(status["address"])


def station_by_iw(node: str) -> dict[str, str]:
    dump = on(node, "iw", "wlan0", "station", "dump")
    return dict(re.findall(r"^\s+([a-z ]+):\s+(\S+)", dump, flags=re.MULTILINE))


def expected_by_iw(node: str) -> float:
    """In units of 1024 kbit/s; 0: not known."""
    return float(station_by_iw(node).get("expected throughput", "0").removesuffix("Mbps"))


def assert_iw_agrees(node: str) -> None:
    """While nothing is sent, so that figures stay."""

    def look() -> tuple[dict[str, Any], dict[str, str]] | None:
        before, iw, after = ours(), station_by_iw(node), ours()
        return (before, iw) if before == after else None

    def ours() -> dict[str, Any]:
        (station,) = json.loads(radio(node, "show", "--json"))[0]["stations"]
        return {key: value for key, value in station.items() if key != "inactive_seconds"}

    station, iw = until("a moment of rest", look)
    assert station["expected_throughput_kbps"] / 1024 == pytest.approx(
        float(iw["expected throughput"].removesuffix("Mbps")), abs=0.001
    )
    assert station["tx_bitrate_kbps"] == round(float(iw["tx bitrate"]) * 1000)
    assert station["signal_dbm"] == int(iw["signal"])
    for name in ("packets", "retries", "failed"):
        assert station[f"tx_{name}"] == int(iw[f"tx {name}"])


def cost_follows(row: dict[str, Any]) -> bool:
    """It may lag behind by an eighth, and the engine is not told of less than 1/32; lost Hellos may add to it."""
    told = rules.blended_cost(NOMINAL, NOMINAL, row["quality"]["share"])
    return row["cost"] >= NOMINAL and told <= row["cost"] * 6 // 5 + 3


@pytest.mark.parametrize(("options", "security"), [(IBSS, "none"), (MESH, "wireguard")], ids=["ad-hoc", "802.11s"])
def test_the_expected_throughput_of_a_radio(tmp_path: Path, options: tuple[str, ...], security: str) -> None:
    with nodes(2), ExitStack() as daemons:
        for node in NODES[:2]:
            assert "Done: join meshtest" in radio(node, "setup", *options)
        assert radio(NODES[0], "setup", *options) == "Nothing to do.\n"
        shown = on(NODES[0], "iw", "dev")
        assert "channel 1 (2412 MHz)" in shown
        assert ("type IBSS" if options is IBSS else "type mesh point") in shown
        if options is MESH:
            assert on(NODES[0], "iw", "wlan0", "get", "mesh_param", "mesh_fwding").strip() == "0"
        asks = [daemons.enter_context(daemon(node, tmp_path, "wlan0", security)) for node in NODES[:2]]
        for ask in asks:
            until("the other is reached", lambda ask=ask: reachable(ask(), 1))
        seen: list[float] = []
        with traffic(NODES[0], overlay_address(NODES[1], tmp_path)):

            def is_read() -> bool:
                """A figure that `iw` has shown a higher and a lower one of, or the same: under traffic they move."""
                if by_iw := expected_by_iw(NODES[0]):
                    seen.append(by_iw)
                for row in asks[0]():
                    quality = row["quality"]
                    if seen and quality is not None and quality["source"] == "expected throughput":
                        is_between = min(seen) - 0.01 <= quality["throughput_kbps"] / 1024 <= max(seen) + 0.01
                        return is_between and quality["signal_dbm"] < 0 and cost_follows(row)
                return False

            until("the daemon has a figure, as iw shows it, and the cost follows", is_read)
        daemons.close()
        assert_iw_agrees(NODES[0])
    assert not [path for path in Path("/run/netns").iterdir() if path.name in NODES]


def test_the_way_through_batman_adv(tmp_path: Path) -> None:
    """All are neighbours on `bat0`, the farther the dearer, and rated as `batctl` does; of B.A.T.M.A.N. IV there is
    `test_batman`."""
    options = (*IBSS, "--batman", "bat0", "--algorithm", "BATMAN_V")
    with nodes(3), ExitStack() as daemons:
        for node in NODES:
            radio(node, "setup", *options)
        first = NODES[0]
        assert radio(first, "setup", *options) == "Nothing to do.\n"
        assert on(first, "batctl", "meshif", "bat0", "bridge_loop_avoidance").strip() == "disabled"
        assert "mtu 1532" in on(first, "ip", "link", "show", "wlan0")
        ask, *_ = [daemons.enter_context(daemon(node, tmp_path, "bat0", "none")) for node in NODES]
        until("all others are reached", lambda: reachable(ask(), len(NODES) - 1))
        originator_of = {}
        for node in NODES[1:]:
            mac = on(node, "cat", "/sys/class/net/bat0/address").strip()
            local = re.findall(r"inet6 (fe80\S+)/", on(node, "ip", "address", "show", "bat0"))[0]
            originator_of[local] = until(f"batman-adv knows {node}", lambda mac=mac: originator_by_batctl(first, mac))
        seen: dict[str, set[int]] = {}
        agreed: set[str] = set()

        def all_agree() -> bool:
            """At some time each: the figures move every second, and are read every two."""
            for entry in batctl(first, "originators_json"):
                if entry.get("best"):
                    seen.setdefault(entry["orig_address"], set()).add(entry["throughput"])
            for row in ask():
                figure = (row["quality"] or {}).get("throughput_kbps")
                if figure in seen.get(originator_of[row["link_local"]], ()):
                    agreed.add(row["link_local"])
            return agreed == set(originator_of)

        until("batctl and the daemon agree", all_agree)
        until("the farther is rated worse, and costs follow", lambda: are_in_order(ask(), list(originator_of)))
        daemons.close()
        assert "Done: delete bat0." in radio(first, "remove")
        assert radio(first, "remove") == "Nothing to do.\n"
        assert "type managed" in on(first, "iw", "dev")


def are_in_order(rows: list[dict[str, Any]], addresses: list[str]) -> bool:
    """By what batman-adv's throughput is made of."""
    row_of = {row["link_local"]: row for row in rows if (row["quality"] or {}).get("source") == "throughput"}
    if row_of.keys() != set(addresses) or not all(map(cost_follows, row_of.values())):
        return False
    shares = [row_of[address]["quality"]["share"] for address in addresses]
    return all(near > far for near, far in pairwise(shares))


def batctl(node: str, what: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads(on(node, "batctl", "meshif", "bat0", what))
    return entries


def originator_by_batctl(node: str, client: str) -> str | None:
    known = batctl(node, "transtable_global_json")
    return next((entry["orig_address"] for entry in known if entry["tt_address"] == client), None)


def test_what_cannot_be_is_refused() -> None:
    with nodes(1):
        (node,) = NODES[:1]
        assert "may not begin to transmit at 5180 MHz" in radio(node, "setup", *IBSS[:4], "--channel", "36")
        assert "has no channel at 2413 MHz" in radio(node, "setup", *IBSS[:4], "--frequency", "2413")
        radio(node, "setup", *IBSS)
        assert "CAP_NET_ADMIN" in radio(node, "remove", uid=NOBODY)
        assert "type IBSS" in on(node, "iw", "dev")
