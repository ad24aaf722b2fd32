"""Times that are the same for all who look at something now and then: to wake up for all of them at once costs less."""

from __future__ import annotations

import math


def tick_after(now: float, interval: float) -> float:
    """The first multiple of `interval` after `now`, on the same clock; never `now` itself, whatever rounding does."""
    number = math.floor(now / interval) + 1
    at = number * interval
    return at if at > now else (number + 1) * interval
