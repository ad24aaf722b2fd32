"""The Babel speaker (RFC 8966) with prices. Sans-IO: `handle(event, now=...)` returns what has to be done, in order.

Each input does all its work on the tables first, which appends route changes to the outputs; packets are appended last,
so that a route is installed before anybody hears of it. Wherever a packet may wait, `next_deadline` says until when.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from routing.announcer import Announcer
from routing.config import SpeakerConfig
from routing.events import (
    Input,
    InterfaceDown,
    InterfaceUp,
    LinkQuality,
    NeighbourUnreachable,
    OriginateRoute,
    Output,
    ReceivedPacket,
    SendPacket,
    SetFee,
    SetPolicy,
    Shutdown,
    TimerExpired,
    WithdrawRoute,
)
from routing.neighbourhood import Neighbourhood
from routing.requests import Requests, is_route_feasible
from routing.rules import METRIC_INFINITY, PRICE_NOT_FOR_SALE
from routing.selection import Selection
from routing.tables import NEVER, Interface, Neighbour, PrefixEntry, Route, State
from routing.tlv import (
    Ack,
    AckRequest,
    Hello,
    Ihu,
    Prefix,
    RouteRequest,
    SeqnoRequest,
    Tlv,
    Update,
    WildcardRetraction,
)

__all__ = ["NeighbourView", "RouteView", "Speaker", "SpeakerConfig"]


@dataclass(frozen=True, slots=True)
class NeighbourView:
    interface: str
    address: IPv6Address
    rxcost: int  # what we tell it
    txcost: int  # what it told us
    cost: int  # of the link towards it; 65535 until it is bidirectional
    hello_history: int  # 16 bits, newest first
    route_count: int
    rtt: float | None = None  # seconds, smoothed; None: not known
    quality: float | None = None  # as last told by `LinkQuality`
    refused_count: int = 0  # of TLVs that asked more of us than one neighbour may (`routing.budget`)


@dataclass(frozen=True, slots=True)
class RouteView:
    """A route that a neighbour announced. `metric` includes the link to it; `advertised_metric` is what it said.

    `address` is the neighbour's; `next_hop` too, unless it announced an IPv4 one.
    """

    prefix: Prefix
    interface: str
    address: IPv6Address
    next_hop: IPv4Address | IPv6Address
    advertised_metric: int
    metric: int
    price_msat_per_gb: int
    price_epoch: int
    seqno: int
    router_id: bytes
    is_feasible: bool
    is_selected: bool
    is_refused: bool = False  # by a filter
    source_prefix: Prefix | None = None


class Speaker:
    def __init__(self, config: SpeakerConfig, *, rng: random.Random, now: float) -> None:
        self.config = config
        self._state = State(config, rng, config.fee_msat_per_gb, config.policy, config.initial_seqno & 0xFFFF)
        self._announcer = Announcer(self._state)
        self._requests = Requests(self._state, self._announcer, now=now)
        self._selection = Selection(self._state, self._announcer, self._requests)
        self._neighbourhood = Neighbourhood(self._state, self._selection, self._announcer, self._requests)

    def handle(self, event: Input, *, now: float) -> list[Output]:
        """Never raises on what a peer sent. Route changes come before the packets that announce them."""
        match event:
            case ReceivedPacket():
                self._handle_packet(event, now=now)
            case TimerExpired():
                self._handle_timers(now=now)
            case InterfaceUp():
                self._neighbourhood.raise_interface(event, now=now)
            case InterfaceDown():
                self._neighbourhood.lower_interface(event.interface, now=now)
            case NeighbourUnreachable():
                self._neighbourhood.doubt(event, now=now)
            case LinkQuality():
                self._neighbourhood.rate(event, now=now)
            case OriginateRoute():
                metric = min(max(0, event.metric), METRIC_INFINITY - 1)
                self._selection.originate(event.prefix, event.source_prefix, metric, now=now)
            case WithdrawRoute():
                self._selection.withdraw(event.prefix, event.source_prefix, now=now)
            case SetFee():
                self._state.fee = min(max(0, event.fee_msat_per_gb), PRICE_NOT_FOR_SALE)
                self._selection.announce_all(now=now)
            case SetPolicy():
                self._selection.set_policy(event.policy, now=now)
            case Shutdown():
                self._neighbourhood.shut_down(now=now)
        return self._drain(now=now)

    def next_deadline(self) -> float | None:
        """When to call `handle(TimerExpired())`, in seconds of the caller's clock; None: nothing is waited for."""
        return self._state.timers.next_deadline()

    def neighbours(self) -> list[NeighbourView]:
        return [
            NeighbourView(
                interface=interface.name,
                address=neighbour.address,
                rxcost=neighbour.rxcost,
                txcost=neighbour.txcost,
                cost=neighbour.cost,
                hello_history=neighbour.multicast.history | neighbour.unicast.history,
                route_count=neighbour.route_count,
                quality=neighbour.quality,
                refused_count=neighbour.budget.refused,
                rtt=neighbour.rtt.smoothed if neighbour.rtt.is_measured else None,
            )
            for interface in self._state.interfaces.values()
            for neighbour in interface.neighbours.values()
        ]

    def routes(self) -> list[RouteView]:
        return [_view(route) for entry in self._state.prefixes.values() for route in entry.known()]

    def selected(self, prefix: Prefix, source_prefix: Prefix | None = None) -> RouteView | None:
        """Of this very pair. None: no route, or a prefix of our own."""
        route = self._selected(prefix, source_prefix)
        return _view(route) if route is not None else None

    def selected_cost(self, prefix: Prefix) -> tuple[int, int]:
        """Metric and price of what is `selected`; 65535 and 0 if there is none."""
        route = self._selected(prefix, None)
        return (route.metric, route.price) if route is not None else (METRIC_INFINITY, 0)

    def announced_price(self, prefix: Prefix, source_prefix: Prefix | None = None) -> int | None:
        """msat per GB that we ask; None: we do not carry there."""
        entry = self._state.entry_of(prefix, source_prefix)
        return entry.announced_price if entry is not None and entry.announced_id is not None else None

    def counters(self) -> dict[str, int]:
        """What was dropped or ignored, by reason."""
        return dict(self._state.counters)

    @property
    def seqno(self) -> int:
        """Of our own routes: to be kept over a restart (`SpeakerConfig.initial_seqno`)."""
        return self._state.seqno

    def _selected(self, prefix: Prefix, source_prefix: Prefix | None) -> Route | None:
        entry = self._state.entry_of(prefix, source_prefix)
        return entry.selected if entry is not None else None

    def _handle_packet(self, packet: ReceivedPacket, *, now: float) -> None:
        neighbour = self._neighbourhood.sender(packet, now=now)
        if neighbour is None:
            return
        for tlv in packet.tlvs:
            if isinstance(tlv, Update):  # by far the most frequent
                self._selection.receive_update(neighbour, tlv, now=now)
                neighbour.probe_at = NEVER
            else:
                neighbour = self._handle_tlv(neighbour, tlv, now=now)
        self._neighbourhood.measure(neighbour, packet, now=now)

    def _handle_tlv(self, neighbour: Neighbour, tlv: Tlv, *, now: float) -> Neighbour:
        match tlv:
            case Hello():
                # A restarted neighbour is a new one.
                return self._neighbourhood.receive_hello(neighbour, tlv, now=now)
            case Ihu():
                self._neighbourhood.receive_ihu(neighbour, tlv, now=now)
            case WildcardRetraction():
                self._selection.retract_all(neighbour, now=now)
            case RouteRequest():
                self._requests.handle_route_request(neighbour, tlv, now=now)
            case SeqnoRequest():
                self._requests.handle_seqno_request(neighbour, tlv, now=now)
            case AckRequest():
                if neighbour.budget.may_reply(now=now):
                    self._state.send(neighbour, Ack(tlv.opaque))
                else:
                    self._state.counters["ack_request_limit"] += 1
            case Ack():
                if self._neighbourhood.receive_ack(neighbour, tlv):
                    return neighbour
                for entry in self._announcer.delivery.receive_ack(neighbour, tlv.opaque):
                    self._selection.release(entry)
        return neighbour

    def _handle_timers(self, *, now: float) -> None:
        while (key := self._state.timers.pop_due(now)) is not None:
            match key:
                case Interface():
                    self._neighbourhood.run_interface(key, now=now)
                case Neighbour():
                    self._neighbourhood.run_neighbour(key, now=now)
                case PrefixEntry():
                    self._selection.reconsider(key, now=now)
                case "scan":
                    self._selection.scan(now=now)
                case _:
                    self._requests.handle_timer(now=now)

    def _drain(self, *, now: float) -> list[Output]:
        """Route changes are in the outputs already. Then what makes us known (Hello, IHU), then updates."""
        state = self._state
        for to in state.mailbox:
            interface, address = (to, None) if isinstance(to, Interface) else (to.interface, to.address)
            if to.outbox and state.interfaces.get(interface.name) is interface:
                state.outputs.append(SendPacket(interface.name, address, tuple(to.outbox)))
            to.outbox.clear()
        for to in self._announcer.dumps():
            interface = to if isinstance(to, Interface) else to.interface
            if state.interfaces.get(interface.name) is interface and interface.neighbours:
                self._announcer.send_full_update(to, now=now)
        for interface in state.flushing:
            self._announcer.flush(interface, now=now)
        for waiting in (state.mailbox, state.dumping, state.flushing):
            waiting.clear()
        outputs, state.outputs, state.packets = state.outputs + state.packets, [], []
        return outputs


def _view(route: Route) -> RouteView:
    return RouteView(
        prefix=route.entry.prefix,
        interface=route.neighbour.interface.name,
        address=route.neighbour.address,
        next_hop=route.next_hop,
        advertised_metric=route.update.metric,
        metric=route.metric,
        price_msat_per_gb=route.price,
        price_epoch=route.update.price_epoch,
        seqno=route.update.seqno,
        router_id=route.update.router_id,
        is_feasible=is_route_feasible(route),
        is_selected=route.entry.selected is route,
        is_refused=route.is_refused,
        source_prefix=route.entry.source_prefix,
    )
