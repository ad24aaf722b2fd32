"""Whoever sleeps until the next tick wakes up later than now: else it would be awake all the time."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from meshd.ticks import tick_after


@given(interval=st.floats(0.01, 100.0), now=st.floats(0.0, 1e7))
@example(interval=0.1, now=4.3)
@example(interval=0.7, now=4300.799999999999)
@example(interval=3.0, now=6.0)
def test_a_tick_is_after_now_and_no_more_than_an_interval(interval: float, now: float) -> None:
    tick = tick_after(now, interval)
    assert now < tick <= now + interval * 1.001
    assert abs(tick / interval - round(tick / interval)) < 1e-3
