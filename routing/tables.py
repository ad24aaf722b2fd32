"""The tables of RFC 8966 section 3.2. Mutable, and private to the engine."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from routing.budget import Bucket, Budget
from routing.config import SpeakerConfig
from routing.events import LinkKind, Output, RttCost
from routing.filters import REFUSED, Policy
from routing.rtt import RttRecord
from routing.rules import METRIC_INFINITY
from routing.timers import Timers
from routing.tlv import Prefix, RouteKey, Tlv, Update, identity, route_key

NEVER = float("inf")


@dataclass(slots=True, eq=False)
class Interface:
    """Section 3.2.3."""

    name: str
    address: IPv6Address
    kind: LinkKind
    mtu: int
    cost: int
    bit: int  # its place in `PrefixEntry.advertised_on`
    hello_seqno: int
    address4: IPv4Address | None = None
    rtt: RttCost | None = None
    neighbours: dict[IPv6Address, Neighbour] = field(default_factory=dict)
    hellos_until_ihu: int = 0
    hellos_sent: int = 0
    last_hello_at: float = -NEVER
    hello_at: float = NEVER
    update_at: float = NEVER
    flush_at: float = NEVER
    greet_at: float = NEVER  # a Hello out of turn, with IHUs for those in `unanswered`
    pending: dict[PrefixEntry, int] = field(default_factory=dict)  # prefixes that are to be sent, and why (`News`)
    dump: dict[PrefixEntry, None] = field(default_factory=dict)  # what is left of the full update that is leaving
    paced_until: float = -NEVER  # a full burst has just left
    resend_at: float = NEVER
    lossy_until: float = -NEVER  # what was sent to somebody who does acknowledge had to be sent again
    batches: dict[int, Batch] = field(default_factory=dict)  # by the opaque value of the acknowledgment that is asked
    awaiting: dict[PrefixEntry, Batch] = field(default_factory=dict)  # bad news that somebody may have missed
    unanswered: dict[Neighbour, None] = field(default_factory=dict)
    doubts: dict[IPv6Address, Doubt] = field(default_factory=dict)
    budgets: dict[IPv6Address, Budget] = field(default_factory=dict)  # also of neighbours that were here lately
    newcomers: Bucket | None = None
    dumped_at: float = -NEVER  # when a neighbour, or all, had a full update for the asking
    outbox: list[Tlv] = field(default_factory=list)  # multicast, leaves at the end of `handle`

    @property
    def is_wired(self) -> bool:
        """Up or down, and nothing between."""
        return self.kind is not LinkKind.WIRELESS

    @property
    def is_noisy(self) -> bool:
        """Its cost is measured, and moves without a cause that is worth a change of routes."""
        return not self.is_wired or self.rtt is not None

    def deadline(self) -> float:
        return min(self.hello_at, self.update_at, self.flush_at, self.greet_at, self.resend_at)


@dataclass(slots=True, eq=False)
class Neighbour:
    """Section 3.2.4."""

    interface: Interface
    address: IPv6Address
    multicast: HelloHistory
    unicast: HelloHistory
    budget: Budget
    met_at: float
    number: int  # its place in `PrefixEntry.routes`: no other neighbour of this speaker has it
    rxcost: int = METRIC_INFINITY
    txcost: int = METRIC_INFINITY
    cost: int = METRIC_INFINITY
    etx_cost: int = METRIC_INFINITY  # of it, on radio links
    quality: float | None = None  # as a driver sees it (`events.LinkQuality`)
    blended_cost: int = METRIC_INFINITY  # with that
    rtt: RttRecord = field(default_factory=RttRecord)
    rtt_cost: int = 0
    ihu_expires_at: float = NEVER
    suspect_at: float = NEVER  # when its Hello is late beyond what is usual
    check_at: float = NEVER  # next step of a check whether it is still there (`routing.liveness`)
    checked_at: float = -NEVER  # when it was last asked
    checks: int = 0  # asked so far, in this check
    check_opaque: int = 0
    is_answered: bool = True  # what was asked last
    is_heard: bool = False  # anything, in this check
    answers: int = 0
    score: int = 0  # of the check: missing answers less answers
    ack_ratio: float = 1.0  # of requests that are answered, since a check found many lost; else 1
    trust: int = 0  # how well its Hellos have come since
    patience: int = 1  # time to answer, in multiples of the usual
    probe_at: float = NEVER  # when to ask for a full dump if none has come
    ask_at: float = NEVER  # when to ask for what exceeded its budget
    dump_at: float = NEVER
    dump: dict[PrefixEntry, None] = field(default_factory=dict)  # what is left of the one that is leaving
    paced_until: float = -NEVER
    last_dump_at: float = -NEVER
    is_priced: bool = False  # it has told a price: where it tells none, it asks nothing
    route_count: int = 0
    unanswered_batches: int = 0  # in a row; whoever never acknowledges anything is not asked to
    request_count: int = 0  # seqno requests of this neighbour that we are working on
    outbox: list[Tlv] = field(default_factory=list)  # unicast, leaves at the end of `handle`

    @property
    def is_noisy(self) -> bool:
        """The cost of the link is measured, and moves without a cause that is worth a change of routes."""
        return self.interface.is_noisy or self.quality is not None

    def deadline(self) -> float:
        hello_at = min(self.multicast.expires_at, self.unicast.expires_at)
        check_at = min(self.suspect_at, self.check_at)
        return min(hello_at, check_at, self.ihu_expires_at, self.probe_at, self.dump_at, self.ask_at)


class News:
    """Why a prefix is to be sent: plain numbers, since each update of each link is asked for its own."""

    NONE: Final = 0  # again: somebody may have missed it
    SMALL: Final = 1  # whoever misses it misses little
    GOOD: Final = 2
    BAD: Final = 3


@dataclass(slots=True, eq=False)
class Batch:
    """What left in one packet with bad news (sections 3.3 and 3.7.2)."""

    opaque: int
    entries: dict[PrefixEntry, None]
    missing: dict[Neighbour, None]  # who was asked to acknowledge it, and has not
    is_everybody_asked: bool
    resends: int = 0
    resend_at: float = NEVER


@dataclass(slots=True, eq=False)
class HelloHistory:
    """Appendix A.1: which of the last Hellos arrived, the newest in bit 15."""

    history: int = 0
    count: int = 0  # Hellos expected so far, up to 16
    expected_seqno: int = 0
    interval: float = 0.0
    expires_at: float = NEVER
    heard_at: float = -NEVER
    lateness: float = 0.1  # of an interval; to begin with, a guess


@dataclass(frozen=True, slots=True)
class Doubt:
    """A neighbour was declared dead when this Hello was awaited, with this `Neighbour.patience`."""

    expected_seqno: int
    patience: int


@dataclass(slots=True, eq=False)
class Route:
    """Section 3.2.6."""

    neighbour: Neighbour
    entry: PrefixEntry
    update: Update  # the last one: router-id, seqno, and the metric and price that were told
    metric: int
    price: int  # that counts
    expires_at: float
    rest_at: float  # when its changes so far are forgotten (`routing.budget`)
    serial: int  # of two that are as good the older is taken
    added_metric: int = 0  # by our policy
    is_refresh_requested: bool = False

    @property
    def is_refused(self) -> bool:
        return self.added_metric >= REFUSED

    @property
    def next_hop(self) -> IPv4Address | IPv6Address:
        return self.update.next_hop or self.neighbour.address


@dataclass(slots=True, eq=False)
class Source:
    """Section 3.2.5: the feasibility distance. Kept for a while after we stop announcing the source."""

    router_id: bytes
    seqno: int
    metric: int
    used_at: float
    next: Source | None = None  # of the same prefix


@dataclass(slots=True, eq=False)
class PendingRequest:
    """Section 3.2.7: a seqno request that waits for its answer."""

    entry: PrefixEntry
    router_id: bytes
    seqno: int
    sent_at: float
    expires_at: float
    is_ours: bool = False
    hop_count: int = 0  # with which it was passed on, if it is not ours
    resend_at: float = NEVER
    tries: int = 0
    asked: dict[Neighbour, None] = field(default_factory=dict)  # if it is ours, for this seqno
    requesters: dict[Neighbour, None] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class PrefixEntry:
    """All that is known of one prefix, or pair of prefix and source prefix (RFC 9079): routes by neighbour, feasibility
    distances by router-id, what we last said. There may be millions: so a tuple, and a chain, in place of dictionaries.
    """

    prefix: Prefix
    source_prefix: Prefix | None = None
    routes: tuple[Route | None, ...] = ()  # by `Neighbour.number`; beyond its end: none
    selected: Route | None = None
    source: Source | None = None  # the first of a chain; there hardly ever is another
    own_metric: int | None = None  # we originate it
    found_at: float = 0.0  # since when there is a selected route, without a break
    patient_at: float = NEVER  # when a small gain may be taken
    announced_id: bytes | None = None  # router-id that our neighbours were (to be) told; None: no route
    announced_metric: int = METRIC_INFINITY
    announced_price: int = 0
    price_epoch: int = 0
    update: Update | None = None  # the announcement as a TLV, built when it is sent
    requests: dict[bytes, PendingRequest] | None = None  # None: none, as is usual
    advertised_on: int = 0  # bit mask of interfaces on which the last thing sent was a finite metric
    retract_until: float = -NEVER  # full updates repeat the retraction until then
    is_blocked: bool = False  # the kernel refuses what is for the prefix (section 3.5.4)
    hold_until: float = -NEVER  # a neighbour that missed our retraction may send us packets until then
    held_on: int = 0  # bit mask of interfaces with such a neighbour
    lot: float = 0.0  # how many margins a lower price must gain to be followed; 0: none drawn yet
    waits_for: int = 0  # the gain when it began to be patient about a price
    is_forgotten: bool = False  # out of the table, but perhaps in a queue still

    @property
    def key(self) -> RouteKey:
        return route_key(self.prefix, self.source_prefix)

    def route_of(self, neighbour: Neighbour) -> Route | None:
        number = neighbour.number
        return self.routes[number] if number < len(self.routes) else None

    def add(self, route: Route) -> None:
        """Of a neighbour that has none yet."""
        number, routes = route.neighbour.number, list(self.routes)
        if number >= len(routes):
            routes.extend([None] * (number + 1 - len(routes)))
        routes[number] = route
        self.routes = tuple(routes)

    def remove(self, route: Route) -> None:
        routes = list(self.routes)
        routes[route.neighbour.number] = None
        while routes and routes[-1] is None:
            routes.pop()
        self.routes = tuple(routes)

    def known(self) -> list[Route]:
        """All routes, in no order that means anything."""
        return [route for route in self.routes if route is not None]

    def by_age(self) -> list[Route]:
        """The oldest first."""
        return sorted(self.known(), key=_serial)

    def source_of(self, router_id: bytes) -> Source | None:
        source = self.source
        while source is not None and source.router_id != router_id:
            source = source.next
        return source

    def sources(self) -> list[Source]:
        found: list[Source] = []
        source = self.source
        while source is not None:
            found.append(source)
            source = source.next
        return found

    def forget_source(self, source: Source) -> None:
        kept = [other for other in self.sources() if other is not source]
        self.source = None
        for other in reversed(kept):
            other.next, self.source = self.source, other


def _serial(route: Route) -> int:
    return route.serial


TimerKey = Interface | Neighbour | PrefixEntry | str


@dataclass(slots=True, eq=False)
class State:
    """What the parts of the speaker share."""

    config: SpeakerConfig
    rng: random.Random
    fee: int
    policy: Policy
    seqno: int
    route_count: int = 0  # that there ever were
    timers: Timers[TimerKey] = field(default_factory=Timers)
    interfaces: dict[str, Interface] = field(default_factory=dict)
    prefixes: dict[RouteKey, PrefixEntry] = field(default_factory=dict)
    # Those without a source prefix, by the `identity` of their prefix: it mostly is the same object.
    entry_by_id: dict[int, PrefixEntry] = field(default_factory=dict)
    source_prefixes: Counter[Prefix] = field(default_factory=Counter)  # how many of `prefixes` have each
    outputs: list[Output] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    packets: list[Output] = field(default_factory=list)  # follow the outputs
    mailbox: dict[Interface | Neighbour, None] = field(default_factory=dict)  # whose outbox has something
    # What leaves with this `handle`: pending updates, full updates by multicast, and to one neighbour.
    flushing: dict[Interface, None] = field(default_factory=dict)
    dumping: dict[Interface | Neighbour, None] = field(default_factory=dict)

    @property
    def price_max(self) -> int:
        """msat per GB; dearer routes are never selected."""
        return min(self.config.price_max_msat_per_gb, self.policy.price_max_msat_per_gb)

    def entry_of(self, prefix: Prefix, source_prefix: Prefix | None) -> PrefixEntry | None:
        """Of this very pair."""
        entry = self.entry_by_id.get(identity(prefix)) if source_prefix is None else None
        return self.prefixes.get(route_key(prefix, source_prefix)) if entry is None else entry

    def free_number(self) -> int:
        """The least that no neighbour has."""
        used = 0
        for interface in self.interfaces.values():
            for neighbour in interface.neighbours.values():
                used |= 1 << neighbour.number
        return (~used & (used + 1)).bit_length() - 1

    def set_seqno(self, seqno: int) -> None:
        """Our own. Updates for our prefixes that are kept ready have the old one, and must be built anew."""
        self.seqno = seqno
        for entry in self.prefixes.values():
            if entry.own_metric is not None:
                entry.update = None

    def jitter(self, interval: float) -> float:
        """Between half and all of `interval`, so that neighbours do not speak at the same moment."""
        return interval * self.rng.uniform(0.5, 1.0)

    def send(self, to: Interface | Neighbour, tlv: Tlv) -> None:
        to.outbox.append(tlv)
        self.mailbox[to] = None

    def arm(self, key: Interface | Neighbour) -> None:
        at = key.deadline()
        if at < NEVER:
            self.timers.set(key, at)
        else:
            self.timers.cancel(key)
