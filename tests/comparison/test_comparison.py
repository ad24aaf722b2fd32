"""The simulator beside what others measured (tools/compare)."""

from __future__ import annotations

import math

import pytest

from routing.config import SpeakerConfig
from tests.comparison import published
from tests.comparison.published import Point, compare, margin, reached_at


def test_babelds_timers_give_babelds_published_curve() -> None:
    rows = compare(3, 24.0)
    assert [row for row in rows if not row.is_within] == []
    assert rows[0].simulated == 0.0
    assert rows[-1].simulated > 0.95


def test_our_own_timers_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "BABELD", SpeakerConfig(router_id=b"\xff" * 7 + b"\0", split_horizon=False))
    assert any(not row.is_within for row in compare(1, 12.0))


def test_the_time_to_a_share_lies_between_two_points() -> None:
    curve = [Point(0.0, 0.0), Point(2.0, 0.0), Point(4.0, 1.0)]
    assert reached_at(curve, 0.5) == pytest.approx(3.0)
    assert reached_at(curve[:2], 0.5) == math.inf


def test_a_small_sample_leaves_more_open() -> None:
    assert margin(0.5, 50) > margin(0.5, 200) > margin(1.0, 200) > 0.0
