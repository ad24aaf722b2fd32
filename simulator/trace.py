"""Digests by which two runs are compared, whatever engine, machine or number of shards made them."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

_CHANGE = struct.Struct("<dqqII")  # at, node, next hop, metric, price
RECORD_BYTES = _CHANGE.size
_ROUTE = struct.Struct("<qqqII")  # destination, node, next hop, metric, price
NO_ROUTE = -1  # as a next hop


class RouteTrace:
    """Every change of a selected route, in the order in which it happened.

    Kept apart by destination, since an engine may be sharded by it: the shards' traces put together (`merge`) give the
    digest of the whole. Changes of one destination come in order of time, and at one time in order of the node's
    number unless one follows from the other.
    """

    def __init__(self) -> None:
        self._by_destination: dict[int, Any] = {}
        self.count = 0

    def add(self, destination: int, *, at: float, node: int, next_hop: int, metric: int, price: int) -> None:
        """`next_hop` is NO_ROUTE, metric 65535 and price 0 for a route that is gone."""
        self.add_many(destination, _CHANGE.pack(at, node, next_hop, metric, price))

    def add_many(self, destination: int, records: bytes) -> None:
        """Of one destination, in order: each is `RECORD_BYTES` long, little-endian (at f8, node i8, next hop i8, metric
        u4, price u4), such as the octets of a packed numpy array."""
        state = self._by_destination.get(destination)
        if state is None:
            state = self._by_destination[destination] = hashlib.blake2b(digest_size=16)
        state.update(records)
        self.count += len(records) // RECORD_BYTES

    def merge(self, other: RouteTrace) -> None:
        """Of a shard with other destinations. Raises ValueError if one is in both."""
        if self._by_destination.keys() & other._by_destination.keys():
            raise ValueError("a destination is in two shards")
        self._by_destination.update(other._by_destination)
        self.count += other.count

    def digest(self) -> str:
        """32 hexadecimal digits."""
        state = hashlib.blake2b(digest_size=16)
        for destination, value in sorted(self.digests().items()):
            state.update(struct.pack("<q", destination) + value)
        return state.hexdigest()

    def digests(self) -> dict[int, bytes]:
        """Of each destination: 16 octets."""
        return {
            destination: state if isinstance(state, bytes) else state.digest()
            for destination, state in self._by_destination.items()
        }

    def __getstate__(self) -> tuple[dict[int, bytes], int]:
        """On the way to another process nothing can be added any more."""
        return self.digests(), self.count

    def __setstate__(self, state: tuple[dict[int, bytes], int]) -> None:
        self._by_destination = dict(state[0])
        self.count = state[1]
