"""Mixed meshes: the real daemon beside babeld and BIRD, one namespace for each node, one veth pair for each link."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from meshd.ctl.client import CallError, call
from tests.tools.babel_readers import assert_agrees_with_codec, assert_agrees_with_tshark, packets_in
from tests.tools.tcpdump_reader import assert_agrees_with_tcpdump
from tools.lab import toml_text
from tools.ns import Namespaces

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
HELLO_INTERVAL = 0.5  # seconds; of all daemons, so that the tests are over soon
UPDATE_INTERVAL = 3
PORT = 7777
SLACK = 5  # limits of waiting are given for a quiet machine; how long it takes is not what is tested here
# TCP to itself over the mesh: whoever connects there and gets an answer has a route there, and one back.
LISTENER = f"""
import socket
server = socket.create_server(("::", {PORT}), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    connection, _ = server.accept()
    connection.sendall(b"!")
    connection.close()
"""
CALLER = f"""
import socket, sys
try:
    with socket.create_connection((sys.argv[2], {PORT}), 1, (sys.argv[1], 0)) as connection:
        sys.exit(connection.recv(1) != b"!")
except OSError:
    sys.exit(1)
"""

# Hands on every frame from one interface to the other, 60 ms later.
DELAYER = """
import heapq, select, socket, time
ends = [socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) for _ in range(2)]
for end, name in zip(ends, ("left", "right")):
    end.bind((name, 0))
waiting, number = [], 0
while True:
    wait = max(0, waiting[0][0] - time.monotonic()) if waiting else None
    for end in select.select(ends, [], [], wait)[0]:
        frame, address = end.recvfrom(65536)
        if address[2] != socket.PACKET_OUTGOING:
            number += 1
            heapq.heappush(waiting, (time.monotonic() + 0.06, number, frame, ends[end is ends[0]]))
    while waiting and waiting[0][0] <= time.monotonic():
        _, _, frame, to = heapq.heappop(waiting)
        to.send(frame)
"""

PEERS = ("babeld", "bird")
MARKS = [pytest.mark.lab, pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")]


def need(*programs: str) -> None:
    """Skip the test where one is missing."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


class Node:
    """One namespace. `options`: of the daemon's configuration, or of each interface of babeld and BIRD."""

    def __init__(self, mesh: Mesh, name: str, kind: str, number: int, options: dict[str, Any]) -> None:
        self.mesh, self.name, self.kind, self.number = mesh, name, kind, number
        self.options = options
        self.address6 = f"fd77::{number}"
        self.address4 = f"10.77.0.{number}"
        self.interfaces: list[str] = []
        self.directory = mesh.directory / name
        self.directory.mkdir()
        self.process: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        argv = {"meshd": self._meshd, "babeld": self._babeld, "bird": self._bird}[self.kind]()
        with (self.directory / "log").open("ab") as log:
            self.process = self.mesh.namespaces.popen(
                self.name, argv, stdout=log, stderr=subprocess.STDOUT, env=ENVIRONMENT
            )

    def stop(self, *, kill: bool = False) -> None:
        """As an operator does; `kill`: as a power cut does."""
        assert self.process is not None
        if kill:
            self.process.kill()
        self.mesh.namespaces.end(self.process)
        self.process = None

    def rpc(self, method: str, **params: Any) -> Any:
        return call(str(self.directory / "control.sock"), method, params, timeout=30)

    def routes(self) -> list[dict[str, Any]]:
        """What a meshd has heard and selected; nothing while it starts."""
        try:
            return [row for row in self.rpc("routes") if not row["origin"]]
        except CallError:
            return []

    def selected(self, prefix: str) -> dict[str, Any] | None:
        return next((row for row in self.routes() if row["prefix"] == prefix and row["selected"]), None)

    def run(self, command: str) -> str:
        return self.mesh.namespaces.run(self.name, ["sh", "-c", command])

    def usable_routes(self) -> str:
        """The kernel's, of both families, as text, whoever installed them; not those that babeld and BIRD leave as
        unreachable for a while."""
        lines = self.run("ip -4 route show table all; ip -6 route show table all").splitlines()
        return "\n".join(line for line in lines if "unreachable" not in line)

    def _meshd(self) -> list[str]:
        document: dict[str, Any] = {
            "node": {
                "name": self.name,
                "state_dir": str(self.directory / "state"),
                "control_socket": str(self.directory / "control.sock"),
                "log_level": "debug",
            },
            "routing": {
                "hello_interval": HELLO_INTERVAL,
                "update_interval": float(UPDATE_INTERVAL),
                "announce": [f"{self.address6}/128", f"{self.address4}/32"],
            },
            "price": {"fee_msat_per_gb": 0},
            "payments": {"enabled": False},
        }
        interface_options = self.options.get("interface", {})
        for table, values in self.options.items():
            if table != "interface":
                document[table] = values if isinstance(values, list) else document.get(table, {}) | values
        document["interface"] = [{"name": name, "security": "none"} | interface_options for name in self.interfaces]
        path = self.directory / "config.toml"
        path.write_text(toml_text.dump(document))
        return [sys.executable, "-m", "meshd.main", "run", "--config", str(path)]

    def _babeld(self) -> list[str]:
        self._own_addresses()
        intervals = f"hello-interval {HELLO_INTERVAL} update-interval {UPDATE_INTERVAL}"
        extra = self.options.get("interface", "")
        lines = [
            "skip-kernel-setup true",
            "random-id false",
            *self.options.get("global", []),
            *(f"interface {name} type wired {intervals} {extra}" for name in self.interfaces),
            *self.options.get("redistribute", []),
            "redistribute local if lo allow",
            "redistribute local deny",
            "redistribute deny",
        ]
        (self.directory / "conf").write_text("\n".join(lines) + "\n")
        files = [str(self.directory / name) for name in ("conf", "pid", "state", "babeld.log")]
        (self.directory / "pid").unlink(missing_ok=True)  # of a daemon that was killed
        return ["babeld", "-c", files[0], "-I", files[1], "-S", files[2], "-L", files[3]]

    def _bird(self) -> list[str]:
        self._own_addresses()
        wanted = "export where source ~ [ RTS_DEVICE, RTS_BABEL ];"
        times = f"hello interval {int(HELLO_INTERVAL * 1000)} ms; update interval {UPDATE_INTERVAL} s;"
        lines = [
            f'log "{self.directory}/bird.log" all;',
            f"router id 10.77.1.{self.number};",
            "protocol device { scan time 10; }",
            'protocol direct { ipv4; ipv6; interface "lo"; }',
            "protocol kernel k6 { ipv6 { import none; export where source = RTS_BABEL; }; }",
            "protocol kernel k4 { ipv4 { import none; export where source = RTS_BABEL; }; }",
            "protocol babel b {",
            f"  ipv6 {{ import all; {wanted} }};",
            f"  ipv4 {{ import all; {wanted} }};",
        ]
        extra = self.options.get("interface", "")
        lines += [f'  interface "{name}" {{ type wired; {times} {extra} }};' for name in self.interfaces]
        (self.directory / "conf").write_text("\n".join([*lines, "}"]) + "\n")
        files = [str(self.directory / name) for name in ("conf", "sock", "pid")]
        return ["bird", "-f", "-c", files[0], "-s", files[1], "-P", files[2]]

    def _own_addresses(self) -> None:
        for address in (f"{self.address6}/128", f"{self.address4}/32"):
            self.run(f"ip address replace {address} dev lo")


class Mesh:
    def __init__(self, namespaces: Namespaces, directory: Path) -> None:
        self.namespaces = namespaces
        self.directory = directory
        self.nodes: dict[str, Node] = {}

    def node(self, name: str, kind: str, **options: Any) -> Node:
        """`kind`: meshd, babeld or bird."""
        self.namespaces.add(name)
        settings = ["net.ipv6.conf.default.accept_dad=0", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"]
        # Replies may take another way back, and ICMP errors are not to be spaced out.
        settings += ["net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0"]
        self.namespaces.run(name, ["sysctl", "-qw", *settings])
        self.nodes[name] = node = Node(self, name, kind, len(self.nodes) + 1, options)
        return node

    def wire(self, a: Node, b: Node, *, ipv4: bool = False) -> None:
        """A link whose interfaces are called after both ends: ab in a, ba in b."""
        here, there = a.name + b.name, b.name + a.name
        self.namespaces.veth((a.name, here), (b.name, there))
        for node, interface in ((a, here), (b, there)):
            node.interfaces.append(interface)
            if ipv4:
                low, high = sorted((a.number, b.number))
                node.run(f"ip address add 10.78.{16 * low + high}.{node.number}/24 dev {interface}")

    def line(self, *nodes: Node, ipv4: bool = False) -> None:
        for a, b in pairwise(nodes):
            self.wire(a, b, ipv4=ipv4)

    def start(self) -> None:
        for node in self.nodes.values():
            self.namespaces.popen(node.name, [sys.executable, "-S", "-c", LISTENER], stdout=None)
            node.start()

    def cut(self, a: Node, b: Node) -> None:
        """Silently: both ends keep their carrier. A capture at either end still sees what arrives."""
        for node, interface in ((a, a.name + b.name), (b, b.name + a.name)):
            rule = f'type filter hook ingress device "{interface}" priority -500; policy drop;'
            node.run(f"nft 'table netdev cut_{interface} {{ chain everything {{ {rule} }}\n}}'")

    def heal(self, a: Node, b: Node) -> None:
        for node, interface in ((a, a.name + b.name), (b, b.name + a.name)):
            node.run(f"nft delete table netdev cut_{interface}")

    @contextmanager
    def capture(self, node: Node, interface: str, *, timestamps: bool = False) -> Iterator[Path]:
        """Babel packets at one interface, both directions, into a file that is complete after the block.

        Whatever was captured, our codec, tools/dissect, tcpdump and tshark (where installed) must read it alike.
        """
        path = self.directory / f"{interface}.pcap"
        path.unlink(missing_ok=True)  # an earlier one of this test
        options = ["-q", "-U", "--immediate-mode", "-i", interface, "-w", str(path), "udp", "port", "6696"]
        process = self.namespaces.popen(
            node.name, ["tcpdump", "-Z", "root", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        eventually(path.exists, 20, "tcpdump did not start")
        yield path
        time.sleep(0.2)
        self.namespaces.end(process)
        assert sum(assert_agrees_with_codec(packet) for packet in packets_in(path)) > 0
        assert assert_agrees_with_tcpdump(path) > 0
        if shutil.which("tshark") and not timestamps:  # tshark 4.0 takes IHUs with timestamps for malformed
            assert_agrees_with_tshark(path)

    def connects(self, a: Node, b: Node, *, family: int = 6) -> bool:
        addresses = (a.address6, b.address6) if family == 6 else (a.address4, b.address4)
        argv = ["ip", "netns", "exec", self.namespaces.full(a.name), sys.executable, "-S", "-c", CALLER, *addresses]
        return subprocess.run(argv, check=False, timeout=60).returncode == 0

    def await_all(self, *, family: int = 6, timeout: float = 20) -> None:
        """Every node connects to every other."""
        pairs = [(a, b) for a in self.nodes.values() for b in self.nodes.values() if a is not b]
        deadline = time.monotonic() + SLACK * timeout
        while pairs := [pair for pair in pairs if not self.connects(*pair, family=family)]:
            names = [f"{a.name} to {b.name}" for a, b in pairs]
            assert time.monotonic() < deadline, f"IPv{family} not connected: {', '.join(names)}"

    def await_reach(self, a: Node, b: Node, *, family: int = 6, timeout: float = 20) -> None:
        eventually(lambda: self.connects(a, b, family=family), timeout, f"{a.name} does not reach {b.name}")


def slow_wire(mesh: Mesh, a: Node, b: Node) -> None:
    """As `Mesh.wire`, but 60 ms long, through a namespace between the two."""
    here, there = a.name + b.name, b.name + a.name
    mesh.namespaces.add("slow")
    mesh.namespaces.run("slow", ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])
    mesh.namespaces.veth((a.name, here), ("slow", "left"))
    mesh.namespaces.veth((b.name, there), ("slow", "right"))
    for node, interface in ((a, here), (b, there)):
        node.interfaces.append(interface)
        node.run(f"ethtool -K {interface} tx off >/dev/null")  # a checksum that is left to the device stays undone
    mesh.namespaces.popen("slow", [sys.executable, "-S", "-c", DELAYER], stdout=None)


@contextmanager
def mesh(directory: Path, suffix: str) -> Iterator[Mesh]:
    with Namespaces(f"io-{suffix}-") as namespaces:
        yield Mesh(namespaces, directory)


def eventually(condition: Callable[[], Any], timeout: float, failure: str) -> None:
    deadline = time.monotonic() + SLACK * timeout
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.05)


def link_local(node: Node, interface: str) -> IPv6Address:
    words = node.run(f"ip -6 -o address show dev {interface} scope link").split()
    return IPv6Address(words[words.index("inet6") + 1].partition("/")[0])


def rewrite(node: Node, name: str, tables: list[dict[str, object]]) -> None:
    """Another version of one array of tables in the configuration of a running meshd."""
    path = node.directory / "config.toml"
    path.write_text(toml_text.dump(tomllib.loads(path.read_text()) | {name: tables}))
