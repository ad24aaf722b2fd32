"""A unidirectional channel at either end: what it has paid, and what must always hold (`payments.life`: its states).

Who pays is the payer, at direction OUT; the payee is at direction IN. A payment raises `cumulative_msat`; the payer's
signature is over that, in sat, rounded down. Money is only ever counted as cumulative sums of channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from operator import attrgetter

from payments.channel_tx import (
    CLAIM_LOCKTIME,
    ChannelTerms,
    Claim,
    InvalidSignatureError,
    funding_script_pubkey,
    parse_transaction,
    sign_payment,
    verify_payment,
)
from payments.life import Cause, InvariantError, check_channel_step, next_state
from payments.ports import Outpoint, OutputStatus
from payments.records import ChannelRecord, ChannelState, Direction
from payments.units import MSAT_PER_SAT, msat_to_sat

_PENDING, _OPEN, _CLOSING = ChannelState.PENDING, ChannelState.OPEN, ChannelState.CLOSING
_CLAIMING, _REFUNDING, _CLOSED = ChannelState.CLAIMING, ChannelState.REFUNDING, ChannelState.CLOSED

# What a Channel begins with, in this order.
_row = attrgetter(*(field.name for field in fields(ChannelRecord)))
# Where money can still be in the funding output.
WATCHED = frozenset({_PENDING, _OPEN, _CLOSING, _CLAIMING, _REFUNDING})
# Where the payer may have payments stored at the payee.
SYNCED = WATCHED


class PeerFaultError(Exception):
    """The peer did what the protocol does not allow. The engine counts it and drops the message."""


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
    written: ChannelRecord | None = None  # as it is on the disk, or will be before anything leaves
    refusals: int = 0
    is_close_ready: bool = False  # payee: it is no use to wait for the payer, which has answered or is gone
    is_payer_done: bool = False  # payee: the payer has said that it will not pay through it any more

    @classmethod
    def from_record(cls, record: ChannelRecord) -> Channel:
        channel = cls(*_row(record))
        channel.written = record
        return channel

    def record(self) -> ChannelRecord:
        return ChannelRecord(*_row(self))

    def move(self, cause: Cause) -> None:
        """Raises InvariantError for what is not in the table."""
        self.state = next_state(self.direction, self.state, cause)
        self.check()

    def written_as(self, record: ChannelRecord) -> None:
        """Raises InvariantError unless that may follow what was written before."""
        if self.written is not None:
            check_channel_step(self.written, record)
        self.written = record

    def check(self) -> None:
        """Raises InvariantError unless every sum is within the channel and every state has what it needs."""
        if not 0 <= self.cumulative_msat <= self.limit_msat:
            raise InvariantError(f"{self.cumulative_msat} msat in a channel of {self.terms.capacity_sat} sat")
        if self.direction is Direction.OUT and not 0 <= self.acknowledged_msat <= self.cumulative_msat:
            raise InvariantError("acknowledged more than paid")
        if self.cumulative_msat > 0 and self.signature is None and self.state is not _CLOSED:
            raise InvariantError("a sum without a signature")
        if self.state in WATCHED and self.funding is None:
            raise InvariantError(f"{self.state.value} without an outpoint")

    @property
    def outpoint(self) -> Outpoint:
        if self.funding is None:
            raise InvariantError("the channel has no funding output")
        return self.funding

    @property
    def limit_msat(self) -> int:
        return self.terms.max_paid_sat * MSAT_PER_SAT

    @property
    def remaining_msat(self) -> int:
        return self.limit_msat - self.cumulative_msat

    @property
    def paid_sat(self) -> int:
        return msat_to_sat(self.cumulative_msat)

    @property
    def counted_msat(self) -> int:
        """What goes into the ledger: the payee's only once the funding output is proven."""
        return self.cumulative_msat if self.direction is Direction.OUT or self.is_confirmed else 0

    @property
    def is_in_flight(self) -> bool:
        """The payer waits for the payee to confirm the last payment: at most one is ever uncertain."""
        return self.acknowledged_msat < self.cumulative_msat

    def pay(self, amount_msat: int, payer_key: bytes) -> None:
        """Payer: raise the sum and sign it. Raises InvariantError if the channel cannot carry it."""
        if self.direction is not Direction.OUT or self.state is not _OPEN or not 0 < amount_msat <= self.remaining_msat:
            raise InvariantError(f"a payment of {amount_msat} msat in a {self.state.value} channel")
        cumulative_msat = self.cumulative_msat + amount_msat
        self.signature = sign_payment(payer_key, self.terms, self.outpoint, msat_to_sat(cumulative_msat))
        self.cumulative_msat = cumulative_msat
        self.check()

    def verify(self, cumulative_msat: int, signature: bytes) -> None:
        """Raises PeerFaultError unless it is the payer's signature over that sum."""
        if self.funding is None:
            raise PeerFaultError("a payment before the funding")
        if cumulative_msat > self.limit_msat:
            raise PeerFaultError("a payment above the capacity")
        try:
            verify_payment(self.terms, self.funding, msat_to_sat(cumulative_msat), signature)
        except InvalidSignatureError as error:
            raise PeerFaultError(str(error)) from error

    def receive(self, cumulative_msat: int, signature: bytes) -> int:
        """Payee: take a payment; the amount by which it raises the sum. Raises PeerFaultError, nothing changed."""
        if self.direction is not Direction.IN or self.state not in (_PENDING, _OPEN, _CLOSING):
            raise PeerFaultError(f"a payment in a {self.state.value} channel")
        if cumulative_msat <= self.cumulative_msat:
            raise PeerFaultError("a payment that does not raise the sum")
        self.verify(cumulative_msat, signature)
        amount_msat = cumulative_msat - self.cumulative_msat
        self.cumulative_msat, self.signature = cumulative_msat, signature
        self.check()
        return amount_msat

    def adopt(self, cumulative_msat: int, signature: bytes) -> None:
        """Payer: the payee shows a later payment of ours than we remember (an old backup, a crash). Raises
        PeerFaultError unless we signed it."""
        self.verify(cumulative_msat, signature)
        self.cumulative_msat = self.acknowledged_msat = cumulative_msat
        self.signature = signature
        self.check()

    def settle_at_claim(self, claimed_sat: int) -> None:
        """Payer: the chain shows what was claimed, and that is what was paid.

        The last payment may have been lost on the way: then the one confirmed before it was claimed. An old backup of
        ours may know less than was claimed. A payee that claims less than it has confirmed has only itself to blame.
        """
        if claimed_sat == msat_to_sat(self.acknowledged_msat) < self.paid_sat:
            self.cumulative_msat = self.acknowledged_msat
        elif claimed_sat > self.paid_sat:
            self.cumulative_msat = claimed_sat * MSAT_PER_SAT

    def matches(self, status: OutputStatus) -> bool:
        return status.value_sat == self.terms.capacity_sat and status.script_pubkey == funding_script_pubkey(self.terms)

    def claim(self, payee_key: bytes) -> Claim:
        if self.signature is None:
            raise InvariantError("nothing to claim")
        return Claim(self.terms, self.outpoint, self.paid_sat, self.signature, payee_key)


def claimed_sat(channel: Channel, spending_raw: bytes) -> int | None:
    """What the payee took in that claim of the channel; None: the transaction does not claim it.

    SIGHASH_SINGLE puts the payer's change at the index of the input that spends the channel.
    """
    try:
        transaction = parse_transaction(spending_raw)
    except ValueError:
        return None
    if transaction.locktime != CLAIM_LOCKTIME:
        return None  # a refund, perhaps our own, of which an old backup knows nothing
    outpoint = channel.outpoint
    for index, spent in enumerate(transaction.vin):
        if (bytes(spent.txid)[::-1], spent.vout) == (outpoint.txid, outpoint.index) and index < len(transaction.vout):
            change = transaction.vout[index]
            taken = channel.terms.capacity_sat - int(change.value)
            is_ours = change.script_pubkey.data == channel.terms.payer_change_script
            return taken if is_ours and 0 <= taken <= channel.terms.max_paid_sat else None
    return None
