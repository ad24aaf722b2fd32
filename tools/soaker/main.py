"""A mesh of real daemons for an hour: links and processes come and go, traffic is paid, and what the daemons hold is
watched.

Every few seconds a link goes down for a while, or a daemon is killed or stopped and starts again. Some daemons are
never touched: their memory is what must not grow. In the end everything is put back, and must be as in the beginning:
file descriptors, tasks, interfaces, rules and routes; and the books of neighbours must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tools.bench.common import machine
from tools.killer import traffic
from tools.lab import topology
from tools.lab.kernel_state import difference, snapshot
from tools.lab.lab import Lab
from tools.lab.network import interface_to
from tools.lab.state import LabError, own_base
from tools.ns import exit_on_signals
from tools.soaker.vitals import Vitals, differing_pairs, held, look, slope

MIB = 1024 * 1024
PORT = 5001
BYTES_PER_SECOND = 50_000  # of each flow
PRICE_MSAT_PER_GB = 40_000_000  # 40 sat/MB: each hop of a flow costs 2 sat a second
PATIENCE = 180.0
LOOK_INTERVAL = 30.0
SPARE_DESCRIPTORS = 2  # a question that is being answered, a database that is being written
SPARE_TASKS = 4
STEEP = 4 * MIB  # an hour; judged only in runs of JUDGED_FROM and more: what is allocated at first is no growth
JUDGED_FROM = 1800.0
CONFIG: dict[str, dict[str, Any]] = {
    "payments": {"min_confirmations": 1},
    # As in the demo, the metric is scaled down to match: at the default a path of seven relays would be out of reach.
    "routing": {"price_weight": 16, "max_price_msat_per_gb": 1_000_000_000},
}


def _state(lab: Lab, node: str) -> dict[str, list[str]]:
    """Of the mesh's routes only where they lead: of two ways of the same price either may be taken."""
    state = snapshot(lab, node)
    state["routes"] = sorted(line.split(" via ")[0] if " proto 66" in line else line for line in state["routes"])
    return state


class Soak:
    """`deaths`: of what kind, how many. `seen`: what each daemon held, for as long as its process lived."""

    def __init__(self, lab: Lab, rng: random.Random, say: Callable[[str], None]) -> None:
        self._lab = lab
        self._rng = rng
        self._say = say
        self._started = time.monotonic()
        self._names = {lab.rpc(node, "status")["identity"]: node for node in lab.nodes}
        self._mortal = lab.nodes[1::3]
        self._due: list[tuple[float, Callable[[], None]]] = []  # what is to be put back, and when
        self._down: set[str] = set()
        self._senders: list[subprocess.Popen[Any]] = []
        self.deaths: Counter[str] = Counter()
        self.seen: dict[str, list[Vitals]] = {node: [] for node in lab.nodes}
        self.first_kernel = {node: _state(lab, node) for node in lab.nodes}
        self.first = {node: self._look(node) for node in lab.nodes}

    @property
    def untouched(self) -> list[str]:
        return [node for node in self._lab.nodes if node not in self._mortal]

    def _now(self) -> float:
        return time.monotonic() - self._started

    def _look(self, node: str) -> Vitals:
        tasks = int(self._lab.rpc(node, "status")["tasks"])
        return look(self._lab.state.process_by_node[node].pid, tasks, at=self._now())

    def start_traffic(self) -> None:
        """Between untouched daemons at opposite ends, both ways."""
        ends = self.untouched
        for sender, receiver in zip(ends[:4], reversed(ends[-4:]), strict=True):
            address, port = self._lab.address(receiver), str(PORT)
            self._lab.popen(receiver, [sys.executable, traffic.__file__, "sink", address, port])
            argv = [sys.executable, traffic.__file__, "send", address, port, str(BYTES_PER_SECOND)]
            self._senders.append(self._lab.popen(sender, argv))

    def run(self, seconds: float, *, every: float) -> None:
        """Something happens each `every` seconds, on average."""
        end, look_at, churn_at = self._now() + seconds, 0.0, self._now()
        while self._now() < end:
            self._put_back(self._now())
            if self._now() >= churn_at:
                self._churn()
                churn_at = self._now() + self._rng.expovariate(1 / every)
            if self._now() >= look_at:
                look_at = self._now() + min(LOOK_INTERVAL, seconds / 10)
                self._look_at_all(end)
            time.sleep(0.1)
        self._look_at_all(end)

    def _look_at_all(self, end: float) -> None:
        for node in self._lab.nodes:
            if node not in self._down:
                self.seen[node].append(self._look(node))
        held = [self.seen[node][-1].resident / MIB for node in self.untouched]
        left = max(0.0, end - self._now())
        self._say(f"{self._now():.0f} s, {left:.0f} s to go: {held[0]:.1f} MiB, {dict(self.deaths)}")

    def _put_back(self, now: float) -> None:
        due = [action for at, action in self._due if at <= now]
        self._due = [(at, action) for at, action in self._due if at > now]
        for action in due:
            action()

    def _churn(self) -> None:
        kind = self._rng.choice(("link", "link", "kill", "stop"))
        back_at = self._now() + self._rng.uniform(2.0, 20.0)
        if kind == "link":
            link = self._rng.choice(self._lab.state.links)
            self._set_link(link.a, link.b, "down")
            self._due.append((back_at, lambda: self._set_link(link.a, link.b, "up")))
        else:
            node = self._rng.choice(self._mortal)
            if node in self._down:
                return
            self._lab.kill_node(node, signal.SIGKILL if kind == "kill" else signal.SIGTERM, timeout=PATIENCE)
            self._down.add(node)
            self._due.append((back_at, lambda: self._start(node)))
        self.deaths[kind] += 1

    def _set_link(self, a: str, b: str, state: str) -> None:
        self._lab.exec(a, ["ip", "link", "set", interface_to(b), state])

    def _start(self, node: str) -> None:
        self._lab.start_node(node)
        self._down.discard(node)
        self.seen[node].clear()

    def finish(self) -> list[str]:
        """Puts everything back, waits, and says what is not as it was."""
        self._put_back(float("inf"))
        self._lab.wait_routes(PATIENCE)
        for sender in self._senders:
            sender.kill()
            sender.wait()
        found: list[str] = []
        deadline = time.monotonic() + PATIENCE
        while (found := self._what_differs()) and time.monotonic() < deadline:
            time.sleep(1)
        return found

    def _what_differs(self) -> list[str]:
        ledgers = {node: self._lab.rpc(node, "ledger") for node in self._lab.nodes}
        found = differing_pairs(ledgers, self._names) + held(ledgers, self._names)
        for node in self._lab.nodes:
            now, first = self._look(node), self.first[node]
            if now.descriptors > first.descriptors + SPARE_DESCRIPTORS:
                found.append(f"{node}: {now.descriptors} file descriptors, {first.descriptors} in the beginning")
            if now.tasks > first.tasks + SPARE_TASKS:
                found.append(f"{node}: {now.tasks} tasks, {first.tasks} in the beginning")
            if changed := difference(self.first_kernel[node], _state(self._lab, node)):
                found.append(f"{node}: in the kernel: {changed}")
        return found


def _report(soak: Soak, lab: Lab, seconds: float, found: list[str]) -> dict[str, Any]:
    warm = {node: [each for each in soak.seen[node] if each.at > seconds / 6] for node in soak.untouched}
    slopes = {node: slope(looks) for node, looks in warm.items()}
    if seconds >= JUDGED_FROM:
        found += [f"{node}: grows by {rate / MIB:.2f} MiB an hour" for node, rate in slopes.items() if rate > STEEP]
    ledgers = [entry for node in lab.nodes for entry in lab.rpc(node, "ledger")]
    return {
        "daemons": len(lab.nodes),
        "seconds": seconds,
        "events": dict(soak.deaths),
        "memory_slope_bytes_per_hour": {node: round(rate) for node, rate in slopes.items()},
        "memory_slope_median_bytes_per_hour": round(statistics.median(slopes.values())),
        "resident_bytes": {node: looks[-1].resident for node, looks in warm.items() if looks},
        "paid_msat": sum(entry["sent_msat"] for entry in ledgers),
        "received_msat": sum(entry["received_msat"] for entry in ledgers),
        "found": found,
        "machine": machine(),
    }


def paying(graph: topology.Topology) -> topology.Topology:
    """The same, at prices that make an hour's traffic a lot of payments."""
    nodes = tuple(topology.Node(node.name, PRICE_MSAT_PER_GB, CONFIG) for node in graph.nodes)
    return topology.Topology(nodes, graph.links)


def run(
    graph: topology.Topology, seconds: float, every: float, seed: str, say: Callable[[str], None]
) -> dict[str, Any]:
    """Needs root. Raises LabError when the mesh does not come up, or does not come back."""
    with Lab(graph, name=f"s{os.getpid()}", progress=say) as lab:
        lab.wait_routes(PATIENCE)
        soak = Soak(lab, random.Random(seed), say)
        soak.start_traffic()
        soak.run(seconds, every=every)
        say("putting everything back")
        found = soak.finish()
        report = _report(soak, lab, seconds, found)
        left = [node for node in lab.nodes if not _leaves_nothing(lab, node)]
        lab.keeps_logs = bool(found or left)
    report["found"] += [f"{node}: something stays in the kernel after its end" for node in left]
    return report


def _leaves_nothing(lab: Lab, node: str) -> bool:
    """After SIGTERM nothing of the daemon's is in its namespace: no rule, no table of nftables, no route."""
    lab.kill_node(node, signal.SIGTERM, timeout=PATIENCE)
    state = snapshot(lab, node)
    return not state["nftables"] and not any(" proto 66" in route for route in state["routes"])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 1 when anything grew, leaked or differed, or when the mesh did not come back."""
    parser = argparse.ArgumentParser(
        prog="tools/soak",
        description=(__doc__ or "").partition("\n\n")[0],
        epilog="Example: sudo tools/soak --minutes 60 --json > soak.json",
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--topology", default="grid:5x5", help="as tools/meshlab takes it (default grid:5x5)")
    parser.add_argument("--every", type=float, default=15.0, metavar="S", help="seconds between events (default 15)")
    parser.add_argument("--seed", default="1", help="of what happens when")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    exit_on_signals()
    try:
        graph = paying(topology.load(options.topology))
        with own_base("meshsoak-"):
            found = run(graph, options.minutes * 60, options.every, options.seed, _say)
    except (LabError, topology.TopologyError) as error:
        print(f"tools/soak: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        rate = found["memory_slope_median_bytes_per_hour"] / MIB
        print(f"{found['daemons']} daemons, {found['seconds']:.0f} s, {found['events']}: {rate:+.2f} MiB an hour")
        print("\n".join(found["found"]) or "nothing leaked, the books agree")
    return int(bool(found["found"]))


if __name__ == "__main__":
    sys.exit(main())
