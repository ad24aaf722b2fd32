"""What tools/soak calls growth, and which books it calls different. A run of it is in tests/lab/test_soak.py."""

from __future__ import annotations

import os

import pytest

from tools.soaker.vitals import Vitals, differing_pairs, held, look, slope

NAMES = {"aa": "a", "bb": "b"}


def looks(*memory: int) -> list[Vitals]:
    return [Vitals(60.0 * number, size, size, 10, 10) for number, size in enumerate(memory)]


def test_memory_that_grows_is_told_by_the_hour() -> None:
    assert slope(looks(100, 101, 102, 103)) == pytest.approx(60)


def test_a_few_high_moments_are_no_growth() -> None:
    assert slope(looks(100, 100, 900, 100, 100, 100)) == 0
    assert slope(looks(100)) == 0


def test_what_one_says_it_paid_is_what_the_other_got() -> None:
    a, b = {"peer": "bb", "sent_msat": 7, "received_msat": 3}, {"peer": "aa", "sent_msat": 3, "received_msat": 7}
    assert differing_pairs({"a": [a], "b": [b]}, NAMES) == []
    assert differing_pairs({"a": [a], "b": [b | {"received_msat": 6}]}, NAMES) == ["a says 7 msat to b, which says 6"]
    assert differing_pairs({"a": [a], "b": []}, NAMES) == [
        "a says 7 msat to b, which says 0",
        "b says 0 msat to a, which says 3",
    ]


def test_who_is_held_in_the_end_is_told_with_what_it_owes() -> None:
    good = {"peer": "aa", "state": "open", "balance_msat": 5, "window_msat": 9}
    assert held({"b": [good]}, NAMES) == []
    debtor = good | {"state": "suspended", "balance_msat": 10}
    assert held({"b": [debtor]}, NAMES) == ["b holds a to the free tier: 10 of 9 msat"]


def test_a_process_is_looked_at() -> None:
    seen = look(os.getpid(), 5, at=2.0)
    assert (seen.at, seen.tasks) == (2.0, 5)
    assert seen.resident >= seen.memory > 0
    assert seen.descriptors > 2
