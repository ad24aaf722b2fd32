"""One deadline per object, kept in a heap.

A deadline that moves later (every Hello does that) only writes a number: its heap entry is found stale when it comes
up, and is put back at the right place then.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

K = TypeVar("K")


class Timers(Generic[K]):
    def __init__(self) -> None:
        self._at: dict[K, float] = {}
        self._queued: dict[K, float] = {}  # the earliest heap entry of each key
        self._heap: list[tuple[float, int, K]] = []
        self._serial = 0  # equal times fire in the order in which they were set; keys need no ordering

    def set(self, key: K, at: float) -> None:
        self._at[key] = at
        queued = self._queued.get(key)
        if queued is None or at < queued:
            self._push(key, at)

    def set_earlier(self, key: K, at: float) -> None:
        """Keep an earlier deadline if there is one."""
        current = self._at.get(key)
        if current is None or at < current:
            self.set(key, at)

    def cancel(self, key: K) -> None:
        self._at.pop(key, None)

    def next_deadline(self) -> float | None:
        while self._heap:
            queued, _, key = self._heap[0]
            at = self._at.get(key)
            if at == queued:
                return at
            self._drop_stale(key, queued, at)
        return None

    def pop_due(self, now: float) -> K | None:
        """The key with the earliest deadline, if that is not after `now`; its deadline is cleared."""
        at = self.next_deadline()
        if at is None or at > now:
            return None
        _, _, key = heapq.heappop(self._heap)
        del self._queued[key]
        del self._at[key]
        return key

    def _push(self, key: K, at: float) -> None:
        self._queued[key] = at
        self._serial += 1
        heapq.heappush(self._heap, (at, self._serial, key))

    def _drop_stale(self, key: K, queued: float, at: float | None) -> None:
        heapq.heappop(self._heap)
        if self._queued.get(key) != queued:
            return  # an older entry of a key that has an earlier one in the heap, or none any more
        del self._queued[key]
        if at is not None:
            self._push(key, at)
