"""One run: one daemon on all nodes of a topology, from the first raised link through the faults that were asked for."""

from __future__ import annotations

import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools.bench.converge.daemons import Fleet, Meshd, Times, Usage, make_addresses
from tools.bench.converge.follow import Tables, Timeline
from tools.bench.converge.monitor import Monitor
from tools.bench.converge.network import Network
from tools.bench.converge.topology import Link, Topology

SETTLE = 1.0  # seconds after the last daemon is ready
QUIET = 2.0  # a state counts as reached for good after so long without another change
LOOK_INTERVAL = 0.1
LOOK_AT_LEAST = 4.0  # how long a stream of events may go on before it is looked at
DEARER = 5  # times the cost, after the metric change
LOSS_PERCENT = 50
LOSSY_COST = 4  # of a link that loses half of its packets in both directions, as ETX has it
STEADY_MIN = 8.0  # the steady window: an update interval, or so many seconds

FAULTS = ("cut", "carrier", "metric", "stop", "loss", "kill")  # in this order; the last is not undone


@dataclass(frozen=True)
class Setting:
    """What distinguishes one run from another, but for the daemon."""

    topology: Topology
    spec: str
    hello: str  # as it is shown
    times: Mapping[str, Times]  # by daemon
    seed: int


@dataclass(frozen=True)
class Sample:
    """One thing measured once. `value` is in `unit`; the limit where `is_over` says that it took longer than that."""

    case: str
    spec: str
    hello: str
    seed: int
    daemon: str
    value: float
    unit: str = "s"
    is_over: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Run:
    """Use `samples()`, which yields as it measures."""

    def __init__(self, setting: Setting, kind: str, *, cases: Set[str], limit: float, prefix: str) -> None:
        self._setting, self._kind, self._cases, self._limit, self._prefix = setting, kind, cases, limit, prefix
        self._topology = setting.topology
        self._rng = random.Random(f"{setting.spec} {setting.seed}")

    def samples(self) -> Iterator[Sample]:
        directory = Path(tempfile.mkdtemp(prefix="meshd-convergence-"))
        is_kept = False
        try:
            addresses = make_addresses(directory, self._topology.nodes)
            with ExitStack() as stack:
                self._network = stack.enter_context(Network(self._topology, addresses, self._prefix))
                self._monitor = stack.enter_context(Monitor(self._network))
                self._tables = Tables(self._topology)
                times = self._setting.times[self._kind]
                wireless = "loss" in self._cases
                self._fleet = Fleet(self._kind, self._network, directory, times, is_wireless=wireless)
                stack.callback(self._fleet.stop)
                yield from self._measure()
        except Exception:
            is_kept = True
            print(f"what the daemons wrote is kept in {directory}", file=sys.stderr)
            raise
        finally:
            if not is_kept:
                shutil.rmtree(directory)

    def _measure(self) -> Iterator[Sample]:
        yield self._sample("start-up time", self._fleet.start())
        time.sleep(SETTLE)
        yield from self._cold()
        if "steady" in self._cases:
            yield from self._steady()
        faults = [fault for fault in FAULTS if fault in self._cases]
        if faults and not self._is_good("delivered"):
            print(f"{self._kind} still lacks {len(self._tables.missing())} pairs: no faults", file=sys.stderr)
            return
        on_links = {"cut": self._cut, "carrier": self._carrier, "metric": self._metric, "loss": self._loss}
        on_nodes = {"stop": self._stop, "kill": self._kill}
        for fault in faults:
            # A fault where this daemon happens to send nothing would say nothing.
            paths = self._tables.paths()
            if fault in on_links:
                yield from on_links[fault](self._topology.busy_link(paths, self._rng))
            else:
                yield from on_nodes[fault](self._topology.busy_node(paths, self._rng))

    def _cold(self) -> Iterator[Sample]:
        cpu = [daemon.usage().cpu_seconds for daemon in self._fleet.daemons]
        timeline, end = self._follow(self._network.raise_links, until="optimal")
        yield self._time("cold reachable 99%", timeline.since("delivered", 0.99))
        yield self._time("cold reachable", timeline.since("delivered"))
        yield self._time("cold optimal 99%", timeline.since("optimal", 0.99))
        yield self._time("cold optimal", timeline.since("optimal"))
        yield self._sample("cold loops", timeline.loops(), "loops")
        yield self._sample("cold unreachable", timeline.lost_pair_seconds(end) / timeline.pairs, "s/pair")
        after = [daemon.usage().cpu_seconds for daemon in self._fleet.daemons]
        spent = statistics.mean(b - a for a, b in zip(cpu, after, strict=True))
        yield self._sample("cold CPU", 1000 * spent, "ms/node")
        self._fleet.require_alive()

    def _steady(self) -> Iterator[Sample]:
        before = [self._reading(node) for node in range(self._topology.nodes)]
        time.sleep(max(STEADY_MIN, self._setting.times[self._kind].update))
        after = [self._reading(node) for node in range(self._topology.nodes)]
        both = list(zip(before, after, strict=True))
        yield self._sample(
            "steady control traffic", statistics.mean((b[1] - a[1]) / (b[0] - a[0]) for a, b in both), "B/s"
        )
        spent = [(b[2].cpu_seconds - a[2].cpu_seconds) / (b[0] - a[0]) for a, b in both]
        yield self._sample("steady CPU", 1000 * statistics.mean(spent), "ms/s")
        usage = [reading[2] for reading in after]
        yield self._sample("resident memory", statistics.mean(u.resident_mb for u in usage), "MB")
        yield self._sample("proportional memory", statistics.mean(u.proportional_mb for u in usage), "MB")

    def _reading(self, node: int) -> tuple[float, int, Usage]:
        """(when, control bytes sent, usage): to read all nodes takes a while on a busy machine."""
        return time.monotonic(), self._network.control_bytes(node), self._fleet.daemons[node].usage()

    def _cut(self, at: Link) -> Iterator[Sample]:
        timeline, _ = self._follow(lambda: self._network.silence_link(at), dead_links={at})
        yield from self._recovery("silent cut", timeline)
        timeline, _ = self._follow(lambda: self._network.heal(at), until="optimal")
        yield self._time("cut healed, optimal", timeline.since("optimal"))

    def _carrier(self, at: Link) -> Iterator[Sample]:
        timeline, _ = self._follow(lambda: self._network.set_carrier(at, is_up=False), dead_links={at})
        yield from self._recovery("carrier loss", timeline)
        self._follow(lambda: self._network.set_carrier(at, is_up=True))

    def _metric(self, at: Link) -> Iterator[Sample]:
        def change() -> None:
            self._fleet.set_cost(*at, 96 * DEARER)

        timeline, end = self._follow(change, until="optimal", costs={at: DEARER})
        yield self._time("metric change, optimal", timeline.since("optimal"))
        yield self._sample("metric change, unreachable", timeline.lost_pair_seconds(end), "pair s")
        yield self._sample("metric change, loops", timeline.loops(), "loops")
        self._follow(lambda: self._fleet.set_cost(*at, 96))

    def _stop(self, node: int) -> Iterator[Sample]:
        daemon = self._fleet.daemons[node]
        timeline, _ = self._follow(daemon.terminate, dead_nodes={node})
        yield from self._recovery("graceful stop", timeline)
        daemon.reap()
        daemon.start()
        daemon.await_ready()
        self._follow(lambda: None)

    def _loss(self, at: Link) -> Iterator[Sample]:
        timeline, _ = self._follow(
            lambda: self._network.lose(at, LOSS_PERCENT), until="optimal", costs={at: LOSSY_COST}
        )
        yield self._time("half lost, optimal", timeline.since("optimal"))
        self._follow(lambda: self._network.heal(at))

    def _kill(self, node: int) -> Iterator[Sample]:
        def power_off() -> None:
            self._network.silence_node(node)
            self._fleet.daemons[node].kill()

        timeline, _ = self._follow(power_off, dead_nodes={node})
        yield from self._recovery("node kill", timeline)
        self._fleet.require_alive(but=node)

    def _recovery(self, name: str, timeline: Timeline) -> Iterator[Sample]:
        yield self._time(name, timeline.since("delivered"))
        yield self._sample(f"{name}, loops", timeline.loops(), "loops")

    def _follow(
        self,
        do: Callable[[], None],
        *,
        until: str = "delivered",
        costs: Mapping[Link, int] | None = None,
        dead_links: Set[Link] = frozenset(),
        dead_nodes: Set[int] = frozenset(),
    ) -> tuple[Timeline, float]:
        """Do it and watch until all pairs are `until` and stay so, or to the limit. Also when the watch ended."""
        self._tables.apply(self._monitor.take())
        began = time.monotonic()
        timeline = self._tables.begin(began, costs=costs, dead_links=dead_links, dead_nodes=dead_nodes)
        do()
        looked_at = began
        while True:
            time.sleep(LOOK_INTERVAL)
            now = time.monotonic()
            quiet = now - self._monitor.last_at
            if quiet > 3 * LOOK_INTERVAL or now - looked_at > LOOK_AT_LEAST:
                self._tables.apply(self._monitor.take())
                looked_at = now
                is_settled = min(quiet, now - began) >= QUIET
                if (is_settled and self._is_good(until)) or now - began >= self._limit + QUIET:
                    return timeline, now

    def _is_good(self, what: str) -> bool:
        return bool(getattr(self._tables.now, what) >= self._tables.timeline.pairs)

    def _time(self, case: str, seconds: float | None) -> Sample:
        is_over = seconds is None or seconds > self._limit
        value = self._limit if seconds is None or is_over else seconds
        return self._sample(case, value, is_over=is_over)

    def _sample(self, case: str, value: float, unit: str = "s", *, is_over: bool = False) -> Sample:
        setting = self._setting
        return Sample(case, setting.spec, setting.hello, setting.seed, self._kind, round(value, 4), unit, is_over)


DIAMOND = Topology("diamond", 4, ((0, 1), (0, 2), (1, 3), (2, 3)))
FEES = {1: 100_000, 2: 200_000}  # msat per GB; then the first asks
RAISED = 3_000_000


def price_samples(setting: Setting, *, limit: float, prefix: str) -> Iterator[Sample]:
    """The cheaper of two ways raises its price: until no packet between the ends goes there. meshd only."""
    run = PriceRun(setting, "meshd", cases=set(), limit=limit, prefix=prefix)
    yield from run.samples()


class PriceRun(Run):
    def _measure(self) -> Iterator[Sample]:
        daemons = [daemon for daemon in self._fleet.daemons if isinstance(daemon, Meshd)]
        for daemon in daemons:
            daemon.is_priced = True
        self._fleet.start()
        for node, fee in FEES.items():
            daemons[node].set_fee(fee)
        dear = {(0, 2): DEARER, (2, 3): DEARER}
        self._follow(self._network.raise_links, until="optimal", costs=dear)
        turned = {(0, 1): DEARER, (1, 3): DEARER}
        timeline, _ = self._follow(lambda: daemons[1].set_fee(RAISED), until="optimal", costs=turned)
        yield self._time("price rise, rerouted", timeline.since("optimal"))
        yield self._sample("price rise, loops", timeline.loops(), "loops")
