"""Source-specific routes (RFC 9079): the sub-TLV, and routes to pairs of prefix and source prefix."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Address, IPv6Network

import pytest

from routing.codec import decode, pack
from routing.events import (
    AnnouncedPrice,
    BlockRoute,
    InstallRoute,
    LearnedPrice,
    OriginateRoute,
    RemoveRoute,
    WithdrawRoute,
)
from routing.tlv import Prefix, RouteRequest, SeqnoRequest, Tlv, Update, WildcardRetraction
from tests.routing.chart import DESTINATION, OURS, SOURCE_ID, Chart, installed, peer_address, update
from tests.routing.test_codec import PREFIX, ROUTER, ROUTER_ID_TLV, SOURCE, UPDATE, packet, read

ANYWHERE = IPv6Network("::/0")
HERE = IPv6Network("2001:db8:1::/48")
THERE = IPv6Network("2001:db8:2::/48")
INFINITY = 65535


def specific(metric: int, source_prefix: Prefix = HERE, **values: int) -> Update:
    return replace(update(metric, **values), source_prefix=source_prefix)  # type: ignore[arg-type]


def specific_installed(peer: str, metric: int, source_prefix: Prefix = HERE, price: int = 0) -> InstallRoute:
    return replace(installed(peer, metric, price), source_prefix=source_prefix)


# The source prefix 2001:db8:1::/48
SUB_TLV = "80 07 30 20010db80001"


@pytest.mark.parametrize(
    ("octets", "tlv"),
    [
        (f"09 11 02 30 fd0100020003 {SUB_TLV}", RouteRequest(PREFIX, HERE)),
        (
            f"0a 1d 02 30 0008 40 00 02005efffe005301 fd0100020003 {SUB_TLV}",
            SeqnoRequest(PREFIX, 8, 64, ROUTER, HERE),
        ),
        ("09 08 01 08 0a 80 03 0c ac10", RouteRequest(IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12"))),
    ],
)
def test_requests(octets: str, tlv: Tlv) -> None:
    assert read(octets) == (tlv,)
    assert pack([tlv], mtu=1500) == [packet(octets)]


def test_the_source_prefix_comes_before_the_price_and_is_read_after_it_too() -> None:
    priced = replace(UPDATE, price_msat_per_gb=1_000_000, price_epoch=5, source_prefix=HERE)
    body = "02 80 30 00 0640 0007 0060 fd0100020003"
    price = "70 06 000f4240 0005"
    assert pack([priced], mtu=1500, source=SOURCE) == [packet(ROUTER_ID_TLV, f"08 21 {body} {SUB_TLV} {price}")]
    assert read(ROUTER_ID_TLV, f"08 21 {body} {SUB_TLV} {price}") == (priced,)
    assert read(ROUTER_ID_TLV, f"08 21 {body} {price} {SUB_TLV}") == (priced,)


def test_the_source_prefix_is_of_the_family_of_the_prefix() -> None:
    via_ipv6 = read(ROUTER_ID_TLV, "08 12 04 00 08 00 0640 0007 0060 0a 80 04 18 c00002 00")
    (said,) = via_ipv6
    assert isinstance(said, Update)
    assert (said.prefix, said.source_prefix) == (IPv4Network("10.0.0.0/8"), IPv4Network("192.0.2.0/24"))
    assert decode(pack(via_ipv6, mtu=1500)[0], source=SOURCE) == via_ipv6


def test_a_prefix_is_compressed_by_the_one_before_and_a_source_prefix_is_not() -> None:
    sent = [replace(UPDATE, source_prefix=HERE), replace(UPDATE, source_prefix=THERE)]
    (octets,) = pack(sent, mtu=1500, source=SOURCE)
    assert decode(octets, source=SOURCE) == tuple(sent)
    assert octets.endswith(bytes.fromhex("08 13 02 80 30 06 0640 0007 0060 80 07 30 20010db80002"))


@pytest.mark.parametrize(
    "sub_tlvs",
    [
        "80 01 00",  # of length 0
        "80 00",  # no length
        "80 03 30 2001",  # shorter than it says
        "80 12 81 20010db8000000000000000000000000 00",  # longer than an address
        f"{SUB_TLV} {SUB_TLV}",
        f"{SUB_TLV} f0 00",  # mandatory, unknown
    ],
)
def test_a_bad_source_prefix_makes_the_tlv_ignored_but_its_state_is_kept(sub_tlvs: str) -> None:
    extra = bytes.fromhex(sub_tlvs)
    length = f"{16 + len(extra):02x}"
    following = "08 0a 02 00 30 06 0640 0007 0060"
    assert read(ROUTER_ID_TLV, f"08 {length} 02 80 30 00 0640 0007 0060 fd0100020003 {sub_tlvs}", following) == (
        UPDATE,
    )
    request = bytes.fromhex("02 30 fd0100020003") + extra
    assert read(f"09 {len(request):02x} {request.hex()}") == ()


def test_a_wildcard_has_no_source_prefix() -> None:
    assert read(f"08 13 00 00 00 00 ffff 0000 ffff {SUB_TLV}", f"09 0b 00 00 {SUB_TLV}") == ()


def test_pairs_with_the_same_prefix_are_routes_of_their_own() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100), specific(200))
    chart.hear("b", specific(50, THERE), specific(300))
    assert chart.route_changes() == [
        installed("a", 196),
        specific_installed("a", 296),
        specific_installed("b", 146, THERE),
    ]
    chart.outputs.clear()
    chart.hear("a", specific(INFINITY))
    assert chart.route_changes() == [specific_installed("b", 396)]
    chart.hear("b", specific(INFINITY))
    assert chart.route_changes()[1:] == [RemoveRoute(DESTINATION, HERE)]
    assert chart.speaker.selected(DESTINATION, HERE) is None
    views = [chart.speaker.selected(DESTINATION), chart.speaker.selected(DESTINATION, THERE)]
    assert [view and (view.interface, view.metric, view.source_prefix) for view in views] == [
        ("a", 196, None),
        ("b", 146, THERE),
    ]


def test_a_wildcard_retraction_ends_them_too() -> None:
    chart = Chart()
    chart.meet("a")
    chart.hear("a", update(100), specific(200))
    chart.outputs.clear()
    chart.hear("a", WildcardRetraction())
    assert chart.route_changes() == [RemoveRoute(DESTINATION), RemoveRoute(DESTINATION, HERE)]


def test_announced_and_retracted_with_the_source_prefix_and_prices() -> None:
    chart = Chart(fee_msat_per_gb=5)
    chart.meet("a", "b")
    chart.hear("a", specific(100, price=7))
    assert chart.take(LearnedPrice) == [LearnedPrice("a", peer_address("a"), DESTINATION, 7, HERE)]
    assert chart.take(AnnouncedPrice) == [AnnouncedPrice(DESTINATION, 12, HERE)]
    assert chart.speaker.announced_price(DESTINATION) is None
    assert chart.speaker.announced_price(DESTINATION, HERE) == 12
    chart.wait(0.1)
    (said,) = chart.sent(Update, "b")
    assert (said.prefix, said.source_prefix, said.metric, said.price_msat_per_gb) == (DESTINATION, HERE, 196, 12)
    chart.outputs.clear()
    chart.hear("a", specific(INFINITY))
    assert chart.take(LearnedPrice) == [LearnedPrice("a", peer_address("a"), DESTINATION, None, HERE)]
    assert chart.take(BlockRoute) == [BlockRoute(DESTINATION, HERE)]
    assert [(u.source_prefix, u.metric) for u in chart.sent(Update, "b")] == [(HERE, INFINITY)]


def test_a_lost_source_specific_default_route_is_blocked_where_a_plain_one_need_not_be() -> None:
    """A plain default route covers the first; nothing covers the second."""
    chart = Chart()
    chart.meet("a", "b")
    for source_prefix in (HERE, None):
        chart.hear("a", replace(update(100), prefix=ANYWHERE, source_prefix=source_prefix))
    chart.wait(0.1)
    chart.outputs.clear()
    chart.hear("a", WildcardRetraction())
    assert chart.route_changes() == [BlockRoute(ANYWHERE, HERE), RemoveRoute(ANYWHERE)]


def test_own_pairs() -> None:
    chart = Chart()
    chart.meet("a")
    chart.feed(OriginateRoute(ANYWHERE, source_prefix=HERE))
    chart.wait(0.1)
    assert [(u.prefix, u.source_prefix, u.metric) for u in chart.sent(Update)] == [(ANYWHERE, HERE, 0)]
    chart.feed(WithdrawRoute(ANYWHERE))
    assert chart.sent(Update) == [], "that pair is not ours"
    chart.feed(WithdrawRoute(ANYWHERE, HERE))
    assert [(u.source_prefix, u.metric) for u in chart.sent(Update)] == [(HERE, INFINITY)]


def test_requests_are_answered_for_the_pair_that_they_name() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.feed(OriginateRoute(DESTINATION, source_prefix=HERE))
    chart.wait(0.1)
    chart.outputs.clear()
    chart.hear("b", RouteRequest(DESTINATION, HERE), RouteRequest(DESTINATION))
    assert [(u.source_prefix, u.metric) for u in chart.sent(Update, "b")] == [(HERE, 0), (None, INFINITY)]
    chart.hear("b", SeqnoRequest(DESTINATION, 1, 64, OURS))
    chart.wait(0.1)
    assert chart.sent(Update) == []
    assert chart.speaker.seqno == 0
    chart.hear("b", SeqnoRequest(DESTINATION, 1, 64, OURS, HERE))
    chart.wait(0.1)
    assert [(u.source_prefix, u.seqno) for u in chart.sent(Update, "b")] == [(HERE, 1)]


def test_feasibility_is_of_the_pair() -> None:
    """The longer way is unfeasible for the pair that was announced at a lower metric, and asked for with it."""
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", specific(100))
    chart.wait(0.1)
    chart.hear("a", specific(INFINITY))
    chart.outputs.clear()
    chart.hear("b", specific(500), update(500))
    assert chart.route_changes() == [installed("b", 596)]
    assert chart.sent(SeqnoRequest, "b") == [SeqnoRequest(DESTINATION, 2, 64, SOURCE_ID, HERE)]


def test_an_expiring_route_is_asked_for_by_its_pair() -> None:
    chart = Chart()
    chart.meet("a")
    chart.hear("a", specific(100))
    chart.wait(55.0)
    assert chart.sent(RouteRequest) == [RouteRequest(DESTINATION, HERE)]


def test_the_number_of_source_prefixes_is_bounded() -> None:
    chart = Chart(max_source_prefixes=2)
    chart.meet("a")
    third = IPv6Network("2001:db8:3::/48")
    chart.hear("a", specific(1), specific(1, THERE), specific(1, third), update(1))
    assert chart.take(InstallRoute) == [
        specific_installed("a", 97),
        specific_installed("a", 97, THERE),
        installed("a", 97),
    ]
    assert chart.speaker.counters()["source_prefix_limit"] == 1
    chart.hear("a", specific(INFINITY))
    chart.wait(300.0)  # the tables forget it
    chart.hear("a", specific(1, third))
    assert chart.take(InstallRoute) == [specific_installed("a", 97, third)]
    assert chart.speaker.selected(DESTINATION, third) is not None


def test_an_ipv4_next_hop_carries_them_too() -> None:
    chart = Chart()
    chart.meet("a")
    prefix, source_prefix = IPv4Network("0.0.0.0/0"), IPv4Network("192.0.2.0/24")
    chart.hear("a", Update(prefix, 10, 1, 1600, SOURCE_ID, peer_address("a"), source_prefix=source_prefix))
    assert chart.route_changes() == [InstallRoute(prefix, "a", IPv6Address(peer_address("a")), 106, 0, source_prefix)]
