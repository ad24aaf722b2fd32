"""From layers to records (for --json and the tests) and to lines of words.

Keeps the parser state of RFC 8966 section 4.5, so that each update shows its whole prefix, router-id and next hop.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from tools.dissector import layers

INFINITY = 65535
Record = dict[str, Any]  # of one TLV: `tlv` its name, then its fields; prefixes and addresses as text, octets as hex


@dataclass
class PacketReader:
    """One packet. `source`: the next hop of what has no other."""

    source: str
    router_id: bytes | None = None
    next_hop: dict[bool, str] = field(default_factory=dict)  # by "is IPv4"
    default_prefix: dict[int, bytes] = field(default_factory=dict)  # by AE

    def read(self, packet: layers.Babel) -> list[Record]:
        body = [self._record(tlv) for tlv in packet.tlvs]
        return body + [self._record(tlv) | {"trailer": True} for tlv in packet.trailer]

    def _record(self, tlv: Any) -> Record:
        if isinstance(tlv, layers.Remains):
            return {"tlv": "Remains", "malformed": True, "body": tlv.body.hex()}
        number = int(tlv.type)
        record: Record = {"tlv": layers.TLV_NAMES.get(number, f"unknown {number}"), "type": number}
        if isinstance(tlv, layers.Pad1):
            return record
        if isinstance(tlv, layers.MalformedTlv):
            return record | {"malformed": True, "body": tlv.body.hex()}
        if isinstance(tlv, layers.OpaqueTlv):
            return record | {"body": tlv.body.hex()}
        if isinstance(tlv, layers.PacketCounter):
            return record | {"counter": tlv.counter, "index": tlv.index.hex()}
        record |= self._fields(tlv)
        record["sub_tlvs"] = [_sub_tlv(sub, tlv) for sub in tlv.sub_tlvs]
        return record

    def _fields(self, tlv: Any) -> Record:
        match tlv:
            case layers.AcknowledgmentRequest():
                return {"opaque": tlv.opaque, "interval": tlv.interval / 100}
            case layers.Acknowledgment():
                return {"opaque": tlv.opaque}
            case layers.Hello():
                unicast = bool(tlv.flags & 0x8000)
                return {"unicast": unicast, "seqno": tlv.seqno, "interval": tlv.interval / 100}
            case layers.Ihu():
                address = _address(tlv.ae, tlv.address)
                return {"ae": tlv.ae, "rxcost": tlv.rxcost, "interval": tlv.interval / 100, "address": address}
            case layers.RouterId():
                if not _is_hidden(tlv):
                    self.router_id = tlv.router_id
                return {"router_id": tlv.router_id.hex()}
            case layers.NextHop():
                address = _address(tlv.ae, tlv.address)
                if address is not None and not _is_hidden(tlv):
                    self.next_hop[tlv.ae == 1] = address
                return {"ae": tlv.ae, "address": address}
            case layers.Update():
                return self._update(tlv)
            case layers.RouteRequest():
                return {"ae": tlv.ae, "prefix": _prefix(tlv.ae, tlv.prefix, tlv.plen)}
        fields = {"seqno": tlv.seqno, "hop_count": tlv.hop_count, "router_id": tlv.router_id.hex()}
        return {"ae": tlv.ae, "prefix": _prefix(tlv.ae, tlv.prefix, tlv.plen)} | fields

    def _update(self, tlv: layers.Update) -> Record:
        omitted = self.default_prefix.get(tlv.ae, b"")[: tlv.omitted]
        is_complete = len(omitted) == tlv.omitted
        octets = omitted + tlv.prefix if is_complete else b""
        whole = octets.ljust(layers.PREFIX_BITS.get(tlv.ae, 0) // 8, b"\0")
        if is_complete and tlv.flags & 0x80:
            self.default_prefix[tlv.ae] = whole
        if is_complete and tlv.flags & 0x40:
            self.router_id = whole[-8:].rjust(8, b"\0")
        default = None if tlv.ae == 1 else self.source
        return {
            "ae": tlv.ae,
            "flags": tlv.flags,
            "omitted": tlv.omitted,
            "prefix": _prefix(tlv.ae, octets, tlv.plen) if is_complete else None,
            "metric": tlv.metric,
            "seqno": tlv.seqno,
            "interval": tlv.interval / 100,
            "router_id": self.router_id.hex() if self.router_id is not None else None,
            "next_hop": self.next_hop.get(tlv.ae == 1, default),
        } | ({} if is_complete else {"malformed": True})


def _is_hidden(tlv: Any) -> bool:
    """By a mandatory sub-TLV, or one that cannot be framed (section 4.4)."""
    return any(isinstance(sub, layers.Remains) or sub.type >= 128 for sub in tlv.sub_tlvs)


def _address(encoding: int, octets: bytes) -> str | None:
    if encoding == 0:
        return None
    if encoding == 1:
        return str(IPv4Address(octets))
    return str(IPv6Address(octets if encoding == 2 else b"\xfe\x80" + bytes(6) + octets))


def _prefix(encoding: int, octets: bytes, length: int) -> str | None:
    """None: the wildcard."""
    if encoding == 0:
        return None
    if encoding == 2:
        return str(IPv6Network((octets.ljust(16, b"\0"), length), strict=False))
    return str(IPv4Network((octets.ljust(4, b"\0"), length), strict=False))


def _sub_tlv(sub: Any, tlv: Any) -> Record:
    if isinstance(sub, layers.Remains):
        return {"sub_tlv": "Remains", "malformed": True, "body": sub.body.hex()}
    record: Record = {"sub_tlv": layers.SUB_TLV_NAMES.get(sub.type, f"unknown {sub.type}"), "type": sub.type}
    if isinstance(sub, layers.Pad1):
        return record
    record["mandatory"] = sub.type >= 128
    body = sub.body
    if sub.type == 112 and len(body) >= 6:
        price, epoch = struct.unpack_from("!IH", body)
        return record | {"price_msat_per_gb": price, "epoch": epoch}
    if sub.type == 3 and isinstance(tlv, layers.Hello) and len(body) >= 4:
        return record | {"transmitted_us": int.from_bytes(body[:4], "big")}
    if sub.type == 3 and isinstance(tlv, layers.Ihu) and len(body) >= 8:
        return record | {"origin_us": int.from_bytes(body[:4], "big"), "received_us": int.from_bytes(body[4:8], "big")}
    if sub.type == 128 and body:
        octets = layers.prefix_octets(tlv.ae, body[0]) if hasattr(tlv, "ae") else None
        if octets and len(body) > octets:
            return record | {"source_prefix": _prefix(tlv.ae, body[1 : 1 + octets], body[0])}
    return record | {"body": body.hex()}


def line(record: Record) -> str:
    """One TLV in words."""
    say = _malformed if record.get("malformed") else _WORDS.get(record["tlv"], _plain)
    words = say(record)
    where = "trailer: " if record.get("trailer") else ""
    return "; ".join([where + words, *(_sub_words(sub) for sub in record.get("sub_tlvs", ()))])


def _malformed(record: Record) -> str:
    return f"malformed {_plain(record)}"


def _plain(record: Record) -> str:
    shown = [f"{key} {value}" for key, value in record.items() if key not in _QUIET and value not in ("", None)]
    return " ".join([str(record.get("tlv") or record["sub_tlv"]), *shown])


_QUIET = {"tlv", "sub_tlv", "type", "sub_tlvs", "malformed", "trailer", "mandatory"}


def _hello(r: Record) -> str:
    again = f"next within {r['interval']:g} s" if r["interval"] else "none promised"
    return f"{'unicast ' if r['unicast'] else ''}Hello {r['seqno']}, {again}"


def _ihu(r: Record) -> str:
    whom = r["address"] or "whoever gets this"
    heard = "I do not hear" if r["rxcost"] == INFINITY else "I hear"
    return f"IHU: {heard} {whom}, receive cost {r['rxcost']}, holds for {r['interval']:g} s"


def _update(r: Record) -> str:
    prefix = r["prefix"] or "everything"
    if r["metric"] == INFINITY:
        return f"Update: {prefix} is retracted"
    source = f"seqno {r['seqno']} of router {r['router_id']}"
    how = " by IPv6 (v4-via-v6)" if r["ae"] == 4 else ""
    return f"Update: {prefix} via {r['next_hop']}{how}, metric {r['metric']}, {source}, holds for {r['interval']:g} s"


def _seqno_request(r: Record) -> str:
    return f"Seqno Request: {r['prefix']} with seqno {r['seqno']} of router {r['router_id']}, {r['hop_count']} hops"


def _sub_words(r: Record) -> str:
    if "price_msat_per_gb" in r:
        price = r["price_msat_per_gb"]
        return f"price {'not for sale' if price == 2**32 - 1 else f'{price} msat/GB'} (epoch {r['epoch']})"
    if "source_prefix" in r:
        return f"for packets from {r['source_prefix']}"
    mandatory = "mandatory " if r.get("mandatory") else ""
    return f"{'malformed ' if r.get('malformed') else ''}{mandatory}sub-TLV {_plain(r)}"


_WORDS: dict[str, Callable[[Record], str]] = {
    "Hello": _hello,
    "IHU": _ihu,
    "Update": _update,
    "Seqno Request": _seqno_request,
    "Route Request": lambda r: f"Route Request: {r['prefix'] or 'everything'}",
    "Next Hop": lambda r: f"Next Hop: {r['address']}",
    "Router-Id": lambda r: f"Router-Id: {r['router_id']}",
    "Acknowledgment Request": lambda r: f"Acknowledgment Request {r['opaque']}, within {r['interval']:g} s",
    "Acknowledgment": lambda r: f"Acknowledgment {r['opaque']}",
}
