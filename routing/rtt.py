"""Round-trip times, measured by Mills' algorithm with what Hellos and IHUs carry anyway (RFC 9616).

A Hello says when it was sent. An IHU says when the last such Hello from the other end was sent, by that end's clock,
and when it arrived here, by ours. A packet with both tells its receiver how long all of it took, less the time spent
here. Clocks need not agree. Timestamps are microseconds modulo 2^32 of the clock that `now` is read from.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from routing import rules
from routing.tlv import Hello, Ihu

STALE = 180.0  # seconds: no older timestamp is answered or believed, so that wrapping after 71 minutes does no harm


@dataclass(slots=True, eq=False)
class RttRecord:
    """What is known of one neighbour."""

    sent_stamp: int = 0  # of its last Hello with a timestamp
    heard_at: float = -STALE  # when that arrived, by our clock
    smoothed: float = 0.0  # seconds
    measured_at: float = -STALE

    @property
    def is_measured(self) -> bool:
        return self.measured_at > -STALE

    def is_known(self, *, now: float) -> bool:
        return now - self.measured_at < STALE

    def stamps(self, *, now: float) -> tuple[int, int] | None:
        """For an IHU that leaves together with a Hello (RFC 9616 section 3.2)."""
        return (self.sent_stamp, micros(self.heard_at)) if now - self.heard_at < STALE else None

    def hear(self, hello: Hello | None, ihu: Ihu | None, counters: Counter[str], *, now: float) -> None:
        """One packet's Hello, and its IHU for us; either may be missing or have no timestamps."""
        if hello is None or hello.timestamp is None:
            return
        self.sent_stamp = hello.timestamp
        self.heard_at = now
        if ihu is None or ihu.timestamps is None:
            return
        origin, received = ihu.timestamps
        sample = rules.rtt_sample(origin, received, hello.timestamp, micros(now), STALE)
        if sample < 0.0:
            counters["rtt_sample_implausible"] += 1
            return
        self.smoothed = rules.smooth_rtt(self.smoothed, sample) if self.is_known(now=now) else sample
        self.measured_at = now


def micros(now: float) -> int:
    return int(now * 1_000_000) & 0xFFFF_FFFF
