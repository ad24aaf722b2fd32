"""What tools/kill calls well, and what it does not. The kills themselves need a lab: tests/lab/test_crash.py has a few,
and `tools/kill --kills 200` as many as one has time for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tools.killer.books import Books, Bound, violations

BOUND = Bound(price_msat_per_gb=40_000_000, max_window_msat=20_000, reading_msat=10_000)
BEFORE = Books(1_000_000, 40_000, 40_000, 40_000, 20_000, {"c": (40_000, 40_000)})
AFTER = Books(2_000_000, 80_000, 80_000, 80_000, 20_000, {"c": (80_000, 80_000)})


def test_books_that_agree_are_well() -> None:
    assert violations(BEFORE, AFTER, BOUND) == []


def test_a_crash_may_cost_the_seller_the_bound_and_no_more() -> None:
    """What was carried and never billed: the window and one reading at most."""
    assert violations(BEFORE, replace(AFTER, carried_bytes=2_000_000 + 750_000), BOUND) == []
    assert len(violations(BEFORE, replace(AFTER, carried_bytes=2_000_000 + 850_000), BOUND)) == 1


@pytest.mark.parametrize(
    "now",
    [
        replace(AFTER, sent_msat=90_000),
        replace(AFTER, received_msat=70_000, billed_msat=70_000),
        replace(AFTER, paid_by_channel={"c": (80_000, 79_000)}),
        replace(AFTER, paid_by_channel={"c": (39_000, 39_000)}),
        replace(AFTER, carried_bytes=1_900_000),
        replace(AFTER, billed_msat=82_000),
        replace(AFTER, billed_msat=79_000),
    ],
    ids=["paid-twice", "lost-payment", "ends-differ", "went-back", "not-carried", "never-paid", "overpaid"],
)
def test_books_that_do_not_agree_are_not(now: Books) -> None:
    assert violations(BEFORE, now, BOUND) != []
