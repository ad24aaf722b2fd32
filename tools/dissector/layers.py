"""Scapy layers of Babel: RFC 8966 section 4, MAC (8967), source-specific (9079), v4-via-v6 (9229), RTT (9616), prices.

A TLV whose body is too short, or whose addresses make no sense, becomes `MalformedTlv`: no TLV reads beyond its length.
"""

from __future__ import annotations

from typing import Any, ClassVar

from scapy.fields import (
    ByteEnumField,
    ByteField,
    IntField,
    PacketListField,
    ShortField,
    StrFixedLenField,
    StrLenField,
)
from scapy.layers.inet import UDP
from scapy.packet import Packet, bind_layers

PORT = 6696
HEADER = 4
MANY = 65536  # of TLVs in a packet; Scapy's own limit is 100
AE_OCTETS = {0: 0, 1: 4, 2: 16, 3: 8}  # of a whole address
PREFIX_BITS = {1: 32, 2: 128, 4: 32}  # AE 4: v4-via-v6
AE_NAMES = {0: "wildcard", 1: "IPv4", 2: "IPv6", 3: "link-local", 4: "v4-via-v6"}
TLV_NAMES = {
    0: "Pad1",
    1: "PadN",
    2: "Acknowledgment Request",
    3: "Acknowledgment",
    4: "Hello",
    5: "IHU",
    6: "Router-Id",
    7: "Next Hop",
    8: "Update",
    9: "Route Request",
    10: "Seqno Request",
    16: "MAC",
    17: "PC",
    18: "Challenge Request",
    19: "Challenge Reply",
}
SUB_TLV_NAMES = {0: "Pad1", 1: "PadN", 2: "Diversity", 3: "Timestamp", 112: "Price", 128: "Source Prefix"}


class _Part(Packet):
    """A TLV or sub-TLV: ends with its length; what follows is the next one's."""

    FIXED: ClassVar[int] = 0  # octets of the body before addresses of variable size

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        return b"", s

    @classmethod
    def address_octets(cls, body: bytes) -> int | None:
        """How many of them follow; None: what the body says of them is impossible."""
        del body
        return 0


def prefix_octets(encoding: int, length: int, omitted: int = 0) -> int | None:
    if encoding == 0:
        return 0
    octets = (length + 7) // 8 - omitted
    return octets if encoding in PREFIX_BITS and length <= PREFIX_BITS[encoding] and octets >= 0 else None


class Pad1(_Part):
    name = "Pad1"
    fields_desc: ClassVar = [ByteField("type", 0)]


class _SubTlv(_Part):
    """Its body as it is: `words` reads it, for what it means depends on the TLV that it is in."""

    name = "Sub-TLV"
    fields_desc: ClassVar = [
        ByteEnumField("type", 1, SUB_TLV_NAMES),
        ByteField("length", 0),
        StrLenField("body", b"", length_from=lambda p: p.length),
    ]


class Remains(_Part):
    """What cannot be framed: a TLV that is longer than what holds it."""

    name = "Remains"
    fields_desc: ClassVar = [StrLenField("body", b"", length_from=lambda p: len(p.original))]


def _next_sub_tlv(rest: bytes, **options: Any) -> Packet:
    if rest[0] == 0:
        return Pad1(rest, **options)
    is_whole = len(rest) >= 2 and len(rest) >= 2 + rest[1]
    return (_SubTlv if is_whole else Remains)(rest, **options)


def _head(number: int) -> list[Any]:
    return [ByteEnumField("type", number, TLV_NAMES), ByteField("length", 0)]


def _address(name: str, cls_octets: Any) -> StrLenField:
    return StrLenField(name, b"", length_from=cls_octets)


def _sub_tlvs(fixed: int, address: str | None = None) -> PacketListField:
    """Whatever is left of the body."""

    def left(p: Packet) -> int:
        return int(p.length - fixed - (len(getattr(p, address)) if address else 0))

    return PacketListField("sub_tlvs", [], _next_sub_tlv, length_from=left, max_count=MANY)


class OpaqueTlv(_Part):
    """PadN, MAC, challenges, and every type that is not known here."""

    name = "TLV"
    fields_desc: ClassVar = [*_head(1), StrLenField("body", b"", length_from=lambda p: p.length)]


class MalformedTlv(OpaqueTlv):
    name = "Malformed TLV"


class AcknowledgmentRequest(_Part):
    FIXED = 6
    fields_desc: ClassVar = [
        *_head(2),
        ShortField("reserved", 0),
        ShortField("opaque", 0),
        ShortField("interval", 0),
        _sub_tlvs(6),
    ]


class Acknowledgment(_Part):
    FIXED = 2
    fields_desc: ClassVar = [*_head(3), ShortField("opaque", 0), _sub_tlvs(2)]


class Hello(_Part):
    FIXED = 6
    fields_desc: ClassVar = [
        *_head(4),
        ShortField("flags", 0),
        ShortField("seqno", 0),
        ShortField("interval", 0),
        _sub_tlvs(6),
    ]


class _WithAddress(_Part):
    @classmethod
    def address_octets(cls, body: bytes) -> int | None:
        return AE_OCTETS.get(body[0])


class Ihu(_WithAddress):
    FIXED = 6
    fields_desc: ClassVar = [
        *_head(5),
        ByteEnumField("ae", 0, AE_NAMES),
        ByteField("reserved", 0),
        ShortField("rxcost", 0),
        ShortField("interval", 0),
        _address("address", lambda p: AE_OCTETS[p.ae]),
        _sub_tlvs(6, "address"),
    ]


class RouterId(_Part):
    FIXED = 10
    fields_desc: ClassVar = [
        *_head(6),
        ShortField("reserved", 0),
        StrFixedLenField("router_id", bytes(8), length=8),
        _sub_tlvs(10),
    ]


class NextHop(_WithAddress):
    FIXED = 2
    fields_desc: ClassVar = [
        *_head(7),
        ByteEnumField("ae", 0, AE_NAMES),
        ByteField("reserved", 0),
        _address("address", lambda p: AE_OCTETS[p.ae]),
        _sub_tlvs(2, "address"),
    ]


class Update(_Part):
    FIXED = 10
    fields_desc: ClassVar = [
        *_head(8),
        ByteEnumField("ae", 0, AE_NAMES),
        ByteField("flags", 0),
        ByteField("plen", 0),
        ByteField("omitted", 0),
        ShortField("interval", 0),
        ShortField("seqno", 0),
        ShortField("metric", 0),
        _address("prefix", lambda p: prefix_octets(p.ae, p.plen, p.omitted)),
        _sub_tlvs(10, "prefix"),
    ]

    @classmethod
    def address_octets(cls, body: bytes) -> int | None:
        if body[0] == 0 and (body[2] or body[3]):
            return None  # section 4.6.9: both must be 0
        return prefix_octets(body[0], body[2], body[3])


class RouteRequest(_Part):
    FIXED = 2
    fields_desc: ClassVar = [
        *_head(9),
        ByteEnumField("ae", 0, AE_NAMES),
        ByteField("plen", 0),
        _address("prefix", lambda p: prefix_octets(p.ae, p.plen)),
        _sub_tlvs(2, "prefix"),
    ]

    @classmethod
    def address_octets(cls, body: bytes) -> int | None:
        return prefix_octets(body[0], body[1])


class SeqnoRequest(_Part):
    FIXED = 14
    fields_desc: ClassVar = [
        *_head(10),
        ByteEnumField("ae", 0, AE_NAMES),
        ByteField("plen", 0),
        ShortField("seqno", 0),
        ByteField("hop_count", 0),
        ByteField("reserved", 0),
        StrFixedLenField("router_id", bytes(8), length=8),
        _address("prefix", lambda p: prefix_octets(p.ae, p.plen)),
        _sub_tlvs(14, "prefix"),
    ]

    @classmethod
    def address_octets(cls, body: bytes) -> int | None:
        return prefix_octets(body[0], body[1])


class PacketCounter(_Part):
    """RFC 8967 section 4.2. No sub-TLVs: what follows the counter is the index."""

    FIXED = 4
    fields_desc: ClassVar = [
        *_head(17),
        IntField("counter", 0),
        StrLenField("index", b"", length_from=lambda p: p.length - 4),
    ]


_CLASSES: dict[int, type[_Part]] = {
    2: AcknowledgmentRequest,
    3: Acknowledgment,
    4: Hello,
    5: Ihu,
    6: RouterId,
    7: NextHop,
    8: Update,
    9: RouteRequest,
    10: SeqnoRequest,
    17: PacketCounter,
}


def _next_tlv(rest: bytes, **options: Any) -> Packet:
    return _tlv_class(rest)(rest, **options)


def _tlv_class(rest: bytes) -> type[Packet]:
    if rest[0] == 0:
        return Pad1
    if len(rest) < 2 or len(rest) < 2 + rest[1]:
        return Remains
    known = _CLASSES.get(rest[0])
    if known is None:
        return OpaqueTlv
    body = rest[2 : 2 + rest[1]]
    if len(body) < known.FIXED:
        return MalformedTlv
    octets = known.address_octets(body)
    return MalformedTlv if octets is None or len(body) < known.FIXED + octets else known


class Babel(Packet):
    """`trailer`: what follows the body, where RFC 8967 has its MACs."""

    name = "Babel"
    fields_desc: ClassVar = [
        ByteField("magic", 42),
        ByteField("version", 2),
        ShortField("body_length", 0),
        PacketListField("tlvs", [], _next_tlv, length_from=lambda p: p.body_length, max_count=MANY),
        PacketListField("trailer", [], _next_tlv, max_count=MANY),
    ]


bind_layers(UDP, Babel, sport=PORT)
bind_layers(UDP, Babel, dport=PORT)
