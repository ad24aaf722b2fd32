"""Graphs to route over, and the shortest paths that a routing protocol ought to find in them. Pure."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any

Link = tuple[int, int]  # the lower node first
Pair = tuple[int, int]  # from, to

_CANDIDATES = 4  # a fault strikes one of so many of the busiest places
_NO_COSTS: Mapping[Link, int] = {}


def link(a: int, b: int) -> Link:
    return (a, b) if a < b else (b, a)


@dataclass(frozen=True)
class Topology:
    """`nodes` nodes, numbered from 0. Every link costs 1, unless a caller says otherwise."""

    name: str
    nodes: int
    links: tuple[Link, ...]

    @cached_property
    def neighbours(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in range(self.nodes)]
        for a, b in self.links:
            found[a].append(b)
            found[b].append(a)
        return found

    def best_costs(
        self,
        *,
        costs: Mapping[Link, int] = _NO_COSTS,
        dead_links: Set[Link] = frozenset(),
        dead_nodes: Set[int] = frozenset(),
    ) -> dict[Pair, int]:
        """Dijkstra from every node that lives: the cost of the best path of every ordered pair that has one."""
        best: dict[Pair, int] = {}
        for source in range(self.nodes):
            if source in dead_nodes:
                continue
            for node, distance in self._distances(source, costs, dead_links, dead_nodes).items():
                if node != source:
                    best[source, node] = distance
        return best

    def busy_link(self, paths: Iterable[Sequence[int]], rng: random.Random) -> Link:
        """One of the links that most of these paths use and without which the graph is still connected."""
        uses: Counter[Link] = Counter()
        for path in paths:
            uses.update(link(a, b) for a, b in itertools.pairwise(path))
        pairs = self.nodes * (self.nodes - 1)
        spare = [at for at in _by_use(uses) if len(self.best_costs(dead_links={at})) == pairs]
        chosen: Link = rng.choice(spare[:_CANDIDATES])
        return chosen

    def busy_node(self, paths: Iterable[Sequence[int]], rng: random.Random) -> int:
        """The same of nodes."""
        uses: Counter[int] = Counter()
        for path in paths:
            uses.update(path[1:-1])
        pairs = (self.nodes - 1) * (self.nodes - 2)
        spare = [at for at in _by_use(uses) if len(self.best_costs(dead_nodes={at})) == pairs]
        chosen: int = rng.choice(spare[:_CANDIDATES])
        return chosen

    def has_spare(self) -> bool:
        """It survives the loss of a link: faults make sense in it."""
        pairs = self.nodes * (self.nodes - 1)
        return any(len(self.best_costs(dead_links={at})) == pairs for at in self.links)

    def _distances(
        self, source: int, costs: Mapping[Link, int], dead_links: Set[Link], dead_nodes: Set[int]
    ) -> dict[int, int]:
        distances = {source: 0}
        queue = [(0, source)]
        while queue:
            distance, node = heapq.heappop(queue)
            if distance > distances[node]:
                continue
            for other in self.neighbours[node]:
                at = link(node, other)
                if other in dead_nodes or at in dead_links:
                    continue
                further = distance + costs.get(at, 1)
                if further < distances.get(other, math.inf):
                    distances[other] = further
                    heapq.heappush(queue, (further, other))
        return distances


def _by_use(uses: Counter[Any]) -> list[Any]:
    return [at for at, _ in sorted(uses.items(), key=lambda item: (-item[1], str(item[0])))]


def parse(spec: str, seed: int) -> Topology:
    """`line:N`, `ring:N`, `grid:WxH`, `geometric:N/LINKS` (random, by seed). Raises ValueError."""
    kind, _, size = spec.partition(":")
    try:
        match kind:
            case "line":
                return Topology(spec, int(size), tuple((i, i + 1) for i in range(int(size) - 1)))
            case "ring":
                n = int(size)
                return Topology(spec, n, tuple(sorted(link(i, (i + 1) % n) for i in range(n))))
            case "grid":
                width, _, height = size.partition("x")
                return _grid(spec, int(width), int(height))
            case "geometric":
                nodes, _, links = size.partition("/")
                return _geometric(spec, int(nodes), int(links), seed)
    except ValueError as error:
        raise ValueError(f"topology {spec}: {error}") from error
    raise ValueError(f"unknown topology {spec}: line:N, ring:N, grid:WxH or geometric:N/LINKS")


def _grid(name: str, width: int, height: int) -> Topology:
    links = []
    for node in range(width * height):
        if (node + 1) % width:
            links.append((node, node + 1))
        if node + width < width * height:
            links.append((node, node + width))
    return Topology(name, width * height, tuple(links))


def _geometric(name: str, nodes: int, count: int, seed: int) -> Topology:
    """Random places in a square; the shortest links, and what is needed beyond `count` to make it connected."""
    rng = random.Random(seed)
    places = [(rng.random(), rng.random()) for _ in range(nodes)]
    possible = sorted((math.dist(places[a], places[b]), a, b) for a in range(nodes) for b in range(a + 1, nodes))
    chosen = [(a, b) for _, a, b in possible[:count]]
    part = list(range(nodes))
    for a, b in chosen:
        _join(part, a, b)
    for _, a, b in possible[count:]:
        if part[a] != part[b]:
            _join(part, a, b)
            chosen.append((a, b))
    return Topology(name, nodes, tuple(sorted(chosen)))


def _join(part: list[int], a: int, b: int) -> None:
    old, new = part[a], part[b]
    for node, value in enumerate(part):
        if value == old:
            part[node] = new
