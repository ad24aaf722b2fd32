"""Random meshes of a kind: the edges, and the number of nodes, which are 0 and up."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

Edges = list[tuple[int, int]]


def _size(rng: random.Random) -> int:
    return rng.choice((3, 5, 8, 10, 12, 16, 24))


def _tree(rng: random.Random) -> tuple[Edges, int]:
    count = _size(rng)
    return [(rng.randrange(node), node) for node in range(1, count)], count


def _ring(rng: random.Random) -> tuple[Edges, int]:
    count = _size(rng)
    return [(node, (node + 1) % count) for node in range(count)], count


def _full(rng: random.Random) -> tuple[Edges, int]:
    count = rng.randint(3, 8)
    return [(a, b) for b in range(count) for a in range(b)], count


def _grid(rng: random.Random) -> tuple[Edges, int]:
    width, height = rng.randint(2, 5), rng.randint(2, 5)
    across = [(y * width + x, y * width + x + 1) for y in range(height) for x in range(width - 1)]
    down = [(y * width + x, y * width + x + width) for y in range(height - 1) for x in range(width)]
    return across + down, width * height


def _geometric(rng: random.Random) -> tuple[Edges, int]:
    """Each node joined to the nearest earlier one, so that it is one mesh, and to all within a radius."""
    count = _size(rng)
    place = [(rng.random(), rng.random()) for _ in range(count)]
    radius = math.sqrt(4.0 / (math.pi * count))
    edges = {(a, b) for b in range(count) for a in range(b) if math.dist(place[a], place[b]) < radius}
    edges |= {min((math.dist(place[a], place[b]), a, b) for a in range(b))[1:] for b in range(1, count)}
    return sorted(edges), count


def _small_world(rng: random.Random) -> tuple[Edges, int]:
    """A ring with chords (Newman and Watts)."""
    ring, count = _ring(rng)
    chords = {tuple(sorted(rng.sample(range(count), 2))) for _ in range(count // 2)}
    known = {tuple(sorted(edge)) for edge in ring}
    return ring + [(a, b) for a, b in sorted(chords - known)], count


TOPOLOGIES: dict[str, Callable[[random.Random], tuple[Edges, int]]] = {
    "tree": _tree,
    "ring": _ring,
    "full mesh": _full,
    "grid": _grid,
    "geometric": _geometric,
    "small world": _small_world,
}
