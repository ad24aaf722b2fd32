"""Graphs to simulate, by name or from a file. Nodes are 0 to n-1; edges carry `cost`, of a perfect link."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import networkx as nx

from simulator import topology_files
from simulator.raw_graph import DEFAULT_COST, TopologyError

__all__ = ["DEFAULT_COST", "NAMES", "TopologyError", "build"]

MAX_NODES = 5000  # of the reference engine; beyond, memory is the limit (every node knows every other)


def _geometric(count: int, degree: float, rng: random.Random) -> nx.Graph:
    """Nodes at random in the unit square, linked within the radius that gives about that degree; separate parts are
    joined by the shortest link from the smallest of them, as people would who put up one long link."""
    position = {node: (rng.random(), rng.random()) for node in range(count)}
    radius = math.sqrt(degree / (max(count - 1, 1) * math.pi))
    graph = nx.empty_graph(count)
    nx.set_node_attributes(graph, position, "pos")
    graph.add_edges_from(_near(position, radius))
    while len(parts := sorted(nx.connected_components(graph), key=lambda part: (len(part), min(part)))) > 1:
        outside = [node for part in parts[1:] for node in part]
        pairs = ((math.dist(position[a], position[b]), a, b) for a in parts[0] for b in outside)
        _, a, b = min(pairs)
        graph.add_edge(a, b)
    return graph


def _near(position: Mapping[int, tuple[float, float]], radius: float) -> Iterator[tuple[int, int]]:
    """Pairs within the radius, which is a cell of the grid by which they are looked for."""
    cell = radius or 1.0
    by_cell: dict[tuple[int, int], list[int]] = {}
    for node, (x, y) in position.items():
        column, row = int(x / cell), int(y / cell)
        for near in ((column + dx, row + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)):
            for other in by_cell.get(near, ()):
                if (position[other][0] - x) ** 2 + (position[other][1] - y) ** 2 <= radius**2:
                    yield other, node
        by_cell.setdefault((column, row), []).append(node)


def _regular(count: int, degree: int, rng: random.Random) -> nx.Graph:
    if degree >= count or count * degree % 2 or degree < 1:
        raise TopologyError(f"no graph has {count} nodes of degree {degree} each")
    for _ in range(100):
        graph = nx.random_regular_graph(degree, count, seed=rng)
        if nx.is_connected(graph):
            return graph
    raise TopologyError(f"no connected graph found with {count} nodes of degree {degree}; try a higher degree")


def _scale_free(count: int, links: int, rng: random.Random) -> nx.Graph:
    """Barabasi and Albert's: each newcomer links to `links` others, rather to those that have many."""
    if not 1 <= links < count:
        raise TopologyError(f"{links} links for each of {count} nodes; at least 1, and fewer than there are nodes")
    return nx.barabasi_albert_graph(count, links, seed=rng)


def _small_world(count: int, degree: int, rng: random.Random) -> nx.Graph:
    """Watts and Strogatz's: a ring of neighbourhoods, a tenth of the links moved at random."""
    if not 2 <= degree < count:
        raise TopologyError(f"degree {degree} of {count} nodes; at least 2, and fewer than there are nodes")
    try:
        return nx.connected_watts_strogatz_graph(count, degree, 0.1, seed=rng)
    except nx.NetworkXError as error:
        raise TopologyError(f"no connected graph found with {count} nodes of degree {degree}") from error


def _tree(count: int, rng: random.Random) -> nx.Graph:
    """Each node hangs on one of those before it."""
    graph = nx.empty_graph(1)
    graph.add_edges_from((node, rng.randrange(node)) for node in range(1, count))
    return graph


def _diamond() -> nx.Graph:
    return nx.Graph([(0, 1), (0, 2), (1, 3), (2, 3)])


Builder = Callable[[re.Match[str], random.Random], nx.Graph]

_BUILDERS: list[tuple[str, str, Builder]] = [
    ("line:N", r"line:(\d+)", lambda found, _: nx.path_graph(int(found[1]))),
    ("ring:N", r"ring:(\d+)", lambda found, _: nx.cycle_graph(int(found[1]))),
    ("grid:WxH", r"grid:(\d+)x(\d+)", lambda found, _: nx.grid_2d_graph(int(found[2]), int(found[1]))),
    ("diamond", r"diamond", lambda _found, _rng: _diamond()),
    (
        "geometric:N[:DEGREE]",
        r"geometric:(\d+)(?::(\d+))?",
        lambda found, rng: _geometric(int(found[1]), float(found[2] or 6), rng),
    ),
    (
        "random-regular:N[:DEGREE]",
        r"random-regular:(\d+)(?::(\d+))?",
        lambda found, rng: _regular(int(found[1]), int(found[2] or 4), rng),
    ),
    (
        "scale-free:N[:LINKS]",
        r"scale-free:(\d+)(?::(\d+))?",
        lambda found, rng: _scale_free(int(found[1]), int(found[2] or 2), rng),
    ),
    (
        "small-world:N[:DEGREE]",
        r"small-world:(\d+)(?::(\d+))?",
        lambda found, rng: _small_world(int(found[1]), int(found[2] or 4), rng),
    ),
    ("tree:N", r"tree:(\d+)", lambda found, rng: _tree(int(found[1]), rng)),
]
NAMES = ", ".join(
    [*(name for name, _, _ in _BUILDERS), "file:PATH", *(f"map:{name}" for name in topology_files.shipped())]
)


def build(
    text: str,
    rng: random.Random,
    cost_range: tuple[int, int] = (DEFAULT_COST, DEFAULT_COST),
    *,
    max_nodes: int = MAX_NODES,
) -> nx.Graph:
    """The graph of that name. The same text and random state give the same graph. A graph from a file, or a map that
    comes with meshsim, keeps the costs that it tells. Raises TopologyError."""
    origin, _, name = text.partition(":")
    if origin in ("file", "map"):
        graph = topology_files.read(Path(name) if origin == "file" else topology_files.shipped_path(name))
        if len(graph) > max_nodes:
            raise TopologyError(f"{text}: {len(graph)} nodes; {max_nodes} are possible")
        return graph
    for _, pattern, builder in _BUILDERS:
        if not (found := re.fullmatch(pattern, text)):
            continue
        size = 1
        for number in re.findall(r"\d+", found[0].partition(":")[2].partition(":")[0]):
            size *= int(number)
        if not 1 <= size <= max_nodes:
            raise TopologyError(f"{size} nodes; 1 to {max_nodes} are possible")
        graph = nx.convert_node_labels_to_integers(builder(found, rng), ordering="sorted")
        # A ring of one or two nodes has an edge to itself; a link joins two nodes.
        graph.remove_edges_from(list(nx.selfloop_edges(graph)))
        for a, b in sorted(tuple(sorted(edge)) for edge in graph.edges):
            graph.edges[a, b]["cost"] = rng.randint(*cost_range)
        return graph
    raise TopologyError(f"'{text}' is not a topology; known: {NAMES}")
