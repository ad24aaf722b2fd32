"""Splices: what is paid before, while and after one is under way counts once, whoever crashes, forgets or cheats."""

from __future__ import annotations

from dataclasses import replace

import pytest
from embit.script import Script
from embit.transaction import Transaction, TransactionOutput

from payments import events as ev
from payments import messages as msg
from payments.channel import Channel
from payments.core import SplicePlan
from payments.records import ChannelState, Direction
from payments.splicing import RIPE_DEPTH, recover
from tests.payments.test_engine import assert_settled
from tests.payments.world import Crash, Node, World

STEP_MSAT = 5_000


def small(**changes: object) -> World:
    world = World(**{"capacity_sat": 2_000, "max_window_msat": 20_000, **changes}).with_channel()
    world.mine(RIPE_DEPTH)
    return world


def channel_of(node: Node) -> Channel:
    (channel,) = node.engine._core.channels.values()
    return channel


def trade(world: World, msat: int) -> None:
    for _ in range(msat // STEP_MSAT):
        world.meter(world.b, world.a, STEP_MSAT)
        world.advance(0.2)


def splicing(**changes: object) -> World:
    """Both have signed a splice; it is in the pool. 1,600,001 msat are paid."""
    world = small(**changes)
    trade(world, 1_600_000)
    world.advance(5.0)
    assert [c.state for node in world.nodes for c in node.channels()] == [ChannelState.SPLICING] * 2
    return world


def test_a_used_channel_is_paid_out_and_filled_up_while_payments_go_on() -> None:
    world = splicing()
    before = channel_of(world.a).outpoint
    trade(world, 50_000)
    world.mine()
    trade(world, 500_000)
    world.advance(5.0)
    assert_settled(world, 2_150_001)
    for node in world.nodes:
        channel = channel_of(node)
        assert (channel.state, channel.number) == (ChannelState.OPEN, 1)
        assert channel.terms.capacity_sat == 2_000 and channel.outpoint != before
        assert channel.base_msat >= 1_270_000
    assert world.chain.received_sat(world.b.scripts) * 1_000 == channel_of(world.b).base_msat


def test_what_a_splice_leaves_is_claimed_in_the_end_and_no_more() -> None:
    world = splicing()
    world.mine()
    trade(world, 600_000)
    world.advance(5.0)
    paid_msat = channel_of(world.b).cumulative_msat
    world.b.give(ev.OperatorCloseChannels())
    world.advance(10.0)
    world.mine(2)
    claim = next(o for o in world.b.log if isinstance(o, ev.BroadcastTransaction))
    assert claim.kind is ev.TransactionKind.CLAIM and claim.fee_sat is not None
    assert world.chain.received_sat(world.b.scripts) == paid_msat // 1_000 - claim.fee_sat
    assert [c.state for node in world.nodes for c in node.channels()] == [ChannelState.CLOSED] * 2


def test_a_channel_that_expires_soon_goes_on_without_the_wallet_where_nothing_is_missing() -> None:
    world = small()
    expiry = channel_of(world.a).terms.expiry_height
    world.mine(expiry - 3 * world.a.config.expiry_margin - world.chain.height)
    trade(world, STEP_MSAT)
    assert not world.a.notices(ev.FundSplice) or channel_of(world.a).splice is not None
    world.mine()
    trade(world, STEP_MSAT)
    world.advance(5.0)
    assert_settled(world, 2 * STEP_MSAT + 1)
    assert channel_of(world.a).terms.expiry_height > expiry
    assert channel_of(world.a).number == 1


def test_a_wallet_without_money_lets_a_channel_that_expires_go_on_with_its_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = small(capacity_sat=4_000)
    trade(world, 1_000_000)
    expiry = channel_of(world.a).terms.expiry_height
    world.mine(expiry - 3 * world.a.config.expiry_margin - world.chain.height)
    world.a.give(ev.PeerDisconnected(world.b.key))  # keeps the wallet's answer out
    world.connect()
    ask = world.a._ask

    def poor(output: ev.Output) -> None:
        if isinstance(output, ev.FundSplice):
            world.a.todo.append(ev.FundingFailed(output.channel_id, "no money"))
        else:
            ask(output)

    monkeypatch.setattr(world.a, "_ask", poor)
    trade(world, STEP_MSAT)
    world.mine()
    trade(world, STEP_MSAT)
    world.advance(5.0)
    assert_settled(world, 1_000_000 + 2 * STEP_MSAT + 1)
    channel = channel_of(world.a)
    assert channel.number == 1 and 2_000 < channel.terms.capacity_sat < 3_000


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("after", range(8))
def test_a_crash_at_any_output_of_a_splice(name: str, after: int) -> None:
    world = small()
    trade(world, 1_250_000)
    node = getattr(world, name)
    try:
        node.crash_after = after
        trade(world, 100_000)
    except Crash:
        world.crash(node)
        world.connect()
    node.crash_after = None
    trade(world, 100_000)
    world.mine()
    world.advance(5.0)
    trade(world, 100_000)
    world.advance(10.0)
    a, b = world.a.ledger(world.b), world.b.ledger(world.a)
    assert a.sent_msat == b.received_msat and b.unpaid_msat == 0
    assert {channel.number for node in world.nodes for channel in node.engine._core.channels.values()} == {1}


@pytest.mark.parametrize("names", ["a", "b", "ab"])
def test_old_backups_from_before_a_splice_are_brought_up_to_date_by_the_chain_and_each_other(names: str) -> None:
    world = small()
    nodes = [getattr(world, name) for name in names]
    backups = [node.store.copy() for node in nodes]
    trade(world, 1_600_000)
    world.mine()
    trade(world, 300_000)
    world.advance(5.0)
    paid_msat = world.a.ledger(world.b).sent_msat
    paid_out_msat = channel_of(world.a).base_msat
    for node, backup in zip(nodes, backups, strict=True):
        node.store = backup
        world.crash(node)
    world.connect()
    world.mine()
    for node in world.nodes:
        assert (channel_of(node).number, channel_of(node).state) == (1, ChannelState.OPEN)
    if names == "ab":  # what was paid on the new output, both have forgotten
        assert world.a.ledger(world.b).sent_msat == world.b.ledger(world.a).received_msat == paid_out_msat
    else:
        assert world.a.ledger(world.b).sent_msat == world.b.ledger(world.a).received_msat == paid_msat
        trade(world, STEP_MSAT)
        world.advance(5.0)
        assert world.a.ledger(world.b).sent_msat == world.b.ledger(world.a).received_msat == paid_msat + STEP_MSAT
    assert not world.a.notices(ev.PeerFaultSeen) and not world.b.notices(ev.PeerFaultSeen)


def test_a_claim_that_is_not_worth_it_waits_for_the_splice() -> None:
    world = splicing()
    trade(world, 50_000)
    world.b.report_chain()
    world.pump()
    world.b.give(ev.OperatorCloseChannels())
    world.advance(10.0)
    claims = [o for o in world.b.log if isinstance(o, ev.BroadcastTransaction) and o.kind is ev.TransactionKind.CLAIM]
    assert not claims  # what is paid on the new output is not worth its fee
    world.mine()
    trade(world, 0)
    assert channel_of(world.b).state is ChannelState.CLOSING and channel_of(world.b).number == 1


def test_a_claim_of_an_unconfirmed_splice() -> None:
    world = small(capacity_sat=20_000, max_window_msat=400_000)
    while channel_of(world.a).state is ChannelState.OPEN:
        world.meter(world.b, world.a, 100_000)
        world.advance(0.5)
    for _ in range(30):
        world.meter(world.b, world.a, 100_000)
        world.advance(0.5)
    payee = channel_of(world.b)
    assert payee.splice is not None
    world.work(world.b)
    world.b.report_chain()
    world.pump()
    world.b.give(ev.OperatorCloseChannels())
    world.advance(10.0)
    claim = next(o for o in world.b.log if isinstance(o, ev.BroadcastTransaction))
    (spent,) = Transaction.parse(claim.raw).vin
    assert bytes(spent.txid)[::-1] == payee.splice.funding.txid
    world.mine(2)
    assert [c.state for node in world.nodes for c in node.channels()] == [ChannelState.CLOSED] * 2
    assert_settled_on_chain(world)


def assert_settled_on_chain(world: World) -> None:
    fees = sum(o.fee_sat or 0 for o in world.b.log if isinstance(o, ev.BroadcastTransaction))
    assert world.chain.received_sat(world.b.scripts) == world.b.ledger(world.a).received_msat // 1_000 - fees


def proposal(world: World) -> tuple[msg.SpliceChannel, Channel]:
    """The first one that `a` makes, before `b` has it."""
    trade(world, 1_250_000)
    for _ in range(100):
        world.meter(world.b, world.a, STEP_MSAT)
        world.time += 0.2
        for node in world.nodes:
            node.give(ev.TimerExpired())
        for _ in range(10):
            world.work(world.a)
            world.work(world.b)
            world.deliver(world.a, 100)
            world.collect()
            for data in list(world.wire["b"]):
                message = msg.decode(data)
                if isinstance(message, msg.SpliceChannel):
                    world.wire["b"].clear()
                    return message, channel_of(world.b)
            world.deliver(world.b, 100)
    raise AssertionError("no proposal")


def say(world: World, message: msg.Message) -> list[ev.Output]:
    start = len(world.b.log)
    world.b.give(ev.ReceivedMessage(world.a.key, msg.encode(message)))
    return world.b.log[start:]


def altered(raw: bytes, **outputs: int) -> bytes:
    transaction = Transaction.parse(raw)
    if "locktime" in outputs:
        transaction.locktime = outputs["locktime"]
    if "payout" in outputs:
        transaction.vout[1] = TransactionOutput(
            transaction.vout[1].value + outputs["payout"], transaction.vout[1].script_pubkey
        )
    if "sequence" in outputs:
        transaction.vin[1].sequence = outputs["sequence"]
    if "more" in outputs:
        transaction.vout.append(TransactionOutput(outputs["more"], Script(transaction.vout[1].script_pubkey.data)))
    changed: bytes = transaction.serialize()
    return changed


def test_forged_splices_are_faults_and_change_nothing() -> None:
    world = small()
    honest, payee = proposal(world)
    before = payee.record()
    forgeries = [
        replace_struct(honest, raw=altered(honest.raw, payout=-1)),
        replace_struct(honest, raw=altered(honest.raw, more=600)),
        replace_struct(honest, raw=altered(honest.raw, locktime=500)),
        replace_struct(honest, raw=altered(honest.raw, sequence=0xFFFFFFFF)),
        replace_struct(honest, base_msat=honest.base_msat + 1_000),
        replace_struct(honest, base_msat=honest.base_msat - 1),
        replace_struct(honest, base_msat=0),
        replace_struct(honest, capacity_sat=honest.capacity_sat + 1),
        replace_struct(honest, expiry_height=honest.expiry_height + 1),
        replace_struct(honest, splice_signature=honest.signature),
        replace_struct(honest, raw=honest.raw[:-1]),
    ]
    for number, forgery in enumerate(forgeries, start=1):
        say(world, forgery)
        assert len(world.b.notices(ev.PeerFaultSeen)) == number
    assert payee.record() == replace(before, cumulative_msat=payee.cumulative_msat, signature=payee.signature)
    assert payee.state is ChannelState.OPEN


def replace_struct(message: msg.SpliceChannel, **changes: object) -> msg.SpliceChannel:
    values = {name: getattr(message, name) for name in message.__struct_fields__}
    return msg.SpliceChannel(**{**values, **changes})  # type: ignore[arg-type]


def test_an_input_whose_id_can_still_change_is_rejected() -> None:
    """A legacy input is signed outside the witness: with its signature the splice has another id, and the payee's
    signatures are for an output that never exists."""
    world = small()
    honest, payee = proposal(world)
    outputs = say(world, honest)
    (asked,) = [o for o in outputs if isinstance(o, ev.InspectInputs)]
    world.b.todo.clear()
    legacy = b"\x76\xa9\x14" + bytes(20) + b"\x88\xac"
    world.b.give(ev.InputsSeen(asked.channel_id, asked.txid, (legacy,)))
    assert payee.state is ChannelState.OPEN and payee.splice is None
    sent = [msg.decode(o.data) for o in world.b.log if isinstance(o, ev.SendMessage)]
    assert sent[-1] == msg.RejectSplice(asked.channel_id, asked.txid, msg.REJECT_TERMS)
    world.advance(60.0)
    trade(world, 100_000)  # the payer opens another channel instead
    world.mine()
    assert len(world.a.channels(direction=Direction.OUT)) == 2


def test_the_chain_is_asked_for_one_proposal_at_a_time() -> None:
    """Each question is as many requests to a backend as there are inputs."""
    world = small()
    honest, payee = proposal(world)
    other = replace_struct(honest, raw=altered(honest.raw, more=600))
    asked = [o for message in (honest, honest, other) for o in say(world, message) if isinstance(o, ev.InspectInputs)]
    assert len(asked) == 1
    world.work(world.b)
    assert payee.state is ChannelState.SPLICING and not world.b.notices(ev.PeerFaultSeen)


def test_a_proposal_that_meets_a_claim_is_withdrawn() -> None:
    """Else the payer could not close together, and what its wallet added would stay set aside until the expiry."""
    world = small()
    honest, _ = proposal(world)
    payer = channel_of(world.a)
    world.b.give(ev.OperatorCloseChannels())
    world.deliver(world.a, 100)
    assert payer.state is ChannelState.CLOSING and payer.splice is not None
    say(world, honest)
    world.deliver(world.a, 100)
    released = [o.txid for o in world.a.log if isinstance(o, ev.ReleaseFunding)]
    assert payer.splice is None and released == [Transaction.parse(honest.raw).hash()]


def test_a_close_that_an_old_backup_began_goes_on_after_the_splice_that_it_had_forgotten() -> None:
    world = small()
    backup = world.a.store.copy()
    trade(world, 1_600_000)
    world.mine()
    trade(world, 300_000)
    world.advance(5.0)
    world.a.store = backup
    world.crash(world.a)
    world.a.todo.clear()  # the payee is the first to tell
    world.a.give(ev.ChainTipChanged(world.chain.height, world.chain.fee_rate))
    world.a.give(ev.OperatorCloseChannel(channel_of(world.a).channel_id))
    world.connect()
    world.pump()
    assert channel_of(world.a).state is ChannelState.COOPERATING and channel_of(world.a).splice is not None
    world.mine(3)
    assert [c.state for node in world.nodes for c in node.channels()] == [ChannelState.CLOSED] * 2
    assert world.a.ledger(world.b).sent_msat == world.b.ledger(world.a).received_msat == 1_900_001


def test_a_refund_is_not_searched_for_a_splice() -> None:
    """It may have thousands of outputs, and each is compared with thousands of expiries."""
    world = small()
    honest, _ = proposal(world)
    payer, core = channel_of(world.a), world.a.engine._core
    assert not recover(core, payer, altered(honest.raw, locktime=payer.terms.expiry_height), height=core.height)
    assert recover(core, payer, honest.raw, height=core.height)


def test_what_was_paid_while_the_wallet_had_no_money_is_not_left_out_of_the_next_output() -> None:
    world = small(capacity_sat=4_000)
    trade(world, 1_000_000)
    payer, core = channel_of(world.a), world.a.engine._core
    world.mine(payer.terms.expiry_height - 3 * world.a.config.expiry_margin - world.chain.height)
    plan = SplicePlan(payer.channel_id, replace(payer.terms, expiry_height=core.height + 60), 1_000_000)
    core.peer(world.b.key).splicing = plan
    payer.pay(payer.remaining_msat, core.key_of(payer.channel_id))
    world.a.give(ev.FundingFailed(payer.channel_id, "no money"))
    assert payer.splice is None and payer.state is ChannelState.OPEN


def test_a_payment_on_one_output_alone_is_a_fault_while_there_are_two() -> None:
    world = splicing()
    payer, payee = channel_of(world.a), channel_of(world.b)
    before = payee.cumulative_msat
    payer.pay(1_000, world.a.engine._core.key_of(payer.channel_id))
    assert payer.signature is not None
    nothing = msg.Accounts.of(billed_units=0, accepted_units=0, seen_units=0)
    say(world, msg.Payment(payer.channel_id, 0, payer.cumulative_msat, payer.signature, b"", nothing))
    assert world.b.notices(ev.PeerFaultSeen) and payee.cumulative_msat == before


def test_a_splice_that_vanishes_in_a_reorganisation_comes_back() -> None:
    world = splicing()
    world.mine()
    trade(world, 100_000)
    world.chain.reorganise(1, vanish=True)
    world.mine(2)
    trade(world, 100_000)
    world.mine()
    trade(world, 100_000)
    world.advance(5.0)
    assert_settled(world, 1_900_001)
    assert channel_of(world.a).number == channel_of(world.b).number == 1


def test_what_a_payer_pays_on_a_splice_that_the_payee_has_not_seen_yet_waits() -> None:
    world = splicing()
    world.chain.mine()
    world.a.new_block()  # `b` hears nothing of the block
    trade(world, 20_000)
    assert world.a.ledger(world.b).sent_msat > world.b.ledger(world.a).received_msat
    world.b.new_block()
    world.pump()
    world.advance(5.0)
    assert_settled(world, 1_620_001)


def test_an_operator_closes_after_the_splice() -> None:
    world = splicing()
    world.a.give(ev.OperatorCloseChannel(channel_of(world.a).channel_id))
    assert channel_of(world.a).state is ChannelState.SPLICING
    world.mine()
    assert channel_of(world.a).state is ChannelState.COOPERATING
    world.mine()
    assert [c.state for node in world.nodes for c in node.channels()] == [ChannelState.CLOSED] * 2
