"""GraphML, as the Internet Topology Zoo and networkx write it.

Read without networkx's reader, which believes types and defaults that a file declares; what is needed here is little.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element, ParseError, SubElement, indent, tostring

# Entities, the one danger of the parser, are refused before it sees the text.
from xml.etree.ElementTree import fromstring as parse_xml

from simulator.raw_graph import RawGraph, TopologyError

_NAMESPACE = "http://graphml.graphdrawing.org/xmlns"
_DOCTYPE = re.compile(r"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)
_NAMES = ("name", "label")
_X = ("x", "Longitude")
_Y = ("y", "Latitude")


def read(text: str) -> RawGraph:
    """A node's `name` (else `label`, where all differ; else its id), its `x` and `y` or `Longitude` and `Latitude`; a
    link's `cost`."""
    if _DOCTYPE.search(text):
        raise TopologyError("a document type or entity is declared; topologies need none")
    try:
        root = parse_xml(text)  # noqa: S314
    except (ParseError, ValueError) as error:
        raise TopologyError(f"not XML: {error}") from error
    if _tag(root) != "graphml":
        raise TopologyError(f"the outermost element is <{_tag(root)[:40]}>, not <graphml>")
    attributes = {key.get("id", ""): key.get("attr.name", key.get("id", "")) for key in root if _tag(key) == "key"}
    graphs = [item for item in root if _tag(item) == "graph"]
    if len(graphs) != 1:
        raise TopologyError(f"{len(graphs)} graphs; one is expected")
    nodes = {_required(node, "id"): _data(node, attributes) for node in graphs[0] if _tag(node) == "node"}
    names = _names(nodes)
    raw = RawGraph()
    for id_, data in nodes.items():
        raw.add_node(names[id_], x=_number(data, _X), y=_number(data, _Y))
    for edge in (item for item in graphs[0] if _tag(item) == "edge"):
        ends = [_required(edge, "source"), _required(edge, "target")]
        for end in ends:
            if end not in names:
                raise TopologyError(f"a link names {end[:40]!r}, which is not a node")
        raw.add_link(names[ends[0]], names[ends[1]], _number(_data(edge, attributes), ("cost",)))
    return raw


def write(raw: RawGraph) -> str:
    root = Element("graphml", xmlns=_NAMESPACE)
    for id_, target, kind in (
        ("name", "node", "string"),
        ("x", "node", "double"),
        ("y", "node", "double"),
        ("cost", "edge", "int"),
    ):
        SubElement(root, "key", {"id": id_, "for": target, "attr.name": id_, "attr.type": kind})
    graph = SubElement(root, "graph", edgedefault="undirected")
    ids = {name: f"n{number}" for number, name in enumerate(raw.nodes)}
    for name, (x, y) in raw.nodes.items():
        node = SubElement(graph, "node", id=ids[name])
        SubElement(node, "data", key="name").text = _clean(name)
        for key, value in (("x", x), ("y", y)):
            if value is not None:
                SubElement(node, "data", key=key).text = repr(value)
    for a, b, cost in raw.links:
        edge = SubElement(graph, "edge", source=ids[a], target=ids[b])
        if cost is not None:
            SubElement(edge, "data", key="cost").text = str(cost)
    indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _clean(name: str) -> str:
    """Without what XML cannot carry."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", name)


def _tag(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _required(element: Element, key: str) -> str:
    value = element.get(key)
    if value is None:
        raise TopologyError(f"a <{_tag(element)}> has no {key}")
    return value


def _data(element: Element, attributes: dict[str, str]) -> dict[str, str]:
    found: Iterator[Element] = (item for item in element if _tag(item) == "data")
    return {attributes.get(item.get("key", ""), ""): item.text or "" for item in found}


def _names(nodes: dict[str, dict[str, str]]) -> dict[str, str]:
    """By id; people's names for the nodes if no two are the same."""
    for key in _NAMES:
        names = [data.get(key, "").strip() for data in nodes.values()]
        if all(names) and len(set(names)) == len(names):
            return dict(zip(nodes, names, strict=True))
    return {id_: id_ for id_ in nodes}


def _number(data: dict[str, str], keys: tuple[str, ...]) -> float | None:
    for key in keys:
        if key in data:
            try:
                return float(data[key])
            except ValueError as error:
                raise TopologyError(f"{key} = '{data[key][:40]}' is not a number") from error
    return None
