"""Following the routing tables of all nodes at once: who reaches whom, by what path, since when. Pure.

Events come in the order in which the monitor has seen them. After each, the tables towards its destination are followed
anew from every node; so a `Timeline` misses no state in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from tools.bench.converge.topology import Link, Topology, link

# Seconds. Shorter than that, a loop may never have been (two namespaces are not read at the same instant), and a gap is
# a route that was replaced by deleting and adding it.
LOOP_MIN = GAP_MIN = 0.02


@dataclass(frozen=True, slots=True)
class RouteEvent:
    """A change in the table of `node`. `key` tells routes to one destination apart; `via` is the neighbour, or None for
    a route that carries nothing (unreachable, blackhole)."""

    at: float
    node: int
    destination: int
    kind: str  # add, replace, delete
    priority: int
    key: tuple[object, ...]
    via: int | None


@dataclass(frozen=True, slots=True)
class Moment:
    """Ordered pairs from `at` on."""

    at: float
    delivered: int
    optimal: int
    looped: int


@dataclass
class Timeline:
    """`pairs`: how many ordered pairs can be delivered at all."""

    start: float
    pairs: int
    moments: list[Moment] = field(default_factory=list)

    def since(self, what: str, share: float = 1.0) -> float | None:
        """Seconds from the start until `share` of the pairs were `delivered` or `optimal` for good, but for gaps that
        do not count; None: not yet."""
        need = math.ceil(self.pairs * share - 1e-9)
        since: float | None = None
        recovered_at = math.inf  # the end of the gap that we are in, going backwards
        for moment in reversed(self.moments):
            if getattr(moment, what) >= need:
                since, recovered_at = moment.at, moment.at
            elif recovered_at - moment.at >= GAP_MIN:
                break
        return max(0.0, since - self.start) if since is not None else None

    def loops(self) -> int:
        """How often a loop came into being that lasted."""
        count = 0
        since: float | None = None
        for moment in self.moments:
            if moment.looped and since is None:
                since = moment.at
            elif not moment.looped and since is not None:
                count += moment.at - since >= LOOP_MIN
                since = None
        return count + (since is not None)

    def lost_pair_seconds(self, end: float) -> float:
        """How long pairs were not delivered, summed over the pairs, up to `end`."""
        later = [moment.at for moment in self.moments[1:]] + [end]
        return sum(
            (self.pairs - moment.delivered) * max(0.0, until - moment.at)
            for moment, until in zip(self.moments, later, strict=True)
        )


class Tables:
    """The state of all tables, and what following them shows."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._routes: dict[tuple[int, int], dict[tuple[object, ...], tuple[int, int | None]]] = {}
        self._via: list[dict[int, int]] = [{} for _ in range(topology.nodes)]  # by destination, then by node
        self._shown: list[tuple[int, int, int]] = []
        self.begin(0.0)

    def begin(
        self,
        at: float,
        *,
        costs: Mapping[Link, int] | None = None,
        dead_links: Set[Link] = frozenset(),
        dead_nodes: Set[int] = frozenset(),
    ) -> Timeline:
        """From now on the network is so; a new timeline starts."""
        self._costs = costs or {}
        self._dead_links, self._dead_nodes = dead_links, dead_nodes
        self._best = self._topology.best_costs(costs=self._costs, dead_links=dead_links, dead_nodes=dead_nodes)
        self._shown = [self._follow(destination) for destination in range(self._topology.nodes)]
        self.timeline = Timeline(at, len(self._best))
        self._note(at)
        return self.timeline

    def apply(self, events: Iterable[RouteEvent]) -> None:
        for event in events:
            if self._change(event):
                shown = self._follow(event.destination)
                if shown != self._shown[event.destination]:
                    self._shown[event.destination] = shown
                    self._note(event.at)

    @property
    def now(self) -> Moment:
        return self.timeline.moments[-1]

    def paths(self) -> list[list[int]]:
        """What packets follow now, of every pair that is delivered."""
        found = []
        for destination, hops in enumerate(self._via):
            for node in self._costs_to(destination)[0]:
                path = [node]
                while path[-1] != destination:
                    path.append(hops[path[-1]])
                found.append(path)
        return found

    def missing(self) -> list[tuple[int, int]]:
        """The pairs that are not delivered."""
        lost = []
        for destination in range(self._topology.nodes):
            reached = self._costs_to(destination)[0]
            lost += [(s, d) for s, d in self._best if d == destination and s not in reached]
        return lost

    def _note(self, at: float) -> None:
        delivered, optimal, looped = (sum(column) for column in zip(*self._shown, strict=True))
        self.timeline.moments.append(Moment(at, delivered, optimal, looped))

    def _change(self, event: RouteEvent) -> bool:
        routes = self._routes.setdefault((event.node, event.destination), {})
        key = (event.priority, *event.key)
        if event.kind == "delete":
            if key not in routes:  # the kernel may leave out details
                key = next((known for known in routes if known[0] == event.priority), key)
            routes.pop(key, None)
        else:
            if event.kind == "replace":
                for known in [known for known in routes if known[0] == event.priority]:
                    del routes[known]
            routes[key] = (event.priority, event.via)
        via = min(routes.values(), key=lambda route: route[0])[1] if routes else None
        hops = self._via[event.destination]
        if hops.get(event.node) == via:
            return False
        if via is None:
            del hops[event.node]
        else:
            hops[event.node] = via
        return True

    def _follow(self, destination: int) -> tuple[int, int, int]:
        """(delivered, of these on a best path, looped) towards `destination`."""
        if destination in self._dead_nodes:
            return 0, 0, 0
        reached, looped = self._costs_to(destination)
        optimal = sum(cost <= self._best[node, destination] for node, cost in reached.items() if node != destination)
        return len(reached) - 1, optimal, looped

    def _costs_to(self, destination: int) -> tuple[dict[int, int], int]:
        """The cost of the path that packets take, by the nodes whose packets arrive; how many nodes' go round."""
        hops = self._via[destination]
        reached: dict[int, int] = {destination: 0}
        failed: set[int] = set()
        looped: set[int] = set()
        for start in range(self._topology.nodes):
            if start in self._dead_nodes:
                continue
            path: list[int] = []
            node = start
            while node not in reached and node not in failed:
                if node in path:
                    looped.update(path)
                    break
                path.append(node)
                via = hops.get(node)
                if via is None or via in self._dead_nodes or link(node, via) in self._dead_links:
                    break
                node = via
            if node in reached:
                for hop in reversed(path):
                    at = link(hop, hops[hop])
                    reached[hop] = reached[hops[hop]] + self._costs.get(at, 1)
            else:
                looped.update(path if node in looped else ())
                failed.update(path)
        return reached, len(looped)


def median_and_spread(samples: Sequence[float]) -> tuple[float, float, float]:
    """Median, least, greatest."""
    ordered = sorted(samples)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return median, ordered[0], ordered[-1]
