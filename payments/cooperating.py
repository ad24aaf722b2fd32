"""Closing together: the payer gets back what it has not paid at once, and need not wait for the expiry.

The payer proposes, pays the fee, completes and broadcasts; the payee signs once, for any fee, since the payer bears it,
and takes no payment any more. If the transaction does not appear, it claims one margin before the expiry as ever.
"""

from __future__ import annotations

from payments import settlement
from payments.channel import Channel, PeerFaultError
from payments.channel_tx import InvalidSignatureError, UneconomicError
from payments.core import Core, Peer
from payments.events import BroadcastTransaction, TransactionKind
from payments.fees import fee_of, fee_rate_of, is_step_due, replaces
from payments.life import Cause
from payments.messages import ChannelSync, CloseSigned, ProposeClose
from payments.mutual_tx import build_close, complete, fee, payout, sign_mutual, verify_mutual
from payments.ports import SignedTransaction
from payments.records import ChannelState, Direction

# --- the payer ---


def begin(core: Core, channel: Channel, cause: Cause) -> None:
    core.move(channel, cause)
    propose(core, core.peer(channel.peer), channel)


def propose(core: Core, peer: Peer, channel: Channel) -> None:
    """Again in each session and at each block, until the payee has signed; with a higher fee when that is due."""
    if core.fee_rate is None or not peer.is_ready or not channel.payout_script:
        return
    if channel.splice is not None:
        return  # an old backup of ours had forgotten it: this output is, or is about to be, another one
    outputs = ((channel.terms.payer_change_script, 0), *payout(channel.payout_script, channel.paid_sat))
    fee_sat = fee(channel.terms, outputs, core.fee_rate)
    if channel.spend_raw is not None:
        values = [channel.terms.capacity_sat]
        is_step = is_step_due(fee_rate_of(channel.spend_raw, values), core.fee_rate)
        if not is_step or not replaces(channel.spend_raw, fee_of(channel.spend_raw, values), fee_sat):
            return
    elif channel.close_fee_sat:
        fee_sat = max(fee_sat, channel.close_fee_sat)
    try:
        _close_transaction(channel, fee_sat)
    except UneconomicError:
        return  # less is left than it costs: the payee's claim ends it
    channel.close_fee_sat = fee_sat
    message = ProposeClose(
        channel.channel_id, channel.number, fee_sat, channel.cumulative_msat, channel.signature or b""
    )
    core.send(peer, message)


def _close_transaction(channel: Channel, fee_sat: int) -> SignedTransaction:
    return build_close(
        channel.terms,
        channel.outpoint,
        paid_sat=channel.paid_sat,
        payout_script=channel.payout_script,
        fee_sat=fee_sat,
    )


def handle_close_signed(core: Core, peer: Peer, message: CloseSigned) -> None:
    channel = core.channel_of(peer, message.channel_id, Direction.OUT)
    if channel.state is not ChannelState.COOPERATING or message.fee_sat != channel.close_fee_sat:
        return
    transaction = _close_transaction(channel, message.fee_sat)
    if transaction.txid == channel.spend_txid:
        return
    raw = countersign(core, channel, transaction.raw, message.signature)
    channel.spend_txid, channel.spend_raw, channel.refusals = transaction.txid, raw, 0
    channel.acknowledged_msat = channel.cumulative_msat  # the payee has signed that it gets it
    core.channel_changed(channel)
    broadcast = BroadcastTransaction(raw, transaction.txid, TransactionKind.CLOSE, transaction.fee_sat)
    core.broadcast(broadcast, [(channel.terms, channel.outpoint)])


def countersign(core: Core, channel: Channel, raw: bytes, payee_signature: bytes) -> bytes:
    """What the payee has signed (a close, a splice), with our signature, too. Raises PeerFaultError if it has not."""
    terms, outpoint = channel.terms, channel.outpoint
    try:
        verify_mutual(terms.payee_pubkey, payee_signature, raw, terms, outpoint)
    except InvalidSignatureError as error:
        raise PeerFaultError(str(error)) from error
    ours = sign_mutual(core.key_of(channel.channel_id), raw, terms, outpoint)
    return complete(raw, terms, outpoint, payer_signature=ours, payee_signature=payee_signature)


# --- the payee ---


def handle_propose_close(core: Core, peer: Peer, message: ProposeClose) -> None:
    """Raises PeerFaultError. What is not of the state that we know is answered with what we know, or not at all."""
    channel = core.channel_of(peer, message.channel_id, Direction.IN)
    if message.number != channel.number or channel.splice is not None or not channel.payout_script:
        return
    is_closed_unused = channel.state is ChannelState.CLOSED and channel.paid_sat == 0 and channel.funding is not None
    states = (ChannelState.OPEN, ChannelState.CLOSING, ChannelState.COOPERATING)
    if channel.state not in states and not is_closed_unused:
        return
    if message.cumulative_msat < channel.cumulative_msat:
        sync(core, peer, channel)
        return
    if message.cumulative_msat > channel.cumulative_msat:
        if channel.state is ChannelState.COOPERATING:
            raise PeerFaultError("a payment after the last one")
        payment = settlement.Received(channel.number, message.cumulative_msat, message.signature, b"")
        settlement.take(core, peer, channel, payment)
    try:
        transaction = _close_transaction(channel, message.fee_sat)
    except (UneconomicError, ValueError) as error:
        raise PeerFaultError(str(error)) from error
    channel.offered = None
    if channel.state in (ChannelState.OPEN, ChannelState.CLOSING):
        core.move(channel, Cause.CLOSE_AGREED)
    signature = sign_mutual(core.key_of(channel.channel_id), transaction.raw, channel.terms, channel.outpoint)
    core.send(peer, CloseSigned(channel.channel_id, message.fee_sat, signature))


def sync(core: Core, peer: Peer, channel: Channel) -> None:
    """The payer's latest payment, on the last funding output that we know."""
    stages = channel.stages()
    stage, signature = stages[-1], channel.signature or b""
    if channel.splice is not None:
        signature = channel.splice.signature
    message = ChannelSync(
        channel_id=channel.channel_id,
        cumulative_msat=channel.cumulative_msat,
        signature=signature,
        number=stage.number,
        txid=stage.outpoint.txid,
        index=stage.outpoint.index,
        capacity_sat=stage.terms.capacity_sat,
        expiry_height=stage.terms.expiry_height,
        base_msat=stage.base_msat,
    )
    core.send(peer, message)
