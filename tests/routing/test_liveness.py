"""A Hello that is late, and what is done at once to find out why (`routing.liveness`)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing import rules
from routing.delivery import ACK_INTERVAL_CS
from routing.events import (
    BlockRoute,
    InterfaceDown,
    LinkKind,
    NeighbourDown,
    NeighbourUnreachable,
    NeighbourUp,
    RemoveRoute,
    SendPacket,
    TimerExpired,
)
from routing.tlv import Ack, AckRequest, Hello, Ihu
from tests.routing.chart import DESTINATION, Chart, peer_address, update
from tests.routing.harness import Network

DOWN = NeighbourDown("a", peer_address("a"))


def acquainted(*, kind: LinkKind = LinkKind.WIRED, hellos: int = 40, gap: float = 4.0) -> Chart:
    """A neighbour whose Hellos came `gap` seconds apart, the last one just now; it has announced a route."""
    chart = Chart()
    chart.up("a", kind=kind)
    for _ in range(hellos):
        chart.hello("a")
        chart.hear("a", update(0))
        chart.wait(gap)
    chart.hello("a")
    chart.outputs.clear()
    return chart


def test_nothing_is_asked_while_hellos_are_in_time() -> None:
    chart = acquainted()
    for _ in range(20):
        chart.wait(3.9)
        chart.hello("a")
    assert chart.sent(AckRequest) == []


def test_a_neighbour_that_is_late_and_does_not_answer_is_lost_within_a_second() -> None:
    chart = acquainted()
    chart.wait(4.0)
    assert chart.sent(AckRequest) == [] and chart.take(NeighbourDown) == []
    chart.wait(1.2)
    asked = chart.take(SendPacket)
    requests = [(p.destination, tlv) for p in asked for tlv in p.tlvs if isinstance(tlv, AckRequest)]
    assert [destination for destination, _ in requests] == [peer_address("a")] * 3
    assert len({tlv.opaque for _, tlv in requests}) == 3 and {tlv.interval_cs for _, tlv in requests} == {30}
    assert chart.take(NeighbourDown) == [DOWN] and chart.take(RemoveRoute) == [RemoveRoute(DESTINATION)]


def test_an_answer_ends_the_check_until_the_next_hello_is_missed() -> None:
    chart = acquainted()
    chart.wait(4.25)
    assert len(chart.sent(AckRequest)) == 1
    chart.hear("a", Ack(chart.speaker._state.interfaces["a"].neighbours[peer_address("a")].check_opaque))
    chart.wait(3.7)
    assert chart.sent(AckRequest) == [] and chart.take(NeighbourDown) == []
    chart.wait(1.3)  # the second Hello in a row: asked again, and now there is no answer
    assert len(chart.sent(AckRequest)) == 3 and chart.take(NeighbourDown) == [DOWN]
    assert chart.speaker.counters() == {}


def test_a_late_hello_ends_the_check() -> None:
    chart = acquainted()
    chart.wait(4.3)
    chart.hello("a")
    chart.wait(3.9)
    assert len(chart.sent(AckRequest)) == 1 and chart.take(NeighbourDown) == []


def test_what_a_neighbour_is_usually_late_by_is_learned() -> None:
    """babeld sends its Hellos up to a quarter of an interval late."""
    chart = acquainted(gap=4.9)
    chart.outputs.clear()
    chart.wait(4.9)
    assert chart.sent(AckRequest) == []
    chart.wait(1.4)
    assert len(chart.sent(AckRequest)) == 3 and chart.take(NeighbourDown) == [DOWN]


def test_an_unreachable_neighbour_is_asked_at_once() -> None:
    chart = acquainted()
    chart.feed(NeighbourUnreachable("a", peer_address("a")))
    assert len(chart.sent(AckRequest)) == 1
    chart.feed(NeighbourUnreachable("a", peer_address("a")))  # while it is being asked
    chart.wait(1.0)
    assert len(chart.sent(AckRequest)) == 2 and chart.take(NeighbourDown) == [DOWN]


def test_the_kernel_may_be_wrong_about_a_neighbour_and_know_others_than_we_do() -> None:
    chart = acquainted()
    chart.feed(NeighbourUnreachable("a", peer_address("nobody")))
    chart.feed(NeighbourUnreachable("nowhere", peer_address("a")))
    assert chart.outputs == []
    for _ in range(50):
        chart.feed(NeighbourUnreachable("a", peer_address("a")))
        chart._answer("a")
    assert chart.take(NeighbourDown) == [] and chart.outputs == []  # asked once in 0.3 s at most


def test_whoever_slept_itself_asks_again_before_it_gives_up_on_others() -> None:
    chart = acquainted()
    for seconds in (4.9, 0.9, 0.9, 0.9, 0.9):
        chart.now += seconds  # no timer ran: this machine was busy
        chart.feed(TimerExpired())
        assert chart.take(NeighbourDown) == []
    chart.hello("a")
    chart.wait(3.0)
    assert chart.take(NeighbourDown) == [] and len(chart.speaker.neighbours()) == 1


def test_whoever_runs_late_itself_gives_others_more_time() -> None:
    chart = acquainted()
    chart.wait(chart.speaker._state.interfaces["a"].hello_at - chart.now - 0.001)
    chart.now += 0.5
    chart.feed(TimerExpired())
    chart.hello("a")
    chart.outputs.clear()
    chart.wait(5.2)
    assert chart.sent(AckRequest) and chart.take(NeighbourDown) == []
    chart.wait(1.5)
    assert chart.take(NeighbourDown) == [DOWN]


def test_a_neighbour_that_was_only_slow_is_given_more_time() -> None:
    chart = acquainted()
    waited = []
    for _ in range(4):
        begun = chart.now
        while not chart.take(NeighbourDown):
            chart.wait(0.05)
        waited.append(chart.now - begun)
        for _ in range(3):  # back as if nothing had been
            chart.hello("a")
            chart.wait(0.1)
        assert chart.take(NeighbourUp)
    assert 5.0 < waited[0] < 5.3 and waited[0] + 0.8 < waited[1] and waited[1] + 1.0 < waited[2] < 9.0
    assert waited[3] == pytest.approx(10.0, abs=0.1)  # never mind the checks: 2 of 3
    assert chart.speaker.counters()["neighbour_lost_by_mistake"] == 4
    chart.feed(InterfaceDown("a"))


def test_an_outage_of_several_hellos_was_no_mistake() -> None:
    chart = acquainted()
    chart.wait(20.0)
    chart.hello_seqnos["a"] += 5
    chart.hello("a")
    chart.wait(5.7)
    assert len(chart.take(NeighbourDown)) == 2
    assert chart.speaker.counters() == {}


def test_silence_on_a_radio_link_costs_infinity_and_trust_comes_back_slowly() -> None:
    chart = acquainted(kind=LinkKind.WIRELESS)
    chart.wait(6.0)
    checks = [ack for ack in chart.sent(AckRequest, "a") if ack.interval_cs != ACK_INTERVAL_CS]
    assert len(checks) == rules.check_tries(1.0)
    assert chart.take(BlockRoute) == [BlockRoute(DESTINATION)] and chart.take(NeighbourDown) == []
    costs = []
    for _ in range(14):
        chart.hello("a")
        costs.append(chart.speaker.neighbours()[0].cost)
        chart.wait(4.0)
    assert costs[:11] == [8 * 96] * 11
    assert max(costs[11:]) < 2 * 96


def ask(chart: Chart, *answers: bool) -> list[int]:
    """The Hello is late; of what is asked then, this is answered. Returns what the neighbour is told of its cost."""
    chart.wait(4.25)
    for is_answered in answers:
        (request,) = chart.sent(AckRequest)
        if is_answered:
            chart.hear("a", Ack(request.opaque))
        chart.wait(0.3)
    return [ihu.rxcost for ihu in chart.sent(Ihu) if ihu.rxcost != 96]


def test_a_radio_link_that_loses_many_requests_is_left_at_once() -> None:
    chart = acquainted(kind=LinkKind.WIRELESS)
    assert ask(chart, False, True, False, False, False) == [576, 576]  # one of six arrived, the Hello included
    (neighbour,) = chart.speaker.neighbours()
    assert neighbour.cost == 576 and chart.take(NeighbourDown) == []
    for _ in range(13):
        chart.wait(4.0)
        chart.hello("a")
    assert chart.speaker.neighbours()[0].cost < 120


def test_one_lost_hello_is_no_reason_to_leave_a_radio_link() -> None:
    chart = acquainted(kind=LinkKind.WIRELESS)
    assert ask(chart, True, True) == []
    chart.wait(2.0)
    assert chart.sent(AckRequest) == []
    assert chart.speaker.neighbours()[0].cost == 96


def test_an_answer_to_an_earlier_request_or_twice_counts_for_nothing() -> None:
    chart = acquainted(kind=LinkKind.WIRELESS)
    chart.wait(4.25)
    (first,) = chart.sent(AckRequest)
    chart.wait(0.3)
    (second,) = chart.sent(AckRequest)
    for opaque in (first.opaque, second.opaque, second.opaque, 9999):
        chart.hear("a", Ack(opaque))
    chart.wait(0.3)
    assert len(chart.sent(AckRequest)) == 1  # one lost, one answered: it goes on
    assert chart.speaker.counters() == {"ack_unexpected": 2}


@pytest.mark.parametrize("seed", range(4))
def test_a_link_that_loses_every_other_packet_is_left_and_not_taken_again(seed: int) -> None:
    network = Network(seed=seed, config={"hello_interval": 1.0, "update_interval": 4.0})
    for node in range(3):
        network.add_node(node)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        network.add_link(a, b, kind=LinkKind.WIRELESS)
    network.run(20.0)
    assert network.path(0, 1) == [0, 1]
    network.link(0, 1).loss = 0.5
    network.run(15.0)
    for _ in range(60):
        assert (network.path(0, 1), network.path(1, 0)) == ([0, 2, 1], [1, 2, 0])
        network.run(1.0)
    network.link(0, 1).loss = 0.0
    network.run(60.0)
    assert (network.path(0, 1), network.path(1, 0)) == ([0, 1], [1, 0])


def test_the_usual_losses_of_radio_links_move_few_routes() -> None:
    """There are four equal links and two ways for each of four pairs; every lost Hello could make a difference."""
    network = Network(seed=6, config={"hello_interval": 1.0, "update_interval": 4.0})
    for node in range(4):
        network.add_node(node)
    for node in range(4):
        network.add_link(node, (node + 1) % 4, kind=LinkKind.WIRELESS).loss = 0.05
    network.run(100.0)
    before = network.changes
    network.run(500.0)
    assert network.changes - before < 75


def test_a_very_lossy_radio_link_is_not_asked() -> None:
    """There, silence says little: the loss of Hellos decides."""
    chart = Chart()
    chart.up("a", kind=LinkKind.WIRELESS)
    for _ in range(16):
        chart.hello("a", txcost=300)
        chart.wait(4.0)
    chart.outputs.clear()
    chart.hear("a", Hello(chart.hello_seqnos["a"] + 3, 400))
    chart.wait(6.0)
    assert chart.sent(AckRequest) == []


@pytest.mark.parametrize("interval", [0.5, 1.0, 4.0])
def test_a_silent_cut_is_found_soon_after_the_hello_that_is_missing(interval: float) -> None:
    network = Network(seed=3, config={"hello_interval": interval, "update_interval": 16.0})
    for node in range(2):
        network.add_node(node)
    link = network.add_link(0, 1)
    network.run(20 * interval)
    assert network.path(0, 1) == [0, 1]
    link.is_cut = True
    network.run(1.1 * interval + 1.0)
    assert network.path(0, 1) is None and network.path(1, 0) is None


def test_a_busy_but_living_neighbour_is_never_lost_through_checks() -> None:
    network = Network(seed=4)
    for node in range(2):
        network.add_node(node)
    link = network.add_link(0, 1)
    network.run(60.0)
    link.delay = 0.15  # from now on every packet takes much longer than ever before
    changes = network.changes
    network.run(200.0)
    assert network.changes == changes and network.path(0, 1) == [0, 1]


@given(st.floats(0, 1), st.floats(-10, 10), st.floats(0.01, 655.35))
def test_patience_is_bounded(lateness: float, seen: float, interval: float) -> None:
    learned = rules.learn_lateness(min(lateness, 0.5), seen)
    assert 0.0 <= learned <= 0.5
    patience = rules.hello_patience(interval, learned)
    assert interval < patience <= max(1.5 * interval, interval + rules.HELLO_SLACK_MIN)
    assert 0.2 <= rules.check_wait(interval) <= 0.3
    tries = rules.check_tries(lateness)
    assert tries == 0 or (1.0 - lateness) ** tries <= rules.CHECK_DOUBT


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 65535), st.integers(1, 65534), st.integers(1, 65535))
def test_a_convicted_or_damped_cost_is_a_cost(answers: int, asked: int, cost: int, nominal: int, before: int) -> None:
    ratio = rules.convicted_ratio(min(answers, asked), asked)
    assert 0.125 <= ratio <= 0.5
    convicted = rules.convicted_cost(cost, ratio, nominal)
    assert min(2 * nominal, 65534) <= convicted <= 65535 and convicted >= cost
    assert (convicted == 65535) == (cost == 65535)
    damped = rules.damp_cost(cost, before)
    assert damped in (cost, before) and (damped == 65535) == (cost == 65535)
    assert abs(damped - cost) <= max(2, before // 8)


def test_trust_is_earned_by_many_hellos_and_lost_by_few() -> None:
    assert rules.learn_trust(0, 0xFFFF) == 1 and rules.learn_trust(11, 0xFFFF) == rules.TRUST_ENOUGH
    assert rules.learn_trust(11, 0xBFFF) == 9 and rules.learn_trust(11, 0x9FFF) == 6
    assert rules.learn_trust(11, 0x8000) == 1
