"""Real daemons in network namespaces, and the simulator, through the same history: a cold start, other costs of all
links, links that are cut without a carrier to tell of it, and healed.

What is done to the daemons is noted with its time: when each of them took each interface into use, and when each end of
each link had its new cost. The simulator goes through just that, several times with other random numbers. Times count
from the moment when all was done. Links are cut and healed at random moments of the Hello interval, on both sides, so
that means are compared.

Routes are compared one by one, next hop and metric, after every change of the costs, which are such that every best
path is the only one.

25 daemons share this machine's processors, and after a cold start they wait for them. The simulator does so too
(`simulator.exact.processors`), with the CPU time for each packet that another mesh took in a measurement of its own.
The daemons are scheduled before all else on this machine (SCHED_RR), once they have started. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, cast

from simulator.exact.processors import Work
from tests.comparison.history import CASES, SHARES, End, Findings, History, Plan, Route, plan
from tests.comparison.simulated import Simulation
from tools.bench.common import machine
from tools.bench.converge.daemons import Meshd, Times
from tools.bench.converge.follow import Timeline
from tools.bench.converge.run import Run, Sample, Setting
from tools.bench.converge.topology import Link, Topology, link, parse
from tools.ns import exit_on_signals

SETTLE = 1.0  # seconds after the last daemon is ready
PATIENCE = 60.0  # for how long the effect of what is done is awaited
BETWEEN_CHANGES = 20.0  # of costs: then no neighbour has a budget that is used up (docs/limits.md)
COLD_START = 6.0  # seconds, more than one takes
TOLERANCE = 0.2
CALIBRATION = "geometric:25/40"  # as many nodes, and so as much in a packet


class PromptRun(Run):
    """Whatever else the machine has to do: the daemons come first, but for who watches them."""

    def _start(self) -> None:
        self._fleet.start()
        for daemon in self._fleet.daemons:
            if daemon.process is not None:
                for thread in os.listdir(f"/proc/{daemon.process.pid}/task"):
                    os.sched_setscheduler(int(thread), os.SCHED_RR, os.sched_param(1))
        os.sched_setscheduler(self._monitor.thread_id, os.SCHED_RR, os.sched_param(2))
        time.sleep(SETTLE)

    def _follow(self, do: Callable[[], None], **state: Any) -> tuple[Timeline, float]:
        """What is done is done at once, too."""

        def do_first() -> None:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))
            try:
                do()
            finally:
                os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

        return super()._follow(do_first, **state)


class LabRun(PromptRun):
    """The daemons' side. `history`: when it was done to them, what the plan says."""

    def __init__(self, setting: Setting, todo: Plan, *, prefix: str) -> None:
        super().__init__(setting, "meshd", cases=set(), limit=PATIENCE, prefix=prefix)
        self._plan = todo
        self._done_at = 0.0
        self.findings = Findings()
        self.history = History()

    @property
    def _daemons(self) -> list[Meshd]:
        return cast(list[Meshd], self._fleet.daemons)

    def _measure(self) -> Iterator[Sample]:
        for daemon in self._daemons:
            daemon.log_level = "info"
        self._start()
        timeline, _ = self._follow(self._network.raise_links, until="optimal")
        self.history.raised = self._interfaces_up(timeline.start)
        up_after = max(self.history.raised.values())
        self.findings.note(CASES[0], timeline.since("delivered"), after=up_after)
        self.findings.note(CASES[1], timeline.since("optimal"), after=up_after)
        for costs in self._plan.costs:
            time.sleep(BETWEEN_CHANGES)
            self._change_costs(costs)
        for at in self._plan.cuts:
            self._cut_and_heal(at, self._plan.costs[-1])
        yield from ()

    def _interfaces_up(self, began: float) -> dict[End, float]:
        """The last time for each: one that is up before the other end is has no carrier yet."""
        lag = time.time() - time.monotonic()
        found: dict[End, float] = {}
        for daemon in self._daemons:
            for line in daemon.log():
                if line["event"] == "interface up":
                    found[daemon.node, _neighbour(line["interface"])] = max(0.0, line["time"] - lag - began)
        return found

    def _change_costs(self, costs: dict[Link, int]) -> None:
        done: dict[End, float] = {}

        def change(daemon: Meshd) -> None:
            for name in daemon.interfaces:
                peer = _neighbour(name)
                daemon.set_cost(name, costs[link(daemon.node, peer)])
                done[daemon.node, peer] = time.monotonic()

        def change_all() -> None:
            with ThreadPoolExecutor(len(self._daemons)) as pool:
                list(pool.map(change, self._daemons))

        timeline, _ = self._follow(change_all, until="optimal", costs=costs)
        changed = {end: at - timeline.start for end, at in done.items()}
        self.history.changed.append(changed)
        for case, share in SHARES:
            self.findings.note(case, timeline.since("optimal", share), after=max(changed.values()))
        self._await_metrics()

    def _cut_and_heal(self, at: Link, costs: dict[Link, int]) -> None:
        self._wait()
        cut = self._stamped(lambda: self._network.silence_link(at))
        timeline, _ = self._follow(cut, dead_links={at}, costs=costs)
        self.findings.note(CASES[4], timeline.since("delivered"), after=self._done_at - timeline.start)
        self._wait()
        heal = self._stamped(lambda: self._network.heal(at))
        timeline, _ = self._follow(heal, until="optimal", costs=costs)
        self.findings.note(CASES[5], timeline.since("optimal"), after=self._done_at - timeline.start)

    def _wait(self) -> None:
        """Hellos are somewhere in their interval when something is done, as in the simulation."""
        time.sleep(random.uniform(0.0, self._setting.times["meshd"].hello))

    def _stamped(self, do: Callable[[], None]) -> Callable[[], None]:
        def stamp() -> None:
            do()
            self._done_at = time.monotonic()

        return stamp

    def _await_metrics(self) -> None:
        """Small changes of a metric are told late: until nothing has moved for a while."""
        deadline = time.monotonic() + PATIENCE
        before: set[Route] = set()
        found = self._read_routes()
        while found != before and time.monotonic() < deadline:
            time.sleep(5.0)
            before, found = found, self._read_routes()
        self.findings.routes.append(found)

    def _read_routes(self) -> set[Route]:
        node_of = {str(address): node for node, address in enumerate(self._network.addresses)}
        found: set[Route] = set()
        for daemon in self._daemons:
            for row in daemon.rpc("routes"):
                if row["selected"] and not row["origin"]:
                    destination = node_of[row["prefix"].removesuffix("/128")]
                    found.add((daemon.node, destination, _neighbour(row["interface"]), row["metric"]))
        return found


def _neighbour(interface: str) -> int:
    return int(interface.removeprefix("to"))


class WorkRun(PromptRun):
    """How much CPU time a packet of a cold start takes: less what interfaces take that come up and hear nobody, and not
    counting those packets, mostly Hellos that cost little, which come later, too."""

    def __init__(self, setting: Setting, *, prefix: str) -> None:
        super().__init__(setting, "meshd", cases=set(), limit=PATIENCE, prefix=prefix)
        self.packet_seconds = 0.0

    def _measure(self) -> Iterator[Sample]:
        nodes = range(self._topology.nodes)
        self._start()
        for node in nodes:
            self._network.silence_node(node)
        alone, _ = self._spent(self._network.raise_links)
        for at in self._topology.links:
            self._network.set_carrier(at, is_up=False)
        time.sleep(SETTLE)
        self._network.heal(nodes)
        together, packets = self._spent(self._network.raise_links)
        _, later = self._spent(lambda: None)
        self.packet_seconds = (together - alone) / (packets - later)
        yield from ()

    def _spent(self, do: Callable[[], object]) -> tuple[float, int]:
        """CPU seconds of all daemons, and the packets that they received, within COLD_START seconds of it."""
        before = self._totals()
        until = time.monotonic() + COLD_START
        do()
        time.sleep(max(0.0, until - time.monotonic()))
        after = self._totals()
        return after[0] - before[0], after[1] - before[1]

    def _totals(self) -> tuple[float, int]:
        cpu = sum(daemon.usage().cpu_seconds for daemon in self._fleet.daemons)
        counters = [cast(Meshd, daemon).rpc("status")["counters"] for daemon in self._fleet.daemons]
        return cpu, sum(counter.get("packets received", 0) for counter in counters)


@dataclass(frozen=True, slots=True)
class Comparison:
    case: str
    lab: float
    simulated: float
    samples: int  # of the lab
    errors: tuple[float, float]  # standard errors of the two means, as parts of them

    @property
    def ratio(self) -> float:
        return self.lab / self.simulated if self.simulated > 0 else float("inf")

    @property
    def is_within(self) -> bool:
        return abs(self.ratio - 1.0) <= TOLERANCE


def compare(lab: Findings, simulated: Findings) -> list[Comparison]:
    rows = []
    for case in CASES:
        measured, virtual = lab.seconds[case], simulated.seconds[case]
        if not measured:
            continue
        errors = (_error(measured), _error(virtual))
        means = statistics.mean(measured), statistics.mean(virtual)
        rows.append(Comparison(case, *means, len(measured), errors))
    return rows


def _error(seconds: Sequence[float]) -> float:
    if len(seconds) < 2 or sum(seconds) == float("inf"):
        return 0.0
    return float(statistics.stdev(seconds) / len(seconds) ** 0.5 / max(statistics.mean(seconds), 1e-9))


@dataclass(slots=True)
class Outcome:
    rows: list[Comparison]
    routes: int  # that were compared
    different: int
    packet_seconds: float

    @property
    def is_good(self) -> bool:
        return self.different == 0 and all(row.is_within for row in self.rows)


@dataclass(frozen=True, slots=True)
class Amount:
    runs: int
    changes: int
    cuts: int
    seeds: int  # for each run


def run(topology: Topology, times: Times, amount: Amount) -> Outcome:
    prefix = f"simex{os.getpid()}-"
    calibration = WorkRun(_setting(replace(parse(CALIBRATION, 1), name=CALIBRATION), times, 0), prefix=prefix)
    list(calibration.samples())
    work = Work(len(os.sched_getaffinity(0)), calibration.packet_seconds)
    print(f"a packet takes {work.packet_seconds * 1e6:.0f} us of a processor", file=sys.stderr, flush=True)
    lab, simulated = Findings(), Findings()
    routes = different = 0
    for number in range(amount.runs):
        todo = plan(topology, changes=amount.changes, count=amount.cuts, seed=number)
        one = LabRun(_setting(topology, times, number), todo, prefix=prefix)
        list(one.samples())
        _add(lab, one.findings)
        print(f"lab run {number + 1} of {amount.runs}: {_text(one.findings)}", file=sys.stderr, flush=True)
        for seed in range(amount.seeds):
            again = Simulation(topology, times, todo, one.history, seed=number * amount.seeds + seed, work=work).run()
            _add(simulated, again)
            routes += sum(len(found) for found in again.routes)
            pairs = zip(one.findings.routes, again.routes, strict=True)
            different += sum(len(found ^ wanted) for found, wanted in pairs)
            print(f"simulated: {_text(again)}", file=sys.stderr, flush=True)
    return Outcome(compare(lab, simulated), routes, different, work.packet_seconds)


def _setting(topology: Topology, times: Times, number: int) -> Setting:
    return Setting(topology, topology.name, f"{times.hello:g}", {"meshd": times}, number)


def _add(findings: Findings, one: Findings) -> None:
    for case, seconds in one.seconds.items():
        findings.seconds[case] += seconds


def _text(findings: Findings) -> str:
    return ", ".join(
        f"{case}: {' '.join(f'{value:.3f}' for value in seconds)}" for case, seconds in findings.seconds.items()
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/compare lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="grid:5x5", help="as in tools/bench/convergence (default: %(default)s)")
    parser.add_argument("--hello", type=float, default=4.0, help="seconds (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="of the lab (default: %(default)s)")
    parser.add_argument("--changes", type=int, default=12, help="of all costs in each run (default: %(default)s)")
    parser.add_argument("--cuts", type=int, default=32, help="links that are cut in each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=4, help="simulations of each run (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object of `cases` and `machine`")
    options = parser.parse_args(argv)
    if os.geteuid() != 0:
        parser.error("network namespaces need root")
    exit_on_signals()
    topology = replace(parse(options.topology, 1), name=options.topology)
    times = Times(options.hello, 4 * options.hello)
    outcome = run(topology, times, Amount(options.runs, options.changes, options.cuts, options.seeds))
    print(json.dumps(_document(outcome), indent=2) if options.json else _table(outcome))
    return 0 if outcome.is_good else 1


def _document(outcome: Outcome) -> dict[str, Any]:
    cases = [
        {"name": row.case, "ours": row.simulated, "anchor": row.lab, "ratio": row.ratio, "samples": row.samples}
        | {"standard_errors": row.errors, "ok": row.is_within}
        for row in outcome.rows
    ]
    counts = {"routes": outcome.routes, "different": outcome.different, "packet_seconds": outcome.packet_seconds}
    return {"cases": cases, **counts, "machine": machine(), "ok": outcome.is_good}


def _table(outcome: Outcome) -> str:
    lines = [
        f"{outcome.routes} routes, {outcome.different} differ",
        f"{'mean seconds':<26}{'lab':>8}{'+-':>7}{'simulated':>11}{'+-':>7}{'ratio':>8}",
    ]
    for row in outcome.rows:
        verdict = "" if row.is_within else "  not within 20 %"
        here = f"{row.lab:8.3f}{row.errors[0]:7.0%}"
        lines.append(f"{row.case:<26}{here}{row.simulated:11.3f}{row.errors[1]:7.0%}{row.ratio:8.2f}{verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
