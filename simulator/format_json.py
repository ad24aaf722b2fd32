"""Graphs in JSON: NetJSON NetworkGraph, meshviewer and its kin (Freifunk), NYC Mesh's list of links."""

from __future__ import annotations

import json
from typing import Any

from simulator.raw_graph import DEFAULT_COST, RawGraph, TopologyError

TQ_MIN = 0.125  # a worse link is there, but no path over it is worth much: it costs as much as this


def guess(text: str) -> str:
    document = _load(text)
    if isinstance(document, list):
        return "nycmesh"
    return "netjson" if document.get("type") == "NetworkGraph" else "meshviewer"


def read_netjson(text: str) -> RawGraph:
    """As netjson.org has it. A cost is taken as ours, unless `metric` says ETX, of which 1 is a perfect link."""
    document = _object(_load(text), "the file")
    if document.get("type") != "NetworkGraph":
        raise TopologyError('not a NetJSON object of type "NetworkGraph"')
    factor = DEFAULT_COST if str(document.get("metric")).upper() == "ETX" else 1
    raw = RawGraph()
    names: dict[str, str] = {}
    for item in _list(document, "nodes"):
        node = _object(item, "a node")
        properties = _object(node.get("properties", {}), "properties")
        id_ = _text(node, "id")
        names[id_] = str(properties.get("meshsim_name", id_))
        place = _place(properties, ("x", "y")) or _place(properties, ("longitude", "latitude"))
        raw.add_node(names[id_], x=place[0] if place else None, y=place[1] if place else None)
    for item in _list(document, "links"):
        link = _object(item, "a link")
        cost = _number(link, "cost")
        ends = [names.get(_text(link, key), _text(link, key)) for key in ("source", "target")]
        raw.add_link(ends[0], ends[1], None if cost is None else cost * factor or 1.0)
    return raw


def write_netjson(raw: RawGraph) -> str:
    document = {
        "type": "NetworkGraph",
        "protocol": "babel",
        "version": None,
        "metric": "babel",
        "nodes": [{"id": name, "properties": _known(x=x, y=y)} for name, (x, y) in raw.nodes.items()],
        "links": [
            {"source": a, "target": b, "cost": DEFAULT_COST if cost is None else cost} for a, b, cost in raw.links
        ],
    }
    return json.dumps(document, indent=1) + "\n"


def read_meshviewer(text: str) -> RawGraph:
    """meshviewer.json, and meshnet-lab's form of it.

    A link's cost follows batman-adv's TQ as ETX does: 96 / tq, of the worse direction. Tunnels and wires have no TQ:
    nothing is told of them. `cost`, which we write, overrides it. In meshnet-lab's form x is the latitude; we turn it.
    """
    document = _object(_load(text), "the file")
    raw = RawGraph()
    for item in _list(document, "nodes"):
        node = _object(item, "a node")
        location = _object(node.get("location") or {}, "a location")
        place = _place(location, ("longitude", "latitude"))
        if place is None:
            place = _place(node, ("y", "x"))
        x, y = place or (None, None)
        raw.add_node(_text(node, "node_id" if "node_id" in node else "id"), x=x, y=y)
    for item in _list(document, "links"):
        link = _object(item, "a link")
        # meshnet-lab joins separate parts by nodes that only its links name.
        raw.add_link(_text(link, "source"), _text(link, "target"), _link_cost(link), is_strict=False)
    return raw


def _link_cost(link: dict[str, Any]) -> float | None:
    if (cost := _number(link, "cost")) is not None:
        return cost
    told = [tq for tq in (_number(link, "source_tq"), _number(link, "target_tq")) if tq is not None]
    if not told:
        return None
    tq = min(told)
    if not 0.0 <= tq <= 1.0:
        raise TopologyError(f"a link's tq is {tq}; it is a share from 0 to 1")
    return round(DEFAULT_COST / max(tq, TQ_MIN))


def write_meshviewer(raw: RawGraph) -> str:
    nodes: list[dict[str, Any]] = []
    for name, (x, y) in raw.nodes.items():
        node: dict[str, Any] = {"node_id": name, "hostname": name, "is_online": True}
        if x is not None and y is not None:
            node["location"] = {"longitude": x, "latitude": y}
        nodes.append(node)
    links = []
    for a, b, cost in raw.links:
        tq = min(1.0, DEFAULT_COST / (cost or DEFAULT_COST))
        links.append({"source": a, "target": b, "source_tq": tq, "target_tq": tq, "type": "wifi", "cost": cost})
    return json.dumps({"timestamp": "1970-01-01T00:00:00Z", "nodes": nodes, "links": links}, indent=1) + "\n"


def read_nycmesh(text: str) -> RawGraph:
    """network-map's links.json: `from`, `to`, `status`. Links that are not active are left out."""
    raw = RawGraph()
    for item in _list({"links": _load(text)}, "links"):
        link = _object(item, "a link")
        if link.get("status", "active") == "active":
            raw.add_link(_text(link, "from"), _text(link, "to"), None, is_strict=False)
    return raw


def _load(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # json.JSONDecodeError, or a number of too many digits
        raise TopologyError(f"not JSON: {error}") from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TopologyError(f"{what} is not an object")
    return value


def _list(document: dict[str, Any], key: str) -> list[Any]:
    value = document.get(key)
    if not isinstance(value, list):
        raise TopologyError(f"there is no list of {key}")
    return value


def _text(item: dict[str, Any], key: str) -> str:
    value = item.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise TopologyError(f"{key} is missing, or neither a name nor a number")
    return str(value)


def _number(item: dict[str, Any], key: str) -> float | None:
    value = item.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TopologyError(f"{key} is not a number")
    try:
        return float(value)
    except OverflowError as error:
        raise TopologyError(f"{key} is too large") from error


def _place(item: dict[str, Any], keys: tuple[str, str]) -> tuple[float, float] | None:
    a, b = _number(item, keys[0]), _number(item, keys[1])
    return None if a is None or b is None else (a, b)


def _known(**values: float | None) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None}
