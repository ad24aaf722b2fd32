"""What it takes to deal with a packet, where many nodes share few processors: a mesh in network namespaces."""

from __future__ import annotations

import heapq
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """Each packet that a node receives takes a processor so many seconds, with all that follows from it; nodes take
    the processors in the order in which they want them, and each deals with one packet at a time."""

    processors: int
    packet_seconds: float


class Processors:
    def __init__(self, work: Work) -> None:
        self._seconds = work.packet_seconds
        self._free_at = [0.0] * work.processors
        self._busy_until: dict[int, float] = {}

    def take(self, node: int, *, now: float) -> float:
        """When the node will have dealt with a packet that arrives now."""
        begins_at = max(now, self.busy_until(node), self._free_at[0])
        ends_at = begins_at + self._seconds
        heapq.heapreplace(self._free_at, ends_at)
        self._busy_until[node] = ends_at
        return ends_at

    def busy_until(self, node: int) -> float:
        return self._busy_until.get(node, 0.0)
