"""The flow engine: trees by networkx's, textbook equilibria, money that adds up, prices that settle."""

import random

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing import rules
from simulator import topology
from simulator.batch import engine
from simulator.flow import market, trees
from simulator.flow.market import Congestion, Forest
from simulator.flow.mesh import Mesh, from_graph, geometric
from simulator.run import random_fees

WEIGHT = 256.0


def rank_of(mesh: Mesh) -> dict[int, int]:
    return {int(old): new for new, old in enumerate(mesh.original)}


def links(mesh: Mesh) -> set[tuple[int, int]]:
    ends = np.repeat(np.arange(mesh.node_count), np.diff(mesh.offsets))
    return {(int(a), int(b)) for a, b in zip(ends, mesh.neighbours, strict=True)}


@pytest.mark.parametrize("count", [1, 2, 40, 700])
def test_a_geometric_mesh_links_whoever_is_near(count: int) -> None:
    mesh = geometric(count, 6, seed=3)
    radius = np.sqrt(6 / (max(count - 1, 1) * np.pi))
    distance = np.sqrt(((mesh.places[:, None].astype(float) - mesh.places[None]) ** 2).sum(axis=2))
    near = {(a, b) for a, b in np.argwhere(distance <= radius) if a != b}
    edge = {(a, b) for a, b in np.argwhere(abs(distance - radius) < 1e-6)}  # rounded places
    assert links(mesh) - edge == near - edge
    assert sorted(mesh.original) == list(range(count))
    assert (geometric(count, 6, seed=3).neighbours == mesh.neighbours).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_trees_are_networkx_shortest_paths(seed: int, is_compiled: bool) -> None:
    rng = random.Random(seed)
    graph = topology.build("geometric:25:5", rng, (1, 300))
    fees = {node: rng.randrange(500) for node in graph}
    roots = rng.sample(range(25), 3)
    mesh = from_graph(graph)
    rank = rank_of(mesh)
    fee = np.zeros(25)
    for node, value in fees.items():
        fee[rank[node]] = value
    forest = Forest(mesh, [rank[root] for root in roots], is_compiled=is_compiled)
    forest.grow(fee)
    ways = nx.DiGraph()  # a packet entering `b` pays for b, unless it is a root and so the end
    ends = [(a, b, graph.edges[a, b]["cost"] + fees[b]) for x, y in graph.edges for a, b in ((x, y), (y, x))]
    ways.add_weighted_edges_from((a, b, cost) for a, b, cost in ends if a not in roots)
    ways.add_weighted_edges_from((root, "end", 0) for root in roots)
    wanted = nx.single_source_dijkstra_path_length(ways.reverse(), "end")
    for node in set(graph) - set(roots):
        assert forest.distance[rank[node]] == wanted[node]
    demand = np.ones(25)
    demand[forest.roots] = 0
    load, link_cost = forest.load(demand)
    assert link_cost + float(load @ fee) == pytest.approx(float(demand @ forest.distance))  # money is conserved
    assert load[forest.roots].sum() == 22


def named(edges: list[tuple[str, str]], names: str) -> tuple[Mesh, dict[str, int]]:
    """Without link costs: all that costs is in the nodes."""
    number = {name: index for index, name in enumerate(names)}
    graph = nx.Graph()
    graph.add_nodes_from(range(len(names)))
    graph.add_edges_from(((number[a], number[b]) for a, b in edges), cost=0)
    mesh = from_graph(graph)
    return mesh, {name: rank_of(mesh)[index] for name, index in number.items()}


def settle(
    mesh: Mesh, place: dict[str, int], costs: dict[str, tuple[float, float]], amount: float, *, tolls: bool
) -> market.Equilibrium:
    base, slope = np.zeros(mesh.node_count), np.zeros(mesh.node_count)
    for name, (constant, linear) in costs.items():
        base[place[name]], slope[place[name]] = constant, linear
    demand = np.zeros(mesh.node_count)
    demand[place["s"]] = amount
    congestion = Congestion(base, slope, 1.0)
    return market.equilibrium(mesh, [place["t"]], demand, congestion, gap=1e-6, rounds=2000, with_tolls=tolls)


def test_pigou() -> None:
    """A way that always costs 1 beside one that costs what it carries: the selfish all take the second, and gain
    nothing by it; with a toll of what each costs the others, half of them do."""
    mesh, place = named([("s", "a"), ("s", "b"), ("a", "t"), ("b", "t")], "sabt")
    costs = {"a": (1.0, 0.0), "b": (0.0, 1.0)}
    selfish = settle(mesh, place, costs, 1.0, tolls=False)
    assert selfish.load[place["b"]] == pytest.approx(1.0, abs=1e-3)
    assert selfish.total == pytest.approx(1.0, abs=1e-3)
    tolled = settle(mesh, place, costs, 1.0, tolls=True)
    assert tolled.load[place["b"]] == pytest.approx(0.5, abs=1e-3)
    assert tolled.price[place["b"]] == pytest.approx(1.0, abs=2e-3)  # half of it is the toll
    delay = tolled.load[place["a"]] + tolled.load[place["b"]] ** 2
    assert delay == pytest.approx(0.75, abs=1e-3)


def test_braess() -> None:
    """A free bridge makes it worse for all: 1.5 becomes 2."""
    ways = [("s", "1"), ("1", "v"), ("v", "2"), ("2", "t"), ("s", "3"), ("3", "w"), ("w", "4"), ("4", "t")]
    costs = {"1": (0.0, 1.0), "2": (1.0, 0.0), "3": (1.0, 0.0), "4": (0.0, 1.0)}
    mesh, place = named(ways, "s1v23w4t")
    without = settle(mesh, place, costs, 1.0, tolls=False)
    assert without.total == pytest.approx(1.5, abs=1e-3)
    assert without.load[place["1"]] == pytest.approx(0.5, abs=1e-3)
    mesh, place = named([*ways, ("v", "w")], "s1v23w4t")
    bridged = settle(mesh, place, costs, 1.0, tolls=False)
    assert bridged.total == pytest.approx(2.0, abs=2e-3)
    assert bridged.load[place["1"]] == pytest.approx(1.0, abs=2e-3)
    tolled = settle(mesh, place, costs, 1.0, tolls=True)
    assert tolled.load[place["1"]] == pytest.approx(0.5, abs=2e-3)


def city(count: int = 400) -> tuple[Mesh, list[int], np.ndarray]:
    mesh = geometric(count, 8, seed=1)
    return mesh, [int(node) for node in np.linspace(5, count - 5, 4).astype(int)], np.full(count, 1e5)


def test_an_equilibrium_has_a_small_gap_and_compiled_or_not_it_is_the_same() -> None:
    mesh, roots, demand = city(150)
    base = np.full(mesh.node_count, 25.6)
    congestion = Congestion(base, base / 2e6**4, 4.0)
    found = market.equilibrium(mesh, roots, demand, congestion)
    assert found.gap <= 5e-3
    assert found.gaps[0] > found.gap
    earned = found.earnings_msat_per_s().sum()
    assert earned == pytest.approx((found.total - found.link_cost) / 8e9 * 1e6 / WEIGHT)
    slow = market.equilibrium(mesh, roots, demand, congestion, is_compiled=False)
    assert (slow.load == found.load).all()
    assert slow.gaps == found.gaps


def market_square(buyers: int) -> tuple[Mesh, dict[int, int], np.ndarray, np.ndarray]:
    """Node 0 is the gateway, 1 and 2 sell the way to it; half of the buyers are a little nearer to the one. The rule
    wants each seller to have half of the demand."""
    graph = nx.Graph([(0, 1, {"cost": 96}), (0, 2, {"cost": 96})])
    for buyer in range(3, 3 + buyers):
        graph.add_edge(buyer, 1, cost=96 + buyer % 2)
        graph.add_edge(buyer, 2, cost=97 - buyer % 2)
    mesh = from_graph(graph)
    rank = rank_of(mesh)
    demand, capacity = np.zeros(len(graph)), np.full(len(graph), buyers / 2 / 0.7)
    demand[[rank[buyer] for buyer in range(3, 3 + buyers)]] = 1.0
    capacity[rank[0]] *= 10
    return mesh, rank, demand, capacity


def test_buyers_of_two_equal_sellers_share_their_load_and_without_hysteresis_they_flap() -> None:
    mesh, rank, demand, capacity = market_square(20)

    def sell(fraction: float) -> market.RuleRun:
        return market.follow_rule(
            mesh,
            [rank[0]],
            4 * demand,  # a quarter of it is left at 1 sat/MB
            capacity,
            start_price=1_000_000,
            rounds=100,
            noise=0.05,
            sticky_fraction=fraction,
            buyers=market.Buyers(elasticity=1.0, reference_price=250_000),
        )

    calm, wild = sell(0.1), sell(-1.0)
    assert calm.flapping(50) < 0.05
    assert wild.flapping(50) > 0.3
    assert max(item.utilisation_max for item in calm.rounds[-50:]) < 1 < wild.rounds[-1].utilisation_max


def test_a_dearer_way_is_left_when_the_lot_of_the_price_of_the_whole_way_says_so() -> None:
    """Two ways of two relays each. The lot drawn is 3: the other way must be cheaper by 3 x 20 % of what the whole way
    asks. Drawn again after 10 times 16 s, it is 0."""
    graph = nx.Graph([(0, 1), (1, 2), (2, 5), (0, 3), (3, 4), (4, 5)])
    nx.set_edge_attributes(graph, 1, "cost")
    mesh = from_graph(graph)
    place = rank_of(mesh)
    forest, prices = Forest(mesh, [place[0]]), market.Prices(np.full(6, 1e6), WEIGHT)
    for node, fee in ((0, 0), (1, 4_000_000), (3, 4_000_001)):
        prices.announced[place[node]] = fee

    def interval(now: float, draw: float = 0.5, fraction: float = 0.2) -> int:
        prices.relay_cost[:] = [rules.price_metric(int(price), WEIGHT) for price in prices.announced]
        if now == 0:
            forest.grow(prices.relay_cost)
        forest.stick(prices, forest.parent.copy(), np.full((2, 6), draw), now=now, fraction=fraction, timeout=16.0)
        return int(forest.parent[place[5]])

    assert interval(0) == place[2]
    assert prices.asked[place[2]] == 5_000_000
    prices.announced[place[1]] = 5_500_000
    assert interval(10) == place[2]  # 1.5 is less than 3 times a fifth of 6.5, but more than that of the next hop's fee
    assert prices.lots[place[5]] == 3.0
    assert interval(160) == place[2]
    assert interval(180, draw=0.0) == place[4]
    prices.announced[place[3]] = 40_000_000
    assert interval(190) == place[2]
    prices.announced[place[3]] = 5_000_000
    assert interval(200) == place[2]
    assert interval(210, fraction=-1.0) == place[4]


def test_prices_by_the_rule_settle_and_without_hysteresis_routes_flap() -> None:
    mesh, roots, demand = city()
    capacity = np.full(mesh.node_count, 2e6)
    capacity[roots] = 2e7
    calm = market.follow_rule(mesh, roots, demand, capacity, rounds=120)
    wild = market.follow_rule(mesh, roots, demand, capacity, rounds=120, sticky_fraction=-1.0)
    assert wild.flapping() > 1.5 * calm.flapping()
    assert calm.rounds[-1].price_max > 100_000 > calm.price.min()
    slow = market.follow_rule(mesh, roots, demand, capacity, rounds=5, is_compiled=False)
    quick = market.follow_rule(mesh, roots, demand, capacity, rounds=5)
    assert slow.rounds == quick.rounds


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 2))
def test_hysteresis_makes_no_loop(seed: int, fraction: float) -> None:
    rng = np.random.default_rng(seed)
    mesh = geometric(120, 6, seed=seed % 1000)
    forest, prices = Forest(mesh, [3, 77]), market.Prices(np.zeros(120), WEIGHT)
    for number in range(6):
        prices.announced[:] = rng.integers(0, 2_000_000, mesh.node_count)
        prices.relay_cost[:] = [rules.price_metric(int(price), WEIGHT) for price in prices.announced]
        if number == 0:
            forest.grow(prices.relay_cost)
        forest.stick(
            prices, forest.parent.copy(), rng.random((2, 120)), now=10.0 * number, fraction=fraction, timeout=16.0
        )
        for start in range(mesh.node_count):
            seen, node = set(), start
            while node >= 0:
                assert node not in seen
                seen.add(node)
                node = int(forest.parent[node])


@pytest.mark.parametrize("text", ["geometric:40", "map:geant2012"])
def test_the_batch_engine_has_the_same_routes_and_loads(text: str) -> None:
    rng = random.Random(5)
    graph = topology.build(text, rng, (50, 300))
    fees = random_fees(graph, (0, 1_000_000), rng)
    batch = engine.simulate(graph, fees)
    mesh = from_graph(graph)
    rank = rank_of(mesh)
    metric = np.array([rules.price_metric(fees[int(old)], WEIGHT) for old in mesh.original], float)
    for destination in graph:
        forest = Forest(mesh, [rank[destination]])
        forest.grow(metric, is_root_paid=False)
        flow = {node: forest.distance[rank[node]] for node in graph if node != destination}
        assert flow == {node: batch.metric[destination, node] for node in flow}


def test_roots_that_are_no_nodes_are_refused() -> None:
    mesh = geometric(10, 6, seed=1)
    for roots in ([], [10], [-1]):
        with pytest.raises(ValueError, match="roots"):
            Forest(mesh, roots)
    for count, degree in ((0, 6), (10**9, 6), (10, 0)):
        with pytest.raises(ValueError, match="nodes"):
            geometric(count, degree, 1)


def test_who_reaches_no_root_sends_nothing() -> None:
    graph = nx.Graph([(0, 1), (2, 3)])
    nx.set_edge_attributes(graph, 96, "cost")
    mesh = from_graph(graph)
    place = rank_of(mesh)
    congestion = Congestion(np.ones(4), np.zeros(4), 1.0)
    found = market.equilibrium(mesh, [place[0]], np.ones(4), congestion)
    assert found.reached == 2
    assert found.total == 96 + 1
    assert found.load[place[0]] == 1
    assert trees.UNREACHED > 1e12
