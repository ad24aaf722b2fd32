from pathlib import Path

import networkx as nx
import pytest

from tools.lab import topology
from tools.lab.topology import Link, Node, Topology, TopologyError


def graph(text: str) -> nx.Graph:
    made = topology.load(text)
    result = nx.Graph()
    result.add_nodes_from(node.name for node in made.nodes)
    result.add_edges_from((link.a, link.b) for link in made.links)
    return result


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("line:5", nx.path_graph(5)),
        ("line:1", nx.path_graph(1)),
        ("ring:6", nx.cycle_graph(6)),
        ("grid:3x4", nx.grid_2d_graph(3, 4)),
        ("grid:1x2", nx.path_graph(2)),
        ("diamond", nx.cycle_graph(4)),
    ],
)
def test_named_topologies_are_the_graphs_of_that_name(text: str, expected: nx.Graph) -> None:
    assert nx.is_isomorphic(graph(text), expected)


@pytest.mark.parametrize(
    "text",
    ["line", "line:0", "line:-3", "line:x", "ring:2", "grid:3", "grid:0x3", "diamond:4", "star", "", "grid:99x99"],
)
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(TopologyError):
        topology.load(text)


FILE = """
[defaults]
rate = "50mbit"
fee_msat_per_gb = 7
[[node]]
name = "buyer"
[[node]]
name = "relay"
fee_msat_per_gb = 500
[node.config.payments]
max_window_sat = 100
[[link]]
nodes = ["buyer", "relay"]
"""


def test_a_file_is_read_with_its_defaults(tmp_path: Path) -> None:
    path = tmp_path / "house.toml"
    path.write_text(FILE)
    assert topology.load(str(path)) == Topology(
        (Node("buyer", 7), Node("relay", 500, {"payments": {"max_window_sat": 100}})),
        (Link("buyer", "relay", "50mbit"),),
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "relay"', 'name = "buyer"', "same name"),
        ('name = "relay"', 'name = "Relay"', "not a node name"),
        ('name = "relay"', 'name = "a-far-too-long-name"', "not a node name"),
        ("fee_msat_per_gb = 500", "fee = 500", "unknown key 'fee'"),
        ("fee_msat_per_gb = 500", 'fee_msat_per_gb = "500"', "has to be of type int"),
        ('"buyer", "relay"]', '"buyer", "rely"]', "no node rely"),
        ('"buyer", "relay"]', '"buyer", "buyer"]', "to itself"),
        ('"buyer", "relay"]', '"buyer"]', "nodes ="),
        ("50mbit", "50 miles", "not a rate"),
        ("[defaults]", "[default]", "unknown key 'default'"),
        ("[defaults]", "[defaults", "not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(old: str, new: str, words: str) -> None:
    assert old in FILE
    with pytest.raises(TopologyError, match=words):
        topology.from_toml(FILE.replace(old, new))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TopologyError, match=r"none\.toml: No such file"):
        topology.load(str(tmp_path / "none.toml"))


def test_fees_and_rates_of_the_command_line_come_last() -> None:
    made = topology.from_toml(FILE).with_fees(None, {"relay": 9}).with_rate("1gbit")
    assert [node.fee_msat_per_gb for node in made.nodes] == [7, 9]
    assert [link.rate for link in made.links] == ["1gbit"]
    assert [node.fee_msat_per_gb for node in made.with_fees(3, {"buyer": 1}).nodes] == [1, 3]
    with pytest.raises(TopologyError, match="no node n9"):
        made.with_fees(None, {"n9": 1})


def test_addresses_are_distinct_and_in_order() -> None:
    made = topology.load("line:300")
    addresses = [made.address(node.name) for node in made.nodes]
    assert str(addresses[0]) == "10.77.0.1"
    assert addresses == sorted(set(addresses))


def test_neighbours_are_those_of_the_links() -> None:
    made = topology.load("grid:3x3")
    assert sorted(made.neighbours("n5")) == ["n2", "n4", "n6", "n8"]
    assert sorted(made.neighbours("n1")) == ["n2", "n4"]


@pytest.mark.parametrize(("rate", "bits"), [("500kbit", 5e5), ("50mbit", 5e7), ("1.5gbit", 1.5e9)])
def test_rates_are_read_as_tc_reads_them(rate: str, bits: float) -> None:
    assert topology.rate_bits(rate) == bits


@pytest.mark.parametrize("rate", ["", "0mbit", "-1mbit", "50", "50Mbit", "50mbit\n"])
def test_other_rates_are_refused(rate: str) -> None:
    with pytest.raises(TopologyError):
        topology.rate_bits(rate)
