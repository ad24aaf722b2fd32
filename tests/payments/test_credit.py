"""Settlement on credit between two engines, and none at all (`null`): no chain, no channel."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from payments import events as ev
from payments import messages as msg
from payments.config import SettlementTerms
from payments.counts import Signer
from payments.credit import RECEIPT_DOMAIN, CreditLine, Notary, signed_bytes
from payments.life import InvariantError
from payments.records import ChannelState, CreditRecord
from tests.payments.world import CONFIG, Node, World

W = 10_000  # the start window, msat
LIMIT = 50_000
ACCOUNTS = msg.Accounts.of(billed_units=0, accepted_units=0, seen_units=0)


def world_of(settlement: str = "credit", limit_msat: int = LIMIT) -> World:
    """The window does not grow: what is beyond it is seen at once."""
    return World(settlement=SettlementTerms(settlement, limit_msat), max_window_msat=W)


def connected(settlement: str = "credit", limit_msat: int = LIMIT) -> World:
    world = world_of(settlement, limit_msat)
    world.connect()
    world.pump()
    return world


def reboot(world: World, node: Node, **changes: object) -> None:
    node.config = replace(node.config, **changes)  # type: ignore[arg-type]
    world.crash(node)


def credit(node: Node) -> ev.CreditView:
    (view,) = node.engine.credits()
    return view


def owe(world: World, msat: int) -> None:
    """`a` comes to owe `b`, and pays what it can."""
    world.meter(world.b, world.a, msat)
    world.advance(5.0)


def notary(maker: Node, other: Node) -> Notary:
    return Notary(Signer(maker.key, maker.sign), other.key, "regtest")


def note(world: World, paid_msat: int, redeemed_msat: int = 0) -> msg.CreditNote:
    """As `a` would sign it for `b`."""
    signature = notary(world.a, world.b).sign_note((paid_msat, redeemed_msat))
    return msg.CreditNote(paid_msat, redeemed_msat, signature, ACCOUNTS)


def say(world: World, message: msg.Message) -> list[ev.Output]:
    """`a` says it to `b`; what `b` does."""
    before = len(world.b.log)
    world.b.give(ev.ReceivedMessage(world.a.key, msg.encode(message)))
    return world.b.log[before:]


def fault_of(outputs: list[ev.Output]) -> str:
    """The reason; nothing else was done."""
    assert [type(output) for output in outputs] == [ev.PeerFaultSeen]
    (seen,) = outputs
    assert isinstance(seen, ev.PeerFaultSeen)
    return seen.reason


def test_a_debt_is_promised_and_both_hold_the_others_signature() -> None:
    world = connected()
    owe(world, 7_000)
    assert world.a.ledger(world.b).sent_msat == world.b.ledger(world.a).received_msat == 7_000
    assert world.b.ledger(world.a).unpaid_msat == 0
    assert (credit(world.a).owed_msat, credit(world.b).owed_msat) == (7_000, -7_000)
    assert credit(world.a).acknowledged_msat == 7_000
    at_a, at_b = world.a.store.credits[world.b.key], world.b.store.credits[world.a.key]
    notary(world.b, world.a).verify_note((at_b.their_paid_msat, at_b.their_redeemed_msat), at_b.their_signature)
    notary(world.a, world.b).verify_receipt((7_000, 0), at_a.receipt)


def test_there_is_neither_chain_nor_channel_nor_wallet() -> None:
    world = connected()
    owe(world, 40_000)
    kinds = (ev.FundChannel, ev.NeedScript, ev.WatchOutput, ev.BroadcastTransaction, ev.ChannelStateChanged)
    assert not [output for node in world.nodes for output in node.log if isinstance(output, kinds)]
    assert not any(node.engine.needs_chain for node in world.nodes)


def test_a_note_is_written_before_it_is_sent_and_before_it_is_acknowledged() -> None:
    world = connected()
    owe(world, 3_000)
    kinds = []
    for node in world.nodes:
        paid_msat = their_paid_msat = 0  # as written
        for output in node.log:
            for row in output.changes if isinstance(output, ev.Persist) else ():
                if isinstance(row, CreditRecord):
                    paid_msat, their_paid_msat = row.paid_msat, row.their_paid_msat
            message = msg.decode(output.data) if isinstance(output, ev.SendMessage) else None
            if isinstance(message, msg.CreditNote):
                assert message.paid_msat == paid_msat
            elif isinstance(message, msg.CreditReceipt):
                assert message.paid_msat == their_paid_msat
            kinds.append(type(message))
    assert {msg.CreditNote, msg.CreditReceipt} <= set(kinds)


def test_promises_end_at_the_limit_and_the_rest_is_enforced_as_any_debt() -> None:
    """Lost at most: the limit, and the window."""
    world = connected()
    for _ in range(12):
        owe(world, 9_000)
    assert credit(world.b).owed_msat == -LIMIT
    assert world.b.ledger(world.a).unpaid_msat > W
    assert world.b.suspended == {world.a.key}


def test_what_was_given_outside_makes_room_again() -> None:
    world = connected()
    for _ in range(7):
        owe(world, 9_000)
    assert world.b.suspended
    world.b.give(ev.OperatorRedeemCredit(world.a.key, 45_000))
    world.advance(10.0)
    assert credit(world.a).owed_msat == 7 * 9_000 - 45_000
    assert world.b.ledger(world.a).unpaid_msat == 0
    assert not world.b.suspended
    world.b.give(ev.OperatorRedeemCredit(world.a.key, 10**9))  # by mistake: it counts as far as something is owed
    world.pump()
    assert credit(world.a).owed_msat == credit(world.b).owed_msat == 0


def test_debts_in_both_directions_are_netted() -> None:
    world = connected()
    for _ in range(20):
        owe(world, 9_000)
        world.meter(world.a, world.b, 9_000)
        world.advance(5.0)
    assert credit(world.a).owed_msat == 0
    assert not world.a.suspended | world.b.suspended


def test_the_lower_limit_of_both_holds() -> None:
    world = world_of()
    reboot(world, world.b, settlement=SettlementTerms("credit", 4_000))
    world.connect()
    owe(world, 9_000)
    assert (credit(world.a).limit_msat, credit(world.a).owed_msat) == (4_000, 4_000)


@pytest.mark.parametrize("theirs", ["cltv", "null"])
def test_different_settlements_are_told_and_no_session_comes_of_it(theirs: str) -> None:
    world = world_of()
    reboot(world, world.b, settlement=SettlementTerms(theirs))
    world.connect()
    world.pump()
    (told,) = [output for output in world.a.log if isinstance(output, ev.DropConnection)]
    assert told.reason == f"settlement '{theirs}', ours is 'credit'"
    assert world.b.dropped == {world.a.key}
    assert not world.a.ledger(world.b).is_connected


def test_a_neighbour_of_ones_own_may_be_settled_with_otherwise() -> None:
    world = World()
    for node in world.nodes:
        reboot(world, node, settlement_by_peer={world.other(node).key: SettlementTerms("credit", LIMIT)})
    world.connect()
    owe(world, 5_000)
    assert credit(world.a).owed_msat == 5_000
    assert world.a.channels() == []


def test_channels_of_before_are_claimed_though_credit_holds_now() -> None:
    world = World().with_channel()
    for _ in range(100):
        owe(world, 9_000)
    for node in world.nodes:
        reboot(world, node, settlement=SettlementTerms("credit", LIMIT))
        assert node.engine.needs_chain
    world.connect()
    owe(world, 6_000)
    assert world.a.ledger(world.b).sent_msat == 906_001
    assert credit(world.a).owed_msat == 6_000
    world.b.give(ev.OperatorCloseChannels())
    world.advance(10.0)
    world.mine(2)
    assert {channel.state for node in world.nodes for channel in node.channels()} == {ChannelState.CLOSED}
    assert not world.a.engine.needs_chain


def test_no_channel_is_opened_to_who_takes_credit() -> None:
    world = connected()
    request = msg.OpenChannel(b"c" * 16, b"\x02" * 33, b"\x00\x14" + bytes(20), 100_000, world.chain.height + 60)
    say(world, request)
    world.collect()
    (answer,) = [msg.decode(data) for data in world.wire["a"]][-1:]
    assert isinstance(answer, msg.RejectChannel)
    assert world.b.channels() == []


# --- crashes, old backups ---


@pytest.mark.parametrize("who", ["a", "b"])
def test_an_old_backup_is_brought_up_to_date_by_the_other_end(who: str) -> None:
    """Nothing is lost, by neither."""
    world = connected()
    node = world.a if who == "a" else world.b
    owe(world, 4_000)
    backup = node.store.copy()
    owe(world, 5_000)
    node.store = backup
    world.crash(node)
    world.connect()
    world.pump()
    owe(world, 1_000)
    assert credit(world.a).owed_msat == -credit(world.b).owed_msat == 10_000
    assert credit(world.a).acknowledged_msat == 10_000
    assert world.b.ledger(world.a).unpaid_msat == 0


@pytest.mark.parametrize("who", ["a", "b"])
def test_the_channel_file_has_no_credit_and_a_restore_from_it_costs_none(who: str) -> None:
    world = connected()
    node = world.a if who == "a" else world.b
    owe(world, 9_000)
    world.b.give(ev.OperatorRedeemCredit(world.a.key, 2_000))
    world.pump()
    node.store.credits.clear()
    world.crash(node)
    world.connect()
    world.pump()
    owe(world, 1_000)
    assert credit(world.a).owed_msat == -credit(world.b).owed_msat == 8_000
    assert world.b.ledger(world.a).unpaid_msat == 0


def test_a_note_lost_on_the_way_is_sent_again_and_counts_once() -> None:
    world = connected()
    world.meter(world.b, world.a, 12_000)
    assert world.deliver(world.a)  # the bill; what it answers never arrives
    world.disconnect()
    assert credit(world.a).paid_msat > credit(world.a).acknowledged_msat
    world.connect()
    world.advance(5.0)
    assert credit(world.a).owed_msat == -credit(world.b).owed_msat == 12_000


MOVES = st.sampled_from(
    ["meter", "meter back", "deliver a", "deliver b", "tick", "crash a", "crash b", "restore a", "restore b", "redeem"]
)


@given(seed=st.integers(0, 2**32), moves=st.lists(MOVES, min_size=10, max_size=60))
@settings(deadline=None, max_examples=int(os.environ.get("MESHD_CREDIT_EXAMPLES", "40")))
def test_whatever_happens_both_end_up_with_the_same_balance_within_the_limit(seed: int, moves: list[str]) -> None:
    rng = random.Random(seed)
    world = world_of()
    backups = {node.name: node.store.copy() for node in world.nodes}
    redeemed_msat = 0
    for move in moves:
        kind, _, name = move.partition(" ")
        node = world.b if name == "b" else world.a
        if kind == "meter":
            seller, buyer = (world.a, world.b) if name else (world.b, world.a)
            world.meter(seller, buyer, rng.randrange(8_000))
        elif kind == "deliver":
            world.deliver(node, rng.randrange(4))
        elif kind == "tick":
            world.time += 0.2
            for each in world.nodes:
                each.give(ev.TimerExpired())
        elif kind == "redeem":
            world.b.give(ev.OperatorRedeemCredit(world.a.key, rng.randrange(1, 3_000)))
        else:
            if rng.random() < 0.3:
                backups[node.name] = node.store.copy()
            if kind == "restore":
                node.store = backups[node.name].copy()
            world.crash(node)
        if not world.is_connected and rng.random() < 0.7:
            world.connect()
        for view in (view for each in world.nodes for view in each.engine.credits()):
            assert -LIMIT <= view.owed_msat <= LIMIT
            redeemed_msat = max(redeemed_msat, view.redeemed_msat)
    world.connect()
    world.advance(30.0)
    if at_a := world.a.engine.credits():
        assert at_a[0].owed_msat == -credit(world.b).owed_msat
        assert at_a[0].paid_msat == credit(world.b).their_paid_msat == at_a[0].acknowledged_msat
    assert not any(node.notices(ev.PeerFaultSeen) for node in world.nodes)
    assert world.a.ledger(world.b).sent_msat == world.b.ledger(world.a).received_msat


# --- hostile peers ---


def test_a_note_above_the_limit_is_refused_and_nothing_is_counted() -> None:
    world = connected()
    assert fault_of(say(world, note(world, LIMIT + 1))) == "a credit note above the limit"
    assert world.b.ledger(world.a).received_msat == 0


def test_a_note_of_more_money_than_there_is_overflows_nothing() -> None:
    world = connected()
    huge = msg.encode(note(world, 2**63 - 1))
    before = len(world.b.log)
    world.b.give(ev.ReceivedMessage(world.a.key, huge))
    assert "2100000000000000000" in fault_of(world.b.log[before:])


def test_a_note_that_takes_back_is_refused() -> None:
    world = connected()
    owe(world, 5_000)
    assert fault_of(say(world, note(world, 4_999))) == "a credit note that takes back"


def test_a_repeated_note_is_acknowledged_again_and_counts_once() -> None:
    world = connected()
    owe(world, 5_000)
    outputs = say(world, note(world, 5_000))
    assert not [o for o in outputs if isinstance(o, ev.PaymentReceived | ev.PeerFaultSeen)]
    assert world.b.ledger(world.a).received_msat == 5_000


@pytest.mark.parametrize("spoil", ["signature", "maker", "holder", "chain", "sum"])
def test_a_note_that_the_peer_has_not_signed_for_us_is_refused(spoil: str) -> None:
    world = connected()
    maker, holder = (world.b if spoil == "maker" else world.a), (world.a if spoil == "holder" else world.b)
    signer = Notary(Signer(maker.key, maker.sign), holder.key, "signet" if spoil == "chain" else "regtest")
    signature = signer.sign_note((3_001 if spoil == "sum" else 3_000, 0))
    if spoil == "signature":
        signature = bytes([signature[0] ^ 1]) + signature[1:]
    assert "signature" in fault_of(say(world, msg.CreditNote(3_000, 0, signature, ACCOUNTS)))
    assert world.b.ledger(world.a).received_msat == 0


def test_a_receipt_is_no_note() -> None:
    world = connected()
    signed = signed_bytes(RECEIPT_DOMAIN, world.a.key, world.b.key, (3_000, 0), "regtest")
    assert "signature" in fault_of(say(world, msg.CreditNote(3_000, 0, world.a.sign(signed), ACCOUNTS)))


def test_more_cannot_be_redeemed_than_was_promised() -> None:
    world = connected()
    assert fault_of(say(world, note(world, 0, 1))) == "more redeemed than we have promised"


def test_a_sync_that_we_did_not_sign_makes_us_owe_nothing() -> None:
    world = connected()
    world.crash(world.b)
    world.connect()
    world.b.give(ev.ReceivedMessage(world.a.key, world_hello(world)))
    sync = msg.CreditSync(9_000, 0, notary(world.a, world.b).sign_note((9_000, 0)))
    assert "signature" in fault_of(say(world, sync))
    assert credit(world.b).owed_msat == 0


def test_a_second_sync_is_a_fault() -> None:
    world = connected()
    assert fault_of(say(world, msg.CreditSync(0, 0, b""))) == "a second credit sync"


def test_a_receipt_for_more_than_was_promised_is_a_fault() -> None:
    world = connected()
    receipt = notary(world.a, world.b).sign_receipt((1, 0))
    assert (
        fault_of(say(world, msg.CreditReceipt(1, 0, receipt, ACCOUNTS))) == "a receipt for more than we have promised"
    )


def world_hello(world: World) -> bytes:
    return msg.encode(msg.Hello(msg.PROTOCOL_VERSION, "regtest", "credit", LIMIT))


def test_a_stranger_that_acknowledges_nothing_and_goes_stops_nobody() -> None:
    world = connected()
    receipt = msg.CreditReceipt(0, 0, notary(world.a, world.b).sign_receipt((0, 0)), ACCOUNTS)
    assert not [o for o in say(world, receipt) if isinstance(o, ev.PeerFaultSeen)]
    world.b.give(ev.PeerDisconnected(world.a.key))
    assert world.b.engine.ledgers() == []
    world.advance(10.0)
    assert world.b.store.credits == {}


def test_credit_messages_mean_nothing_where_channels_are_agreed_on() -> None:
    world = World()
    world.connect()
    world.pump()
    assert fault_of(say(world, note(world, 1))) == "a credit message, where credit is not agreed on"


def test_a_line_that_takes_back_is_never_written() -> None:
    line = CreditLine(b"p" * 32, paid_msat=5)
    line.write()
    line.paid_msat = 4
    with pytest.raises(InvariantError):
        line.write()


# --- null ---


def test_null_is_metered_billed_and_shown_and_never_paid_nor_enforced() -> None:
    world = connected("null")
    for _ in range(30):
        owe(world, 9_000)
    assert world.b.ledger(world.a).unpaid_msat == 270_000
    assert world.a.ledger(world.b).accepted_units > 0
    assert not world.b.suspended
    assert world.a.ledger(world.b).sent_msat == 0
    kinds = (ev.PaymentSent, ev.Defaulted, ev.FundChannel)
    assert not [output for node in world.nodes for output in node.log if isinstance(output, kinds)]
    assert not any(node.store.ledgers for node in world.nodes)


def test_what_was_metered_under_null_is_not_asked_for_later() -> None:
    world = connected("null")
    owe(world, 90_000)
    for node in world.nodes:
        reboot(world, node, settlement=SettlementTerms("credit", LIMIT))
    world.connect()
    owe(world, 1_000)
    assert credit(world.a).owed_msat == 1_000
    assert not world.b.suspended


def test_terms_out_of_range_are_refused() -> None:
    for settlement, limit in (("lightning", 1), ("credit", -1), ("credit", 10**16)):
        with pytest.raises(ValueError, match=r"settlement|credit_limit"):
            SettlementTerms(settlement, limit)
    assert not replace(CONFIG, settlement=SettlementTerms("null")).needs_chain
