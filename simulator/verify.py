"""Whether two fidelities agree on the same scenario: `exact` with `batch` by their histories, `batch` with `flow` by
routes and loads."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

from routing import rules
from simulator import lockstep
from simulator.batch import engine
from simulator.batch.engine import BatchResult, Step
from simulator.flow.market import Forest
from simulator.flow.mesh import from_graph

LOCKSTEP_NODES = 120  # real speakers in lockstep: more take minutes


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    is_good: bool
    detail: str


def random_steps(graph: nx.Graph, rng: random.Random, count: int) -> list[Step]:
    """A cold start, then fees that change and links that are cut, all drawn at random."""
    links = sorted(tuple(sorted(edge)) for edge in graph.edges)
    rng.shuffle(links)
    steps = [Step("originate")]
    for _ in range(min(count, lockstep.STEPS_MAX - 1)):
        if links and rng.random() < 0.5:
            steps.append(Step("link_down", *links.pop()))
        else:
            steps.append(Step("fee", rng.choice(sorted(graph)), rng.choice([0, rng.randrange(4_000_000)])))
    return steps


def run(
    graph: nx.Graph,
    fee_by_node: Mapping[int, int],
    steps: Sequence[Step],
    *,
    price_weight: float = 256.0,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Check]:
    """All checks that the size of the graph allows. Raises engine.BatchError, lockstep.LockstepError."""
    checks = []
    if len(graph) <= LOCKSTEP_NODES:
        tell("real speakers, step by step")
        checks.append(_history(graph, fee_by_node, steps, price_weight))
    tell("batch, whole and in shards")
    whole = engine.simulate(graph, fee_by_node, steps, price_weight=price_weight)
    shards = engine.simulate(graph, fee_by_node, steps, price_weight=price_weight, shards=3, workers=2)
    is_same = whole.trace.digest() == shards.trace.digest()
    checks.append(Check("batch in shards", is_same, f"{whole.changes} route changes, trace {whole.trace.digest()}"))
    checks.append(Check("loops", whole.loops == 0, f"{whole.loops} in {whole.changes} next-hop changes"))
    tell("flow")
    # Where a seqno had to rise twice within a moment, longer routes remain for a while: cold starts are compared.
    cold = engine.simulate(graph, fee_by_node, price_weight=price_weight, is_traced=False)
    checks += compare_flow(graph, fee_by_node, cold, price_weight)
    return checks


def _history(graph: nx.Graph, fee_by_node: Mapping[int, int], steps: Sequence[Step], price_weight: float) -> Check:
    exact = lockstep.simulate(graph, fee_by_node, steps, price_weight=price_weight)
    batch = engine.simulate(
        graph,
        fee_by_node,
        steps,
        price_weight=price_weight,
        is_immediate=True,
        traced_ticks=exact.comparable_ticks,
    )
    digests = exact.trace.digest(), batch.trace.digest()
    compared = f"{exact.trace.count} route changes"
    if exact.strays:
        compared += f" (until a timer of {exact.strays} had a say)"
    # Two empty histories are equal too. A cold start alone installs a route for each pair that a link joins.
    is_good = digests[0] == digests[1] and exact.trace.count >= 2 * graph.number_of_edges()
    return Check("exact and batch", is_good, f"{compared}, traces {digests[0]} and {digests[1]}")


def compare_flow(
    graph: nx.Graph, fee_by_node: Mapping[int, int], batch: BatchResult, price_weight: float
) -> list[Check]:
    """Metrics of all pairs, and what each node carries if every pair exchanges one unit.

    Among equally good paths the engines may choose differently; then a load may lie anywhere between. Loads are
    compared as they are summed up by metric: flow times metric over all links and relays is the same for both."""
    mesh = from_graph(graph)
    rank = np.empty(len(graph), np.int64)
    rank[mesh.original] = np.arange(len(graph))
    relay = np.array([rules.price_metric(fee_by_node[int(old)], price_weight) for old in mesh.original], float)
    different, worst, ties = 0, 0.0, 0
    for row, destination in enumerate(batch.destinations):
        forest = Forest(mesh, [int(rank[destination])])
        forest.grow(relay, is_root_paid=False)
        distance = np.minimum(forest.distance[rank], float(rules.METRIC_INFINITY))
        distance[destination] = 0.0
        metric = batch.metric[row].astype(float)
        metric[destination] = 0.0
        different += int((distance != metric).sum())
        demand = (forest.distance < rules.METRIC_INFINITY).astype(float)
        demand[forest.roots] = 0.0
        load, link_cost = forest.load(demand)
        load[forest.roots] = 0.0
        carried = _carried(batch.next_hop[row], destination)
        ties += int((np.abs(carried - load[rank]) > 0).any())
        batch_total = float(metric[batch.next_hop[row] >= 0].sum())
        worst = max(worst, abs(link_cost + float(load @ relay) - batch_total))
    pairs = len(batch.destinations) * (len(graph) - 1)
    return [
        Check("batch and flow: routes", different == 0, f"{different} of {pairs} pairs have another metric"),
        Check(
            "batch and flow: loads",
            worst == 0.0,
            f"flow times cost differs by {worst:g}; {ties} of {len(batch.destinations)} trees choose others of equals",
        ),
    ]


def _carried(next_hop: np.ndarray, destination: int) -> np.ndarray:
    """What each node carries for others when every node sends one unit to the destination."""
    carried = np.zeros(len(next_hop))
    for node in np.flatnonzero(next_hop >= 0):
        hop = int(next_hop[node])
        while hop != destination and hop >= 0:
            carried[hop] += 1
            hop = int(next_hop[hop])
    return carried
