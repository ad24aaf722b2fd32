"""Round-trip times (RFC 9616): measured between speakers whose clocks disagree, and what they cost."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing import rules
from routing.events import InterfaceUp, LinkKind, RttCost
from routing.rtt import STALE, RttRecord, micros
from routing.tlv import Hello, Ihu
from tests.routing.chart import DESTINATION, OUR_ADDRESS, Chart, installed, peer_address, update
from tests.routing.harness import Network

u32 = st.integers(0, 0xFFFF_FFFF)
TIMED = RttCost()


def timed(chart: Chart, *peers: str, rtt: RttCost | None = TIMED) -> None:
    for peer in peers:
        chart.feed(InterfaceUp(peer, OUR_ADDRESS, LinkKind.TUNNEL, rtt=rtt))


class Peer:
    """Whose clock is ahead of ours, and who answers `rtt` seconds of travelling after our last Hello."""

    def __init__(self, chart: Chart, name: str, *, ahead: float = 12345.6) -> None:
        self.chart, self.name, self.ahead = chart, name, ahead
        self.seqno = 0

    def answer(self, rtt: float, *, ours: int | None = None, held: float = 0.0) -> None:
        self.seqno += 1
        now = self.chart.now + self.ahead
        origin = micros(self.chart.now - rtt - held) if ours is None else ours
        stamps = (origin, micros(now - held))
        hello = Hello(self.seqno, 60000, timestamp=micros(now))
        self.chart.hear(self.name, hello, Ihu(96, 60000, OUR_ADDRESS, stamps))

    @property
    def cost(self) -> int:
        (view,) = (view for view in self.chart.speaker.neighbours() if view.address == peer_address(self.name))
        return view.cost

    @property
    def rtt(self) -> float | None:
        (view,) = (view for view in self.chart.speaker.neighbours() if view.address == peer_address(self.name))
        return view.rtt


def test_a_hello_is_stamped_and_the_ihu_beside_it_answers_the_neighbours() -> None:
    chart = Chart()
    timed(chart, "a")
    (hello,) = chart.sent(Hello)
    assert hello.timestamp == micros(chart.now)
    chart.wait(0.1)
    heard_at = chart.now
    chart.hear("a", Hello(1, 400, timestamp=77))
    chart.wait(0.1)
    packets = [p.tlvs for p in chart.take(type(chart.outputs[-1])) if any(isinstance(t, Ihu) for t in p.tlvs)]  # type: ignore[attr-defined]
    hello, ihu = packets[0][:2]
    assert isinstance(hello, Hello) and hello.timestamp is not None
    assert ihu == Ihu(96, 1200, peer_address("a"), (77, micros(heard_at)))


def test_no_timestamps_where_they_are_not_wanted_or_not_answered() -> None:
    chart = Chart()
    timed(chart, "a", rtt=None)
    chart.hear("a", Hello(1, 400, timestamp=77), Ihu(96, 1200, OUR_ADDRESS, (1, 2)))
    chart.wait(5.0)
    assert {hello.timestamp for hello in chart.sent(Hello)} == {None}
    assert chart.speaker.neighbours()[0].rtt is None
    timed(chart, "b")
    chart.hear("b", Hello(1, 60000))
    chart.outputs.clear()
    chart.wait(13.0)
    assert {ihu.timestamps for ihu in chart.sent(Ihu, to="b")} == {None}


def test_a_long_way_round_costs_more_whatever_the_clocks_say() -> None:
    chart = Chart()
    timed(chart, "a")
    a = Peer(chart, "a")
    a.answer(0.065, held=3.0)
    assert a.rtt == pytest.approx(0.065, abs=2e-6) and a.cost == 96 + 75
    for _ in range(60):
        chart.wait(1.0)
        a.answer(0.2, held=0.5)
    assert a.cost == 96 + 150
    for _ in range(60):
        chart.wait(1.0)
        a.answer(0.001)
    assert a.cost == 96


def test_the_shorter_way_is_taken() -> None:
    chart = Chart()
    timed(chart, "a", "b")
    near, far = Peer(chart, "b"), Peer(chart, "a")
    far.answer(0.15)
    near.answer(0.02)
    for peer in ("a", "b"):
        chart.hear(peer, update(0))
    assert chart.speaker.selected(DESTINATION) is not None
    assert chart.route_changes()[-1] == installed("b", near.cost)


def test_a_steady_time_with_noise_does_not_move_the_cost() -> None:
    chart = Chart()
    timed(chart, "a")
    a = Peer(chart, "a")
    a.answer(0.06)
    cost, rng = a.cost, random.Random(5)
    seen = set()
    for _ in range(200):
        chart.wait(1.0)
        a.answer(0.06 + rng.uniform(-0.004, 0.004))
        seen.add(a.cost)
    assert seen == {cost}


def test_what_cannot_be_is_not_believed_and_counted() -> None:
    chart = Chart()
    timed(chart, "a")
    a = Peer(chart, "a")
    a.answer(0.05)
    for nonsense in ({"rtt": -1.0}, {"rtt": STALE + 1}, {"rtt": 0.0, "ours": micros(chart.now + 100)}):
        a.answer(**nonsense)  # type: ignore[arg-type]
    assert a.rtt == pytest.approx(0.05, abs=2e-6)
    assert chart.speaker.counters()["rtt_sample_implausible"] == 3


def test_a_time_that_is_not_measured_any_more_costs_nothing() -> None:
    chart = Chart()
    timed(chart, "a")
    a = Peer(chart, "a")
    a.answer(0.2)
    assert a.cost == 96 + 150
    chart.wait(STALE + 1)
    chart.hear("a", Hello(2, 60000), Ihu(96, 60000, OUR_ADDRESS))
    assert a.cost == 96
    chart.hear("a", Hello(3, 60000, timestamp=1), Ihu(96, 60000, OUR_ADDRESS))
    timed(chart, "a", rtt=RttCost(0.0, 0.001, 10))
    a.seqno = 3
    a.answer(0.5)
    assert a.cost == 96 + 10
    timed(chart, "a", rtt=None)
    assert a.cost == 96


def test_two_speakers_measure_the_delay_between_them() -> None:
    network = Network(seed=2)
    network.add_node(0)
    network.now = 4290.0  # the clocks pass 2^32 microseconds on the way
    network.add_node(1)
    network.add_link(0, 1, delay=0.03, kind=LinkKind.TUNNEL, rtt=TIMED)
    network.run(60.0)
    for speaker in network.speakers.values():
        (neighbour,) = speaker.neighbours()
        assert neighbour.rtt == pytest.approx(0.06, abs=1e-4)
        assert neighbour.cost == 96 + 68
        assert speaker.counters() == {}


@given(st.lists(st.tuples(st.none() | u32, st.none() | st.tuples(u32, u32), st.floats(0, 10_000)), max_size=20))
def test_whatever_stamps_come_the_time_is_plausible_and_its_cost_bounded(
    heard: list[tuple[int | None, tuple[int, int] | None, float]],
) -> None:
    record, now = RttRecord(), 0.0
    for stamp, stamps, later in heard:
        now += later
        record.hear(Hello(1, 400, timestamp=stamp), Ihu(96, 400, None, stamps), Counter(), now=now)
        assert 0.0 <= record.smoothed < STALE
        answer = record.stamps(now=now)
        assert answer is None or all(0 <= part <= 0xFFFF_FFFF for part in answer)


@given(st.floats(0, 200), st.floats(0, 10), st.floats(0.001, 10), st.integers(0, 65534), st.integers(0, 65535))
def test_a_penalty_never_makes_a_link_free_or_unusable(
    rtt: float, low: float, width: float, penalty: int, cost: int
) -> None:
    penalised = rules.rtt_cost(rtt, low, low + width, penalty)
    assert 0 <= penalised <= penalty
    total = rules.link_cost(cost, penalised)
    assert max(1, cost) <= total if cost < 65535 else total == 65535
    assert total <= (65534 if cost < 65535 else 65535)
    assert rules.damp_cost(penalised, penalised) == penalised
