"""Splices: a channel that is used up, or about to expire, gets another funding output (`payments.mutual_tx`).

The payer plans, has its wallet add money, proposes; the payee looks at the inputs, signs; the payer completes and
broadcasts. From the proposal on the payer signs each payment for both outputs, and from its signature on the payee
takes no other, until each of them has seen the splice confirmed. A proposal that is never answered costs nothing: the
channel goes on as it is. There is one splice of a channel at a time, and it is not replaced by a dearer one, since a
payee can not know which of two will confirm.
"""

from __future__ import annotations

from dataclasses import replace

from payments import settlement
from payments.channel import Channel, PeerFaultError, Stage
from payments.channel_tx import dust_limit, find_expiry, parse_transaction
from payments.cooperating import countersign
from payments.core import Core, Peer, SplicePlan
from payments.events import (
    BroadcastTransaction,
    ChannelFunded,
    FundSplice,
    InputsSeen,
    InspectInputs,
    ReleaseFunding,
    TransactionKind,
    WatchOutput,
)
from payments.fees import is_too_dear
from payments.life import Cause
from payments.messages import (
    MAX_SPLICE_BYTES,
    REJECT_FEES,
    REJECT_NOT_READY,
    REJECT_POLICY,
    REJECT_STALE,
    REJECT_TERMS,
    ChannelSync,
    RejectSplice,
    SpliceChannel,
    SpliceSigned,
)
from payments.mutual_tx import (
    LOCKTIME,
    SpliceError,
    build_splice,
    check_splice,
    fee,
    foreign_input,
    paid_to,
    sign_mutual,
    splice_outputs,
    stripped,
)
from payments.ports import Outpoint, SignedTransaction
from payments.records import ChannelState, Direction, Splice
from payments.units import MSAT_PER_SAT, msat_to_units

RIPE_DEPTH = 6
MARGINS_AHEAD = 3  # a payer splices so many margins before the expiry; it stops paying two before, the payee claims one


# --- the payer ---


def is_ending(core: Core, channel: Channel) -> bool:
    """It expires so soon that it is time for another output."""
    return core.height >= channel.terms.expiry_height - MARGINS_AHEAD * core.config.expiry_margin


def candidate(core: Core, peer: Peer) -> Channel | None:
    """What to splice instead of opening another channel. A young output is let ripen first, so that no reorganisation
    to be expected undoes two splices."""
    for channel in peer.channels_of(Direction.OUT, ChannelState.OPEN):
        is_known = bool(channel.payout_script) and channel.splice is None and not channel.is_splice_refused
        if is_known and channel.is_confirmed and settlement.can_pay_through(core, channel):
            return channel
    return None


def is_ripe(channel: Channel) -> bool:
    return channel.depth >= RIPE_DEPTH


def begin(core: Core, peer: Peer, channel: Channel) -> None:
    """Pay out what is paid, and fill the rest up to the configured capacity."""
    if core.fee_rate is None:
        return
    paid_out_sat = channel.paid_sat if channel.paid_sat >= dust_limit(channel.payout_script) else 0
    rest_sat = channel.terms.capacity_sat - paid_out_sat
    base_msat = channel.base_msat + paid_out_sat * MSAT_PER_SAT
    expiry_height = core.height + core.config.expiry_blocks
    wanted = replace(channel.terms, capacity_sat=core.config.capacity_sat, expiry_height=expiry_height)
    outputs = splice_outputs(wanted, paid_out_sat=paid_out_sat, payout_script=channel.payout_script)
    if rest_sat < core.config.capacity_sat:
        peer.splicing = SplicePlan(channel.channel_id, wanted, base_msat)
        core.emit(FundSplice(channel.channel_id, foreign_input(channel.terms, channel.outpoint), outputs))
        return
    _roll_over(core, peer, channel, SplicePlan(channel.channel_id, wanted, base_msat), rest_sat)


def _roll_over(core: Core, peer: Peer, channel: Channel, plan: SplicePlan, rest_sat: int) -> bool:
    """Without the wallet: the fee comes out of what is left. False: too little is."""
    if core.fee_rate is None:
        return False
    paid_out_sat = (plan.base_msat - channel.base_msat) // MSAT_PER_SAT
    outputs = splice_outputs(plan.terms, paid_out_sat=paid_out_sat, payout_script=channel.payout_script)
    fee_sat = fee(channel.terms, outputs, core.fee_rate)
    capacity_sat = rest_sat - fee_sat
    if capacity_sat < core.config.min_capacity_sat or _is_too_dear(core, capacity_sat):
        return False
    new = replace(plan.terms, capacity_sat=capacity_sat)
    if channel.cumulative_msat > plan.base_msat + new.max_paid_sat * MSAT_PER_SAT:
        return False  # paid since it was planned: the new output would not hold it, and the payee refuse it
    transaction = build_splice(
        channel.outpoint, new, paid_out_sat=paid_out_sat, payout_script=channel.payout_script, fee_sat=fee_sat
    )
    _propose_first(core, peer, channel, replace(plan, terms=new), transaction)
    return True


def _is_too_dear(core: Core, capacity_sat: int) -> bool:
    return core.fee_rate is None or is_too_dear(capacity_sat, core.fee_rate, max_share=core.config.max_claim_fee_share)


def plan_of(core: Core, channel_id: bytes) -> tuple[Peer, Channel, SplicePlan] | None:
    channel = core.channels.get(channel_id)
    peer = None if channel is None else core.peer(channel.peer)
    plan = None if peer is None else peer.splicing
    if channel is None or peer is None or plan is None or plan.channel_id != channel_id:
        return None
    return peer, channel, plan


def handle_funded(core: Core, event: ChannelFunded, *, now: float) -> None:
    """The wallet has added its inputs, and signed them."""
    found = plan_of(core, event.channel_id)
    if found is None:
        core.emit(ReleaseFunding(event.transaction.txid))
        return
    peer, channel, plan = found
    peer.splicing = None
    if channel.state is not ChannelState.OPEN or channel.splice is not None:
        core.emit(ReleaseFunding(event.transaction.txid))
        return
    try:
        _propose_first(core, peer, channel, plan, event.transaction)
    except ValueError:
        core.emit(ReleaseFunding(event.transaction.txid))
        peer.open_retry_at = now + core.config.open_retry_interval
        core.touch(peer)


def handle_funding_failed(core: Core, channel_id: bytes, *, now: float) -> bool:
    """Near its expiry a channel goes on with what is left in it. False: it was not for a splice."""
    found = plan_of(core, channel_id)
    if found is None:
        return False
    peer, channel, plan = found
    peer.splicing = None
    paid_out_sat = (plan.base_msat - channel.base_msat) // MSAT_PER_SAT
    rest_sat = channel.terms.capacity_sat - paid_out_sat
    is_open = channel.state is ChannelState.OPEN and channel.splice is None
    if not (is_open and is_ending(core, channel) and _roll_over(core, peer, channel, plan, rest_sat)):
        peer.open_retry_at = now + core.config.open_retry_interval
        peer.is_funding_short = True
        core.touch(peer)
    return True


def _propose_first(core: Core, peer: Peer, channel: Channel, plan: SplicePlan, transaction: SignedTransaction) -> None:
    """Raises ValueError, nothing changed, if the transaction is not what was planned."""
    paid_out_sat = (plan.base_msat - channel.base_msat) // MSAT_PER_SAT
    bare = stripped(transaction.raw)
    if len(bare) > MAX_SPLICE_BYTES:
        raise SpliceError("too many inputs")
    funding = check_splice(
        bare, channel.outpoint, plan.terms, paid_out_sat=paid_out_sat, payout_script=channel.payout_script
    )
    splice = Splice(channel.number + 1, plan.terms, funding, plan.base_msat, transaction.raw, b"", is_signed=False)
    channel.add_splice(splice, core.key_of(channel.channel_id))
    core.move(channel, Cause.SPLICE_AGREED)
    propose(core, peer, channel)


def propose(core: Core, peer: Peer, channel: Channel) -> None:
    """Again in each session, until it is over: either end may have forgotten it."""
    splice = channel.splice
    if splice is None or not splice.raw or channel.signature is None or not peer.is_ready:
        return
    message = SpliceChannel(
        channel_id=channel.channel_id,
        number=splice.number,
        capacity_sat=splice.terms.capacity_sat,
        expiry_height=splice.terms.expiry_height,
        base_msat=splice.base_msat,
        raw=stripped(splice.raw),
        cumulative_msat=channel.cumulative_msat,
        signature=channel.signature,
        splice_signature=splice.signature,
    )
    core.send(peer, message)


def handle_splice_signed(core: Core, peer: Peer, message: SpliceSigned) -> None:
    channel = core.channel_of(peer, message.channel_id, Direction.OUT)
    splice = channel.splice
    if splice is None or splice.funding.txid != message.txid or splice.is_signed:
        return
    if channel.state is not ChannelState.SPLICING:
        return  # it is being closed: a splice would only be in the way
    raw = countersign(core, channel, splice.raw, message.signature)
    channel.splice = replace(splice, raw=raw, is_signed=True)
    core.channel_changed(channel)
    broadcast = BroadcastTransaction(raw, splice.funding.txid, TransactionKind.SPLICE)
    core.broadcast(broadcast, [(channel.terms, channel.outpoint)])


def handle_reject(core: Core, peer: Peer, message: RejectSplice, *, now: float) -> None:
    """What the payee has signed it can not reject any more; what it has not can be forgotten."""
    channel = core.channel_of(peer, message.channel_id, Direction.OUT)
    splice = channel.splice
    if splice is None or splice.is_signed or splice.funding.txid != message.txid:
        return
    if channel.state not in (ChannelState.SPLICING, ChannelState.CLOSING):
        return
    channel.splice = None
    channel.is_splice_refused = message.code != REJECT_NOT_READY
    if channel.state is ChannelState.SPLICING:
        core.move(channel, Cause.SPLICE_REJECTED, f"code {message.code}")
    else:
        core.channel_changed(channel)  # the payee began to claim meanwhile: nothing is in the way of closing together
    core.emit(ReleaseFunding(message.txid))
    peer.open_retry_at = now + core.config.open_retry_interval


def learn(core: Core, channel: Channel, message: ChannelSync) -> Stage | None:
    """The payee shows a later funding output than we know: an old backup of ours has forgotten the splice. Our
    signature on it proves that we proposed it. Nothing is known of the transaction but its id: the chain decides.

    Raises PeerFaultError; None: it contradicts what we know.
    """
    splice = channel.splice
    if splice is not None and (splice.is_signed or message.number < splice.number):
        return None
    try:
        terms = replace(channel.terms, capacity_sat=message.capacity_sat, expiry_height=message.expiry_height)
    except ValueError as error:
        raise PeerFaultError(str(error)) from error
    stage = Stage(message.number, terms, Outpoint(message.txid, message.index), message.base_msat)
    is_later = channel.base_msat <= message.base_msat and message.base_msat % MSAT_PER_SAT == 0
    if not is_later or message.cumulative_msat < channel.cumulative_msat:
        raise PeerFaultError("a splice that takes back what was paid")
    stage.verify(message.cumulative_msat, message.signature)
    if splice is not None:
        core.emit(ReleaseFunding(splice.funding.txid))
    channel.acknowledged_msat = channel.cumulative_msat = message.cumulative_msat
    new = Splice(stage.number, terms, stage.outpoint, stage.base_msat, b"", message.signature, is_signed=True)
    channel.add_splice(new, core.key_of(channel.channel_id))
    if channel.state in (ChannelState.PENDING, ChannelState.OPEN):
        core.move(channel, Cause.SPLICE_AGREED, "as the payee shows")
    channel.is_close_wanted = channel.is_close_wanted or channel.state is ChannelState.COOPERATING
    core.channel_changed(channel)
    return stage


# --- the payee ---


def handle_splice(core: Core, peer: Peer, message: SpliceChannel) -> None:
    """Raises PeerFaultError for what no honest payer proposes; what we do not like, or not now, is rejected."""
    channel = core.channel_of(peer, message.channel_id, Direction.IN)
    try:
        transaction = parse_transaction(message.raw)
    except ValueError as error:
        raise PeerFaultError(str(error)) from error
    txid: bytes = transaction.hash()
    if channel.splice is not None and channel.splice.funding.txid == txid:
        if channel.state is ChannelState.SPLICING:
            _take_last_payment(core, peer, channel, message)
            _send_signature(core, peer, channel, message.raw)
        return
    if message.number <= channel.number:
        return  # we have seen it confirmed, and the payer has not
    if channel.offered is not None:  # the chain is asked for the inputs of one proposal at a time
        if channel.offered.funding.txid != txid:
            core.send(peer, RejectSplice(channel.channel_id, txid, REJECT_NOT_READY))
        return
    code = _objection(core, channel, message)
    if code is None:
        _take_last_payment(core, peer, channel, message)
        code = None if message.cumulative_msat == channel.cumulative_msat else REJECT_STALE
    if code is not None:
        core.send(peer, RejectSplice(channel.channel_id, txid, code))
        return
    channel.offered = _offered(channel, message)
    others = tuple(
        Outpoint(bytes(item.txid)[::-1], item.vout)
        for item in transaction.vin
        if Outpoint(bytes(item.txid)[::-1], item.vout) != channel.outpoint
    )
    if others:
        core.emit(InspectInputs(channel.channel_id, txid, others))
    else:
        _sign(core, peer, channel)


def _objection(core: Core, channel: Channel, message: SpliceChannel) -> int | None:
    config = core.config
    if channel.state is not ChannelState.OPEN or not core.is_tip_known or core.fee_rate is None:
        return REJECT_NOT_READY
    if message.number != channel.number + 1 or not channel.payout_script:
        return REJECT_STALE
    if not config.min_capacity_sat <= message.capacity_sat <= config.max_capacity_sat:
        return REJECT_POLICY
    if not config.min_expiry_blocks <= message.expiry_height - core.height <= config.max_expiry_blocks:
        return REJECT_POLICY
    return REJECT_FEES if _is_too_dear(core, message.capacity_sat) else None


def _take_last_payment(core: Core, peer: Peer, channel: Channel, message: SpliceChannel) -> None:
    if message.cumulative_msat > channel.cumulative_msat:
        head = (message.number - 1, message.cumulative_msat)
        payment = settlement.Received(*head, message.signature, message.splice_signature)
        settlement.take(core, peer, channel, payment)
        settlement.acknowledge(core, peer, channel)


def _offered(channel: Channel, message: SpliceChannel) -> Splice:
    """Raises PeerFaultError unless the transaction, the figures and the payer's signature agree."""
    paid_out_sat, odd_msat = divmod(message.base_msat - channel.base_msat, MSAT_PER_SAT)
    try:
        new = replace(channel.terms, capacity_sat=message.capacity_sat, expiry_height=message.expiry_height)
        if odd_msat or not 0 <= paid_out_sat <= channel.paid_sat:
            raise SpliceError("it does not pay out whole sat of what was paid")
        funding = check_splice(
            message.raw, channel.outpoint, new, paid_out_sat=paid_out_sat, payout_script=channel.payout_script
        )
    except ValueError as error:
        raise PeerFaultError(str(error)) from error
    stage = Stage(message.number, new, funding, message.base_msat)
    stage.verify(message.cumulative_msat, message.splice_signature)
    return Splice(
        message.number, new, funding, message.base_msat, message.raw, message.splice_signature, is_signed=True
    )


def handle_inputs_seen(core: Core, event: InputsSeen) -> None:
    """Only inputs of native segwit: the id of a transaction with others can still change, and with it the output that
    we have signatures for."""
    channel = core.channels.get(event.channel_id)
    if channel is None or channel.offered is None or channel.offered.funding.txid != event.txid:
        return
    peer = core.peer(channel.peer)
    code = None
    if channel.state is not ChannelState.OPEN or any(script is None for script in event.script_pubkeys):
        code = REJECT_NOT_READY
    elif not all(script is not None and _is_witness_program(script) for script in event.script_pubkeys):
        code = REJECT_TERMS
    if code is None:
        _sign(core, peer, channel)
    else:
        channel.offered = None
        core.send(peer, RejectSplice(channel.channel_id, event.txid, code))


def _is_witness_program(script: bytes) -> bool:
    """BIP141: a version and a push of 2 to 40 bytes."""
    is_version = script[:1] == b"\x00" or b"\x51" <= script[:1] <= b"\x60"
    return 4 <= len(script) <= 42 and is_version and script[1] == len(script) - 2


def _sign(core: Core, peer: Peer, channel: Channel) -> None:
    offered, channel.offered = channel.offered, None
    if offered is None:
        return
    channel.splice = offered
    core.move(channel, Cause.SPLICE_AGREED)
    _send_signature(core, peer, channel, offered.raw)


def _send_signature(core: Core, peer: Peer, channel: Channel, raw: bytes) -> None:
    if channel.splice is not None:
        signature = sign_mutual(core.key_of(channel.channel_id), raw, channel.terms, channel.outpoint)
        core.send(peer, SpliceSigned(channel.channel_id, channel.splice.funding.txid, signature))


# --- both ---


def handle_confirmed(core: Core, channel: Channel, spending_raw: bytes | None) -> None:
    """The old output is spent for good by the splice."""
    splice = channel.splice
    if splice is None:
        return
    channel.promote(spending_raw)
    channel.is_output_lost = False
    core.move(channel, Cause.SPLICE_CONFIRMED)
    core.emit(WatchOutput(channel.channel_id, channel.outpoint))
    settlement.take_early(core, channel)


def recover(core: Core, channel: Channel, spending_raw: bytes, *, height: int) -> bool:
    """An old backup has forgotten the splice that spends the channel at `height`. Capacity and payout are in it, the
    keys are those of the channel, and of expiries there are only so many: so the new output is found without the other
    end. What was paid out was paid. False: it is none, or the payee has a payment that was not paid out."""
    if channel.state not in (ChannelState.PENDING, ChannelState.OPEN, ChannelState.SPLICING, ChannelState.CLOSING):
        return False
    transaction = parse_transaction(spending_raw)
    if transaction.locktime != LOCKTIME:
        return False  # a refund, with as many outputs as the payer likes: to search them all would take minutes
    paid_out_sat = paid_to(spending_raw, channel.payout_script) if channel.payout_script else 0
    base_msat = channel.base_msat + paid_out_sat * MSAT_PER_SAT
    if channel.direction is Direction.IN and channel.cumulative_msat > base_msat:
        return False
    heights = range(max(height - core.config.max_expiry_blocks, 1), height + core.config.max_expiry_blocks + 1)
    found = (
        (index, find_expiry(channel.terms, output.script_pubkey.data, int(output.value), heights))
        for index, output in enumerate(transaction.vout)
    )
    index, terms = next(((i, t) for i, t in found if t is not None), (0, None))
    if terms is None:
        return False
    funding = Outpoint(transaction.hash(), index)
    splice = Splice(channel.number + 1, terms, funding, base_msat, spending_raw, b"", is_signed=True)
    before_msat = channel.cumulative_msat
    channel.cumulative_msat = max(before_msat, base_msat)
    if channel.direction is Direction.OUT:
        channel.acknowledged_msat = max(channel.acknowledged_msat, base_msat)
        channel.add_splice(splice, core.key_of(channel.channel_id))
        owed_units = msat_to_units(channel.cumulative_msat - before_msat)  # we signed for it: our meter had allowed it
        core.peer(channel.peer).ledger.add_metered(earned_units=0, owed_limit_units=owed_units)
        core.ledger_changed(core.peer(channel.peer))
    else:
        channel.splice, channel.signature = splice, None
    if channel.state in (ChannelState.PENDING, ChannelState.OPEN):
        core.move(channel, Cause.SPLICE_AGREED, "as the chain shows")
    core.channel_changed(channel)
    if channel.direction is Direction.IN:  # nobody pays more than it was billed; else we would owe it back
        channel.is_confirmed = True
        peer = core.peer(channel.peer)
        core.recount(peer)
        peer.ledger.billed_units = max(peer.ledger.billed_units, msat_to_units(peer.ledger.received_msat))
        core.ledger_changed(peer)
    return True


def forget(core: Core, channel: Channel) -> None:
    """The old output is spent by something else: the splice is void, and the payer's wallet has its inputs back."""
    splice, channel.splice, channel.offered = channel.splice, None, None
    if splice is not None and channel.direction is Direction.OUT and splice.raw:
        core.emit(ReleaseFunding(splice.funding.txid))
