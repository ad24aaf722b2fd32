"""Kernels: the tree of cheapest paths to the nearest of some roots, and what flows along it.

Plain functions on numpy arrays, compiled by simulator.jit or run as they are. The rules come from `routing.rules` and
`payments.pricing`.
"""

from __future__ import annotations

from typing import Any

from payments import pricing
from routing import rules

Array = Any
UNREACHED = 1e300
ROOT = -2  # as a parent; -1: not reached


def sift_up(heap: Array, place: Array, distance: Array, index: int) -> None:
    node = heap[index]
    key = distance[node]
    while index > 0:
        above = (index - 1) >> 1
        other = heap[above]
        if distance[other] < key or (distance[other] == key and other <= node):
            break
        heap[index] = other
        place[other] = index
        index = above
    heap[index] = node
    place[node] = index


def sift_down(heap: Array, place: Array, distance: Array, size: int) -> None:
    """The node in the first place is not where it belongs."""
    node = heap[0]
    key = distance[node]
    index = 0
    while True:
        child = 2 * index + 1
        if child >= size:
            break
        if child + 1 < size:
            a, b = heap[child], heap[child + 1]
            if distance[b] < distance[a] or (distance[b] == distance[a] and b < a):
                child += 1
        other = heap[child]
        if key < distance[other] or (key == distance[other] and node < other):
            break
        heap[index] = other
        place[other] = index
        index = child
    heap[index] = node
    place[node] = index


def grow_tree(  # noqa: PLR0917 - numba takes no keyword-only arguments
    offsets: Array,
    neighbours: Array,
    costs: Array,
    relay_cost: Array,
    roots: Array,
    root_cost: Array,
    distance: Array,
    parent: Array,
    order: Array,
    heap: Array,
    place: Array,
) -> int:
    """Dijkstra from the roots outwards; paths end at the first root. Returns how many nodes are reached; `order` has
    them, nearest first.

    A node's `relay_cost` counts for those whose paths cross it, a root's `root_cost` for all that end there."""
    distance[:] = UNREACHED
    parent[:] = -1
    place[:] = -1
    size = 0
    for index in range(len(roots)):
        root = roots[index]
        if place[root] >= 0:
            continue
        distance[root] = root_cost[index]
        parent[root] = ROOT
        heap[size] = root
        size += 1
        sift_up(heap, place, distance, size - 1)
    reached = 0
    while size > 0:
        node = heap[0]
        size -= 1
        if size > 0:
            heap[0] = heap[size]
            place[heap[0]] = 0
            sift_down(heap, place, distance, size)
        place[node] = -2  # settled
        order[reached] = node
        reached += 1
        onward = distance[node] + (relay_cost[node] if parent[node] >= 0 else 0.0)
        for slot in range(offsets[node], offsets[node + 1]):
            other = neighbours[slot]
            if place[other] == -2 or parent[other] == ROOT:
                continue
            length = onward + costs[slot]
            if length < distance[other]:
                distance[other] = length
                parent[other] = node
                if place[other] < 0:
                    heap[size] = other
                    size += 1
                    sift_up(heap, place, distance, size - 1)
                else:
                    sift_up(heap, place, distance, place[other])
    return reached


def gather(  # noqa: PLR0917 - numba takes no keyword-only arguments
    offsets: Array,
    neighbours: Array,
    costs: Array,
    parent: Array,
    order: Array,
    reached: int,
    demand: Array,
    through: Array,
) -> float:
    """Adds to `through` what each node carries for others (at a root: all that ends there, but for its own), farthest
    first. Returns the sum of flow times link cost."""
    passing = demand.copy()
    total = 0.0
    for index in range(reached - 1, -1, -1):
        node = order[index]
        through[node] += passing[node] - demand[node]
        up = parent[node]
        if up < 0:
            continue
        passing[up] += passing[node]
        for slot in range(offsets[node], offsets[node + 1]):
            if neighbours[slot] == up:
                total += passing[node] * costs[slot]
                break
    return total


def stick(  # noqa: PLR0917 - numba takes no keyword-only arguments
    offsets: Array,
    neighbours: Array,
    costs: Array,
    relay_cost: Array,
    before: Array,
    distance: Array,
    parent: Array,
    order: Array,
    reached: int,
    fraction: float,
) -> int:
    """Hysteresis (design section 6): who had another next hop keeps it unless the gain exceeds the margin. Returns how
    many have changed theirs. Only a hop that is nearer by the new distances is kept, so that no loop can form."""
    changed = 0
    rank = parent.copy()
    for index in range(reached):
        rank[order[index]] = index
    for index in range(reached):
        node = order[index]
        new, old = parent[node], before[node]
        if new < 0:
            continue
        # The way on may have stayed longer than the shortest.
        length, kept, kept_paid = UNREACHED, UNREACHED, 0.0
        for slot in range(offsets[node], offsets[node + 1]):
            hop = neighbours[slot]
            if hop not in (new, old):
                continue
            paid = relay_cost[hop] if parent[hop] >= 0 else 0.0
            if hop == new:
                length = distance[hop] + paid + costs[slot]
            if hop == old and distance[hop] < UNREACHED and rank[hop] < index:
                kept, kept_paid = distance[hop] + paid + costs[slot], paid
        if kept < UNREACHED and old != new:
            margin = rules.sticky_margin(int(kept_paid), 0, False, fraction)
            if not rules.is_route_better(int(length), int(kept), margin, False):
                parent[node] = old
                length = kept
        distance[node] = length
        if old >= 0 and parent[node] != old:
            changed += 1
    return changed


def step_prices(  # noqa: PLR0917 - numba takes no keyword-only arguments
    price: Array,
    announced: Array,
    average: Array,
    load: Array,
    capacity: Array,
    floor: float,
    ceiling: float,
    weight: float,
    relay_cost: Array,
) -> None:
    """One interval of the daemon's price rule, at every node."""
    for node in range(len(price)):
        average[node] = pricing.smooth_load(average[node], load[node])
        price[node] = pricing.price_step(price[node], average[node], capacity[node], floor, ceiling)
        announced[node] = pricing.announced_price(price[node], announced[node], int(floor), int(ceiling))
        relay_cost[node] = rules.price_metric(announced[node], weight)
