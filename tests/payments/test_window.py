from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from payments.window import Window, grow, is_cleared, is_due, is_exceeded


def test_doubles_with_every_full_window() -> None:
    window = grow(Window(10, 0), 9, max_msat=1_000)
    assert window == Window(10, 9)
    window = grow(window, 1, max_msat=1_000)
    assert window == Window(20, 0)
    assert grow(window, 20 + 40 + 3, max_msat=1_000) == Window(80, 3)


def test_ceiling_need_not_be_a_power_of_two() -> None:
    assert grow(Window(800, 0), 10_000, max_msat=1_000) == Window(1_000, 0)


def test_thresholds() -> None:
    assert not is_exceeded(100, 100)
    assert is_exceeded(100, 101)
    assert is_cleared(100, 50)
    assert not is_cleared(100, 51)
    assert is_due(100, 50)
    assert not is_due(100, 49)
    assert not is_due(1, 0)


@given(st.lists(st.integers(1, 10**6), max_size=30), st.integers(1, 10**6), st.integers(0, 10**6))
def test_growth_depends_on_the_sum_alone(payments: list[int], start: int, extra: int) -> None:
    """Splitting a payment gains nothing."""
    split = Window(start, 0)
    for amount in payments:
        split = grow(split, amount, max_msat=start + extra)
    whole = grow(Window(start, 0), sum(payments), max_msat=start + extra)
    assert split == whole
    assert start <= split.size_msat <= start + extra
