"""A scenario's mesh as it is drawn from a seed, for all fidelities: graph, roles, fees, flows, and what happens to it.

What is drawn depends on the order: first all that `Draft` has from the beginning, then `flows`, then `faults`.
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx

from routing.rules import PRICE_NOT_FOR_SALE
from simulator import topology, topology_files
from simulator.raw_graph import TopologyError
from simulator.scenario import (
    INTERNET,
    DemandConfig,
    FaultConfig,
    LinkConfig,
    PriceConfig,
    Scenario,
    ScenarioError,
    Selector,
    read_file,
    roles_of,
    select,
)

CARRIES_FOR_NOBODY = ("buyer", "leaf")
MAX_NODES = 5000  # of real speakers
_TRACED = ("node_down", "node_up", "link_down", "link_up")


@dataclass(frozen=True, slots=True)
class Break:
    """A fault that is bound to nodes, or to links that were there at the beginning."""

    fault: FaultConfig
    nodes: tuple[int, ...]
    links: tuple[tuple[int, int], ...]


class Draft:
    """Raises ScenarioError."""

    def __init__(self, scenario: Scenario, seed: int, *, max_nodes: int = MAX_NODES) -> None:
        self.scenario = scenario
        self.seed = seed
        self.graph = graph_of(scenario, seed, max_nodes=max_nodes)
        self.names: list[str] = [str(self.graph.nodes[node].get("name", node)) for node in sorted(self.graph)]
        self._rng = random.Random(f"{seed}/scenario")
        self.roles = roles_of(scenario.roles, count=len(self.graph), names=self.names, rng=self._rng)
        self._set_links()
        self.price_by_node = dict.fromkeys(range(len(self.graph)), PriceConfig())
        for table in scenario.prices:
            self.price_by_node.update(dict.fromkeys(self.select(table.nodes), table))
        self.fees = {n: self._rng.randint(*self.price_by_node[n].fee) for n in sorted(self.graph)}

    def select(self, selector: Selector) -> list[int]:
        return select(selector, count=len(self.graph), roles=self.roles, names=self.names, rng=self._rng)

    def asked_fees(self) -> dict[int, int]:
        """Not for sale where a node carries for nobody."""
        barred = {node for node, role in self.roles.items() if role in CARRIES_FOR_NOBODY}
        return {node: PRICE_NOT_FOR_SALE if node in barred else fee for node, fee in self.fees.items()}

    def set_link(self, edge: dict[str, object], table: LinkConfig) -> None:
        if table.kind is not None:
            edge["kind"] = table.kind
        for name in ("cost", "queue"):
            if (whole := getattr(table, name)) is not None:
                edge[name] = self._rng.randint(*whole)
        for name in ("latency", "loss", "bandwidth"):
            if (limits := getattr(table, name)) is not None:
                edge[name] = self._rng.uniform(*limits) if limits[0] != limits[1] else limits[0]

    def flows(self) -> Iterator[tuple[int, int, DemandConfig]]:
        """Source, destination (perhaps INTERNET), and how much."""
        for demand in self.scenario.demands:
            destinations = [INTERNET] if demand.destination is None else self.select(demand.destination)
            for source in self.select(demand.source):
                for destination in destinations:
                    is_there = destination == INTERNET and self.roles[source] == "gateway"
                    if source != destination and not is_there:
                        yield source, destination, demand

    def faults(self) -> Iterator[Break]:
        """Those of the scenario, of its churn, and of its traces; not in order of time."""
        for fault in self.scenario.faults:
            yield self._break(fault, self.select(fault.nodes), "[[fault]]: ")
        for churn in self.scenario.churns:
            if churn.trace:
                yield from self._trace(churn.trace)
                continue
            for node in self.select(churn.nodes):
                rng = random.Random(f"{self.seed}/churn/{node}")
                at = churn.start + rng.expovariate(1 / churn.mean_up)
                while at < min(churn.stop, self.scenario.run.duration):
                    back = at + rng.expovariate(1 / churn.mean_down)
                    yield self._break(FaultConfig(at=at, kind="node_down"), [node])
                    yield self._break(FaultConfig(at=back, kind="node_up"), [node])
                    at = back + rng.expovariate(1 / churn.mean_up)

    def _set_links(self) -> None:
        edges = sorted(tuple(sorted(edge)) for edge in self.graph.edges)
        for table in self.scenario.links:
            for a, b in table.between or edges:
                if not self.graph.has_edge(a, b):
                    raise ScenarioError(f"[[link]]: there is no link between {a} and {b}")
                self.set_link(self.graph.edges[a, b], table)

    def _break(self, fault: FaultConfig, nodes: list[int], where: str = "") -> Break:
        """`where` begins the message of the ScenarioError that it may raise."""
        links = fault.links
        if not fault.kind.startswith("node"):
            links = links or tuple(sorted((min(edge), max(edge)) for edge in self.graph.edges))
            for a, b in links:
                if not self.graph.has_edge(a, b):
                    raise ScenarioError(f"{where}there is no link between {a} and {b}")
        return Break(fault, tuple(nodes), links)

    def _trace(self, name: str) -> Iterator[Break]:
        text = read_file(self.scenario.base / name).decode(errors="replace")
        for number, row in enumerate(csv.reader(io.StringIO(text)), start=1):
            if not row or row[0].lstrip().startswith("#"):
                continue
            try:
                at, kind, *ends = (cell.strip() for cell in row)
                numbers = [int(end) for end in ends]
                is_link = kind.startswith("link")
                if kind not in _TRACED or len(numbers) != 1 + is_link:
                    raise ValueError("a row is seconds, node_down|node_up|link_down|link_up, and one or two nodes")
                links = ((numbers[0], numbers[1]),) if is_link else ()
                fault = FaultConfig(at=float(at), kind=kind, links=links)
                if not 0 <= fault.at < math.inf or not all(0 <= node < len(self.graph) for node in numbers):
                    raise ValueError("no such time or node")
                yield self._break(fault, [] if is_link else numbers)
            except (ValueError, ScenarioError) as error:
                raise ScenarioError(f"{name}, line {number}: {error}") from error


def graph_of(scenario: Scenario, seed: int, *, max_nodes: int = MAX_NODES) -> nx.Graph:
    """Raises ScenarioError."""
    config = scenario.topology
    try:
        if config.file:
            path = scenario.base / config.file
            return topology_files.read(path, component=config.component, default_cost=config.cost[0])
        return topology.build(config.graph, random.Random(f"{seed}/graph"), config.cost, max_nodes=max_nodes)
    except TopologyError as error:
        raise ScenarioError(f"[topology]: {error}") from error
