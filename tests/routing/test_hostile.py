"""What one neighbour can cost us and the rest of the mesh is bounded, counted, and never a loop."""

from __future__ import annotations

import random
from ipaddress import IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from routing import budget
from routing.announcer import Announcer
from routing.events import (
    BlockRoute,
    InstallRoute,
    NeighbourDown,
    NeighbourUp,
    OriginateRoute,
    ReceivedPacket,
    RemoveRoute,
    SendPacket,
)
from routing.neighbourhood import NEWCOMERS_RATE
from routing.tlv import Ack, AckRequest, Hello, Ihu, RouteRequest, SeqnoRequest, Tlv, Update, WildcardRetraction
from tests.routing import strategies
from tests.routing.chart import DESTINATION, OUR_ADDRESS, SOURCE_ID, Chart, installed, peer_address, update

INFINITY = 65535
SECONDS = 100.0


def refused(chart: Chart, peer: str) -> int:
    (view,) = [n for n in chart.speaker.neighbours() if n.address == peer_address(peer)]
    return view.refused_count


@pytest.mark.parametrize("what", ["price", "metric", "router-id", "seqno", "retraction"])
def test_a_flapping_route_costs_the_mesh_one_update_in_two_seconds(what: str) -> None:
    chart = Chart(update_interval=600.0)
    chart.meet("a", "b", "c")
    rng = random.Random(1)
    for n in range(int(50 * SECONDS)):
        flapping = {
            "price": update(100, price=rng.randrange(1, 10**9)),
            "metric": update(rng.randrange(50, 5000)),
            "router-id": update(100, router_id=bytes([65 + n % 20]) * 8),
            "seqno": update(100, seqno=n % 2**16),
            "retraction": update(100 if n % 2 else INFINITY),
        }
        chart.hear("a", flapping[what])
        chart.wait(0.02)
    taken = budget.FLAPS_BURST + budget.FLAPS_RATE * SECONDS + 1
    changes = [o for o in chart.outputs if isinstance(o, InstallRoute | BlockRoute | RemoveRoute)]
    assert len(changes) <= 2 * taken
    sent = chart.sent(Update, "c")
    assert len(sent) <= 6 * taken  # a retraction before each, and again what c never acknowledges
    assert refused(chart, "a") > 1000 and refused(chart, "b") == 0
    assert chart.speaker.counters()["update_limit"] == refused(chart, "a")


def test_when_the_flapping_ends_the_last_word_is_asked_for() -> None:
    chart = Chart()
    chart.meet("a", "b")
    for n in range(30):
        chart.hear("a", update(1000 - n, seqno=2))
    view = chart.speaker.selected(DESTINATION)
    assert view is not None and view.advertised_metric == 1000 - budget.FLAPS_BURST + 1
    chart.outputs.clear()
    chart.wait(budget.ASK_INTERVAL)
    assert chart.sent(RouteRequest, "a") == [RouteRequest(DESTINATION)]
    chart.hear("a", update(971, seqno=2))
    view = chart.speaker.selected(DESTINATION)
    assert view is not None and view.advertised_metric == 971


def test_a_retraction_is_always_taken() -> None:
    chart = Chart()
    chart.meet("a", "b")
    for n in range(100):
        chart.hear("a", update(1000 + n))
    chart.hear("b", update(2000))
    chart.outputs.clear()
    chart.hear("a", update(INFINITY))
    assert chart.route_changes() == [installed("b", 2096)]


def test_one_flapping_route_does_not_touch_the_others() -> None:
    chart = Chart()
    chart.meet("a", "b")
    for n in range(1000):
        chart.hear("a", update(1000 + n))
    other = IPv6Network("fd77::/64")
    chart.hear("a", update(100, prefix=other))
    assert chart.speaker.selected(other) is not None


def test_a_flood_of_new_prefixes_is_bounded_also_over_time() -> None:
    chart = Chart(max_routes_per_neighbour=200)
    chart.meet("a", "b")
    most = 0
    for n in range(6000):
        prefix = IPv6Network((0xFD << 120 | n, 128))
        chart.hear("a", update(100, prefix=prefix), update(INFINITY, prefix=prefix))
        if n % 100 == 0:
            chart.wait(2.0)
        most = max(most, len(chart.speaker._state.prefixes))
    assert most <= 200 + (budget.CHANGES_RATE + 1) * 120
    assert len(chart.speaker._state.interfaces["a"].neighbours[peer_address("a")].budget.flaps) <= 4 * budget.FLAPS_KEPT


def test_all_neighbours_together_fill_no_more_than_the_table() -> None:
    chart = Chart(max_prefixes=50)
    chart.meet("a", "b")
    for n in range(40):
        for peer in ("a", "b"):
            chart.hear(peer, update(100, prefix=IPv6Network((0xFD << 120 | ord(peer) << 32 | n, 128))))
    assert len(chart.speaker.routes()) == 50
    assert chart.speaker.counters()["prefix_limit"] == 30


@pytest.mark.parametrize(
    "request_",
    [RouteRequest(DESTINATION), RouteRequest(IPv6Network("fd66::/64")), AckRequest(7, 10)],
)
def test_requests_are_answered_up_to_a_rate(request_: Tlv) -> None:
    chart = Chart(update_interval=600.0)
    chart.meet("a", "b")
    chart.hear("b", update(100))
    chart.wait(1.0)
    chart.outputs.clear()
    for _ in range(100):
        chart.hear("a", *[request_] * 100)
        chart.wait(0.1)
    answers = [t for p in chart.take(SendPacket) if p.interface == "a" for t in p.tlvs if isinstance(t, Update | Ack)]
    assert len(answers) <= budget.REPLIES_BURST + budget.REPLIES_RATE * 10 + 1
    assert refused(chart, "a") >= 100 * 100 - len(answers) - 1


def test_requests_for_the_whole_table_get_one_a_second() -> None:
    chart = Chart(update_interval=600.0)
    chart.meet("a", "b")
    chart.hear("b", update(100))
    chart.wait(1.0)
    chart.outputs.clear()
    for _ in range(100):
        chart.hear("a", *[RouteRequest(None)] * 100)
        chart.wait(0.1)
    assert 10 <= len(chart.sent(Update, "a")) <= 11


def test_a_dump_that_has_to_wait_twice_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    """For its own interval, and then for a neighbour on the same link that asked just before (found by tools/prove)."""
    chart = Chart()
    chart.feed(OriginateRoute(DESTINATION))
    chart.interface_of = {"b": "a"}
    chart.meet("a")
    chart.hello("b", interval_cs=60000)
    chart.wait(5.0)
    asked = 0
    request_dump = Announcer.request_dump

    def count(*arguments: Any, **options: Any) -> None:
        nonlocal asked
        asked += 1
        assert asked < 20, "asked for the same dump for ever"
        request_dump(*arguments, **options)

    monkeypatch.setattr(Announcer, "request_dump", count)
    chart.hear("a", RouteRequest(None))
    chart.wait(0.5)
    chart.hear("a", RouteRequest(None))  # 1 s after its last one
    chart.wait(0.4)
    chart.hear("b", RouteRequest(None))  # and 0.2 s after this
    chart.outputs.clear()
    chart.wait(0.15)
    assert not [packet for packet in chart.take(SendPacket) if packet.destination == peer_address("a")]
    chart.wait(0.15)
    assert [packet for packet in chart.take(SendPacket) if packet.destination == peer_address("a")]


def test_seqno_requests_are_passed_on_up_to_a_rate() -> None:
    chart = Chart(update_interval=600.0)
    chart.meet("a", "b")
    prefixes = [IPv6Network((0xFD << 120 | n, 128)) for n in range(100)]
    chart.hear("b", *(update(100, prefix=prefix) for prefix in prefixes))
    chart.wait(1.0)
    chart.outputs.clear()
    for n in range(100):
        chart.hear("a", *(SeqnoRequest(prefix, 2 + n, 64, SOURCE_ID) for prefix in prefixes))
        chart.wait(0.1)
    passed = chart.sent(SeqnoRequest, "b")
    assert len(passed) <= 3 * (budget.REQUESTS_BURST + budget.REQUESTS_RATE * 10)
    assert chart.speaker.counters()["seqno_request_limit"] > 5000


def test_seqno_requests_for_ourselves_raise_our_seqno_at_most_ten_times_a_second() -> None:
    chart = Chart(update_interval=600.0)
    chart.meet("a")
    chart.feed(OriginateRoute(DESTINATION))
    chart.hear("a", SeqnoRequest(DESTINATION, 1, 64, chart.speaker.config.router_id))
    before = chart.speaker.seqno
    for _ in range(200):
        chart.hear("a", SeqnoRequest(DESTINATION, (chart.speaker.seqno + 1) & 0xFFFF, 64, b"ourselfs"))
        chart.wait(0.01)
    assert (chart.speaker.seqno - before) & 0xFFFF <= 21


def test_hellos_from_many_addresses_make_neighbours_at_a_bounded_rate() -> None:
    most = 32
    chart = Chart(max_neighbours_per_interface=most)
    chart.up("a")
    for n in range(5000):
        source = IPv6Address(0xFE80 << 112 | n + 10)
        chart.feed(ReceivedPacket("a", source, (Hello(1, 1), Ihu(96, 1, OUR_ADDRESS))))
        chart.wait(0.01)
    assert len(chart.take(NeighbourUp)) <= most + NEWCOMERS_RATE * 51
    assert len(chart.speaker._state.interfaces["a"].budgets) <= 2 * most
    assert chart.speaker.counters()["newcomer_limit"] > 1000


def test_hello_seqnos_that_leap_make_one_restart_a_second() -> None:
    chart = Chart()
    chart.meet("a", "b")
    for n in range(1000):
        chart.hear("a", Hello(n * 1000 % 65536, 400), update(1000 + n))
        chart.wait(0.01)
    assert len(chart.take(NeighbourDown)) <= 11
    assert chart.speaker.counters()["restart_limit"] >= 900
    assert refused(chart, "a") > 900  # a restart is no new budget


def test_an_ihu_that_says_something_else_each_time_is_not_listened_to_each_time() -> None:
    chart = Chart(update_interval=600.0)
    chart.meet("a", "b")
    chart.hear("a", *(update(100, prefix=IPv6Network((0xFD << 120 | n, 128))) for n in range(20)))
    chart.wait(15.0)
    chart.outputs.clear()
    for n in range(2000):
        chart.hear("a", Ihu(96 + n % 2 * 900, 60000, OUR_ADDRESS))
        chart.wait(0.01)
    taken = budget.COSTS_BURST + budget.COSTS_RATE * 20 + 1
    assert len(chart.sent(Update, "b")) <= 20 * 2 * taken
    assert chart.speaker.counters()["ihu_limit"] > 900


def test_wildcard_retractions_of_nothing_cost_nothing() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("b", update(100))
    chart.outputs.clear()
    chart.hear("a", *[WildcardRetraction()] * 300)
    chart.wait(0.1)
    assert [o for o in chart.outputs if not isinstance(o, SendPacket)] == []


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.lists(strategies.tlvs, max_size=8), st.floats(0.0, 3.0)), max_size=20))
def test_whatever_a_neighbour_says_the_other_routes_stay(conversation: list[tuple[list[Tlv], float]]) -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("b", update(0))
    chart.wait(0.1)
    for tlvs, pause in conversation:
        chart.hear("a", *(tlv for tlv in tlvs if getattr(tlv, "prefix", None) != DESTINATION))
        chart.wait(pause)
        if not int(chart.now) % 4:
            chart.hear("b", update(0))
    view = chart.speaker.selected(DESTINATION)
    assert view is not None and view.address == peer_address("b")
