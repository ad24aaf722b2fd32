"""What the engine does with credit notes (`payments.credit`): at the start of a session, when paying, when paid."""

from __future__ import annotations

from payments import settlement
from payments.channel import PeerFaultError
from payments.core import Core, Peer
from payments.credit import CreditLine, Notary
from payments.events import CreditRedeemed, OperatorRedeemCredit, PaymentSent
from payments.messages import CreditMessage, CreditNote, CreditReceipt, CreditSync
from payments.records import CreditRecord
from payments.units import msat_to_units

NO_CHANNEL = b""  # what is paid on credit is paid through none


def restore(core: Core, record: CreditRecord) -> None:
    core.peer(record.peer).credit = CreditLine.from_record(record)


def begin_session(core: Core, peer: Peer) -> None:
    line = peer.credit
    core.send(peer, CreditSync(line.their_paid_msat, line.their_redeemed_msat, line.their_signature))


def pay(core: Core, peer: Peer, amount_msat: int) -> int:
    """Promise as much of it as the limit allows; nothing while the last note is not acknowledged."""
    line = peer.credit
    amount_msat = min(amount_msat, line.limit_msat - line.owed_msat)
    if amount_msat <= 0 or not line.is_synced or line.is_in_flight:
        return 0
    line.promise(amount_msat)
    _send_note(core, peer)
    core.emit(PaymentSent(peer.key, NO_CHANNEL, amount_msat, line.paid_msat))
    return amount_msat


def redeem(core: Core, event: OperatorRedeemCredit) -> None:
    """Not more than they owe by now; only in a session, as an old backup must first learn what it has signed."""
    peer = core.peer(event.peer)
    line = peer.credit
    amount_msat = min(event.amount_msat, -line.owed_msat)
    if amount_msat <= 0 or not line.is_synced:
        return
    line.redeem(amount_msat)
    _send_note(core, peer)
    core.emit(CreditRedeemed(peer.key, amount_msat, line.redeemed_msat))


def _send_note(core: Core, peer: Peer) -> None:
    core.credit_changed(peer)
    signature = _notary(core, peer).sign_note(peer.credit.sums)
    core.send(peer, CreditNote(*peer.credit.sums, signature, core.accounts_to_send(peer)))


def handle(core: Core, peer: Peer, message: CreditMessage) -> None:
    """Raises PeerFaultError."""
    if peer.method.name != "credit":
        raise PeerFaultError("a credit message, where credit is not agreed on")
    match message:
        case CreditNote():
            handle_note(core, peer, message)
        case CreditReceipt():
            handle_receipt(core, peer, message)
        case CreditSync():
            handle_sync(core, peer, message)


def handle_note(core: Core, peer: Peer, message: CreditNote) -> None:
    """Verify, persist, countersign, credit. A repetition is countersigned again."""
    line, sums = peer.credit, (message.paid_msat, message.redeemed_msat)
    notary = _notary(core, peer)
    if sums != line.their_sums:
        notary.verify_note(sums, message.signature)
        before_msat = line.their_redeemed_msat
        amount_msat = line.hear_note(sums, message.signature)
        core.credit_changed(peer)
        if amount_msat:
            settlement.credit_sum(core, peer, NO_CHANNEL, amount_msat, line.their_paid_msat)
        if line.their_redeemed_msat > before_msat:
            core.emit(CreditRedeemed(peer.key, before_msat - line.their_redeemed_msat, line.their_redeemed_msat))
    peer.ledger.hear(message.accounts)
    core.ledger_changed(peer)
    receipt = notary.sign_receipt(line.their_sums)
    core.send(peer, CreditReceipt(*line.their_sums, receipt, core.accounts_to_send(peer)))


def handle_receipt(core: Core, peer: Peer, message: CreditReceipt) -> None:
    line, sums = peer.credit, (message.paid_msat, message.redeemed_msat)
    _notary(core, peer).verify_receipt(sums, message.signature)
    line.hear_receipt(sums, message.signature)
    core.credit_changed(peer, hard=False)
    peer.ledger.hear(message.accounts)
    core.ledger_changed(peer)


def handle_sync(core: Core, peer: Peer, message: CreditSync) -> None:
    """The last note of ours that the peer holds: take it over if we have forgotten it, send ours again if it has."""
    line, sums = peer.credit, (message.paid_msat, message.redeemed_msat)
    if line.is_synced:
        raise PeerFaultError("a second credit sync")
    if sums != (0, 0):
        _notary(core, peer).verify_own_note(sums, message.signature)
    is_behind = sums[0] <= line.paid_msat and sums[1] <= line.redeemed_msat
    if not is_behind:
        forgotten_msat = line.adopt(sums)
        # We signed for it, so our meter had allowed it.
        peer.ledger.add_metered(earned_units=0, owed_limit_units=msat_to_units(forgotten_msat))
        core.ledger_changed(peer)
        core.credit_changed(peer)
    line.is_synced = True
    if sums != line.sums or line.is_in_flight:
        _send_note(core, peer)


def _notary(core: Core, peer: Peer) -> Notary:
    if core.signer is None:
        raise ValueError("credit needs a signer")
    return Notary(core.signer, peer.key, core.config.chain)
