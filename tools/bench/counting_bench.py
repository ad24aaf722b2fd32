"""Is every byte counted once? Mixed traffic over two relays, the meters of each hop against counters of their own.

Four namespaces in a line, the first sends. The judges are plain nftables counters on the wires between them, and of
what is for the first and for the last node. Meanwhile the meters are read every 100 ms, one relay is stopped and
started again, and the other killed (SIGKILL) and started again, both under traffic. While a relay has no routes it
drops packets: those are in a hop's count of what was sent, and not in that of what was carried.

With --loss, the wire between the relays loses that share of its packets, and what it loses is counted.
Ends with 1 if a meter is off by a byte.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tools.bench import forwarding_bench as lines
from tools.bench.common import Case, report
from tools.ns import Namespaces, exit_on_signals

_FLOWS = 1000
_NETWORKS = {6: "fd0a::/64", 4: "10.10.0.0/16"}
_LAST = 4
_LOSING_WIRE = 2
_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}


class Node:
    def __init__(self, line: lines.Line, n: int, directory: Path) -> None:
        self._line, self._n = line, n
        self._state = directory / f"state-{n}.json"
        ends = [("left", n - 1, "right"), ("right", n + 1, "left")]
        own = [lines._address(n, 4), lines._address(n, 6)]
        self._wanted = {
            "record": str(directory / f"record-{n}.json"),
            "state": str(self._state),
            "interfaces": lines._interfaces(n),
            "neighbours": [(i, lines._mac(m, other)) for i, m, other in ends if i in lines._interfaces(n)],
            "addresses": own,
            "routes": [*_routes_to_nodes(n), *_routes_to_networks(n)],
        }
        self._process = self._start()

    def _start(self) -> subprocess.Popen[Any]:
        argv = [sys.executable, "-m", "tools.bench.counting_node", json.dumps(self._wanted)]
        return self._line.namespaces.popen(str(self._n), argv, stdin=subprocess.PIPE)

    def wait_ready(self) -> None:
        if lines._line_of(self._process) != "ready\n":
            raise RuntimeError(f"node {self._n} did not start")

    def stop(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait(30)

    def restart(self, *, kill: bool) -> None:
        if kill:
            self._process.kill()
            self._process.wait()
            time.sleep(1)  # the kernel carries on
        else:
            self.stop()
        self._process = self._start()
        self.wait_ready()

    @property
    def by_lane(self) -> int:
        """Bytes that the fast lane has carried."""
        return int(json.loads(self._state.read_text())["by_lane"])

    def metered(self, direction: str, interface: str) -> int:
        totals: dict[str, int] = json.loads(self._state.read_text())["totals"]
        return totals.get(f"{direction} {interface}", 0)


def _routes_to_nodes(n: int) -> list[tuple[str, str, str]]:
    return [
        (f"{lines._address(to, family)}/{128 if family == 6 else 32}", interface, via)
        for to, interface, via in lines._routes(n)
        for family in (4, 6)
    ]


def _routes_to_networks(n: int) -> list[tuple[str, str, str]]:
    via = [(interface, hop) for to, interface, hop in lines._routes(n) if to == _LAST]
    return [(network, *way) for network in _NETWORKS.values() for way in via]


@contextmanager
def _line() -> Iterator[lines.Line]:
    """Four nodes; each wire between two of them runs through a namespace of its own, where the judge sits."""
    with Namespaces("mk-count-") as namespaces:
        for n in range(1, _LAST + 1):
            namespaces.add(str(n))
            namespaces.run(str(n), ["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"])
        for n in range(1, _LAST):
            wire = f"w{n}"
            namespaces.add(wire)
            namespaces.run(wire, ["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"])
            for end, node, interface in (("near", n, "right"), ("far", n + 1, "left")):
                macs = lines._mac(node, interface), f"02:00:00:ff:0{n}:0{node}"
                namespaces.veth((str(node), interface), (wire, end), macs=macs)
                namespaces.run(wire, ["ethtool", "-K", end, "gro", "off"])
        yield lines.Line(namespaces)


class Judges:
    """Counters of bytes at layer 3. Of the wire between n and n + 1: there, back (what was put on it); own_there,
    own_back (of that, what the node itself has sent); lost. Of the first and last node: here (what was for it)."""

    def __init__(self, line: lines.Line, loss: float) -> None:
        self._line = line
        for n in range(1, _LAST):
            rules = "\n".join(_wire_rules(n, loss if n == _LOSING_WIRE else 0.0))
            line.namespaces.run(f"w{n}", ["nft", "-f", "-"], stdin=rules + "\n")
        for n in (1, _LAST):
            line.namespaces.run(str(n), ["nft", "-f", "-"], stdin=_END_RULES)

    def wire(self, n: int) -> dict[str, int]:
        return self._counters(f"w{n}", "netdev")

    def vanished(self, n: int, direction: str) -> int:
        """Packets that the machine had no place for between the sender's egress and this wire: nobody counts them."""
        wire_end, sender, interface = ("near", n, "right") if direction == "there" else ("far", n + 1, "left")
        found = self._line.namespaces.run(f"w{n}", ["cat", f"/sys/class/net/{wire_end}/statistics/rx_dropped"])
        lost = self._line.namespaces.run(str(sender), ["cat", f"/sys/class/net/{interface}/statistics/tx_dropped"])
        return int(found) + int(lost)

    def here(self, n: int) -> int:
        return self._counters(str(n), "inet")["here"]

    def _counters(self, namespace: str, family: str) -> dict[str, int]:
        said = self._line.namespaces.run(namespace, ["nft", "-j", "list", "counters", "table", family, "judge"])
        found = [entry["counter"] for entry in json.loads(said)["nftables"] if "counter" in entry]
        return {counter["name"]: int(counter["bytes"]) for counter in found}


_END_RULES = """
table inet judge {
 counter here { }
 chain here {
  type filter hook input priority filter + 20;
  iifname "lo" accept
  ip6 saddr fe80::/10 accept
  counter name here
 }
}
"""


def _wire_rules(n: int, loss: float) -> list[str]:
    names = ("there", "back", "own_there", "own_back", "lost")
    rules = ["table netdev judge {", *(f"counter {name} {{ }}" for name in names)]
    for end, other, name, sender in (("near", "far", "there", n), ("far", "near", "back", n + 1)):
        rules.append(f'chain {name} {{ type filter hook ingress device "{end}" priority 0;')
        rules.append(f'ip6 saddr fe80::/10 fwd to "{other}"')
        rules.append(f'meta protocol != {{ ip, ip6 }} fwd to "{other}"')
        rules.append(f"counter name {name}")
        rules += [f"{v} saddr {lines._address(sender, f)} counter name own_{name}" for v, f in (("ip6", 6), ("ip", 4))]
        if loss and name == "there":
            rules.append(f"numgen random mod 1000000 < {int(loss * 1e6)} counter name lost drop")
        rules += [f'fwd to "{other}"', "}"]
    return [*rules, "}"]


def _traffic(line: lines.Line, size: int, restarts: list[tuple[Node, bool]], seconds: float) -> dict[str, int]:
    """Send it all, and restart relays under way. What was sent and what arrived, in bytes of payload."""
    for network in _NETWORKS.values():
        line.namespaces.run(str(_LAST), ["ip", "route", "add", "local", network, "dev", "lo"])
    sink = line.namespaces.popen(
        str(_LAST), [sys.executable, "-m", "tools.bench.counting_traffic", "sink"], stdin=subprocess.PIPE
    )
    if lines._line_of(sink) != "ready\n":
        raise RuntimeError("the sink did not start")
    wanted = {
        "bytes": size,
        "addresses": [lines._address(_LAST, family) for family in (6, 4)],
        "networks": [network.partition("/")[0] for network in _NETWORKS.values()],
        "flows": _FLOWS,
    }
    argv = [sys.executable, "-m", "tools.bench.counting_traffic", "send", json.dumps(wanted)]
    sender = line.namespaces.popen("1", argv, stdin=subprocess.PIPE)
    for node, kill in restarts:
        time.sleep(seconds)
        node.restart(kill=kill)
    if sender.stdin is not None:
        sender.stdin.close()
    sent = json.loads(lines._line_of(sender))
    time.sleep(1)  # the last are still under way
    if sink.stdin is not None:
        sink.stdin.close()
    arrived = json.loads(lines._line_of(sink))
    return {
        "sent_by_tcp": sent["streams"],
        "received_by_tcp": arrived["streams"],
        "sent_back_and_received": sent["back"],
        "sent_by_udp": sent["datagrams"],
        "received_by_udp": arrived["datagrams"],
    }


def run(size: int, *, loss: float = 0.0, restarts: bool = True, seconds: float = 2.0) -> list[Case]:
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mk-count-")))
        line = stack.enter_context(_line())
        nodes = {n: Node(line, n, directory) for n in range(1, _LAST + 1)}
        for node in nodes.values():
            node.wait_ready()
        judges = Judges(line, loss)
        under_way = [(nodes[2], False), (nodes[3], True)] if restarts else []
        payload = _traffic(line, size, under_way, seconds)
        for node in nodes.values():
            node.stop()
        return _verdict(nodes, judges, payload)


def _verdict(nodes: dict[int, Node], judges: Judges, payload: dict[str, int]) -> list[Case]:
    """`ours`: the meter. `anchor`: the judge."""
    cases = []

    def case(name: str, ours: int, anchor: int, **notes: object) -> None:
        cases.append(Case(f"counting: {name}", "bytes", [ours], [anchor], notes=notes))

    wires = {n: judges.wire(n) for n in range(1, _LAST)}
    for hop, wire in wires.items():
        for direction, sender, out, receiver, came in (
            ("there", hop, "right", hop + 1, "left"),
            ("back", hop + 1, "left", hop, "right"),
        ):
            lost = wire["lost"] if direction == "there" else 0
            notes: dict[str, object] = {"lost": lost, "vanished_packets": judges.vanished(hop, direction)}
            case(f"hop {hop} {direction}, sent", nodes[sender].metered("out", out), wire[direction], **notes)
            if receiver in (1, _LAST):
                case(f"hop {hop} {direction}, received", nodes[receiver].metered("in", came), judges.here(receiver))
                continue
            onward = wires[receiver if direction == "there" else receiver - 1]
            carried = onward[direction] - onward[f"own_{direction}"]
            notes = {
                "dropped": wire[direction] - lost - carried,  # while it had no routes
                "by_fast_lane": nodes[receiver].by_lane,  # of both directions
            }
            case(f"hop {hop} {direction}, carried", nodes[receiver].metered("forward_in", came), carried, **notes)
    case("payload by TCP, received", payload["received_by_tcp"], payload["sent_by_tcp"], **payload)
    return cases


def is_exact(cases: list[Case]) -> bool:
    return all(case.ours == case.anchor for case in cases)


def _size(text: str) -> int:
    unit = _UNITS.get(text[-1:].upper(), 1)
    return int(float(text.rstrip("KMGkmg")) * unit)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/bench/counting", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--bytes", type=_size, default=10**8, help="by TCP, as 10G (default 100M); UDP comes on top")
    parser.add_argument("--loss", type=float, default=0.0, help="share of the packets that one link loses, as 0.02")
    parser.add_argument("--seconds", type=float, default=2.0, help="until the first restart, and from it to the second")
    arguments = parser.parse_args()
    exit_on_signals()
    cases = run(arguments.bytes, loss=arguments.loss, seconds=arguments.seconds)
    print(report(cases, as_json=arguments.json))
    for case in cases:
        if case.ours != case.anchor:
            print(f"{case.name}: {case.ours:.0f} in place of {case.anchor:.0f}", file=sys.stderr)
    sys.exit(0 if is_exact(cases) else 1)


if __name__ == "__main__":
    main()
