"""Nodes that share few processors (simulator.exact.processors)."""

from __future__ import annotations

import networkx as nx

from simulator.exact.processors import Processors, Work
from simulator.network import Network, Options


def test_a_node_deals_with_one_packet_at_a_time_on_one_of_the_processors_that_all_share() -> None:
    processors = Processors(Work(2, 1.0))
    assert [processors.take(0, now=0.0), processors.take(0, now=0.0)] == [1.0, 2.0]
    assert [processors.take(1, now=0.0), processors.take(2, now=0.0)] == [2.0, 3.0]
    assert (processors.busy_until(2), processors.busy_until(3)) == (3.0, 0.0)
    assert processors.take(3, now=9.0) == 10.0


def _last_route_at(work: Work | None) -> tuple[float, dict[int, dict[int, int]]]:
    graph = nx.grid_2d_graph(3, 3)
    graph = nx.convert_node_labels_to_integers(graph)
    nx.set_edge_attributes(graph, 96, "cost")
    network = Network(graph, dict.fromkeys(graph, 0), Options(1, start_spread=0.0, work=work))
    last = 0.0
    while network.next_at() <= 10.0:
        for change in network.step():
            last = change.at
    return last, {to: network.next_hops.of(to) for to in network.next_hops.destinations}


def test_packets_that_wait_for_a_processor_delay_routes_and_lose_none() -> None:
    at_once, hops = _last_route_at(None)
    later, others = _last_route_at(Work(1, 0.002))
    assert later > at_once + 0.02
    assert {to: set(found) for to, found in others.items()} == {to: set(found) for to, found in hops.items()}
    assert all(len(found) == 8 for found in others.values())
