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


def is_due(window_msat: int, unpaid_msat: int) -> bool:
    """Settle at W/2: the payment is back before the other half is used up."""
    return unpaid_msat >= max(1, window_msat // 2)
