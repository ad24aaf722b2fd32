"""Whole networks in virtual time: no forwarding loop at any next-hop change, and shortest paths after quiescence.

The cost of a path is the sum of its link costs and of the fees, as metrics, of the relays on it: neither the source's
own fee nor the destination's counts.
"""

from __future__ import annotations

import random

import networkx as nx
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.events import LinkKind, LinkQuality, RttCost
from routing.rules import price_metric
from tests.routing.harness import Link, Network, link_local

QUIET = 100.0  # longer than a lost update can be missed: hold time, request back-off, patience
TURMOILS = ("cut", "silent cut", "heal", "fee", "loss", "wait", "cost")


def build(rng: random.Random, nodes: int, kind: LinkKind) -> Network:
    network = Network(seed=rng.getrandbits(32), config={"sticky_timeout": 1.0})
    graph = nx.gnm_random_graph(nodes, rng.randint(nodes - 1, 2 * nodes), seed=rng.getrandbits(32))
    for node in graph:
        # Seqnos about to wrap.
        network.add_node(node, fee=rng.choice((0, 10_000, 300_000, 1_000_000)), initial_seqno=rng.choice((0, 65535)))
    for a, b in graph.edges:
        network.add_link(a, b, cost=rng.choice((96, 96, 128, 256, 500)), delay=rng.uniform(0.0005, 0.02), kind=kind)
    return network


def stir(network: Network, rng: random.Random) -> None:
    """One thing happens; then a while passes, often too short for the network to come to rest."""
    what = rng.choice(TURMOILS)
    links = list(network.links.values())
    if what == "fee":
        network.set_fee(rng.choice(list(network.speakers)), rng.choice((0, 10_000, 12_000, 300_000, 2_000_000)))
    elif links:
        stir_link(network, rng.choice(links), what, rng)
    network.run(rng.choice((0.001, 0.02, 0.3, 5.0, 20.0)))


def stir_link(network: Network, link: Link, what: str, rng: random.Random) -> None:
    if what == "cut" and not link.is_cut:
        network.carrier_lost(link.a, link.b)
    elif what == "silent cut":
        link.is_cut = True
    elif what == "heal" and link.is_cut:
        network.carrier_found(link.a, link.b)
    elif what == "loss":
        link.loss = rng.choice((0.0, 0.2, 0.6))
    elif what == "cost" and not link.is_cut:
        link.cost = rng.choice((96, 128, 256, 900))
        network.carrier_found(link.a, link.b)


def expected_costs(network: Network) -> dict[int, dict[int, int]]:
    """By destination, then source. An edge into a relay costs its link and the relay's fee."""
    costs = {}
    for destination in network.speakers:
        graph = nx.DiGraph()
        graph.add_nodes_from(network.speakers)
        for link in network.links.values():
            if link.is_cut:
                continue
            for node, relay in ((link.a, link.b), (link.b, link.a)):
                fee = 0 if relay == destination else price_metric(network.fees[relay], 256.0)
                graph.add_edge(relay, node, weight=link.cost + fee)
        costs[destination] = nx.single_source_dijkstra_path_length(graph, destination)
    return costs


def check_optimal(network: Network) -> None:
    for destination, costs in expected_costs(network).items():
        for source in network.speakers:
            path = network.path(source, destination)
            if source not in costs:
                assert path is None, f"{source} -> {destination}: a path where there is none"
                continue
            assert path is not None, f"{source} -> {destination}: no path"
            assert network.path_cost(path) == costs[source], f"{source} -> {destination}: {path}"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 9), st.integers(0, 12))
def test_no_loop_and_shortest_paths(seed: int, nodes: int, events: int) -> None:
    rng = random.Random(seed)
    network = build(rng, nodes, LinkKind.WIRED)
    for _ in range(events):
        stir(network, rng)
    for link in network.links.values():
        link.loss = 0.0
    network.run(QUIET)
    check_optimal(network)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 8), st.integers(1, 15))
def test_no_loop_on_lossy_radio_links(seed: int, nodes: int, events: int) -> None:
    """Costs follow the losses, so every Hello may move a metric: only loops are looked for here."""
    rng = random.Random(seed)
    network = build(rng, nodes, LinkKind.WIRELESS)
    for link in network.links.values():
        link.loss = rng.choice((0.05, 0.3))
    for _ in range(events):
        stir(network, rng)
    network.run(20.0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 8), st.integers(1, 15))
def test_no_loop_on_tunnels_whose_round_trip_times_change(seed: int, nodes: int, events: int) -> None:
    rng = random.Random(seed)
    network = build(rng, nodes, LinkKind.TUNNEL)
    for link in network.links.values():
        link.rtt = RttCost()
        network.carrier_found(link.a, link.b)
    for _ in range(events):
        for link in network.links.values():
            link.delay = rng.uniform(0.001, 0.2)
        stir(network, rng)
    network.run(20.0)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(3, 8), st.integers(1, 15), st.sampled_from((LinkKind.WIRED, LinkKind.WIRELESS))
)
def test_no_loop_while_drivers_change_their_minds(seed: int, nodes: int, events: int, kind: LinkKind) -> None:
    """And shortest paths once they say nothing any more."""
    rng = random.Random(seed)
    network = build(rng, nodes, kind)
    for _ in range(events):
        for link in network.links.values():
            rate(network, link, rng.choice((0.001, 0.1, 0.5, 0.9, 1.0, None)), rng.choice((link.a, link.b)))
        stir(network, rng)
    for link in network.links.values():
        link.loss = 0.0
        for end in (link.a, link.b):
            rate(network, link, None, end)
    network.run(QUIET)
    if kind is LinkKind.WIRED:
        check_optimal(network)


def rate(network: Network, link: Link, quality: float | None, node: int) -> None:
    peer = link.other(node)
    network.feed(node, LinkQuality(f"to{peer}", link_local(peer, node), quality))


def test_a_large_random_network_converges_within_a_second() -> None:
    rng = random.Random(7)
    network = build(rng, 40, LinkKind.WIRED)
    network.run(1.0)
    check_optimal(network)
    assert network.changes > 1000
