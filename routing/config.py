"""What the operator can set on a speaker. Times in seconds, prices in msat per GB."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_network

from routing.filters import Policy
from routing.rules import PRICE_NOT_FOR_SALE
from routing.tlv import Prefix

NO_FILTERS = Policy()


class Mode(Enum):
    """Whom a node carries for, and what it remembers."""

    ROUTER = "router"
    LEAF = "leaf"  # announces its own prefixes only, so nobody's packets cross it
    STUB = "stub"  # a leaf that holds no routes but those to `stub_prefixes` (RFC 8966 appendix E)


@dataclass(frozen=True, slots=True)
class SpeakerConfig:
    """Defaults follow RFC 8966 appendix B, and design section 6 where the RFC is silent."""

    router_id: bytes  # 8 octets, neither all zeros nor all ones (RFC 8966 section 4.1.3)
    fee_msat_per_gb: int = 0  # what we add to our next hop's price; PRICE_NOT_FOR_SALE: we carry for nobody
    price_weight: float = 256.0  # metric units for 1 sat/MB (1,000,000 msat/GB); the same in the whole mesh
    price_max_msat_per_gb: int = PRICE_NOT_FOR_SALE - 1  # dearer routes are never selected
    hello_interval: float = 4.0
    ihu_multiplier: int = 3  # an IHU for every neighbour goes with every third Hello
    update_interval: float = 16.0
    # Neighbours are met at once: the first Hellos follow quickly, one out of turn answers a new neighbour, and on a
    # wire the first that is heard is enough. False: by the Hello interval alone, as babeld does.
    is_eager: bool = True
    urgent_timeout: float = 0.02  # triggered updates wait this long at most, to be sent together
    small_change_timeout: float = 2.0  # moves of metric and price below 10 % on a settled route wait this long
    settle_timeout: float = 10.0  # a prefix newer than this takes every better route at once
    sticky_timeout: float = 16.0  # a gain below the margin must last about this long before a settled route moves
    sticky_fraction: float = 0.1  # the margin: this part of the price paid (and an eighth of the rest on noisy links)
    split_horizon: bool = True  # on wired links (RFC 8966 section 3.7.4)
    mode: Mode = Mode.ROUTER
    stub_prefixes: tuple[Prefix, ...] = (ip_network("::/0"), ip_network("0.0.0.0/0"))
    policy: Policy = NO_FILTERS  # `SetPolicy` changes it
    tells_prices: bool = True  # `LearnedPrice` and `AnnouncedPrice`; False: nobody listens, and there may be many
    initial_seqno: int = 0  # keep it from growing backwards over a restart, if it can be persisted
    max_neighbours_per_interface: int = 256
    max_routes_per_neighbour: int = 20_000
    max_prefixes: int = 100_000  # of all neighbours
    max_requests_per_neighbour: int = 1_000  # seqno requests of one neighbour that we forward at a time
    max_sources_per_prefix: int = 64
    max_source_prefixes: int = 32  # distinct ones (RFC 9079): each costs the kernel a copy of the routing table

    def __post_init__(self) -> None:
        if len(self.router_id) != 8 or self.router_id in (bytes(8), b"\xff" * 8):
            raise ValueError("router_id must be 8 octets, not all zeros nor all ones")
        if not 0 <= self.fee_msat_per_gb <= PRICE_NOT_FOR_SALE:
            raise ValueError("fee_msat_per_gb must fit in 32 bits")
        if not (0.01 <= self.hello_interval <= 655.35 and 0.01 <= self.update_interval <= 655.35):
            raise ValueError("intervals must fit in 16 bits of centiseconds")
