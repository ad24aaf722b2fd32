"""Which prices were in force lately: a seller bills the lowest of them, a buyer allows the highest (design section 8).

The daemon and the simulator keep the same history for each prefix; times are their own clock's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# An update and the packets that follow it may overtake each other between two meter readings.
LAG = 2.0


@dataclass(slots=True)
class PriceHistory:
    """The prices in force for one prefix over the last few seconds, oldest first."""

    changes: list[tuple[float, int]] = field(default_factory=list)  # (from when, msat per GB)

    def change(self, price_msat_per_gb: int, *, now: float) -> None:
        if not self.changes or self.changes[-1][1] != price_msat_per_gb:
            self.changes.append((now, price_msat_per_gb))

    def in_force(self, window: float, *, now: float) -> list[int]:
        """Every price that applied at some moment of the last `window` seconds; forgets what ended earlier."""
        while len(self.changes) > 1 and self.changes[1][0] <= now - window:
            del self.changes[0]
        return [price for _, price in self.changes]
