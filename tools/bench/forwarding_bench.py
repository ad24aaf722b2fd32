"""Throughput over three hops (four namespaces in a line): meshd's kernel state against plain static routes.

The lines exist side by side on the same machine, with the same offload settings (GRO, GSO, TSO off, no packets of more
than one segment), and carry traffic in turns: anchor, ours, ours, anchor, ... What is compared is forwarding: on ours
the two relays have the real rules, sets, policy rules, routing table and fast lane, put there by `meshd.kernel`, which
also reads the meter every 100 ms; the first and the last node are plain hosts on both lines. `metered`: nobody is held
to the free tier. `enforced`: on each interface somebody is, but not the one who sends. `wireguard`: as `metered`, with
each hop of both lines in a WireGuard tunnel, of the kernel where it has one, else of wireguard-go. `ends too`: the
first and the last node of ours meter what they send and receive as well, which they do without the lane.

On bare veth the processor is what is scarce. Packets of UDP are counted there by seconds of the sender's processor
time: softirqs carry them all the way within it, and other load on the machine does not count. Elsewhere, by seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nacl.public import PrivateKey

from tools.bench.common import Case, report
from tools.bench.reading_bench import reading_cases
from tools.ns import Namespaces, exit_on_signals

_NODES = 4
_ROOT = Path(__file__).resolve().parents[2]
_SMALL, _FULL = 64, 1350  # bytes of payload of a datagram; fits a tunnel
_TUNNEL_MTU = 1420
_FLOWS = 1000
_TCP_PORT = 7777
_NETWORK = "fd0a::"
_STRANGER = "02:00:00:00:99:99"
_READING = "metered, reading 10,000 counters"
_RELAYS = range(2, _NODES)
_PRIORITY = ("nice", "-n", "-19")  # whatever else runs on the machine disturbs less


@dataclass(frozen=True)
class Line:
    """Four nodes in a row; node n has the addresses fd00::n and 10.9.0.n, and the interfaces left and right."""

    namespaces: Namespaces

    def measure(self, family: int, seconds: float, extra: list[str]) -> dict[str, Any]:
        """What iperf3 says of traffic from the first node to the last."""
        server_argv = [*_PRIORITY, "iperf3", "-s", "-1", "-B", _address(_NODES, family), "--forceflush"]
        server = self.namespaces.popen(str(_NODES), server_argv)
        try:
            while "listening" not in _line_of(server):
                if server.poll() is not None:
                    raise RuntimeError("iperf3 -s ended")
            client = [
                *_PRIORITY,
                "iperf3",
                "-J",
                "-c",
                _address(_NODES, family),
                "-t",
                str(seconds),
                "-O",
                "0.5",
                *extra,
            ]
            result: dict[str, Any] = json.loads(self.namespaces.run("1", client, timeout=seconds + 30))
            return result
        finally:
            self.namespaces.end(server)


@contextmanager
def _line(prefix: str, *, has_tunnels: bool = False) -> Iterator[Line]:
    """`left` and `right` are wires, or the tunnels over them."""
    with Namespaces(prefix) as namespaces:
        for n in range(1, _NODES + 1):
            namespaces.add(str(n))
            namespaces.run(str(n), ["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"])
        for n in range(1, _NODES):
            macs = _mac(n, "right"), _mac(n + 1, "left")
            ends = ("right-wire", "left-wire") if has_tunnels else ("right", "left")
            namespaces.veth((str(n), ends[0]), (str(n + 1), ends[1]), macs=macs)
        nodes = [_make_tunnels(namespaces, n) for n in range(1, _NODES + 1)] if has_tunnels else []
        yield Line(namespaces)
        for node in nodes:
            namespaces.end(node)


def _make_tunnels(namespaces: Namespaces, n: int) -> subprocess.Popen[Any]:
    """The process that has them."""
    wanted = []
    for interface in _interfaces(n):
        far = (n - 1, "right") if interface == "left" else (n + 1, "left")
        hop = min(n, far[0])
        wanted.append(
            {
                "name": interface,
                "unique": f"mk{os.getpid() % 100_000}{namespaces.prefix[3]}{n}{interface[0]}",
                "under": f"{interface}-wire",
                "key": _key(n, interface).encode().hex(),
                "peer": _key(*far).public_key.encode().hex(),
                "port": 51820 + hop,
                "far": _link_local(*far),
            }
        )
    argv = [sys.executable, "-m", "tools.bench.tunnel_node", json.dumps(wanted)]
    node = namespaces.popen(str(n), argv)
    if _line_of(node) != "ready\n":
        raise RuntimeError(f"node {n} has no tunnels")
    for interface in _interfaces(n):
        for words in (
            ["address", "add", f"{_link_local(n, interface)}/64", "dev", interface, "nodad"],
            ["link", "set", interface, "mtu", str(_TUNNEL_MTU), "up"],
        ):
            namespaces.run(str(n), ["ip", *words])
    return node


def _key(n: int, interface: str) -> PrivateKey:
    return PrivateKey(bytes([n, len(interface)] * 16))


@contextmanager
def anchor_line(*, has_tunnels: bool = False) -> Iterator[Line]:
    """Static routes in the main table, no nftables."""
    with _line("mk-tunnels-" if has_tunnels else "mk-anchor-", has_tunnels=has_tunnels) as line:
        for n in range(1, _NODES + 1):
            _make_plain(line, n, has_tunnels=has_tunnels)
        yield line


def _make_plain(line: Line, n: int, *, has_tunnels: bool) -> None:
    commands = ["sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"]
    for interface in _interfaces(n):
        commands.append(f"ethtool -K {interface} gro off {'' if has_tunnels else 'gso off tso off'}")
        commands.append(f"ip link set {interface} gso_max_segs 1")
    commands += [f"ip address add {_address(n, 4)} dev lo", f"ip address add {_address(n, 6)} dev lo nodad"]
    for to, interface, via in _routes(n):
        commands.append(f"ip -6 route add {_address(to, 6)} via {via} dev {interface} src {_address(n, 6)}")
        commands.append(f"ip route add {_address(to, 4)} via inet6 {via} dev {interface} src {_address(n, 4)}")
        if to == _NODES:
            commands.append(f"ip -6 route add {_NETWORK}/64 via {via} dev {interface} src {_address(n, 6)}")
    line.namespaces.run(str(n), ["sh", "-ec", "\n".join(commands)])


@contextmanager
def our_line(mode: str = "metered") -> Iterator[Line]:
    """The same with `meshd.kernel` on the relays; `ends too`: on every node."""
    prefix = {"metered": "mk-ours-", "enforced": "mk-enf-", "wireguard": "mk-wg-", "ends too": "mk-ends-"}[mode]
    has_tunnels = mode == "wireguard"
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="mk-bench-"))
        line = stack.enter_context(_line(prefix, has_tunnels=has_tunnels))
        is_enforced = mode == "enforced"
        ours = range(1, _NODES + 1) if mode == "ends too" else _RELAYS
        for n in {1, _NODES}.difference(ours):
            _make_plain(line, n, has_tunnels=has_tunnels)
        nodes = {n: _start_node(line, n, Path(directory), is_enforced=is_enforced) for n in ours}
        yield line
        carried = {n: _stop_node(node) for n, node in nodes.items()}
        if min(carried[n][0] for n in _RELAYS) <= 0:
            raise RuntimeError(f"the relays have not metered what they carried: {carried}")
        for n in _RELAYS:
            print(f"{mode}, relay {n}: {carried[n][1] / max(carried[n][0], 1):.1%} by the fast lane", file=sys.stderr)


def _start_node(line: Line, n: int, directory: Path, *, is_enforced: bool) -> subprocess.Popen[Any]:
    routes = [
        (f"{_address(to, family)}/{128 if family == 6 else 32}", interface, via)
        for to, interface, via in _routes(n)
        for family in (4, 6)
    ]
    routes += [(f"{_NETWORK}/64", interface, via) for to, interface, via in _routes(n) if to == _NODES]
    wanted = {
        "record": str(directory / f"{n}.json"),
        "interfaces": _interfaces(n),
        "addresses": [_address(n, 4), _address(n, 6)],
        "routes": routes,
        "held": [(interface, _STRANGER) for interface in _interfaces(n)] if is_enforced else [],
    }
    argv = [sys.executable, "-m", "tools.bench.kernel_node", json.dumps(wanted)]
    node = line.namespaces.popen(str(n), argv, stdin=subprocess.PIPE)
    if _line_of(node) != "ready\n":
        raise RuntimeError(f"node {n} did not start")
    return node


def _stop_node(node: subprocess.Popen[Any]) -> tuple[int, int]:
    """Bytes that it says it has carried, and how many of these by the fast lane."""
    if node.stdin is not None:
        node.stdin.close()
    carried, by_lane = map(int, _line_of(node).split())
    return carried, by_lane


def _line_of(process: subprocess.Popen[Any]) -> str:
    """The next line that it writes; empty when it has ended."""
    return str(process.stdout.readline()) if process.stdout is not None else ""


def _interfaces(n: int) -> list[str]:
    return [*(["left"] if n > 1 else []), *(["right"] if n < _NODES else [])]


def _routes(n: int) -> Iterator[tuple[int, str, str]]:
    """(destination, interface, link-local next hop) for every other node."""
    for to in range(1, _NODES + 1):
        if to != n:
            yield (to, "right", _link_local(n + 1, "left")) if to > n else (to, "left", _link_local(n - 1, "right"))


def _address(n: int, family: int) -> str:
    return f"fd00::{n}" if family == 6 else f"10.9.0.{n}"


def _mac(n: int, interface: str) -> str:
    return f"02:00:00:00:0{n}:0{1 if interface == 'left' else 2}"


def _link_local(n: int, interface: str) -> str:
    return f"fe80::ff:fe00:{n}0{1 if interface == 'left' else 2}"


def _tcp_gbit(options: list[str], line: Line, family: int, seconds: float, clock: str) -> float:
    del clock
    return float(line.measure(family, seconds, options)["end"]["sum_received"]["bits_per_second"]) / 1e9


def _many_tcp_gbit(line: Line, family: int, seconds: float, clock: str) -> float:
    """A thousand connections to as many addresses, that all send what they can; what their receiver got."""
    del family, clock
    argv = [*_PRIORITY, sys.executable, "-S", "-c", _CONNECTIONS, _NETWORK, str(_FLOWS), str(_TCP_PORT), str(seconds)]
    before = _received(line, "bytes")
    took = float(line.namespaces.run("1", argv, timeout=60 * seconds + 60))
    return (_received(line, "bytes") - before) * 8 / took / 1e9


def _udp_kpps(what: tuple[int, int], line: Line, family: int, seconds: float, clock: str) -> float:
    """Datagrams that arrive, thousands per second, when they are sent as fast as can be. `what`: size, and flows."""
    del family
    size, flows = what
    argv = [*_PRIORITY, sys.executable, "-S", "-c", _SENDER, _NETWORK, str(flows), str(size), str(seconds), clock]
    before = _received(line, "packets")
    took = float(line.namespaces.run("1", argv, timeout=60 * seconds + 60))
    return (_received(line, "packets") - before) / took / 1e3


def _received(line: Line, what: str) -> int:
    return int(line.namespaces.run(str(_NODES), ["cat", f"/sys/class/net/left/statistics/rx_{what}"]))


_SENDER = """
import socket, sys, time
base, flows, size, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
clock = getattr(time, sys.argv[5])
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
to = [(f"{base}{1 + n % flows:x}", 9, 0, 0) for n in range(1000)]
payload = bytes(size)
def send(until):
    while clock() < until:
        for address in to:
            udp.sendto(payload, address)
send(clock() + 0.3)
start = clock()
send(start + seconds)
print(clock() - start)
"""
_CONNECTIONS = """
import selectors, socket, sys, time
base, flows, port, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
ready = selectors.DefaultSelector()
for n in range(1, flows + 1):
    tcp = socket.create_connection((f"{base}{n:x}", port))
    tcp.setblocking(False)
    ready.register(tcp, selectors.EVENT_WRITE)
payload = bytes(16384)
start = time.monotonic()
while time.monotonic() < start + seconds:
    for key, _ in ready.select():
        try:
            key.fileobj.send(payload)
        except BlockingIOError:
            pass
print(time.monotonic() - start)
"""
_SINK = """
import resource, selectors, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
udp.bind(("::", 9))
listener = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, backlog=4096)
ready = selectors.DefaultSelector()
ready.register(listener, selectors.EVENT_READ)
print("ready", flush=True)
buffer = bytearray(1 << 17)
while True:
    for key, _ in ready.select():
        if key.fileobj is listener:
            ready.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        try:
            ended = not key.fileobj.recv_into(buffer)
        except OSError:
            ended = True
        if ended:
            ready.unregister(key.fileobj)
            key.fileobj.close()
"""


@dataclass(frozen=True)
class _Spec:
    """`mode`: metered, enforced or wireguard. `rate`: of all links, for tc; none: as fast as the processor can."""

    mode: str
    traffic: str
    unit: str
    family: int
    measure: Callable[[Line, int, float, str], float]
    rate: str = ""

    @property
    def clock(self) -> str:
        """Of `time`, for senders of datagrams: tunnels work in other threads than the sender, and shapers wait."""
        return "monotonic" if self.rate or self.mode == "wireguard" else "thread_time"

    @property
    def anchor(self) -> str:
        return "bare wireguard" if self.mode == "wireguard" else "anchor"

    @property
    def name(self) -> str:
        where = "against bare WireGuard" if self.mode == "wireguard" else "bare veth"
        return f"{self.mode}, {self.traffic}, {'links of 1 Gbit/s' if self.rate else where}"


_TRAFFIC: list[tuple[str, str, int, Callable[[Line, int, float, str], float]]] = [
    ("TCP IPv6, full packets, 1 flow", "Gbit/s", 6, partial(_tcp_gbit, [])),
    ("TCP IPv4, full packets, 1 flow", "Gbit/s", 4, partial(_tcp_gbit, [])),
    ("TCP IPv6, segments of 88 bytes, 1 flow", "Gbit/s", 6, partial(_tcp_gbit, ["-M", "88"])),
    ("TCP IPv6, full packets, 1,000 flows", "Gbit/s", 6, _many_tcp_gbit),
    ("UDP IPv6, full packets, 1 flow", "kpackets/s", 6, partial(_udp_kpps, (_FULL, 1))),
    ("UDP IPv6, 64 bytes, 1 flow", "kpackets/s", 6, partial(_udp_kpps, (_SMALL, 1))),
    ("UDP IPv6, full packets, 1,000 flows", "kpackets/s", 6, partial(_udp_kpps, (_FULL, _FLOWS))),
    ("UDP IPv6, 64 bytes, 1,000 flows", "kpackets/s", 6, partial(_udp_kpps, (_SMALL, _FLOWS))),
]
_SPECS = [
    _Spec(mode, *traffic, rate) for mode in ("metered", "enforced") for traffic in _TRAFFIC for rate in ("", "1gbit")
]
_SPECS += [_Spec("wireguard", *traffic) for traffic in _TRAFFIC]
_SPECS += [_Spec("ends too", *traffic) for traffic in (_TRAFFIC[0], *_TRAFFIC[4:])]


@contextmanager
def _shaped(lines: Sequence[Line], rate: str) -> Iterator[None]:
    """The same token bucket on all interfaces of all lines."""
    places = [(line, n, interface) for line in lines for n in range(1, _NODES + 1) for interface in _interfaces(n)]
    for line, n, interface in places if rate else ():
        bucket = ["tbf", "rate", rate, "burst", "256k", "latency", "20ms"]
        line.namespaces.run(str(n), ["tc", "qdisc", "replace", "dev", interface, "root", *bucket])
    try:
        yield
    finally:
        for line, n, interface in places if rate else ():
            line.namespaces.run(str(n), ["tc", "qdisc", "del", "dev", interface, "root"])


def _compare(spec: _Spec, anchor: Line, ours: Line, repeats: int, seconds: float) -> Case:
    samples: dict[str, list[float]] = {"anchor": [], "ours": []}
    with _shaped((anchor, ours), spec.rate):
        for repeat in range(repeats):
            turns = [("anchor", anchor), ("ours", ours)]
            for label, line in turns if repeat % 2 == 0 else reversed(turns):
                samples[label].append(spec.measure(line, spec.family, seconds, spec.clock))
                print(f"{spec.name}: {label} {samples[label][-1]:.4g} {spec.unit}", file=sys.stderr)
    return Case(spec.name, spec.unit, samples["ours"], samples["anchor"])


def _let_flows_end(line: Line) -> None:
    """What is sent to all addresses of the network is for the last node."""
    line.namespaces.run(str(_NODES), ["ip", "route", "add", "local", f"{_NETWORK}/64", "dev", "lo"])
    sink = line.namespaces.popen(str(_NODES), [sys.executable, "-S", "-c", _SINK, str(_TCP_PORT)])
    if _line_of(sink) != "ready\n":
        raise RuntimeError("nobody takes in what is sent")


def run(repeats: int, seconds: float, names: Sequence[str]) -> list[Case]:
    wanted = [spec for spec in _SPECS if spec.name in names]
    cases = []
    with ExitStack() as stack:
        lines: dict[str, Line] = {}
        for spec in wanted:
            if spec.anchor not in lines:
                lines[spec.anchor] = stack.enter_context(anchor_line(has_tunnels=spec.mode == "wireguard"))
            if spec.mode not in lines:
                lines[spec.mode] = stack.enter_context(our_line(spec.mode))
        for line in lines.values():
            _let_flows_end(line)
        for spec in wanted:
            cases.append(_compare(spec, lines[spec.anchor], lines[spec.mode], repeats, seconds))
    if _READING in names:
        cases += reading_cases(repeats)
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/bench/forwarding", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each kind (default 5)")
    parser.add_argument("--seconds", type=int, default=1, help="of each measurement (default 1)")
    parser.add_argument("--quick", action="store_true", help="one of a second each: whether it works at all")
    what = "only those whose name has this in it; more than one if given more than once"
    parser.add_argument("--case", action="append", help=what)
    arguments = parser.parse_args()
    exit_on_signals()
    start = time.monotonic()
    repeats, seconds = (1, 1) if arguments.quick else (arguments.repeats, arguments.seconds)
    every = [*(spec.name for spec in _SPECS), _READING]
    names = [name for name in every if any(part in name for part in arguments.case or [""])]
    if not names:
        parser.error("there is no such case; there are: " + "; ".join(every))
    cases = run(repeats, seconds, names)
    print(report(cases, as_json=arguments.json))
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
