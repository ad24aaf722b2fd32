"""Hypothesis strategies for TLVs."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import strategies as st

from routing.tlv import (
    Ack,
    AckRequest,
    Address,
    Hello,
    Ihu,
    Prefix,
    RouteRequest,
    SeqnoRequest,
    Tlv,
    Update,
    WildcardRetraction,
)

u16 = st.integers(0, 0xFFFF)
u32 = st.integers(0, 0xFFFF_FFFF)
router_ids = st.binary(min_size=8, max_size=8)


@st.composite
def ipv6_prefixes(draw: st.DrawFn) -> IPv6Network:
    # Few distinct leading octets, so that compression has something to do.
    address = draw(st.sampled_from([0xFD << 120, 0xFD01 << 112, 0])) | draw(st.integers(0, 2**100))
    return IPv6Network((address, draw(st.integers(0, 128))), strict=False)


@st.composite
def ipv4_prefixes(draw: st.DrawFn) -> IPv4Network:
    return IPv4Network((draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 32))), strict=False)


prefixes = ipv6_prefixes() | ipv4_prefixes()


def source_prefixes(prefix: Prefix) -> st.SearchStrategy[Prefix | None]:
    """RFC 9079: none, or one of the same family and not of length 0."""
    family = ipv4_prefixes() if isinstance(prefix, IPv4Network) else ipv6_prefixes()
    return st.none() | family.filter(lambda source: source.prefixlen > 0)


link_locals = st.integers(0, 2**64 - 1).map(lambda low: IPv6Address(0xFE80 << 112 | low))
global_addresses = st.integers(0, 2**100).map(lambda low: IPv6Address(0x2001 << 112 | low))
ipv4_addresses = st.integers(0, 2**32 - 1).map(IPv4Address)


@st.composite
def updates(draw: st.DrawFn) -> Update:
    prefix = draw(prefixes)
    next_hops: list[st.SearchStrategy[Address | None]] = [st.none(), link_locals, global_addresses]
    if isinstance(prefix, IPv4Network):
        next_hops.append(ipv4_addresses)
    price = draw(st.none() | st.integers(0, 2**32 - 1))
    return Update(
        prefix=prefix,
        metric=draw(u16),
        seqno=draw(u16),
        interval_cs=draw(u16),
        router_id=draw(router_ids),
        next_hop=draw(st.one_of(next_hops)),
        price_msat_per_gb=price,
        price_epoch=draw(u16) if price is not None else 0,
        source_prefix=draw(source_prefixes(prefix)),
    )


@st.composite
def route_requests(draw: st.DrawFn) -> RouteRequest:
    prefix = draw(st.none() | prefixes)
    return RouteRequest(prefix, draw(source_prefixes(prefix)) if prefix is not None else None)


@st.composite
def seqno_requests(draw: st.DrawFn) -> SeqnoRequest:
    prefix = draw(prefixes)
    hop_count = draw(st.integers(1, 255))
    return SeqnoRequest(prefix, draw(u16), hop_count, draw(router_ids), draw(source_prefixes(prefix)))


tlvs: st.SearchStrategy[Tlv] = st.one_of(
    updates(),
    st.builds(AckRequest, u16, u16),
    st.builds(Ack, u16),
    st.builds(Hello, u16, u16, st.booleans(), st.none() | u32),
    st.builds(
        Ihu, u16, u16, st.none() | link_locals | global_addresses | ipv4_addresses, st.none() | st.tuples(u32, u32)
    ),
    st.just(WildcardRetraction()),
    route_requests(),
    seqno_requests(),
)
