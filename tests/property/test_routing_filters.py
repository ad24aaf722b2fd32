"""Networks whose nodes have random filters that change all the time: no loop at any next-hop change, and shortest paths
once the filters are gone. Nobody's packets cross a leaf."""

from __future__ import annotations

import random

import networkx as nx
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.config import Mode
from routing.events import LinkKind, SetPolicy
from routing.filters import REFUSED, Policy, Rule
from tests.property.test_routing_network import QUIET, build, check_optimal, stir
from tests.routing.harness import Network, link_local, node_prefix


def random_rule(network: Network, node: int, rng: random.Random) -> Rule:
    peers = [link.other(node) for link in network.links.values() if node in (link.a, link.b)] or [node]
    peer = rng.choice(peers)
    of = node_prefix(rng.choice(list(network.speakers)))
    return Rule(
        add_metric=rng.choice((0, 1, 50, 300, 2000, REFUSED)),
        prefix=rng.choice((None, of, of.supernet(new_prefix=125))),
        interface=rng.choice((None, f"to{peer}")),
        neighbour=rng.choice((None, None, link_local(peer, node))),
        router_id=rng.choice((None, None, (rng.choice(peers) + 1).to_bytes(8, "big"))),
        price_above_msat_per_gb=rng.choice((None, None, 10_000, 1_000_000)),
    )


def random_policy(network: Network, node: int, rng: random.Random) -> Policy:
    imports, exports = (tuple(random_rule(network, node, rng) for _ in range(rng.randint(0, 3))) for _ in range(2))
    return Policy(imports, exports, unpriced_msat_per_gb=rng.choice((0, 0, None, 500_000)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 8), st.integers(2, 14))
def test_no_loop_with_random_filters_and_shortest_paths_without(seed: int, nodes: int, events: int) -> None:
    rng = random.Random(seed)
    network = build(rng, nodes, LinkKind.WIRED)
    for _ in range(events):
        node = rng.choice(list(network.speakers))
        network.feed(node, SetPolicy(random_policy(network, node, rng)))
        stir(network, rng)
    for node in network.speakers:
        network.feed(node, SetPolicy(Policy()))
    for link in network.links.values():
        link.loss = 0.0
    network.run(QUIET)
    check_optimal(network)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 8), st.integers(0, 6))
def test_no_path_crosses_a_leaf_and_all_others_are_there(seed: int, nodes: int, events: int) -> None:
    rng = random.Random(seed)
    network = Network(seed=rng.getrandbits(32))
    graph = nx.gnm_random_graph(nodes, rng.randint(nodes - 1, 2 * nodes), seed=rng.getrandbits(32))
    leaves = set(rng.sample(range(nodes), rng.randint(1, nodes - 1)))
    for node in graph:
        network.add_node(node, mode=Mode.LEAF if node in leaves else Mode.ROUTER)
    for a, b in graph.edges:
        network.add_link(a, b, delay=rng.uniform(0.0005, 0.02))
    for _ in range(events):
        stir(network, rng)
    for link in network.links.values():
        link.loss = 0.0
    network.run(QUIET)
    up = nx.Graph([(link.a, link.b) for link in network.links.values() if not link.is_cut])
    up.add_nodes_from(graph)
    for source in graph:
        for destination in graph:
            between = up.subgraph((set(graph) - leaves) | {source, destination})
            path = network.path(source, destination)
            assert (path is not None) == nx.has_path(between, source, destination), (source, destination)
            assert path is None or not leaves & set(path[1:-1]), path
