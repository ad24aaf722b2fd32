"""Meshes as compressed sparse rows, nodes in the order of a space-filling curve: neighbours lie close in memory too."""

from __future__ import annotations

import math
from dataclasses import dataclass

import networkx as nx
import numpy as np
from numpy.typing import NDArray

DEFAULT_COST = 96.0
MAX_NODES = 2_000_000
_CHUNK = 200_000

Floats = NDArray[np.float64]
Indices = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Mesh:
    """Links of node n: `neighbours[offsets[n]:offsets[n + 1]]`, each with its metric `costs`; both ways the same.

    `original[n]`: its number before the nodes were put in order. `places`: where it is, or an empty array."""

    offsets: NDArray[np.int64]
    neighbours: Indices
    costs: NDArray[np.float32]
    original: Indices
    places: NDArray[np.float32]

    @property
    def node_count(self) -> int:
        return len(self.offsets) - 1

    @property
    def link_count(self) -> int:
        return len(self.neighbours) // 2


def geometric(count: int, degree: float, seed: int) -> Mesh:
    """Nodes at random in the unit square, linked within the radius that gives about that degree. Not all connected."""
    if not 1 <= count <= MAX_NODES or not 0 < degree < 100:
        raise ValueError(f"{count} nodes of degree {degree}; 1 to {MAX_NODES} nodes of degree below 100 are possible")
    rng = np.random.default_rng(seed)
    places = rng.random((count, 2))
    order = np.argsort(_morton(places), kind="stable").astype(np.int32)
    places = places[order]
    a, b = _pairs(places, math.sqrt(degree / (max(count - 1, 1) * math.pi)))
    costs = np.full(len(a), DEFAULT_COST, np.float32)
    return _assemble((a, b), costs, order, places.astype(np.float32))


def from_graph(graph: nx.Graph) -> Mesh:
    """Of nodes 0 to n-1 with costs on the links. In spatial order if all have a place, else in order of a search."""
    count = graph.number_of_nodes()
    places = np.array([[data.get("x", np.nan), data.get("y", np.nan)] for _, data in sorted(graph.nodes(data=True))])
    if count and not np.isnan(places).any():
        low, span = places.min(axis=0), np.ptp(places, axis=0).max() or 1.0
        order = np.argsort(_morton((places - low) / span), kind="stable").astype(np.int32)
    else:
        found = [node for part in nx.connected_components(graph) for node in nx.bfs_tree(graph, min(part))]
        order = np.array(found, np.int32)
        places = np.empty((0, 2))
    rank = np.empty(count, np.int32)
    rank[order] = np.arange(count, dtype=np.int32)
    ends = np.array([(rank[a], rank[b]) for a, b in graph.edges], np.int32).reshape(-1, 2)
    costs = np.array([cost for _, _, cost in graph.edges(data="cost")], np.float32)
    placed = places[order] if len(places) else places
    return _assemble((ends[:, 0], ends[:, 1]), costs, order, placed.astype(np.float32))


def _assemble(
    ends: tuple[Indices, Indices], costs: NDArray[np.float32], order: Indices, places: NDArray[np.float32]
) -> Mesh:
    (a, b), count = ends, len(order)
    owners = np.concatenate([a, b])
    others = np.concatenate([b, a])
    rows = np.lexsort((others, owners))
    offsets = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(owners, minlength=count), out=offsets[1:])
    both = np.concatenate([costs, costs])[rows]
    return Mesh(offsets, others[rows].astype(np.int32), both, order, places)


def _morton(places: Floats) -> NDArray[np.uint64]:
    """Position on the Z-order curve; coordinates are from 0 to 1."""
    code = np.zeros(len(places), np.uint64)
    for axis in (0, 1):
        bits = np.minimum(places[:, axis] * 65536, 65535).astype(np.uint64)
        for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
            bits = (bits | (bits << np.uint64(shift))) & np.uint64(mask)
        code |= bits << np.uint64(axis)
    return code


def _pairs(places: Floats, radius: float) -> tuple[Indices, Indices]:
    """All that are within the radius of each other, each pair once: looked for in a grid of cells of that size."""
    count = len(places)
    side = max(1, min(int(1.0 / radius), 30_000))
    cells = np.minimum((places * side).astype(np.int64), side - 1)
    by_cell = np.argsort(cells[:, 0] * side + cells[:, 1], kind="stable")
    keys = (cells[:, 0] * side + cells[:, 1])[by_cell]
    found: list[NDArray[np.int32]] = []
    for dx, dy in ((0, 0), (0, 1), (1, -1), (1, 0), (1, 1)):
        for start in range(0, count, _CHUNK):
            here = np.arange(start, min(start + _CHUNK, count))
            x, y = cells[here, 0] + dx, cells[here, 1] + dy
            is_inside = (x < side) & (y >= 0) & (y < side)
            here, key = here[is_inside], (x * side + y)[is_inside]
            first, last = np.searchsorted(keys, key), np.searchsorted(keys, key, side="right")
            sizes = last - first
            a = np.repeat(here, sizes)
            b = by_cell[np.repeat(first - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())]
            is_near = ((places[a] - places[b]) ** 2).sum(axis=1) <= radius * radius
            if (dx, dy) == (0, 0):
                is_near &= a < b
            found.append(np.stack([a[is_near], b[is_near]]).astype(np.int32))
    ends = np.concatenate(found, axis=1)
    return ends[0], ends[1]
