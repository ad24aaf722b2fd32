"""Budgets: windows that follow one another, and a clock that is put right."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from payments.budget import LENGTH_BY_PERIOD, Budget, Window

HOUR, DAY = LENGTH_BY_PERIOD["hour"], LENGTH_BY_PERIOD["day"]


def test_what_is_used_up_is_there_again_in_the_next_window() -> None:
    budget = Budget({"hour": 100, "day": 150})
    assert budget.observe(1_000, now=DAY + 10)
    assert not budget.observe(1_099, now=DAY + 20)
    assert budget.used_up() == []
    budget.observe(1_100, now=DAY + 30)
    assert budget.used_up() == ["hour"]
    assert budget.ends_at("hour") == DAY + HOUR
    assert budget.observe(1_100, now=DAY + HOUR)
    assert budget.used_up() == []
    budget.observe(1_150, now=DAY + HOUR + 1)
    assert (budget.used_up(), budget.spent_msat("hour"), budget.spent_msat("day")) == (["day"], 50, 150)


def test_a_later_run_goes_on_where_the_first_was() -> None:
    first = Budget({"day": 100})
    first.observe(1_000, now=DAY)
    first.observe(1_090, now=DAY + 5)
    second = Budget({"day": 100}, first.windows)
    second.observe(1_100, now=DAY + 60)
    assert second.used_up() == ["day"]


def test_earnings_can_be_spent() -> None:
    budget = Budget({"hour": 10})
    budget.observe(0, now=0.0)
    budget.observe(-50, now=1.0)
    assert budget.spent_msat("hour") == -50
    budget.observe(9, now=2.0)
    assert budget.used_up() == []


def test_a_clock_that_is_put_back_gives_no_new_budget() -> None:
    budget = Budget({"hour": 10}, {"hour": Window(1000 * HOUR, 0)})
    budget.observe(10, now=1000 * HOUR - 1)  # by a little: the window is as it was
    assert budget.used_up() == ["hour"]
    assert budget.observe(10, now=5 * HOUR + 7)  # by much: it is moved, and what was spent with it
    assert budget.used_up() == ["hour"]
    assert budget.ends_at("hour") == 6 * HOUR
    assert budget.observe(10, now=6 * HOUR)
    assert budget.used_up() == []


def test_without_a_limit_nothing_is_used_up_and_unknown_windows_are_forgotten() -> None:
    budget = Budget({}, {"year": Window(0, 0)})
    budget.observe(10**18, now=0.0)
    assert budget.used_up() == []
    assert set(budget.windows) == set(LENGTH_BY_PERIOD)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5_000)), max_size=60))
def test_no_window_has_more_spent_in_it_than_its_limit_and_one_step(steps: list[tuple[int, int]]) -> None:
    """Of a buyer that stops when it is told to."""
    budget, now, total = Budget({"hour": 100}), 0, 0
    spent_by_hour: dict[int, int] = {}
    for cost, seconds in steps:
        now += seconds
        budget.observe(total, now=now)
        if not budget.used_up():
            total += cost
            spent_by_hour[now // HOUR] = spent_by_hour.get(now // HOUR, 0) + cost
    assert all(spent < 100 + 50 for spent in spent_by_hour.values())
