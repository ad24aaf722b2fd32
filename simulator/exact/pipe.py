"""One direction of a link: latency, loss, bandwidth and a queue."""

from __future__ import annotations

import random
from dataclasses import dataclass

UNLIMITED = float("inf")


@dataclass(slots=True)
class Pipe:
    """`latency` in seconds, `loss` a share, `bandwidth` in bit/s, `queue` in bytes that wait for their turn.

    `rng` is its own, so that what happens on one link does not depend on another's traffic.
    """

    latency: float
    rng: random.Random
    loss: float = 0.0
    bandwidth: float = UNLIMITED
    queue: int = 64_000
    is_up: bool = True
    free_at: float = 0.0
    lost: int = 0  # packets that vanished: loss, a link that is down
    overflowed: int = 0  # packets that found the queue full

    def send(self, size: int, *, now: float) -> float | None:
        """When a packet of so many bytes arrives; None: never. Transmission takes size / bandwidth, one by one."""
        if not self.is_up or (self.loss > 0.0 and self.rng.random() < self.loss):
            self.lost += 1
            return None
        if self.bandwidth == UNLIMITED:
            return now + self.latency
        begins_at = max(now, self.free_at)
        if (begins_at - now) * self.bandwidth > 8 * self.queue:
            self.overflowed += 1
            return None
        self.free_at = begins_at + 8 * size / self.bandwidth
        return self.free_at + self.latency
