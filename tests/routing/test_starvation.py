"""A better route that is unfeasible does not stay so (babeld #73): it is asked for as long as it is better."""

from __future__ import annotations

import random

import pytest

from routing.tlv import SeqnoRequest
from tests.property.test_routing_network import check_optimal
from tests.routing.chart import DESTINATION, SOURCE_ID, Chart, installed, update
from tests.routing.harness import Network


def test_a_better_unfeasible_route_is_asked_for_for_hours_and_taken_when_it_is_feasible() -> None:
    chart = Chart(update_interval=600.0)
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(0.1)  # the feasibility distance is 196
    chart.hear("a", update(5000))
    chart.hear("b", update(300))
    chart.outputs.clear()
    for _ in range(120):
        chart.wait(30.0)
        for peer, metric in (("a", 5000), ("b", 300)):
            chart.hello(peer, interval_cs=60000)
            chart.hear(peer, update(metric))
    asked = chart.sent(SeqnoRequest, "b")
    assert len(asked) >= 3600 / 20
    assert set(asked) == {SeqnoRequest(DESTINATION, 2, 64, SOURCE_ID)}
    assert chart.route_changes() == []
    chart.hear("b", update(300, seqno=2))
    assert chart.route_changes() == [installed("b", 396)]
    chart.outputs.clear()
    chart.wait(60.0)
    assert chart.sent(SeqnoRequest, "b") == []


@pytest.mark.parametrize("seed", range(4))
def test_it_is_resolved_across_a_mesh_that_loses_every_fifth_packet(seed: int) -> None:
    """The way out gets dearer, and all other ways are longer than what was announced before."""
    rng = random.Random(seed)
    network = Network(seed=seed, config={"sticky_timeout": 1.0})
    size = 12
    for node in range(size):
        network.add_node(node)
    for node in range(size):
        network.add_link(node, (node + 1) % size, cost=rng.choice((96, 128)))
    network.run(30.0)
    check_optimal(network)
    network.update_loss = 0.2
    link = network.link(0, 1)
    link.cost = 3000
    network.carrier_found(0, 1)
    network.run(300.0)
    check_optimal(network)


def test_a_seqno_that_came_by_another_way_does_not_answer_for_a_better_one() -> None:
    chart = Chart()
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.wait(0.1)  # the feasibility distance is 196
    chart.hear("b", update(300))
    chart.hear("a", update(200))  # unfeasible, and still the best
    chart.outputs.clear()
    chart.hear("a", update(600, seqno=2))
    assert chart.sent(SeqnoRequest, "b") == [SeqnoRequest(DESTINATION, 2, 64, SOURCE_ID)]
    chart.hear("a", update(610, seqno=2))
    assert chart.sent(SeqnoRequest, "b") == []  # once, and then by the timer
    chart.wait(0.5)
    assert chart.sent(SeqnoRequest, "b") != []
    chart.outputs.clear()
    chart.hear("b", update(300, seqno=2))
    assert chart.route_changes() == [installed("b", 396)]
    chart.wait(60.0)
    assert chart.sent(SeqnoRequest) == []


def test_when_the_cost_of_every_link_changes_the_mesh_need_not_wait_for_the_next_full_updates() -> None:
    rng = random.Random(1)
    network = Network(seed=1, config={"update_interval": 600.0})
    size = 5
    for node in range(size * size):
        network.add_node(node)
    for node in range(size * size):
        if (node + 1) % size:
            network.add_link(node, node + 1, cost=96)
        if node + size < size * size:
            network.add_link(node, node + size, cost=96)
    network.run(20.0)
    check_optimal(network)
    for link in network.links.values():
        link.cost = rng.randint(96, 600)
        network.carrier_found(link.a, link.b)
        network.run(0.005)
    network.run(30.0)
    check_optimal(network)
