"""What is done to a mesh, and when; and what is seen of it: the same for real daemons and for the simulator."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field

import networkx as nx

from tools.bench.converge.topology import Link, Topology

NOMINAL = 96
COSTS = (96, 600)
End = tuple[int, int]  # a node, and the neighbour that the interface leads to
Route = tuple[int, int, int, int]  # node, destination, next hop, metric
CASES = (
    "cold, all reachable",
    "cold, all best",
    "costs changed, 99 % best",
    "costs changed, all best",
    "link cut, all reachable",
    "healed, all best",
)
SHARES = ((CASES[2], 0.99), (CASES[3], 1.0))  # the last few pairs wait for small changes, which are told late


@dataclass(slots=True)
class History:
    """Seconds since each step was begun. `raised`: when a daemon took an interface into use. `changed`: when an end of
    a link had its new cost, for each time that all links get other costs."""

    raised: dict[End, float] = field(default_factory=dict)
    changed: list[dict[End, float]] = field(default_factory=list)


@dataclass(slots=True)
class Findings:
    """Of one side: seconds by case, and the routes after each change of the costs."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    routes: list[set[Route]] = field(default_factory=list)

    def note(self, case: str, seconds: float | None, *, after: float = 0.0) -> None:
        """`after`: when all that was to be done for it had been done."""
        self.seconds[case].append(float("inf") if seconds is None else max(0.0, seconds - after))


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run does: the costs that all links get, one set after the other, and the links that are cut."""

    costs: tuple[dict[Link, int], ...]
    cuts: tuple[Link, ...]


def plan(topology: Topology, *, changes: int, count: int, seed: int) -> Plan:
    costs = tuple(unique_costs(topology, f"{seed} {number}") for number in range(changes))
    return Plan(costs, tuple(cuts(topology, costs[-1] if costs else {}, count, seed)))


def unique_costs(topology: Topology, seed: str) -> dict[Link, int]:
    """Of all links, so that each pair has one best path only."""
    rng = random.Random(f"costs {seed}")
    while True:
        costs = {at: rng.randint(*COSTS) for at in topology.links}
        graph = nx.Graph()
        graph.add_weighted_edges_from((a, b, cost) for (a, b), cost in costs.items())
        if all(_is_only_one(graph, node) for node in graph):
            return costs


def _is_only_one(graph: nx.Graph, source: int) -> bool:
    before, _ = nx.dijkstra_predecessor_and_distance(graph, source)
    return all(len(found) <= 1 for found in before.values())


def cuts(topology: Topology, costs: dict[Link, int], count: int, seed: int) -> list[Link]:
    """Links that leave the rest connected, and are the best way at least from one end to the other."""
    graph = nx.Graph()
    graph.add_weighted_edges_from((a, b, costs.get((a, b), NOMINAL)) for a, b in topology.links)
    bridges = {(min(edge), max(edge)) for edge in nx.bridges(graph)}
    distances = dict(nx.all_pairs_dijkstra_path_length(graph))
    spare = [(a, b) for a, b in topology.links if (a, b) not in bridges and distances[a][b] == graph[a][b]["weight"]]
    rng = random.Random(f"cuts {seed}")
    return [rng.choice(spare) for _ in range(count)]
