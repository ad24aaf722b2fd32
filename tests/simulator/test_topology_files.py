import json
import random
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import main, topology, topology_files
from simulator.raw_graph import TopologyError

PLACELESS = {"csv"}
COORDINATES = st.floats(-180, 180, allow_nan=False)
NAMES = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Z")), min_size=1, max_size=12).filter(
    lambda name: name == name.strip() and not name.startswith("#")
)


@st.composite
def graphs(draw: st.DrawFn) -> nx.Graph:
    names = draw(st.lists(NAMES, min_size=1, max_size=8, unique=True))
    graph = nx.Graph()
    for number, name in enumerate(names):
        graph.add_node(number, name=name)
        if draw(st.booleans()):
            graph.nodes[number].update(x=draw(COORDINATES), y=draw(COORDINATES))
    pairs = [(a, b) for a in range(len(names)) for b in range(a)]
    if pairs:
        for a, b in draw(st.lists(st.sampled_from(pairs), unique=True)):
            graph.add_edge(a, b, cost=draw(st.integers(1, 65534)))
    return graph


def content(graph: nx.Graph, *, with_places: bool) -> object:
    nodes = [
        (data["name"], *((data.get("x"), data.get("y")) if with_places else ()))
        for _, data in sorted(graph.nodes(data=True))
    ]
    return nodes, sorted((min(a, b), max(a, b), cost) for a, b, cost in graph.edges(data="cost"))


@pytest.mark.parametrize("kind", sorted(topology_files.WRITERS))
@settings(deadline=None, max_examples=60)
@given(graph=graphs())
def test_what_is_written_reads_back_as_it_was(kind: str, graph: nx.Graph) -> None:
    text = topology_files.render(graph, kind)
    back = topology_files.parse(text, component="all")  # the format is seen by the content
    with_places = kind not in PLACELESS
    assert content(back, with_places=with_places) == content(graph, with_places=with_places)


@settings(deadline=None, max_examples=100)
@given(
    st.one_of(
        st.text(max_size=60), st.sampled_from(["<graphml>", "[", '{"nodes":', "a,b", '{"links":[],"nodes":[{"id":0}]}'])
    )
)
def test_whatever_a_file_says_the_answer_is_a_graph_or_a_clear_error(text: str) -> None:
    for kind in (None, *topology_files.READERS):
        try:
            graph = topology_files.parse(text, kind)
        except TopologyError as error:
            assert str(error)
        else:
            assert len(graph) > 0


BAD = [
    ("", "empty"),
    ("<graphml><graph>", "not XML"),
    ('<!DOCTYPE x [<!ENTITY a "b">]><graphml/>', "entity"),
    ("<html></html>", "not <graphml>"),
    ("<graphml/>", "0 graphs"),
    ("<graphml><graph><node/></graph></graphml>", "has no id"),
    ('<graphml><graph><node id="a"/><edge source="a" target="b"/></graph></graphml>', "'b', which is not a node"),
    ("{", "not JSON"),
    ("[" * 100_000, "nested too deeply"),
    ('{"nodes": 3, "links": []}', "no list of nodes"),
    ('{"nodes": [{"node_id": true}], "links": []}', "node_id is missing"),
    ('{"nodes": [], "links": []}', "no nodes"),
    ('{"nodes": [{"id": 1}, {"id": "1"}], "links": []}', "twice"),
    ('{"nodes": [{"id": 1}, {"id": 2}], "links": [{"source": 1, "target": 2, "source_tq": 7}]}', "from 0 to 1"),
    ('{"type": "NetworkGraph", "nodes": [{"id": "a"}], "links": [{"source": "a", "target": "b", "cost": 1}]}', "'b'"),
    (
        '{"type": "NetworkGraph", "nodes": [{"id": 1}, {"id": 2}], "links": [{"source": 1, "target": 2, "cost": NaN}]}',
        "cost is from 1",
    ),
    ("a,b,x", "line 1: 'x' is not a cost"),
    ("a,b\nb,c,-5", "cost is from 1 to 65534"),
    ("a,b,c,d", "expected source,target"),
    ("a,b,inf", "costs inf"),
    ("a,b,1e9", "cost is from 1 to 65534"),
]


@pytest.mark.parametrize(("text", "part"), BAD)
def test_a_bad_file_is_refused_with_the_reason(text: str, part: str) -> None:
    with pytest.raises(TopologyError) as caught:
        topology_files.parse(text)
    assert part in str(caught.value)


def test_a_file_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe,b")
    for name, part in (("none.csv", "No such file"), ("a.csv", "not UTF-8")):
        with pytest.raises(TopologyError, match=part) as caught:
            topology_files.read(tmp_path / name)
        assert name in str(caught.value)


def test_costs_are_what_the_formats_tell() -> None:
    zoo = (
        '<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><key id="d1" attr.name="label"/>'
        '<key id="d2" attr.name="Longitude"/><key id="d3" attr.name="Latitude"/><graph>'
        '<node id="0"><data key="d1">Bern</data><data key="d2">7.4</data><data key="d3">46.9</data></node>'
        '<node id="1"><data key="d1">Basel</data></node><edge source="0" target="1"/><edge source="1" target="0"/>'
        "</graph></graphml>"
    )
    graph = topology_files.parse(zoo)
    assert dict(graph.nodes(data=True)) == {0: {"name": "Bern", "x": 7.4, "y": 46.9}, 1: {"name": "Basel"}}
    assert list(graph.edges(data="cost")) == [(0, 1, 96)]
    meshviewer = {
        "nodes": [{"node_id": "a", "location": {"longitude": 8.0, "latitude": 53.0}}, {"node_id": "b"}],
        "links": [{"source": "a", "target": "b", "source_tq": 1, "target_tq": 0.5}],
    }
    graph = topology_files.parse(json.dumps(meshviewer))
    assert list(graph.edges(data="cost")) == [(0, 1, 192)]
    assert (graph.nodes[0]["x"], graph.nodes[0]["y"]) == (8.0, 53.0)
    etx = {
        "type": "NetworkGraph",
        "metric": "ETX",
        "nodes": [{"id": "a"}, {"id": "b"}],
        "links": [{"source": "a", "target": "b", "cost": 1.5}],
    }
    assert list(topology_files.parse(json.dumps(etx)).edges(data="cost")) == [(0, 1, 144)]
    assert list(topology_files.parse("a;b\nb;a;50").edges(data="cost")) == [(0, 1, 50)]


def test_of_an_unconnected_graph_the_largest_part_is_taken_unless_all_is_wanted() -> None:
    text = "a,b\nc,d\nd,e\nf"
    graph = topology_files.parse(text)
    assert [data["name"] for _, data in sorted(graph.nodes(data=True))] == ["c", "d", "e"]
    assert sorted(graph.edges) == [(0, 1), (1, 2)]
    assert len(topology_files.parse(text, component="all")) == 6


@pytest.mark.parametrize("name", topology_files.shipped())
def test_maps_that_come_with_it_are_connected_and_have_their_origin_told(name: str) -> None:
    graph = topology.build(f"map:{name}", random.Random(0))
    assert nx.is_connected(graph)
    assert len(graph) >= 29
    assert topology_files.shipped_path(name).name in (topology_files.SHIPPED / "README.md").read_text()


def test_files_go_through_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.graphml"
    assert main.main(["topology", "generate", "grid:3x2", "--to", "csv", "--output", str(first)]) == 0
    assert main.main(["topology", "import", str(first), "--to", "graphml", "--output", str(second)]) == 0
    assert "6 nodes" in capsys.readouterr().err
    assert main.main(["topology", "export", f"file:{second}", "--to", "csv"]) == 0
    assert capsys.readouterr().out == first.read_text()
    assert main.main(["topology", "list"]) == 0
    assert "map:freifunk-leipzig" in capsys.readouterr().out
    assert main.main(["topology", "import", str(tmp_path / "none")]) == 2
    assert main.main(["topology", "export", "map:atlantis"]) == 2
    assert main.main(["topology", "generate", "grid:2x2", "--cost-range", "9:1"]) == 2


@pytest.mark.parametrize("verb", ["import", "export", "generate", "list"])
def test_each_verb_has_an_example_of_its_own(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["topology", verb, "--help"])
    shown = capsys.readouterr().out
    assert f"meshsim topology {verb}" in shown.partition("examples:")[2]
