"""A unidirectional channel at either end: what it has paid, and what must always hold (`payments.life`: its states).

Who pays is the payer, at direction OUT; the payee is at direction IN. A payment raises `cumulative_msat`; the payer's
signature is over that, in sat, rounded down. Money is only ever counted as cumulative sums of channels. A splice gives
the channel another funding output and takes nothing from these sums: what it pays out is `base_msat` of the new output.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from operator import attrgetter
from typing import Any, NamedTuple

from payments.channel_tx import (
    ChannelTerms,
    Claim,
    InvalidSignatureError,
    funding_script_pubkey,
    parse_transaction,
    sign_payment,
    verify_payment,
)
from payments.life import Cause, InvariantError, check_channel_step, check_payment_step, next_state
from payments.mutual_tx import is_payment_claim, paid_to
from payments.ports import Outpoint, OutputStatus
from payments.records import ChannelRecord, ChannelState, Direction, PaidRecord, Splice
from payments.units import MSAT_PER_SAT, msat_to_sat

_PENDING, _OPEN, _CLOSING = ChannelState.PENDING, ChannelState.OPEN, ChannelState.CLOSING
_CLAIMING, _REFUNDING, _CLOSED = ChannelState.CLAIMING, ChannelState.REFUNDING, ChannelState.CLOSED
_SPLICING, _COOPERATING = ChannelState.SPLICING, ChannelState.COOPERATING

# What a Channel begins with, in this order; and where in it the columns of `PaidRecord` are.
_COLUMNS = [field.name for field in fields(ChannelRecord)]
_row = attrgetter(*_COLUMNS)
_PAID = slice(_COLUMNS.index("cumulative_msat"), _COLUMNS.index("acknowledged_msat") + 1)
# Where money can still be in the funding output.
WATCHED = frozenset({_PENDING, _OPEN, _SPLICING, _COOPERATING, _CLOSING, _CLAIMING, _REFUNDING})
# Where the payer may have payments stored at the payee.
SYNCED = WATCHED
# Where the payer may pay.
PAYABLE = frozenset({_OPEN, _SPLICING})


class PeerFaultError(Exception):
    """The peer did what the protocol does not allow. The engine counts it and drops the message."""


class Stage(NamedTuple):
    """A funding output of a channel: the present one, or the one that a splice makes."""

    number: int
    terms: ChannelTerms
    outpoint: Outpoint
    base_msat: int

    def paid_sat(self, cumulative_msat: int) -> int:
        return msat_to_sat(cumulative_msat - self.base_msat)

    @property
    def limit_msat(self) -> int:
        return self.base_msat + self.terms.max_paid_sat * MSAT_PER_SAT

    def verify(self, cumulative_msat: int, signature: bytes) -> None:
        """Raises PeerFaultError unless it is the payer's signature for that sum on this output."""
        if not self.base_msat <= cumulative_msat <= self.limit_msat:
            raise PeerFaultError("a payment above the capacity, or below what is paid out")
        try:
            verify_payment(self.terms, self.outpoint, self.paid_sat(cumulative_msat), signature)
        except InvalidSignatureError as error:
            raise PeerFaultError(str(error)) from error


@lru_cache(maxsize=1024)
def channel_key(seed: bytes, channel_id: bytes) -> bytes:
    """Our secret key of one channel: nothing secret need be stored with it."""
    return hashlib.blake2b(channel_id, key=seed, digest_size=32, person=b"meshd channel").digest()


@dataclass(slots=True)
class Channel:
    """The record, mutable. `refusals`: how often the chain has refused our transaction since start."""

    channel_id: bytes
    peer: bytes
    direction: Direction
    state: ChannelState
    terms: ChannelTerms
    opened_height: int
    funding: Outpoint | None = None
    funding_raw: bytes | None = None
    is_confirmed: bool = False
    cumulative_msat: int = 0
    signature: bytes | None = None
    acknowledged_msat: int = 0
    spend_txid: bytes | None = None
    spend_raw: bytes | None = None
    payout_script: bytes = b""
    number: int = 0
    base_msat: int = 0
    splice: Splice | None = None
    # Payer: the payee has said what our last payment was. What comes from a disk may be old: it is asked first.
    is_synced: bool = True
    _written: tuple[Any, ...] | None = None  # as it is on the disk, or will be before anything leaves
    refusals: int = 0
    is_close_ready: bool = False  # payee: it is no use to wait for the payer, which has answered or is gone
    is_payer_done: bool = False  # payee: the payer has said that it will not pay through it any more
    offered: Splice | None = None  # payee: proposed, its inputs not looked at yet
    early: tuple[int, bytes] | None = (
        None  # payee: a payment on a splice of which only the payer has seen that it is deep
    )
    is_splice_seen: bool = False  # on the chain or in the pool, when we last looked
    is_output_lost: bool = False  # payer: spent by a splice that an old backup of ours has forgotten
    is_close_wanted: bool = False  # payer: by the operator, once the splice is over
    close_fee_sat: int = 0  # payer: as last proposed
    is_splice_refused: bool = False  # payer: by the payee, in this run
    depth: int = 0  # of the present funding output, when we last looked
    closed_at: int | None = None  # the height at which it was closed, or we started with it closed
    waiting_since: int | None = None  # payer: the height from which on it has waited for the payee's claim

    @classmethod
    def from_record(cls, record: ChannelRecord) -> Channel:
        """Of a row on the disk."""
        channel = cls.from_elsewhere(record)
        channel._written, channel.is_synced = _row(record), not record.cumulative_msat
        return channel

    @classmethod
    def from_elsewhere(cls, record: ChannelRecord) -> Channel:
        """Of a row that is not on the disk yet."""
        return cls(*_row(record))

    def record(self) -> ChannelRecord:
        return ChannelRecord(*_row(self))

    def move(self, cause: Cause) -> None:
        """Raises InvariantError for what is not in the table."""
        self.state = next_state(self.direction, self.state, cause)
        self.check()

    def write(self) -> ChannelRecord | PaidRecord:
        """The row to be written, or what a payment has changed of it. Raises InvariantError unless it may follow what
        was written before."""
        self.check()
        row, before = _row(self), self._written
        self._written = row
        if before is None:
            return ChannelRecord(*row)
        if row[: _PAID.start] == before[: _PAID.start] and row[_PAID.stop :] == before[_PAID.stop :]:
            paid = PaidRecord(self.channel_id, *row[_PAID])
            check_payment_step(self.state, PaidRecord(self.channel_id, *before[_PAID]), paid)
            return paid
        record = ChannelRecord(*row)
        check_channel_step(ChannelRecord(*before), record)
        return record

    def check(self) -> None:
        """Raises InvariantError unless every sum is within the channel and every state has what it needs."""
        most_msat = self.base_msat + self.terms.max_paid_sat * MSAT_PER_SAT
        if self.splice is not None:
            most_msat = max(most_msat, self.stage_of(self.splice).limit_msat)
        if not 0 <= self.base_msat <= self.cumulative_msat <= most_msat or self.base_msat % MSAT_PER_SAT:
            raise InvariantError(f"{self.cumulative_msat} msat in a channel of {self.terms.capacity_sat} sat")
        if self.direction is Direction.OUT and not 0 <= self.acknowledged_msat <= self.cumulative_msat:
            raise InvariantError("acknowledged more than paid")
        is_signed = self.signature is not None or self.splice is not None
        if self.cumulative_msat > self.base_msat and not is_signed and self.state is not _CLOSED:
            raise InvariantError("a sum without a signature")
        if self.state in WATCHED and self.funding is None:
            raise InvariantError(f"{self.state.value} without an outpoint")
        if self.state is _SPLICING and self.splice is None:
            raise InvariantError("splicing without a splice")
        if self.splice is not None and not self.base_msat <= self.splice.base_msat <= self.cumulative_msat:
            raise InvariantError("a splice that pays out more than was paid")

    @property
    def outpoint(self) -> Outpoint:
        if self.funding is None:
            raise InvariantError("the channel has no funding output")
        return self.funding

    @property
    def stage(self) -> Stage:
        return Stage(self.number, self.terms, self.outpoint, self.base_msat)

    def stage_of(self, splice: Splice) -> Stage:
        return Stage(splice.number, splice.terms, splice.funding, splice.base_msat)

    def stages(self) -> list[Stage]:
        """One, or two while there is a splice. Before the funding, of an outpoint that nobody has."""
        present = Stage(self.number, self.terms, self.funding or Outpoint(bytes(32), 0), self.base_msat)
        return [present] if self.splice is None else [present, self.stage_of(self.splice)]

    @property
    def limit_msat(self) -> int:
        """Of the cumulative sum, for the next payment: it must fit into every output that it is signed for."""
        limit_msat = self.base_msat + self.terms.max_paid_sat * MSAT_PER_SAT
        return limit_msat if self.splice is None else min(limit_msat, self.stage_of(self.splice).limit_msat)

    @property
    def remaining_msat(self) -> int:
        return max(0, self.limit_msat - self.cumulative_msat)

    @property
    def paid_sat(self) -> int:
        """Through the present funding output."""
        return msat_to_sat(self.cumulative_msat - self.base_msat)

    @property
    def counted_msat(self) -> int:
        """What goes into the ledger: the payee's only once the funding output is proven."""
        return self.cumulative_msat if self.direction is Direction.OUT or self.is_confirmed else 0

    @property
    def is_in_flight(self) -> bool:
        """The payer waits for the payee to confirm the last payment: at most one is ever uncertain."""
        return self.acknowledged_msat < self.cumulative_msat

    # --- the payer ---

    def pay(self, amount_msat: int, payer_key: bytes) -> None:
        """Raise the sum and sign it. Raises InvariantError if the channel cannot carry it."""
        if (
            self.direction is not Direction.OUT
            or self.state not in PAYABLE
            or not 0 < amount_msat <= self.remaining_msat
        ):
            raise InvariantError(f"a payment of {amount_msat} msat in a {self.state.value} channel")
        self._sign(self.cumulative_msat + amount_msat, payer_key)

    def _sign(self, cumulative_msat: int, payer_key: bytes) -> None:
        """On every output that there is or may come to be, as far as it reaches."""
        self.cumulative_msat = cumulative_msat
        if self.splice is None:
            self.signature = sign_payment(payer_key, self.terms, self.outpoint, self.paid_sat)
            self.check()
            return
        signed = [
            sign_payment(payer_key, stage.terms, stage.outpoint, stage.paid_sat(cumulative_msat))
            if cumulative_msat <= stage.limit_msat
            else b""
            for stage in self.stages()
        ]
        self.signature = signed[0] or self.signature
        self.splice = replace(self.splice, signature=signed[1])
        self.check()

    def add_splice(self, splice: Splice, payer_key: bytes) -> None:
        """From now on every payment is signed for its output, too; the last one at once."""
        self.splice = splice
        self._sign(self.cumulative_msat, payer_key)

    def adopt(self, stage: Stage, cumulative_msat: int, signature: bytes, payer_key: bytes) -> None:
        """The payee shows a later payment of ours than we remember (an old backup, a crash). Raises PeerFaultError
        unless we signed it."""
        stage.verify(cumulative_msat, signature)
        self.acknowledged_msat = cumulative_msat
        self._sign(cumulative_msat, payer_key)

    # --- the payee ---

    def receive(self, number: int, cumulative_msat: int, signature: bytes, splice_signature: bytes) -> int:
        """Take a payment; the amount by which it raises the sum. Raises PeerFaultError, nothing changed."""
        if self.direction is not Direction.IN or self.state not in (_PENDING, _OPEN, _SPLICING, _CLOSING):
            raise PeerFaultError(f"a payment in a {self.state.value} channel")
        if cumulative_msat <= self.cumulative_msat:
            raise PeerFaultError("a payment that does not raise the sum")
        if self.funding is None:
            raise PeerFaultError("a payment before the funding")
        if number == self.number - 1:  # the payer has not seen yet how deep the splice is
            signature, splice_signature = splice_signature, b""
        elif number != self.number:
            raise PeerFaultError("a payment on an output that we do not know")
        self.stage.verify(cumulative_msat, signature)
        coming = self.splice or self.offered
        if coming is not None:
            self.stage_of(coming).verify(cumulative_msat, splice_signature)
            coming = replace(coming, signature=splice_signature)
            self.splice, self.offered = (coming, None) if self.splice is not None else (None, coming)
        amount_msat = cumulative_msat - self.cumulative_msat
        self.cumulative_msat, self.signature = cumulative_msat, signature
        self.check()
        return amount_msat

    def claim(self, payee_key: bytes) -> Claim:
        """Of the output that there is: the splice's if it is on its way, and the present one cannot be had any more."""
        if self.splice is not None and self.is_splice_seen:
            stage, signature = self.stage_of(self.splice), self.splice.signature
        else:
            stage, signature = self.stage, self.signature or b""
        if not signature:
            raise InvariantError("nothing to claim")
        return Claim(stage.terms, stage.outpoint, stage.paid_sat(self.cumulative_msat), signature, payee_key)

    @property
    def claimable_sat(self) -> int:
        if self.splice is not None and self.is_splice_seen:
            return self.stage_of(self.splice).paid_sat(self.cumulative_msat)
        return self.paid_sat

    # --- the chain ---

    def promote(self, spending_raw: bytes | None) -> None:
        """The splice has its confirmations: its output is the funding output now."""
        if self.splice is None:
            raise InvariantError("no splice")
        splice, self.splice = self.splice, None
        self.number = splice.number
        self.terms, self.funding, self.base_msat = splice.terms, splice.funding, splice.base_msat
        self.funding_raw = spending_raw or splice.raw or None
        self.signature = splice.signature or None
        self.is_splice_seen, self.is_confirmed, self.refusals = False, True, 0

    def settle_at_claim(self, claimed_sat: int) -> None:
        """Payer: the chain shows what was claimed, and that is what was paid.

        The last payment may have been lost on the way: then the one confirmed before it was claimed. An old backup of
        ours may know less than was claimed. A payee that claims less than it has confirmed has only itself to blame.
        """
        claimed_msat = self.base_msat + claimed_sat * MSAT_PER_SAT
        if claimed_sat == self.stage.paid_sat(self.acknowledged_msat) < self.paid_sat:
            self.cumulative_msat = self.acknowledged_msat
        elif claimed_msat > self.cumulative_msat:
            self.cumulative_msat = claimed_msat

    def matches(self, status: OutputStatus) -> bool:
        return status.value_sat == self.terms.capacity_sat and status.script_pubkey == funding_script_pubkey(self.terms)


def claimed_sat(channel: Channel, spending_raw: bytes) -> int | None:
    """What the payee took in that claim of the channel; None: the transaction does not claim it.

    SIGHASH_SINGLE puts the payer's change at the index of the input that spends the channel.
    """
    try:
        transaction = parse_transaction(spending_raw)
        if not is_payment_claim(spending_raw, channel.outpoint):
            return None  # a refund, perhaps our own, of which an old backup knows nothing; a splice; a common close
    except ValueError:
        return None
    outpoint = channel.outpoint
    for index, spent in enumerate(transaction.vin):
        if (bytes(spent.txid)[::-1], spent.vout) == (outpoint.txid, outpoint.index) and index < len(transaction.vout):
            change = transaction.vout[index]
            taken = channel.terms.capacity_sat - int(change.value)
            is_ours = change.script_pubkey.data == channel.terms.payer_change_script
            return taken if is_ours and 0 <= taken <= channel.terms.max_paid_sat else None
    return None


def closed_together_sat(channel: Channel, spending_raw: bytes) -> int | None:
    """What the payee got in that common close; None: it is none, as far as its outputs show."""
    try:
        if is_payment_claim(spending_raw, channel.outpoint):
            return None
        scripts = {o.script_pubkey.data for o in parse_transaction(spending_raw).vout}
        is_close = channel.terms.payer_change_script in scripts
        is_close = is_close and scripts <= {channel.terms.payer_change_script, channel.payout_script}
        is_refund = parse_transaction(spending_raw).locktime != 0
        return paid_to(spending_raw, channel.payout_script) if is_close and not is_refund else None
    except ValueError:
        return None
