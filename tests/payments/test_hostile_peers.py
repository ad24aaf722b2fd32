"""What a hostile neighbour can take at most. Each test names the sum in its docstring, and asserts it.

`a` buys from `b`. Beside these: single messages in test_engine_hostile.py, counts in test_auditing.py, the chain in
test_hostile_chain.py, sealed copies in test_keeping.py.
"""

from __future__ import annotations

import random

import msgspec
import pytest

from payments import events as ev
from payments import messages as msg
from payments.channel_tx import public_key
from payments.records import ChannelState
from payments.units import MAX_MSAT
from tests.payments.world import Node, World

PAID_MSAT = 30_001  # three payments
W_MSAT = 20_000
NOTHING = msg.Accounts.of(billed_units=0, accepted_units=0, seen_units=0)


@pytest.fixture
def world() -> World:
    """`a` has paid three times, and both are at rest."""
    world = World(start_window_msat=W_MSAT, max_window_msat=W_MSAT).with_channel()
    for _ in range(3):
        world.meter(world.b, world.a, 10_000)
        world.advance(5.0)
    assert received(world) == world.a.ledger(world.b).sent_msat == PAID_MSAT
    return world


def received(world: World) -> int:
    return world.b.ledger(world.a).received_msat


def say(world: World, node: Node, message: msg.Message | bytes) -> list[ev.Output]:
    """The peer of `node` sends this; what `node` does."""
    data = message if isinstance(message, bytes) else msg.encode(message)
    start = len(node.log)
    node.give(ev.ReceivedMessage(world.other(node).key, data))
    return node.log[start:]


def sent_by(node: Node, kind: type[msg.Message] | None = None) -> list[bytes]:
    found = [output.data for output in node.log if isinstance(output, ev.SendMessage)]
    return [data for data in found if kind is None or isinstance(msg.decode(data), kind)]


def faults(outputs: list[ev.Output]) -> int:
    return sum(isinstance(output, ev.PeerFaultSeen) for output in outputs)


def test_replayed_messages_take_nothing(world: World) -> None:
    """Lost at most: nothing. Everything that either end ever sent is sent again, in order."""
    for node in world.nodes:
        for data in sent_by(world.other(node)):
            say(world, node, data)
        world.b.dropped.clear()
    world.pump()
    world.advance(20.0)
    assert received(world) == PAID_MSAT
    assert world.a.ledger(world.b).sent_msat == PAID_MSAT


@pytest.mark.parametrize("seed", range(5))
def test_reordered_payments_count_once_and_by_the_highest(seed: int) -> None:
    """Lost at most: nothing. The session keeps the order; who breaks it gains, and loses, nothing by that."""
    source = World(start_window_msat=W_MSAT, max_window_msat=W_MSAT).with_channel()
    target = source.b.store.copy()
    for _ in range(3):
        source.meter(source.b, source.a, 10_000)
        source.advance(5.0)
    payments = sent_by(source.a, msg.Payment)
    assert len(payments) >= 3
    random.Random(seed).shuffle(payments)
    source.b.store = target
    source.crash(source.b)
    source.b.give(ev.PeerConnected(source.a.key))
    source.work(source.b)
    hello = sent_by(source.a, msg.Hello)[-1]
    for data in (hello, *payments):
        say(source, source.b, data)
    assert received(source) == PAID_MSAT


@pytest.mark.parametrize("size", [msg.MAX_MESSAGE + 1, 65_519])
def test_oversized_messages_take_nothing(world: World, size: int) -> None:
    """Lost at most: nothing; the message is not even decoded."""
    for filler in (b"\x00", b"\x93", b"\xff"):
        assert faults(say(world, world.b, filler * size)) == 1
    assert received(world) == PAID_MSAT


@pytest.mark.parametrize("sum_msat", [-1, -(2**63), MAX_MSAT + 1, 2**63 - 1, 2**64 - 1])
def test_negative_and_overflowing_sums_take_nothing(world: World, sum_msat: int) -> None:
    """Lost at most: nothing, by either end: such a number is no message."""
    payment = msgspec.msgpack.decode(sent_by(world.a, msg.Payment)[-1])
    place = next(index for index, field in enumerate(payment) if field == PAID_MSAT)
    payment[place] = sum_msat
    assert faults(say(world, world.b, msgspec.msgpack.encode(payment))) == 1
    acknowledgement = msgspec.msgpack.decode(sent_by(world.b, msg.PaymentAck)[-1])
    acknowledgement[acknowledgement.index(PAID_MSAT)] = sum_msat
    assert faults(say(world, world.a, msgspec.msgpack.encode(acknowledgement))) == 1
    assert received(world) == world.a.ledger(world.b).sent_msat == PAID_MSAT


def test_counts_of_a_stale_epoch_take_nothing(world: World) -> None:
    """Lost at most: nothing. Reports of an earlier run do not count for, or against, anybody in this one."""
    stale = sent_by(world.a, msg.Counts)
    assert stale
    world.crash(world.a)
    world.connect()
    world.pump()
    before = world.b.engine.counts(), received(world)
    assert sum(faults(say(world, world.b, data)) for data in stale) == len(stale)
    assert (world.b.engine.counts(), received(world)) == before
    assert world.a.key not in world.b.suspended


def test_a_signature_of_one_channel_buys_nothing_in_another(world: World) -> None:
    """Lost at most: nothing. The signature commits to the funding output."""
    world.a.give(ev.OperatorOpenChannel(world.b.key))
    world.pump()
    world.mine()
    first, second = (world.a.engine._core.channels[view.channel_id] for view in world.a.channels())
    assert second.state is ChannelState.OPEN and first.signature is not None
    forged = msg.Payment(second.channel_id, second.number, PAID_MSAT, first.signature, b"", NOTHING)
    assert faults(say(world, world.b, forged)) == 1
    assert received(world) == PAID_MSAT


def test_who_never_acknowledges_gets_one_payment_and_no_second(world: World) -> None:
    """Lost at most, by the payer: one payment, which is within what it owed; here 10,000 msat."""

    def deaf(rounds: int) -> None:
        for _ in range(rounds):
            world.collect()
            acks = [data for data in world.wire["a"] if isinstance(msg.decode(data), msg.PaymentAck)]
            for data in acks:
                world.wire["a"].remove(data)
            world.deliver(world.a, 10)
            world.deliver(world.b, 10)

    for _ in range(5):
        for node, event in zip(world.nodes, _priced(world, 10_000), strict=True):
            node.give(event)
        world.time += 5.0
        for node in world.nodes:
            node.give(ev.TimerExpired())
        deaf(4)
    assert 0 < world.a.ledger(world.b).sent_msat - PAID_MSAT <= 10_000
    assert all(c.cumulative_msat - c.acknowledged_msat <= 10_000 for c in world.a.channels())


def _priced(world: World, msat: int) -> tuple[ev.MeteredTraffic, ev.MeteredTraffic]:
    units = msat * 10**9
    return ev.MeteredTraffic(world.b.key, 0, units), ev.MeteredTraffic(world.a.key, units, 0)


def test_who_claims_early_gets_what_it_was_paid_and_not_more() -> None:
    """Lost at most, by the payer: nothing. What is left in the channel comes back to it in the claim itself."""
    world = World().with_channel()
    world.meter(world.b, world.a, 1_000_000)
    world.advance(60.0)
    (channel,) = world.a.channels()
    world.b.give(ev.OperatorCloseChannels())
    world.advance(10.0)
    world.mine(2)
    assert world.a.channels()[0].state is ChannelState.CLOSED
    assert world.a.ledger(world.b).sent_msat == received(world) == channel.cumulative_msat
    back_sat = world.chain.received_sat(world.a.scripts)
    assert back_sat == channel.capacity_sat - channel.cumulative_msat // 1000


def test_a_payer_that_goes_silent_before_the_expiry_costs_the_window() -> None:
    """Lost at most, by the payee: what was unpaid, W and one reading; here 20,000 msat. What was paid is claimed."""
    world = World(start_window_msat=W_MSAT, max_window_msat=W_MSAT).with_channel()
    for _ in range(100):
        world.meter(world.b, world.a, 10_000)
        world.advance(5.0)
    expiry = world.b.channels()[0].expiry_height
    paid_msat = received(world)
    world.meter(world.b, world.a, W_MSAT)
    world.disconnect()
    world.mine(expiry - world.chain.height - 1)
    world.advance(10.0)
    world.mine()
    assert world.b.channels()[0].state is ChannelState.CLOSED
    assert received(world) == paid_msat
    assert world.b.ledger(world.a).unpaid_msat <= W_MSAT
    claimed_sat = world.chain.received_sat(world.b.scripts)
    assert paid_msat // 1000 - 500 <= claimed_sat <= paid_msat // 1000  # less the fee


def test_a_payee_that_goes_silent_before_the_expiry_costs_nothing_that_was_not_paid() -> None:
    """Lost at most, by the payer: the fee. All of the capacity comes back, even what it had signed for."""
    world = World().with_channel()
    world.meter(world.b, world.a, 6_000)
    world.advance(5.0)
    (channel,) = world.a.channels()
    world.disconnect()
    world.b.is_down = True
    while world.chain.height <= channel.expiry_height + 1:
        world.chain.mine()
        world.a.new_block()
        world.work(world.a)
    assert world.a.channels()[0].state is ChannelState.CLOSED
    assert world.chain.received_sat(world.a.scripts) >= channel.capacity_sat - 500


def opening(world: World, number: int) -> msg.OpenChannel:
    return msg.OpenChannel(
        channel_id=number.to_bytes(16, "big"),
        payer_pubkey=public_key(b"\x07" * 32),
        change_script=b"\x00\x14" + bytes(20),
        capacity_sat=100_000,
        expiry_height=world.chain.height + 60,
    )


def test_who_opens_a_thousand_channels_fills_eight_rows(world: World) -> None:
    """Lost at most: eight rows of a table, though it comes again with new sessions and names; and no money."""
    for number in range(1_000):
        if number % 100 == 0:
            world.connect()
            world.pump()
        say(world, world.b, opening(world, number))
    assert len(world.b.channels()) == len(world.b.store.channels) == 8
    assert received(world) == PAID_MSAT
    world.meter(world.b, world.a, 10_000)
    world.advance(5.0)
    assert received(world) == PAID_MSAT + 10_000  # and the one that is used goes on
    world.mine(60)
    assert all(channel.funding is not None for channel in world.b.store.channels.values())


@pytest.mark.parametrize("is_there", [True, False])
def test_made_up_fundings_leave_no_rows(world: World, is_there: bool) -> None:
    """Lost at most: eight rows until they would have expired. It names an output that is another's, or none at all."""
    other = world.chain.fund(b"\x00\x14" + bytes(20), 50_000)
    if is_there:
        world.chain.broadcast(other.raw)
    for number in range(100):
        request = opening(world, number)
        say(world, world.b, request)
        say(world, world.b, msg.FundingCreated(channel_id=request.channel_id, txid=other.txid, index=0))
        world.pump()
        assert len(world.b.store.channels) <= 8
    if is_there:
        assert {channel.cumulative_msat for channel in world.b.store.channels.values()} == {PAID_MSAT}
    world.mine(61)
    assert {channel.cumulative_msat for channel in world.b.store.channels.values()} == {PAID_MSAT}
    assert received(world) == PAID_MSAT
