"""Kernels: the tree of cheapest paths to the nearest of some roots, and what flows along it.

Plain functions on numpy arrays, compiled by simulator.jit or run as they are. The rules come from `routing.rules` and
`payments.pricing`.
"""

from __future__ import annotations

from typing import Any

from payments import pricing
from routing import rules
from routing.selection import PRICE_PATIENCE

Array = Any
UNREACHED = 1e300
NEVER = 1e300
BARRED = 1e12  # what it costs to go through a node that carries for nobody
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
    for node in range(len(distance)):
        distance[node] = UNREACHED
        parent[node] = -1
        place[node] = -1
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
    passing: Array,
    through: Array,
) -> float:
    """Adds to `through` what each node carries for others (at a root: all that ends there, but for its own), farthest
    first. Returns the sum of flow times link cost. `passing`: room, as large as `demand`."""
    for node in range(len(demand)):
        passing[node] = demand[node]
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


def walk(  # noqa: PLR0917 - numba takes no keyword-only arguments
    offsets: Array,
    neighbours: Array,
    costs: Array,
    relay_cost: Array,
    parent: Array,
    order: Array,
    reached: int,
    distance: Array,
) -> None:
    """What the ways cost that are there, at other prices. In `order` parents come before those behind them."""
    for index in range(reached):
        node = order[index]
        up = parent[node]
        if up < 0:
            distance[node] = relay_cost[node]
            continue
        onward = distance[up] + (relay_cost[up] if parent[up] >= 0 else 0.0)
        for slot in range(offsets[node], offsets[node + 1]):
            if neighbours[slot] == up:
                distance[node] = onward + costs[slot]
                break


# long: one choice, whose parts would be functions of ten arguments each
def stick(  # noqa: PLR0912, PLR0917 - numba takes no keyword-only arguments
    offsets: Array,
    neighbours: Array,
    costs: Array,
    relay_cost: Array,
    announced: Array,
    before: Array,
    patient_at: Array,
    lots: Array,
    draws: Array,
    distance: Array,
    parent: Array,
    order: Array,
    reached: int,
    rank: Array,
    asked: Array,
    now: float,
    fraction: float,
    timeout: float,
    weight: float,
) -> int:
    """Hysteresis (`Selection._is_switch_due` in `routing`): who had another next hop keeps it until its lot is drawn, a
    gain of quality exceeds the margin, or has lasted. `fraction` < 0: without it. Returns how many have changed theirs.

    Only a hop that comes earlier in `order` is kept or taken, so that no loop can form: it must be the order of
    distances by `walk` or `grow_tree`. `draws` has two random numbers of each node, from 0 to 1, for this interval.
    `asked` becomes the price of the whole way that each node asks, `rank` its place in `order`.
    """
    changed = 0
    for index in range(reached):
        rank[order[index]] = index
    for index in range(reached):
        node = order[index]
        old = before[node]
        if parent[node] < 0:
            asked[node] = announced[node]
            continue
        # Ways on may have stayed longer than the shortest, so that another one may be the shortest now.
        best, kept = -1, -1
        length, kept_length = UNREACHED, UNREACHED
        for slot in range(offsets[node], offsets[node + 1]):
            hop = neighbours[slot]
            if distance[hop] >= UNREACHED or rank[hop] >= index:
                continue
            onward = distance[hop] + costs[slot] + (relay_cost[hop] if parent[hop] >= 0 else 0.0)
            if hop == old:
                kept, kept_length = hop, onward
            if onward < length or (onward == length and hop == old):
                best, length = hop, onward
        if kept < 0 or best == kept or fraction < 0.0:
            patient_at[node] = NEVER
        else:
            paid = rules.price_metric(asked[kept], weight)
            gain = int(kept_length) - int(length)
            wait = timeout
            if rules.is_price_move(paid - rules.price_metric(asked[best], weight), gain):
                wait = timeout * PRICE_PATIENCE
                if lots[node] == 0.0:
                    lots[node] = 1.0 + (rules.LOT_MAX - 1.0) * draws[0, node]
                elif now >= patient_at[node]:
                    lots[node], patient_at[node] = rules.LOT_MAX * draws[0, node], NEVER
                is_due = rules.is_price_worth(paid, gain, fraction, lots[node])
                if is_due:
                    lots[node] = 0.0
            else:
                margin = rules.sticky_margin(paid, max(0, int(kept_length) - paid), False, fraction)
                is_due = rules.is_route_better(int(length), int(kept_length), margin, now >= patient_at[node])
            if is_due:
                patient_at[node] = NEVER
            else:
                best, length = kept, kept_length
                if patient_at[node] >= NEVER:
                    patient_at[node] = now + wait * (0.5 + draws[1, node])
        parent[node] = best
        distance[node] = length
        asked[node] = rules.price_add(asked[best], announced[node])
        if old >= 0 and best != old:
            changed += 1
    return changed


def step_prices(  # noqa: PLR0917 - numba takes no keyword-only arguments
    price: Array,
    announced: Array,
    average: Array,
    load: Array,
    capacity: Array,
    floor: Array,
    ceiling: Array,
    is_auto: Array,
    weight: float,
    relay_cost: Array,
) -> None:
    """One interval of the daemon's price rule, at every node that follows it."""
    for node in range(len(price)):
        if not is_auto[node]:
            continue
        low, high = floor[node], ceiling[node]
        average[node] = pricing.smooth_load(average[node], load[node])
        price[node] = pricing.price_step(price[node], average[node], capacity[node], low, high)
        announced[node] = pricing.announced_price(price[node], announced[node], int(low), int(high))
        relay_cost[node] = rules.price_metric(announced[node], weight)
