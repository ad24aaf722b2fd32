"""What the routes should be, computed another way: Dijkstra's algorithm on the composite cost."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import networkx as nx

from routing.rules import METRIC_INFINITY, price_metric


@dataclass(frozen=True, slots=True)
class Oracle:
    """`distance[destination][node]` is the least composite cost; METRIC_INFINITY where no route is below that."""

    distance: dict[int, array[int]]
    relay_metric: dict[int, int]  # what a node's fee adds for those that it carries for
    cost: dict[int, dict[int, int]]  # by node, then by neighbour

    def is_best(self, node: int, next_hop: int, destination: int) -> bool:
        """The next hop lies on a least path. If so at every node, and there is no loop, every path is a least one."""
        distance = self.distance[destination]
        least, beyond = distance[node], distance[next_hop]
        if least >= METRIC_INFINITY or beyond >= METRIC_INFINITY:
            return False
        relay = 0 if next_hop == destination else self.relay_metric[next_hop]
        return least == self.cost[node][next_hop] + relay + beyond

    @property
    def pair_count(self) -> int:
        """Ordered pairs that have a route."""
        return sum(len(distance) - distance.count(METRIC_INFINITY) - 1 for distance in self.distance.values())


def solve(graph: nx.Graph, fee_by_node: Mapping[int, int], price_weight: float) -> Oracle:
    """A node's fee counts where it relays, not where the path begins or ends."""
    relay_metric = {node: price_metric(fee, price_weight) for node, fee in fee_by_node.items()}
    cost: dict[int, dict[int, int]] = {node: {} for node in graph}
    for a, b, data in graph.edges(data=True):
        cost[a][b] = cost[b][a] = data["cost"]
    size = max(graph, default=-1) + 1
    distance = {destination: _distances(cost, relay_metric, destination, size) for destination in graph}
    return Oracle(distance, relay_metric, cost)


def _distances(
    cost: dict[int, dict[int, int]], relay_metric: dict[int, int], destination: int, size: int
) -> array[int]:
    """From the destination outwards: a step from `near` to `far` makes `near` a relay, unless it is the end."""
    found = [METRIC_INFINITY] * size
    found[destination] = 0
    queue = [(0, destination)]
    while queue:
        length, near = heapq.heappop(queue)
        if length > found[near]:
            continue
        beyond = length if near == destination else length + relay_metric[near]
        for far, link in cost[near].items():
            total = beyond + link
            if total < found[far]:
                found[far] = total
                heapq.heappush(queue, (total, far))
    return array("H", found)
