"""What enforcement does: the rate that a debtor gets, what it costs an honest neighbour, how soon a payment ends it.

A debtor and an honest neighbour are behind one relay, which runs meshd's kernel code; the sink is behind the relay. The
rates of the debtor are those that the relay's kernel carried over its own clock, beside the configured one; those of
the honest neighbour are what arrived, with the debtor flooding the relay in its free tier, beside itself with the
debtor silent, in turns. The last case runs real daemons that pay over a channel.
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
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tools.bench.common import Case, report
from tools.lab.lab import Lab
from tools.lab.topology import Link, Node, Topology
from tools.ns import Namespaces, exit_on_signals

_DEBTOR, _HONEST, _RELAY, _SINK = "d", "h", "r", "s"
_NUMBER = {_DEBTOR: 1, _HONEST: 2, _RELAY: 3, _SINK: 4}
_LINK_RATE = "100mbit"  # of the neighbours' links: below what this machine forwards, so that the relay is not its limit
_FLOOD = "20M"
_PRIORITY = ("nice", "-n", "-19")  # the senders are not to be short of processor time: the network is measured
_WARM_UP = 3.0  # the bucket is full at first, and TCP has to find its rate
_PORT = 5300
_LEAST_PACKETS = 100  # in each measurement of a rate: TCP comes in bursts, and waits in between
_TICK = 1.0
_SAT_PER_MB = 1_000_000
_PATIENCE = 60.0


class Relay:
    """The relay's agent, and the namespaces around it."""

    def __init__(self, namespaces: Namespaces, process: subprocess.Popen[Any]) -> None:
        self.namespaces = namespaces
        self._process = process

    def ask(self, operation: str, neighbour: str = _DEBTOR) -> Any:
        request = json.dumps([operation, f"to-{neighbour}", _mac(neighbour, _RELAY).replace(":", "")])
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the relay has no pipes")
        self._process.stdin.write(request + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def free_rate(self, seconds: float) -> float:
        """Bits per second that are carried for the debtor."""
        began, free, *_ = self.ask("carried")
        time.sleep(seconds)
        ended, free_then, *_ = self.ask("carried")
        return float((free_then - free) * 8 / (ended - began))


@contextmanager
def _star(free_rate: int) -> Iterator[Relay]:
    with tempfile.TemporaryDirectory(prefix="gate-bench-") as directory, Namespaces("mk-gate-") as namespaces:
        for name in _NUMBER:
            namespaces.add(name)
            namespaces.run(name, ["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"])
        for name in (_DEBTOR, _HONEST, _SINK):
            ends = (name, f"to-{_RELAY}"), (_RELAY, f"to-{name}")
            namespaces.veth(*ends, macs=(_mac(name, _RELAY), _mac(_RELAY, name)))
            for node, interface in ends:
                setup = f"ethtool -K {interface} gro off gso off tso off; ip link set {interface} gso_max_segs 1"
                namespaces.run(node, ["sh", "-c", setup])
            _prepare_host(namespaces, name)
        wanted = {
            "record": str(Path(directory) / "record.json"),
            "interfaces": [f"to-{name}" for name in (_DEBTOR, _HONEST, _SINK)],
            "addresses": [_address(_RELAY)],
            "routes": [
                (f"{_address(name)}/128", f"to-{name}", _link_local(name, _RELAY)) for name in (_DEBTOR, _HONEST, _SINK)
            ],
            "free_rate": free_rate,
        }
        argv = [sys.executable, "-m", "tools.bench.enforcement_node", json.dumps(wanted)]
        process = namespaces.popen(_RELAY, argv, stdin=subprocess.PIPE)
        if process.stdout is None or process.stdout.readline() != '"ready"\n':
            raise RuntimeError("the relay did not start")
        yield Relay(namespaces, process)


def _prepare_host(namespaces: Namespaces, name: str) -> None:
    interface = f"to-{_RELAY}"
    commands = [
        f"ip address add {_address(name)} dev lo nodad",
        f"ip -6 route add fd00::/16 via {_link_local(_RELAY, name)} dev {interface} src {_address(name)}",
    ]
    if name != _SINK:
        commands.append(f"tc qdisc add dev {interface} root tbf rate {_LINK_RATE} burst 64k latency 50ms")
    namespaces.run(name, ["sh", "-ec", "\n".join(commands)])


def _address(name: str) -> str:
    return f"fd00::{_NUMBER[name]}"


def _mac(name: str, to: str) -> str:
    return f"02:00:00:00:0{_NUMBER[name]}:0{_NUMBER[to]}"


def _link_local(name: str, to: str) -> str:
    return f"fe80::ff:fe00:{_NUMBER[name]}0{_NUMBER[to]}"


@contextmanager
def _traffic(
    relay: Relay, sender: str, port: int, *extra: str, seconds: float = 3600
) -> Iterator[subprocess.Popen[Any]]:
    """iperf3 from there to the sink, for as long as the block lasts."""
    namespaces = relay.namespaces
    server = namespaces.popen(_SINK, [*_PRIORITY, "iperf3", "-s", "-1", "-p", str(port), "--forceflush"])
    try:
        while "listening" not in str(server.stdout.readline() if server.stdout else ""):
            if server.poll() is not None:
                raise RuntimeError("iperf3 -s ended")
        argv = [*_PRIORITY, "iperf3", "-J", "-c", _address(_SINK), "-p", str(port), "-t", str(seconds), *extra]
        client = namespaces.popen(sender, argv)
        try:
            yield client
        finally:
            namespaces.end(client)
    finally:
        namespaces.end(server)


def _debtor_rates(name: str, extra: Sequence[str], free_rate: int, repeats: int, seconds: float) -> Case:
    seconds = max(seconds, _LEAST_PACKETS * 1500 * 8 / free_rate)
    with _star(free_rate) as relay, _traffic(relay, _DEBTOR, _PORT, *extra):
        time.sleep(1.0)  # it is under way, paid for
        relay.ask("hold")
        time.sleep(_WARM_UP)
        samples = []
        for _ in range(repeats):
            samples.append(relay.free_rate(seconds))
            print(f"{name} {samples[-1]:,.0f} of {free_rate:,} bit/s", file=sys.stderr)
        _, free, refused, _ = relay.ask("carried")
        notes: dict[str, object] = {
            "goal": "0.9 to 1.1",
            "seconds": seconds,
            "free_bytes": free,
            "refused_bytes": refused,
        }
        return Case(name, "bit/s", samples, [float(free_rate)] * repeats, notes=notes)


def _honest_rate(relay: Relay, port: int, extra: Sequence[str], seconds: float) -> float:
    """Mbit/s that arrive."""
    with _traffic(relay, _HONEST, port, "-O", "0.5", *extra, seconds=seconds) as client:
        output, _ = client.communicate(timeout=seconds + 30)
    end = json.loads(output)["end"]
    received = end["sum_received"] if "sum_received" in end and "-u" not in extra else end["sum"]
    lost = float(received.get("lost_percent", 0.0))
    return float(received["bits_per_second"]) * (1 - lost / 100) / 1e6


def _honest(name: str, extra: Sequence[str], repeats: int, seconds: float) -> Case:
    """Alternately with and without the debtor's flood."""
    samples: dict[bool, list[float]] = {True: [], False: []}
    with _star(1_000_000) as relay:
        relay.ask("hold")
        for repeat in range(repeats):
            for is_flooded in (False, True) if repeat % 2 else (True, False):
                if is_flooded:
                    with _flood(relay):
                        samples[True].append(_honest_rate(relay, _PORT + 1, extra, seconds))
                else:
                    samples[False].append(_honest_rate(relay, _PORT + 1, extra, seconds))
                print(
                    f"{name} {'flooded' if is_flooded else 'alone'} {samples[is_flooded][-1]:.2f} Mbit/s",
                    file=sys.stderr,
                )
        _, _, refused, billed = relay.ask("carried")
    if not refused or billed:
        raise RuntimeError("the debtor's flood was not refused")
    return Case(
        name, "Mbit/s", samples[True], samples[False], notes={"goal": "at least 0.98", "refused_bytes": refused}
    )


@contextmanager
def _flood(relay: Relay) -> Iterator[None]:
    """UDP of the debtor at twenty times what is left of most free tiers; it needs nobody's answer."""
    program = (
        "import socket,sys,time\n"
        "s=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM);began=time.monotonic();sent=0\n"
        "while True:\n"
        " while sent*1248*8<=(time.monotonic()-began)*int(sys.argv[2]): s.sendto(bytes(1200),(sys.argv[1],9));sent+=1\n"
        " time.sleep(0.002)\n"
    )
    rate = str(int(_FLOOD.rstrip("M")) * 10**6)
    process = relay.namespaces.popen(_DEBTOR, [sys.executable, "-c", program, _address(_SINK), rate])
    try:
        time.sleep(0.5)
        yield
    finally:
        relay.namespaces.end(process)


def _payment(name: str, repeats: int, _: float) -> Case:
    """Seconds from the debtor's decision to pay until its relay carries everything again, beside two ticks."""
    config: dict[str, dict[str, Any]] = {
        "routing": {"price_weight": 16, "max_price_msat_per_gb": 1_000 * _SAT_PER_MB, "hello_interval": 1.0},
        "payments": {"tick": _TICK, "min_confirmations": 1, "free_rate": 1_000_000},
    }
    nodes = tuple(Node(n, 20 * _SAT_PER_MB, config) for n in ("n1", "n2", "n3"))
    graph = Topology(nodes, (Link("n1", "n2", "40mbit"), Link("n2", "n3", "40mbit")))
    samples = []
    with Lab(graph, name=f"gate{os.getpid()}") as lab:
        lab.wait_routes(_PATIENCE)
        sink = lab.popen("n3", ["iperf3", "-s"])
        source = lab.popen("n1", ["iperf3", "-c", lab.address("n3"), "-t", "3600"])
        identity = lab.rpc("n1", "status")["identity"]

        def state() -> str:
            return next((str(row["state"]) for row in lab.rpc("n2", "neighbours") if row["identity"] == identity), "?")

        _until(lambda: lab.rpc("n1", "status")["totals"]["spent_msat"] > 0)
        for _repeat in range(repeats):
            _until(lambda: state() == "open")
            lab.rpc("n1", "pay.hold")
            _until(lambda: state() == "suspended")
            time.sleep(3 * _TICK)  # its window is back at the start, and it has been asked more than once
            lab.rpc("n1", "pay.resume")
            samples.append(_until(lambda: state() == "open"))
            print(f"{name} {samples[-1]:.3f} s", file=sys.stderr)
        for process in (source, sink):
            process.terminate()
            process.wait()
    notes: dict[str, object] = {"goal": "at most 1 (two ticks)", "worst": max(samples)}
    return Case(name, "s", samples, [2 * _TICK] * repeats, higher_is_better=False, notes=notes)


def _until(is_so: Callable[[], bool]) -> float:
    began = time.monotonic()
    while not is_so():
        if time.monotonic() - began > _PATIENCE:
            raise RuntimeError(f"not seen within {_PATIENCE} s")
        time.sleep(0.01)
    return time.monotonic() - began


_Measure = Callable[[int, float], Case]


def _cases() -> dict[str, _Measure]:
    cases: dict[str, _Measure] = {}
    for label, rate in (("64-kbit", 64_000), ("1-mbit", 1_000_000), ("8-mbit", 8_000_000)):
        for kind, extra in (("tcp", ()), ("tcp-8-flows", ("-P", "8")), ("udp", ("-u", "-b", _FLOOD, "-l", "1200"))):
            name = f"enforced-debtor-{kind}-{label}"
            cases[name] = partial(_debtor_rates, name, extra, rate)
    for kind, extra in (("tcp", ()), ("udp", ("-u", "-b", "20M", "-l", "1200"))):
        name = f"enforced-honest-neighbour-{kind}"
        cases[name] = partial(_honest, name, extra)
    cases["enforced-payment-restores"] = partial(_payment, "enforced-payment-restores")
    return cases


def main() -> None:
    cases = _cases()
    parser = argparse.ArgumentParser(prog="tools/bench/enforcement", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each kind (default 5)")
    parser.add_argument(
        "--seconds", type=float, default=4, help="seconds of each measurement, more for low rates (default 4)"
    )
    parser.add_argument("--case", action="append", choices=list(cases), help="which to run; all if not given")
    arguments = parser.parse_args()
    exit_on_signals()
    done = [cases[name](arguments.repeats, arguments.seconds) for name in arguments.case or cases]
    print(report(done, as_json=arguments.json))


if __name__ == "__main__":
    main()
