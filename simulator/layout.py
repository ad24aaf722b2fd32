"""Where to draw the nodes of a graph that says nothing of places: so that distances look like numbers of hops.

Pivot MDS (Brandes and Pich, 2006) for the whole, then, for graphs that are not too large, stress majorisation (Gansner,
Koren and North, 2004), which is what Kamada and Kawai's springs minimise. numpy is enough for it.
"""

from __future__ import annotations

from collections import deque

import networkx as nx
import numpy as np
import numpy.typing as npt

PIVOTS = 100
MAX_REFINED = 500  # nodes; their distances are a full matrix
ROUNDS = 50

Floats = npt.NDArray[np.float64]


def places(graph: nx.Graph) -> dict[int, tuple[float, float]]:
    """x and y of each node, in hops. The same for the same graph, but for the last digits."""
    nodes = sorted(graph)
    if len(nodes) < 3:
        return {node: (float(index), 0.0) for index, node in enumerate(nodes)}
    index_of = {node: index for index, node in enumerate(nodes)}
    links = [sorted(index_of[peer] for peer in graph[node]) for node in nodes]
    is_small = len(nodes) <= MAX_REFINED
    hops = _hops(links, len(nodes) if is_small else PIVOTS)
    found = _pivot_mds(hops)
    if is_small:
        found = _majorise(found, hops)
    return {node: (float(found[index, 0]), float(found[index, 1])) for index, node in enumerate(nodes)}


def _hops(links: list[list[int]], pivots: int) -> Floats:
    """Numbers of hops from each of so many nodes, every next one as far from those before as can be, to all. What is
    out of reach is a little farther than all that is not. With as many pivots as nodes, in the order of the nodes."""
    count = len(links)
    found = np.full((pivots, count), -1.0)
    nearest = np.full(count, np.inf)
    pivot = 0
    for row in range(pivots):
        pivot = row if pivots == count else pivot
        found[row] = _distances(links, pivot)
        nearest = np.minimum(nearest, np.where(found[row] < 0, np.inf, found[row]))
        pivot = int(np.argmax(nearest))
    found[found < 0] = found.max() + 2.0
    return found


def _distances(links: list[list[int]], start: int) -> Floats:
    """-1: out of reach."""
    found = np.full(len(links), -1.0)
    found[start] = 0.0
    waiting = deque([start])
    while waiting:
        node = waiting.popleft()
        for peer in links[node]:
            if found[peer] < 0:
                found[peer] = found[node] + 1.0
                waiting.append(peer)
    return found


def _pivot_mds(hops: Floats) -> Floats:
    squares = (hops**2).T
    centred = squares - squares.mean(axis=0) - squares.mean(axis=1, keepdims=True) + squares.mean()
    _, vectors = np.linalg.eigh(centred.T @ centred)
    made: Floats = -0.5 * centred @ vectors[:, -2:][:, ::-1]
    scale = np.sqrt((made**2).sum(axis=1).mean())
    return made / scale * hops.mean() if scale > 0 else made


def _majorise(place: Floats, hops: Floats) -> Floats:
    """Each round moves every node to where those around it would have it, the near ones most (weight 1 / hops^2)."""
    weight = 1.0 / np.maximum(hops, 1.0) ** 2
    np.fill_diagonal(weight, 0.0)
    total = weight.sum(axis=1, keepdims=True)
    rng = np.random.default_rng(0)
    place = place + rng.normal(scale=0.01, size=place.shape)  # nodes in the same place would stay there
    for _ in range(ROUNDS):
        between = place[:, None, :] - place[None, :, :]
        apart = np.maximum(np.sqrt((between**2).sum(axis=2)), 1e-9)
        pull = weight * hops / apart
        place = (weight @ place + (pull[:, :, None] * between).sum(axis=1)) / total
    return place
