"""One capture, three readers: `tools.dissector`, `routing.codec` and tshark. What two of them know must be the same."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from scapy.compat import raw
from scapy.layers import inet6, l2  # noqa: F401  Ethernet and IPv6 for the reader of captures
from scapy.packet import Packet
from scapy.utils import rdpcap

from routing.codec import decode
from routing.tlv import (
    Ack,
    AckRequest,
    Hello,
    Ihu,
    RouteRequest,
    SeqnoRequest,
    Tlv,
    Update,
    WildcardRetraction,
)
from tools.dissector import layers
from tools.dissector.main import describe

Record = dict[str, Any]
INFINITY = 65535


def packets_in(capture: Path) -> list[Packet]:
    return [packet for packet in rdpcap(str(capture)) if layers.Babel in packet]


def assert_agrees_with_codec(packet: Packet) -> int:
    """How many TLVs were compared. Malformed ones and those that the codec ignores are left out."""
    described = describe(packet)
    theirs = [fields for record in described["tlvs"] if (fields := _engine_view(record))]
    tlvs = decode(raw(packet[layers.Babel]), source=IPv6Address(described["source"]))
    ours = [_record_of(tlv) for tlv in tlvs]
    assert theirs == ours
    return len(ours)


def _engine_view(record: Record) -> Record | None:
    """What of a record the engine gets to know."""
    if record.get("malformed") or record.get("trailer"):
        return None
    sub_tlvs = record.get("sub_tlvs", ())
    sources = [sub["source_prefix"] for sub in sub_tlvs if "source_prefix" in sub and record["tlv"] in _WITH_SOURCE]
    mandatory = [sub for sub in sub_tlvs if sub.get("mandatory")]
    if any(sub.get("malformed") for sub in sub_tlvs) or len(mandatory) > len(sources) or len(sources) > 1:
        return None
    match record["tlv"]:
        case "Update" if record["ae"] == 0:
            return {"tlv": "Wildcard"} if record["metric"] == INFINITY else None
        case "Update":
            view = _update_view(record)
            return view and view | {"source_prefix": sources[0] if sources else None}
        case "Seqno Request" if record["ae"] == 0 or record["hop_count"] == 0:
            return None
    wanted = _FIELDS.get(record["tlv"])
    if wanted is None:
        return None
    view = {"tlv": record["tlv"]} | {name: record[name] for name in wanted}
    for sub in record.get("sub_tlvs", ()):
        view |= {name: sub[name] for name in _TIMES if name in sub}
    if record["tlv"] in _WITH_SOURCE:
        view["source_prefix"] = sources[0] if sources else None
    return view


def _update_view(record: Record) -> Record | None:
    is_retraction = record["metric"] == INFINITY
    if not is_retraction and (record["router_id"] is None or record["next_hop"] is None):
        return None
    prices = [sub for sub in record["sub_tlvs"] if "price_msat_per_gb" in sub]
    price = (prices[-1]["price_msat_per_gb"], prices[-1]["epoch"]) if prices else (None, 0)
    names = ("prefix", "metric", "seqno", "interval")
    view = {"tlv": "Update", "price": price} | {name: record[name] for name in names}
    return view if is_retraction else view | {name: record[name] for name in ("router_id", "next_hop")}


_WITH_SOURCE = ("Update", "Route Request", "Seqno Request")
_TIMES = ("transmitted_us", "origin_us", "received_us")
_FIELDS = {
    "Acknowledgment Request": ("opaque", "interval"),
    "Acknowledgment": ("opaque",),
    "Hello": ("seqno", "interval", "unicast"),
    "IHU": ("rxcost", "interval", "address"),
    "Route Request": ("prefix",),
    "Seqno Request": ("prefix", "seqno", "hop_count", "router_id"),
}


def _record_of(tlv: Tlv) -> Record:
    match tlv:
        case AckRequest(opaque, interval):
            return {"tlv": "Acknowledgment Request", "opaque": opaque, "interval": interval / 100}
        case Ack(opaque):
            return {"tlv": "Acknowledgment", "opaque": opaque}
        case Hello(seqno, interval, unicast, stamp):
            times = {} if stamp is None else {"transmitted_us": stamp}
            return {"tlv": "Hello", "seqno": seqno, "interval": interval / 100, "unicast": unicast} | times
        case Ihu(rxcost, interval, address, stamps):
            times = {} if stamps is None else {"origin_us": stamps[0], "received_us": stamps[1]}
            return {"tlv": "IHU", "rxcost": rxcost, "interval": interval / 100, "address": _text(address)} | times
        case WildcardRetraction():
            return {"tlv": "Wildcard"}
        case RouteRequest(prefix, source):
            return {"tlv": "Route Request", "prefix": _text(prefix), "source_prefix": _text(source)}
        case SeqnoRequest(prefix, seqno, hop_count, router_id, source):
            fields = {"seqno": seqno, "hop_count": hop_count, "router_id": router_id.hex()}
            return {"tlv": "Seqno Request", "prefix": _text(prefix), "source_prefix": _text(source)} | fields
        case Update():
            return _update_record(tlv)


def _update_record(update: Update) -> Record:
    record = {
        "tlv": "Update",
        "price": (update.price_msat_per_gb, update.price_epoch),
        "prefix": _text(update.prefix),
        "metric": update.metric,
        "seqno": update.seqno,
        "interval": update.interval_cs / 100,
        "source_prefix": _text(update.source_prefix),
    }
    if update.metric == INFINITY:
        return record
    return record | {"router_id": update.router_id.hex(), "next_hop": _text(update.next_hop)}


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def assert_agrees_with_tshark(capture: Path) -> int:
    """How many TLVs were compared. tshark 4.0 knows neither AE 4 nor the unicast flag of Hello."""
    command = ["tshark", "-r", str(capture), "-T", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert "_ws.malformed" not in done.stdout
    parsed: list[Any] = json.loads(done.stdout, object_pairs_hook=list)
    theirs = [list(_messages(frame)) for frame in parsed]
    ours = [describe(packet)["tlvs"] for packet in packets_in(capture)]
    assert len(theirs) == len(ours)
    for messages, records in zip(theirs, ours, strict=True):
        assert [int(_one(m, "babel.message.type")) for m in messages] == [record["type"] for record in records]
        for message, record in zip(messages, records, strict=True):
            _compare(message, record)
    return sum(map(len, theirs))


def _messages(pairs: Any) -> Iterator[list[Any]]:
    """The trees of the TLVs, wherever they are; JSON objects come as lists of pairs, for names occur repeatedly."""
    if not isinstance(pairs, list):
        return
    for item in pairs:
        if isinstance(item, tuple):
            if item[0] == "babel.message_tree":
                yield item[1]
            else:
                yield from _messages(item[1])


def _one(message: list[Any], name: str) -> str:
    return next(str(value) for key, value in message if key == name)


# tshark's name of a field, ours, and what turns its text into ours.
_TSHARK: dict[str, tuple[str, Callable[[str], object]]] = {
    "babel.message.seqno": ("seqno", lambda text: int(text, 16)),
    "babel.message.interval": ("interval", lambda text: int(text) / 100),
    "babel.message.rxcost": ("rxcost", lambda text: int(text, 16)),
    "babel.message.nonce": ("opaque", lambda text: int(text, 16)),
    "babel.message.hopcount": ("hop_count", int),
    "babel.message.routerid": ("router_id", lambda text: text.replace(":", "")),
    "babel.message.flags": ("flags", lambda text: int(text, 16)),
    "babel.message.metric": ("metric", int),
    "babel.message.index": ("counter", int),  # tshark's word for the packet counter
}


def _compare(message: list[Any], record: Record) -> None:
    compared = 0
    for name, value in message:
        if name in _TSHARK:
            ours, convert = _TSHARK[name]
            assert record[ours] == convert(value), (name, record)
            compared += 1
        elif name.startswith(("Prefix: ", "NH: ", "Address: ")) and record["ae"] != 4:
            _compare_address(name.partition(": ")[2], value, record)
            compared += 1
        elif name == "babel.subtlv_tree":
            assert int(_one(value, "babel.subtlv.type")) in [sub["type"] for sub in record["sub_tlvs"]]
    assert compared or record["type"] in (0, 1) or "body" in record, (message, record)


def _compare_address(text: str, details: list[Any], record: Record) -> None:
    assert record["ae"] == int(_one(details, "babel.message.ae"))
    ours = record["address"] if "address" in record else record["prefix"]
    assert (ours or ("::/0" if "prefix" in record else "::")) == text
    if "omitted" in record:
        assert record["omitted"] == int(_one(details, "babel.message.omitted"))
