"""Inputs and outputs in words. Names of classes and fields are the words, so that new ones need nothing here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

from routing.events import Input, Output, ReceivedPacket, SendPacket, TimerExpired
from routing.speaker import Speaker


def _words(name: str) -> str:
    """ReceivedPacket: received packet."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).lower()


def describe(value: Any) -> str:
    """`update: prefix fd00::/64, metric 96, …`; what has its default value is left out."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(describe(item) for item in value) + "]"
    if not dataclasses.is_dataclass(value):
        return str(value)
    fields = []
    for item in dataclasses.fields(value):
        content = getattr(value, item.name)
        if item.default is not dataclasses.MISSING and content == item.default:
            continue
        fields.append(f"{item.name.replace('_', ' ')} {describe(content)}")
    name = _words(type(value).__name__)
    return f"{name}: {', '.join(fields)}" if fields else name


def timeline(seconds: float, event: Input, outputs: list[Output]) -> Iterator[str]:
    """Lines of what came in and went out; none for a timer that brought nothing."""
    if isinstance(event, TimerExpired) and not outputs:
        return
    yield from _lines(f"{seconds:12.6f} in  ", event)
    for output in outputs:
        yield from _lines(f"{'':12} out ", output)


def _lines(start: str, value: Input | Output) -> Iterator[str]:
    match value:
        case ReceivedPacket():
            yield f"{start}{describe(dataclasses.replace(value, tlvs=()))}".replace(", tlvs []", "")
        case SendPacket():
            to = "everybody" if value.destination is None else value.destination
            yield f"{start}send packet: interface {value.interface}, to {to}"
        case _:
            yield f"{start}{describe(value)}"
            return
    for tlv in value.tlvs:
        yield f"{'':20}{describe(tlv)}"


def final_state(speaker: Speaker) -> Iterator[str]:
    """Neighbours, selected routes and what was dropped."""
    neighbours = speaker.neighbours()
    yield f"neighbours: {len(neighbours)}"
    for neighbour in neighbours:
        yield (
            f"  {neighbour.address} on {neighbour.interface}: cost {neighbour.cost}, rxcost {neighbour.rxcost}, "
            f"txcost {neighbour.txcost}, {neighbour.route_count} routes"
        )
    selected = [route for route in speaker.routes() if route.is_selected]
    yield f"selected routes: {len(selected)}"
    for route in selected:
        source = "" if route.source_prefix is None else f" from {route.source_prefix}"
        yield (
            f"  {route.prefix}{source} via {route.next_hop} dev {route.interface}: metric {route.metric}, "
            f"price {route.price_msat_per_gb}, seqno {route.seqno}, router-id {route.router_id.hex()}"
        )
    counters = speaker.counters()
    yield f"dropped or ignored: {', '.join(f'{name} {count}' for name, count in sorted(counters.items())) or 'nothing'}"
