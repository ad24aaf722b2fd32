"""No storm (babeld #8): many neighbours on one broadcast link, and tables that need many packets."""

from __future__ import annotations

from routing.announcer import BURST_PACKETS
from routing.events import OriginateRoute
from routing.tlv import Hello, Ihu, RouteRequest, Update
from tests.routing.chart import OUR_ADDRESS, Chart, update
from tests.routing.segment import Segment, address, prefix_of

INFINITY = 65535


def test_on_a_link_of_many_packets_grow_with_their_number_not_with_its_square() -> None:
    count = 24
    segment = Segment(count)
    for node in range(count):
        segment.up(node)
    segment.run(5.0)
    for node in range(count):
        expected = {prefix_of(other): address(other) for other in range(count) if other != node}
        assert segment.routes[node] == expected
    assert segment.packets <= 12 * count
    segment.clear_counts()
    segment.down(0)
    segment.run(0.01)
    segment.up(0)
    segment.run(3.0)
    assert len(segment.routes[0]) == count - 1
    assert segment.packets <= 6 * count


def test_a_large_table_leaves_in_bursts_that_any_queue_holds() -> None:
    segment = Segment(2)
    for number in range(1, 3000):
        segment.feed(0, OriginateRoute(prefix_of(0, number)))
    segment.up(0)
    segment.up(1)
    segment.run(3.0)
    assert len(segment.routes[1]) == 3000
    assert segment.burst == BURST_PACKETS


def table(chart: Chart, size: int) -> None:
    for number in range(size):
        chart.hear("a", update(100, prefix=prefix_of(1, number)))
    chart.wait(20.0)
    chart.outputs.clear()


def test_what_changes_while_a_full_update_is_leaving_is_sent_first_and_once() -> None:
    chart = Chart()
    chart.meet("a", "b")
    table(chart, 600)
    chart.hear("b", RouteRequest(None))
    chart.hear("a", update(INFINITY, prefix=prefix_of(1, 599)))
    chart.wait(0.2)
    sent = chart.sent(Update, "b")
    metrics = [u.metric for u in sent if u.prefix == prefix_of(1, 599)]
    assert metrics == [INFINITY]
    assert sent[-1].prefix != prefix_of(1, 599)
    assert {u.prefix for u in sent} == {prefix_of(1, number) for number in range(600)}
    assert len(sent) == 600


def test_a_full_update_for_one_of_several_neighbours_leaves_in_bursts_too() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.interface_of["c"] = "b"
    chart.hear("c", Hello(1, 60000), Ihu(96, 60000, OUR_ADDRESS))
    table(chart, 600)
    chart.hear("c", *[RouteRequest(None)] * 100)
    first = len(chart.sent(Update, "b"))
    chart.wait(1.5)
    assert 0 < first < 600
    assert first + len(chart.sent(Update, "b")) == 600  # the other 99 get the same one
