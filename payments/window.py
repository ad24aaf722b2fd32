"""The window W: how much a buyer may owe unpaid. It grows with what is paid on time, and falls back after a default.

As TCP's congestion window does (RFC 5681 section 3.1, slow start), it doubles with every full window; unlike it, there
is no linear phase: the ceiling is what the seller is ready to lose. All sums are msat.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    size_msat: int
    progress_msat: int  # paid on time since it last grew


def grow(window: Window, paid_msat: int, *, max_msat: int) -> Window:
    """After a payment on time. Once at the ceiling there is no more progress to count."""
    if window.size_msat >= max_msat and not window.progress_msat:
        return window
    size, progress = window.size_msat, window.progress_msat + paid_msat
    while progress >= size and size < max_msat:
        progress -= size
        size = min(2 * size, max_msat)
    return Window(size, progress if size < max_msat else 0)


def is_exceeded(window_msat: int, unpaid_msat: int) -> bool:
    """The seller stops carrying above W ..."""
    return unpaid_msat > window_msat


def is_cleared(window_msat: int, unpaid_msat: int) -> bool:
    """... and starts again at half of it, so that a payment late by a moment does not switch twice per packet."""
    return unpaid_msat <= window_msat // 2


CALM_TICKS = 12  # after so long in good standing, a suspension is taken for an accident
_FIRST_HOLD_TICKS = 1 / 8


def hold_interval(previous: float, open_interval: float, *, tick_interval: float) -> float:
    """The least time that a suspension lasts, however soon it is paid: none for the first, then twice as long each.

    A buyer at the border would else be switched with every payment. At most a tick, so that who pays is never out for
    two. `previous`: that of the suspension before; `open_interval`: since that one ended.
    """
    if open_interval > CALM_TICKS * tick_interval:
        return 0.0
    return min(max(2 * previous, _FIRST_HOLD_TICKS * tick_interval), tick_interval)


def is_due(window_msat: int, unpaid_msat: int) -> bool:
    """Settle at W/2: the payment is back before the other half is used up."""
    return unpaid_msat >= max(1, window_msat // 2)
