"""One run: drives a network until its routes are the oracle's and stay so, and says when and at what cost."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import networkx as nx

from routing.recording import Write
from routing.rules import METRIC_INFINITY, price_add
from simulator.network import Network, Options, RouteChange, prefix_of
from simulator.oracle import Oracle, solve
from simulator.pages import gather

NONE_DIES = 100_000_000  # objects of a cold start that are looked at together: no node is switched off in it
PROGRESS_EVENTS = 2000  # between two looks at the wall clock
GATHER_EVENTS = 20_000  # between two times that new memory is put into large pages
_INSTALLED, _BEST = 1, 2  # bits: a node has a route to a destination, and a best one


@dataclass(frozen=True, slots=True)
class Report:
    """Times in virtual seconds since the start; None: it did not happen."""

    nodes: int
    links: int
    seed: int
    virtual_seconds: float
    routes_99_at: float | None  # 99 % of the pairs have a route, for good
    routes_all_at: float | None  # every pair has one, for good; without loops it then reaches the destination
    all_best_at: float | None  # every route is a cheapest one, for good
    last_change_at: float | None
    route_changes: int
    packets: int
    tlvs: int
    bytes: int | None  # None: not counted without --wire
    events: int
    loops: int
    differences: list[str]  # from the shortest paths, a few of them
    difference_count: int
    trace: str
    counters: dict[str, int]  # what speakers dropped or ignored, all together

    @property
    def is_good(self) -> bool:
        return self.difference_count == 0 and self.loops == 0

    def to_document(self) -> dict[str, Any]:
        return asdict(self) | {"ok": self.is_good}


@contextmanager
def few_collections(objects: int = 100_000) -> Iterator[None]:
    """The tables of many nodes are millions of objects that live to the end: to look for circles among them again and
    again takes a third of all time, and finds none. It is done when there are so many new `objects`."""
    before, was_enabled = gc.get_threshold(), gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.enable()
    gc.set_threshold(objects, 100, 1_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
        if not was_enabled:
            gc.disable()


class _Threshold:
    """Since when a count has been at or above a limit, without a break."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.since: float | None = 0.0 if limit <= 0 else None

    def look(self, count: int, at: float) -> None:
        if count < self._limit:
            self.since = None
        elif self.since is None:
            self.since = at


class Watch:
    """Follows the changes of routes: how many pairs have one, how many a best one."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        # By destination, then by node: _INSTALLED and _BEST.
        self._states = {destination: [0] * len(distance) for destination, distance in oracle.distance.items()}
        self._installed = self._best = 0
        pairs = oracle.pair_count
        self.routes_99 = _Threshold(0.99 * pairs)
        self.routes_all = _Threshold(pairs)
        self.all_best = _Threshold(pairs)
        self.changes = 0
        self.last_change_at: float | None = None

    def handle(self, change: RouteChange) -> None:
        node, destination, hop, at = change.node, change.destination, change.next_hop, change.at
        self.changes += 1
        self.last_change_at = at
        state = 0
        if hop is not None:
            state = _INSTALLED | _BEST if self._oracle.is_best(node, hop, destination) else _INSTALLED
        states = self._states[destination]
        before, states[node] = states[node], state
        self._installed += (state & _INSTALLED) - (before & _INSTALLED)
        self._best += (state >> 1) - (before >> 1)
        self.routes_99.look(self._installed, at)
        self.routes_all.look(self._installed, at)
        self.all_best.look(self._best, at)


def simulate(
    graph: nx.Graph,
    fee_by_node: dict[int, int],
    options: Options,
    *,
    until: float,
    quiet: float,
    progress: Callable[[Network], None] = lambda _: None,
    write_by_node: Mapping[int, Write] = MappingProxyType({}),
) -> Report:
    """Runs to `until`, or until every route is a best one and none has changed for `quiet` seconds."""
    config = replace(options.config, tells_prices=bool(write_by_node))  # nobody else listens
    options = replace(options, config=config, traces_routes=False)
    network = Network(graph, fee_by_node, options, write_by_node=write_by_node)
    oracle = solve(graph, fee_by_node, options.config.price_weight)
    watch = Watch(oracle)
    with few_collections(NONE_DIES):
        while network.next_at() <= until:
            if watch.all_best.since is not None and network.next_at() > (watch.last_change_at or 0.0) + quiet:
                break
            for change in network.step():
                watch.handle(change)
            if network.event_count % PROGRESS_EVENTS == 0:
                progress(network)
            if network.event_count % GATHER_EVENTS == 0:
                gather()
        return _report(network, watch, differences(network, oracle, fee_by_node))


def differences(network: Network, oracle: Oracle, fee_by_node: dict[int, int]) -> list[str]:
    """Where the speakers' own metric, price or next hop is not what the graph says it should be."""
    found = []
    for destination in sorted(network.graph):
        best, prefix = oracle.distance[destination], prefix_of(destination)
        price_by_node = _prices(network.next_hops.of(destination), destination, fee_by_node)
        for node in sorted(network.graph):
            if node == destination:
                continue
            metric, price = network.speaker(node).selected_cost(prefix)
            wanted = best[node]
            if metric != wanted:
                found.append(f"{node} to {destination}: metric {metric}, the shortest path has {wanted}")
            elif metric < METRIC_INFINITY and price != price_by_node.get(node):
                found.append(f"{node} to {destination}: price {price}, the path asks {price_by_node.get(node)}")
    return found


def _prices(hops: dict[int, int], destination: int, fee_by_node: dict[int, int]) -> dict[int, int]:
    """What each node's path asks, by adding up the fees of those that carry along the installed next hops."""
    price: dict[int, int | None] = {destination: 0}  # None: it leads nowhere, or is being followed
    for node in hops:
        path = []
        at: int | None = node
        while at is not None and at not in price:
            path.append(at)
            price[at] = None
            at = hops.get(at)
        for back in reversed(path):
            hop = hops.get(back)
            beyond = None if hop is None else price[hop]
            if hop is not None and beyond is not None:
                price[back] = beyond if hop == destination else price_add(beyond, fee_by_node[hop])
    return {node: total for node, total in price.items() if total is not None and node != destination}


def _report(network: Network, watch: Watch, found: list[str]) -> Report:
    graph, traffic = network.graph, network.traffic
    counters: dict[str, int] = {}
    for node in graph:
        for name, count in network.speaker(node).counters().items():
            counters[name] = counters.get(name, 0) + count
    return Report(
        nodes=graph.number_of_nodes(),
        links=graph.number_of_edges(),
        seed=network.options.seed,
        virtual_seconds=round(network.now, 6),
        routes_99_at=watch.routes_99.since,
        routes_all_at=watch.routes_all.since,
        all_best_at=watch.all_best.since,
        last_change_at=watch.last_change_at,
        route_changes=watch.changes,
        packets=traffic.packets,
        tlvs=traffic.tlvs,
        bytes=traffic.bytes if network.options.wire else None,
        events=network.event_count,
        loops=len(network.loops),
        differences=found[:20],
        difference_count=len(found),
        trace=network.trace,
        counters=dict(sorted(counters.items())),
    )


def random_fees(graph: nx.Graph, limits: tuple[int, int], rng: random.Random) -> dict[int, int]:
    """msat per GB, one for each node."""
    return {node: rng.randint(*limits) for node in sorted(graph)}
