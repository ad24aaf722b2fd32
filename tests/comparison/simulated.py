"""A history that real daemons went through, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import networkx as nx

from routing.config import SpeakerConfig
from simulator.exact.processors import Work
from simulator.network import Network, Options, node_at, prefix_of
from tests.comparison.history import CASES, NOMINAL, SHARES, Findings, History, Plan, Route
from tools.bench.converge.daemons import Times
from tools.bench.converge.follow import RouteEvent, Tables, Timeline
from tools.bench.converge.topology import Link, Topology

LATENCY = 0.0005  # of a veth pair and two wake-ups on an idle machine
SETTLED = 20.0  # seconds for which the effect of what is done is watched


class Simulation:
    def __init__(
        self, topology: Topology, times: Times, plan: Plan, history: History, *, seed: int, work: Work | None = None
    ) -> None:
        graph = nx.Graph(topology.links)
        nx.set_edge_attributes(graph, NOMINAL, "cost")
        config = SpeakerConfig(b"\xff" * 7 + b"\0", hello_interval=times.hello, update_interval=times.update)
        options = Options(seed, LATENCY, 0.0, config=config, work=work)
        self._network = Network(graph, dict.fromkeys(graph, 0), options)
        for a, b in topology.links:
            self._network.fail_link(a, b, carrier_lost=True)
        self._tables = Tables(topology)
        self._plan, self._history, self._hello = plan, history, times.hello
        self._rng = random.Random(f"phase {seed}")
        self._findings = Findings()

    def run(self) -> Findings:
        findings = self._findings
        self._step_until(1.0)
        timeline = self._follow(self._raise_links)
        up_after = max(self._history.raised.values())
        findings.note(CASES[0], timeline.since("delivered"), after=up_after)
        findings.note(CASES[1], timeline.since("optimal"), after=up_after)
        self._network.free_processors()  # what is measured of them is the work of a cold start
        for number, costs in enumerate(self._plan.costs):
            timeline = self._follow(partial(self._change_costs, number), costs=costs)
            for case, share in SHARES:
                after = max(self._history.changed[number].values())
                findings.note(case, timeline.since("optimal", share), after=after)
            findings.routes.append(self._routes())
        for at in self._plan.cuts:
            self._cut_and_heal(at, self._plan.costs[-1])
        return findings

    def _raise_links(self) -> None:
        for end, after in self._history.raised.items():
            self._network.call_at(self._network.now + after, partial(self._network.raise_end, *end))

    def _change_costs(self, number: int) -> None:
        costs = self._plan.costs[number]
        for (node, peer), after in self._history.changed[number].items():
            cost = costs[min(node, peer), max(node, peer)]
            change = partial(self._network.set_end_cost, node, peer, cost)
            self._network.call_at(self._network.now + after, change)

    def _cut_and_heal(self, at: Link, costs: dict[Link, int]) -> None:
        self._wait()
        timeline = self._follow(partial(self._network.fail_link, *at), costs=costs, dead_links={at})
        self._findings.note(CASES[4], timeline.since("delivered"))
        self._wait()
        timeline = self._follow(partial(self._network.restore_link, *at), costs=costs)
        self._findings.note(CASES[5], timeline.since("optimal"))

    def _wait(self) -> None:
        """Hellos are somewhere in their interval when something is done, as in the lab."""
        self._step_until(self._network.now + self._rng.uniform(0.0, self._hello))

    def _follow(self, do: Callable[[], None], **state: Any) -> Timeline:
        timeline = self._tables.begin(self._network.now, **state)
        do()
        self._step_until(self._network.now + SETTLED + self._hello)
        return timeline

    def _step_until(self, end: float) -> None:
        network = self._network
        network.call_at(end, _nothing)
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


def _nothing() -> None:
    """So that the network's clock reads what it should: it stands at the last event."""
