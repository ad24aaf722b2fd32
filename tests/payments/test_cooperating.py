"""Closing together, what fees do to channels, and what the operator can ask for."""

from __future__ import annotations

import pytest
from embit.transaction import Transaction

from payments import events as ev
from payments import messages as msg
from payments.channel import Channel
from payments.fees import fee_rate_of, is_too_dear, ladder_rate, virtual_bytes
from payments.life import Cause, InvariantError
from payments.records import ChannelState, Direction
from tests.payments.test_engine import assert_settled
from tests.payments.world import Crash, Node, World


def channel_of(node: Node) -> Channel:
    (channel,) = node.engine._core.channels.values()
    return channel


def paid_world(msat: int = 1_000_000, **changes: object) -> World:
    world = World(**changes).with_channel()
    world.meter(world.b, world.a, msat)
    world.advance(60.0)
    assert_settled(world, msat + 1)
    return world


def close(world: World) -> None:
    world.a.give(ev.OperatorCloseChannel(channel_of(world.a).channel_id))


def broadcasts(node: Node, kind: ev.TransactionKind) -> list[ev.BroadcastTransaction]:
    """Each once: later ones of the same transaction do not know its fee."""
    found: dict[bytes, ev.BroadcastTransaction] = {}
    for output in node.log:
        if isinstance(output, ev.BroadcastTransaction) and output.kind is kind:
            found.setdefault(output.txid, output)
    return list(found.values())


def states(world: World) -> list[ChannelState]:
    return [c.state for node in world.nodes for c in node.channels()]


def test_both_close_together_at_once_and_the_payer_pays_the_fee() -> None:
    world = paid_world()
    close(world)
    world.pump()
    assert states(world) == [ChannelState.COOPERATING] * 2
    world.mine()
    assert states(world) == [ChannelState.CLOSED] * 2
    (transaction,) = broadcasts(world.a, ev.TransactionKind.CLOSE)
    assert transaction.fee_sat is not None
    assert world.chain.received_sat(world.b.scripts) == 1_000
    assert world.chain.received_sat(world.a.scripts) == 100_000 - 1_000 - transaction.fee_sat
    assert_settled(world, 1_000_001)


def test_an_unused_channel_is_closed_together_after_some_patience() -> None:
    world = World().with_channel()
    world.a.give(ev.OperatorHoldPayments(hold=True))
    world.b.give(ev.OperatorCloseChannels())
    world.pump()
    assert states(world) == [ChannelState.CLOSING, ChannelState.CLOSED]
    world.mine(world.a.config.close_patience_blocks + 2)
    assert states(world) == [ChannelState.CLOSED] * 2
    assert world.chain.received_sat(world.a.scripts) > 99_000


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("after", range(5))
def test_a_crash_at_any_output_of_a_common_close(name: str, after: int) -> None:
    world = paid_world()
    node = getattr(world, name)
    node.crash_after = after
    try:
        close(world)
        world.pump()
    except Crash:
        world.crash(node)
    node.crash_after = None
    world.connect()
    world.mine(2)
    if ChannelState.OPEN in states(world):  # the wish was not written yet
        close(world)
        world.mine(2)
    assert states(world) == [ChannelState.CLOSED] * 2
    assert world.chain.received_sat(world.b.scripts) == 1_000


def test_a_payment_that_was_lost_is_made_good_in_the_close() -> None:
    world = paid_world()
    payer = channel_of(world.a)
    payer.pay(5_000, world.a.engine._core.key_of(payer.channel_id))  # never sent
    world.a.engine._core.channel_changed(payer)
    close(world)
    world.pump()
    world.mine()
    assert world.chain.received_sat(world.b.scripts) == 1_005
    assert world.b.ledger(world.a).received_msat == world.a.ledger(world.b).sent_msat == 1_005_001


def test_a_payer_with_an_old_backup_closes_with_what_the_payee_shows() -> None:
    world = World().with_channel()
    backup = world.a.store.copy()
    world.meter(world.b, world.a, 1_000_000)
    world.advance(60.0)
    world.a.store = backup
    world.crash(world.a)
    world.a.engine._core.move(channel_of(world.a), Cause.CLOSE_AGREED)
    world.connect()
    world.pump()
    world.mine()
    assert world.chain.received_sat(world.b.scripts) == 1_000
    assert_settled(world, 1_000_001)


def test_after_its_signature_the_payee_takes_no_payment() -> None:
    world = paid_world()
    close(world)
    world.pump()
    payer, payee = channel_of(world.a), channel_of(world.b)
    proposal = msg.ProposeClose(payer.channel_id, 0, 500, payee.cumulative_msat + 1_000, payer.signature or b"")
    world.b.give(ev.ReceivedMessage(world.a.key, msg.encode(proposal)))
    assert world.b.notices(ev.PeerFaultSeen)
    nothing = msg.Accounts.of(billed_units=0, accepted_units=0, seen_units=0)
    payment = msg.Payment(payer.channel_id, 0, payee.cumulative_msat + 1_000, payer.signature or b"", b"", nothing)
    before = payee.cumulative_msat
    world.b.give(ev.ReceivedMessage(world.a.key, msg.encode(payment)))
    assert payee.cumulative_msat == before


def test_a_payer_that_never_broadcasts_the_close_does_not_keep_the_money() -> None:
    world = paid_world(10_000_000)
    close(world)
    world.pump()
    world.chain._drop({broadcasts(world.a, ev.TransactionKind.CLOSE)[0].txid})
    world.a.watched.clear()
    payee = channel_of(world.b)
    while payee.state is not ChannelState.CLAIMING:
        assert world.chain.height < payee.terms.expiry_height
        world.chain.mine()
        world.b.new_block()
        world.work(world.b)
        world.time += 10.0
        world.b.give(ev.TimerExpired())
    world.chain.mine()
    assert world.chain.received_sat(world.b.scripts) > 9_000


def test_a_close_that_does_not_confirm_gets_dearer() -> None:
    world = paid_world()
    close(world)
    world.pump()
    for node in world.nodes:
        node.give(ev.ChainTipChanged(world.chain.height, 4.0))
    world.pump()
    first, second = broadcasts(world.a, ev.TransactionKind.CLOSE)
    assert first.fee_sat is not None and second.fee_sat is not None and second.fee_sat > 3 * first.fee_sat
    world.mine()
    assert states(world) == [ChannelState.CLOSED] * 2
    assert world.chain.received_sat(world.b.scripts) == 1_000


# --- fees ---


@pytest.mark.parametrize(
    ("blocks_left", "rate"),
    [(300, 2.0), (144, 2.0), (73, 2.0), (72, 4.0), (36, 8.0), (1, 256.0), (0, 256.0), (-5, 256.0)],
)
def test_the_ladder_doubles_whenever_half_of_the_time_is_gone(blocks_left: int, rate: float) -> None:
    assert ladder_rate(2.0, blocks_left=blocks_left, margin=144) == rate


@pytest.mark.parametrize(
    ("capacity_sat", "fee_rate", "dear"), [(10_000, 1.0, False), (9_000, 1.2, True), (10**6, 500.0, True)]
)
def test_no_channel_is_worth_a_claim_above_2_percent(capacity_sat: int, fee_rate: float, dear: bool) -> None:
    assert is_too_dear(capacity_sat, fee_rate, max_share=0.02) is dear


def test_at_a_spike_of_fees_none_is_opened_and_none_accepted() -> None:
    world = World(max_claim_fee_share=0.02)
    world.connect()
    world.pump()
    for node in world.nodes:
        node.give(ev.ChainTipChanged(world.chain.height, 500.0))
    world.meter(world.b, world.a, 5_000)
    world.advance(30.0)
    assert len(world.a.notices(ev.ChannelTooDear)) == 1 and not world.a.channels()
    request = msg.OpenChannel(b"i" * 16, b"\x02" * 33, b"\x00\x14" + bytes(20), 100_000, world.chain.height + 60)
    start = len(world.b.log)
    world.b.give(ev.ReceivedMessage(world.a.key, msg.encode(request)))
    answers = [msg.decode(o.data) for o in world.b.log[start:] if isinstance(o, ev.SendMessage)]
    assert msg.RejectChannel(b"i" * 16, msg.REJECT_FEES) in answers
    world.mine()  # at 1 sat/vB again
    world.mine()
    world.advance(30.0)
    assert_settled(world, 5_000)


def test_a_claim_that_does_not_confirm_is_replaced_by_dearer_ones() -> None:
    world = paid_world(20_000_000, expiry_blocks=300, expiry_margin=64, max_expiry_blocks=400)
    world.disconnect()
    payee = channel_of(world.b)
    rates = []
    while world.chain.height < payee.terms.expiry_height - 1:
        world.chain.height += 1  # blocks without our transactions
        world.b.new_block()
        world.work(world.b)
        world.time += 10.0
        world.b.give(ev.TimerExpired())
        world.work(world.b)
        if payee.spend_raw is not None:
            rates.append(round(fee_rate_of(payee.spend_raw, [100_000])))
    assert sorted(set(rates)) == [1, 2, 4, 8, 16, 32, 64]
    assert rates == sorted(rates)
    assert not world.b.notices(ev.BroadcastRefused)
    world.chain.mine()
    world.b.new_block()
    world.work(world.b)
    assert payee.state is ChannelState.CLOSED
    raw = world.chain.raw[payee.spend_txid or b""]
    paid = (20_000 - world.chain.received_sat(world.b.scripts)) / virtual_bytes(raw)
    assert 64 <= paid < 65


def test_an_earlier_claim_may_confirm_instead_of_the_dearer_one() -> None:
    world = paid_world(20_000_000)
    world.b.give(ev.OperatorCloseChannels())
    world.advance(10.0)
    payee = channel_of(world.b)
    (first,) = broadcasts(world.b, ev.TransactionKind.CLAIM)
    world.b.give(ev.ChainTipChanged(world.chain.height, 20.0))
    world.work(world.b)
    assert payee.spend_txid != first.txid
    world.chain._drop({payee.spend_txid or b""})
    assert world.chain.broadcast(first.raw).accepted
    world.chain.mine()
    for node in world.nodes:
        node.new_block()
    world.pump()
    assert states(world) == [ChannelState.CLOSED] * 2
    assert any(isinstance(o, ev.ChannelStateChanged) and o.reason == Cause.CLAIM_CONFIRMED.value for o in world.b.log)
    assert_settled(world, 20_000_001)


def test_a_fee_never_eats_more_than_the_claim() -> None:
    world = paid_world(2_000_000)
    world.b.give(ev.OperatorCloseChannels())
    world.advance(10.0)
    world.b.give(ev.ChainTipChanged(world.chain.height, 500.0))
    world.work(world.b)
    assert not world.b.notices(ev.BroadcastRefused)
    claim = broadcasts(world.b, ev.TransactionKind.CLAIM)[-1]
    assert Transaction.parse(claim.raw).vout[-1].value >= 294
    assert claim.fee_sat is not None and claim.fee_sat > 1_500


def test_what_expires_is_claimed_for_less_than_the_estimate_when_that_is_all_it_can_pay() -> None:
    world = paid_world(800_000)
    world.disconnect()
    payee = channel_of(world.b)
    world.chain.fee_rate = 20.0  # 3,400 sat: more than the claim brings
    world.mine(payee.terms.expiry_height - world.chain.height - world.b.config.expiry_margin - 1)
    assert not broadcasts(world.b, ev.TransactionKind.CLAIM)
    world.mine()
    world.advance(10.0)
    (claim,) = broadcasts(world.b, ev.TransactionKind.CLAIM)
    assert claim.fee_sat is not None and 400 < claim.fee_sat <= 800 - 294
    world.mine()
    assert payee.state is ChannelState.CLOSED


def test_a_transaction_of_ours_that_no_block_could_have_stops_the_node() -> None:
    world = paid_world(20_000_000)
    payee = channel_of(world.b)
    transaction = ev.BroadcastTransaction(b"\x00" * 80, b"t" * 32, ev.TransactionKind.CLAIM)
    with pytest.raises(InvariantError, match="cannot confirm"):
        world.b.engine._core.broadcast(transaction, [(payee.terms, payee.outpoint)])


# --- the operator ---


def test_an_operator_opens_a_channel_before_anything_is_owed() -> None:
    world = World()
    world.a.give(ev.OperatorOpenChannel(world.b.key, 50_000))
    world.pump()
    assert not world.a.channels()
    world.connect()
    world.pump()
    world.mine()
    (channel,) = world.a.channels(direction=Direction.OUT)
    assert (channel.state, channel.capacity_sat) == (ChannelState.OPEN, 50_000)
    world.advance(60.0)
    assert len(world.a.channels()) == 1
    with pytest.raises(ValueError, match="sat"):
        world.a.give(ev.OperatorOpenChannel(world.b.key, 1))


def test_closing_what_is_not_known_is_nothing() -> None:
    world = World().with_channel()
    world.a.give(ev.OperatorCloseChannel(b"?" * 16))
    assert channel_of(world.a).state is ChannelState.OPEN
