"""The speaker and prices, as message charts."""

from __future__ import annotations

from ipaddress import IPv6Network

import pytest

from routing.events import AnnouncedPrice, LearnedPrice, OriginateRoute, SetFee, SetPolicy
from routing.filters import Policy
from routing.rules import PRICE_NOT_FOR_SALE
from routing.speaker import RouteView
from routing.tlv import Update
from tests.routing.chart import DESTINATION, Chart, installed, peer_address, update

OWN = IPv6Network("fd01::/64")
INFINITY = 65535


def test_our_price_is_that_of_the_next_hop_and_our_fee() -> None:
    chart = Chart(fee_msat_per_gb=500_000)
    chart.meet("a", "b")
    chart.hear("a", update(100, price=1_000_000))
    assert chart.take(LearnedPrice) == [LearnedPrice("a", peer_address("a"), DESTINATION, 1_000_000)]
    assert chart.take(AnnouncedPrice) == [AnnouncedPrice(DESTINATION, 1_500_000)]
    assert chart.speaker.announced_price(DESTINATION) == 1_500_000
    chart.wait(0.1)
    (announced,) = chart.sent(Update, "b")
    assert (announced.metric, announced.price_msat_per_gb) == (100 + 96 + 128, 1_500_000)


def test_a_new_fee_is_told_at_once_and_only_where_we_relay() -> None:
    chart = Chart()
    chart.feed(OriginateRoute(OWN))
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(0.1)
    chart.outputs.clear()
    chart.feed(SetFee(1_000_000))
    assert chart.take(AnnouncedPrice) == [AnnouncedPrice(DESTINATION, 1_000_000)]
    chart.wait(0.02)
    (announced,) = chart.sent(Update)
    assert (announced.prefix, announced.metric, announced.price_msat_per_gb) == (DESTINATION, 452, 1_000_000)


def test_who_carries_for_nobody_announces_only_its_own() -> None:
    chart = Chart()
    chart.feed(OriginateRoute(OWN))
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(0.1)
    chart.outputs.clear()
    chart.feed(SetFee(PRICE_NOT_FOR_SALE))
    assert [(u.prefix, u.metric) for u in chart.sent(Update, "b")] == [(DESTINATION, INFINITY)]
    assert chart.speaker.selected(DESTINATION) is not None
    assert chart.speaker.announced_price(DESTINATION) is None
    assert chart.speaker.announced_price(OWN) == 0


def test_routes_above_the_maximum_price_or_not_for_sale_are_not_taken() -> None:
    chart = Chart(price_max_msat_per_gb=1_000_000)
    chart.meet("a", "b")
    chart.hear("a", update(0, price=1_000_001))
    chart.hear("b", update(0, price=PRICE_NOT_FOR_SALE))
    assert chart.route_changes() == []
    chart.hear("a", update(0, price=1_000_000))
    assert chart.route_changes() == [installed("a", 96, 1_000_000)]


def test_the_maximum_price_may_change_at_any_time() -> None:
    chart = Chart(price_max_msat_per_gb=1_000_000)
    chart.meet("a", "b")
    chart.hear("a", update(0, price=500_000))
    chart.hear("b", update(900, price=0))
    assert chart.route_changes() == [installed("a", 96, 500_000)]
    chart.feed(SetPolicy(Policy(price_max_msat_per_gb=499_999)))
    assert chart.route_changes()[1:] == [installed("b", 996, 0)]
    chart.feed(SetPolicy(Policy(price_max_msat_per_gb=2_000_000)))
    assert chart.route_changes()[2:] == [installed("a", 96, 500_000)]
    chart.hear("a", update(0, price=1_000_001))  # above what the configuration says
    assert chart.route_changes()[-1] == installed("b", 996, 0)


def settled(seed: int = 1, **config: object) -> Chart:
    """A buyer of a at 4 sat/MB, which could have b for the same, and 1 more of metric."""
    chart = Chart(seed=seed, update_interval=600.0, **config)
    chart.meet("a", "b")
    chart.hear("a", update(1000, price=4_000_000, interval_cs=60_000))
    chart.hear("b", update(1001, price=4_000_000, interval_cs=60_000))
    chart.wait(11.0)
    chart.outputs.clear()
    return chart


def ask(chart: Chart, peer: str, percent: int) -> None:
    """What the peer's price has become, of 4 sat/MB. Its metric follows (1024 for 4 sat/MB)."""
    metric = 1000 + (peer == "b") + 1024 * (percent - 100) // 100
    chart.hear(peer, update(metric, price=40_000 * percent, interval_cs=60_000))


@pytest.mark.parametrize("is_unchanged", [True, False])
def test_a_small_price_move_is_followed_if_it_lasts_unchanged(is_unchanged: bool) -> None:
    chart = settled()
    ask(chart, "b", 95)
    chart.wait(60.0)
    assert chart.route_changes() == []
    for turn in range(40):
        ask(chart, "a", 100)
        ask(chart, "b", 95 if is_unchanged else 91 + 4 * turn % 9)
        chart.hello("a", interval_cs=60000)
        chart.hello("b", interval_cs=60000)
        chart.wait(7.0)
    assert chart.route_changes() == ([installed("b", 1001 + 96 - 52, 3_800_000)] if is_unchanged else [])


@pytest.mark.parametrize("seed", range(5))
def test_a_large_price_move_is_followed_at_once(seed: int) -> None:
    chart = settled(seed)
    ask(chart, "a", 205)
    assert chart.route_changes() == [installed("b", 1097, 4_000_000)]


def test_without_hysteresis_every_price_move_is_followed_at_once() -> None:
    for config in ({"sticky_fraction": 0.0}, {"sticky_timeout": 0.0}):
        chart = settled(**config)
        ask(chart, "b", 99)
        assert chart.route_changes() == [installed("b", 1001 + 96 - 11, 3_960_000)]


def test_buyers_leave_a_seller_one_after_the_other_while_its_price_rises() -> None:
    """Were it all at once, they would flap between two equal sellers."""
    charts = [settled(seed) for seed in range(40)]
    left = []
    for percent in (105, 110, 120, 140, 160, 180, 210):
        for chart in charts:
            ask(chart, "a", percent)
        left.append(sum(route.address == peer_address("b") for route in map(selected, charts)))
    assert left[:2] == [0, 0]
    assert left[2] < 10 <= left[3] < left[4] < left[5] < left[6] == 40
    assert left[3] < 35


def selected(chart: Chart) -> RouteView:
    route = chart.speaker.selected(DESTINATION)
    assert route is not None
    return route


def test_a_price_is_told_even_if_nothing_else_changes() -> None:
    chart = Chart(price_weight=0.0)
    chart.meet("a", "b")
    chart.hear("a", update(100, price=10))
    chart.wait(20.0)
    chart.outputs.clear()
    chart.hear("a", update(100, price=11))
    chart.wait(0.02)
    (announced,) = chart.sent(Update, "b")
    assert announced.price_msat_per_gb == 11
