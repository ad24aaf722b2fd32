"""The speaker, as message charts."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from routing.events import (
    AnnouncedPrice,
    BlockRoute,
    InterfaceDown,
    InterfaceUp,
    LinkKind,
    NeighbourDown,
    NeighbourUp,
    OriginateRoute,
    RemoveRoute,
    SendPacket,
    Shutdown,
    WithdrawRoute,
)
from routing.speaker import SpeakerConfig
from routing.tlv import Ack, AckRequest, Hello, Ihu, RouteRequest, SeqnoRequest, Update, WildcardRetraction
from tests.routing.chart import (
    DESTINATION,
    OUR_ADDRESS,
    OURS,
    SOURCE_ID,
    Chart,
    installed,
    peer_address,
    update,
)

OWN = IPv6Network("fd01::/64")
INFINITY = 65535


# --- neighbours


def test_a_new_neighbour_is_answered_at_once_and_gets_the_whole_table_when_it_hears_us() -> None:
    chart = Chart()
    chart.feed(OriginateRoute(OWN))
    chart.up("a")
    assert [type(tlv) for tlv in chart.sent(Hello)] == [Hello]
    chart.wait(0.1)
    chart.hear("a", Hello(7, 400))
    assert chart.take(NeighbourUp) == [NeighbourUp("a", peer_address("a"))]
    chart.wait(0.0)
    (packet,) = chart.take(SendPacket)
    assert [type(tlv) for tlv in packet.tlvs] == [Hello, Ihu]
    assert Ihu(96, 1200, peer_address("a")) in packet.tlvs
    assert chart.speaker.neighbours()[0].cost == INFINITY
    chart.hear("a", Ihu(128, 1200, OUR_ADDRESS))
    assert [(u.prefix, u.metric, u.router_id) for u in chart.sent(Update)] == [(OWN, 0, OURS)]
    assert chart.speaker.neighbours()[0].cost == 128


def test_a_silent_new_neighbour_is_asked_for_its_routes() -> None:
    chart = Chart()
    chart.up("a")
    chart.hello("a")
    chart.wait(0.5)
    assert chart.sent(RouteRequest) == [RouteRequest(None)]


def test_a_talkative_new_neighbour_is_not() -> None:
    chart = Chart()
    chart.up("a")
    chart.hello("a")
    chart.hear("a", update(0))
    chart.wait(0.5)
    assert chart.sent(RouteRequest) == []


def test_two_of_three_hellos_missed_lose_a_wired_neighbour_and_its_routes() -> None:
    chart = Chart()
    chart.up("a")
    for _ in range(3):
        chart.hello("a")
        chart.wait(4.0)
    chart.hear("a", update(0))
    chart.hello("a")
    chart.wait(9.9, answering="a")
    assert chart.take(NeighbourDown) == []
    chart.take(SendPacket)
    chart.wait(0.2, answering="a")
    assert chart.take(NeighbourDown) == [NeighbourDown("a", peer_address("a"))]
    assert chart.take(RemoveRoute) == [RemoveRoute(DESTINATION)]
    assert chart.sent(Ihu)[-1].rxcost == INFINITY
    assert chart.speaker.routes() == [] and chart.speaker.neighbours() == []


def test_a_neighbour_that_stops_hearing_us_costs_infinity() -> None:
    chart = Chart()
    chart.meet("a")
    chart.hear("a", update(0))
    chart.hear("a", Ihu(INFINITY, 1200, OUR_ADDRESS))
    assert chart.route_changes()[-1] == RemoveRoute(DESTINATION)
    chart.hear("a", Ihu(96, 100, OUR_ADDRESS))
    assert chart.route_changes()[-1] == installed("a", 96)
    chart.wait(3.6)  # 3.5 intervals without another IHU
    assert chart.route_changes()[-1] == RemoveRoute(DESTINATION)


def test_an_ihu_for_somebody_else_says_nothing() -> None:
    chart = Chart()
    chart.up("a")
    chart.hear("a", Hello(1, 400), Ihu(96, 1200, IPv6Address("fe80::77")))
    assert chart.speaker.neighbours()[0].txcost == INFINITY


def test_a_restarted_neighbour_starts_anew() -> None:
    chart = Chart()
    chart.meet("a")
    chart.hear("a", update(0))
    chart.hear("a", Hello(5000, 400))
    assert chart.take(NeighbourDown) == [NeighbourDown("a", peer_address("a"))]
    assert chart.take(NeighbourUp)[-1:] == [NeighbourUp("a", peer_address("a"))]
    assert chart.take(RemoveRoute) == [RemoveRoute(DESTINATION)]


def test_interface_down_drops_everything_and_says_so_elsewhere_at_once() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(0))
    chart.wait(1.0)
    chart.outputs.clear()
    chart.feed(InterfaceDown("a"))
    assert chart.take(BlockRoute) == [BlockRoute(DESTINATION)]
    assert chart.take(NeighbourDown) == [NeighbourDown("a", peer_address("a"))]
    assert chart.take(AnnouncedPrice) == [AnnouncedPrice(DESTINATION, None)]
    assert [(u.prefix, u.metric) for u in chart.sent(Update, "b")] == [(DESTINATION, INFINITY)]


def test_a_shutdown_removes_all_routes_and_retracts_them() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(0))
    chart.outputs.clear()
    chart.feed(Shutdown())
    assert chart.take(RemoveRoute) == [RemoveRoute(DESTINATION)]
    assert chart.sent(WildcardRetraction) == [WildcardRetraction()] * 2
    chart.wait(100.0)
    assert chart.take(SendPacket) == []


def test_the_cost_of_an_interface_can_change_without_losing_a_neighbour() -> None:
    chart = Chart()
    chart.meet("a")
    chart.up("a", cost=500)
    assert chart.sent(Ihu) == [Ihu(500, 1200, peer_address("a"))]
    assert chart.take(NeighbourDown) == []


def test_the_cost_of_a_radio_link_follows_its_losses() -> None:
    chart = Chart()
    chart.up("a", kind=LinkKind.WIRELESS, cost=256)
    for _ in range(8):
        chart.hello("a", txcost=256)
        chart.wait(4.0)
    assert chart.speaker.neighbours()[0].cost == 256
    for _ in range(4):
        chart.hello_seqnos["a"] += 1  # every other one lost
        chart.hello("a", txcost=256)
        chart.wait(8.0, answering="a")
    assert 340 < chart.speaker.neighbours()[0].cost < 512


def test_our_own_packets_and_strangers_are_ignored() -> None:
    chart = Chart()
    chart.up("a")
    chart.outputs.clear()
    chart.hear("a", update(0))
    assert chart.outputs == [] and chart.speaker.routes() == []
    assert chart.speaker.counters() == {"packet_from_stranger": 1}


def test_unicast_hellos_count_too() -> None:
    chart = Chart()
    chart.up("a")
    chart.hear("a", Hello(1, 400, unicast=True), Ihu(96, 1200))
    assert chart.speaker.neighbours()[0].cost == 96


def test_an_acknowledgement_is_given() -> None:
    chart = Chart()
    chart.meet("a")
    chart.hear("a", AckRequest(77, 100))
    (packet,) = chart.take(SendPacket)
    assert packet == SendPacket("a", peer_address("a"), (Ack(77),))


# --- updates and selection


def test_a_route_is_installed_then_announced_within_the_urgent_timeout() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100, seqno=5))
    assert chart.route_changes() == [installed("a", 196)]
    assert chart.sent(Update) == []
    chart.wait(0.02)
    (announced,) = chart.sent(Update)
    assert (announced.metric, announced.seqno, announced.router_id) == (196, 5, SOURCE_ID)


def test_the_better_route_wins_and_a_worse_one_changes_nothing() -> None:
    chart = Chart()
    chart.meet("a", "b", "c")
    chart.hear("a", update(100))
    chart.hear("b", update(50))
    chart.hear("c", update(60))
    assert chart.route_changes() == [installed("a", 196), installed("b", 146)]


def test_a_repeated_update_is_not_repeated_by_us() -> None:
    chart = Chart(update_interval=600.0)
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(1.0)
    chart.outputs.clear()
    chart.hear("a", update(100))
    chart.wait(1.0)
    assert chart.sent(Update) == []


def test_a_newer_state_replaces_a_queued_one() -> None:
    chart = Chart()
    chart.meet("a", "b")
    for metric in (100, 90, 80):
        chart.hear("a", update(metric))
    chart.wait(0.1)
    assert [u.metric for u in chart.sent(Update, "b")] == [176]


def test_split_horizon_on_a_wire() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(0.1)
    assert chart.sent(Update, "a") == []


def test_who_was_told_of_an_earlier_route_hears_that_it_is_gone() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(0.1)
    chart.outputs.clear()
    chart.hear("b", update(0))  # our way now leads through b
    chart.wait(0.1)
    packets = [p for p in chart.outputs if isinstance(p, SendPacket)]
    assert {(p.interface, u.metric) for p in packets for u in p.tlvs if isinstance(u, Update)} == {
        ("a", 96),
        ("b", INFINITY),
    }


def test_a_retraction_is_passed_on_at_once_and_repeated_in_full_updates() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(0.1)
    chart.outputs.clear()
    chart.hear("a", update(INFINITY))
    assert chart.take(BlockRoute) == [BlockRoute(DESTINATION)]
    assert [u.metric for u in chart.sent(Update, "b")] == [INFINITY]
    chart.wait(5.0)
    chart.outputs.clear()  # sent again, as nobody acknowledges it
    chart.wait(12.0)
    assert [u.metric for u in chart.sent(Update, "b")] == [INFINITY]
    chart.wait(300.0)
    chart.outputs.clear()
    chart.wait(17.0)
    assert chart.sent(Update, "b") == []


def test_a_wildcard_retraction_retracts_all() -> None:
    chart = Chart()
    chart.meet("a")
    chart.hear("a", update(100), update(100, prefix=OWN))
    chart.hear("a", WildcardRetraction())
    assert chart.take(RemoveRoute) == [RemoveRoute(DESTINATION), RemoveRoute(OWN)]


def test_a_route_that_is_not_refreshed_is_asked_for_and_then_expires() -> None:
    chart = Chart()
    chart.meet("a")
    chart.hear("a", update(100))
    chart.outputs.clear()
    chart.wait(55.0)
    assert chart.sent(RouteRequest) == [RouteRequest(DESTINATION)]
    assert chart.route_changes() == []
    chart.wait(2.1)  # 3.5 update intervals, and a second of grace
    assert chart.route_changes() == [RemoveRoute(DESTINATION)]


def test_route_requests_are_answered() -> None:
    chart = Chart()
    chart.feed(OriginateRoute(OWN, metric=10))
    chart.meet("a")
    chart.hear("a", RouteRequest(OWN), RouteRequest(DESTINATION))
    assert [(u.prefix, u.metric) for u in chart.sent(Update)] == [(OWN, 10), (DESTINATION, INFINITY)]
    chart.hear("a", RouteRequest(None))
    assert [(u.prefix, u.metric) for u in chart.sent(Update)] == [(OWN, 10)]
    chart.hear("a", RouteRequest(None))  # too soon: a dump is dear
    assert chart.sent(Update) == []
    chart.wait(1.1)
    assert [(u.prefix, u.metric) for u in chart.sent(Update)] == [(OWN, 10)]


def test_full_updates_are_periodic() -> None:
    chart = Chart()
    chart.feed(OriginateRoute(OWN))
    chart.meet("a")
    chart.wait(160.0)
    assert 10 <= len(chart.sent(Update)) <= 12


def test_our_own_prefix_needs_no_route_and_can_be_withdrawn() -> None:
    chart = Chart()
    chart.meet("a")
    chart.hear("a", update(0, prefix=OWN))
    chart.feed(OriginateRoute(OWN))
    assert chart.route_changes() == [installed("a", 96, prefix=OWN), RemoveRoute(OWN)]
    chart.feed(WithdrawRoute(OWN))
    assert chart.route_changes()[-1] == installed("a", 96, prefix=OWN)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Update(DESTINATION, 0, 1, 0, SOURCE_ID), "update_without_interval"),
        (Update(DESTINATION, 0, 1, 1600, bytes(8)), "update_router_id"),
        (Update(DESTINATION, 0, 1, 1600, b"\xff" * 8), "update_router_id"),
        (Update(DESTINATION, 0, 1, 1600, SOURCE_ID, IPv6Address("fe80::99")), "update_third_party_next_hop"),
        (
            Update(IPv4Network("192.0.2.0/24"), 0, 1, 1600, SOURCE_ID, IPv4Address("224.0.0.1")),
            "update_ipv4_next_hop",
        ),
    ],
)
def test_updates_that_are_ignored(bad: Update, reason: str) -> None:
    chart = Chart()
    chart.meet("a")
    chart.hear("a", bad)
    assert chart.route_changes() == [] and chart.speaker.routes() == []
    assert chart.speaker.counters() == {reason: 1}


def test_a_route_back_to_ourselves_is_none() -> None:
    chart = Chart()
    chart.meet("a")
    chart.hear("a", update(100))
    chart.hear("a", update(100, router_id=OURS))
    assert chart.route_changes()[-1] == RemoveRoute(DESTINATION)


def test_tables_are_bounded() -> None:
    chart = Chart(max_routes_per_neighbour=3, max_neighbours_per_interface=2)
    chart.meet("a")
    for i in range(5):
        chart.hear("a", update(0, prefix=IPv6Network((i, 128))))
    for peer in ("b", "c", "d"):
        chart.interface_of[peer] = "a"
        chart.hear(peer, Hello(1, 400))
    assert len(chart.speaker.routes()) == 3 and len(chart.speaker.neighbours()) == 2
    assert chart.speaker.counters() == {"route_limit": 2, "neighbour_limit": 2}


# --- feasibility and seqno requests


def test_an_unfeasible_route_is_not_selected_until_its_seqno_is_new() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(0.1)  # announced: the feasibility distance is 196
    chart.hear("b", update(196))
    chart.outputs.clear()
    chart.hear("a", update(INFINITY))
    assert chart.route_changes() == [BlockRoute(DESTINATION)]
    assert chart.sent(SeqnoRequest, "b") == [SeqnoRequest(DESTINATION, 2, 64, SOURCE_ID)]
    chart.hear("b", update(196, seqno=2))
    assert chart.route_changes()[-1] == installed("b", 292)


def test_a_seqno_request_is_repeated_with_growing_pauses_while_it_is_needed() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(0.1)
    chart.hear("b", update(500))
    chart.hear("a", update(INFINITY))
    chart.outputs.clear()
    chart.wait(10.0)
    assert 3 <= len(chart.sent(SeqnoRequest)) <= 6
    chart.hear("b", update(INFINITY))
    chart.wait(20.0)
    assert chart.sent(SeqnoRequest) == []


def test_a_selected_route_that_becomes_unfeasible_carries_on_while_a_newer_seqno_is_asked_for() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(0.1)
    chart.outputs.clear()
    chart.hear("a", update(900))
    assert chart.route_changes() == []
    assert chart.sent(SeqnoRequest, "a") == [SeqnoRequest(DESTINATION, 2, 64, SOURCE_ID)]
    view = chart.speaker.selected(DESTINATION)
    assert view is not None and view.metric == 996 and not view.is_feasible
    chart.wait(0.1)
    assert [u.metric for u in chart.sent(Update, "b")] == [996]
    chart.hear("a", update(900, seqno=2))
    view = chart.speaker.selected(DESTINATION)
    assert view is not None and view.is_feasible


def test_an_unfeasible_update_from_another_router_unselects_the_route() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100, router_id=b"another1"))
    chart.wait(0.1)
    chart.hear("a", update(100))
    chart.wait(0.1)
    chart.outputs.clear()
    chart.hear("a", update(900, router_id=b"another1"))
    assert chart.route_changes() == [BlockRoute(DESTINATION)]


def test_a_seqno_request_for_ourselves_raises_our_seqno_by_one() -> None:
    chart = Chart(initial_seqno=65535)
    chart.feed(OriginateRoute(OWN))
    chart.meet("a")
    chart.wait(300.0)  # no longer a newcomer that may catch up with its past
    chart.hello("a")
    chart.outputs.clear()
    chart.hear("a", SeqnoRequest(OWN, 40, 64, OURS))
    assert [u.seqno for u in chart.sent(Update)] == [0]
    chart.hear("a", SeqnoRequest(OWN, 0, 64, OURS))
    assert [u.seqno for u in chart.sent(Update)] == [0]


def test_after_a_restart_our_seqno_catches_up_once() -> None:
    chart = Chart(initial_seqno=0)
    chart.feed(OriginateRoute(OWN))
    chart.meet("a")
    chart.hear("a", SeqnoRequest(OWN, 1, 64, OURS))  # of one who knows nothing of the past
    assert [u.seqno for u in chart.sent(Update)] == [1]
    chart.wait(1.0)
    chart.outputs.clear()
    chart.hear("a", SeqnoRequest(OWN, 4711, 64, OURS))
    assert [u.seqno for u in chart.sent(Update)] == [4711]
    chart.wait(1.0)
    chart.outputs.clear()
    chart.hear("a", SeqnoRequest(OWN, 9000, 64, OURS))
    assert [u.seqno for u in chart.sent(Update)] == [4712]


def test_all_our_prefixes_are_announced_with_the_seqno_that_one_of_them_has_raised() -> None:
    """Found by tools/prove: a request was answered with the old seqno, which an update kept ready still had."""
    chart = Chart(initial_seqno=1)
    chart.feed(OriginateRoute(OWN))
    chart.feed(OriginateRoute(DESTINATION))
    chart.meet("a")
    chart.feed(OriginateRoute(DESTINATION, metric=500))
    assert chart.speaker.seqno == 2
    chart.outputs.clear()
    chart.hear("a", SeqnoRequest(OWN, 2, 64, OURS))
    assert [u.seqno for u in chart.sent(Update) if u.prefix == OWN] == [2]
    chart.wait(20.0)
    assert {u.seqno for u in chart.sent(Update)} == {2}


def test_a_seqno_request_is_passed_on_once_and_the_answer_back() -> None:
    chart = Chart()
    chart.meet("a", "b", "c")
    chart.hear("a", update(100))
    chart.wait(0.1)
    chart.outputs.clear()
    request = SeqnoRequest(DESTINATION, 2, 10, SOURCE_ID)
    chart.hear("b", request)
    assert chart.sent(SeqnoRequest) == [SeqnoRequest(DESTINATION, 2, 9, SOURCE_ID)]
    chart.hear("c", request)
    assert chart.sent(SeqnoRequest) == []
    chart.hear("a", update(100, seqno=2))
    packets = [p.interface for p in chart.take(SendPacket)]
    assert sorted(packets) == ["b", "c"]


def test_a_seqno_request_at_its_last_hop_goes_no_further() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.outputs.clear()
    chart.hear("b", SeqnoRequest(DESTINATION, 2, 1, SOURCE_ID), SeqnoRequest(OWN, 2, 10, SOURCE_ID))
    assert chart.sent(SeqnoRequest) == []


# --- housekeeping


def test_nothing_is_left_of_a_prefix_that_is_long_gone() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(1.0)
    chart.hear("a", update(INFINITY))
    chart.wait(500.0)
    assert chart.speaker._state.prefixes == {}


def test_interfaces_that_come_and_go_keep_their_bits_apart() -> None:
    chart = Chart()
    chart.meet("a", "b", "c")
    chart.feed(InterfaceDown("b"))
    chart.up("d")
    bits = [interface.bit for interface in chart.speaker._state.interfaces.values()]
    assert sorted(bits) == [1, 2, 4]


def test_an_interface_with_another_address_is_another_interface() -> None:
    chart = Chart()
    chart.meet("a")
    chart.feed(InterfaceUp("a", IPv6Address("fe80::5")))
    assert chart.take(NeighbourDown) == [NeighbourDown("a", peer_address("a"))]


@pytest.mark.parametrize("router_id", [b"", b"1234567", bytes(8), b"\xff" * 8])
def test_router_ids_that_are_none(router_id: bytes) -> None:
    with pytest.raises(ValueError, match="router_id"):
        SpeakerConfig(router_id=router_id)


def test_a_turn_to_an_equal_route_is_told_to_the_neighbours_on_both_ways() -> None:
    """Split horizon has kept it from the one; for the other it begins. Our metric stays as it was."""
    chart = Chart()
    chart.meet("a", "b", "c")
    chart.hear("a", update(96))
    chart.hear("b", update(96))
    chart.wait(1.0)
    assert chart.route_changes() == [installed("a", 192)]
    chart.outputs.clear()
    chart.hear("a", update(INFINITY))
    chart.wait(0.02)
    assert chart.route_changes() == [installed("b", 192)]
    packets = chart.take(SendPacket)
    told = {packet.interface: [tlv.metric for tlv in packet.tlvs if isinstance(tlv, Update)] for packet in packets}
    assert told == {"a": [192], "b": [INFINITY]}


def test_a_route_that_nobody_gave_a_newer_seqno_is_taken_when_its_feasibility_distance_is_forgotten() -> None:
    """Found by tools/prove: it was feasible then, but nobody looked at it again."""
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(1.0)
    chart.hear("a", update(65535))
    chart.hear("b", update(500))
    chart.wait(1.0)
    assert chart.speaker.selected(DESTINATION) is None
    for _ in range(16):
        chart.wait(16.0)
        chart.hear("b", update(500))
    route = chart.speaker.selected(DESTINATION)
    assert route is not None and route.advertised_metric == 500
