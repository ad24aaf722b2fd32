"""What a lab is made of: nodes with fees, links with rates. From a name (`grid:3x3`) or a TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

FIRST_ADDRESS = IPv4Address("10.77.0.1")
MAX_NODES = 1000  # a daemon each, on one machine
NODE_NAME = re.compile(r"[a-z][a-z0-9-]{0,10}\Z")  # `to-NAME` has to fit into an interface name
RATE = re.compile(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)\Z")
BITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
SECURITIES = ("none", "wireguard")
DEFAULT_FEE_MSAT_PER_GB = 100_000  # 0.1 sat per MB


class TopologyError(Exception):
    """The name, the file or a value in it is not a topology; the message says what and what would be."""


def rate_bits(rate: str) -> float:
    """Bits per second of a rate as tc writes it: 50mbit."""
    found = RATE.match(rate)
    if not found or float(found[1]) <= 0:
        raise TopologyError(f"'{rate}' is not a rate; write 500kbit, 50mbit or 1gbit")
    return float(found[1]) * BITS[found[2]]


@dataclass(frozen=True, slots=True)
class Node:
    name: str
    fee_msat_per_gb: int = DEFAULT_FEE_MSAT_PER_GB
    # Tables and keys of the daemon's configuration beyond what the lab writes, e.g. {"payments": {"tick": 1.0}}.
    config: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Link:
    a: str
    b: str
    rate: str | None = None  # None: as fast as the machine goes


@dataclass(frozen=True, slots=True)
class Topology:
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    security: str = "none"  # of all links, as in the daemon's [[interface]]

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        if not 1 <= len(names) <= MAX_NODES:
            raise TopologyError(f"{len(names)} nodes; 1 to {MAX_NODES} are possible")
        for name in names:
            if not NODE_NAME.match(name):
                raise TopologyError(f"'{name}' is not a node name: a to z first, then up to ten of a-z, 0-9 and -")
        if len(set(names)) < len(names):
            raise TopologyError("two nodes have the same name")
        seen: set[frozenset[str]] = set()
        for link in self.links:
            pair = frozenset((link.a, link.b))
            if not pair <= set(names):
                raise TopologyError(f"link {link.a} - {link.b}: no node {', '.join(sorted(pair - set(names)))}")
            if len(pair) < 2 or pair in seen:
                raise TopologyError(f"link {link.a} - {link.b}: there twice, or to itself")
            seen.add(pair)
            if link.rate is not None:
                rate_bits(link.rate)
        if self.security not in SECURITIES:
            raise TopologyError(f"security is {' or '.join(SECURITIES)}, not '{self.security}'")

    def address(self, name: str) -> IPv4Address:
        """The node's IPv4 address in the lab, by its place in the list."""
        return FIRST_ADDRESS + [node.name for node in self.nodes].index(name)

    def neighbours(self, name: str) -> list[str]:
        return [link.b if link.a == name else link.a for link in self.links if name in (link.a, link.b)]

    def with_rate(self, rate: str) -> Topology:
        return replace(self, links=tuple(replace(link, rate=rate) for link in self.links))

    def with_fees(self, fee: int | None, by_name: Mapping[str, int]) -> Topology:
        """Every node's fee set to `fee` (None: as it is), then those of `by_name`."""
        unknown = set(by_name) - {node.name for node in self.nodes}
        if unknown:
            raise TopologyError(f"no node {', '.join(sorted(unknown))}")
        nodes = (
            replace(node, fee_msat_per_gb=by_name.get(node.name, node.fee_msat_per_gb if fee is None else fee))
            for node in self.nodes
        )
        return replace(self, nodes=tuple(nodes))


def _numbered(count: int, pairs: list[tuple[int, int]]) -> Topology:
    nodes = tuple(Node(f"n{number}") for number in range(1, count + 1))
    return Topology(nodes, tuple(Link(f"n{a}", f"n{b}") for a, b in pairs))


def line(count: int) -> Topology:
    return _numbered(count, [(n, n + 1) for n in range(1, count)])


def ring(count: int) -> Topology:
    if count < 3:
        raise TopologyError("a ring has at least 3 nodes")
    return _numbered(count, [(n, n % count + 1) for n in range(1, count + 1)])


def grid(width: int, height: int) -> Topology:
    """n1 to n(width) are the first row."""
    across = [(y * width + x, y * width + x + 1) for y in range(height) for x in range(1, width)]
    down = [(y * width + x, (y + 1) * width + x) for y in range(height - 1) for x in range(1, width + 1)]
    return _numbered(width * height, across + down)


def diamond() -> Topology:
    """n1 reaches n4 by n2 and by n3."""
    return _numbered(4, [(1, 2), (1, 3), (2, 4), (3, 4)])


def from_name(text: str) -> Topology:
    kind, _, size = text.partition(":")
    if kind == "diamond" and not size:
        return diamond()
    if kind in ("line", "ring") and re.fullmatch(r"[1-9]\d{0,3}", size):
        return line(int(size)) if kind == "line" else ring(int(size))
    if kind == "grid" and (found := re.fullmatch(r"([1-9]\d{0,2})x([1-9]\d{0,2})", size)):
        return grid(int(found[1]), int(found[2]))
    raise TopologyError(f"'{text}' is neither a file nor a topology: line:N, ring:N, grid:WxH or diamond")


def _take(table: Mapping[str, Any], where: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    """The table's values, when every key is known and of its kind."""
    for key, value in table.items():
        if key not in kinds:
            raise TopologyError(f"{where}: unknown key '{key}'; known: {', '.join(kinds)}")
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            raise TopologyError(f"{where}: '{key}' has to be of type {kinds[key].__name__}")
    return dict(table)


def _node(table: Mapping[str, Any], fee: int) -> Node:
    values = _take(table, "[[node]]", {"name": str, "fee_msat_per_gb": int, "config": dict})
    if "name" not in values:
        raise TopologyError("[[node]]: 'name' is missing")
    return Node(values["name"], values.get("fee_msat_per_gb", fee), values.get("config", {}))


def _link(table: Mapping[str, Any], rate: str | None) -> Link:
    values = _take(table, "[[link]]", {"nodes": list, "rate": str})
    ends = values.get("nodes", [])
    if len(ends) != 2 or not all(isinstance(end, str) for end in ends):
        raise TopologyError('[[link]]: nodes = ["one", "other"]')
    return Link(ends[0], ends[1], values.get("rate", rate))


def from_toml(text: str) -> Topology:
    """Tables: [defaults] rate, fee_msat_per_gb, security; [[node]] name, fee_msat_per_gb, config;
    [[link]] nodes, rate."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TopologyError(f"not TOML: {error}") from error
    _take(document, "top level", {"defaults": dict, "node": list, "link": list})
    kinds: dict[str, type] = {"rate": str, "fee_msat_per_gb": int, "security": str}
    defaults = _take(document.get("defaults", {}), "[defaults]", kinds)
    fee = defaults.get("fee_msat_per_gb", DEFAULT_FEE_MSAT_PER_GB)
    nodes = tuple(_node(table, fee) for table in document.get("node", []))
    links = tuple(_link(table, defaults.get("rate")) for table in document.get("link", []))
    return Topology(nodes, links, defaults.get("security", "none"))


def load(text: str) -> Topology:
    """A topology from the path of a TOML file, or from a name."""
    path = Path(text)
    if path.suffix == ".toml":
        try:
            return from_toml(path.read_text())
        except OSError as error:
            raise TopologyError(f"{text}: {error.strerror}") from error
        except TopologyError as error:
            raise TopologyError(f"{text}: {error}") from error
    return from_name(text)
