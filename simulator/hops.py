"""The installed next hops of all nodes, and the loops in them."""

from __future__ import annotations

from collections.abc import Iterable


class NextHops:
    """Of nodes 0 to `nodes` - 1. In lists, since there are as many as pairs of nodes, and paths are followed at each
    change: a dictionary of each destination takes four times the memory, and most of a large run's time."""

    def __init__(self, nodes: int, destinations: Iterable[int]) -> None:
        self._hops: dict[int, list[int | None]] = {to: [None] * nodes for to in destinations}
        self._numbers: list[int | None] = list(range(nodes))  # one object for each, shared by all lists
        self._nodes = nodes
        self.count_by_destination = dict.fromkeys(self._hops, 0)  # of nodes that have a route there

    @property
    def destinations(self) -> list[int]:
        return list(self._hops)

    def get(self, destination: int, node: int) -> int | None:
        """None: there is no route."""
        return self._hops[destination][node]

    def of(self, destination: int) -> dict[int, int]:
        """By node."""
        return {node: hop for node, hop in enumerate(self._hops[destination]) if hop is not None}

    def remove(self, destination: int, node: int) -> bool:
        """False: there was none."""
        hops = self._hops[destination]
        if hops[node] is None:
            return False
        hops[node] = None
        self.count_by_destination[destination] -= 1
        return True

    def set(self, destination: int, node: int, via: int) -> bool:
        """False: it was so already."""
        hops = self._hops[destination]
        before = hops[node]
        if before == via:
            return False
        if before is None:
            self.count_by_destination[destination] += 1
        hops[node] = self._numbers[via]
        return True

    def loop(self, destination: int, node: int) -> list[int]:
        """Through the node, whose next hop has just been set; empty if there is none.

        A loop that was not there before goes through the node that changed. If there are older ones, a path may end
        in one: they were found when they formed.
        """
        hops = self._hops[destination]
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
