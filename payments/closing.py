"""How a channel ends: the payee claims, or the payer refunds itself after the expiry. Both are decided by the chain.

Before a claim the payee asks the payers to stop, and waits a moment for what is on its way (`CloseChannel`,
`CloseReady`); then all that is ready goes into one transaction.
"""

from __future__ import annotations

from payments import settlement
from payments.channel import Channel, claimed_sat
from payments.channel_tx import MAX_BATCH, Claim, UneconomicError, build_claim, build_refund, claim_marginal_fee
from payments.core import Core, Peer
from payments.events import (
    BroadcastDone,
    BroadcastRefused,
    BroadcastTransaction,
    ChannelOutputSeen,
    TransactionKind,
    UnwatchOutput,
)
from payments.life import Cause
from payments.messages import CloseChannel, CloseReady
from payments.opening import MAX_REFUSALS
from payments.ports import OutputStatus, SignedTransaction
from payments.records import ChannelState, Direction
from payments.units import msat_to_units

# --- the payee ---


def begin_close(core: Core, channel: Channel, cause: Cause, *, now: float) -> None:
    """Of an incoming channel that is OPEN. With the payer away there is nothing to wait for."""
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
    for channel in peer.channels_of(Direction.IN, ChannelState.CLOSING):
        channel.is_close_ready = True


def review_claims(core: Core, *, now: float) -> None:
    """Claim when every payer has said its last word, or has had the time to."""
    if core.claim_at is None or core.script is None or core.fee_rate is None:
        return
    closing = [c for c in core.channels.values() if c.direction is Direction.IN and c.state is ChannelState.CLOSING]
    if now < core.claim_at and not all(c.is_close_ready for c in closing):
        return
    core.claim_at = None
    for channel in closing:
        if channel.paid_sat == 0 and channel.is_payer_done:  # or it might go on paying through it
            close(core, channel, Cause.NOTHING_TO_CLAIM)
    marginal_fee_sat = claim_marginal_fee(core.fee_rate)
    worth_it = [c for c in closing if c.paid_sat > marginal_fee_sat]
    for first in range(0, len(worth_it), MAX_BATCH):
        _claim(core, worth_it[first : first + MAX_BATCH], fee_rate=core.fee_rate, destination=core.script)


def _claim(core: Core, channels: list[Channel], *, fee_rate: float, destination: bytes) -> None:
    """What is not worth its fee stays CLOSING, and is looked at again at the next tip."""
    claims: list[Claim] = [channel.claim(core.key_of(channel.channel_id)) for channel in channels]
    try:
        transaction = build_claim(claims, destination=destination, fee_rate=fee_rate)
    except UneconomicError:
        return
    core.use_script()
    for channel in channels:
        _set_spend(channel, transaction)
        core.move(channel, Cause.CLAIM_SENT)
    core.emit(BroadcastTransaction(transaction.raw, transaction.txid, TransactionKind.CLAIM, transaction.fee_sat))


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
    if channel.state in (ChannelState.PENDING, ChannelState.OPEN):
        settlement.pay(core, peer, now=now)
        core.move(channel, Cause.PAYEE_CLOSES)
    core.send(peer, CloseReady(channel.channel_id))


def _refund(core: Core, channel: Channel) -> None:
    if core.fee_rate is None:
        return
    try:
        transaction = build_refund(
            channel.terms, channel.outpoint, payer_key=core.key_of(channel.channel_id), fee_rate=core.fee_rate
        )
    except UneconomicError:
        return
    _set_spend(channel, transaction)
    core.move(channel, Cause.EXPIRED)
    core.emit(BroadcastTransaction(transaction.raw, transaction.txid, TransactionKind.REFUND, transaction.fee_sat))


# --- what the chain says, at both ends ---


def handle_output_seen(core: Core, event: ChannelOutputSeen, *, now: float) -> None:
    channel = core.channels.get(event.channel_id)
    if channel is None or channel.funding is None or channel.state is ChannelState.CLOSED:
        core.emit(UnwatchOutput(event.channel_id))
        return
    status = event.status
    if status is None:
        _handle_missing(core, channel)
    elif not channel.matches(status):
        if channel.direction is Direction.IN:
            close(core, channel, Cause.NOT_AS_AGREED)
    elif status.spent_by is not None:
        _handle_spent(core, channel, status, event.spending_raw, now=now)
    else:
        _handle_unspent(core, channel, status, now=now)


def _depth(core: Core, height: int | None) -> int:
    return 0 if height is None else max(0, core.height - height + 1)


def _handle_missing(core: Core, channel: Channel) -> None:
    """Not there yet, or reorganised away. Our own funding transaction may confirm at any time: it stays watched."""
    if channel.state is ChannelState.OPEN:
        core.move(channel, Cause.FUNDING_LOST)
        transaction = _unconfirmed(channel)
        if transaction is not None:
            core.emit(transaction)
    elif channel.direction is Direction.IN and core.height >= channel.terms.expiry_height:
        close(core, channel, Cause.NEVER_FUNDED)


def _handle_unspent(core: Core, channel: Channel, status: OutputStatus, *, now: float) -> None:
    is_deep = _depth(core, status.height) >= core.config.min_confirmations
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
        if channel.state is ChannelState.OPEN and core.height >= expiry_height - core.config.expiry_margin:
            begin_close(core, channel, Cause.EXPIRES_SOON, now=now)
    elif core.height >= expiry_height and is_deep and channel.state in (ChannelState.OPEN, ChannelState.CLOSING):
        _refund(core, channel)


def _handle_spent(
    core: Core, channel: Channel, status: OutputStatus, spending_raw: bytes | None, *, now: float
) -> None:
    is_final = _depth(core, status.spent_height) >= core.config.min_confirmations
    is_ours = status.spent_by == channel.spend_txid and channel.spend_raw is not None
    if channel.direction is Direction.IN:
        if is_final:
            conflicting = None if is_ours else channel.spend_txid
            close(core, channel, Cause.CLAIM_CONFIRMED if is_ours else Cause.SPENT_OTHERWISE)
            if conflicting is not None:
                _claim_anew(core, conflicting, "another input of the claim was spent", now=now)
        return
    if is_ours:
        if is_final:
            close(core, channel, Cause.REFUND_CONFIRMED)
        return
    if channel.state is not ChannelState.CLAIMING or channel.spend_txid != status.spent_by:
        channel.spend_txid, channel.spend_raw = status.spent_by, None
        core.channel_changed(channel)
    if channel.state is not ChannelState.CLAIMING:
        core.move(channel, Cause.CLAIM_SEEN)
    if is_final:
        taken_sat = None if spending_raw is None else claimed_sat(channel, spending_raw)
        if taken_sat is not None:
            before_msat = channel.cumulative_msat
            channel.settle_at_claim(taken_sat)
            if channel.cumulative_msat > before_msat:
                # An old backup of ours had forgotten it. We signed for it, so our meter had allowed it.
                peer = core.peer(channel.peer)
                forgotten_units = msat_to_units(channel.cumulative_msat - before_msat)
                peer.ledger.add_metered(earned_units=0, owed_limit_units=forgotten_units)
                core.ledger_changed(peer)
        close(core, channel, Cause.CLAIM_CONFIRMED)


def close(core: Core, channel: Channel, cause: Cause) -> None:
    channel.funding_raw = channel.spend_raw = None  # nothing to broadcast any more
    core.move(channel, cause)
    core.emit(UnwatchOutput(channel.channel_id))


# --- broadcasts ---


def broadcast_again(core: Core, *, now: float) -> None:
    """At start and at each tip: whatever of ours is not confirmed. The port accepts what is already known."""
    sent: set[bytes] = set()
    for channel in core.channels.values():
        transaction = _unconfirmed(channel)
        if transaction is not None and transaction.txid not in sent:
            sent.add(transaction.txid)
            core.emit(transaction)
    if any(c.direction is Direction.IN and c.state is ChannelState.CLOSING for c in core.channels.values()):
        core.claim_at = now if core.claim_at is None else core.claim_at


def _unconfirmed(channel: Channel) -> BroadcastTransaction | None:
    if channel.state is ChannelState.PENDING and channel.funding_raw is not None:
        return BroadcastTransaction(channel.funding_raw, channel.outpoint.txid, TransactionKind.FUNDING)
    if channel.spend_raw is None or channel.spend_txid is None:
        return None
    if channel.state in (ChannelState.CLAIMING, ChannelState.REFUNDING):
        kind = TransactionKind.CLAIM if channel.direction is Direction.IN else TransactionKind.REFUND
        return BroadcastTransaction(channel.spend_raw, channel.spend_txid, kind)
    return None


def handle_broadcast_done(core: Core, event: BroadcastDone, *, now: float) -> None:
    """A refusal is not the end: each tip brings another attempt. A claim that is refused again and again is rebuilt."""
    if event.result.accepted:
        return
    for channel in list(core.channels.values()):
        transaction = _unconfirmed(channel)
        if transaction is None or transaction.txid != event.txid:
            continue
        channel.refusals += 1
        core.touch(core.peer(channel.peer))
        core.emit(BroadcastRefused(event.txid, transaction.kind, event.result.code))
        if transaction.kind is TransactionKind.CLAIM and channel.refusals >= MAX_REFUSALS:
            _claim_anew(core, event.txid, "the claim was refused", now=now)
