"""Settlement with one peer: statements, payments, acknowledgements, the window and its enforcement.

The creditor drives. It states its bill when half the window is owed, or at the tick; the debtor accepts what its own
meter allows and pays the net. `review` is where every decision is made: it runs for each peer that an input touched,
after the state has changed, and when a timer of that peer is due.
"""

from __future__ import annotations

from typing import NamedTuple

from payments import window
from payments.channel import PAYABLE, Channel, PeerFaultError
from payments.core import Core, Peer
from payments.events import Defaulted, Disputed, PaymentReceived, PaymentSent
from payments.messages import REJECT_UNKNOWN, Payment, PaymentAck, RejectChannel, Statement
from payments.records import ChannelState, Direction


def review(core: Core, peer: Peer, *, now: float) -> None:
    """Brings enforcement, payments and statements up to date with the ledger."""
    _accept(core, peer)
    _enforce(core, peer, now=now)
    pay(core, peer, now=now)
    _state(core, peer, now=now)
    _send_acks(core, peer)


def can_pay_through(core: Core, channel: Channel) -> bool:
    """The payer stops one margin before the payee does, so that no payment meets a claim on its way."""
    is_early = core.height < channel.terms.expiry_height - 2 * core.config.expiry_margin
    return channel.state in PAYABLE and is_early and not channel.is_output_lost


# --- what the peer says ---


def handle_statement(core: Core, peer: Peer, message: Statement) -> None:
    peer.ledger.hear(message.accounts)
    core.ledger_changed(peer)
    peer.is_settlement_wanted = peer.is_reply_due = True


def handle_payment(core: Core, peer: Peer, message: Payment) -> None:
    """Verify, persist, acknowledge, credit: the acknowledgement follows `Persist` in the same outputs."""
    channel = core.channel_of(peer, message.channel_id, Direction.IN)
    is_repeated = message.cumulative_msat == channel.cumulative_msat
    is_over = channel.state in (ChannelState.CLAIMING, ChannelState.COOPERATING, ChannelState.CLOSED)
    is_early = channel.splice is not None and message.number == channel.splice.number
    if is_early and channel.splice is not None and not is_repeated and not is_over:
        # The payer has seen how deep the splice is, and we have not: until then it must be signed for both outputs.
        channel.stage_of(channel.splice).verify(message.cumulative_msat, message.signature)
        channel.early = (message.cumulative_msat, message.signature)
    elif not is_repeated and not is_over:
        payment = Received(message.number, message.cumulative_msat, message.signature, message.splice_signature)
        take(core, peer, channel, payment)
    peer.ledger.hear(message.accounts)
    core.ledger_changed(peer)
    if channel.state is ChannelState.CLOSED and message.cumulative_msat > channel.cumulative_msat:
        # An old backup of ours took a splice for the end of it.
        core.send(peer, RejectChannel(channel.channel_id, REJECT_UNKNOWN))
    elif channel.early is None:
        acknowledge(core, peer, channel)


class Received(NamedTuple):
    """A payment as its message has it."""

    number: int
    cumulative_msat: int
    signature: bytes
    splice_signature: bytes


def take(core: Core, peer: Peer, channel: Channel, payment: Received) -> None:
    """Payee. Raises PeerFaultError, nothing changed."""
    amount_msat = channel.receive(*payment)
    core.channel_changed(channel)
    if channel.is_confirmed:
        credit(core, peer, channel, amount_msat)


def take_early(core: Core, channel: Channel) -> None:
    """What the payer paid on the splice's output before we had seen it confirmed."""
    early, channel.early = channel.early, None
    if early is not None and early[0] > channel.cumulative_msat:
        peer = core.peer(channel.peer)
        take(core, peer, channel, Received(channel.number, early[0], early[1], b""))
        acknowledge(core, peer, channel)


def acknowledge(core: Core, peer: Peer, channel: Channel) -> None:
    """At the end of this call, when it is known whether there is more to say."""
    if peer.is_ready:
        peer.acks[channel.channel_id] = channel
        core.touch(peer)


def _send_acks(core: Core, peer: Peer) -> None:
    if not peer.acks:
        return
    for channel in peer.acks.values():
        accounts = core.accounts_to_send(peer)
        core.send(peer, PaymentAck(channel.channel_id, channel.cumulative_msat, accounts, peer.is_asking))
        peer.is_asking = False
    peer.acks.clear()


def credit(core: Core, peer: Peer, channel: Channel, amount_msat: int) -> None:
    """A payment counts: it is verified, and its channel is on the chain."""
    credit_sum(core, peer, channel.channel_id, amount_msat, channel.cumulative_msat)


def credit_sum(core: Core, peer: Peer, channel_id: bytes, amount_msat: int, cumulative_msat: int) -> None:
    """The ledger has it already: `Core.channel_changed`, `credit_changed`."""
    if not peer.is_defaulted and not peer.book.is_limited:
        peer.ledger.window = window.grow(peer.ledger.window, amount_msat, max_msat=core.config.max_window_msat)
        core.ledger_changed(peer)
    core.emit(PaymentReceived(peer.key, channel_id, amount_msat, cumulative_msat))


def handle_payment_ack(core: Core, peer: Peer, message: PaymentAck) -> None:
    channel = core.channel_of(peer, message.channel_id, Direction.OUT)
    if message.cumulative_msat > channel.cumulative_msat:
        raise PeerFaultError("more acknowledged than paid")
    if channel.state is not ChannelState.CLOSED:
        channel.acknowledged_msat = max(channel.acknowledged_msat, message.cumulative_msat)
        core.channel_changed(channel, hard=False)
    peer.ledger.hear(message.accounts)
    core.ledger_changed(peer)
    if message.is_statement:
        peer.is_settlement_wanted = peer.is_reply_due = True


# --- what follows from the ledger ---


def _accept(core: Core, peer: Peer) -> None:
    ledger = peer.ledger
    if ledger.is_disputed:
        accepted_units = ledger.accepted_units
        ledger.accept()
        if ledger.accepted_units != accepted_units:
            core.ledger_changed(peer)
        if ledger.is_disputed and not peer.is_dispute_noted:
            core.emit(Disputed(peer.key, ledger.their_billed_units, ledger.accepted_units))
    peer.is_dispute_noted = ledger.is_disputed


def _enforce(core: Core, peer: Peer, *, now: float) -> None:
    """A default is to leave more than W unpaid for longer than a tick: a payment on its way is none."""
    ledger = peer.ledger
    if not peer.method.is_paid:
        return
    unpaid_msat = ledger.unpaid_msat
    if not window.is_exceeded(ledger.window.size_msat, unpaid_msat):
        peer.exceeded_at = None
        if ledger.is_suspended and window.is_cleared(ledger.window.size_msat, unpaid_msat):
            _resume(core, peer, now=now)
        return
    if not ledger.is_suspended:
        _suspend(core, peer, now=now)
    if peer.exceeded_at is None:
        peer.exceeded_at = now
    due_at = peer.exceeded_at + core.config.tick_interval
    if peer.is_defaulted:
        return
    if now < due_at:
        peer.wake(due_at)
        return
    peer.is_defaulted = True
    ledger.window = window.Window(core.config.start_window_msat, 0)
    core.ledger_changed(peer, hard=True)
    core.emit(Defaulted(peer.key, unpaid_msat, ledger.window.size_msat))


def _suspend(core: Core, peer: Peer, *, now: float) -> None:
    """At once: what is at risk has a bound."""
    open_interval = now - peer.resumed_at
    peer.hold_interval = window.hold_interval(
        peer.hold_interval, open_interval, tick_interval=core.config.tick_interval
    )
    peer.resume_at = now + peer.hold_interval
    peer.ledger.is_suspended = True
    core.ledger_changed(peer, hard=True)
    core.set_gate(peer)


def _resume(core: Core, peer: Peer, *, now: float) -> None:
    """Not before its time: who is at the border is not switched with each payment."""
    if now < peer.resume_at:
        peer.wake(peer.resume_at)
        return
    peer.resumed_at = now
    peer.ledger.is_suspended = peer.is_defaulted = False
    core.ledger_changed(peer, hard=True)
    core.set_gate(peer)


def pay(core: Core, peer: Peer, *, now: float) -> None:
    """Pay what was asked for, as far as our channels reach; what they do not carry stays wanted."""
    if not peer.is_settlement_wanted or not peer.is_ready or core.is_held or not peer.method.is_paid:
        return
    payable_msat = peer.ledger.payable_msat
    if payable_msat < 1:
        _reply(core, peer, now=now)
        return
    due_at = peer.payment_at + core.config.min_interval
    if now < due_at:
        peer.wake(due_at)
        return
    paid_msat = peer.method.pay(core, peer, payable_msat)
    if paid_msat:
        peer.payment_at = now
        peer.is_reply_due = False  # each payment carries our side
    peer.is_settlement_wanted = paid_msat < payable_msat or peer.ledger.is_disputed


def pay_through_channels(core: Core, peer: Peer, payable_msat: int) -> int:
    """How much of it they carry now."""
    left_msat = payable_msat
    for channel in list(peer.channels):
        if channel.direction is not Direction.OUT or channel.state not in PAYABLE:
            continue
        amount_msat = min(left_msat, channel.remaining_msat)
        is_free = channel.is_synced and not channel.is_in_flight
        if amount_msat > 0 and is_free and can_pay_through(core, channel):
            _pay_through(core, peer, channel, amount_msat)
            left_msat -= amount_msat
    return payable_msat - left_msat


def _pay_through(core: Core, peer: Peer, channel: Channel, amount_msat: int) -> None:
    channel.pay(amount_msat, core.key_of(channel.channel_id))
    core.channel_changed(channel)
    send_last_payment(core, peer, channel)
    core.emit(PaymentSent(peer.key, channel.channel_id, amount_msat, channel.cumulative_msat))


def send_last_payment(core: Core, peer: Peer, channel: Channel) -> None:
    if channel.signature is not None:
        accounts = core.accounts_to_send(peer)
        coming = b"" if channel.splice is None else channel.splice.signature
        head = (channel.channel_id, channel.number, channel.cumulative_msat)
        core.send(peer, Payment(*head, channel.signature, coming, accounts))


def _reply(core: Core, peer: Peer, *, now: float) -> None:
    """We were asked and have nothing to pay: if that is because of a bill that they have not seen, show it."""
    is_news = peer.ledger.unanswered_units > 0 and peer.ledger.balance() != peer.stated
    if peer.is_reply_due and is_news and not _send_statement(core, peer, now=now):
        return
    peer.is_reply_due = False
    peer.is_settlement_wanted = peer.ledger.is_disputed


def _state(core: Core, peer: Peer, *, now: float) -> None:
    """The creditor asks: at half the window if anything has changed since it asked last, and at the tick in any case,
    since the debtor may have heard the last one before a payment that made it the debtor."""
    if not peer.is_ready:
        return
    unpaid_msat = peer.ledger.unpaid_msat
    is_due = peer.method.is_paid and window.is_due(peer.ledger.window.size_msat, unpaid_msat)
    is_wanted = is_due and peer.ledger.balance() != peer.stated
    if (is_wanted or (peer.is_statement_due and unpaid_msat >= 1)) and not _send_statement(core, peer, now=now):
        return
    peer.is_statement_due = False


def _send_statement(core: Core, peer: Peer, *, now: float) -> bool:
    """False: too early, the timer is set."""
    due_at = peer.statement_at + core.config.min_interval
    if now < due_at:
        peer.wake(due_at)
        return False
    state_now(core, peer, now=now)
    return True


def state_now(core: Core, peer: Peer, *, now: float) -> None:
    peer.stated = peer.ledger.balance()
    peer.statement_at = now
    if peer.acks:
        peer.is_asking = True
    else:
        core.send(peer, Statement(core.accounts_to_send(peer)))
