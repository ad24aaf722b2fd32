"""Hellos on several interfaces leave together, and full updates with them: who wakes up seldom costs little."""

from __future__ import annotations

from ipaddress import IPv6Network
from itertools import pairwise

import pytest

from routing.events import OriginateRoute, SendPacket
from routing.tlv import Hello, Tlv, Update
from tests.routing.chart import Chart


def _sent(chart: Chart, seconds: float) -> list[tuple[float, str, Tlv]]:
    """What leaves from now on: when, on which interface."""
    chart.outputs.clear()
    found: list[tuple[float, str, Tlv]] = []
    end = chart.now + seconds
    while (deadline := chart.speaker.next_deadline()) is not None and deadline <= end:
        chart.wait(deadline - chart.now)
        found += [(chart.now, packet.interface, tlv) for packet in chart.take(SendPacket) for tlv in packet.tlvs]
    return found


def _hellos(chart: Chart, seconds: float) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"a": [], "b": [], "c": []}
    for at, interface, tlv in _sent(chart, seconds):
        if isinstance(tlv, Hello):
            times[interface].append(at)
    return times


@pytest.mark.parametrize("seed", range(5))
def test_hellos_on_several_interfaces_leave_together_and_no_more_often(seed: int) -> None:
    chart = Chart(seed=seed)
    for name in ("a", "b", "c"):
        chart.up(name)
        chart.wait(1.7)
    chart.wait(15.0)
    times = _hellos(chart, 400.0)
    assert times["a"] == times["b"] == times["c"]
    intervals = [after - before for before, after in pairwise(times["a"])]
    assert 3.6 <= min(intervals) < 3.7 and 3.9 < max(intervals) <= 4.0


def test_an_interface_whose_hello_left_out_of_turn_falls_in_again() -> None:
    chart = Chart()
    for name in ("a", "b"):
        chart.up(name)
        chart.hello(name, interval_cs=60000)
    chart.wait(20.0)
    chart.wait(chart.speaker._state.interfaces["a"].hello_at - chart.now - 1.5)
    chart.up("b", cost=200)  # which is said at once
    assert chart.sent(Hello, "b")
    times = _hellos(chart, 30.0)
    assert times["a"][1:] == times["b"][-len(times["a"]) + 1 :]
    assert all(1.9 <= after - before <= 4.0 for before, after in pairwise(times["b"]))


def test_a_speaker_that_behaves_as_babeld_says_each_hello_for_itself() -> None:
    chart = Chart(is_eager=False)
    chart.up("a")
    chart.up("b")
    chart.wait(20.0)
    times = _hellos(chart, 60.0)
    assert times["a"] and not set(times["a"]) & set(times["b"])


@pytest.mark.parametrize(("interval", "share"), [(16.0, 0.8), (10.0, 0.0)])
@pytest.mark.parametrize("seed", range(5))
def test_full_updates_leave_with_a_hello_where_one_comes_and_no_more_often(
    seed: int, interval: float, share: float
) -> None:
    chart = Chart(seed=seed, update_interval=interval)
    chart.feed(OriginateRoute(IPv6Network("fd01::/64")))
    chart.up("a")
    chart.hello("a", interval_cs=60000)
    chart.wait(40.0)
    sent = _sent(chart, 400.0)
    hellos = {at for at, _, tlv in sent if isinstance(tlv, Hello)}
    updates = [at for at, _, tlv in sent if isinstance(tlv, Update)]
    assert sum(at in hellos for at in updates) >= share * len(updates)
    assert all(0.88 * interval <= after - before <= interval for before, after in pairwise(updates))
    assert 400 / interval - 1 <= len(updates) <= 400 / (0.94 * interval) + 1
