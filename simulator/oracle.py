"""What the routes should be, computed another way: networkx's Dijkstra on the composite cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx

from routing.rules import METRIC_INFINITY, price_metric


@dataclass(frozen=True, slots=True)
class Oracle:
    """`distance[destination][node]` is the least composite cost; absent where no route is below infinity."""

    distance: Mapping[int, Mapping[int, int]]
    relay_metric: Mapping[int, int]  # what a node's fee adds for those that it carries for
    cost: Mapping[tuple[int, int], int]

    def is_best(self, node: int, next_hop: int, destination: int) -> bool:
        """The next hop lies on a least path. If so at every node, and there is no loop, every path is a least one."""
        distance = self.distance[destination]
        if node not in distance or next_hop not in distance:
            return False
        relay = 0 if next_hop == destination else self.relay_metric[next_hop]
        return distance[node] == self.cost[node, next_hop] + relay + distance[next_hop]

    @property
    def pair_count(self) -> int:
        """Ordered pairs that have a route."""
        return sum(len(distance) - 1 for distance in self.distance.values())


def solve(graph: nx.Graph, fee_by_node: Mapping[int, int], price_weight: float) -> Oracle:
    """A node's fee counts where it relays, not where the path begins or ends."""
    relay_metric = {node: price_metric(fee, price_weight) for node, fee in fee_by_node.items()}
    cost = {(a, b): data["cost"] for x, y, data in graph.edges(data=True) for a, b in ((x, y), (y, x))}
    distance: dict[int, dict[int, int]] = {}
    for destination in graph:
        # From the destination outwards: stepping from `near` to `far` makes `near` a relay, unless it is the end.
        def weight(near: int, far: int, _: object, destination: int = destination) -> int:
            link: int = cost[far, near]
            return link + (0 if near == destination else relay_metric[near])

        found = nx.single_source_dijkstra_path_length(graph, destination, weight=weight)
        distance[destination] = {node: length for node, length in found.items() if length < METRIC_INFINITY}
    return Oracle(distance, relay_metric, cost)
