"""Graphs from files and back: GraphML, NetJSON NetworkGraph, meshviewer (Freifunk), edge lists in CSV.

What comes out is as from `simulator.topology.build`: nodes 0 to n-1 with a `name`, and `x` and `y` (longitude and
latitude) where the file tells them; links with a `cost`. Parallel links become the cheapest of them, links of a node to
itself are left out. The file's names are kept, so that what is written reads back as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import networkx as nx

from routing.rules import METRIC_INFINITY
from simulator import format_csv, format_graphml, format_json
from simulator.raw_graph import DEFAULT_COST, RawGraph, TopologyError

MAX_BYTES = 256 * 1024 * 1024
MAX_NODES = 1_000_000
MAX_LINKS = 10_000_000
SHIPPED = Path(__file__).parent / "topologies"

Read = Callable[[str], RawGraph]
Write = Callable[[RawGraph], str]
READERS: Mapping[str, Read] = {
    "graphml": format_graphml.read,
    "netjson": format_json.read_netjson,
    "meshviewer": format_json.read_meshviewer,
    "nycmesh": format_json.read_nycmesh,
    "csv": format_csv.read,
}
WRITERS: Mapping[str, Write] = {
    "graphml": format_graphml.write,
    "netjson": format_json.write_netjson,
    "meshviewer": format_json.write_meshviewer,
    "csv": format_csv.write,
}


def shipped() -> list[str]:
    """Names of the topologies that come with meshsim (simulator/topologies/README.md says where they are from)."""
    return sorted(path.stem for path in SHIPPED.iterdir() if path.suffix in (".json", ".graphml", ".csv"))


def shipped_path(name: str) -> Path:
    """Raises TopologyError."""
    for path in SHIPPED.iterdir():
        if path.stem == name and path.suffix != ".md":
            return path
    raise TopologyError(f"no topology '{name}' comes with meshsim; there are: {', '.join(shipped())}")


def read(
    path: Path, kind: str | None = None, *, component: str = "largest", default_cost: int = DEFAULT_COST
) -> nx.Graph:
    """`kind`: one of READERS; None: by the content. `component`: "largest", or "all" of an unconnected graph.
    `default_cost`: of links of which the file tells nothing. Raises TopologyError, which names the file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TopologyError(f"larger than {MAX_BYTES >> 20} MiB")
        return parse(path.read_text("utf-8-sig"), kind, component=component, default_cost=default_cost)
    except OSError as error:
        raise TopologyError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TopologyError(f"{path}: not UTF-8 text") from error
    except TopologyError as error:
        raise TopologyError(f"{path}: {error}") from error


def parse(
    text: str, kind: str | None = None, *, component: str = "largest", default_cost: int = DEFAULT_COST
) -> nx.Graph:
    """As `read`, of a text."""
    if kind is not None and kind not in READERS:
        raise TopologyError(f"'{kind}' is not a format; known: {', '.join(READERS)}")
    try:
        raw = READERS[kind or guess(text)](text)
    except RecursionError as error:
        raise TopologyError("nested too deeply") from error
    if len(raw.nodes) > MAX_NODES or len(raw.links) > MAX_LINKS:
        raise TopologyError(f"more than {MAX_NODES} nodes or {MAX_LINKS} links")
    graph = _graph(raw, default_cost)
    if component == "largest":
        return _largest(graph)
    if component != "all":
        raise TopologyError(f"'{component}' is not a choice of components; known: largest, all")
    return graph


def guess(text: str) -> str:
    """The format by the content. Raises TopologyError."""
    start = text.lstrip()[:1]
    if start == "<":
        return "graphml"
    if start in ("{", "["):
        return format_json.guess(text)
    if text.strip():
        return "csv"
    raise TopologyError("the file is empty")


def render(graph: nx.Graph, kind: str) -> str:
    """The text of a file of that format (one of WRITERS). Raises TopologyError."""
    if kind not in WRITERS:
        raise TopologyError(f"'{kind}' is not a format to write; known: {', '.join(WRITERS)}")
    raw = RawGraph()
    for node, data in sorted(graph.nodes(data=True)):
        raw.add_node(str(data.get("name", node)), x=data.get("x"), y=data.get("y"))
    names = {node: str(data.get("name", node)) for node, data in graph.nodes(data=True)}
    for a, b, data in sorted((*sorted(edge[:2]), edge[2]) for edge in graph.edges(data=True)):
        raw.add_link(names[a], names[b], data.get("cost", DEFAULT_COST))
    return WRITERS[kind](raw)


def _graph(raw: RawGraph, default_cost: int) -> nx.Graph:
    if not raw.nodes:
        raise TopologyError("it has no nodes")
    number = {name: index for index, name in enumerate(raw.nodes)}
    graph = nx.Graph()
    for name, (x, y) in raw.nodes.items():
        graph.add_node(number[name], name=name)
        if x is not None and y is not None:
            graph.nodes[number[name]].update(x=_finite(x, name), y=_finite(y, name))
    for a, b, told in raw.links:
        if a == b:
            continue
        cost = default_cost if told is None else told
        if not (isinstance(cost, int | float) and 0.5 <= cost < METRIC_INFINITY - 0.5):
            raise TopologyError(f"the link from {_short(a)} to {_short(b)} costs {cost}; a cost is from 1 to 65534")
        found = graph.get_edge_data(number[a], number[b], {}).get("cost", METRIC_INFINITY)
        graph.add_edge(number[a], number[b], cost=min(found, int(cost + 0.5)))
    return graph


def _finite(value: float, name: str) -> float:
    if not math.isfinite(value):
        raise TopologyError(f"the place of node {_short(name)} is not a number")
    return float(value)


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else name[:37] + "...")


def _largest(graph: nx.Graph) -> nx.Graph:
    parts = sorted(nx.connected_components(graph), key=lambda part: (-len(part), min(part)))
    if len(parts) == 1:
        return graph
    return nx.convert_node_labels_to_integers(graph.subgraph(parts[0]), ordering="sorted")
