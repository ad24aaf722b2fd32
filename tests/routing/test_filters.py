"""Filters, unpriced routes and modes, as message charts."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest

from routing.config import Mode
from routing.events import AnnouncedPrice, LearnedPrice, OriginateRoute, SendPacket, SetPolicy
from routing.filters import REFUSED, Policy, Rule, added_metric
from routing.tlv import Prefix, RouteRequest, SeqnoRequest, Update
from tests.routing.chart import DESTINATION, SOURCE_ID, Chart, installed, peer_address, update

INFINITY = 65535
OWN = IPv6Network("fd01::/64")
DEFAULT = IPv6Network("::/0")
REFUSE_ALL = (Rule(add_metric=REFUSED),)


def of(prefix: str, *, router_id: bytes = SOURCE_ID) -> Update:
    return Update(ip_network(prefix), 0, 1, 1600, router_id)


def told(chart: Chart) -> dict[tuple[str, Prefix], int]:
    """The last metric of each prefix on each interface since the last look."""
    packets = chart.take(SendPacket)
    return {(p.interface, tlv.prefix): tlv.metric for p in packets for tlv in p.tlvs if isinstance(tlv, Update)}


@pytest.mark.parametrize(
    ("rule", "update", "matches"),
    [
        (Rule(7), of("10.0.0.0/8"), True),
        (Rule(7, prefix=IPv4Network("10.0.0.0/8")), of("10.0.0.0/8"), True),
        (Rule(7, prefix=IPv4Network("10.0.0.0/8")), of("10.1.0.0/16"), True),
        (Rule(7, prefix=IPv4Network("10.0.0.0/8"), length_max=8), of("10.1.0.0/16"), False),
        (Rule(7, prefix=IPv4Network("10.0.0.0/8"), length_min=24, length_max=28), of("10.1.0.0/23"), False),
        (Rule(7, prefix=IPv4Network("10.0.0.0/8"), length_min=24, length_max=28), of("10.1.0.0/24"), True),
        (Rule(7, prefix=IPv4Network("10.0.0.0/8"), length_min=24, length_max=28), of("10.1.0.0/28"), True),
        (Rule(7, prefix=IPv4Network("10.0.0.0/8")), of("11.0.0.0/8"), False),
        (Rule(7, prefix=IPv4Network("10.0.0.0/8")), of("0.0.0.0/0"), False),
        (Rule(7, prefix=IPv4Network("0.0.0.0/0")), of("::/0"), False),
        (Rule(7, prefix=IPv4Network("0.0.0.0/0")), of("10.0.0.0/8"), True),
        (Rule(7, interface="a"), of("::/0"), True),
        (Rule(7, interface="b"), of("::/0"), False),
        (Rule(7, neighbour=peer_address("a")), of("::/0"), True),
        (Rule(7, neighbour=peer_address("b")), of("::/0"), False),
        (Rule(7, router_id=SOURCE_ID), of("::/0"), True),
        (Rule(7, router_id=SOURCE_ID), of("::/0", router_id=b"another1"), False),
        (Rule(7, price_above_msat_per_gb=99), of("::/0"), True),
        (Rule(7, price_above_msat_per_gb=100), of("::/0"), False),
        (Rule(7, interface="a", router_id=b"another1"), of("::/0"), False),
    ],
)
def test_what_a_rule_matches(rule: Rule, update: Update, matches: bool) -> None:
    assert added_metric((rule,), update, 100, "a", peer_address("a")) == (7 if matches else 0)


def test_the_first_rule_that_matches_decides_and_none_shortens() -> None:
    rules = (Rule(5, prefix=IPv4Network("10.0.0.0/8")), Rule(REFUSED + 9), Rule(1))
    assert added_metric(rules, of("10.0.0.0/8"), 0, "a") == 5
    assert added_metric(rules, of("11.0.0.0/8"), 0, "a") == REFUSED
    assert added_metric((Rule(-3),), of("11.0.0.0/8"), 0, "a") == 0


def test_import_refuses_and_makes_longer() -> None:
    chart = Chart(policy=Policy(imports=(Rule(REFUSED, interface="a"), Rule(50, interface="b"))))
    chart.meet("a", "b", "c")
    chart.hear("a", update(0))
    assert chart.route_changes() == []
    chart.hear("b", update(100))
    assert chart.route_changes() == [installed("b", 246)]
    chart.hear("c", update(149))
    assert chart.route_changes()[1:] == [installed("c", 245)]
    by_interface = {route.interface: route for route in chart.speaker.routes()}
    assert by_interface["a"].is_refused and not by_interface["b"].is_refused


def test_a_dearer_link_for_some_does_not_change_the_feasibility_distance_of_what_was_announced() -> None:
    """RFC 8966 section 3.7.3: the distance that we announced has the added metric in it."""
    chart = Chart(policy=Policy(imports=(Rule(50),)))
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(0.1)
    assert [u.metric for u in chart.sent(Update, "b")] == [246]
    chart.hear("b", update(245))
    chart.hear("a", update(INFINITY))
    assert chart.route_changes()[-1] == installed("b", 391)


def test_other_import_filters_move_traffic_in_one_step() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.hear("b", update(101))
    chart.wait(20.0)
    chart.outputs.clear()
    chart.feed(SetPolicy(Policy(imports=(Rule(REFUSED, interface="a"),))))
    assert chart.route_changes() == [installed("b", 197)]
    chart.feed(SetPolicy(Policy(imports=(Rule(REFUSED, interface="b"),))))
    assert chart.route_changes()[1:] == [installed("a", 196)]
    chart.feed(SetPolicy(Policy(imports=(Rule(REFUSED, interface="b"),))))
    assert len(chart.route_changes()) == 2


def test_export_is_by_interface_and_a_change_of_it_is_told_at_once() -> None:
    chart = Chart(policy=Policy(exports=(Rule(REFUSED, interface="b", prefix=DESTINATION),)))
    chart.feed(OriginateRoute(OWN))
    chart.meet("a", "b", "c")
    chart.hear("a", update(100))
    chart.wait(0.1)
    assert told(chart) == {("c", DESTINATION): 196}
    chart.hear("b", RouteRequest(DESTINATION))
    assert [u.metric for u in chart.sent(Update, "b")] == [INFINITY]
    chart.feed(SetPolicy(Policy(exports=(Rule(REFUSED, interface="c"), Rule(30, prefix=DESTINATION)))))
    chart.wait(0.02)
    assert told(chart) == {
        ("a", OWN): 0,
        ("b", OWN): 0,
        ("b", DESTINATION): 226,
        ("c", OWN): INFINITY,
        ("c", DESTINATION): INFINITY,
    }


def test_what_an_export_filter_takes_away_is_said_until_it_is_heard() -> None:
    chart = Chart()
    chart.feed(OriginateRoute(OWN))
    chart.meet("a")
    chart.feed(SetPolicy(Policy(exports=REFUSE_ALL)))
    chart.wait(2.0)
    metrics = [u.metric for u in chart.sent(Update, "a")]
    assert len(metrics) > 1 and set(metrics) == {INFINITY}


def test_the_feasibility_distance_is_what_the_export_filter_let_out() -> None:
    """Section 3.7.3. All that anybody heard is 246: so 245 cannot loop, though our own distance was 196."""
    for added, is_feasible in ((50, True), (49, False)):
        chart = Chart(policy=Policy(exports=(Rule(added),)))
        chart.meet("a", "b")
        chart.hear("a", update(100))
        chart.wait(0.1)
        assert [u.metric for u in chart.sent(Update, "b")] == [196 + added]
        chart.hear("b", update(245))
        chart.hear("a", update(INFINITY))
        assert (chart.speaker.selected(DESTINATION) is not None) is is_feasible


def test_a_longer_export_of_our_own_has_a_new_seqno() -> None:
    chart = Chart()
    chart.feed(OriginateRoute(OWN))
    chart.meet("a")
    seqno = chart.speaker.seqno
    chart.feed(SetPolicy(Policy(exports=(Rule(100),))))
    chart.wait(0.02)
    assert [(u.metric, u.seqno) for u in chart.sent(Update, "a")] == [(100, seqno + 1)]


@pytest.mark.parametrize("mode", [Mode.LEAF, Mode.STUB])
def test_a_leaf_uses_routes_and_tells_nobody(mode: Mode) -> None:
    chart = Chart(mode=mode)
    chart.feed(OriginateRoute(OWN))
    chart.meet("a", "b")
    chart.hear("a", update(100, prefix=DEFAULT))
    assert chart.route_changes() == [installed("a", 196, prefix=DEFAULT)]
    assert chart.take(AnnouncedPrice) == []
    chart.hear("b", RouteRequest(None), RouteRequest(DEFAULT), SeqnoRequest(DEFAULT, 2, 64, SOURCE_ID))
    chart.wait(60.0)
    packets = chart.take(SendPacket)
    assert not any(isinstance(tlv, SeqnoRequest) for packet in packets for tlv in packet.tlvs)
    heard = [tlv for p in packets if p.interface == "b" for tlv in p.tlvs if isinstance(tlv, Update)]
    assert {(u.prefix, u.metric) for u in heard} == {(OWN, 0), (DEFAULT, INFINITY)}
    assert [u.prefix for u in heard].count(DEFAULT) == 1  # the answer to the request


def test_a_leaf_needs_no_feasibility() -> None:
    """Nobody can be led back through who announces nothing: it takes a longer way at once."""
    chart = Chart(mode=Mode.LEAF)
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(1.0)
    chart.hear("b", update(5000))
    chart.hear("a", update(INFINITY))
    assert chart.route_changes()[-1] == installed("b", 5096)
    assert chart.sent(SeqnoRequest) == []


def test_a_stub_remembers_only_what_it_is_for_and_asks_for_that() -> None:
    chart = Chart(mode=Mode.STUB, stub_prefixes=(DEFAULT, OWN))
    chart.up("a")
    chart.hello("a")
    chart.outputs.clear()
    chart.wait(1.0)
    assert chart.sent(RouteRequest) == [RouteRequest(DEFAULT), RouteRequest(OWN)]
    chart.hear("a", update(100), update(100, prefix=DEFAULT))
    assert [route.prefix for route in chart.speaker.routes()] == [DEFAULT]
    assert list(chart.speaker._state.prefixes) == [DEFAULT]


def test_own_prefixes_tell_a_price_of_nothing_and_learned_ones_only_what_they_cost() -> None:
    chart = Chart()
    chart.feed(OriginateRoute(OWN))
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(17.0)
    prices = {u.prefix: u.price_msat_per_gb for u in chart.sent(Update, "b")}
    assert prices == {OWN: 0, DESTINATION: None}


def test_routes_of_who_knows_no_prices_are_refused_until_it_shows_that_it_does() -> None:
    chart = Chart(policy=Policy(unpriced_msat_per_gb=None))
    chart.meet("a", "b")
    chart.hear("a", update(100))
    assert chart.route_changes() == []
    chart.hear("a", update(0, price=0, prefix=OWN))
    assert chart.route_changes() == [installed("a", 196), installed("a", 96, prefix=OWN)]
    chart.feed(SetPolicy(Policy()))
    chart.hear("b", update(10))
    assert chart.route_changes()[2:] == [installed("b", 106)]
    chart.feed(SetPolicy(Policy(unpriced_msat_per_gb=None)))
    assert chart.route_changes()[3:] == [installed("a", 196)]


def test_an_assumed_price_counts_in_metric_and_price_and_is_not_owed() -> None:
    chart = Chart(policy=Policy(unpriced_msat_per_gb=1_000_000), fee_msat_per_gb=500_000)
    chart.meet("a", "b")
    chart.hear("a", update(100))
    assert chart.route_changes() == [installed("a", 100 + 96 + 256, 1_000_000)]
    assert chart.take(LearnedPrice) == [LearnedPrice("a", peer_address("a"), DESTINATION, 0)]
    assert chart.take(AnnouncedPrice) == [AnnouncedPrice(DESTINATION, 1_500_000)]
    chart.hear("b", update(0, price=0, prefix=OWN), update(355))
    assert chart.route_changes()[-1] == installed("b", 451)


def test_an_assumed_price_above_the_maximum_refuses() -> None:
    chart = Chart(policy=Policy(unpriced_msat_per_gb=11), price_max_msat_per_gb=10)
    chart.meet("a")
    chart.hear("a", update(100))
    assert chart.route_changes() == []


def test_small_price_moves_are_not_urgent_and_large_ones_are() -> None:
    chart = Chart(price_weight=0.0)
    chart.meet("a", "b")
    chart.hear("a", update(100, price=1000))
    chart.wait(20.0)
    chart.outputs.clear()
    chart.hear("a", update(100, price=1099))
    assert chart.take(AnnouncedPrice) == [AnnouncedPrice(DESTINATION, 1099)]
    chart.wait(0.9)
    assert chart.sent(Update, "b") == []
    chart.wait(1.1)
    small = chart.sent(Update, "b")
    assert {u.price_msat_per_gb for u in small} == {1099}  # again, where nobody has acknowledged it
    chart.hear("a", update(100, price=1209))  # eleven hundredths
    chart.wait(0.02)
    large = chart.sent(Update, "b")
    assert [u.price_msat_per_gb for u in large] == [1209]
    assert large[0].price_epoch == small[0].price_epoch + 1
