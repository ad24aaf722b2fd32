"""A scenario at rest: what its sources send to the Internet, along which ways, and who earns what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routing.rules import PRICE_NOT_FOR_SALE
from simulator.batch.plan import refuse
from simulator.draft import CARRIES_FOR_NOBODY, Draft
from simulator.flow import market
from simulator.flow.mesh import Floats, Mesh, from_graph
from simulator.scenario import INTERNET, DemandConfig, ScenarioError

DEFAULT_CAPACITY = 100e6  # bit/s, where neither price nor links tell
DIURNAL_MEAN = 0.55  # of the rate: a sine between a tenth and all of it


@dataclass(frozen=True, slots=True)
class Economy:
    """Arrays by the scenario's node numbers. bit/s; msat per GB; msat per second."""

    mesh: Mesh
    run: market.RuleRun
    load: Floats
    fee: Floats
    earned: Floats
    is_reached: NDArray[np.bool_]
    distance: Floats  # metric units, to the nearest gateway by quality and price
    demand: Floats
    left_out: list[str]


def mean_rate(demand: DemandConfig) -> float:
    """bit/s, in the long run."""
    share = {"constant": 1.0, "on_off": demand.duty, "diurnal": DIURNAL_MEAN, "flash_crowd": 1.0}[demand.pattern]
    return demand.rate * share


def settle(
    draft: Draft, *, rounds: int, is_compiled: bool = True, progress: market.Progress = lambda _round, _share: None
) -> Economy:
    """Fixed fees: one tree of cheapest ways to the gateways. With automatic ones, `rounds` intervals of the price rule.

    Raises ScenarioError."""
    scenario = draft.scenario
    refuse(scenario, "flow")
    mesh = from_graph(draft.graph)
    numbers = mesh.original
    demand, buyers, left_out = _demand(draft)
    gateways = [place for place, number in enumerate(numbers) if draft.roles[int(number)] == "gateway"]
    if not gateways:
        raise ScenarioError('flow needs a [[role]] with role = "gateway"')
    prices = [draft.price_by_node[int(number)] for number in numbers]
    fees = np.array([draft.fees[int(number)] for number in numbers], float)
    is_auto = np.array([price.policy == "auto" for price in prices])
    run = market.follow_rule(
        mesh,
        gateways,
        demand[numbers],
        _capacity(draft)[numbers],
        start_price=fees,
        floor=np.array([price.floor for price in prices], float),
        ceiling=np.array([price.ceiling for price in prices], float),
        is_auto=is_auto,
        is_barred=np.array([draft.roles[int(number)] in CARRIES_FOR_NOBODY for number in numbers]),
        rounds=rounds if is_auto.any() else 1,
        sticky_fraction=scenario.routing.sticky_fraction if scenario.routing.sticky_timeout > 0 else -1.0,
        sticky_timeout=scenario.routing.sticky_timeout,
        buyers=buyers,
        seed=draft.seed,
        price_weight=scenario.routing.price_weight,
        is_compiled=is_compiled,
        progress=progress,
    )
    if scenario.faults or scenario.churns:
        left_out.append("faults and churn")
    if scenario.payments.enabled:
        left_out.append("[payments]")
    rank = np.argsort(numbers)
    load, fee = run.load[rank], run.price[rank]
    earned = load / market.BITS_PER_GB * fee
    return Economy(mesh, run, load, fee, earned, run.is_reached[rank], run.distance[rank], demand, left_out)


def _demand(draft: Draft) -> tuple[Floats, market.Buyers, list[str]]:
    demand = np.zeros(len(draft.graph))
    left_out: list[str] = []
    kinds: list[market.Buyers] = []
    for source, destination, wanted in draft.flows():
        if destination != INTERNET:
            left_out = ["[[demand]] with a destination"]
            continue
        demand[source] += mean_rate(wanted)
        kind = market.Buyers(wanted.elasticity, wanted.reference_price, min(wanted.max_price, PRICE_NOT_FOR_SALE - 1))
        if kind not in kinds:
            kinds.append(kind)
    if len(kinds) > 1:
        raise ScenarioError("[[demand]]: flow has one elasticity, reference_price and max_price for all")
    return demand, kinds[0] if kinds else market.ANY_PRICE, left_out


def _capacity(draft: Draft) -> Floats:
    """What a node says, else the least bandwidth of its links."""
    least = np.full(len(draft.graph), np.inf)
    for a, b, bandwidth in draft.graph.edges(data="bandwidth"):
        if bandwidth is not None:
            least[[a, b]] = np.minimum(least[[a, b]], bandwidth)
    told = np.array([draft.price_by_node[node].capacity for node in range(len(draft.graph))])
    return np.asarray(np.where(told > 0, told, np.where(np.isfinite(least), least, DEFAULT_CAPACITY)))
