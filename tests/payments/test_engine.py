"""Two engines and a chain: what a neighbourhood lives through."""

from __future__ import annotations

import pytest
from msgspec import structs

from payments import events as ev
from payments import messages as msg
from payments.closing import FINAL_DEPTH
from payments.engine import PaymentConfig
from payments.records import ChannelState, Direction
from tests.payments.world import World

W = 10_000  # the start window, msat


def assert_settled(world: World, msat: int) -> None:
    """`a` has paid `b` so much, both say so, and nothing is owed."""
    assert world.a.ledger(world.b).sent_msat == world.b.ledger(world.a).received_msat == msat
    assert world.b.ledger(world.a).unpaid_msat == 0
    assert not world.b.suspended


def test_first_debt_opens_a_channel_and_is_paid_at_the_tick() -> None:
    world = World()
    world.connect()
    world.meter(world.b, world.a, 1_000)
    world.pump()
    assert world.a.channels()[0].state is ChannelState.PENDING
    world.mine()
    assert world.a.channels()[0].state is world.b.channels()[0].state is ChannelState.OPEN
    world.advance(5.0)
    assert_settled(world, 1_000)
    assert len(world.a.notices(ev.PaymentSent)) == len(world.b.notices(ev.PaymentReceived)) == 1


def test_no_channel_is_opened_for_less_than_it_is_worth() -> None:
    world = World(open_debt_msat=1_000)
    world.connect()
    world.pump()
    world.meter(world.b, world.a, 999)
    world.pump()
    assert world.a.engine.channels() == []
    world.meter(world.b, world.a, 1)
    world.pump()
    assert [channel.direction for channel in world.a.engine.channels()] == [Direction.OUT]


def test_half_a_window_is_paid_at_once() -> None:
    world = World().with_channel()
    world.meter(world.b, world.a, W // 2 - 2)
    world.pump()
    assert world.b.ledger(world.a).received_msat == 0
    world.meter(world.b, world.a, 1)
    world.pump()
    assert_settled(world, W // 2)


def test_the_remainder_below_a_msat_stays_in_the_ledger() -> None:
    world = World().with_channel()
    world.meter(world.b, world.a, 999.75)
    world.advance(5.0)
    assert_settled(world, 1_000)
    world.meter(world.b, world.a, 0.25)
    world.advance(5.0)
    assert_settled(world, 1_001)


def test_netting_only_the_net_debtor_pays() -> None:
    world = World().with_channel()
    for _ in range(20):
        world.meter(world.b, world.a, 3_000)
        world.meter(world.a, world.b, 2_000)
        world.advance(1.0)
    world.advance(10.0)
    assert_settled(world, 20 * 1_000 + 1)
    assert world.b.ledger(world.a).sent_msat == 0


def test_window_doubles_with_what_is_paid_and_stops_at_the_ceiling() -> None:
    world = World(max_window_msat=50_000).with_channel()
    sizes = []
    for _ in range(20):
        world.meter(world.b, world.a, 6_000)
        world.advance(5.0)
        sizes.append(world.b.ledger(world.a).window_msat)
    assert sizes == sorted(sizes)
    assert list(dict.fromkeys(sizes)) == [10_000, 20_000, 40_000, 50_000]


def test_unpaid_beyond_the_window_is_suspended_and_resumed_when_paid() -> None:
    world = World().with_channel()
    world.a.give(ev.OperatorHoldPayments(hold=True))
    world.meter(world.b, world.a, W - 1)
    world.pump()
    assert not world.b.suspended
    world.meter(world.b, world.a, 1)
    world.pump()
    assert world.b.ledger(world.a).unpaid_msat == W + 1
    assert world.b.suspended == {world.a.key}
    world.advance(0.1)  # the bill of the last moment is sent
    world.a.give(ev.OperatorHoldPayments(hold=False))
    world.pump()
    assert_settled(world, W + 1)
    assert not world.b.notices(ev.Defaulted)


def test_a_debtor_at_the_border_is_switched_ever_more_rarely_and_never_held_for_more_than_a_tick() -> None:
    """It pays each time, right after it was suspended."""
    world = World(max_window_msat=W).with_channel()
    held = []
    for _ in range(8):
        world.a.give(ev.OperatorHoldPayments(hold=True))
        world.meter(world.b, world.a, W + 1 - world.b.ledger(world.a).unpaid_msat)
        world.pump()
        assert world.b.suspended
        world.advance(0.1)
        world.a.give(ev.OperatorHoldPayments(hold=False))
        world.pump()
        since = world.time - 0.1
        while world.b.suspended:
            world.advance(0.05)
        held.append(world.time - since)
    tick = world.b.config.tick_interval
    wanted = [0.1, tick / 8, tick / 4, tick / 2, tick, tick, tick, tick]
    assert held == pytest.approx(wanted, abs=0.06)
    world.advance(13 * tick)  # in good standing
    world.a.give(ev.OperatorHoldPayments(hold=True))
    world.meter(world.b, world.a, W + 1)
    world.pump()
    world.advance(0.1)
    world.a.give(ev.OperatorHoldPayments(hold=False))
    world.pump()
    assert not world.b.suspended


@pytest.mark.parametrize("is_suspended", [True, False])
def test_who_owes_three_quarters_of_the_window_is_after_a_restart_what_it_was_before(is_suspended: bool) -> None:
    world = World().with_channel()
    world.a.give(ev.OperatorHoldPayments(hold=True))
    world.meter(world.b, world.a, W * 3 // 4)
    world.advance(10.0)
    # As it is when it has paid a part of more than the window.
    ledgers = world.b.store.ledgers
    ledgers[world.a.key] = structs.replace(ledgers[world.a.key], is_suspended=is_suspended)
    for _ in range(2):
        world.crash(world.b)
        assert bool(world.b.suspended) is is_suspended
        assert world.b.ledger(world.a).is_suspended is is_suspended
        world.connect()
        world.advance(10.0)
    world.a.give(ev.OperatorHoldPayments(hold=False))
    world.advance(10.0)
    assert not world.b.suspended
    world.crash(world.b)
    assert not world.b.suspended


def test_a_default_takes_the_window_back_to_the_start() -> None:
    world = World().with_channel()
    for _ in range(10):
        world.meter(world.b, world.a, 6_000)
        world.advance(1.0)
    grown = world.b.ledger(world.a).window_msat
    assert grown > W
    world.a.give(ev.OperatorHoldPayments(hold=True))
    world.meter(world.b, world.a, grown + 1)
    world.advance(4.9)
    assert world.b.suspended
    assert world.b.ledger(world.a).window_msat == grown
    world.advance(0.2)
    assert world.b.ledger(world.a).window_msat == W
    assert len(world.b.notices(ev.Defaulted)) == 1
    world.a.give(ev.OperatorHoldPayments(hold=False))
    world.advance(1.0)
    assert not world.b.suspended
    assert world.b.ledger(world.a).window_msat == W  # what clears a default is not on time


def test_at_most_ten_settlements_a_second() -> None:
    world = World(max_window_msat=W).with_channel()
    start = len(world.a.notices(ev.PaymentSent))
    for _ in range(100):
        world.meter(world.b, world.a, W // 2)
        world.advance(0.02)
    assert 19 <= len(world.a.notices(ev.PaymentSent)) - start <= 21
    world.advance(1.0)
    assert_settled(world, 100 * W // 2 + 1)


def test_an_unanswered_bill_does_not_make_both_pay_in_full() -> None:
    """Both bill 8,000 at the same moment: nobody owes anything."""
    world = World().with_channel()
    world.meter(world.b, world.a, 8_000)
    world.meter(world.a, world.b, 8_000)
    world.advance(20.0)
    assert_settled(world, 1)
    assert world.b.ledger(world.a).sent_msat == 0


def test_an_inflated_bill_is_paid_only_as_far_as_the_own_meter_allows() -> None:
    world = World().with_channel()
    world.meter(world.b, world.a, 50_000, counted_by_buyer=0.1)
    world.advance(30.0)
    view = world.a.ledger(world.b)
    assert view.sent_msat == 5_000 + 1 + W
    assert len(world.a.notices(ev.Disputed)) == 1
    assert world.b.suspended
    world.meter(world.b, world.a, 50_000, counted_by_buyer=0.1)
    world.advance(30.0)
    assert world.a.ledger(world.b).sent_msat == 10_000 + 1 + W  # the tolerance is given once


def test_a_late_meter_is_no_dispute_in_the_end() -> None:
    world = World().with_channel()
    world.b.give(ev.MeteredTraffic(world.a.key, 30_000 * 10**9, 0))
    world.pump()
    assert world.a.ledger(world.b).sent_msat == W + 1
    world.a.give(ev.MeteredTraffic(world.b.key, 0, 30_000 * 10**9))
    world.advance(1.0)
    assert_settled(world, 30_001)


def test_claim_pays_the_payee_on_chain_and_both_see_the_channel_closed() -> None:
    world = World().with_channel()
    world.meter(world.b, world.a, 5_000_000)
    for _ in range(20):
        world.meter(world.b, world.a, 0)
        world.advance(5.0)
    world.meter(world.b, world.a, 499)  # the last moment's traffic is asked for before the claim
    world.b.give(ev.OperatorCloseChannels())
    world.pump()
    assert [c.state for c in world.b.channels()] == [ChannelState.CLAIMING]
    assert [c.state for c in world.a.channels()] == [ChannelState.CLOSING]
    world.a.report_chain()
    world.pump()
    assert [c.state for c in world.a.channels()] == [ChannelState.CLAIMING]
    world.mine()
    assert [c.state for c in world.b.channels()] == [ChannelState.CLOSED]
    assert [c.state for c in world.a.channels()] == [ChannelState.CLOSED]
    assert_settled(world, 5_000_500)
    (claim,) = [
        o for o in world.b.notices(ev.BroadcastTransaction) if isinstance(o, ev.BroadcastTransaction) and o.fee_sat
    ]
    assert world.chain.received_sat(world.b.scripts) == 5_000 - (claim.fee_sat or 0)
    assert world.chain.received_sat(world.a.scripts) == 100_000 - 5_000
    world.mine(FINAL_DEPTH - 2)
    assert world.a.watched and world.b.watched  # what closed it may be reorganised away
    world.mine()
    assert not world.a.watched and not world.b.watched


def test_what_closed_a_channel_is_sent_again_however_often_it_leaves_the_chain() -> None:
    world = World().with_channel()
    world.meter(world.b, world.a, 5_000_000)
    world.advance(5.0)
    world.b.give(ev.OperatorCloseChannels())
    world.pump()
    world.mine()
    assert world.b.channels()[0].state is world.a.channels()[0].state is ChannelState.CLOSED
    for _ in range(3):
        world.chain.reorganise(1, vanish=False)
        world.chain.height += 4  # blocks of what pays more
        world.mine()
    world.chain.reorganise(1, vanish=True)
    assert not world.chain.received_sat(world.b.scripts)
    world.chain.height += 1
    world.mine(2)
    assert world.chain.received_sat(world.b.scripts) > 4_000


def test_a_claim_does_not_wait_for_a_payer_that_is_gone() -> None:
    world = World().with_channel()
    world.meter(world.b, world.a, 1_000_000)
    world.advance(60.0)
    world.disconnect()
    world.b.give(ev.OperatorCloseChannels())
    world.pump()
    assert [c.state for c in world.b.channels()] == [ChannelState.CLAIMING]


def test_a_silent_payer_cannot_hold_up_a_claim() -> None:
    world = World().with_channel()
    world.meter(world.b, world.a, 1_000_000)
    world.advance(60.0)
    world.b.give(ev.OperatorCloseChannels())
    world.collect()
    world.wire["a"].clear()
    assert [c.state for c in world.b.channels()] == [ChannelState.CLOSING]
    world.advance(5.0)
    assert [c.state for c in world.b.channels()] == [ChannelState.CLAIMING]


def test_closing_an_unused_channel_costs_nothing_and_the_payer_gets_it_back_after_expiry() -> None:
    """If the payee is gone; otherwise both close it together (test_cooperating)."""
    world = World().with_channel()
    world.b.give(ev.OperatorCloseChannels())
    world.pump()
    assert [c.state for c in world.b.channels()] == [ChannelState.CLOSED]
    assert [c.state for c in world.a.channels()] == [ChannelState.CLOSING]
    world.disconnect()
    expiry = world.a.channels()[0].expiry_height
    world.mine(expiry - world.chain.height - 1)
    assert [c.state for c in world.a.channels()] == [ChannelState.COOPERATING]
    world.mine()
    assert [c.state for c in world.a.channels()] == [ChannelState.REFUNDING]
    world.mine()
    assert [c.state for c in world.a.channels()] == [ChannelState.CLOSED]
    assert world.chain.received_sat(world.a.scripts) > 99_000


def test_the_payee_claims_one_margin_before_expiry_and_the_payer_stops_one_earlier() -> None:
    world = World(expiry_blocks=60, expiry_margin=6).with_channel()
    world.meter(world.b, world.a, 1_000_000)
    world.advance(60.0)
    expiry = world.a.channels()[0].expiry_height
    world.mine(expiry - 12 - world.chain.height)
    world.meter(world.b, world.a, 2_000)
    world.advance(5.0)
    assert len(world.a.channels()) == 2  # what falls due now goes through a new one
    world.mine(6)
    assert world.b.channels()[0].state is ChannelState.CLAIMING
    world.mine()
    assert world.b.channels()[0].state is ChannelState.CLOSED
    world.advance(5.0)
    assert_settled(world, 1_002_001)


def test_a_claim_that_is_refused_is_built_again_and_confirms() -> None:
    world = World().with_channel()
    world.meter(world.b, world.a, 1_000_000)
    world.advance(60.0)
    world.chain.is_refusing = True
    world.b.give(ev.OperatorCloseChannels())
    world.pump()
    world.mine(4)
    world.chain.is_refusing = False
    world.mine(2)
    assert [c.state for c in world.b.channels()] == [ChannelState.CLOSED]
    assert world.b.notices(ev.BroadcastRefused)


def test_a_payment_lost_before_the_claim_is_owed_again() -> None:
    """The payer counted it as sent; the chain shows that it was not claimed."""
    world = World().with_channel()
    world.meter(world.b, world.a, 1_000_000)
    world.advance(60.0)
    world.meter(world.b, world.a, 900_000)
    world.deliver(world.a, 100)  # the statement arrives, the payment leaves
    assert world.a.ledger(world.b).sent_msat == 1_900_001
    world.disconnect()
    world.b.give(ev.OperatorCloseChannels())
    world.pump()
    world.mine()
    assert world.a.ledger(world.b).sent_msat == world.b.ledger(world.a).received_msat == 1_000_001
    world.connect()
    world.advance(5.0)
    world.mine()
    world.advance(5.0)
    assert_settled(world, 1_900_001)


def test_a_payment_lost_with_the_session_is_sent_again_and_counted_once() -> None:
    world = World().with_channel()
    world.meter(world.b, world.a, 8_000)
    world.deliver(world.a, 100)
    assert world.a.ledger(world.b).sent_msat == 8_001
    world.disconnect()
    assert world.b.ledger(world.a).received_msat == 0
    world.connect()
    world.advance(5.0)
    assert_settled(world, 8_001)
    assert len(world.b.notices(ev.PaymentReceived)) == 1


def test_an_old_backup_of_the_payer_is_corrected_by_its_own_signature() -> None:
    world = World().with_channel()
    world.meter(world.b, world.a, 5_000)
    world.advance(5.0)
    backup = dict(world.a.store.channels), dict(world.a.store.ledgers)
    world.meter(world.b, world.a, 5_000)
    world.advance(5.0)
    world.a.store.channels, world.a.store.ledgers = backup
    world.crash(world.a)
    assert world.a.ledger(world.b).sent_msat == 5_001
    world.connect()
    world.pump()
    assert world.a.ledger(world.b).sent_msat == 10_001


@pytest.mark.parametrize("name", ["a", "b"])
def test_restart_keeps_debts_channels_and_suspension(name: str) -> None:
    world = World().with_channel()
    world.a.give(ev.OperatorHoldPayments(hold=True))
    world.meter(world.b, world.a, 2 * W)
    world.advance(5.0)
    assert world.b.suspended
    world.crash(world.a if name == "a" else world.b)
    assert world.b.suspended
    world.connect()
    world.advance(5.0)
    if name == "b":
        world.a.give(ev.OperatorHoldPayments(hold=False))
        world.advance(5.0)
    assert_settled(world, 2 * W + 1)


def test_a_channel_funded_before_the_session_broke_is_announced_in_the_next() -> None:
    world = World()
    world.connect()
    world.pump()
    world.meter(world.b, world.a, 1_000)
    world.deliver(world.b, 10)
    world.deliver(world.a, 10)  # accepted: the wallet is asked
    world.disconnect()
    world.work(world.a)
    world.mine()
    assert [c.state for c in world.b.channels()] == [ChannelState.OPENING]
    world.connect()
    world.advance(5.0)
    assert_settled(world, 1_000)


def test_a_reorganised_funding_is_broadcast_again_and_pays_on_when_it_is_back() -> None:
    world = World().with_channel()
    funding = world.a.channels()[0].funding
    assert funding is not None
    transaction = world.chain.transactions.pop(funding.txid)
    world.chain.height_by_txid.pop(funding.txid)
    world.chain.spender.clear()
    world.mine()
    assert funding.txid in world.chain.transactions
    assert world.a.channels()[0].state is ChannelState.PENDING
    assert transaction.hash() == funding.txid
    world.meter(world.b, world.a, 1_000)
    world.mine()
    world.advance(5.0)
    assert_settled(world, 1_001)


def test_a_funding_that_is_not_what_was_agreed_is_not_accepted() -> None:
    world = World()
    world.connect()
    world.meter(world.b, world.a, 1_000)
    world.pump()
    channel = world.b.channels()[0]
    assert channel.funding is not None
    world.chain.transactions[channel.funding.txid].vout[0].value -= 1
    world.mine()
    assert channel.channel_id not in world.b.store.channels
    assert world.b.ledger(world.a).received_msat == 0
    world.advance(5.0)  # the payer has been told, and opens another one
    world.mine()
    world.advance(5.0)
    assert world.a.channels()[0].state is ChannelState.CLOSING
    assert_settled(world, 1_000)
    assert not world.b.notices(ev.PeerFaultSeen)


def without_money() -> World:
    """a owes b, and its wallet has just said that it cannot fund a channel."""
    world = World()
    world.connect()
    world.pump()
    world.meter(world.b, world.a, 1_000)
    world.deliver(world.a, 10)
    world.deliver(world.b, 10)
    world.deliver(world.a, 10)
    while world.a.todo:
        event = world.a.todo.popleft()
        is_answer = isinstance(event, ev.ChannelFunded)
        world.a.give(ev.FundingFailed(event.channel_id, "no money") if isinstance(event, ev.ChannelFunded) else event)
        if is_answer:
            break
    world.pump()
    assert world.a.channels() == []
    return world


def test_a_wallet_without_money_is_asked_again_later() -> None:
    world = without_money()
    world.advance(9.0)
    assert world.a.channels() == []
    world.advance(2.0)
    assert [c.state for c in world.a.channels()] == [ChannelState.PENDING]


def test_a_wallet_without_money_is_asked_again_with_the_next_block() -> None:
    world = without_money()
    world.mine()
    assert [c.state for c in world.a.channels()] == [ChannelState.PENDING]


def test_a_late_answer_of_the_wallet_is_released() -> None:
    world = World()
    transaction = world.chain.fund(b"\x00\x20" + bytes(32), 1_000)
    world.a.give(ev.ChannelFunded(b"x" * 16, transaction))
    assert world.a.log[-1] == ev.ReleaseFunding(transaction.txid)


def test_held_payments_open_no_channel() -> None:
    world = World()
    world.connect()
    world.a.give(ev.OperatorHoldPayments(hold=True))
    world.meter(world.b, world.a, 1_000)
    world.advance(20.0)
    assert world.a.channels() == world.b.channels() == []


def test_channels_in_both_directions() -> None:
    world = World().with_channel()
    world.meter(world.b, world.a, 9_000)
    world.advance(5.0)
    world.meter(world.a, world.b, 20_000)
    world.pump()
    world.mine()
    world.advance(5.0)
    assert world.a.ledger(world.b).received_msat == world.b.ledger(world.a).sent_msat == 20_000
    assert {c.direction for c in world.a.channels()} == {Direction.IN, Direction.OUT}
    assert not world.a.suspended


def test_another_chain_is_not_spoken_to() -> None:
    world = World()
    world.b.engine._core.config = PaymentConfig(chain="main")
    world.connect()
    world.meter(world.b, world.a, 1_000)
    world.pump()
    assert world.a.dropped == {world.b.key}
    assert world.a.channels() == []


def test_metering_alone_is_written_at_the_tick_and_at_shutdown() -> None:
    world = World()
    world.meter(world.b, world.a, 1)
    assert not world.b.store.ledgers
    world.advance(5.0)
    assert world.b.store.ledgers[world.a.key].billed_units == 10**9
    world.meter(world.b, world.a, 1)
    world.b.run(world.b.engine.flush(now=world.time))
    assert world.b.store.ledgers[world.a.key].billed_units == 2 * 10**9


def test_no_more_than_a_quarter_of_the_window_is_ever_unwritten() -> None:
    world = World()
    world.meter(world.b, world.a, W / 4 - 1)
    assert not world.a.store.ledgers and not world.b.store.ledgers
    world.meter(world.b, world.a, 1)
    assert world.a.store.ledgers[world.b.key].owed_limit_units == W // 4 * 10**9
    assert world.b.store.ledgers[world.a.key].billed_units == W // 4 * 10**9


def test_many_crashes_of_a_buyer_do_not_end_in_a_dispute() -> None:
    world = World().with_channel()
    for _ in range(30):
        world.meter(world.b, world.a, W / 4 - 1)
        world.crash(world.a)
        world.connect()
        world.advance(5.0)
    assert_settled(world, 30 * (W // 4 - 1) + 1)
    assert not world.a.notices(ev.Disputed)


def test_what_was_meant_for_a_session_is_not_sent_in_the_next() -> None:
    world = World().with_channel()
    events: list[ev.Input] = [
        ev.MeteredTraffic(world.a.key, W * 10**9, 0),
        ev.PeerDisconnected(world.a.key),
        ev.PeerConnected(world.a.key),
    ]
    outputs = world.b.engine.handle_all(events, now=world.time + 1.0)
    sent = [msg.decode(o.data) for o in outputs if isinstance(o, ev.SendMessage)]
    assert [type(m) for m in sent] == [msg.Hello]


def test_strangers_that_owe_nothing_leave_nothing_behind() -> None:
    world = World()
    world.connect()
    world.pump()
    world.disconnect()
    assert world.a.engine.ledgers() == []
    assert not world.a.store.ledgers


def test_several_inputs_share_one_commit() -> None:
    world = World().with_channel()
    traffic = [ev.MeteredTraffic(world.a.key, 6_000 * 10**9, 0), ev.MeteredTraffic(b"C" * 32, 6_000 * 10**9, 0)]
    outputs = world.b.engine.handle_all(traffic, now=world.time + 1.0)
    assert [type(o) for o in outputs].count(ev.Persist) == 1
    (persist,) = [o for o in outputs if isinstance(o, ev.Persist)]
    assert len(persist.changes) == 2
