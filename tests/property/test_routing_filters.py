"""Networks whose nodes have random filters that change all the time: no loop at any next-hop change, and shortest paths
once the filters are gone. Longer ways lose no packet. Nobody's packets cross a leaf. No price is taken above the
maximum."""

from __future__ import annotations

import random

import networkx as nx
from hypothesis import given, settings
from hypothesis import strategies as st

from routing.config import Mode
from routing.events import LinkKind, SetPolicy
from routing.filters import REFUSED, Policy, Rule
from routing.rules import PRICE_NOT_FOR_SALE
from routing.tlv import RouteKey
from tests.property.test_routing_network import QUIET, build, check_optimal, stir
from tests.routing.chart import DESTINATION, Chart, update
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


class Unbroken(Network):
    """Once `is_settled`, nobody may lose a route."""

    is_settled = False

    def _set_next_hop(self, node: int, prefix: RouteKey, peer: int | None) -> None:
        assert peer is not None or not self.is_settled, f"t={self.now}: {node} has no route to {prefix} any more"
        super()._set_next_hop(node, prefix, peer)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 8), st.integers(1, 10))
def test_costs_fees_and_longer_filters_change_and_nobody_loses_a_route(seed: int, nodes: int, events: int) -> None:
    rng = random.Random(seed)
    network = Unbroken(seed=rng.getrandbits(32))
    graph = nx.connected_watts_strogatz_graph(nodes, 2, 0.5, seed=rng.getrandbits(32))
    graph.add_edges_from(nx.gnm_random_graph(nodes, nodes, seed=rng.getrandbits(32)).edges)
    for node in graph:
        network.add_node(node)
    for a, b in graph.edges:
        network.add_link(a, b, cost=rng.choice((96, 128, 256)), delay=rng.uniform(0.0005, 0.02))
    network.run(30.0)
    check_optimal(network)
    network.is_settled = True
    for _ in range(events):
        node = rng.choice(list(graph))
        what = rng.choice(("cost", "fee", "filter"))
        if what == "cost":
            link = rng.choice(list(network.links.values()))
            link.cost = rng.choice((96, 200, 900))
            network.carrier_found(link.a, link.b)  # said again, with its new cost
        elif what == "fee":
            network.set_fee(node, rng.choice((0, 300_000, 2_000_000)))
        else:
            added = tuple(Rule(rng.choice((0, 50, 700)), prefix=node_prefix(rng.choice(list(graph)))) for _ in range(2))
            network.feed(node, SetPolicy(rng.choice((Policy(imports=added), Policy(exports=added)))))
        network.run(rng.choice((0.001, 0.02, 1.0, 20.0)))
    network.run(QUIET)


PRICES = st.none() | st.sampled_from((0, 1, 500, 10_000, PRICE_NOT_FOR_SALE))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3000), PRICES, st.booleans()), max_size=30),
    st.lists(st.sampled_from((0, None, 500, 10_000)), min_size=1, max_size=4),
    st.sampled_from((0, 500, PRICE_NOT_FOR_SALE - 1)),
)
def test_no_route_is_taken_that_is_too_dear_or_unpriced_where_that_is_refused(
    said: list[tuple[str, int, int | None, bool]], policies: list[int | None], price_max: int
) -> None:
    chart = Chart(price_max_msat_per_gb=price_max, fee_msat_per_gb=7)
    chart.meet("a", "b", "c")
    priced: set[str] = set()
    for number, (peer, metric, price, is_awaited) in enumerate(said):
        unpriced = policies[number % len(policies)]
        chart.feed(SetPolicy(Policy(unpriced_msat_per_gb=unpriced)))
        chart.hear(peer, update(metric, seqno=number + 1, price=price))
        priced |= {peer} if price is not None else set()
        if is_awaited:
            chart.wait(1.0)
        selected = chart.speaker.selected(DESTINATION)
        if selected is not None:
            assert selected.price_msat_per_gb <= price_max
            assert selected.interface in priced or selected.price_msat_per_gb == unpriced
            assert chart.speaker.announced_price(DESTINATION) in (None, selected.price_msat_per_gb + 7)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(3, 8), st.integers(0, 6))
def test_no_path_crosses_a_leaf_and_all_others_are_there(seed: int, nodes: int, events: int) -> None:
    rng = random.Random(seed)
    network = Network(seed=rng.getrandbits(32), config={"sticky_timeout": 1.0})
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
