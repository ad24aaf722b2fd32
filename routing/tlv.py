"""TLVs as the engine sees them (RFC 8966 section 4.6): typed, with the packet-level parser state already resolved.

Router-Id and Next Hop TLVs and address compression exist on the wire only: an `Update` here carries its own router-id
and next hop, so that a simulator can hand these objects from one speaker to the next without bytes.

`source_prefix` (RFC 9079): None stands for ::/0 or 0.0.0.0/0, so for packets from anywhere. Otherwise it is of the same
family as the prefix, and its length is not 0.

Intervals are centiseconds, as on the wire; prices msat per GB; metrics u16 with 65535 for infinity.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Prefix = IPv4Network | IPv6Network
Address = IPv4Address | IPv6Address
# What tables are indexed by: most routes are not source-specific, and theirs is to stay the quick way.
RouteKey = Prefix | tuple[Prefix, Prefix]


def route_key(prefix: Prefix, source_prefix: Prefix | None) -> RouteKey:
    return prefix if source_prefix is None else (prefix, source_prefix)


def identity(prefix: Prefix) -> int:
    """For dictionaries: to hash a prefix itself takes long. (The last four bits of an `id` are the same for all.)"""
    return id(prefix) >> 4


@dataclass(frozen=True, slots=True)
class AckRequest:
    """Section 4.6.3: the sender wants an `Ack` with this opaque value within the interval."""

    opaque: int
    interval_cs: int


@dataclass(frozen=True, slots=True)
class Ack:
    """Section 4.6.4."""

    opaque: int


@dataclass(frozen=True, slots=True)
class Hello:
    """Section 4.6.5. An interval of 0 announces no further Hello.

    `timestamp`: when it was sent, in microseconds modulo 2^32 of the sender's clock (RFC 9616).
    """

    seqno: int
    interval_cs: int
    unicast: bool = False
    timestamp: int | None = None


@dataclass(frozen=True, slots=True)
class Ihu:
    """Section 4.6.6. `address` None: whoever receives this packet is meant.

    `timestamps`: of the last Hello of whom it is for, as that said; and when that arrived here (RFC 9616).
    """

    rxcost: int
    interval_cs: int
    address: Address | None = None
    timestamps: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """Section 4.6.9, with the price sub-TLV (docs/spec/routing.md). A metric of 65535 is a retraction.

    `next_hop` None means the address that the packet came from. `price_msat_per_gb` None: there was no price sub-TLV.
    """

    prefix: Prefix
    metric: int
    seqno: int
    interval_cs: int
    router_id: bytes
    next_hop: Address | None = None
    price_msat_per_gb: int | None = None
    price_epoch: int = 0
    source_prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class WildcardRetraction:
    """Section 4.6.9, AE 0: the sender retracts every route that it has announced here, source-specific or not."""


@dataclass(frozen=True, slots=True)
class RouteRequest:
    """Section 4.6.10. `prefix` None: a full dump of the routing table, source-specific routes included."""

    prefix: Prefix | None
    source_prefix: Prefix | None = None


@dataclass(frozen=True, slots=True)
class SeqnoRequest:
    """Section 4.6.11: a route to `prefix` from `router_id` with at least this seqno, please."""

    prefix: Prefix
    seqno: int
    hop_count: int
    router_id: bytes
    source_prefix: Prefix | None = None


Tlv = AckRequest | Ack | Hello | Ihu | Update | WildcardRetraction | RouteRequest | SeqnoRequest
