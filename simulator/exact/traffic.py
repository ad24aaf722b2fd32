"""Demand, carried as a fluid along the routes of the moment, metered and priced hop by hop.

Once a second each flow's rate goes from hop to hop: what a link cannot take is dropped there, in proportion, and loads
no link behind it. What a relay carries on is billed at the price that it announced; what it has no route for is lost,
and costs nothing. A packet is never simulated; so is a queue of data: control traffic comes first, and has queues of
its own (`simulator.exact.pipe`).
"""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from dataclasses import dataclass, field

from payments import pricing
from payments.budget import Budget
from payments.price_history import LAG, PriceHistory
from routing.events import AnnouncedPrice, LearnedPrice, SetFee
from routing.tlv import Prefix
from simulator.exact.money import Bank
from simulator.exact.pipe import UNLIMITED
from simulator.network import Network, node_at, prefix_of
from simulator.scenario import INTERNET, DemandConfig, PriceConfig

DATA_INTERVAL = 1.0  # seconds
SHARE_ROUNDS = 60  # the latter half with smaller steps, where links that overflow depend on each other in circles
SHARE_PRECISION = 1e-9

Hop = tuple[int, int]


@dataclass(slots=True)
class Purse:
    """What one source may spend on all flows of a demand, and has spent, in units of 10^-9 msat."""

    budget: Budget
    spent_units: int = 0

    def may_buy(self, *, now: float) -> bool:
        self.budget.observe(self.spent_units // 10**9, now=now)
        return not self.budget.used_up()


@dataclass(slots=True)
class Flow:
    """From one node to another, or to the Internet. Bytes since the start."""

    source: int
    destination: int
    demand: DemandConfig
    wanted: int = 0
    offered: int = 0  # after price and budget
    delivered: int = 0
    purse: Purse | None = None  # None: no limit


def rate_at(demand: DemandConfig, now: float) -> float:
    """bit/s that the pattern asks for, before noise and price."""
    if not demand.start <= now < demand.stop:
        return 0.0
    since = now - demand.start
    phase = since % demand.period / demand.period
    match demand.pattern:
        case "on_off":
            return demand.rate if phase < demand.duty else 0.0
        case "diurnal":
            return demand.rate * (0.55 - 0.45 * math.cos(2 * math.pi * phase))
        case "flash_crowd":
            return demand.rate * (demand.peak if since < demand.duty * demand.period else 1.0)
    return demand.rate


@dataclass(slots=True)
class AutoPrice:
    """A seller that follows its load."""

    config: PriceConfig
    capacity: float  # bit/s
    price: float
    announced: int
    average: float = -1.0


@dataclass(slots=True)
class _Quote:
    """What was announced to, or heard by, somebody for one destination."""

    history: PriceHistory = field(default_factory=PriceHistory)
    withdrawn_at: float = math.inf

    def change(self, price_msat_per_gb: int | None, window: float, *, now: float) -> None:
        if price_msat_per_gb is None:
            self.withdrawn_at = min(self.withdrawn_at, now)
            return
        if self.withdrawn_at + window <= now:
            self.history = PriceHistory()
        self.withdrawn_at = math.inf
        self.history.change(price_msat_per_gb, now=now)

    def in_force(self, notice: float, window: float, *, now: float) -> list[int]:
        """Withdrawn, it counts for `window` seconds more, for what is on its way; then it is forgotten, as in meshd."""
        return [0] if self.withdrawn_at + window <= now else self.history.in_force(notice, now=now)


@dataclass(frozen=True, slots=True)
class _Way:
    """Where so many bytes of a flow go in this second."""

    flow: Flow
    size: int
    hops: list[Hop]  # up to where they arrive, or somebody drops them
    is_whole: bool  # to the destination


@dataclass(slots=True)
class NodeCount:
    """Since the start. `earned` and `owed` are in units of 10^-9 msat, by the prices announced."""

    carried: int = 0  # bytes handed to it for others
    earned: int = 0
    owed: int = 0
    delivered: int = 0  # bytes of its own demand
    offered: int = 0


class Traffic:
    """`bank` None: nobody pays, but what would be owed is counted all the same."""

    def __init__(
        self,
        network: Network,
        flows: list[Flow],
        price_by_node: dict[int, PriceConfig],
        bank: Bank | None,
        fee_by_node: dict[int, int],
    ) -> None:
        self.flows = flows
        self.nodes: dict[int, NodeCount] = {node: NodeCount() for node in network.graph}
        self.link_bytes: dict[tuple[int, int], int] = defaultdict(int)
        self.link_dropped: dict[tuple[int, int], int] = defaultdict(int)
        self.fee_by_node = dict(fee_by_node)
        self.black_holes: set[int] = set()
        self.admitted: dict[int, float] = {}  # by node: the share of what it owes that it admits
        self.autos: dict[int, AutoPrice] = {}
        self._network = network
        self._bank = bank
        self._price_by_node = price_by_node
        self._wanted = {prefix_of(flow.destination) for flow in flows}
        self._asked: dict[tuple[int, Prefix], _Quote] = defaultdict(_Quote)
        self._heard: dict[tuple[int, int, Prefix], _Quote] = defaultdict(_Quote)
        self._carried_before: dict[int, int] = {}
        self._rng = random.Random(f"{network.options.seed}/demand")
        if flows:
            network.on_price = self._price_told
            network.call_at(DATA_INTERVAL, self._tick)
        for node, config in price_by_node.items():
            if config.policy == "auto":
                self._follow(node, config)

    def _follow(self, node: int, config: PriceConfig) -> None:
        fee = self.fee_by_node[node]
        capacity = config.capacity or min(
            (self._network.pipe(node, peer).bandwidth for peer in self._network.graph[node]), default=UNLIMITED
        )
        self.autos[node] = AutoPrice(config, capacity, float(fee), fee)
        # As daemons that were not all started in the same second.
        first = random.Random(f"{self._network.options.seed}/price/{node}").uniform(0.0, config.interval)
        self._network.call_at(first + config.interval, lambda: self._reprice(node))

    def set_fee(self, node: int, fee: int) -> None:
        self.fee_by_node[node] = fee
        self._network.give(node, SetFee(fee))

    def _reprice(self, node: int) -> None:
        auto = self.autos[node]
        config = auto.config
        carried = self.nodes[node].carried
        load = 8 * (carried - self._carried_before.get(node, 0)) / config.interval
        self._carried_before[node] = carried
        auto.average = pricing.smooth_load(auto.average, load)
        auto.price = pricing.price_step(auto.price, auto.average, auto.capacity, config.floor, config.ceiling)
        wanted = pricing.announced_price(auto.price, auto.announced, config.floor, config.ceiling)
        if wanted != auto.announced:
            auto.announced = wanted
            self.set_fee(node, wanted)
        self._network.call_at(self._network.now + config.interval, lambda: self._reprice(node))

    def _price_told(self, node: int, event: AnnouncedPrice | LearnedPrice) -> None:
        if event.prefix not in self._wanted:
            return
        if isinstance(event, AnnouncedPrice):
            seller, quote = node, self._asked[node, event.prefix]
        else:
            seller = node_at(event.address)
            quote = self._heard[node, seller, event.prefix]
        window = self._price_by_node[seller].notice + LAG
        quote.change(event.price_msat_per_gb, window, now=self._network.now)

    def price_asked(self, seller: int, destination: int) -> int:
        """A rise counts after its notice."""
        quote, notice = self._asked[seller, prefix_of(destination)], self._price_by_node[seller].notice
        return min(quote.in_force(notice, notice + LAG, now=self._network.now), default=0)

    def price_heard(self, buyer: int, seller: int, destination: int) -> int:
        """The most that the buyer can owe."""
        quote, notice = self._heard[buyer, seller, prefix_of(destination)], self._price_by_node[seller].notice
        return max(quote.in_force(notice + LAG, notice + LAG, now=self._network.now), default=0)

    # --- once a second

    def _tick(self) -> None:
        now = self._network.now
        ways = [self._way(flow, size) for flow in self.flows if (size := self._offer(flow))]
        shares = self._shares(ways)
        for way in ways:
            self._carry(way, shares)
        if self._bank is not None:
            self._bank.settle()
        self._network.call_at(now + DATA_INTERVAL, self._tick)

    def _offer(self, flow: Flow) -> int:
        """Bytes that the source sends in this second."""
        demand = flow.demand
        rate = rate_at(demand, self._network.now)
        if demand.noise:
            rate *= 1.0 + self._rng.uniform(-demand.noise, demand.noise)
        flow.wanted += int(rate * DATA_INTERVAL / 8)
        if not self._network.is_up(flow.source):
            return 0
        route = self._network.speaker(flow.source).selected(prefix_of(flow.destination))
        price = 0 if route is None else route.price_msat_per_gb
        if price > demand.max_price:
            return 0
        if price and flow.purse is not None and not flow.purse.may_buy(now=self._network.now):
            return 0
        if demand.elasticity and price > demand.reference_price:
            rate *= (price / demand.reference_price) ** -demand.elasticity
        size = int(rate * DATA_INTERVAL / 8)
        flow.offered += size
        self.nodes[flow.source].offered += size
        return size

    def path(self, source: int, destination: int) -> list[int]:
        """The nodes that a packet passes, as far as it gets; the last one is where it arrives or is lost."""
        network = self._network
        hops = network.next_hops
        path = [source]
        while path[-1] != destination and not (destination == INTERNET and path[-1] in network.gateways):
            hop = hops.get(destination, path[-1])
            if hop is None or not network.is_link_up(path[-1], hop) or len(path) > hops.count(destination) + 1:
                break
            path.append(hop)
        return path

    def _way(self, flow: Flow, size: int) -> _Way:
        path = self.path(flow.source, flow.destination)
        is_whole = self._is_there(path[-1], flow.destination)
        hops: list[Hop] = []
        for sender, receiver in itertools.pairwise(path):
            hops.append((sender, receiver))
            if receiver == path[-1] and is_whole:
                break
            if receiver in self.black_holes or self._is_refused(receiver, sender):
                return _Way(flow, size, hops, is_whole=False)
        return _Way(flow, size, hops, is_whole)

    def _shares(self, ways: list[_Way]) -> dict[Hop, float]:
        """What part of what is handed to it each link takes that cannot take all. What a link drops does not load those
        behind it, so it is a fixed point: as many rounds as there are such links in a row."""
        capacity = {hop: self._network.pipe(*hop).bandwidth * DATA_INTERVAL / 8 for way in ways for hop in way.hops}
        kept = {hop: 1.0 - self._network.pipe(*hop).loss for hop in capacity}
        shares: dict[Hop, float] = {}
        for number in range(SHARE_ROUNDS):
            load: dict[Hop, float] = defaultdict(float)
            for way in ways:
                rest = float(way.size)
                for hop in way.hops:
                    load[hop] += rest
                    rest *= shares.get(hop, 1.0) * kept[hop]
            found = {hop: capacity[hop] / total for hop, total in load.items() if total > capacity[hop]}
            change = max((abs(found.get(hop, 1.0) - shares.get(hop, 1.0)) for hop in found | shares), default=0.0)
            if change <= SHARE_PRECISION:
                break
            if number >= SHARE_ROUNDS // 2:
                found = {hop: (found.get(hop, 1.0) + shares.get(hop, 1.0)) / 2 for hop in found | shares}
            shares = found
        return shares

    def _carry(self, way: _Way, shares: dict[Hop, float]) -> None:
        flow, size = way.flow, way.size
        onward = self._network.next_hops
        for number, (sender, receiver) in enumerate(way.hops, start=1):
            loss = self._network.pipe(sender, receiver).loss
            arrived = int(size * shares.get((sender, receiver), 1.0) * (1.0 - loss))
            self.link_bytes[sender, receiver] += arrived
            self.link_dropped[sender, receiver] += size - arrived
            is_there = way.is_whole and number == len(way.hops)
            if not is_there and not self._is_refused(receiver, sender):
                is_carried = onward.get(flow.destination, receiver) is not None
                self._bill(flow, receiver, sender, size, arrived if is_carried else 0)
            size = arrived
        if way.is_whole:
            flow.delivered += size
            self.nodes[flow.source].delivered += size

    def _is_refused(self, seller: int, buyer: int) -> bool:
        return self._bank is not None and (seller, buyer) in self._bank.suspended

    def _is_there(self, node: int, destination: int) -> bool:
        return node == destination or (destination == INTERNET and node in self._network.gateways)

    def _bill(self, flow: Flow, seller: int, buyer: int, sent: int, carried: int) -> None:
        """The buyer's meter sees what it sent, the seller's what it carried on."""
        limit = sent * self.price_heard(buyer, seller, flow.destination)
        earned = carried * self.price_asked(seller, flow.destination)
        self.nodes[seller].carried += carried
        self.nodes[seller].earned += earned
        self.nodes[buyer].owed += earned
        if buyer == flow.source and flow.purse is not None:
            flow.purse.spent_units += earned
        if self._bank is not None:
            self._bank.traffic(
                seller, buyer, earned_units=earned, limit_units=int(limit * self.admitted.get(buyer, 1.0))
            )
