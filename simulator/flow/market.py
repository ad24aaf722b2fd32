"""The economy of a mesh at rest: who carries what, what it costs, who earns.

Every node sends its demand to the nearest root (a gateway), by quality and price. Two ways to the prices:

- `equilibrium`: prices are a given, rising function of a relay's load; flows are moved until nobody gains by another
  way (Wardrop), by the method of Frank and Wolfe. The gap says how far it is from there.
- `follow_rule`: the daemons' own rule, interval by interval, with or without their hysteresis: it shows whether the
  prices settle, and whether the routes flap.

Costs are in metric units; `price_weight` of them are 1 sat/MB. Loads are in bit/s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from payments import pricing
from routing import rules
from routing.rules import MSAT_PER_GB_AT_1_SAT_PER_MB
from simulator import jit
from simulator.flow import trees
from simulator.flow.mesh import Floats, Mesh

PRICE_WEIGHT = 256.0
BITS_PER_GB = 8e9
_HELPERS = (trees.sift_up, trees.sift_down, *jit.functions(rules, pricing))

Progress = Callable[[int, float], None]


@dataclass(frozen=True, slots=True)
class Congestion:
    """What a relay asks at a load x, in metric units: `base + slope * x ** power`. Arrays have one entry for each node.

    At roots it is asked of all that ends there."""

    base: Floats
    slope: Floats
    power: float

    def price(self, load: Floats) -> Floats:
        return np.asarray(self.base + self.slope * load**self.power)


@dataclass(frozen=True, slots=True)
class Equilibrium:
    """`load` that each node carries for others, its `price` (metric units), the relative `gap` and how it fell."""

    load: Floats
    price: Floats
    gap: float
    gaps: list[float]
    reached: int
    total: float  # metric units times bit/s, of all flows: of links, and of relays and roots
    link_cost: float  # the part of the links

    def earnings_msat_per_s(self, price_weight: float = PRICE_WEIGHT) -> Floats:
        """Of each node: bit/s times the price, in msat per second."""
        price_msat_per_gb = self.price * (MSAT_PER_GB_AT_1_SAT_PER_MB / price_weight)
        return np.asarray(self.load / BITS_PER_GB * price_msat_per_gb)


@dataclass(frozen=True, slots=True)
class Round:
    """One interval of `follow_rule`. Prices in msat per GB, of relays that carry something."""

    switched: float  # share of the nodes that have taken another next hop
    utilisation_max: float  # load over capacity
    price_median: float
    price_max: float


@dataclass(frozen=True, slots=True)
class RuleRun:
    rounds: list[Round]
    load: Floats
    price: Floats  # announced, msat per GB
    is_reached: NDArray[np.bool_]  # by a root
    distance: Floats  # metric units, with the root's price

    @property
    def reached(self) -> int:
        return int(self.is_reached.sum())

    def flapping(self, last: int = 20) -> float:
        """Mean share of nodes that move their routes in an interval, in the last ones."""
        tail = self.rounds[-last:]
        return sum(item.switched for item in tail) / max(1, len(tail))


@dataclass(frozen=True, slots=True)
class Buyers:
    """How demand answers to the price of the whole way, msat per GB: full up to `reference_price`, then it falls with
    that `elasticity`; none above `max_price`."""

    elasticity: float = 0.0
    reference_price: int = 1_000_000
    max_price: int = rules.PRICE_NOT_FOR_SALE - 1

    def wanted(self, demand: Floats, paid: NDArray[np.int64]) -> Floats:
        share = np.maximum(1.0, paid / self.reference_price) ** -self.elasticity
        return np.asarray(np.where(paid <= self.max_price, demand * share, 0.0))


ANY_PRICE = Buyers()


class Prices:
    """What each node asks and remembers, in `follow_rule`. Prices in msat per GB, `relay_cost` in metric units."""

    def __init__(self, start: Floats, weight: float) -> None:
        count = len(start)
        self.weight = weight
        self.fee = start.copy()
        self.announced = start.round().astype(np.int64)
        self.average = np.full(count, -1.0)
        metric = {int(fee): float(rules.price_metric(int(fee), weight)) for fee in np.unique(self.announced)}
        self.relay_cost = np.array([metric[int(fee)] for fee in self.announced])
        self.asked = np.zeros(count, np.int64)  # for the whole way to a root
        self.patient_at = np.full(count, trees.NEVER)  # when a small gain has lasted for long enough
        self.lots = np.zeros(count)  # how many margins a lower price must gain; 0: none drawn yet


class Forest:
    """The tree of cheapest paths at given prices, and the loads on it; keeps its arrays from one time to the next."""

    def __init__(self, mesh: Mesh, roots: Sequence[int], *, is_compiled: bool = True) -> None:
        """Raises ValueError unless there are roots, all of them nodes."""
        count = mesh.node_count
        if not len(roots) or min(roots) < 0 or max(roots) >= count:
            raise ValueError(f"roots must be some of the nodes 0 to {count - 1}")
        self.mesh = mesh
        self.roots = np.array(sorted(set(roots)), np.int32)
        self.distance = np.zeros(count)
        self.parent = np.full(count, -1, np.int32)
        self.order = np.zeros(count, np.int32)
        self.reached = 0
        self._heap = np.zeros(count, np.int32)
        self._place = np.zeros(count, np.int32)
        self._passing = np.zeros(count)
        self._graph = (mesh.offsets, mesh.neighbours, mesh.costs)
        self.kernel: Callable[[Any], Any] = (lambda f: jit.compiled(f, _HELPERS)) if is_compiled else (lambda f: f)

    def grow(self, relay_cost: Floats, *, is_root_paid: bool = True) -> None:
        root_cost = relay_cost[self.roots] if is_root_paid else np.zeros(len(self.roots))
        self.reached = self.kernel(trees.grow_tree)(
            *self._graph,
            relay_cost,
            self.roots,
            root_cost,
            self.distance,
            self.parent,
            self.order,
            self._heap,
            self._place,
        )

    def stick(
        self,
        prices: Prices,
        before: NDArray[np.int32],
        draws: Floats,
        *,
        now: float,
        fraction: float,
        timeout: float = 0.0,
    ) -> int:
        """Who had next hops `before` moves to cheaper ones, or stays (`trees.stick`). Returns how many have moved.

        `draws`: two random numbers of each node, from 0 to 1. `fraction` < 0: no hysteresis."""
        if fraction < 0:
            self.grow(prices.relay_cost)
        else:
            ways = (prices.relay_cost, self.parent, self.order, self.reached, self.distance)
            self.kernel(trees.walk)(*self._graph, *ways)
            known = self.order[: self.reached]
            self.order[: self.reached] = known[np.argsort(self.distance[known], kind="stable")]
        return int(
            self.kernel(trees.stick)(
                *self._graph,
                prices.relay_cost,
                prices.announced,
                before,
                prices.patient_at,
                prices.lots,
                draws,
                self.distance,
                self.parent,
                self.order,
                self.reached,
                self._place,
                prices.asked,
                now,
                fraction,
                timeout,
                prices.weight,
            )
        )

    def is_reached(self) -> NDArray[np.bool_]:
        return np.asarray(self.distance < trees.BARRED)

    def served(self, demand: Floats) -> Floats:
        """Of nodes that reach a root, and are none."""
        served = np.where(self.is_reached(), demand, 0.0)
        served[self.roots] = 0.0
        return np.asarray(served)

    def load(self, demand: Floats) -> tuple[Floats, float]:
        """What each node carries, and the sum of flow times link cost."""
        through = np.zeros(len(demand))
        arguments = (self.parent, self.order, self.reached, demand, self._passing, through)
        return through, float(self.kernel(trees.gather)(*self._graph, *arguments))


def equilibrium(
    mesh: Mesh,
    roots: Sequence[int],
    demand: Floats,
    congestion: Congestion,
    *,
    gap: float = 5e-3,
    rounds: int = 500,
    with_tolls: bool = False,
    is_compiled: bool = True,
    progress: Progress = lambda _round, _gap: None,
) -> Equilibrium:
    """Until the relative gap is at most `gap`, or for so many rounds. Nodes that reach no root send nothing.

    `with_tolls`: relays ask their marginal cost in place of the average one."""
    forest = Forest(mesh, roots, is_compiled=is_compiled)
    asked = _with_toll(congestion) if with_tolls else congestion
    zero = np.zeros(mesh.node_count)
    forest.grow(asked.price(zero))
    demand = forest.served(demand)
    load, link_cost = forest.load(demand)
    gaps: list[float] = []
    for number in range(1, rounds + 1):
        price = asked.price(load)
        forest.grow(price)
        best, best_link_cost = forest.load(demand)
        now = float(price @ load) + link_cost
        least = float(price @ best) + best_link_cost
        gaps.append(max(0.0, (now - least) / now) if now > 0 else 0.0)
        progress(number, gaps[-1])
        if gaps[-1] <= gap:
            break
        step = _line_search(asked, load, best, best_link_cost - link_cost)
        load = load + step * (best - load)
        link_cost += step * (best_link_cost - link_cost)
    price = asked.price(load)
    return Equilibrium(
        load=load,
        price=price,
        gap=gaps[-1],
        gaps=gaps,
        reached=forest.reached,
        link_cost=link_cost,
        total=float(price @ load) + link_cost,
    )


def _with_toll(congestion: Congestion) -> Congestion:
    return Congestion(congestion.base, congestion.slope * (1.0 + congestion.power), congestion.power)


def _line_search(asked: Congestion, load: Floats, best: Floats, link_difference: float) -> float:
    """Where Beckmann's function is least on the way from `load` to `best`: its slope rises, so it is halved."""
    difference = best - load
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        slope = float(asked.price(load + middle * difference) @ difference) + link_difference
        low, high = (middle, high) if slope < 0 else (low, middle)
    return max((low + high) / 2, 1e-6)


def follow_rule(
    mesh: Mesh,
    roots: Sequence[int],
    demand: Floats,
    capacity: Floats,
    *,
    start_price: float | Floats = 100_000.0,
    floor: float | Floats = 1_000.0,
    ceiling: float | Floats = 100_000_000.0,
    is_auto: bool | NDArray[np.bool_] = True,
    is_barred: bool | NDArray[np.bool_] = False,
    rounds: int = 100,
    sticky_fraction: float = 0.1,
    sticky_timeout: float = 16.0,
    buyers: Buyers = ANY_PRICE,
    noise: float = 0.0,
    seed: int = 0,
    price_weight: float = PRICE_WEIGHT,
    is_compiled: bool = True,
    progress: Progress = lambda _round, _switched: None,
) -> RuleRun:
    """`rounds` intervals of the daemons' rule, at nodes that are `is_auto`; others keep their `start_price`. Who
    `is_barred` carries for nobody. Prices in msat per GB. `sticky_fraction` < 0: without hysteresis.

    `noise`: the demand of each node varies by up to this share of it, from interval to interval."""
    forest = Forest(mesh, roots, is_compiled=is_compiled)
    count = mesh.node_count
    prices = Prices(np.broadcast_to(np.asarray(start_price, float), count), price_weight)
    barred = np.broadcast_to(np.asarray(is_barred), count)
    prices.relay_cost[barred] = trees.BARRED
    follows = np.broadcast_to(np.asarray(is_auto), count) & ~barred
    limits = [np.broadcast_to(np.asarray(limit, float), count).copy() for limit in (floor, ceiling)]
    rng = np.random.default_rng(seed)
    forest.grow(prices.relay_cost)
    forest.stick(prices, forest.parent.copy(), np.zeros((2, count)), now=0.0, fraction=-1.0)
    demand = forest.served(demand)
    history: list[Round] = []
    load, _ = forest.load(buyers.wanted(demand, prices.asked[forest.parent]))
    step = forest.kernel(trees.step_prices)
    for number in range(1, rounds + 1):
        state = (prices.fee, prices.announced, prices.average)
        step(*state, load, capacity, *limits, follows, price_weight, prices.relay_cost)
        before = forest.parent.copy()
        now, draws = number * pricing.PRICE_INTERVAL, rng.random((2, count))
        switched = forest.stick(prices, before, draws, now=now, fraction=sticky_fraction, timeout=sticky_timeout)
        wanted = buyers.wanted(demand, prices.asked[forest.parent])
        load, _ = forest.load(wanted * rng.uniform(1 - noise, 1 + noise, count) if noise else wanted)
        history.append(_round(switched / count, load, capacity, prices.announced))
        progress(number, switched / count)
    return RuleRun(history, load, prices.announced.astype(float), forest.is_reached(), forest.distance)


def _round(switched: float, load: Floats, capacity: Floats, announced: NDArray[np.int64]) -> Round:
    busy = announced[load > 0]
    return Round(
        switched=switched,
        utilisation_max=float((load / capacity).max(initial=0.0)),
        price_median=float(np.median(busy)) if len(busy) else 0.0,
        price_max=float(busy.max(initial=0)),
    )
