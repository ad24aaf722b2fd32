"""The installed next hops of all nodes, and the loops in them.

There is no loop towards a destination while each node has a rank that is above its next hop's. Metrics are such ranks
nearly, so a new next hop seldom asks for more than a look at two of them; ranks that are in the way are lowered along
the path. Where no rank is low enough, every path through a new next hop is followed to its end from then on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from routing.rules import METRIC_INFINITY

RANK_SHIFT = 3  # ranks that are close to each other share few numbers


@dataclass(slots=True, eq=False)
class _Paths:
    """To one destination, by node."""

    hops: list[int | None]
    ranks: list[int | None]  # None: the highest
    count: int = 0  # of nodes that have a next hop
    is_ordered: bool = True  # every rank is above the next hop's


class NextHops:
    """Of nodes 0 to `nodes` - 1. In lists, since there are as many as pairs of nodes, and paths are followed at each
    change: a dictionary of each destination takes four times the memory, and most of a large run's time."""

    def __init__(self, nodes: int, destinations: Iterable[int]) -> None:
        self._paths = {to: _Paths([None] * nodes, [None] * nodes) for to in destinations}
        # One object for each, shared by all lists.
        self._numbers: list[int | None] = list(range(nodes))
        self._rank_numbers: list[int | None] = list(range((METRIC_INFINITY >> RANK_SHIFT) + 1))
        self._nodes = nodes

    @property
    def destinations(self) -> list[int]:
        return list(self._paths)

    def get(self, destination: int, node: int) -> int | None:
        """None: there is no route."""
        return self._paths[destination].hops[node]

    def of(self, destination: int) -> dict[int, int]:
        """By node."""
        return {node: hop for node, hop in enumerate(self._paths[destination].hops) if hop is not None}

    def count(self, destination: int) -> int:
        """Of nodes that have a route there."""
        return self._paths[destination].count

    def total(self) -> int:
        """Of routes."""
        return sum(paths.count for paths in self._paths.values())

    def remove(self, destination: int, node: int) -> bool:
        """False: there was none."""
        paths = self._paths[destination]
        if paths.hops[node] is None:
            return False
        paths.hops[node] = None
        paths.count -= 1
        return True

    def set(self, destination: int, node: int, via: int, metric: int) -> list[int] | None:
        """The loop that this closes, from `node` on: empty if there is none. None: it was so already.

        A loop that was not there before goes through the node that changed. If there are older ones, a path may end
        in one: they were found when they formed.
        """
        paths = self._paths[destination]
        hops = paths.hops
        before = hops[node]
        if before == via:
            return None
        if before is None:
            paths.count += 1
        hops[node] = self._numbers[via]
        if paths.is_ordered:
            paths.is_ordered = self._put_in_order(paths, node, metric >> RANK_SHIFT)
        return [] if paths.is_ordered else self._loop(hops, node)

    def _put_in_order(self, paths: _Paths, node: int, limit: int) -> bool:
        """Of a node that has another next hop. Ranks only fall, so what leads to a node stays above it."""
        hops, ranks = paths.hops, paths.ranks
        rank = ranks[node]
        if rank is not None and rank < limit:
            limit = rank
        ranks[node] = self._rank_numbers[limit]
        at = hops[node]
        while at is not None:
            rank = ranks[at]
            if rank is not None and rank < limit:
                return True
            limit -= 1
            if limit < 0 or at == node:
                return False
            ranks[at] = self._rank_numbers[limit]
            at = hops[at]
        return True

    def _loop(self, hops: list[int | None], node: int) -> list[int]:
        hop = hops[node]
        length = 1
        while hop is not None and hop != node and length <= self._nodes:
            hop = hops[hop]
            length += 1
        if hop is None or hop != node:
            return []
        path = [node]
        hop = hops[node]
        while hop is not None and hop != node:
            path.append(hop)
            hop = hops[hop]
        return path
