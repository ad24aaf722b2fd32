"""Throughput over three hops (four namespaces in a line): meshd's kernel state against plain static routes.

Both lines exist side by side on the same machine, with the same offload settings (GRO, GSO, TSO off, no packets of more
than one segment), and carry traffic in turns: anchor, ours, ours, anchor, ... On ours every node has the real rules,
sets, policy rules and routing table, put there by `meshd.kernel`, which also reads the meter every second.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.bench.common import Case, report
from tools.ns import Namespaces, exit_on_signals

_NODES = 4
_ROOT = Path(__file__).resolve().parents[2]
_UDP_PAYLOAD = 64
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
def _line(prefix: str) -> Iterator[Line]:
    with Namespaces(prefix) as namespaces:
        for n in range(1, _NODES + 1):
            namespaces.add(str(n))
            namespaces.run(str(n), ["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"])
        for n in range(1, _NODES):
            macs = _mac(n, "right"), _mac(n + 1, "left")
            namespaces.veth((str(n), "right"), (str(n + 1), "left"), macs=macs)
        yield Line(namespaces)


@contextmanager
def anchor_line() -> Iterator[Line]:
    """Static routes in the main table, no nftables."""
    with _line("mk-anchor-") as line:
        for n in range(1, _NODES + 1):
            commands = ["sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"]
            for interface in _interfaces(n):
                commands.append(f"ethtool -K {interface} gro off gso off tso off")
                commands.append(f"ip link set {interface} gso_max_segs 1")
            commands += [f"ip address add {_address(n, 4)} dev lo", f"ip address add {_address(n, 6)} dev lo nodad"]
            for to, interface, via in _routes(n):
                commands.append(f"ip -6 route add {_address(to, 6)} via {via} dev {interface} src {_address(n, 6)}")
                v4 = f"ip route add {_address(to, 4)} via inet6 {via} dev {interface} src {_address(n, 4)}"
                commands.append(v4)
            line.namespaces.run(str(n), ["sh", "-ec", "\n".join(commands)])
        yield line


@contextmanager
def our_line() -> Iterator[Line]:
    """The same with `meshd.kernel` on every node."""
    with tempfile.TemporaryDirectory(prefix="mk-bench-") as directory, _line("mk-ours-") as line:
        nodes = [_start_node(line, n, Path(directory)) for n in range(1, _NODES + 1)]
        yield line
        carried = [_stop_node(node) for node in nodes]
        if carried[1] <= 0 or carried[2] <= 0:
            raise RuntimeError(f"the relays have not metered what they carried: {carried}")


def _start_node(line: Line, n: int, directory: Path) -> subprocess.Popen[Any]:
    routes = [
        (f"{_address(to, family)}/{128 if family == 6 else 32}", interface, via)
        for to, interface, via in _routes(n)
        for family in (4, 6)
    ]
    wanted = {
        "record": str(directory / f"{n}.json"),
        "interfaces": _interfaces(n),
        "addresses": [_address(n, 4), _address(n, 6)],
        "routes": routes,
    }
    argv = [sys.executable, "-m", "tools.bench.kernel_node", json.dumps(wanted)]
    node = line.namespaces.popen(str(n), argv, stdin=subprocess.PIPE)
    if _line_of(node) != "ready\n":
        raise RuntimeError(f"node {n} did not start")
    return node


def _stop_node(node: subprocess.Popen[Any]) -> int:
    """Bytes that it says it has carried."""
    if node.stdin is not None:
        node.stdin.close()
    return int(_line_of(node))


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


def _tcp_gbit(line: Line, family: int, seconds: float) -> float:
    return float(line.measure(family, seconds, [])["end"]["sum_received"]["bits_per_second"]) / 1e9


def _udp_kpps(line: Line, family: int, seconds: float) -> float:
    """Small packets that arrived, thousands per second, when the sender sends as fast as it can."""
    result = line.measure(family, seconds, ["-u", "-b", "0", "-l", str(_UDP_PAYLOAD)])["end"]["sum"]
    return float(result["packets"] - result["lost_packets"]) / float(result["seconds"]) / 1e3


_CASES: list[tuple[str, str, int, Callable[[Line, int, float], float]]] = [
    ("tcp-ipv6-3-hops", "Gbit/s", 6, _tcp_gbit),
    ("tcp-ipv4-3-hops", "Gbit/s", 4, _tcp_gbit),
    ("udp-64-ipv6-3-hops", "kpackets/s", 6, _udp_kpps),
]
# Small packets as fast as they go are no use of the network; they show what metering costs per packet.
_DEFAULT_CASES = ("tcp-ipv6-3-hops", "tcp-ipv4-3-hops")


def run(repeats: int, seconds: float, names: Sequence[str]) -> list[Case]:
    cases = []
    with ExitStack() as stack:
        anchor, ours = stack.enter_context(anchor_line()), stack.enter_context(our_line())
        for name, unit, family, measure in _CASES:
            if name not in names:
                continue
            samples: dict[str, list[float]] = {"anchor": [], "ours": []}
            for repeat in range(repeats):
                turns = [("anchor", anchor), ("ours", ours)]
                for label, line in turns if repeat % 2 == 0 else reversed(turns):
                    samples[label].append(measure(line, family, seconds))
                    print(f"{name} {label} {samples[label][-1]:.4g} {unit}", file=sys.stderr)
            cases.append(Case(name, unit, samples["ours"], samples["anchor"]))
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/bench/forwarding", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=21, help="measurements of each kind (default 21)")
    parser.add_argument("--seconds", type=float, default=1, help="seconds of each measurement (default 1)")
    names = [name for name, *_ in _CASES]
    what = f"which to run, more than one if given more than once; {', '.join(_DEFAULT_CASES)} if not given"
    parser.add_argument("--case", action="append", choices=names, help=what)
    arguments = parser.parse_args()
    exit_on_signals()
    start = time.monotonic()
    cases = run(arguments.repeats, arguments.seconds, arguments.case or _DEFAULT_CASES)
    print(report(cases, as_json=arguments.json))
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
