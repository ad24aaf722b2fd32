"""IPv4 prefixes: v4-via-v6 (RFC 9229), and IPv4 next hops."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from routing.events import InstallRoute, InterfaceUp, OriginateRoute, RemoveRoute
from routing.tlv import RouteRequest, Update
from tests.routing.chart import OUR_ADDRESS, SOURCE_ID, Chart, peer_address

PREFIX = IPv4Network("192.0.2.0/24")
OURS = IPv4Network("198.51.100.0/24")
OUR_ADDRESS4 = IPv4Address("10.1.0.1")
THEIR_ADDRESS4 = IPv4Address("10.1.0.2")


def announced(next_hop: IPv4Address | None, metric: int = 0) -> Update:
    return Update(PREFIX, metric, 1, 1600, SOURCE_ID, next_hop)


def dual_stack_chart() -> Chart:
    chart = Chart()
    chart.meet("a")
    chart.feed(InterfaceUp("a", OUR_ADDRESS, address4=OUR_ADDRESS4))
    return chart


def test_an_announced_ipv4_next_hop_is_used_also_without_an_address_of_our_own() -> None:
    chart = Chart()
    chart.meet("a")
    chart.hear("a", announced(THEIR_ADDRESS4))
    assert chart.route_changes() == [InstallRoute(PREFIX, "a", THEIR_ADDRESS4, 96, 0)]
    (view,) = chart.speaker.routes()
    assert (view.next_hop, view.address) == (THEIR_ADDRESS4, peer_address("a"))


def test_another_next_hop_of_the_same_neighbour_replaces_the_route() -> None:
    chart = dual_stack_chart()
    chart.hear("a", announced(None))
    chart.hear("a", announced(THEIR_ADDRESS4))
    chart.hear("a", announced(THEIR_ADDRESS4))
    hops = [change.next_hop for change in chart.route_changes() if isinstance(change, InstallRoute)]
    assert hops == [peer_address("a"), THEIR_ADDRESS4]


@pytest.mark.parametrize("bad", ["10.1.0.1", "224.0.0.1", "127.0.0.1", "0.1.2.3", "255.255.255.255"])
def test_a_next_hop_that_cannot_be_one_is_refused(bad: str) -> None:
    chart = dual_stack_chart()
    chart.hear("a", announced(IPv4Address(bad)))
    assert chart.route_changes() == []
    assert chart.speaker.counters() == {"update_ipv4_next_hop": 1}


def test_a_retraction_needs_no_usable_next_hop() -> None:
    chart = dual_stack_chart()
    chart.hear("a", announced(THEIR_ADDRESS4))
    chart.hear("a", announced(OUR_ADDRESS4, metric=65535))
    assert chart.route_changes()[-1] == RemoveRoute(PREFIX)


@pytest.mark.parametrize("address4", [None, OUR_ADDRESS4])
def test_we_are_the_next_hop_by_ipv4_where_we_have_an_address(address4: IPv4Address | None) -> None:
    chart = Chart()
    chart.meet("a")
    chart.feed(InterfaceUp("a", OUR_ADDRESS, address4=address4))
    chart.feed(OriginateRoute(OURS))
    chart.feed(OriginateRoute(IPv6Network("fd01::/64")))
    chart.hear("a", RouteRequest(OURS))
    chart.wait(1)
    said = chart.sent(Update)
    assert {update.next_hop for update in said if update.prefix == OURS} == {address4}
    assert {update.next_hop for update in said if update.prefix != OURS} == {None}


def test_an_address_that_comes_or_goes_is_announced_at_once() -> None:
    chart = Chart()
    chart.feed(OriginateRoute(OURS))
    chart.meet("a")
    chart.wait(2)
    chart.sent(Update)
    for address4 in (OUR_ADDRESS4, None):
        chart.feed(InterfaceUp("a", OUR_ADDRESS, address4=address4))
        assert [update.next_hop for update in chart.sent(Update)] == [address4]
