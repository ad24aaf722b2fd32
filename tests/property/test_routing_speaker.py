"""Whatever a peer sends, whenever: no exception, no route that is not allowed, no timer that fires for ever."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.events import InterfaceDown, OriginateRoute, SetFee
from routing.tlv import Hello, Tlv
from tests.routing.chart import DESTINATION, Chart, update
from tests.routing.strategies import tlvs, u16

PEERS = ("a", "b", "c")
PRICE_MAX = 2_000_000

near_updates = st.builds(
    lambda metric, seqno, price, router: update(metric, seqno=seqno, price=price, router_id=router),
    u16,
    st.integers(0, 3),
    st.none() | st.integers(0, 2 * PRICE_MAX) | st.just(2**32 - 1),
    st.sampled_from([b"faraway1", b"faraway2", b"ourselfs"]),
)
packets = st.lists(tlvs | near_updates, max_size=5)
steps = st.one_of(
    st.tuples(st.sampled_from(PEERS), packets),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.01, 0.5, 5.0, 60.0])),
    st.tuples(st.just("fee"), st.sampled_from([0, 1_000_000, 2**32 - 1])),
    st.tuples(st.just("bounce"), st.sampled_from(PEERS)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=30))
def test_nothing_a_peer_does_breaks_the_speaker(script: list[tuple[str, object]]) -> None:
    chart = Chart(price_max_msat_per_gb=PRICE_MAX, max_routes_per_neighbour=4)
    chart.feed(OriginateRoute(DESTINATION.supernet()))
    chart.meet(*PEERS)
    for what, argument in script:
        take_step(chart, what, argument)
        for route in chart.speaker.routes():
            if route.is_selected:
                assert route.price_msat_per_gb <= PRICE_MAX and route.metric < 65535
        assert all(neighbour.route_count <= 4 for neighbour in chart.speaker.neighbours())
        assert sum(neighbour.route_count for neighbour in chart.speaker.neighbours()) == len(chart.speaker.routes())
        chart.outputs.clear()


def take_step(chart: Chart, what: str, argument: object) -> None:
    if what == "wait":
        assert isinstance(argument, float)
        chart.wait(argument)
    elif what == "fee":
        assert isinstance(argument, int)
        chart.feed(SetFee(argument))
    elif what == "bounce":
        assert isinstance(argument, str)
        chart.feed(InterfaceDown(argument))
        chart.up(argument)
    else:
        assert isinstance(argument, list)
        said: list[Tlv] = argument
        chart.hear(what, *said)


def test_a_flood_of_neighbours_and_hellos_is_bounded() -> None:
    chart = Chart(max_neighbours_per_interface=8)
    chart.up("a")
    for i in range(1000):
        chart.interface_of[f"x{i}"] = "a"
        chart.hear(f"x{i}", Hello(i, 1))
    chart.outputs.clear()
    chart.wait(1.0)
    assert len(chart.speaker.neighbours()) <= 8
    # 8 neighbours lost after 2 of 3 Hellos of 10 ms, and ours: no storm.
    assert len(chart.outputs) < 100
