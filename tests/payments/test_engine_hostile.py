"""A peer that does not play by the rules: nothing is lost, nothing raises, it is counted and in the end dropped."""

from __future__ import annotations

import pytest

from payments import events as ev
from payments import messages as msg
from payments.channel_tx import LOCKTIME_THRESHOLD, public_key
from payments.records import ChannelState
from payments.units import MAX_MSAT, MAX_UNITS
from tests.payments.world import Node, World

NOTHING = msg.Accounts.of(billed_units=0, accepted_units=0, seen_units=0)
EVERYTHING = msg.Accounts.of(billed_units=MAX_UNITS, accepted_units=MAX_UNITS, seen_units=MAX_UNITS)
UNKNOWN_ID = b"?" * 16


def open_request(node: Node, **changes: object) -> msg.OpenChannel:
    fields = {
        "channel_id": b"x" * 16,
        "payer_pubkey": public_key(b"\x07" * 32),
        "change_script": b"\x00\x14" + bytes(20),
        "capacity_sat": 100_000,
        "expiry_height": node.chain.height + 60,
    }
    return msg.OpenChannel(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def world() -> World:
    """`a` has paid 6,001 msat to `b`."""
    world = World().with_channel()
    world.meter(world.b, world.a, 6_000)
    world.advance(5.0)
    assert world.b.ledger(world.a).received_msat == 6_001
    return world


def say(world: World, node: Node, message: msg.Message | bytes) -> list[ev.Output]:
    """The peer of `node` sends this; what `node` does."""
    data = message if isinstance(message, bytes) else msg.encode(message)
    start = len(node.log)
    node.give(ev.ReceivedMessage(world.other(node).key, data))
    return node.log[start:]


def answers(outputs: list[ev.Output]) -> list[msg.Message]:
    return [msg.decode(o.data) for o in outputs if isinstance(o, ev.SendMessage)]


def forged_sync(world: World, payment: msg.Payment) -> msg.ChannelSync:
    channel = world.a.engine._core.channels[payment.channel_id]
    output = (channel.outpoint.txid, channel.outpoint.index, channel.terms.capacity_sat, channel.terms.expiry_height)
    return msg.ChannelSync(payment.channel_id, 50_000, payment.signature, 0, *output, 0)


def assert_fault(outputs: list[ev.Output]) -> None:
    assert [type(o) for o in outputs] == [ev.PeerFaultSeen]


def last_payment(world: World) -> msg.Payment:
    sent = [msg.decode(o.data) for o in world.a.log if isinstance(o, ev.SendMessage)]
    return [m for m in sent if isinstance(m, msg.Payment)][-1]


@pytest.mark.parametrize("change_msat", [-1, -6_001, 1_000, MAX_MSAT - 6_001])
def test_a_payment_with_another_sum_is_a_fault(world: World, change_msat: int) -> None:
    payment = last_payment(world)
    forged = msg.Payment(payment.channel_id, 0, payment.cumulative_msat + change_msat, payment.signature, b"", NOTHING)
    assert_fault(say(world, world.b, forged))
    assert world.b.ledger(world.a).received_msat == 6_001


def test_a_replayed_payment_is_acknowledged_and_not_counted(world: World) -> None:
    outputs = say(world, world.b, last_payment(world))
    assert [type(m) for m in answers(outputs)] == [msg.PaymentAck]
    assert world.b.ledger(world.a).received_msat == 6_001
    assert not any(isinstance(o, ev.PaymentReceived) for o in outputs)


def test_a_payment_in_an_unknown_channel_is_a_fault(world: World) -> None:
    payment = last_payment(world)
    assert_fault(say(world, world.b, msg.Payment(UNKNOWN_ID, 0, 7_000, payment.signature, b"", NOTHING)))


def test_a_payment_back_through_the_payers_own_channel_is_a_fault(world: World) -> None:
    assert_fault(say(world, world.a, last_payment(world)))


def test_another_peers_channel_is_out_of_reach(world: World) -> None:
    stranger = b"C" * 32
    payment = last_payment(world)
    world.b.give(ev.PeerConnected(stranger))
    world.b.give(ev.ReceivedMessage(stranger, msg.encode(msg.Hello(msg.PROTOCOL_VERSION, "regtest"))))
    for message in (payment, msg.CloseReady(payment.channel_id), msg.FundingCreated(payment.channel_id, b"t" * 32, 0)):
        start = len(world.b.log)
        world.b.give(ev.ReceivedMessage(stranger, msg.encode(message)))
        assert_fault(world.b.log[start:])
    start = len(world.b.log)
    world.b.give(ev.ReceivedMessage(stranger, msg.encode(open_request(world.b, channel_id=payment.channel_id))))
    assert_fault(world.b.log[start:])


def test_an_acknowledgement_of_more_than_was_paid_is_a_fault(world: World) -> None:
    payment = last_payment(world)
    assert_fault(say(world, world.a, msg.PaymentAck(payment.channel_id, 6_002, NOTHING)))


def test_a_sync_without_our_signature_is_a_fault(world: World) -> None:
    payment = last_payment(world)
    assert_fault(say(world, world.a, forged_sync(world, payment)))
    assert world.a.ledger(world.b).sent_msat == 6_001


def test_who_admits_to_every_debt_there_is_owes_it(world: World) -> None:
    """As after an old backup of ours. It costs us nothing, and it nothing but being carried."""
    sent_msat = world.a.ledger(world.b).sent_msat
    say(world, world.a, msg.Statement(EVERYTHING))
    world.advance(60.0)
    assert world.a.ledger(world.b).sent_msat == sent_msat
    assert world.b.key in world.a.suspended


def test_the_largest_bill_costs_the_tolerance_once(world: World) -> None:
    demand = msg.Accounts.of(billed_units=MAX_UNITS, accepted_units=0, seen_units=0)
    for _ in range(2):
        say(world, world.a, msg.Statement(demand))
        world.advance(60.0)
    assert world.a.ledger(world.b).sent_msat == 6_001 + 10_000


def test_a_retracted_acknowledgement_changes_nothing() -> None:
    world = World().with_channel()
    world.meter(world.b, world.a, 8_000)
    world.meter(world.a, world.b, 4_000)
    world.advance(20.0)
    before = world.a.ledger(world.b)
    say(world, world.a, msg.Statement(NOTHING))
    world.advance(0.05)
    after = world.a.ledger(world.b)
    assert (after.acknowledged_units, after.their_billed_units) == (
        before.acknowledged_units,
        before.their_billed_units,
    )
    assert after.sent_msat == before.sent_msat


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"capacity_sat": 999}, msg.REJECT_POLICY),
        ({"capacity_sat": 10_000_001}, msg.REJECT_POLICY),
        ({"expiry_height": 0}, msg.REJECT_POLICY),
        ({"expiry_height": 100 + 17}, msg.REJECT_POLICY),
        ({"expiry_height": 499_999_999}, msg.REJECT_POLICY),
        ({"payer_pubkey": bytes(33)}, msg.REJECT_TERMS),
        ({"change_script": b"\x6a" + bytes(30)}, msg.REJECT_TERMS),
    ],
)
def test_unwanted_channels_are_rejected(world: World, changes: dict[str, object], code: int) -> None:
    outputs = say(world, world.b, open_request(world.b, **changes))
    assert answers(outputs) == [msg.RejectChannel(b"x" * 16, code)]
    assert len(world.b.channels()) == 1


def test_a_peer_cannot_fill_the_store_with_channels(world: World) -> None:
    for i in range(50):
        say(world, world.b, open_request(world.b, channel_id=i.to_bytes(16, "big")))
    assert len(world.b.channels()) == len(world.b.store.channels) == 8
    funded = [c.channel_id for c in world.b.channels(state=ChannelState.OPENING)]
    for number, channel_id in enumerate(funded):
        say(world, world.b, msg.FundingCreated(channel_id, b"t" * 32, number))
    assert answers(say(world, world.b, open_request(world.b))) == [msg.RejectChannel(b"x" * 16, msg.REJECT_TOO_MANY)]


def test_a_second_funding_output_is_a_fault(world: World) -> None:
    channel = world.b.channels()[0]
    assert_fault(say(world, world.b, msg.FundingCreated(channel.channel_id, b"t" * 32, 0)))
    assert world.b.channels()[0].funding == channel.funding


def test_a_payment_before_the_funding_is_a_fault(world: World) -> None:
    say(world, world.b, open_request(world.b))
    assert_fault(say(world, world.b, msg.Payment(b"x" * 16, 0, 1_000, last_payment(world).signature, b"", NOTHING)))


def test_payments_in_a_channel_that_is_not_on_chain_do_not_count() -> None:
    world = World()
    world.connect()
    world.meter(world.b, world.a, 1_000)
    world.pump()
    # A cheat signs on an output that was never broadcast.
    channel = world.a.engine._core.channels[world.a.channels()[0].channel_id]
    channel.state = ChannelState.OPEN
    world.advance(5.0)
    assert world.a.ledger(world.b).sent_msat == 1_000
    assert world.b.ledger(world.a).received_msat == 0
    assert world.b.ledger(world.a).unpaid_msat == 1_000
    world.mine()  # it was honest after all
    assert world.b.ledger(world.a).received_msat == 1_000


@pytest.mark.parametrize(
    "message",
    [
        msg.AcceptChannel(UNKNOWN_ID, b"\x02" * 33, b"\x00\x14" + bytes(20)),
        msg.RejectChannel(UNKNOWN_ID, 1),
        msg.ChannelSync(UNKNOWN_ID, 5, b"", 0, b"t" * 32, 0, 100_000, 2116, 0),
    ],
)
def test_an_answer_to_nothing_is_ignored(world: World, message: msg.Message) -> None:
    assert say(world, world.a, message) == []


def test_keys_that_make_no_channel_end_the_opening() -> None:
    world = World()
    world.connect()
    world.pump()
    world.meter(world.b, world.a, 1_000)
    opening = world.a.engine._core.peers[world.b.key].opening
    assert opening is not None
    outputs = say(
        world, world.a, msg.AcceptChannel(opening.channel_id, b"\x02" + b"\xff" * 32, b"\x00\x14" + bytes(20))
    )
    assert any(isinstance(o, ev.PeerFaultSeen) for o in outputs)
    assert not any(isinstance(o, ev.FundChannel) for o in outputs)


def test_the_first_message_is_a_hello_and_there_is_one() -> None:
    world = World()
    world.a.give(ev.PeerConnected(world.b.key))
    assert_fault(say(world, world.a, msg.Statement(NOTHING)))
    (counts,) = say(world, world.a, msg.Hello(msg.PROTOCOL_VERSION, "regtest"))
    assert isinstance(counts, ev.SendMessage) and isinstance(msg.decode(counts.data), msg.Counts)
    assert_fault(say(world, world.a, msg.Hello(msg.PROTOCOL_VERSION, "regtest")))


def test_another_version_is_dropped() -> None:
    world = World()
    world.a.give(ev.PeerConnected(world.b.key))
    assert [type(o) for o in say(world, world.a, msg.Hello(msg.PROTOCOL_VERSION + 1, "regtest"))] == [ev.DropConnection]


def test_too_many_faults_drop_the_connection(world: World) -> None:
    for _ in range(15):
        assert_fault(say(world, world.b, b"nonsense"))
    assert [type(o) for o in say(world, world.b, b"nonsense")] == [ev.PeerFaultSeen, ev.DropConnection]
    assert world.b.ledger(world.a).faults == 16
    world.connect()
    assert world.b.ledger(world.a).faults == 0


def test_messages_of_a_peer_that_is_gone_are_dropped(world: World) -> None:
    payment = last_payment(world)
    world.disconnect()
    assert say(world, world.b, payment) == []


def test_a_payee_that_denies_a_channel_gets_no_more_through_it(world: World) -> None:
    say(world, world.a, msg.RejectChannel(last_payment(world).channel_id, msg.REJECT_UNKNOWN))
    assert [c.state for c in world.a.channels()] == [ChannelState.CLOSING]


@pytest.mark.parametrize("height", [LOCKTIME_THRESHOLD - 200, LOCKTIME_THRESHOLD, 2**40])
def test_a_height_at_which_nothing_could_expire_is_not_believed(height: int) -> None:
    """A channel would expire at `height` and 60: above 500,000,000 that is a time, which no channel can have."""
    world = World().with_channel()
    before = world.a.engine.records()
    world.a.give(ev.ChainTipChanged(height, 1.0))
    assert world.a.engine.records() == before
    world.a.give(ev.OperatorOpenChannel(world.b.key))
    world.pump()
    world.mine()
    assert [c.state for c in world.a.channels()] == [ChannelState.OPEN] * 2
