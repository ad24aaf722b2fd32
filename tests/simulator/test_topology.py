import random

import networkx as nx
import pytest

from simulator import topology
from simulator.topology import TopologyError


def build(text: str, seed: int = 1) -> nx.Graph:
    return topology.build(text, random.Random(seed))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("line:4", nx.path_graph(4)),
        ("line:1", nx.path_graph(1)),
        ("ring:5", nx.cycle_graph(5)),
        ("grid:3x2", nx.grid_2d_graph(2, 3)),
        ("diamond", nx.cycle_graph(4)),
    ],
)
def test_named_topologies_are_the_graphs_of_that_name(text: str, expected: nx.Graph) -> None:
    graph = build(text)
    assert nx.is_isomorphic(graph, expected)
    assert sorted(graph) == list(range(len(expected)))
    assert {data["cost"] for _, _, data in graph.edges(data=True)} <= {topology.DEFAULT_COST}


@pytest.mark.parametrize(
    "text",
    [
        "geometric:60",
        "geometric:60:3",
        "random-regular:20",
        "random-regular:20:3",
        "scale-free:30",
        "small-world:30",
        "tree:30",
    ],
)
def test_random_topologies_are_connected_and_follow_the_seed(text: str) -> None:
    graph = build(text)
    assert nx.is_connected(graph)
    assert sorted(graph.edges) == sorted(build(text).edges)
    assert sorted(graph.edges) != sorted(build(text, seed=2).edges)


def test_degrees_are_about_what_was_asked_for() -> None:
    assert {degree for _, degree in build("random-regular:20:3").degree} == {3}
    assert 4 < 2 * build("geometric:200:6").number_of_edges() / 200 < 8


def test_costs_are_drawn_from_the_range() -> None:
    graph = topology.build("grid:6x6", random.Random(3), (10, 20))
    costs = {data["cost"] for _, _, data in graph.edges(data=True)}
    assert costs <= set(range(10, 21))
    assert len(costs) > 5


@pytest.mark.parametrize(
    "text",
    [
        "",
        "grid",
        "grid:3",
        "line:0",
        "line:99999",
        "grid:999x999",
        "random-regular:5:3",
        "random-regular:4:4",
        "star:3",
        "scale-free:3:3",
        "small-world:4:4",
        "map:atlantis",
        "file:/none/such.csv",
    ],
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(TopologyError):
        build(text)
