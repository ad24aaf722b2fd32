"""Two engines under lost sessions, crashes between any two outputs, late and broken-off deliveries, and a moving chain.

What must hold whatever happens: a payer never counts less than its payee, nobody is paid twice, nobody pays more than
its own meter allows, exposure is bounded; and when all is quiet again, both ends agree to the msat.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from payments import events as ev
from payments.life import InvariantError
from payments.records import ChannelState, Direction
from payments.units import MSAT_PER_SAT, UNITS_PER_MSAT, msat_to_units
from tests.payments.world import Crash, Node, World, priced

MAX_METERED_MSAT = 300_000
START_WINDOW_MSAT = 100_000
MAX_WINDOW_MSAT = 800_000

names = st.sampled_from(["a", "b"])
steps = st.one_of(
    st.tuples(st.just("meter"), names, st.integers(1, MAX_METERED_MSAT * UNITS_PER_MSAT)),
    st.tuples(st.just("meter"), st.just("b"), st.integers(1, MAX_METERED_MSAT * UNITS_PER_MSAT)),
    st.tuples(st.just("deliver"), names, st.integers(1, 4)),
    st.tuples(st.just("work"), names, st.just(0)),
    st.tuples(st.just("advance"), st.just("a"), st.sampled_from([0.05, 0.3, 5.0])),
    st.tuples(st.just("pump"), st.just("a"), st.just(0)),
    st.tuples(st.just("mine"), st.just("a"), st.integers(1, 3)),
    st.tuples(st.just("connect"), st.just("a"), st.just(0)),
    st.tuples(st.just("disconnect"), st.just("a"), st.just(0)),
    st.tuples(st.just("crash"), names, st.integers(0, 4)),
    st.tuples(st.just("hold"), names, st.integers(0, 1)),
    st.tuples(st.just("close"), names, st.just(0)),
)


class Pair:
    """The world, with crashes caught where they happen and the invariants checked after every step."""

    def __init__(self) -> None:
        self.world = World(start_window_msat=START_WINDOW_MSAT, max_window_msat=MAX_WINDOW_MSAT, capacity_sat=1_500)
        self.received = {"a": 0, "b": 0}
        self.world.connect()

    def step(self, kind: str, name: str, value: float) -> None:
        world = self.world
        node = world.a if name == "a" else world.b
        actions: dict[str, Callable[[], object]] = {
            "meter": lambda: self.meter(node, int(value)),
            "deliver": lambda: world.deliver(node, int(value)),
            "work": lambda: world.work(node),
            "advance": lambda: world.advance(value),
            "pump": world.pump,
            "mine": lambda: world.mine(int(value)),
            "connect": world.connect,
            "disconnect": world.disconnect,
            "crash": lambda: setattr(node, "crash_after", int(value)),
            "hold": lambda: node.give(ev.OperatorHoldPayments(hold=bool(value))),
            "close": lambda: node.give(ev.OperatorCloseChannels()),
        }
        try:
            actions[kind]()
        except Crash:
            self.reboot()
        self.check()

    def reboot(self) -> None:
        """What had left before the crash may still arrive. The other may crash over it."""
        while any(node.is_down for node in self.world.nodes):
            node = next(node for node in self.world.nodes if node.is_down)
            other = self.world.other(node)
            try:
                if not other.is_down and node.restarts % 2:
                    self.world.deliver(other, 100)
                self.world.crash(node)
            except Crash:
                continue

    def meter(self, seller: Node, units: int) -> None:
        buyer = self.world.other(seller)
        if buyer.key not in seller.suspended:
            bought, sold = priced(seller, buyer, units)
            buyer.give(bought)
            seller.give(sold)

    def check(self) -> None:
        world = self.world
        for payer, payee in (world.nodes, world.nodes[::-1]):
            stored = {c.channel_id: c for c in payer.channels(direction=Direction.OUT)}
            for channel in payee.channels(direction=Direction.IN):
                theirs = stored.get(channel.channel_id)
                assert channel.cumulative_msat == 0 or theirs is not None
                assert theirs is None or is_covered(theirs.cumulative_msat, channel.cumulative_msat, theirs.state)
            received = sum(view.received_msat for view in payee.engine.ledgers())
            assert received >= self.received[payee.name]
            self.received[payee.name] = received
        for node in world.nodes:
            for view in node.engine.ledgers():
                tolerance_msat = MAX_WINDOW_MSAT + (node.restarts - 1) * MAX_WINDOW_MSAT // 2
                limit = view.owed_limit_units + msat_to_units(tolerance_msat)
                assert view.accepted_units <= limit
                assert msat_to_units(view.sent_msat - view.received_msat) <= view.accepted_units
                assert view.unpaid_msat <= MAX_WINDOW_MSAT + MAX_METERED_MSAT

    def settle(self) -> None:
        """Everything works again, and nobody trades any more."""
        world = self.world
        for node in world.nodes:
            node.crash_after = None
            node.give(ev.OperatorHoldPayments(hold=False))
        world.connect()
        for _ in range(6):
            world.advance(15.0)
            world.mine(2)
        world.advance(15.0)
        self.check()


def is_covered(payer_msat: int, payee_msat: int, state: ChannelState) -> bool:
    """The chain tells a payer what was claimed, but only in whole sat."""
    slack_msat = MSAT_PER_SAT - 1 if state is ChannelState.CLOSED else 0
    return payer_msat + slack_msat >= payee_msat


def closed_count(node: Node) -> int:
    return len(node.channels(state=ChannelState.CLOSED))


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, max_size=60))
def test_money_is_conserved_whatever_happens(script: list[tuple[str, str, float]]) -> None:
    pair = Pair()
    for kind, name, value in script:
        pair.step(kind, name, value)
    pair.settle()
    a, b = pair.world.a, pair.world.b
    if not a.engine.ledgers() or not b.engine.ledgers():
        return
    at_a, at_b = a.ledger(b), b.ledger(a)
    slack_msat = closed_count(a) * (MSAT_PER_SAT - 1)
    assert abs(at_a.sent_msat - at_b.received_msat) <= slack_msat
    assert abs(at_b.sent_msat - at_a.received_msat) <= slack_msat
    is_disputed = any(view.their_billed_units > view.accepted_units for view in (at_a, at_b))
    if not is_disputed:
        assert max(at_a.unpaid_msat, at_b.unpaid_msat) <= slack_msat
        assert not a.suspended and not b.suspended
    assert not a.notices(ev.PeerFaultSeen) and not b.notices(ev.PeerFaultSeen)
    assert not a.notices(ev.DropConnection) and not b.notices(ev.DropConnection)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=200), st.integers(0, 10**6)), max_size=30))
def test_no_bytes_of_a_peer_raise_or_move_money(garbage: list[bytes | int]) -> None:
    """Random bytes, and honest messages with one byte changed, replayed, and in any order."""
    world = World().with_channel()
    world.meter(world.b, world.a, 6_000)
    world.advance(5.0)
    honest = [o.data for node in world.nodes for o in node.log if isinstance(o, ev.SendMessage)]
    sent_msat, received_msat = world.a.ledger(world.b).sent_msat, world.b.ledger(world.a).received_msat
    for item in garbage:
        data = item if isinstance(item, bytes) else mutate(honest[item % len(honest)], item)
        for node in world.nodes:
            try:
                node.give(ev.ReceivedMessage(world.other(node).key, data))
            except InvariantError as error:
                raise AssertionError(f"a peer broke an invariant with {data.hex()}") from error
    assert world.b.ledger(world.a).received_msat == received_msat
    assert world.a.ledger(world.b).sent_msat <= sent_msat + 2 * 10_000  # no more than the tolerance of a dispute


def mutate(data: bytes, seed: int) -> bytes:
    if seed % 3 == 0:
        return data
    position = seed % len(data)
    return data[:position] + bytes((data[position] ^ (1 + seed % 255),)) + data[position + 1 :]
