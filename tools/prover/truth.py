"""What the routes should be once all is quiet, computed another way: networkx's Dijkstra on the composite cost."""

from __future__ import annotations

from collections.abc import Callable

import networkx as nx

from routing.events import LinkKind
from routing.rules import METRIC_INFINITY, price_metric
from routing.tlv import Prefix, RouteKey
from tools.prover.world import Segment, World, address_of

_ORIGIN = -1  # a node before all origins of a prefix; its edges cost what they announce


class Truth:
    """Of the world as it is now, with all nodes on. Of several links between two nodes the cheapest counts."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._measured = _measured(world)
        self._links = nx.DiGraph()  # from the node that is nearer to the destination to the one further off
        self._links.add_nodes_from(world.speakers)
        self.is_alive: set[tuple[int, int, int]] = set()  # (segment, node, next hop)
        for segment in world.segments:
            if segment.is_cut:
                continue
            for near in segment.cost:
                for far in segment.cost:
                    if near != far and not {(near, far), (far, near)} & segment.deaf:
                        self.is_alive.add((segment.number, far, near))
                        self._add_link(segment, near, far)
        weight = world.config.price_weight
        self._relay = {
            node: METRIC_INFINITY if node in world.leaves else price_metric(fee, weight)
            for node, fee in world.fees.items()
        }

    def _add_link(self, segment: Segment, near: int, far: int) -> None:
        """`heard`: what it costs as long as the radio has not forgotten what was lost."""
        cost = heard = self._link_cost(segment, near, far)
        if segment.kind is LinkKind.WIRELESS:
            added = segment.export_added.get(near, 0) + segment.import_added.get(far, 0)
            heard = max(cost, self._measured.get((segment.number, near, far), METRIC_INFINITY) + added)
        known = self._links.get_edge_data(near, far, {"cost": METRIC_INFINITY, "heard": METRIC_INFINITY})
        self._links.add_edge(near, far, cost=min(cost, known["cost"]), heard=min(heard, known["heard"]))

    def distances(self, key: RouteKey, cost: str = "cost") -> dict[int, int]:
        """By node that is no origin; absent where no route is below infinity."""
        origins = {n: metric for n, metric in self._world.origins[key].items() if n in self._world.speakers}
        if not origins:
            return {}
        graph = self._links
        graph.add_node(_ORIGIN)
        graph.add_edges_from((_ORIGIN, node) for node in origins)
        lengths = nx.single_source_dijkstra_path_length(graph, _ORIGIN, weight=self._weight(origins, cost))
        graph.remove_node(_ORIGIN)
        return {
            n: int(length)
            for n, length in lengths.items()
            if n not in origins and 0 <= length < METRIC_INFINITY and n >= 0
        }

    def _weight(self, origins: dict[int, int], cost: str) -> Callable[[int, int, dict[str, int]], int | None]:
        def weight(near: int, far: int, data: dict[str, int]) -> int | None:
            if near == _ORIGIN:
                return origins[far]
            if far in origins:
                return None  # it has a better way: none at all
            return data[cost] + (0 if near in origins else self._relay[near])

        return weight

    def unreached(self) -> list[str]:
        """Pairs that have a path over what they hear and no working route, and those with a route and no path."""
        found = []
        for key in self._world.origins:
            possible = self.distances(key)
            wanted = self.distances(key, "heard")
            reached = self._reached(key)
            for node in self._world.speakers:
                if node in self._world.origins[key]:
                    continue
                if node in wanted and node not in reached:
                    found.append(f"{node} to {name_of(key)}: no working route")
                elif node in reached and node not in possible:
                    found.append(f"{node} to {name_of(key)}: a route to nowhere")
        return found

    def longer(self) -> list[str]:
        """Routes that are not shortest ones, by the speaker's own metric and by where it sends packets."""
        found = []
        for key, origins in self._world.origins.items():
            wanted = self.distances(key)
            for node, distance in wanted.items():
                route = self._world.speakers[node].selected(*_pair(key))
                if route is None or route.metric != distance:
                    metric = "none" if route is None else str(route.metric)
                    found.append(f"{node} to {name_of(key)}: metric {metric}, the shortest path has {distance}")
                    continue
                hop = self._world.next_hops[key][node]
                rest = 0 if hop in origins else self._relay[hop]
                rest += origins[hop] if hop in origins else wanted.get(hop, METRIC_INFINITY)
                if distance - rest != self._cost_of(route.interface, node, hop):
                    found.append(f"{node} to {name_of(key)}: through {hop}, which is not on a shortest path")
        return found

    def _cost_of(self, interface: str, node: int, hop: int) -> int:
        return self._link_cost(self._world.segments[int(interface[1:])], hop, node)

    def _link_cost(self, segment: Segment, near: int, far: int) -> int:
        cost = segment.cost[near]
        if segment.kind is LinkKind.WIRELESS:
            cost = max(cost, segment.cost[far])  # A.2.2 with alpha = nominal / txcost, beta = 1
            measured = self._measured.get((segment.number, near, far), METRIC_INFINITY)
            # `rules.damp_cost`: a measured cost that came so near is left where it is.
            if abs(measured - cost) <= max(2, measured // 8):
                cost = measured
        return cost + segment.export_added.get(near, 0) + segment.import_added.get(far, 0)

    def _reached(self, key: RouteKey) -> set[int]:
        """Nodes whose next hops lead to an origin over links that work."""
        world = self._world
        reached = {node for node in world.origins[key] if node in world.speakers}
        lost: set[int] = set()
        hops = world.next_hops.get(key, {})
        for start in hops:
            path: list[int] = []
            node = start
            while node not in reached and node not in lost and node not in path:
                path.append(node)
                if not self._is_link_alive(key, node, hops.get(node)):
                    break
                node = hops[node]
            (reached if node in reached else lost).update(path)
        return reached

    def _is_link_alive(self, key: RouteKey, node: int, hop: int | None) -> bool:
        if hop is None:
            return False
        route = self._world.speakers[node].selected(*_pair(key))
        if route is None:
            return False
        number = int(route.interface[1:])
        return route.address == address_of(hop, number) and (number, node, hop) in self.is_alive


def _measured(world: World) -> dict[tuple[int, int, int], int]:
    """What each node takes its radio links to cost, by segment, neighbour and node."""
    costs = {}
    for segment in world.segments:
        if segment.kind is LinkKind.WIRELESS:
            node_at = {address_of(node, segment.number): node for node in segment.cost}
            for node in segment.cost:
                for view in world.speakers[node].neighbours():
                    if view.interface == segment.name():
                        costs[segment.number, node_at[view.address], node] = view.cost
    return costs


def _pair(key: RouteKey) -> tuple[Prefix, Prefix | None]:
    return key if isinstance(key, tuple) else (key, None)


def name_of(key: RouteKey) -> str:
    return f"{key[0]} from {key[1]}" if isinstance(key, tuple) else str(key)
