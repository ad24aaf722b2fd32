"""Reads the elements of a set of counters out of a NFT_MSG_NEWSETELEM: ten thousand of them in some ten milliseconds.

The kernel writes all elements of one set alike. How, is found out from the first of a message; those that have the
same bytes around key and counter are taken by their offsets, and any other by its attributes, one after the other.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from meshd.kernel.netlink import attributes

Element = tuple[bytes, int, int]  # key, bytes, packets

_NFGENMSG_SIZE = 4
_LIST_ELEMENTS = 3
_ELEM_KEY, _ELEM_EXPR = 1, 7
_EXPR_DATA = 2
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_BE64 = struct.Struct(">Q")


def elements(payload: bytes) -> Iterator[Element]:
    """Of a message, from its struct nfgenmsg on. Raises NetlinkError (EBADMSG) if its attributes do not fit."""
    for kind, start, end in attributes(payload, _NFGENMSG_SIZE, len(payload)):
        if kind == _LIST_ELEMENTS:
            yield from _list(payload, start, end)


def _list(payload: bytes, start: int, end: int) -> Iterator[Element]:
    layout = _layout(payload, start, end)
    if layout is None:
        yield from (_element(payload, *inner) for _, *inner in attributes(payload, start, end))
        return
    fit = (end - start) // layout.size * layout.size
    first = layout.unpack_from(payload, start)
    before, between, middle = first[0], first[2], first[4]
    at = start
    for a, key, b, size, c, packets in layout.iter_unpack(memoryview(payload)[start : start + fit]):
        if a != before or b != between or c != middle:
            break
        yield key, size, packets
        at += layout.size
    yield from (_element(payload, *inner) for _, *inner in attributes(payload, at, end))


def _layout(payload: bytes, start: int, end: int) -> struct.Struct | None:
    """The first element: what is before its key, the key, what is between, bytes, what is between, packets."""
    first = next(attributes(payload, start, end), None)
    if first is None:
        return None
    key, size, packets = _places(payload, first[1], first[2])
    if key is None or size is None or packets is None or not start < key[0] < key[1] <= size < packets:
        return None
    if packets + _BE64.size != first[2] or first[2] % 4 != start % 4:
        return None
    return struct.Struct(
        f">{key[0] - start}s{key[1] - key[0]}s{size - key[1]}sQ{packets - size - _BE64.size}sQ",
    )


def _element(payload: bytes, start: int, end: int) -> Element:
    key, size, packets = _places(payload, start, end)
    return (
        b"" if key is None else payload[key[0] : key[1]],
        0 if size is None else int(_BE64.unpack_from(payload, size)[0]),
        0 if packets is None else int(_BE64.unpack_from(payload, packets)[0]),
    )


def _places(payload: bytes, start: int, end: int) -> tuple[tuple[int, int] | None, int | None, int | None]:
    """Where the key is, and where the bytes and the packets of the counter are."""
    key: tuple[int, int] | None = None
    size = packets = None
    for kind, inner, inner_end in attributes(payload, start, end):
        if kind == _ELEM_KEY:
            key = inner + 4, inner_end  # NFTA_DATA_VALUE alone
        elif kind == _ELEM_EXPR:
            for part, data, data_end in attributes(payload, inner, inner_end):
                if part == _EXPR_DATA:
                    size, packets = _counter(payload, data, data_end)
    return key, size, packets


def _counter(payload: bytes, start: int, end: int) -> tuple[int | None, int | None]:
    places = {kind: value for kind, value, stop in attributes(payload, start, end) if stop - value == _BE64.size}
    return places.get(_COUNTER_BYTES), places.get(_COUNTER_PACKETS)
