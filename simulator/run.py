"""One run: drives a network until its routes are the oracle's and stay so, and says when and at what cost."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import networkx as nx

from routing.recording import Write
from routing.rules import METRIC_INFINITY, price_add
from simulator.network import Network, Options, RouteChange, prefix_of
from simulator.oracle import Oracle, solve

PROGRESS_EVENTS = 2000  # between two looks at the wall clock


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
    differences: list[str]  # from networkx's shortest paths, a few of them
    difference_count: int
    trace: str
    counters: dict[str, int]  # what speakers dropped or ignored, all together

    @property
    def is_good(self) -> bool:
        return self.difference_count == 0 and self.loops == 0

    def to_document(self) -> dict[str, Any]:
        return asdict(self) | {"ok": self.is_good}


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
        self._installed: set[tuple[int, int]] = set()
        self._best: set[tuple[int, int]] = set()
        pairs = oracle.pair_count
        self.routes_99 = _Threshold(0.99 * pairs)
        self.routes_all = _Threshold(pairs)
        self.all_best = _Threshold(pairs)
        self.changes = 0
        self.last_change_at: float | None = None

    def handle(self, change: RouteChange) -> None:
        pair = (change.node, change.destination)
        hop = change.next_hop
        self.changes += 1
        self.last_change_at = change.at
        self._put(self._installed, pair, is_in=hop is not None)
        self._put(self._best, pair, is_in=hop is not None and self._oracle.is_best(pair[0], hop, pair[1]))
        self.routes_99.look(len(self._installed), change.at)
        self.routes_all.look(len(self._installed), change.at)
        self.all_best.look(len(self._best), change.at)

    @staticmethod
    def _put(members: set[tuple[int, int]], pair: tuple[int, int], *, is_in: bool) -> None:
        if is_in:
            members.add(pair)
        else:
            members.discard(pair)


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
    network = Network(graph, fee_by_node, options, write_by_node=write_by_node)
    oracle = solve(graph, fee_by_node, options.config.price_weight)
    watch = Watch(oracle)
    while network.next_at() <= until:
        if watch.all_best.since is not None and network.next_at() > (watch.last_change_at or 0.0) + quiet:
            break
        for change in network.step():
            watch.handle(change)
        if network.event_count % PROGRESS_EVENTS == 0:
            progress(network)
    return _report(network, watch, differences(network, oracle, fee_by_node))


def differences(network: Network, oracle: Oracle, fee_by_node: dict[int, int]) -> list[str]:
    """Where the speakers' own metric, price or next hop is not what the graph says it should be."""
    found = []
    for destination in sorted(network.graph):
        best = oracle.distance[destination]
        price_by_node = _prices(network.next_hop[destination], destination, fee_by_node)
        for node in sorted(network.graph):
            if node == destination:
                continue
            route = network.speaker(node).selected(prefix_of(destination))
            metric = METRIC_INFINITY if route is None else route.metric
            wanted = best.get(node, METRIC_INFINITY)
            if metric != wanted:
                found.append(f"{node} to {destination}: metric {metric}, the shortest path has {wanted}")
            elif route is not None and route.price_msat_per_gb != price_by_node.get(node):
                path_price = price_by_node.get(node)
                found.append(f"{node} to {destination}: price {route.price_msat_per_gb}, the path asks {path_price}")
    return found


def _prices(hops: dict[int, int], destination: int, fee_by_node: dict[int, int]) -> dict[int, int]:
    """What each node's path asks, by adding up the fees of those that carry along the installed next hops."""
    price = {}
    for node in hops:
        path = [node]
        while path[-1] in hops and len(path) <= len(hops):
            path.append(hops[path[-1]])
        if path[-1] == destination:
            total = 0
            for relay in path[1:-1]:
                total = price_add(total, fee_by_node[relay])
            price[node] = total
    return price


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
