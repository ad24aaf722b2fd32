"""Bad news is sent again until it is acknowledged (RFC 8966 sections 3.3 and 3.7.2)."""

from __future__ import annotations

import pytest

from routing.delivery import ASKED_MAX, RESENDS_MAX, UNANSWERED_MAX
from routing.events import BlockRoute, InterfaceDown, RemoveRoute, SendPacket
from routing.tlv import Ack, AckRequest, Hello, Ihu, SeqnoRequest, Update
from tests.property.test_routing_network import check_optimal
from tests.routing.chart import DESTINATION, OUR_ADDRESS, SOURCE_ID, Chart, installed, update
from tests.routing.harness import Network, node_prefix

INFINITY = 65535


def announced(*neighbours: str, **config: object) -> Chart:
    """The route through a has been announced on the interface b, to b and whoever else is there."""
    chart = Chart(**config)
    chart.meet("a", "b")
    for peer in neighbours:
        chart.interface_of[peer] = "b"
        chart.hear(peer, Hello(1, 60000), Ihu(96, 60000, OUR_ADDRESS))
    chart.hear("a", update(100))
    chart.wait(1.0)
    chart.outputs.clear()
    return chart


def asked(chart: Chart, interface: str = "b") -> list[tuple[int | None, tuple[int, ...]]]:
    """What was sent there: which acknowledgment was asked for, and the metrics."""
    found = []
    for packet in chart.take(SendPacket):
        metrics = tuple(tlv.metric for tlv in packet.tlvs if isinstance(tlv, Update))
        opaques = [tlv.opaque for tlv in packet.tlvs if isinstance(tlv, AckRequest)]
        if packet.interface == interface and metrics:
            found.append((opaques[0] if opaques else None, metrics))
    return found


@pytest.mark.parametrize(
    ("news", "metric"),
    [
        (update(INFINITY), INFINITY),
        (update(300, seqno=2), 396),
        (update(100, price=5), 196),
        (update(100, router_id=b"another1"), 196),
    ],
)
def test_bad_news_is_sent_again_with_growing_pauses_until_it_is_acknowledged(news: Update, metric: int) -> None:
    chart = announced()
    chart.hear("a", news)
    chart.wait(0.9)
    (opaque, metrics), *again = asked(chart)
    assert opaque is not None and metrics == (metric,)
    assert again == [(opaque, (metric,))] * 2
    chart.hear("b", Ack(opaque))
    chart.wait(5.0)
    assert asked(chart) == []
    assert chart.speaker.counters() == {}


def test_good_news_is_sent_once() -> None:
    chart = announced()
    chart.hear("a", update(50))
    chart.wait(5.0)
    assert asked(chart) == [(None, (146,))]


def test_good_news_is_acknowledged_where_something_was_lost_lately() -> None:
    chart = announced()
    chart.hear("a", update(300, seqno=2))
    chart.wait(0.4)
    ((opaque, _), _) = asked(chart)
    assert opaque is not None
    chart.hear("b", Ack(opaque))
    chart.hear("a", update(100, seqno=2))
    chart.wait(0.1)
    ((opaque, metrics),) = asked(chart)
    assert opaque is not None and metrics == (196,)


def test_what_is_sent_again_is_what_is_true_by_then() -> None:
    chart = announced()
    chart.hear("a", update(INFINITY))
    chart.hear("a", update(70, seqno=2))
    chart.wait(0.15)
    (first, lost), (second, found) = asked(chart)
    assert (lost, found) == ((INFINITY,), (166,))
    assert first is not None and second is not None and first != second
    chart.hear("b", Ack(first))  # the older news has arrived: that says nothing of the newer
    chart.wait(0.4)
    assert asked(chart) == [(second, (166,))]


def test_all_that_is_lost_at_once_is_acknowledged_at_once() -> None:
    chart = announced()
    chart.hear("a", *(update(100, prefix=DESTINATION.supernet(n)) for n in range(1, 10)))
    chart.wait(1.0)
    chart.outputs.clear()
    chart.feed(InterfaceDown("a"))
    ((opaque, metrics),) = asked(chart)
    assert opaque is not None and metrics == (INFINITY,) * 10


def test_a_block_ends_when_everybody_has_acknowledged_the_retraction() -> None:
    chart = announced("c")
    chart.hear("a", update(INFINITY))
    ((opaque, _),) = asked(chart)
    assert opaque is not None
    chart.hear("b", Ack(opaque))
    assert chart.route_changes() == [BlockRoute(DESTINATION)]
    chart.hear("c", Ack(opaque))
    assert chart.route_changes() == [BlockRoute(DESTINATION), RemoveRoute(DESTINATION)]
    chart.hear("a", update(100, seqno=2))
    chart.hear("a", update(INFINITY))
    assert chart.route_changes()[2:] == [installed("a", 196), RemoveRoute(DESTINATION)]


def test_an_acknowledgment_of_older_news_ends_no_block() -> None:
    chart = announced()
    chart.hear("a", update(300, seqno=2))
    chart.wait(0.1)
    ((older, _),) = asked(chart)
    assert older is not None
    chart.hear("a", update(INFINITY))
    chart.hear("b", Ack(older))
    assert chart.route_changes() == [BlockRoute(DESTINATION)]


def test_who_never_answers_is_given_up_and_asked_no_more() -> None:
    chart = announced(update_interval=600.0)
    for n in range(UNANSWERED_MAX):
        chart.hear("a", update(INFINITY))
        chart.wait(15.0)
        sent = [metrics for opaque, metrics in asked(chart) if opaque is not None]
        assert len(sent) == 1 + RESENDS_MAX
        chart.hear("a", update(100, seqno=n + 2))
        chart.wait(1.0)
        chart.outputs.clear()
    chart.hear("a", update(INFINITY))
    chart.wait(10.0)
    assert asked(chart) == [(None, (INFINITY,))] * 2
    assert [type(change) for change in chart.route_changes()] == [BlockRoute]


def test_on_a_link_of_many_nobody_is_asked_and_bad_news_is_sent_twice() -> None:
    chart = announced(*(f"b{n}" for n in range(ASKED_MAX)), update_interval=600.0)
    chart.hear("a", update(INFINITY))
    chart.wait(10.0)
    assert asked(chart) == [(None, (INFINITY,))] * 2
    assert [type(change) for change in chart.route_changes()] == [BlockRoute]


def test_a_neighbour_that_is_gone_is_not_waited_for() -> None:
    chart = announced()
    chart.hear("a", update(INFINITY))
    chart.hear("b", Hello(5000, 400))  # it has restarted
    chart.wait(0.5)
    assert RemoveRoute(DESTINATION) not in chart.outputs
    assert not chart.speaker._state.interfaces["b"].batches
    assert not chart.speaker._state.interfaces["b"].awaiting


def test_a_seqno_request_that_was_passed_on_is_repeated_a_few_times() -> None:
    chart = announced()
    chart.hear("b", SeqnoRequest(DESTINATION, 2, 10, SOURCE_ID))
    chart.wait(9.0)
    assert chart.sent(SeqnoRequest) == [SeqnoRequest(DESTINATION, 2, 9, SOURCE_ID)] * 3
    chart.hear("b", SeqnoRequest(DESTINATION, 3, 10, SOURCE_ID))
    chart.hear("a", update(100, seqno=3))
    chart.wait(9.0)
    assert chart.sent(SeqnoRequest) == [SeqnoRequest(DESTINATION, 3, 9, SOURCE_ID)]


def test_a_retraction_crosses_a_lossy_mesh_long_before_the_next_full_updates() -> None:
    """Hellos get through here, so costs do not move: what is lost is updates, requests and acknowledgments."""
    network = Network(seed=3, config={"update_interval": 600.0})
    size = 4
    for node in range(size * size):
        network.add_node(node)
    for node in range(size * size):
        for peer in (node + 1,) * (node % size < size - 1) + (node + size,) * (node < size * (size - 1)):
            network.add_link(node, peer)
    network.run(20.0)
    check_optimal(network)
    network.update_loss = 0.3
    network.carrier_lost(0, 1)
    network.carrier_lost(0, size)
    network.run(15.0)
    assert not network.next_hops[node_prefix(0)]
    check_optimal(network)
