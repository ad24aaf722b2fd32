"""The wire format of RFC 8966 section 4, with v4-via-v6 (RFC 9229), source prefixes (RFC 9079) and the price sub-TLV
(docs/spec/routing.md).

`decode` keeps the parser state of section 4.5 (current router-id, next hops, default prefixes) and resolves it into the
TLVs; `pack` does the opposite and splits at the MTU. Nothing here trusts a length that came from outside.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from routing.rules import METRIC_INFINITY
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

MAGIC = 42
VERSION = 2
HEADER_LENGTH = 4
IP_UDP_LENGTH = 48
PACKET_MIN = 512 - IP_UDP_LENGTH  # section 4: every node takes at least 512 octets

TLV_PAD1, TLV_PADN, TLV_ACK_REQUEST, TLV_ACK, TLV_HELLO, TLV_IHU = range(6)
TLV_ROUTER_ID, TLV_NEXT_HOP, TLV_UPDATE, TLV_ROUTE_REQUEST, TLV_SEQNO_REQUEST = range(6, 11)
TLV_MAC, TLV_PC, TLV_CHALLENGE_REQUEST, TLV_CHALLENGE_REPLY = range(16, 20)  # RFC 8967, see routing.authentication

AE_WILDCARD, AE_IPV4, AE_IPV6, AE_LINK_LOCAL, AE_V4_VIA_V6 = range(5)
LINK_LOCAL = b"\xfe\x80" + bytes(6)

HELLO_UNICAST = 0x8000
UPDATE_PREFIX = 0x80
UPDATE_ROUTER_ID = 0x40

SUB_TLV_PAD1 = 0
SUB_TLV_TIMESTAMP = 3  # RFC 9616 section 6
HELLO_STAMP = struct.Struct("!I")  # when it was sent
IHU_STAMPS = struct.Struct("!II")  # when the Hello that it answers was sent, and when that arrived
SUB_TLV_MANDATORY = 128  # and above (section 4.4)
SUB_TLV_PRICE = 112  # experimental use (section 9)
SUB_TLV_SOURCE_PREFIX = 128  # RFC 9079 section 5.1, mandatory
PRICE_BODY = struct.Struct("!IH")  # msat per GB, epoch


class DecodeError(ValueError):
    """Not a Babel packet, or one whose framing is broken: nothing of it can be used."""


class _IgnoredTlvError(Exception):
    """This TLV is to be ignored, and the next one read (RFC 8966 section 4.3)."""


def decode(packet: bytes, *, source: IPv6Address) -> tuple[Tlv, ...]:
    """All TLVs that are understood, in order. Updates without a Next Hop TLV get `source`.

    Raises `DecodeError`, and nothing else. TLVs that are malformed or unknown are left out; the trailer is not read.
    """
    whole, _ = split_packet(packet)
    parser = _Parser(source)
    found: list[Tlv] = []
    for tlv_type, body in framed(whole):
        try:
            tlv = parser.read(tlv_type, body)
        except _IgnoredTlvError:
            continue
        if tlv is not None:
            found.append(tlv)
    return tuple(found)


def split_packet(packet: bytes) -> tuple[bytes, bytes]:
    """Body and trailer. Raises `DecodeError`."""
    if len(packet) < HEADER_LENGTH or packet[0] != MAGIC or packet[1] != VERSION:
        raise DecodeError("not a Babel packet of version 2")
    end = HEADER_LENGTH + int.from_bytes(packet[2:4], "big")
    if end > len(packet):
        raise DecodeError("packet shorter than its body length")
    return packet[HEADER_LENGTH:end], packet[end:]


def encode_packet(body: bytes) -> bytes:
    return struct.pack("!BBH", MAGIC, VERSION, len(body)) + body


def framed(body: bytes) -> list[tuple[int, bytes]]:
    """Type and body of each TLV, or sub-TLV; Pad1 (type 0) has no length. Raises `DecodeError`."""
    found = []
    at = 0
    while at < len(body):
        if body[at] == TLV_PAD1:
            at += 1
            continue
        if at + 2 > len(body):
            raise DecodeError("TLV without a length")
        start, at = at, at + 2 + body[at + 1]
        if at > len(body):
            raise DecodeError("TLV longer than what holds it")
        found.append((body[start], body[start + 2 : at]))
    return found


@lru_cache(maxsize=4096)
def _ipv6_network(address: bytes, length: int) -> IPv6Network:
    # strict=False clears bits beyond the length, which a receiver has to ignore.
    return IPv6Network((address, length), strict=False)


@lru_cache(maxsize=4096)
def _ipv4_network(address: bytes, length: int) -> IPv4Network:
    return IPv4Network((address, length), strict=False)


@dataclass(slots=True)
class _Parser:
    """Section 4.5: what one TLV leaves behind for the following ones of the same packet."""

    source: IPv6Address
    router_id: bytes | None = None
    next_hop_v4: IPv4Address | None = None
    next_hop_v6: IPv6Address | None = None
    default_prefixes: dict[int, bytes] = field(default_factory=dict)

    def read(self, tlv_type: int, body: bytes) -> Tlv | None:
        reader = _READERS.get(tlv_type)
        return reader(self, body) if reader is not None else None

    def ack_request(self, body: bytes) -> Tlv:
        _, opaque, interval = _unpack("!HHH", body)
        _check_sub_tlvs(body[6:])
        return AckRequest(opaque, interval)

    def ack(self, body: bytes) -> Tlv:
        (opaque,) = _unpack("!H", body)
        _check_sub_tlvs(body[2:])
        return Ack(opaque)

    def hello(self, body: bytes) -> Tlv:
        flags, seqno, interval = _unpack("!HHH", body)
        stamps = _read_timestamps(body[6:], HELLO_STAMP)
        return Hello(seqno, interval, bool(flags & HELLO_UNICAST), stamps[0] if stamps else None)

    def ihu(self, body: bytes) -> Tlv:
        encoding, _, rxcost, interval = _unpack("!BBHH", body)
        address, length = _read_address(encoding, body[6:])
        stamps = _read_timestamps(body[6 + length :], IHU_STAMPS)
        return Ihu(rxcost, interval, address, (stamps[0], stamps[1]) if stamps else None)

    def set_router_id(self, body: bytes) -> None:
        _, router_id = _unpack("!H8s", body)
        _check_sub_tlvs(body[10:])
        self.router_id = router_id

    def set_next_hop(self, body: bytes) -> None:
        encoding, _ = _unpack("!BB", body)
        address, length = _read_address(encoding, body[2:])
        _check_sub_tlvs(body[2 + length :])
        if isinstance(address, IPv4Address):
            self.next_hop_v4 = address
        elif address is not None:
            self.next_hop_v6 = address

    def update(self, body: bytes) -> Tlv | None:
        encoding, flags, length, omitted, interval, seqno, metric = _unpack("!BBBBHHH", body)
        if encoding == AE_WILDCARD and (length or omitted):
            raise _IgnoredTlvError
        address, octets = self._read_prefix(encoding, length, omitted, body[10:])
        # The state is kept also when the TLV is ignored for what follows (section 4.6.9).
        if flags & UPDATE_PREFIX:
            self.default_prefixes[encoding] = address
        if flags & UPDATE_ROUTER_ID:
            self.router_id = address[-8:].rjust(8, b"\0")
        price, epoch, source_prefix = _read_extras(encoding, body[10 + octets :])
        if encoding == AE_WILDCARD:
            return WildcardRetraction() if metric == METRIC_INFINITY else None
        if metric < METRIC_INFINITY and self.router_id is None:
            return None
        router_id = self.router_id or bytes(8)  # a retraction needs none
        next_hop = self.next_hop_v4 if encoding == AE_IPV4 else self.next_hop_v6 or self.source
        if next_hop is None and metric < METRIC_INFINITY:
            return None  # IPv4 through an unknown IPv4 next hop
        prefix = _network(encoding, address, length)
        return Update(prefix, metric, seqno, interval, router_id, next_hop, price, epoch, source_prefix)

    def route_request(self, body: bytes) -> Tlv:
        encoding, length = _unpack("!BB", body)
        address, octets = self._read_prefix(encoding, length, 0, body[2:])
        _, _, source_prefix = _read_extras(encoding, body[2 + octets :])
        if encoding == AE_WILDCARD:
            return RouteRequest(None)
        return RouteRequest(_network(encoding, address, length), source_prefix)

    def seqno_request(self, body: bytes) -> Tlv:
        encoding, length, seqno, hop_count, _, router_id = _unpack("!BBHBB8s", body)
        address, octets = self._read_prefix(encoding, length, 0, body[14:])
        _, _, source_prefix = _read_extras(encoding, body[14 + octets :])
        if encoding == AE_WILDCARD or hop_count == 0:
            raise _IgnoredTlvError
        return SeqnoRequest(_network(encoding, address, length), seqno, hop_count, router_id, source_prefix)

    def _read_prefix(self, encoding: int, length: int, omitted: int, data: bytes) -> tuple[bytes, int]:
        """The address, uncompressed, and how many octets of `data` it took. AE 3 makes no sense for a prefix."""
        if encoding == AE_WILDCARD:
            return b"", 0
        size = _PREFIX_SIZES.get(encoding)
        if size is None or length > size * 8:
            raise _IgnoredTlvError
        octets = (length + 7) // 8
        default = self.default_prefixes.get(encoding, b"")
        if omitted > octets or (omitted and not default) or octets - omitted > len(data):
            raise _IgnoredTlvError
        octets -= omitted
        return (default[:omitted] + data[:octets]).ljust(size, b"\0"), octets


_PREFIX_SIZES = {AE_IPV4: 4, AE_V4_VIA_V6: 4, AE_IPV6: 16}
_READERS: dict[int, Callable[[_Parser, bytes], Tlv | None]] = {
    TLV_ACK_REQUEST: _Parser.ack_request,
    TLV_ACK: _Parser.ack,
    TLV_HELLO: _Parser.hello,
    TLV_IHU: _Parser.ihu,
    TLV_ROUTER_ID: _Parser.set_router_id,
    TLV_NEXT_HOP: _Parser.set_next_hop,
    TLV_UPDATE: _Parser.update,
    TLV_ROUTE_REQUEST: _Parser.route_request,
    TLV_SEQNO_REQUEST: _Parser.seqno_request,
}


def _unpack(layout: str, body: bytes) -> tuple[Any, ...]:
    try:
        return struct.unpack_from(layout, body)
    except struct.error:
        raise _IgnoredTlvError from None


def _network(encoding: int, address: bytes, length: int) -> Prefix:
    return _ipv6_network(address, length) if encoding == AE_IPV6 else _ipv4_network(address, length)


def _read_address(encoding: int, data: bytes) -> tuple[Address | None, int]:
    """An address and its octets in an IHU or Next Hop TLV."""
    size = {AE_WILDCARD: 0, AE_IPV4: 4, AE_IPV6: 16, AE_LINK_LOCAL: 8}.get(encoding)
    if size is None or len(data) < size:
        raise _IgnoredTlvError
    octets = data[:size]
    if encoding == AE_WILDCARD:
        return None, 0
    if encoding == AE_IPV4:
        return IPv4Address(octets), size
    return IPv6Address(octets if encoding == AE_IPV6 else LINK_LOCAL + octets), size


def _check_sub_tlvs(data: bytes) -> None:
    for sub_type, _ in _sub_tlvs(data):
        if sub_type >= SUB_TLV_MANDATORY:
            raise _IgnoredTlvError


def _sub_tlvs(data: bytes) -> list[tuple[int, bytes]]:
    if not data:
        return []
    try:
        return framed(data)
    except DecodeError:
        raise _IgnoredTlvError from None


def _read_extras(encoding: int, data: bytes) -> tuple[int | None, int, Prefix | None]:
    """Price, epoch and source prefix, from the sub-TLVs of an Update or a request."""
    price: int | None = None
    epoch = 0
    source_prefix: Prefix | None = None
    for sub_type, body in _sub_tlvs(data):
        if sub_type == SUB_TLV_SOURCE_PREFIX and source_prefix is None:
            source_prefix = _read_source_prefix(encoding, body)
        elif sub_type >= SUB_TLV_MANDATORY:
            raise _IgnoredTlvError
        elif sub_type == SUB_TLV_PRICE and len(body) >= PRICE_BODY.size:
            price, epoch = PRICE_BODY.unpack_from(body)
    return price, epoch, source_prefix


def _read_source_prefix(encoding: int, body: bytes) -> Prefix:
    """RFC 9079 section 5: of the family of the TLV's own prefix, never compressed. Of length 0, or in a TLV that has no
    prefix, it makes the whole TLV one to be ignored; so does a second one."""
    size = _PREFIX_SIZES.get(encoding)
    length = body[0] if body else 0
    octets = (length + 7) // 8
    if size is None or not 0 < length <= size * 8 or len(body) < 1 + octets:
        raise _IgnoredTlvError
    return _network(encoding, body[1 : 1 + octets].ljust(size, b"\0"), length)


def _read_timestamps(data: bytes, layout: struct.Struct) -> tuple[int, ...] | None:
    stamps: tuple[int, ...] | None = None
    for sub_type, body in _sub_tlvs(data):
        if sub_type >= SUB_TLV_MANDATORY:
            raise _IgnoredTlvError
        if sub_type == SUB_TLV_TIMESTAMP and len(body) >= layout.size:
            stamps = layout.unpack_from(body)
    return stamps


def pack(tlvs: Iterable[Tlv], *, mtu: int, source: IPv6Address | None = None, reserve: int = 0) -> list[bytes]:
    """Packets of at most `mtu` octets with their IPv6 and UDP headers and `reserve` more (`Authenticator.overhead`), in
    the order of the TLVs.

    A next hop equal to `source` is left out, as one that is None. `mtu` below 512 counts as 512.
    """
    packer = _Packer(max(PACKET_MIN, mtu - IP_UDP_LENGTH) - HEADER_LENGTH - reserve, source)
    for tlv in tlvs:
        packer.add(tlv)
    return packer.finish()


@dataclass(slots=True)
class _Packer:
    budget: int
    source: IPv6Address | None
    packets: list[bytes] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    router_id: bytes | None = None
    next_hops: dict[bool, Address] = field(default_factory=dict)  # by "is IPv4"
    default_prefix: bytes | None = None  # IPv6 only: there is little to omit from four octets

    def add(self, tlv: Tlv) -> None:
        octets = self._encode(tlv)
        if len(self.body) + len(octets) > self.budget:
            self._close()
            octets = self._encode(tlv)  # with an empty state
        self.body += octets
        if isinstance(tlv, Update):
            self._remember(tlv)

    def finish(self) -> list[bytes]:
        self._close()
        return self.packets

    def _close(self) -> None:
        if self.body:
            self.packets.append(encode_packet(bytes(self.body)))
        self.body = bytearray()
        self.router_id = self.default_prefix = None
        self.next_hops = {}

    def _encode(self, tlv: Tlv) -> bytes:
        return self._update(tlv) if isinstance(tlv, Update) else _encode_stateless(tlv)

    def _explicit_next_hop(self, update: Update) -> Address | None:
        return None if update.next_hop == self.source else update.next_hop

    def _remember(self, update: Update) -> None:
        self.router_id = update.router_id
        next_hop = self._explicit_next_hop(update)
        if next_hop is not None:
            self.next_hops[isinstance(next_hop, IPv4Address)] = next_hop
        if isinstance(update.prefix, IPv6Network):
            self.default_prefix = update.prefix.network_address.packed

    def _update(self, update: Update) -> bytes:
        next_hop = self._explicit_next_hop(update)
        if next_hop is None and False in self.next_hops:
            self._close()  # a next hop that was once set cannot be unset
        octets = b""
        if self.router_id != update.router_id:
            octets += encode_tlv(TLV_ROUTER_ID, b"\0\0" + update.router_id)
        if next_hop is not None and self.next_hops.get(isinstance(next_hop, IPv4Address)) != next_hop:
            encoding, address = _encode_address(next_hop)
            octets += encode_tlv(TLV_NEXT_HOP, bytes((encoding, 0)) + address)
        encoding, prefix = _encode_prefix(update.prefix)
        if encoding == AE_IPV4 and not isinstance(update.next_hop, IPv4Address):
            encoding = AE_V4_VIA_V6
        omitted, flags = 0, 0
        if encoding == AE_IPV6:
            omitted, flags = _common_octets(self.default_prefix, prefix), UPDATE_PREFIX
        head = struct.pack(
            "!BBBBHHH",
            encoding,
            flags,
            update.prefix.prefixlen,
            omitted,
            update.interval_cs,
            update.seqno,
            update.metric,
        )
        # The source prefix first: whoever stops reading at the price has still read what changes the route's meaning.
        extras = _source_prefix(update.source_prefix)
        if update.price_msat_per_gb is not None:
            extras += encode_tlv(SUB_TLV_PRICE, PRICE_BODY.pack(update.price_msat_per_gb, update.price_epoch))
        return octets + encode_tlv(TLV_UPDATE, head + prefix[omitted:] + extras)


def _encode_stateless(tlv: Tlv) -> bytes:
    match tlv:
        case AckRequest():
            return encode_tlv(TLV_ACK_REQUEST, struct.pack("!HHH", 0, tlv.opaque, tlv.interval_cs))
        case Ack():
            return encode_tlv(TLV_ACK, struct.pack("!H", tlv.opaque))
        case Hello():
            flags = HELLO_UNICAST if tlv.unicast else 0
            stamp = b"" if tlv.timestamp is None else encode_tlv(SUB_TLV_TIMESTAMP, HELLO_STAMP.pack(tlv.timestamp))
            return encode_tlv(TLV_HELLO, struct.pack("!HHH", flags, tlv.seqno, tlv.interval_cs) + stamp)
        case Ihu():
            encoding, address = _encode_address(tlv.address)
            stamp = b"" if tlv.timestamps is None else encode_tlv(SUB_TLV_TIMESTAMP, IHU_STAMPS.pack(*tlv.timestamps))
            return encode_tlv(TLV_IHU, struct.pack("!BBHH", encoding, 0, tlv.rxcost, tlv.interval_cs) + address + stamp)
        case WildcardRetraction():
            return encode_tlv(TLV_UPDATE, struct.pack("!BBBBHHH", AE_WILDCARD, 0, 0, 0, 0xFFFF, 0, METRIC_INFINITY))
        case RouteRequest():
            if tlv.prefix is None:
                return encode_tlv(TLV_ROUTE_REQUEST, bytes((AE_WILDCARD, 0)))
            encoding, prefix = _encode_prefix(tlv.prefix)
            body = bytes((encoding, tlv.prefix.prefixlen)) + prefix + _source_prefix(tlv.source_prefix)
            return encode_tlv(TLV_ROUTE_REQUEST, body)
        case SeqnoRequest():
            encoding, prefix = _encode_prefix(tlv.prefix)
            head = (encoding, tlv.prefix.prefixlen, tlv.seqno, tlv.hop_count, 0, tlv.router_id)
            body = struct.pack("!BBHBB8s", *head) + prefix + _source_prefix(tlv.source_prefix)
            return encode_tlv(TLV_SEQNO_REQUEST, body)
        case Update():
            raise AssertionError("an update needs the packer's state")


def encode_tlv(tlv_type: int, body: bytes) -> bytes:
    return bytes((tlv_type, len(body))) + body


def _encode_address(address: Address | None) -> tuple[int, bytes]:
    if address is None:
        return AE_WILDCARD, b""
    packed = address.packed
    if isinstance(address, IPv4Address):
        return AE_IPV4, packed
    if packed.startswith(LINK_LOCAL):
        return AE_LINK_LOCAL, packed[8:]
    return AE_IPV6, packed


def _encode_prefix(prefix: Prefix) -> tuple[int, bytes]:
    encoding = AE_IPV4 if isinstance(prefix, IPv4Network) else AE_IPV6
    return encoding, prefix.network_address.packed[: (prefix.prefixlen + 7) // 8]


def _source_prefix(source_prefix: Prefix | None) -> bytes:
    if source_prefix is None:
        return b""
    _, octets = _encode_prefix(source_prefix)
    return encode_tlv(SUB_TLV_SOURCE_PREFIX, bytes((source_prefix.prefixlen,)) + octets)


def _common_octets(default: bytes | None, prefix: bytes) -> int:
    if default is None:
        return 0
    for i, octet in enumerate(prefix):
        if default[i] != octet:
            return i
    return len(prefix)
