"""How a channel comes to be: asked for by the payer, agreed on, funded, announced, confirmed.

The payer writes nothing before its wallet has signed the funding transaction; then the transaction is written before it
is broadcast. The payee writes the terms before it agrees to them. What is on the chain decides, at both ends.
"""

from __future__ import annotations

from payments import settlement, splicing
from payments.channel import PAYABLE, Channel, PeerFaultError
from payments.channel_tx import ChannelTerms, claim_fee, find_funding_output, funding_script_pubkey, public_key
from payments.core import Core, Opening, Peer
from payments.events import (
    BroadcastTransaction,
    ChannelFunded,
    ChannelStateChanged,
    ChannelTooDear,
    FundChannel,
    FundingFailed,
    ReleaseFunding,
    TransactionKind,
    WatchOutput,
)
from payments.fees import is_too_dear
from payments.life import Cause
from payments.messages import (
    CHANNEL_ID_BYTES,
    REJECT_FEES,
    REJECT_NOT_READY,
    REJECT_POLICY,
    REJECT_TERMS,
    REJECT_TOO_MANY,
    REJECT_UNKNOWN,
    AcceptChannel,
    FundingCreated,
    OpenChannel,
    RejectChannel,
)
from payments.ports import Outpoint
from payments.records import ChannelState, Direction
from payments.units import MSAT_PER_SAT

_COMING = frozenset({ChannelState.PENDING, ChannelState.SPLICING})
MAX_REFUSALS = 3  # of one transaction by the chain, until we act as if it never gets there


def review(core: Core, peer: Peer, *, now: float) -> None:
    """Open a channel if we owe, or soon will, and none can carry it. One at a time."""
    opening = peer.opening
    if opening is not None and opening.channel is None:
        if now < opening.deadline_at:
            peer.wake(opening.deadline_at)
            return
        _give_up(core, peer, "the peer did not answer", now=now)
    is_busy = peer.opening is not None or peer.splicing is not None
    if is_busy or core.is_held or not peer.is_ready or not core.is_tip_known or core.fee_rate is None:
        return
    if not peer.wanted_capacity_sat and not _needs_channel(core, peer):
        return
    if now < peer.open_retry_at:
        peer.wake(peer.open_retry_at)
        return
    capacity_sat = peer.wanted_capacity_sat or core.config.capacity_sat
    if is_too_dear(capacity_sat, core.fee_rate, max_share=core.config.max_claim_fee_share):
        if not peer.is_dear_noted:
            core.emit(ChannelTooDear(peer.key, capacity_sat, claim_fee(core.fee_rate)))
        peer.is_dear_noted = True  # and looked at again at the next tip
        return
    peer.is_dear_noted = False
    channel = None if peer.wanted_capacity_sat else splicing.candidate(core, peer)
    if channel is None:
        _ask(core, peer, capacity_sat, now=now)
    elif splicing.is_ripe(channel):
        splicing.begin(core, peer, channel)
    elif channel.remaining_msat < _owed_msat(peer):
        _ask(core, peer, capacity_sat, now=now)  # rather than to wait, and to be suspended


def _needs_channel(core: Core, peer: Peer) -> bool:
    """Also when 80 % of what we have is used up, or it expires soon: the next one needs time to confirm."""
    owed_msat = _owed_msat(peer)
    if owed_msat < core.config.open_debt_msat:
        return False
    remaining_msat = 0
    for channel in peer.channels:
        if channel.direction is not Direction.OUT:
            continue
        if channel.state in _COMING and _may_still_confirm(core, channel):
            return False
        if channel.state in PAYABLE and channel.is_output_lost:
            return False  # the payee is about to show where the money is
        if settlement.can_pay_through(core, channel) and not splicing.is_ending(core, channel):
            remaining_msat += channel.remaining_msat
    return remaining_msat < max(owed_msat, core.config.capacity_sat * MSAT_PER_SAT // 5)


def _owed_msat(peer: Peer) -> int:
    return max(peer.ledger.payable_msat, peer.ledger.expected_debt_msat)


def _may_still_confirm(core: Core, channel: Channel) -> bool:
    return channel.refusals < MAX_REFUSALS and core.height < channel.terms.expiry_height


def _ask(core: Core, peer: Peer, capacity_sat: int, *, now: float) -> None:
    script = core.use_script()
    if script is None:
        return
    channel_id = core.rng.randbytes(CHANNEL_ID_BYTES)
    peer.opening = Opening(
        channel_id=channel_id,
        change_script=script,
        capacity_sat=capacity_sat,
        expiry_height=core.height + core.config.expiry_blocks,
        deadline_at=now + core.config.opening_timeout,
    )
    peer.wake(peer.opening.deadline_at)
    message = OpenChannel(
        channel_id=channel_id,
        payer_pubkey=public_key(core.key_of(channel_id)),
        change_script=script,
        capacity_sat=peer.opening.capacity_sat,
        expiry_height=peer.opening.expiry_height,
    )
    core.send(peer, message)
    core.emit(ChannelStateChanged(peer.key, channel_id, Direction.OUT, ChannelState.OPENING))


def _give_up(core: Core, peer: Peer, reason: str, *, now: float) -> None:
    if peer.opening is None:
        return
    channel_id, peer.opening = peer.opening.channel_id, None
    peer.wanted_capacity_sat = None
    peer.open_retry_at = now + core.config.open_retry_interval
    core.touch(peer)
    core.emit(ChannelStateChanged(peer.key, channel_id, Direction.OUT, ChannelState.CLOSED, reason))


def end_session(core: Core, peer: Peer, *, now: float) -> None:
    """An unanswered request is void; one that the wallet is working on goes on."""
    if peer.opening is not None and peer.opening.channel is None:
        _give_up(core, peer, "the session ended", now=now)
        peer.open_retry_at = now


# --- the payee ---


def handle_open(core: Core, peer: Peer, message: OpenChannel) -> None:
    """Raises PeerFaultError for an identifier that is taken; what we do not like is rejected."""
    if message.channel_id in core.channels:
        raise PeerFaultError("the channel identifier is taken")
    code = _objection(core, peer, message)
    if code is None:
        try:
            terms = _terms_as_payee(core, message)
        except ValueError:
            code = REJECT_TERMS
    if code is not None:
        core.send(peer, RejectChannel(message.channel_id, code))
        return
    channel = Channel(
        message.channel_id,
        peer.key,
        Direction.IN,
        ChannelState.OPENING,
        terms,
        core.height,
        payout_script=core.script or b"",
    )
    core.add_channel(channel)
    core.channel_changed(channel)
    core.emit(ChannelStateChanged(peer.key, channel.channel_id, Direction.IN, ChannelState.OPENING))
    core.send(peer, AcceptChannel(channel.channel_id, terms.payee_pubkey, channel.payout_script))


def _terms_as_payee(core: Core, message: OpenChannel) -> ChannelTerms:
    return ChannelTerms(
        payer_pubkey=message.payer_pubkey,
        payee_pubkey=public_key(core.key_of(message.channel_id)),
        expiry_height=message.expiry_height,
        capacity_sat=message.capacity_sat,
        payer_change_script=message.change_script,
    )


def _objection(core: Core, peer: Peer, message: OpenChannel) -> int | None:
    config = core.config
    if not core.is_tip_known or core.fee_rate is None or core.script is None:
        return REJECT_NOT_READY
    if peer.method.name != "cltv":
        return REJECT_POLICY
    if not config.min_capacity_sat <= message.capacity_sat <= config.max_capacity_sat:
        return REJECT_POLICY
    if not config.min_expiry_blocks <= message.expiry_height - core.height <= config.max_expiry_blocks:
        return REJECT_POLICY
    if is_too_dear(message.capacity_sat, core.fee_rate, max_share=config.max_claim_fee_share):
        return REJECT_FEES
    held = [c for c in peer.channels if c.direction is Direction.IN and c.state is not ChannelState.CLOSED]
    if len(held) < config.max_channels_per_peer:
        return None
    # A request that was never funded makes room: its payer has lost its session or its patience.
    for channel in held:
        if channel.state is ChannelState.OPENING:
            core.forget(channel)
            return None
    return REJECT_TOO_MANY


def handle_funding_created(core: Core, peer: Peer, message: FundingCreated) -> None:
    """Only says where to look. Sent again in each session, so a repetition is nothing."""
    if message.channel_id not in core.channels:
        core.send(peer, RejectChannel(message.channel_id, REJECT_UNKNOWN))
        return
    channel = core.channel_of(peer, message.channel_id, Direction.IN)
    outpoint = Outpoint(message.txid, message.index)
    if channel.number > 0 or channel.splice is not None:
        return  # an old backup of the payer's: `ChannelSync` shows it what came after
    if channel.funding is not None:
        if channel.funding != outpoint:
            raise PeerFaultError("another funding output for the same channel")
        return
    if channel.state is not ChannelState.OPENING:
        raise PeerFaultError("a funding for a closed channel")
    channel.funding = outpoint
    core.move(channel, Cause.FUNDING_TOLD)
    core.emit(WatchOutput(channel.channel_id, outpoint))


# --- the payer ---


def handle_accept(core: Core, peer: Peer, message: AcceptChannel, *, now: float) -> None:
    opening = peer.opening
    if opening is None or opening.channel_id != message.channel_id:
        return  # too late: we have given up
    if opening.channel is not None:
        raise PeerFaultError("a channel accepted twice")
    try:
        terms = ChannelTerms(
            payer_pubkey=public_key(core.key_of(opening.channel_id)),
            payee_pubkey=message.payee_pubkey,
            expiry_height=opening.expiry_height,
            capacity_sat=opening.capacity_sat,
            payer_change_script=opening.change_script,
        )
        if message.payout_script == opening.change_script:
            raise ValueError("the payee wants to be paid to our own script")
    except ValueError as error:
        _give_up(core, peer, "unusable terms", now=now)
        raise PeerFaultError(str(error)) from error
    opening.channel = Channel(
        opening.channel_id,
        peer.key,
        Direction.OUT,
        ChannelState.OPENING,
        terms,
        core.height,
        payout_script=message.payout_script,
    )
    core.emit(FundChannel(opening.channel_id, funding_script_pubkey(terms), terms.capacity_sat))


def handle_reject(core: Core, peer: Peer, message: RejectChannel, *, now: float) -> None:
    """Before the funding: no channel. After it: the payee does not know it, so that only its expiry frees the money."""
    opening = peer.opening
    if opening is not None and opening.channel_id == message.channel_id:
        if opening.channel is not None:
            raise PeerFaultError("a channel rejected after it was accepted")
        _give_up(core, peer, f"rejected with code {message.code}", now=now)
        return
    if message.channel_id not in core.channels:
        return
    channel = core.channel_of(peer, message.channel_id, Direction.OUT)
    if channel.state in (ChannelState.PENDING, ChannelState.OPEN):
        core.move(channel, Cause.REJECTED, f"code {message.code}")


def handle_funded(core: Core, event: ChannelFunded, *, now: float) -> None:
    """The wallet has signed: write, broadcast, tell the payee, in this order."""
    if event.channel_id in core.channels:
        splicing.handle_funded(core, event, now=now)
        return
    peer = _peer_opening(core, event.channel_id)
    channel = peer.opening.channel if peer is not None and peer.opening is not None else None
    if peer is None or channel is None:
        core.emit(ReleaseFunding(event.transaction.txid))
        return
    try:
        index = find_funding_output(event.transaction.raw, channel.terms)
    except ValueError as error:
        core.emit(ReleaseFunding(event.transaction.txid))
        _give_up(core, peer, f"the wallet's transaction is unusable: {error}", now=now)
        return
    peer.opening = peer.wanted_capacity_sat = None
    channel.funding = Outpoint(event.transaction.txid, index)
    channel.funding_raw = event.transaction.raw
    core.add_channel(channel)
    core.move(channel, Cause.FUNDING_SIGNED)
    transaction = event.transaction
    core.emit(BroadcastTransaction(transaction.raw, transaction.txid, TransactionKind.FUNDING, transaction.fee_sat))
    core.emit(WatchOutput(channel.channel_id, channel.funding))
    if peer.is_ready:
        tell_funding(core, peer, channel)


def handle_funding_failed(core: Core, event: FundingFailed, *, now: float) -> None:
    peer = _peer_opening(core, event.channel_id)
    if splicing.handle_funding_failed(core, event.channel_id, now=now):
        return
    if peer is not None:
        _give_up(core, peer, event.reason, now=now)
        peer.is_funding_short = True


def handle_block(core: Core, *, now: float) -> None:
    """It may have confirmed the money that a wallet lacked. The neighbour waits to be paid, our traffic for that.
    And what somebody has asked for and not funded until it would have expired, is not kept for ever."""
    for channel in list(core.channels.values()):
        if channel.state is ChannelState.OPENING and core.height >= channel.terms.expiry_height:
            core.forget(channel)
    for peer in core.peers.values():
        if peer.is_funding_short:
            peer.is_funding_short, peer.open_retry_at = False, now


def tell_funding(core: Core, peer: Peer, channel: Channel) -> None:
    """Of splices the payee has signed, and needs no telling."""
    if channel.number:
        return
    core.send(peer, FundingCreated(channel.channel_id, channel.outpoint.txid, channel.outpoint.index))


def _peer_opening(core: Core, channel_id: bytes) -> Peer | None:
    return next((p for p in core.peers.values() if p.opening and p.opening.channel_id == channel_id), None)
