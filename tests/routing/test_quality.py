"""What drivers of radios say of a link: the rules, and what the engine makes of it."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from routing import rules
from routing.events import InterfaceDown, LinkKind, LinkQuality
from routing.rules import METRIC_INFINITY
from tests.routing.chart import DESTINATION, Chart, installed, peer_address, update

hello_costs = st.integers(1, METRIC_INFINITY)
nominals = st.integers(1, METRIC_INFINITY - 1)
qualities = st.floats(0.0, 1.0)


@given(hello_costs, nominals, st.floats())
def test_a_blended_cost_is_positive_and_bounded(hello_cost: int, nominal: int, quality: float) -> None:
    cost = rules.blended_cost(hello_cost, nominal, quality)
    assert hello_cost <= cost <= min(rules.BLEND_MAX * hello_cost, METRIC_INFINITY)
    assert (cost == METRIC_INFINITY) == (hello_cost == METRIC_INFINITY)


@given(hello_costs, hello_costs, nominals, qualities, qualities)
def test_a_blended_cost_grows_with_both_witnesses(a: int, b: int, nominal: int, p: float, q: float) -> None:
    worse, better = max(a, b), min(a, b)
    assert rules.blended_cost(worse, nominal, p) >= rules.blended_cost(better, nominal, p)
    assert rules.blended_cost(a, nominal, min(p, q)) >= rules.blended_cost(a, nominal, max(p, q))


def test_the_worse_witness_counts() -> None:
    assert rules.blended_cost(96, 96, 1.0) == 96
    assert rules.blended_cost(96, 96, 0.5) == 192
    assert rules.blended_cost(300, 96, 0.5) == 300  # not 600: both see the same losses
    assert rules.blended_cost(96, 96, 0.01) == 768
    assert rules.blended_cost(96, 96, math.nan) == 768
    assert rules.blended_cost(10_000, 10_000, 0.01) == METRIC_INFINITY - 1


def test_the_quality_of_a_radio() -> None:
    assert rules.radio_throughput(54_000, 100, 0, 0) == 27_000
    assert rules.radio_throughput(54_000, 100, 100, 0) == 13_500
    assert rules.radio_throughput(54_000, 100, 0, 50) == 13_500
    assert rules.radio_throughput(54_000, 100, 0, 500) == 0
    assert rules.radio_throughput(54_000, 0, 0, 0) == 27_000
    assert rules.throughput_quality(20_000, 40_000) == 0.5
    assert rules.throughput_quality(90_000, 40_000) == 1.0
    assert rules.throughput_quality(0, 40_000) == rules.QUALITY_MIN


def test_the_quality_of_a_path_in_batman_adv() -> None:
    assert rules.tq_quality(255) == 1.0
    assert rules.tq_quality(51) == 0.2
    assert rules.tq_quality(0) == rules.QUALITY_MIN


def test_smoothing_follows_within_some_readings() -> None:
    quality = 1.0
    for _ in range(8):
        quality = rules.smooth_quality(quality, 0.5)
    assert 0.5 < quality < 0.56


class Rated(Chart):
    def rate(self, peer: str, quality: float | None) -> None:
        self.feed(LinkQuality(peer, peer_address(peer), quality))

    def cost(self, peer: str) -> int:
        return next(view.cost for view in self.speaker.neighbours() if view.interface == peer)


def test_a_slow_link_is_left_for_a_faster_one() -> None:
    chart = Rated()
    chart.meet("a", "b")
    chart.hear("a", update(100))
    chart.hear("b", update(120))
    assert chart.route_changes() == [installed("a", 196)]
    chart.wait(30.0)
    chart.outputs.clear()
    chart.rate("a", 0.25)
    assert chart.cost("a") == 384
    assert chart.route_changes() == [installed("b", 216)]
    assert {view.interface: view.quality for view in chart.speaker.neighbours()} == {"a": 0.25, "b": None}


def test_noise_moves_no_cost_and_an_eighth_does() -> None:
    chart = Rated()
    chart.meet("a")
    chart.rate("a", 0.5)
    assert chart.cost("a") == 192
    for quality in (0.52, 0.47, 0.46):
        chart.rate("a", quality)
        assert chart.cost("a") == 192
    chart.rate("a", 0.4)
    assert chart.cost("a") == 240


def test_a_driver_that_falls_silent_leaves_it_to_the_hellos() -> None:
    chart = Rated()
    chart.meet("a")
    chart.rate("a", 0.5)
    chart.rate("a", None)
    assert chart.cost("a") == 96


def test_hellos_that_tell_worse_count_on_radio_links() -> None:
    chart = Rated()
    chart.meet("a", kind=LinkKind.WIRELESS)
    chart.rate("a", 0.9)
    assert chart.cost("a") == 107
    chart.hello("a", txcost=480)
    assert chart.cost("a") == 480


def test_a_slow_link_is_not_taken_for_a_lossy_one() -> None:
    """Whether silence is loss is judged by what Hellos say: a slow neighbour that goes is missed as soon as any."""
    lost_at = {}
    for quality in (None, 0.15):
        chart = Rated(hello_interval=4.0)
        chart.up("a", kind=LinkKind.WIRELESS)
        for _ in range(20):
            chart.hello("a")
            chart.wait(4.0, answering="a")
        chart.rate("a", quality)
        began = chart.now
        while chart.cost("a") < METRIC_INFINITY and chart.now < began + 60.0:
            chart.wait(0.1)
        lost_at[quality] = chart.now - began
    assert lost_at[0.15] == lost_at[None] < 10.0


def test_of_strangers_nothing_is_kept() -> None:
    chart = Rated()
    chart.meet("a")
    chart.feed(LinkQuality("nowhere", peer_address("a"), 0.5))
    chart.feed(LinkQuality("a", peer_address("b"), 0.5))
    assert chart.cost("a") == 96
    chart.rate("a", 0.5)
    chart.feed(InterfaceDown("a"))
    chart.meet("a")
    assert chart.cost("a") == 96
    chart.hear("a", update(1))
    assert chart.route_changes() == [installed("a", 97, prefix=DESTINATION)]
