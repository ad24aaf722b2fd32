"""How a channel ends: the payee claims, or the payer refunds itself after the expiry. Both are decided by the chain.

Before a claim the payee asks the payers to stop, and waits a moment for what is on its way (`CloseChannel`,
`CloseReady`); then all that is ready goes into one transaction.
"""

from __future__ import annotations

from payments import cooperating, settlement, splicing
from payments.channel import PAYABLE, Channel, claimed_sat, closed_together_sat
from payments.channel_tx import (
    CLAIM_LOCKTIME,
    MAX_BATCH,
    ChannelTerms,
    Claim,
    UneconomicError,
    build_claim,
    build_refund,
    claim_marginal_fee,
    dust_limit,
    parse_transaction,
)
from payments.core import Core, Peer
from payments.events import (
    BroadcastDone,
    BroadcastRefused,
    BroadcastTransaction,
    ChannelOutputSeen,
    TransactionKind,
    UnwatchOutput,
)
from payments.fees import MIN_RELAY_FEE_RATE, fee_of, fee_rate_of, is_step_due, ladder_rate, replaces, virtual_bytes
from payments.life import Cause
from payments.messages import REJECT_UNKNOWN, CloseChannel, CloseReady, RejectChannel
from payments.mutual_tx import is_payment_claim
from payments.opening import MAX_REFUSALS
from payments.ports import Outpoint, OutputStatus, SignedTransaction
from payments.records import ChannelState, Direction
from payments.units import msat_to_units

FINAL_DEPTH = 7  # blocks: one more than reorganisations that are to be expected
MAX_FINAL_BLOCKS = 1_008  # a week: who sees it no deeper until then has a backend that does not tell, or a dead chain
_REFUNDABLE = (ChannelState.OPEN, ChannelState.SPLICING, ChannelState.COOPERATING, ChannelState.CLOSING)

# --- the payee ---


def begin_close(core: Core, channel: Channel, cause: Cause, *, now: float) -> None:
    """Of an incoming channel that is not closing yet. With the payer away there is nothing to wait for."""
    peer = core.peer(channel.peer)
    if peer.is_ready:
        settlement.state_now(core, peer, now=now)
        core.send(peer, CloseChannel(channel.channel_id))
    channel.is_close_ready = not peer.is_ready
    core.move(channel, cause)
    wait_for_payers(core, now=now)


def wait_for_payers(core: Core, *, now: float) -> None:
    """One deadline for all that are closing: it moves with the last one that begins."""
    core.claim_at = now + core.config.closing_timeout


def handle_close_ready(core: Core, peer: Peer, message: CloseReady, *, now: float) -> None:
    channel = core.channel_of(peer, message.channel_id, Direction.IN)
    channel.is_close_ready = channel.is_payer_done = True
    if channel.state is ChannelState.CLOSING and core.claim_at is None:
        core.claim_at = now


def end_session(peer: Peer) -> None:
    """What was under way in the session, and is not written, begins anew in the next."""
    for channel in peer.channels_of(Direction.IN, ChannelState.CLOSING):
        channel.is_close_ready = True
    for channel in peer.channels:
        channel.offered = channel.early = None


def review_claims(core: Core, *, now: float) -> None:
    """Claim when every payer has said its last word, or has had the time to."""
    if core.claim_at is None or core.script is None or core.fee_rate is None:
        return
    closing = [c for c in core.channels.values() if c.direction is Direction.IN and c.state is ChannelState.CLOSING]
    if now < core.claim_at and not all(c.is_close_ready for c in closing):
        return
    core.claim_at = None
    for channel in closing:
        is_over = channel.paid_sat == 0 and channel.is_payer_done  # or it might go on paying through it
        if is_over and channel.splice is None:
            close(core, channel, Cause.NOTHING_TO_CLAIM)
    _claim_worth(core, closing, fee_rate=core.fee_rate, destination=core.script)
    # What can not wait for lower fees is claimed for what it can pay: something is better than nothing.
    urgent = [c for c in closing if core.height >= c.terms.expiry_height - core.config.expiry_margin]
    _claim_worth(core, urgent, fee_rate=min(MIN_RELAY_FEE_RATE, core.fee_rate), destination=core.script)


def _claim_worth(core: Core, channels: list[Channel], *, fee_rate: float, destination: bytes) -> None:
    marginal_fee_sat = claim_marginal_fee(fee_rate)
    worth_it = [c for c in channels if c.state is ChannelState.CLOSING and c.claimable_sat > marginal_fee_sat]
    for first in range(0, len(worth_it), MAX_BATCH):
        _claim(core, worth_it[first : first + MAX_BATCH], least_rate=fee_rate, destination=destination)


def _claim(core: Core, channels: list[Channel], *, least_rate: float, destination: bytes) -> None:
    """What is not worth its fee stays CLOSING, and is looked at again at the next tip."""
    claims: list[Claim] = [channel.claim(core.key_of(channel.channel_id)) for channel in channels]
    try:
        transaction = build_claim(claims, destination=destination, fee_rate=least_rate)
        rate = min(wanted_rate(core, channels), _most_rate(transaction.raw, claims, destination))
        if rate > least_rate:
            transaction = build_claim(claims, destination=destination, fee_rate=rate)
    except UneconomicError:
        return
    core.use_script()
    for channel in channels:
        _set_spend(channel, transaction)
        core.move(channel, Cause.CLAIM_SENT)
    _broadcast(core, transaction, TransactionKind.CLAIM, [(claim.terms, claim.outpoint) for claim in claims])


def _most_rate(raw: bytes, claims: list[Claim], destination: bytes) -> float:
    """What the claims can pay, sat/vB, if their transaction is as large as `raw` and their output is not to be dust."""
    most_sat = sum(claim.paid_sat for claim in claims) - dust_limit(destination)
    return most_sat / (virtual_bytes(raw) + len(claims) + 1)


def _broadcast(
    core: Core, transaction: SignedTransaction, kind: TransactionKind, spent: list[tuple[ChannelTerms, Outpoint]]
) -> None:
    core.broadcast(BroadcastTransaction(transaction.raw, transaction.txid, kind, transaction.fee_sat), spent)


def wanted_rate(core: Core, channels: list[Channel]) -> float:
    """The nearest expiry decides: after it the payer may take the money back."""
    left = min(channel.terms.expiry_height for channel in channels) - core.height
    return ladder_rate(core.fee_rate or 0.0, blocks_left=left, margin=core.config.expiry_margin)


def step_fees(core: Core) -> None:
    """At each tip: what does not confirm is replaced by what pays more, when that is a step (BIP125)."""
    if core.fee_rate is None:
        return
    claims: dict[bytes, list[Channel]] = {}
    for channel in core.channels.values():
        if channel.spend_raw is None or channel.spend_txid is None:
            continue
        if channel.direction is Direction.IN and channel.state is ChannelState.CLAIMING:
            claims.setdefault(channel.spend_txid, []).append(channel)
        elif channel.state is ChannelState.REFUNDING:
            _step_refund(core, channel)
        elif channel.state is ChannelState.COOPERATING:
            cooperating.propose(core, core.peer(channel.peer), channel)
    for channels in claims.values():
        _step_claim(core, channels)


def _step_claim(core: Core, channels: list[Channel]) -> None:
    raw = channels[0].spend_raw
    if raw is None:
        return
    claims = [channel.claim(core.key_of(channel.channel_id)) for channel in channels]
    old = parse_transaction(raw)
    spent = {Outpoint(bytes(item.txid)[::-1], item.vout) for item in old.vin}
    if spent != {claim.outpoint for claim in claims}:
        return  # part of it is decided already; the rest is claimed anew when that is final
    old_rate = fee_rate_of(raw, [claim.terms.capacity_sat for claim in claims])
    destination = old.vout[-1].script_pubkey.data
    rate = min(wanted_rate(core, channels), _most_rate(raw, claims, destination))
    if not is_step_due(old_rate, rate):
        return
    try:
        transaction = build_claim(claims, destination=destination, fee_rate=rate)
    except UneconomicError:
        return
    if not replaces(raw, fee_of(raw, [claim.terms.capacity_sat for claim in claims]), transaction.fee_sat):
        return
    for channel in channels:
        _set_spend(channel, transaction)
        core.channel_changed(channel)
    _broadcast(core, transaction, TransactionKind.CLAIM, [(claim.terms, claim.outpoint) for claim in claims])


def _set_spend(channel: Channel, transaction: SignedTransaction) -> None:
    channel.spend_txid, channel.spend_raw = transaction.txid, transaction.raw
    channel.refusals = 0


def _claim_anew(core: Core, spend_txid: bytes | None, reason: str, *, now: float) -> None:
    """The transaction cannot confirm as it is: what it would have claimed is claimed by another one."""
    for channel in core.channels.values():
        is_claiming = channel.state is ChannelState.CLAIMING and channel.direction is Direction.IN
        if is_claiming and channel.spend_txid == spend_txid:
            channel.is_close_ready = True
            core.move(channel, Cause.CLAIM_LOST, reason)
            core.claim_at = now


# --- the payer ---


def handle_close_channel(core: Core, peer: Peer, message: CloseChannel, *, now: float) -> None:
    """A last payment of what was just asked for, then no more."""
    channel = core.channel_of(peer, message.channel_id, Direction.OUT)
    if channel.state in (ChannelState.PENDING, *PAYABLE):
        settlement.pay(core, peer, now=now)
        core.move(channel, Cause.PAYEE_CLOSES)
    core.send(peer, CloseReady(channel.channel_id))


def close_outgoing(core: Core, channel: Channel) -> None:
    """By the operator. A splice is waited for: of two transactions that spend the channel, one would be for nothing."""
    if channel.state is ChannelState.OPEN:
        cooperating.begin(core, channel, Cause.CLOSE_AGREED)
    elif channel.state is ChannelState.SPLICING:
        channel.is_close_wanted = True


def _review_overdue(core: Core, channel: Channel) -> None:
    """The payee has announced a claim that does not come, since there is little to claim, or it is gone."""
    if channel.waiting_since is None:
        channel.waiting_since = core.height
    is_overdue = core.height - channel.waiting_since >= core.config.close_patience_blocks
    if is_overdue and channel.splice is None and channel.payout_script:
        cooperating.begin(core, channel, Cause.CLAIM_OVERDUE)


def _refund(core: Core, channel: Channel) -> None:
    transaction = _build_refund(core, channel)
    if transaction is None:
        return
    _set_spend(channel, transaction)
    core.move(channel, Cause.EXPIRED)
    _broadcast(core, transaction, TransactionKind.REFUND, [(channel.terms, channel.outpoint)])


def _build_refund(core: Core, channel: Channel) -> SignedTransaction | None:
    if core.fee_rate is None:
        return None
    key = core.key_of(channel.channel_id)
    try:
        return build_refund(channel.terms, channel.outpoint, payer_key=key, fee_rate=core.fee_rate)
    except UneconomicError:
        return None


def _step_refund(core: Core, channel: Channel) -> None:
    if channel.spend_raw is None or core.fee_rate is None:
        return
    if not is_step_due(fee_rate_of(channel.spend_raw, [channel.terms.capacity_sat]), core.fee_rate):
        return
    transaction = _build_refund(core, channel)
    old_fee_sat = fee_of(channel.spend_raw, [channel.terms.capacity_sat])
    if transaction is not None and replaces(channel.spend_raw, old_fee_sat, transaction.fee_sat):
        _set_spend(channel, transaction)
        core.channel_changed(channel)
        _broadcast(core, transaction, TransactionKind.REFUND, [(channel.terms, channel.outpoint)])


# --- what the chain says, at both ends ---


def handle_output_seen(core: Core, event: ChannelOutputSeen, *, now: float) -> None:
    channel = core.channels.get(event.channel_id)
    if channel is None or channel.funding is None:
        core.emit(UnwatchOutput(event.channel_id))
        return
    if event.outpoint != channel.funding:
        return  # asked before a splice was confirmed
    status = event.status
    if channel.state is ChannelState.CLOSED:
        _review_closed(core, channel, status)
    elif status is None:
        _handle_missing(core, channel)
    elif not channel.matches(status):
        if channel.direction is Direction.IN:
            _dismiss(core, channel, Cause.NOT_AS_AGREED)
    elif status.spent_by is not None:
        _handle_spent(core, channel, status, event.spending_raw, now=now)
    else:
        _handle_unspent(core, channel, status, now=now)


def _review_closed(core: Core, channel: Channel, status: OutputStatus | None) -> None:
    """What ended it is sent again until it is so deep, in the chain of today, that no reorganisation to be expected
    undoes it: several, one after the other, may have left it out for longer than that."""
    is_final = status is not None and status.spent_by is not None and _depth(core, status.spent_height) >= FINAL_DEPTH
    if is_final or channel.spend_raw is None:
        _forget_transactions(core, channel)


def _forget_transactions(core: Core, channel: Channel) -> None:
    """Of a closed channel."""
    channel.funding_raw = channel.spend_raw = None
    core.channel_changed(channel, hard=False)
    core.emit(UnwatchOutput(channel.channel_id))


_LIVE = frozenset({ChannelState.PENDING, ChannelState.OPEN, ChannelState.SPLICING, ChannelState.COOPERATING})


def review_expiries(core: Core, *, now: float) -> None:
    """By the height alone: a backend that is silent about an output, or denies it, must not make the payee miss the
    end of a channel through which it was paid."""
    for channel in core.channels.values():
        is_soon = core.height >= channel.terms.expiry_height - core.config.expiry_margin
        is_at_stake = channel.direction is Direction.IN and channel.cumulative_msat > 0
        if is_soon and is_at_stake and channel.state in _LIVE:
            begin_close(core, channel, Cause.EXPIRES_SOON, now=now)


def _depth(core: Core, height: int | None) -> int:
    return 0 if height is None else max(0, core.tip_height - height + 1)


def _handle_missing(core: Core, channel: Channel) -> None:
    """Not there yet, or reorganised away. Our own funding transaction may confirm at any time: it stays watched."""
    channel.is_splice_seen, channel.depth = False, 0
    is_over = core.height >= channel.terms.expiry_height
    if channel.direction is Direction.IN and is_over and channel.state is not ChannelState.OPEN:
        _dismiss(core, channel, Cause.NEVER_FUNDED)
        return
    if channel.state is ChannelState.OPEN:
        core.move(channel, Cause.FUNDING_LOST)
    if channel.funding_raw is not None:
        core.emit(BroadcastTransaction(channel.funding_raw, channel.outpoint.txid, TransactionKind.FUNDING))
    for transaction in _unconfirmed(channel):
        core.emit(transaction)


def _dismiss(core: Core, channel: Channel, cause: Cause) -> None:
    """What never had its confirmations cost the payer nothing, and brought us nothing, whatever it has signed: it
    leaves no row, or made-up fundings would fill the table. The payer is told: if our backend is wrong, it opens
    another one instead of paying in vain."""
    if channel.is_confirmed:
        close(core, channel, cause)
        return
    core.move(channel, cause)
    core.forget(channel)
    core.emit(UnwatchOutput(channel.channel_id))
    peer = core.peer(channel.peer)
    if peer.is_ready:
        core.send(peer, RejectChannel(channel.channel_id, REJECT_UNKNOWN))


def _handle_unspent(core: Core, channel: Channel, status: OutputStatus, *, now: float) -> None:
    channel.depth = _depth(core, status.height)
    is_deep = channel.depth >= core.config.min_confirmations
    channel.is_splice_seen = channel.is_output_lost = False
    if channel.state is ChannelState.PENDING and is_deep:
        _handle_confirmed(core, channel)
    elif channel.state is ChannelState.OPEN and status.height is None:
        core.move(channel, Cause.FUNDING_LOST)
    elif channel.state is ChannelState.CLAIMING and channel.direction is Direction.OUT:
        core.move(channel, Cause.CLAIM_VANISHED)
    _handle_height(core, channel, is_deep=is_deep, now=now)


def _handle_confirmed(core: Core, channel: Channel) -> None:
    is_first = not channel.is_confirmed
    channel.is_confirmed = True
    channel.refusals = 0
    core.move(channel, Cause.CONFIRMED)
    if channel.direction is Direction.IN and is_first and channel.cumulative_msat:
        settlement.credit(core, core.peer(channel.peer), channel, channel.cumulative_msat)


def _handle_height(core: Core, channel: Channel, *, is_deep: bool, now: float) -> None:
    """The payee claims one margin before the expiry; the payer takes back what is still there after it."""
    expiry_height = channel.terms.expiry_height
    if channel.direction is Direction.IN:
        is_soon = core.height >= expiry_height - core.config.expiry_margin
        if is_soon and channel.state in (ChannelState.OPEN, ChannelState.SPLICING, ChannelState.COOPERATING):
            begin_close(core, channel, Cause.EXPIRES_SOON, now=now)
        return
    if core.height >= expiry_height and is_deep and channel.state in _REFUNDABLE:
        _refund(core, channel)
    elif channel.state is ChannelState.CLOSING and is_deep:
        _review_overdue(core, channel)


def _handle_spent(
    core: Core, channel: Channel, status: OutputStatus, spending_raw: bytes | None, *, now: float
) -> None:
    is_final = _depth(core, status.spent_height) >= core.config.min_confirmations
    splice = channel.splice
    channel.is_splice_seen = splice is not None and status.spent_by == splice.funding.txid
    if channel.is_splice_seen and is_final:
        _handle_spliced(core, channel, spending_raw, now=now)
    elif channel.is_splice_seen:
        _handle_height(core, channel, is_deep=False, now=now)
    elif channel.direction is Direction.IN:
        if is_final:
            _handle_spent_at_payee(core, channel, status, spending_raw, now=now)
    else:
        _handle_spent_at_payer(core, channel, status, spending_raw, is_final=is_final, now=now)


def _handle_spliced(core: Core, channel: Channel, spending_raw: bytes | None, *, now: float) -> None:
    """A claim of the splice's own output goes on; one of the old output can not confirm any more."""
    splicing.handle_confirmed(core, channel, spending_raw)
    if channel.state is ChannelState.CLAIMING and channel.spend_raw is not None:
        spent = {Outpoint(bytes(t.txid)[::-1], t.vout) for t in parse_transaction(channel.spend_raw).vin}
        if channel.outpoint not in spent:
            _claim_anew(core, channel.spend_txid, "a splice was confirmed instead", now=now)
    elif channel.direction is Direction.IN and channel.state is ChannelState.CLOSING:
        core.claim_at = now if core.claim_at is None else core.claim_at
    elif channel.direction is Direction.OUT and channel.state is not ChannelState.CLAIMING:
        channel.spend_txid = channel.spend_raw = None  # a refund that came too late
        if channel.is_close_wanted:
            close_outgoing(core, channel)


def _handle_spent_at_payee(
    core: Core, channel: Channel, status: OutputStatus, spending_raw: bytes | None, *, now: float
) -> None:
    is_ours = status.spent_by == channel.spend_txid and channel.spend_raw is not None
    conflicting = None if is_ours else channel.spend_txid
    if _is_recovered(core, channel, status, spending_raw):
        _handle_spliced(core, channel, spending_raw, now=now)
        return
    channel.spend_txid = status.spent_by
    if is_ours or (spending_raw is not None and claimed_sat(channel, spending_raw) is not None):
        cause = Cause.CLAIM_CONFIRMED  # perhaps one that we had replaced
    elif spending_raw is not None and closed_together_sat(channel, spending_raw) is not None:
        cause = Cause.CLOSE_CONFIRMED
    else:
        cause = Cause.SPENT_OTHERWISE
    # What is in a block counts, also where backends never agreed that the funding was.
    channel.is_confirmed = channel.is_confirmed or cause is not Cause.SPENT_OTHERWISE
    close(core, channel, cause, spending_raw)
    if conflicting is not None:
        _claim_anew(core, conflicting, "another input of the claim was spent", now=now)


def _is_recovered(core: Core, channel: Channel, status: OutputStatus, spending_raw: bytes | None) -> bool:
    """Of a payee: spent by a splice that an old backup of ours has forgotten, and the transaction tells."""
    if spending_raw is None or status.spent_height is None or status.spent_by == channel.spend_txid:
        return False
    if is_payment_claim(spending_raw, channel.outpoint):
        return False
    return splicing.recover(core, channel, spending_raw, height=status.spent_height)


def _handle_spent_at_payer(
    core: Core, channel: Channel, status: OutputStatus, spending_raw: bytes | None, *, is_final: bool, now: float
) -> None:
    if status.spent_by == channel.spend_txid and channel.spend_raw is not None:
        if is_final:
            is_together = channel.state is ChannelState.COOPERATING
            close(core, channel, Cause.CLOSE_CONFIRMED if is_together else Cause.REFUND_CONFIRMED, spending_raw)
        return
    together_sat = None if spending_raw is None else closed_together_sat(channel, spending_raw)
    if together_sat is not None:
        if is_final:  # with another fee than the last one, or before an old backup of ours
            channel.spend_txid = status.spent_by
            _settle(core, channel, together_sat)
            close(core, channel, Cause.CLOSE_CONFIRMED, spending_raw)
        return
    taken_sat = None if spending_raw is None else claimed_sat(channel, spending_raw)
    is_refund = spending_raw is not None and parse_transaction(spending_raw).locktime != CLAIM_LOCKTIME
    if is_refund and channel.state is ChannelState.REFUNDING:
        if is_final:  # one that we had replaced
            channel.spend_txid = status.spent_by
            close(core, channel, Cause.REFUND_CONFIRMED, spending_raw)
        return
    if spending_raw is not None and taken_sat is None and not is_refund:
        _handle_unknown_splice(core, channel, status, spending_raw, is_final=is_final, now=now)
        return
    if channel.state is not ChannelState.CLAIMING or channel.spend_txid != status.spent_by:
        channel.spend_txid, channel.spend_raw = status.spent_by, None
        core.channel_changed(channel)
    if channel.state is not ChannelState.CLAIMING:
        core.move(channel, Cause.CLAIM_SEEN)
    if is_final:
        if taken_sat is not None:
            _settle(core, channel, taken_sat)
        close(core, channel, Cause.CLAIM_CONFIRMED, spending_raw)


def _settle(core: Core, channel: Channel, taken_sat: int) -> None:
    before_msat = channel.cumulative_msat
    channel.settle_at_claim(taken_sat)
    if channel.cumulative_msat > before_msat:
        # An old backup of ours had forgotten it. We signed for it, so our meter had allowed it.
        peer = core.peer(channel.peer)
        forgotten_units = msat_to_units(channel.cumulative_msat - before_msat)
        peer.ledger.add_metered(earned_units=0, owed_limit_units=forgotten_units)
        core.ledger_changed(peer)


def _handle_unknown_splice(
    core: Core, channel: Channel, status: OutputStatus, spending_raw: bytes, *, is_final: bool, now: float
) -> None:
    """An old backup of ours has forgotten it. If the payee has shown us a later output since, that is the one; until it
    does, or the transaction tells, nothing is paid through the channel."""
    if not is_final or status.spent_height is None:
        return
    is_known = channel.splice is not None and channel.splice.is_signed
    if is_known or splicing.recover(core, channel, spending_raw, height=status.spent_height):
        _handle_spliced(core, channel, spending_raw if not is_known else None, now=now)
    else:
        channel.is_output_lost = True


def close(core: Core, channel: Channel, cause: Cause, spending_raw: bytes | None = None) -> None:
    """What the chain has of it is kept for a while, and sent again: a reorganisation may leave it out."""
    channel.spend_raw = spending_raw
    if spending_raw is None:
        channel.funding_raw = None
    channel.closed_at = core.height
    splicing.forget(core, channel)
    core.move(channel, cause)
    if spending_raw is None:
        core.emit(UnwatchOutput(channel.channel_id))


# --- broadcasts ---


def broadcast_again(core: Core, *, now: float) -> None:
    """At start and at each tip: whatever of ours is not confirmed. The port accepts what is already known."""
    sent: set[bytes] = set()
    for channel in core.channels.values():
        for transaction in (*_unconfirmed(channel), *_shallow(core, channel)):
            if transaction.txid not in sent:
                sent.add(transaction.txid)
                core.emit(transaction)
    if any(c.direction is Direction.IN and c.state is ChannelState.CLOSING for c in core.channels.values()):
        core.claim_at = now if core.claim_at is None else core.claim_at


def _unconfirmed(channel: Channel) -> list[BroadcastTransaction]:
    found = []
    if channel.state is ChannelState.PENDING and channel.funding_raw is not None:
        found.append(BroadcastTransaction(channel.funding_raw, channel.outpoint.txid, TransactionKind.FUNDING))
    splice = channel.splice
    is_payer = channel.direction is Direction.OUT
    if channel.state is ChannelState.SPLICING and is_payer and splice is not None and splice.is_signed and splice.raw:
        found.append(BroadcastTransaction(splice.raw, splice.funding.txid, TransactionKind.SPLICE))
    kind = _SPEND_KINDS.get((channel.direction, channel.state))
    if kind is not None and channel.spend_raw is not None and channel.spend_txid is not None:
        found.append(BroadcastTransaction(channel.spend_raw, channel.spend_txid, kind))
    return found


def _shallow(core: Core, channel: Channel) -> list[BroadcastTransaction]:
    """Of a channel that is closed, until no reorganisation to be expected undoes it (`_review_closed`)."""
    if channel.state is not ChannelState.CLOSED or channel.spend_raw is None or channel.spend_txid is None:
        return []
    if channel.closed_at is None:
        channel.closed_at = core.height
    if core.height >= channel.closed_at + MAX_FINAL_BLOCKS:
        _forget_transactions(core, channel)
        return []
    found = [BroadcastTransaction(channel.spend_raw, channel.spend_txid, TransactionKind.CLOSE)]
    if channel.funding_raw is not None:
        funding = BroadcastTransaction(channel.funding_raw, channel.outpoint.txid, TransactionKind.FUNDING)
        found.insert(0, funding)
    return found


_SPEND_KINDS = {
    (Direction.IN, ChannelState.CLAIMING): TransactionKind.CLAIM,
    (Direction.OUT, ChannelState.REFUNDING): TransactionKind.REFUND,
    (Direction.OUT, ChannelState.COOPERATING): TransactionKind.CLOSE,
}


def handle_broadcast_done(core: Core, event: BroadcastDone, *, now: float) -> None:
    """A refusal is not the end: each tip brings another attempt. A claim that is refused again and again is rebuilt."""
    if event.result.accepted:
        return
    for channel in list(core.channels.values()):
        for transaction in _unconfirmed(channel):
            if transaction.txid != event.txid:
                continue
            channel.refusals += 1
            core.touch(core.peer(channel.peer))
            core.emit(BroadcastRefused(event.txid, transaction.kind, event.result.code))
            if transaction.kind is TransactionKind.CLAIM and channel.refusals >= MAX_REFUSALS:
                _claim_anew(core, event.txid, "the claim was refused", now=now)
