"""What a buyer spends at most in an hour, a day and 30 days (design section 9).

Windows follow one another without a gap, each beginning at a multiple of its length: where `now` is Unix time, hours
and days are UTC's. In the worst case two windows' worth is spent within a moment, at the turn from one to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

LENGTH_BY_PERIOD: Mapping[str, int] = MappingProxyType({"hour": 3600, "day": 86_400, "month": 30 * 86_400})  # seconds
NO_LIMIT = 0


@dataclass(frozen=True, slots=True)
class Window:
    """`before_msat`: what had been spent altogether when it began."""

    begins_at: float
    before_msat: int


class Budget:
    """`limits` in msat by period; 0, or none: there is no limit. `windows`: as an earlier `Budget` had them.

    What has been spent is told as a sum since ever. It may fall, where earnings are counted against it: what was earned
    in a window can be spent in it beside the limit.
    """

    def __init__(self, limits: Mapping[str, int], windows: Mapping[str, Window] = MappingProxyType({})) -> None:
        self.limits = dict(limits)
        self.windows = {period: window for period, window in windows.items() if period in LENGTH_BY_PERIOD}
        self._sum_msat = 0

    def observe(self, sum_msat: int, *, now: float) -> bool:
        """What has been spent up to now. True if a window has begun: `windows` are to be kept then."""
        self._sum_msat = sum_msat
        before = dict(self.windows)
        for period, length in LENGTH_BY_PERIOD.items():
            begins_at = now // length * length
            window = self.windows.get(period)
            if window is None or begins_at > window.begins_at:
                self.windows[period] = Window(begins_at, sum_msat)
            elif begins_at < window.begins_at - length:
                # The clock was far ahead, and has been put right. That is no reason to forget what was spent.
                self.windows[period] = Window(begins_at, window.before_msat)
        return self.windows != before

    def spent_msat(self, period: str) -> int:
        """In the window that is running; below 0: more was earned than spent."""
        window = self.windows.get(period)
        return 0 if window is None else self._sum_msat - window.before_msat

    def used_up(self) -> list[str]:
        """The periods in which nothing more may be spent, the shortest first."""
        limits = ((period, self.limits.get(period, NO_LIMIT)) for period in LENGTH_BY_PERIOD)
        return [period for period, limit in limits if limit != NO_LIMIT and self.spent_msat(period) >= limit]

    def ends_at(self, period: str) -> float:
        """When the window that is running ends."""
        return self.windows[period].begins_at + LENGTH_BY_PERIOD[period]
