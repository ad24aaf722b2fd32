"""The exchange of signed counts with one peer, and what follows when they disagree (docs/adr/0009)."""

from __future__ import annotations

from payments.core import Core, Peer
from payments.counts import Evidence, verify
from payments.events import Distrust, StandingChanged, Trust
from payments.messages import Counts
from payments.records import CountsRecord
from payments.window import Window


def restore(core: Core, record: CountsRecord) -> None:
    peer = core.peer(record.peer)
    peer.book.restore(record)
    peer.ledger.is_tolerant = not peer.book.is_limited


def handle_counts(core: Core, peer: Peer, message: Counts, *, now: float) -> None:
    """Raises CountsError for a report that no honest peer makes."""
    if core.signer is None:
        return
    evidence = Evidence(message.body, message.signature)
    report = verify(evidence, maker=peer.key, peer=core.signer.key)
    peer.book.hear(report, evidence, now=now)
    core.counts_changed(peer)


def review(core: Core, peer: Peer, *, now: float) -> None:
    """After all else of this call: reports, silence, and what the peer has come to."""
    if core.signer is None:
        return
    book = peer.book
    before = book.standing if peer.standing is None else peer.standing
    book.look_at_clock(billed_units=peer.ledger.their_billed_units, now=now)
    if book.standing is not before:
        _handle_standing(core, peer)
    peer.standing = book.standing
    core.set_gate(peer)
    if book.is_suspended != peer.is_distrusted:
        peer.is_distrusted = book.is_suspended
        core.emit(Distrust(peer.key) if peer.is_distrusted else Trust(peer.key))
    if peer.is_ready and book.is_news(earned_units=peer.ledger.billed_units):
        due_at = core.when_others_are(peer.counts_at + core.config.counts_interval)
        if now >= due_at:
            _report(core, peer, now=now)
        else:
            peer.wake(due_at)
    if book.next_look_at is not None:
        peer.wake(core.when_others_are(book.next_look_at))


def _report(core: Core, peer: Peer, *, now: float) -> None:
    if core.signer is None:
        return
    earned_units = core.accounts_to_send(peer).billed_units  # written before it leaves
    report = peer.book.make_report(earned_units=earned_units, owed_units=peer.ledger.owed_limit_units)
    evidence = core.signer.evidence(report, peer.key)
    peer.counts_at = now
    core.send(peer, Counts(evidence.body, evidence.signature))


def _handle_standing(core: Core, peer: Peer) -> None:
    book, ledger = peer.book, peer.ledger
    ledger.is_tolerant = not book.is_limited
    if book.is_limited:
        ledger.window = Window(core.config.start_window_msat, 0)
        core.ledger_changed(peer)
    core.counts_changed(peer, hard=True)
    view = book.view(peer.key)
    core.emit(StandingChanged(peer.key, book.standing, book.finding, view.overstated_bytes, view.denied_bytes))
