"""Section 3.5.4: what is for a retracted prefix is refused until no neighbour can rely on us any more."""

from __future__ import annotations

from ipaddress import IPv6Network

import pytest

from routing.events import (
    BlockRoute,
    InterfaceDown,
    OriginateRoute,
    RemoveRoute,
    SetFee,
    Shutdown,
    WithdrawRoute,
)
from routing.rules import PRICE_NOT_FOR_SALE
from routing.tlv import Update
from tests.routing.chart import DESTINATION, Chart, installed, update

INFINITY = 65535
HOLD = 3.5 * 16.0  # a neighbour that missed every retraction has let our route expire


def announced(**config: object) -> Chart:
    """The route through a has been announced to b."""
    chart = Chart(**config)
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(0.1)
    assert [u.metric for u in chart.sent(Update, "b")] == [196]
    chart.outputs.clear()
    return chart


def test_a_lost_route_is_blocked_until_neighbours_have_let_it_expire() -> None:
    chart = announced()
    chart.hear("a", update(INFINITY))
    assert chart.route_changes() == [BlockRoute(DESTINATION)]
    chart.hear("a", update(INFINITY))
    chart.wait(HOLD - 0.1)
    assert chart.route_changes() == [BlockRoute(DESTINATION)]
    chart.wait(1.2)
    assert chart.route_changes() == [BlockRoute(DESTINATION), RemoveRoute(DESTINATION)]
    chart.wait(1000.0)
    assert chart.take(RemoveRoute) == [RemoveRoute(DESTINATION)]
    assert chart.speaker._state.prefixes == {}


def test_an_expired_route_is_blocked_too() -> None:
    chart = announced()
    chart.wait(60.0)
    assert chart.route_changes() == [BlockRoute(DESTINATION)]


def test_a_route_that_nobody_heard_of_is_just_removed() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.hear("a", update(INFINITY))
    assert chart.route_changes() == [installed("a", 196), RemoveRoute(DESTINATION)]


def test_nothing_is_shorter_than_a_default_route() -> None:
    default = IPv6Network("::/0")
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100, prefix=default))
    chart.wait(0.1)
    chart.hear("a", update(INFINITY, prefix=default))
    assert chart.route_changes() == [installed("a", 196, prefix=default), RemoveRoute(default)]


def test_a_new_route_ends_the_block() -> None:
    chart = announced()
    chart.hear("a", update(INFINITY))
    chart.hear("b", update(50))
    assert chart.route_changes() == [BlockRoute(DESTINATION), installed("b", 146)]
    chart.wait(HOLD - 3.0)
    assert RemoveRoute(DESTINATION) not in chart.outputs


def test_whoever_missed_the_retraction_is_thought_of_when_the_next_route_is_lost_at_once() -> None:
    chart = announced()
    for _ in range(2):
        chart.hear("a", update(INFINITY))
        chart.hear("a", update(100, seqno=2))
    chart.hear("a", update(INFINITY))
    assert [type(change) for change in chart.route_changes()][-1] is BlockRoute


def test_our_own_prefix_is_blocked_when_withdrawn_and_not_while_it_is_ours() -> None:
    chart = Chart()
    chart.feed(OriginateRoute(DESTINATION))
    chart.meet("b")
    chart.feed(WithdrawRoute(DESTINATION))
    assert chart.route_changes() == [BlockRoute(DESTINATION)]
    chart.feed(OriginateRoute(DESTINATION))
    assert chart.route_changes() == [BlockRoute(DESTINATION), RemoveRoute(DESTINATION)]


def test_a_route_that_is_not_announced_any_more_still_counts_for_a_while() -> None:
    chart = announced()
    chart.feed(SetFee(PRICE_NOT_FOR_SALE))
    assert [u.metric for u in chart.sent(Update, "b")] == [INFINITY]
    chart.hear("a", update(INFINITY))
    assert chart.route_changes() == [BlockRoute(DESTINATION)]


@pytest.mark.parametrize(("pause", "change"), [(1.0, BlockRoute), (HOLD + 1.0, RemoveRoute)])
def test_an_interface_that_went_down_had_neighbours(pause: float, change: type) -> None:
    """The other end need not have noticed."""
    chart = announced()
    chart.feed(InterfaceDown("b"))
    chart.hear("a", update(101))
    chart.wait(pause / 2)
    chart.hear("a", update(100, seqno=3))
    chart.wait(pause / 2)
    chart.hear("a", update(INFINITY))
    assert [type(c) for c in chart.route_changes()] == [change]


def test_a_shutdown_leaves_no_block() -> None:
    chart = announced()
    chart.feed(Shutdown())
    assert chart.route_changes()[-1] == RemoveRoute(DESTINATION)
    chart.wait(1000.0)
    assert len(chart.take(RemoveRoute)) == 1
