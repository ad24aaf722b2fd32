"""Real daemons in network namespaces, and the simulator, through the same history: a cold start, other link costs,
links that are cut without a carrier to tell of it, and healed.

Routes are compared one by one, next hop and metric; the costs are such that every best path is the only one. Times are
compared by their means: when a link is cut its Hellos are somewhere in their interval, so that single times differ. The
daemons share this machine's processors with all else, the simulator's need none: on a busy machine the cold start,
which is work and not waiting, takes longer than simulated. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import networkx as nx

from routing.config import SpeakerConfig
from simulator.network import Network as SimulatedNetwork
from simulator.network import Options, node_at, prefix_of
from tools.bench.common import machine
from tools.bench.converge.daemons import Meshd, Times
from tools.bench.converge.follow import RouteEvent, Tables, Timeline
from tools.bench.converge.run import Run, Sample, Setting
from tools.bench.converge.topology import Link, Topology, parse
from tools.ns import exit_on_signals

LATENCY = 0.0005  # of a veth pair and two wake-ups on an idle machine
START_SPREAD = 0.05
SETTLED = 20.0  # virtual seconds before something is done
PATIENCE = 60.0  # and for how long its effect is awaited
COSTS = (96, 600)
TOLERANCE = 0.2
Route = tuple[int, int, int, int]  # node, destination, next hop, metric
CASES = (
    "cold, all reachable",
    "cold, all best",
    "costs changed, all best",
    "link cut, all reachable",
    "healed, all best",
)


@dataclass(slots=True)
class Findings:
    """Of one side: seconds by case, and the routes after the costs have changed."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    routes: set[Route] = field(default_factory=set)

    def note(self, case: str, seconds: float | None) -> None:
        self.seconds[case].append(float("inf") if seconds is None else seconds)


def unique_costs(topology: Topology, seed: int) -> dict[Link, int]:
    """Of all links, so that each pair has one best path only."""
    rng = random.Random(f"costs {seed}")
    while True:
        costs = {at: rng.randint(*COSTS) for at in topology.links}
        graph = nx.Graph()
        graph.add_weighted_edges_from((a, b, cost) for (a, b), cost in costs.items())
        if all(_is_only_one(graph, node) for node in graph):
            return costs


def _is_only_one(graph: nx.Graph, source: int) -> bool:
    before, _ = nx.dijkstra_predecessor_and_distance(graph, source)
    return all(len(found) <= 1 for found in before.values())


def cuts(topology: Topology, count: int, seed: int) -> list[Link]:
    """Links that leave the rest connected."""
    graph = nx.Graph(topology.links)
    spare = sorted(set(topology.links) - {(min(edge), max(edge)) for edge in nx.bridges(graph)})
    rng = random.Random(f"cuts {seed}")
    return [rng.choice(spare) for _ in range(count)]


class LabRun(Run):
    """The daemons' side."""

    def __init__(self, setting: Setting, costs: Mapping[Link, int], links: Sequence[Link], *, prefix: str) -> None:
        super().__init__(setting, "meshd", cases=set(), limit=PATIENCE, prefix=prefix)
        self._link_costs, self._links = costs, links
        self.findings = Findings()

    def _measure(self) -> Iterator[Sample]:
        self._fleet.start()
        time.sleep(1.0)
        timeline, _ = self._follow(self._network.raise_links, until="optimal")
        self.findings.note(CASES[0], timeline.since("delivered"))
        self.findings.note(CASES[1], timeline.since("optimal"))
        costs = dict(self._link_costs)

        def change() -> None:
            for at, cost in costs.items():
                self._fleet.set_cost(*at, cost)

        timeline, _ = self._follow(change, until="optimal", costs=costs)
        self.findings.note(CASES[2], timeline.since("optimal"))
        self._await_metrics()
        for at in self._links:
            time.sleep(random.uniform(1.0, 1.0 + self._setting.times["meshd"].hello))
            self._cut_and_heal(at, costs)
        yield from ()

    def _cut_and_heal(self, at: Link, costs: dict[Link, int]) -> None:
        timeline, _ = self._follow(lambda: self._network.silence_link(at), dead_links={at}, costs=costs)
        self.findings.note(CASES[3], timeline.since("delivered"))
        timeline, _ = self._follow(lambda: self._network.heal(at), until="optimal", costs=costs)
        self.findings.note(CASES[4], timeline.since("optimal"))

    def _await_metrics(self) -> None:
        """Small changes of a metric are told late: until nothing has moved for a while."""
        deadline = time.monotonic() + PATIENCE
        before: set[Route] = set()
        while time.monotonic() < deadline:
            self.findings.routes = self._read_routes()
            if self.findings.routes == before:
                return
            before = self.findings.routes
            time.sleep(5.0)

    def _read_routes(self) -> set[Route]:
        node_of = {str(address): node for node, address in enumerate(self._network.addresses)}
        found: set[Route] = set()
        for daemon in self._fleet.daemons:
            for row in cast(Meshd, daemon).rpc("routes"):
                if row["selected"] and not row["origin"]:
                    destination = node_of[row["prefix"].removesuffix("/128")]
                    found.add((daemon.node, destination, int(row["interface"].removeprefix("to")), row["metric"]))
        return found


class Simulation:
    """The same in virtual time."""

    def __init__(self, topology: Topology, times: Times, costs: Mapping[Link, int], links: Sequence[Link], seed: int):
        graph = nx.Graph(topology.links)
        nx.set_edge_attributes(graph, 96, "cost")
        config = SpeakerConfig(b"\xff" * 7 + b"\0", hello_interval=times.hello, update_interval=times.update)
        options = Options(seed, LATENCY, START_SPREAD, config=config)
        self._network = SimulatedNetwork(graph, dict.fromkeys(graph, 0), options)
        self._tables = Tables(topology)
        self._costs, self._links, self._hello = dict(costs), links, times.hello
        self._rng = random.Random(f"phase {seed}")

    def run(self) -> Findings:
        findings = Findings()
        timeline = self._follow(lambda: None)
        findings.note(CASES[0], timeline.since("delivered"))
        findings.note(CASES[1], timeline.since("optimal"))
        timeline = self._follow(self._change_costs, costs=self._costs)
        findings.note(CASES[2], timeline.since("optimal"))
        findings.routes = self._routes()
        for at in self._links:
            self._step_until(self._network.now + self._rng.uniform(1.0, 1.0 + self._hello))
            timeline = self._follow(partial(self._network.fail_link, *at), costs=self._costs, dead_links={at})
            findings.note(CASES[3], timeline.since("delivered"))
            timeline = self._follow(partial(self._network.restore_link, *at), costs=self._costs)
            findings.note(CASES[4], timeline.since("optimal"))
        return findings

    def _change_costs(self) -> None:
        for at, cost in self._costs.items():
            self._network.set_cost(*at, cost)

    def _follow(self, do: Callable[[], None], **state: Any) -> Timeline:
        timeline = self._tables.begin(self._network.now, **state)
        do()
        self._step_until(self._network.now + SETTLED + self._hello)
        return timeline

    def _step_until(self, end: float) -> None:
        network = self._network
        while network.next_at() <= end:
            for change in network.step():
                kind = "delete" if change.next_hop is None else "replace"
                event = RouteEvent(change.at, change.node, change.destination, kind, 0, (), change.next_hop)
                self._tables.apply([event])

    def _routes(self) -> set[Route]:
        found: set[Route] = set()
        for node in self._network.graph:
            for destination in self._network.graph:
                view = self._network.speaker(node).selected(prefix_of(destination))
                if view is not None:
                    found.add((node, destination, node_at(view.address), view.metric))
        return found


@dataclass(frozen=True, slots=True)
class Comparison:
    case: str
    lab: float
    simulated: float
    lab_runs: int
    spread: float  # standard error of the lab's mean, as a part of it

    @property
    def ratio(self) -> float:
        return self.lab / self.simulated if self.simulated > 0 else float("inf")

    @property
    def is_within(self) -> bool:
        return abs(self.ratio - 1.0) <= TOLERANCE


def compare(lab: Findings, simulated: Sequence[Findings]) -> list[Comparison]:
    rows = []
    for case in CASES:
        measured = lab.seconds[case]
        virtual = [seconds for found in simulated for seconds in found.seconds[case]]
        mean = statistics.mean(measured)
        error = statistics.stdev(measured) / len(measured) ** 0.5 / mean if len(measured) > 1 else 0.0
        rows.append(Comparison(case, mean, statistics.mean(virtual), len(measured), error))
    return rows


def run(topology: Topology, times: Times, *, runs: int, count: int, seeds: int) -> tuple[list[Comparison], int, int]:
    """The comparison, how many routes there are, and how many differ."""
    lab = Findings()
    costs = unique_costs(topology, 1)
    simulated = [Simulation(topology, times, costs, cuts(topology, count, seed), seed).run() for seed in range(seeds)]
    wanted = simulated[0].routes
    different = sum(len(found.routes ^ wanted) for found in simulated)
    for number in range(runs):
        setting = Setting(topology, topology.name, f"{times.hello:g}", {"meshd": times}, number)
        one = LabRun(setting, costs, cuts(topology, count, number), prefix=f"simex{os.getpid()}-")
        for _ in one.samples():
            pass
        different += len(one.findings.routes ^ wanted)
        for case, seconds in one.findings.seconds.items():
            lab.seconds[case] += seconds
        print(f"lab run {number + 1} of {runs}: {dict(one.findings.seconds)}", file=sys.stderr, flush=True)
    return compare(lab, simulated), len(wanted), different


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="tools/compare lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="grid:5x5", help="as in tools/bench/convergence (default: %(default)s)")
    parser.add_argument("--hello", type=float, default=4.0, help="seconds (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="of the lab (default: %(default)s)")
    parser.add_argument("--cuts", type=int, default=8, help="links that are cut in each run (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=10, help="simulated runs (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object of `cases` and `machine`")
    options = parser.parse_args(argv)
    if os.geteuid() != 0:
        parser.error("network namespaces need root")
    exit_on_signals()
    topology = replace(parse(options.topology, 1), name=options.topology)
    times = Times(options.hello, 4 * options.hello)
    rows, routes, different = run(topology, times, runs=options.runs, count=options.cuts, seeds=options.seeds)
    is_good = different == 0 and all(row.is_within for row in rows)
    if options.json:
        cases = [
            {"name": r.case, "ours": r.simulated, "anchor": r.lab, "ratio": r.ratio, "samples": r.lab_runs}
            | {"standard_error": r.spread, "ok": r.is_within}
            for r in rows
        ]
        document = {"cases": cases, "routes": routes, "different": different, "machine": machine(), "ok": is_good}
        print(json.dumps(document, indent=2))
        return 0 if is_good else 1
    print(f"{routes} routes, {different} differ")
    print(f"{'mean seconds':<26}{'lab':>8}{'+-':>7}{'simulated':>11}{'ratio':>8}")
    for row in rows:
        verdict = "" if row.is_within else "  not within 20 %"
        print(f"{row.case:<26}{row.lab:8.3f}{row.spread:7.0%}{row.simulated:11.3f}{row.ratio:8.2f}{verdict}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
