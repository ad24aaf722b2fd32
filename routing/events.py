"""What goes into the speaker and what comes out of it.

The speaker is a sans-IO state machine: *input + now -> new state + ordered outputs*. Inputs are named by where they
come from, outputs are imperatives. All are frozen, so that a recorder can write them down and a test can compare them.

Times are seconds (float) of one monotonic clock that only the caller reads. Prices are msat per GB (u32).

A route is to a pair: `prefix` and `source_prefix` (RFC 9079). It carries packets to the one that come from the other;
None: from anywhere. Of the routes that match a packet the most specific `prefix` wins, then the most specific source.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from routing.filters import Policy
from routing.tlv import Tlv

Prefix = IPv4Network | IPv6Network


class LinkKind(Enum):
    """How the cost of a link is computed (RFC 8966 appendix A.2)."""

    WIRED = "wired"  # 2-out-of-3: a link is up or down
    WIRELESS = "wireless"  # ETX: the cost follows Hello loss
    TUNNEL = "tunnel"  # as wired, and its round-trip time may cost


@dataclass(frozen=True, slots=True)
class RttCost:
    """What a round-trip time costs (RFC 9616): nothing up to `minimum` seconds, `penalty` from `maximum` on."""

    minimum: float = 0.01
    maximum: float = 0.12
    penalty: int = 150


@dataclass(frozen=True, slots=True)
class InterfaceUp:
    """An interface that the operator configured can carry packets. Said again when something of it has changed.

    `address4`: with it as next hop, IPv4 prefixes are announced there (RFC 9229 section 2.2 prefers that where there is
    one, and not every speaker knows v4-via-v6); None: by v4-via-v6.
    `rtt`: round-trip times are measured there, and cost that; None: they are not, and no timestamps are sent.
    """

    interface: str
    address: IPv6Address  # our link-local address on it
    kind: LinkKind = LinkKind.WIRED
    mtu: int = 1500
    cost: int = 96  # nominal receive cost of a perfect link
    address4: IPv4Address | None = None
    rtt: RttCost | None = None


@dataclass(frozen=True, slots=True)
class InterfaceDown:
    interface: str


@dataclass(frozen=True, slots=True)
class NeighbourUnreachable:
    """The kernel cannot reach this link-local address any more (NUD state FAILED): the neighbour is asked at once."""

    interface: str
    address: IPv6Address


@dataclass(frozen=True, slots=True)
class LinkQuality:
    """How well what we send reaches a neighbour, as a driver or a mesh below us sees it (`rules.blended_cost`).

    `quality`: above 0, and 1 for as good as the interface's nominal cost means; None: nobody but Hellos can tell any
    more. Of a neighbour that is not known it says nothing: it is to be said again when there is one.
    """

    interface: str
    address: IPv6Address
    quality: float | None


@dataclass(frozen=True, slots=True)
class ReceivedPacket:
    """A decoded packet. `multicast` tells how it was addressed."""

    interface: str
    source: IPv6Address
    tlvs: tuple[Tlv, ...]
    multicast: bool = True


@dataclass(frozen=True, slots=True)
class OriginateRoute:
    """Announce a prefix of our own. Its price is 0: whoever hands us a packet for ourselves owes nothing."""

    prefix: Prefix
    metric: int = 0
    source_prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class WithdrawRoute:
    prefix: Prefix
    source_prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class SetFee:
    """What we add to our next hop's price for carrying a byte; 2^32-1: we carry for nobody."""

    fee_msat_per_gb: int


@dataclass(frozen=True, slots=True)
class SetPolicy:
    """Other filters from now on. All routes are judged anew at once; what is still the best is not touched."""

    policy: Policy


@dataclass(frozen=True, slots=True)
class Shutdown:
    """Remove every route and tell the neighbours at once. All interfaces are down after it."""


@dataclass(frozen=True, slots=True)
class TimerExpired:
    """Time has reached `Speaker.next_deadline()`."""


Input = (
    InterfaceUp
    | InterfaceDown
    | NeighbourUnreachable
    | LinkQuality
    | ReceivedPacket
    | OriginateRoute
    | WithdrawRoute
    | SetFee
    | SetPolicy
    | Shutdown
    | TimerExpired
)


@dataclass(frozen=True, slots=True)
class SendPacket:
    """Encode these TLVs (splitting to the MTU, `routing.codec.pack`) and send them. None: to ff02::1:6."""

    interface: str
    destination: IPv6Address | None
    tlvs: tuple[Tlv, ...]


@dataclass(frozen=True, slots=True)
class InstallRoute:
    """The selected route to `prefix` is now this one; it replaces any earlier one, atomically.

    Emitted when the next hop changes, not when only its numbers do; `LearnedPrice` and `Speaker.selected` tell those.

    `next_hop` is the link-local address of the neighbour, also for an IPv4 prefix (RFC 9229), unless that was announced
    with an IPv4 next hop. `price_msat_per_gb` is what the next hop asks of us. `metric` is the composite cost.
    """

    prefix: Prefix
    interface: str
    next_hop: IPv4Address | IPv6Address
    metric: int
    price_msat_per_gb: int
    source_prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class BlockRoute:
    """There is no route to `prefix` any more, and a neighbour may not know it yet (RFC 8966 section 3.5.4).

    What is for `prefix` must be refused, not forwarded along a shorter prefix that covers it. It replaces an earlier
    route atomically; `InstallRoute` or `RemoveRoute` ends it.
    """

    prefix: Prefix
    source_prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Nothing is left of the route to `prefix`, or of its being blocked."""

    prefix: Prefix
    source_prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class NeighbourUp:
    """First heard of; bidirectional reachability comes later and shows in its cost."""

    interface: str
    address: IPv6Address


@dataclass(frozen=True, slots=True)
class NeighbourDown:
    interface: str
    address: IPv6Address


@dataclass(frozen=True, slots=True)
class LearnedPrice:
    """A neighbour announced what it asks to carry a byte to `prefix`; None: it retracted the route."""

    interface: str
    address: IPv6Address
    prefix: Prefix
    price_msat_per_gb: int | None
    source_prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class AnnouncedPrice:
    """What we ask to carry a byte to `prefix` has changed; None: we do not carry there any more.

    Emitted when the update that says so is queued, for prefixes that we originate (price 0) and those that we select.
    """

    prefix: Prefix
    price_msat_per_gb: int | None
    source_prefix: Prefix | None = None


RouteChange = InstallRoute | BlockRoute | RemoveRoute
Output = SendPacket | RouteChange | NeighbourUp | NeighbourDown | LearnedPrice | AnnouncedPrice
